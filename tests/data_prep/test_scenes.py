from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest

import data_prep
from data_prep import build_scenes as scenes_module
from data_prep.annotations import SceneAnnotation, concatenate
from data_prep.build import PrepareResult
from data_prep.build_scenes import LeftOutLog, clean_annotations
from data_prep.errors import AffsupError, UsageError
from data_prep.store import (
    Annotations,
    SceneManifest,
    read_image_manifest,
    read_manifest,
    read_scene_manifest,
    read_scenes,
    read_split,
)
from tests.data_prep.conftest import OfficialFiles
from tests.data_prep.scene_sources import Scene, picture, voc
from tests.data_prep.test_build import content

DOG_AND_CAT = (("dog", 1, 1, 32, 48, 0), ("cat", 33, 5, 64, 40, 0))
Preparing = Callable[..., PrepareResult]


@pytest.fixture
def prepare(tmp_path: Path, official: OfficialFiles) -> Preparing:
    """Prepares a small VOC of the given training and test scenes."""

    def run(train: list[Scene], test: list[Scene] | None = None, **request: object) -> PrepareResult:
        files = voc(train, test or [Scene("000900", DOG_AND_CAT)])
        number = len(list(tmp_path.glob("source*")))
        folder = official.folder(tmp_path / f"source{number}", "VOC2007", files)
        return data_prep.prepare("voc07", **({"sources": [folder], "data_dir": tmp_path / "data"} | request))

    return run


def many(count: int) -> list[Scene]:
    return [Scene(f"{number:06d}", DOG_AND_CAT) for number in range(1, count + 1)]


def left_out(outcome: PrepareResult) -> dict[tuple[str, str], tuple[int, list[str]]]:
    assert isinstance(outcome.manifest, SceneManifest)
    return {(entry.what, entry.reason): (entry.count, entry.examples) for entry in outcome.manifest.left_out}


def random_annotations(seed: int, images: int = 9) -> Annotations:
    random = np.random.RandomState(seed)
    scenes = []
    for number in range(images):
        count = random.randint(0, 6)
        corners = random.randint(-40, 140, (count, 4)).tolist()
        scenes.append(
            SceneAnnotation(
                name=f"{number}.jpg",
                id=number,
                size=(100, 50 + number),
                boxes=[tuple(map(float, box)) for box in corners],
                labels=random.randint(0, 4, count).tolist(),
                difficult=random.randint(0, 2, count).astype(bool).tolist(),
                relations=[tuple(row) for row in random.randint(0, count, (random.randint(0, 9), 3))] if count else [],
            )
        )
    return concatenate(scenes)


@pytest.mark.parametrize("seed", range(20))
def test_tidying_keeps_what_an_object_by_object_loop_keeps(seed: int) -> None:
    given = random_annotations(seed)
    log = LeftOutLog()
    kept = clean_annotations(given, log)
    lost_objects = lost_relations = 0
    for i in range(len(given)):
        old = slice(*given.first_object[i : i + 2])
        width, height = given.sizes[i]
        new_index, boxes, labels = {}, [], []
        for k, (box, label) in enumerate(zip(given.boxes[old], given.labels[old], strict=True)):
            x1, x2 = (min(max(x, 0), width) for x in box[[0, 2]])
            y1, y2 = (min(max(y, 0), height) for y in box[[1, 3]])
            if x1 < x2 and y1 < y2:
                new_index[k] = len(boxes)
                boxes.append([x1, y1, x2, y2])
                labels.append(label)
        rows = range(*given.first_relation[i : i + 2])
        relations = [
            (new_index[s], new_index[o], p)
            for (s, o), p in zip(given.relations[rows], given.predicates[rows], strict=True)
            if s in new_index and o in new_index and s != o
        ]
        lost_objects += old.stop - old.start - len(boxes)
        lost_relations += len(rows) - len(relations)
        new, of_image = slice(*kept.first_object[i : i + 2]), slice(*kept.first_relation[i : i + 2])
        np.testing.assert_array_equal(kept.boxes[new], np.reshape(boxes, (-1, 4)))
        assert kept.labels[new].tolist() == labels
        assert [
            (*pair, p) for pair, p in zip(kept.relations[of_image].tolist(), kept.predicates[of_image], strict=True)
        ] == relations
    counts = {what: sum(e.count for e in log.records() if e.what == what) for what in ("objects", "relations")}
    assert counts == {"objects": lost_objects, "relations": lost_relations}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["annotated", "classes"])
