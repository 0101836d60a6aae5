"""Categories of whole images in the prepared form of scenes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest

import data_prep
from data_prep.annotations import SceneAnnotation, concatenate
from data_prep.build import PrepareResult, build
from data_prep.drawing import DrawnPictures
from data_prep.errors import AffsupError, UsageError
from data_prep.raw import RawScenes, SceneSet
from data_prep.store import SceneManifest, read_manifest, read_scene_manifest, read_scenes
from tests.data_prep.scene_sources import picture

Preparing = Callable[..., PrepareResult]


def a_set(categories: Sequence[int | None], names: tuple[str, ...] = ("inside", "outside")) -> SceneSet:
    """Scenes of a dog each, the first half to train on, under a name that is known."""
    scenes = [
        SceneAnnotation(f"{n}.jpg", n, (64, 48), [(0.0, 0.0, 9.0, 9.0)], [0], category=category)
        for n, category in enumerate(categories)
    ]
    half = len(scenes) // 2
    pictures = DrawnPictures({scene.name: picture() for scene in scenes})
    official = RawScenes(
        ("dog",), (), "classes", concatenate(scenes[:half]), concatenate(scenes[half:]), pictures, categories=names
    )
    return SceneSet("shapes", "", {"train": half, "test": half}, read=lambda _: official)


@pytest.fixture
def prepare(tmp_path: Path) -> Preparing:
    def run(*arguments: object, place: str = "data", **request: object) -> PrepareResult:
        return build(a_set(*arguments), data_dir=tmp_path / place, **request)

    return run


def edited(outcome: PrepareResult, **changes: object) -> SceneManifest:
    """The manifest as read after some of its fields were changed in the file; None takes one away."""
    path = outcome.folder / "manifest.json"
    gone = {key for key, value in changes.items() if value is None}
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if key not in gone}))
    return read_scene_manifest(outcome.folder)


def test_categories_are_read_back_and_counted(prepare: Preparing) -> None:
    outcome = prepare([1, 0, 1, 1, 1, 0])
    manifest = read_scene_manifest(outcome.folder, "categories")
    assert manifest.categories == ["inside", "outside"]
    train, test = (read_scenes(outcome.folder, manifest, part) for part in ("train", "test"))
    assert (train.categories.tolist(), test.categories.tolist()) == ([1, 0, 1], [1, 1, 0])
    assert train.categories.dtype == np.int64
    assert [manifest.splits[part].per_category for part in ("train", "test")] == [[1, 2], [1, 2]]
    assert manifest.category_table() == [("inside", 1, 1), ("outside", 2, 2)]
    assert data_prep.check("shapes", outcome.folder.parent) == manifest
    assert manifest.run_record()["categories"] == ["inside", "outside"]


def test_a_limit_takes_the_categories_of_the_images_it_takes(prepare: Preparing) -> None:
    outcome = prepare([n % 3 for n in range(60)], ("a", "b", "c"), limit=10)
    train = read_scenes(outcome.folder, outcome.manifest, "train")
    assert len(train) == 10
    assert train.categories.tolist() == (train.ids % 3).tolist()
    assert sum(outcome.manifest.splits["train"].per_category) == 10


def test_a_set_without_categories_is_stored_and_recorded_without(prepare: Preparing) -> None:
    outcome = prepare([None] * 4, ())
    assert read_scenes(outcome.folder, outcome.manifest, "train").categories.shape == (0,)
    with h5py.File(outcome.folder / "scenes.h5") as h5:
        assert "category" not in h5["train"]
    assert "categories" not in outcome.manifest.run_record()


def test_a_manifest_from_before_there_were_categories_is_read(prepare: Preparing) -> None:
    outcome = prepare([None] * 4, ())
    splits = {name: record.model_dump(exclude={"per_category"}) for name, record in outcome.manifest.splits.items()}
    assert edited(outcome, categories=None, splits=splits) == outcome.manifest
    assert data_prep.check("shapes", outcome.folder.parent) == outcome.manifest


def test_the_digest_tells_categories_and_their_names_apart(prepare: Preparing) -> None:
    kinds = [([0, 1, 0, 1],), ([0, 1, 1, 1],), ([0, 1, 0, 1], ("in", "out")), ([None] * 4, ())]
    assert len({prepare(*kind, place=str(n)).manifest.digest for n, kind in enumerate(kinds)}) == len(kinds)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (2, r"categories outside 0\.\.1"),
        (-1, r"categories outside 0\.\.1"),
        (1, "other counts than its manifest"),
    ],
)
def test_damaged_categories_are_named(prepare: Preparing, change: int, what: str) -> None:
    outcome = prepare([0, 1, 0, 1])
    with h5py.File(outcome.folder / "scenes.h5", "r+") as h5:
        h5["train"]["category"][0] = change
    with pytest.raises(AffsupError, match=rf"scenes\.h5: split train has {what}: run `affsup prepare shapes"):
        read_scenes(outcome.folder, outcome.manifest, "train")


def test_missing_and_short_categories_are_named(prepare: Preparing) -> None:
    outcome = prepare([0, 1, 0, 1])
    with h5py.File(outcome.folder / "scenes.h5", "r+") as h5:
        del h5["train"]["category"]
        del h5["test"]["category"]
        h5["test"]["category"] = np.zeros(1, dtype=np.int64)
    with pytest.raises(AffsupError, match=r"scenes\.h5 is damaged .*category"):
        read_scenes(outcome.folder, outcome.manifest, "train")
    with pytest.raises(AffsupError, match="split test has arrays of different lengths"):
        read_scenes(outcome.folder, outcome.manifest, "test")


def test_a_manifest_whose_categories_do_not_add_up_is_refused(prepare: Preparing) -> None:
    outcome = prepare([0, 1, 0, 1])
    with pytest.raises(AffsupError, match=r"per_category does not add up to 0 over the categories"):
        edited(outcome, categories=None)
    with pytest.raises(AffsupError, match=r"per_category does not add up to 2 over the categories"):
        edited(outcome, categories=["one"])
    splits = {name: record.model_dump() | {"per_category": [1, 2]} for name, record in outcome.manifest.splits.items()}
    with pytest.raises(AffsupError, match=r"per_category does not add up to 2 over the categories"):
        edited(outcome, categories=["inside", "outside"], splits=splits)


def test_who_needs_categories_or_objects_is_told_where_there_are_none(prepare: Preparing, digits: Path) -> None:
    without = prepare([None] * 4, ()).folder
    with pytest.raises(UsageError, match="'shapes' holds scenes without categories, expected one of scenes with a cat"):
        read_scene_manifest(without, "categories")
    assert read_scene_manifest(without).classes == ["dog"]
    with pytest.raises(UsageError, match="'digits' holds labelled images, expected one of scenes with a category each"):
        read_scene_manifest(digits / "digits", "categories")


def test_scenes_may_have_categories_and_no_classes_at_all(tmp_path: Path) -> None:
    scenes = [SceneAnnotation(f"{n}.jpg", n, (64, 48), [], [], category=n % 2) for n in range(4)]
    pictures = DrawnPictures({scene.name: picture() for scene in scenes})
    official = RawScenes(
        (), (), "classes", concatenate(scenes[:2]), concatenate(scenes[2:]), pictures, categories=("in", "out")
    )
    outcome = build(SceneSet("shapes", "", {"train": 2, "test": 2}, read=lambda _: official), data_dir=tmp_path)
    manifest = data_prep.check("shapes", tmp_path)
    assert isinstance(manifest, SceneManifest)
    record = manifest.splits["train"]
    assert (record.objects, record.pairs, record.without_object, record.per_class) == (0, 0, 2, [])
    assert manifest.split_table() == [("images", 2, 2)]
    assert read_scenes(outcome.folder, read_manifest(outcome.folder), "test").categories.tolist() == [0, 1]
    with pytest.raises(UsageError, match="'shapes' holds scenes without objects, expected one of scenes with annotat"):
        read_scene_manifest(outcome.folder)