def test_pairs_are_counted_as_nested_loops_count_them(seed: int, kind: str) -> None:
    held = clean_annotations(random_annotations(seed), LeftOutLog())
    record = held.record(4, kind)
    pairs = []
    for i in range(len(held)):
        rows = range(*held.first_object[i : i + 2])
        if kind == "annotated":
            pairs.append(len({tuple(r) for r in held.relations[slice(*held.first_relation[i : i + 2])].tolist()}))
        else:
            part = [k for k in rows if not held.difficult[k]]
            pairs.append(sum(held.labels[a] != held.labels[b] for a in part for b in part))
    assert (record.pairs, record.without_pair) == (sum(pairs), pairs.count(0))
    assert record.objects == len(held.boxes)
    assert record.without_object == sum(len(set(held.first_object[i : i + 2])) == 1 for i in range(len(held)))


def test_what_was_prepared_is_read_back(prepare: Preparing) -> None:
    stored = picture((64, 48))
    outcome = prepare([Scene("000007", DOG_AND_CAT, picture=stored), Scene("2008_000012", DOG_AND_CAT[1:])])
    scenes = read_scenes(outcome.folder, read_manifest(outcome.folder), "train")
    assert len(scenes) == 2
    assert scenes.ids.tolist() == [7, 2008000012]
    assert list(scenes.names) == ["000007.jpg", "2008_000012.jpg"]
    assert scenes.sizes.tolist() == [[64, 48]] * 2
    assert scenes.encoded(0) == stored
    first = scenes.objects(0)
    np.testing.assert_array_equal(first.boxes, [[0, 0, 32, 48], [32, 4, 64, 40]])
    assert first.boxes.dtype == np.float32
    assert first.labels.tolist() == [11, 7]
    assert first.relations.tolist() == [[0, 1], [1, 0]]
    assert scenes.objects(1).relations.shape == (0, 2)
    assert scenes.pixels(0).shape == (48, 64, 3)


def test_pairs_from_classes_leave_out_difficult_objects_and_equal_classes(prepare: Preparing) -> None:
    objects = [("dog", 1, 1, 9, 9, 0), ("dog", 11, 1, 19, 9, 0), ("cat", 21, 1, 29, 9, 0), ("car", 31, 1, 39, 9, 1)]
    outcome = prepare([Scene("000001", objects)])
    found = read_scenes(outcome.folder, outcome.manifest, "train").objects(0)
    assert found.relations.tolist() == [[0, 2], [1, 2], [2, 0], [2, 1]]
    assert found.difficult.tolist() == [False, False, False, True]
    assert outcome.manifest.splits["train"].pairs == 4


def test_scenes_go_through_pickle_and_threads(prepare: Preparing) -> None:
    train = [Scene(f"{n:06d}", picture=picture((64 + n, 48)), size=(64 + n, 48)) for n in range(1, 40)]
    outcome = prepare(train)
    scenes = pickle.loads(pickle.dumps(read_scenes(outcome.folder, outcome.manifest, "train")))
    with ThreadPoolExecutor(4) as pool:
        shapes = list(pool.map(lambda i: scenes.pixels(i).shape, range(39)))
    assert shapes == [(48, 64 + n, 3) for n in range(1, 40)]


@pytest.mark.parametrize("count", [0, 1, 500])
def test_an_image_may_have_no_object_or_one_or_many(prepare: Preparing, count: int) -> None:
    objects = [("dog" if k % 2 else "cat", 1 + k % 60, 1, 3 + k % 60, 9, 0) for k in range(count)]
    outcome = prepare([Scene("000001", objects)])
    found = read_scenes(outcome.folder, outcome.manifest, "train").objects(0)
    assert (len(found.boxes), len(found.relations)) == (count, count * count // 2 if count > 1 else 0)
    record = outcome.manifest.splits["train"]
    assert (record.images, record.objects, record.without_object) == (1, count, int(count == 0))
    assert outcome.manifest.left_out == []


def test_boxes_are_clipped_and_those_with_nothing_left_counted_and_named(prepare: Preparing) -> None:
    objects = [
        ("dog", -5, 1, 70, 60, 0),
        ("cat", 80, 1, 90, 9, 0),
        ("cow", 9, 9, 8, 20, 0),
        ("cat", "nan", 1, 9, 9, 0),
        ("cat", 1, 1, 1, 1, 0),
    ]
    outcome = prepare([Scene("000001", objects)])
    found = read_scenes(outcome.folder, outcome.manifest, "train").objects(0)
    np.testing.assert_array_equal(found.boxes, [[0, 0, 64, 48], [0, 0, 1, 1]])
    assert left_out(outcome) == {
        ("objects", "box with numbers that are not finite"): (1, ["000001.jpg object 4 [nan, 0, 9, 9]"]),
        ("objects", "box empty or outside the image"): (
            2,
            ["000001.jpg object 2 [79, 0, 90, 9]", "000001.jpg object 3 [8, 8, 8, 20]"],
        ),
    }


def test_relations_of_lost_objects_and_of_an_object_with_itself_are_counted_and_named() -> None:
    boxes = [(0.0, 0.0, 9.0, 9.0), (20.0, 0.0, 20.0, 9.0), (5.0, 5.0, 9.0, 9.0)]
    given = SceneAnnotation("a.jpg", 1, (10, 10), boxes, [0, 1, 2], relations=[(0, 1, 0), (2, 0, 1), (2, 2, 0)])
    log = LeftOutLog()
    kept = clean_annotations(concatenate([given]), log)
    assert kept.relations.tolist() == [[1, 0]]
    assert kept.predicates.tolist() == [1]
    assert [(e.what, e.reason, e.count, e.examples) for e in log.records()][1:] == [
        ("relations", "of an object that is left out", 1, ["a.jpg relation 1"]),
        ("relations", "of an object with itself", 1, ["a.jpg relation 3"]),
    ]


def test_broken_images_are_left_out_with_their_annotations_and_named(prepare: Preparing) -> None:
    scenes = many(300)
    scenes[4].picture = picture()[:300]
    scenes[9].picture = b"no picture"
    scenes[17].picture = picture((32, 24))
    scenes[100].picture = None
    scenes[200].picture = None
    scenes[30].picture = picture(mode="L")
    scenes[31].picture = picture(mode="CMYK")
    scenes[32].picture = picture((48, 64), orientation=6)
    outcome = prepare(scenes)
    found = left_out(outcome)
    assert found["images", "missing"][0] == 2
    assert found["images", "missing"][1][0].endswith("VOC2007/JPEGImages/000101.jpg")
    assert found["images", "cannot be decoded"][0] == 2
    assert found["images", "cannot be decoded"][1][0].startswith("000005.jpg cannot be decoded (")
    name = "000018.jpg is 32x24, annotated as 64x48"
    assert found["images", "of another size than annotated"] == (1, [name])
    assert found["objects", "image left out"] == (10, [f"{n:06d}.jpg" for n in (5, 10, 18, 101, 201)])
    scenes_read = read_scenes(outcome.folder, outcome.manifest, "train")
    assert (outcome.manifest.splits["train"].images, len(scenes_read)) == (295, 295)
    assert set(scenes_read.ids.tolist()) == set(range(1, 301)) - {5, 10, 18, 101, 201}
    index = scenes_read.ids.tolist().index(33)
    turned = scenes_read.pixels(index)
    assert turned.shape == (48, 64, 3)
    assert turned[:24].max() < 50
    assert scenes_read.objects(index).labels.tolist() == [11, 7]
    assert not outcome.manifest.complete
    assert data_prep.check("voc07", outcome.folder.parent) == outcome.manifest


def test_too_many_missing_images_are_refused_with_the_places_expected(prepare: Preparing, tmp_path: Path) -> None:
    scenes = many(150)
    for scene in scenes[:3]:
        scene.picture = None
    with pytest.raises(
        AffsupError, match=r"3 of 151 images are missing, more than 1%; expected .*JPEGImages/000001\.jpg"
    ):
        prepare(scenes)
    assert not (tmp_path / "data" / "voc07").exists()


def test_a_split_of_which_no_image_can_be_used_is_refused(prepare: Preparing, tmp_path: Path) -> None:
    with pytest.raises(AffsupError, match=r"none of its 1 train images can be used: 1 of another size .*is 32x24"):
        prepare([Scene("000001", picture=picture((32, 24)))])
    assert not (tmp_path / "data" / "voc07").exists()


def test_a_limit_takes_a_fixed_part_of_the_training_images_and_a_smaller_one_of_that(prepare: Preparing) -> None:
    ids = {}
    for limit in (40, 10):
        outcome = prepare(many(100), limit=limit)
        ids[limit] = read_scenes(outcome.folder, outcome.manifest, "train").ids.tolist()
        assert (len(ids[limit]), outcome.manifest.splits["test"].images, outcome.manifest.limit) == (limit, 1, limit)
    assert set(ids[10]) < set(ids[40])
    assert ids[10] == sorted(ids[10]) == [3, 17, 27, 55, 56, 74, 76, 87, 94, 96]


@pytest.mark.parametrize(("limit", "expected"), [(0, "at least 1"), (101, "at most 100")])
def test_an_impossible_limit_is_refused(prepare: Preparing, limit: int, expected: str) -> None:
    with pytest.raises(UsageError, match=f"--limit {limit}: expected {expected}"):
        prepare(many(100), limit=limit)


def test_the_manifest_says_what_was_prepared_from_what(prepare: Preparing) -> None:
    manifest = prepare(many(3)).manifest
    assert isinstance(manifest, SceneManifest)
    assert (manifest.kind, manifest.relations, manifest.predicates) == ("scenes", "classes", [])
    assert manifest.source.kind == "folder"
    assert set(manifest.source.files) == {"Annotations", "ImageSets/Main", "pictures"}
    assert manifest.source.official is None
    assert manifest.category_ids == list(range(1, 21))
    assert manifest.image_counts() == {"train": 3, "test": 1}
    assert manifest.splits["train"].per_class == [3 if name in ("cat", "dog") else 0 for name in manifest.classes]


def test_equal_data_have_an_equal_digest_and_any_change_another(prepare: Preparing) -> None:
    digests = [
        prepare(many(2)).manifest.digest,
        prepare(many(2)).manifest.digest,
        prepare(many(3)).manifest.digest,
        prepare([many(1)[0], Scene("000002", DOG_AND_CAT[::-1])]).manifest.digest,
        prepare([many(1)[0], Scene("000002", DOG_AND_CAT, picture=picture(mode="L"))]).manifest.digest,
        prepare([many(1)[0], Scene("000003", DOG_AND_CAT)]).manifest.digest,
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 5


def test_nothing_is_done_where_the_same_is_there(prepare: Preparing, tmp_path: Path) -> None:
    prepare(many(2))
    source = [tmp_path / "source0"]
    assert data_prep.prepare("voc07", sources=source, data_dir=tmp_path / "data").status == "up to date"
    (tmp_path / "source0" / "VOC2007" / "JPEGImages" / "000001.jpg").write_bytes(picture(mode="L"))
    assert data_prep.prepare("voc07", sources=source, data_dir=tmp_path / "data").status == "prepared"


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), OSError(28, "No space left on device")])
@pytest.mark.parametrize("step", ["write_scenes", "write_manifest"])
def test_an_interrupted_preparation_leaves_the_old_set(
    prepare: Preparing, monkeypatch: pytest.MonkeyPatch, interruption: BaseException, step: str
) -> None:
    data = prepare(many(3)).folder.parent
    before = content(data)
    real = getattr(scenes_module, step)

    def interrupted(*arguments: object) -> None:
        real(*arguments)
        raise interruption

    monkeypatch.setattr(scenes_module, step, interrupted)
    with pytest.raises(KeyboardInterrupt if isinstance(interruption, KeyboardInterrupt) else AffsupError):
        prepare(many(4))
    assert content(data) == before


def test_what_a_killed_preparation_left_is_cleared_away(prepare: Preparing) -> None:
    outcome = prepare(many(3))
    litter = outcome.folder.parent / ".voc07.new"
    litter.mkdir()
    (litter / "scenes.h5").write_bytes(b"half")
    assert read_manifest(outcome.folder) == outcome.manifest
    prepare(many(3))
    assert not litter.exists()


def test_no_source_is_kept_open_or_needed_afterwards(prepare: Preparing, tmp_path: Path) -> None:
    outcome = prepare(many(2))
    (tmp_path / "source0").rename(tmp_path / "moved")
    assert read_scenes(outcome.folder, outcome.manifest, "train").pixels(1).shape == (48, 64, 3)


def test_scenes_and_labelled_images_are_not_taken_for_each_other(prepare: Preparing, digits: Path) -> None:
    voc07 = prepare(many(1)).folder
    with pytest.raises(UsageError, match="'voc07' holds scenes, expected one of labelled"):
        read_image_manifest(voc07)
    with pytest.raises(UsageError, match="'digits' holds labelled images, expected one of scenes"):
        read_scene_manifest(digits / "digits")
    with pytest.raises(UsageError, match="'digits' holds labelled images, expected scenes"):
        read_scenes(digits / "digits", read_manifest(digits / "digits"), "train")
    with pytest.raises(UsageError, match="'voc07' holds scenes, expected labelled images"):
        read_split(voc07, read_manifest(voc07), "train")
    assert read_scene_manifest(voc07).dataset == "voc07"
    assert read_image_manifest(digits / "digits").dataset == "digits"


def test_there_is_no_validation_split(prepare: Preparing) -> None:
    outcome = prepare(many(1))
    with pytest.raises(UsageError, match="no split 'val': known are train, test"):
        read_scenes(outcome.folder, outcome.manifest, "val")


@pytest.mark.parametrize(
    ("key", "row", "value", "what"),
    [
        ("labels", 0, 20, r"labels outside 0\.\.19"),
        ("labels", 0, -1, r"labels outside 0\.\.19"),
        ("labels", 0, 3, "other counts than its manifest"),
        ("boxes", (1, 2), 65, "boxes that are empty or outside their image"),
        ("boxes", (0, 0), np.nan, "boxes that are empty or outside their image"),
        ("first_object", 1, 9, "first_object that does not count up"),
        ("first_object", -1, 3, "first_object that does not count up"),
        ("first_byte", -1, 10**9, "first_byte that does not count up"),
        ("first_relation", -1, 1, "first_relation that does not count up"),
    ],
)
def test_damaged_annotations_are_named(prepare: Preparing, key: str, row: object, value: float, what: str) -> None:
    outcome = prepare(many(2))
    with h5py.File(outcome.folder / "scenes.h5", "r+") as h5:
        h5["train"][key][row] = value
    with pytest.raises(AffsupError, match=rf"scenes\.h5: split train has {what}.*: run `affsup prepare voc07"):
        read_scenes(outcome.folder, outcome.manifest, "train")
    with pytest.raises(AffsupError, match=r"scenes\.h5 has SHA-256 .* its manifest says"):
        data_prep.check("voc07", outcome.folder.parent)


@pytest.mark.parametrize("key", ["labels", "encoded", "names", "first_byte"])
def test_a_missing_array_is_named(prepare: Preparing, key: str) -> None:
    outcome = prepare(many(1))
    with h5py.File(outcome.folder / "scenes.h5", "r+") as h5:
        del h5["train"][key]
    with pytest.raises(AffsupError, match=rf"scenes\.h5 is damaged .*{key}"):
        read_scenes(outcome.folder, outcome.manifest, "train")


def test_a_cut_off_file_is_one_message(prepare: Preparing) -> None:
    outcome = prepare(many(2))
    path = outcome.folder / "scenes.h5"
    scenes = read_scenes(outcome.folder, outcome.manifest, "train")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(AffsupError, match=r"scenes\.h5 is cut off: run `affsup prepare voc07"):
        scenes.pixels(1)
    with pytest.raises(AffsupError, match=r"scenes\.h5 is damaged .*: run `affsup prepare voc07"):
        read_scenes(outcome.folder, outcome.manifest, "train")
    with pytest.raises(AffsupError, match=r"scenes\.h5 has 1,000 bytes, its manifest says"):
        data_prep.check("voc07", outcome.folder.parent)
    path.unlink()
    with pytest.raises(AffsupError, match="data set 'voc07' is not prepared"):
        read_scenes(outcome.folder, outcome.manifest, "train")
    with pytest.raises(AffsupError, match=r"scenes\.h5 cannot be read \(No such file"):
        scenes.pixels(1)


def test_a_swapped_picture_is_found_by_the_content_digest(prepare: Preparing) -> None:
    outcome = prepare(many(2))
    manifest = outcome.manifest
    path = outcome.folder / "scenes.h5"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"JFIF", b"JFIE", 1))
    record = manifest.files["scenes.h5"].model_copy(update={"sha256": scenes_module.checksums(path)[0].sha256})
    older = manifest.model_copy(update={"files": {"scenes.h5": record}, "checksums": None})
    (outcome.folder / "manifest.json").write_text(older.model_dump_json())
    with pytest.raises(AffsupError, match=r"scenes\.h5 has content .* its manifest says"):
        data_prep.check("voc07", outcome.folder.parent)


def test_a_damaged_picture_or_annotation_is_found_when_it_is_read(prepare: Preparing) -> None:
    outcome = prepare(many(2))
    path = outcome.folder / "scenes.h5"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"JFIF", b"JFIE", 1))
    scenes = read_scenes(outcome.folder, outcome.manifest, "train")
    with pytest.raises(AffsupError, match=r"image 000001\.jpg is damaged: run `affsup prepare voc07"):
        scenes.pixels(0)
    scenes.pixels(1)
    path.write_bytes(content)
    with h5py.File(path, "r+") as h5:
        h5["train/boxes"][0, 0] += 1
    with pytest.raises(AffsupError, match="the annotations of split train are damaged: run `affsup prepare voc07"):
        read_scenes(outcome.folder, outcome.manifest, "train")
