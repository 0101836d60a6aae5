"""The data sets that are generated."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

import data_prep
from data_prep import drawing
from data_prep.sets import shape_scenes
from data_prep.sets import shapes as shapes_module
from data_prep.store import SceneManifest, read_manifest, read_scene_manifest, read_scenes

# Shapes


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_prep.prepare("shapes", data_dir=tmp_path_factory.mktemp("data")).folder


def test_shapes_are_the_same_for_good(shapes: Path) -> None:
    manifest = read_manifest(shapes)
    assert manifest.digest == "6bd155a5c88e3a0aaec7f482a56883e4b370ae492a581a6d785a977ab2435af5"
    assert (manifest.complete, manifest.image_counts()) == (True, {"train": 600, "test": 200})


def test_relations_of_shapes_follow_from_the_two_classes_and_from_nothing_else(shapes: Path) -> None:
    manifest = read_manifest(shapes)
    assert isinstance(manifest, SceneManifest)
    for part in ("train", "test"):
        scenes = read_scenes(shapes, manifest, part)
        predicates = np.split(scenes.annotations.predicates, scenes.annotations.first_relation[1:-1])
        for i in range(len(scenes)):
            found = scenes.objects(i)
            names = [manifest.classes[label] for label in found.labels]
            related = {
                (a, b): manifest.predicates[p]
                for (a, b), p in zip(found.relations.tolist(), predicates[i], strict=True)
            }
            pairs = [(a, b) for a in range(len(names)) for b in range(len(names)) if a != b]
            expected = {p: shapes_module.RULES.get((names[p[0]], names[p[1]])) for p in pairs}
            assert related == {pair: predicate for pair, predicate in expected.items() if predicate}
            assert any(names[a] != names[b] and not expected[a, b] for a, b in pairs)
            assert related
            assert 4 <= len(names) <= 7


def test_the_rules_of_shapes_are_ten_directed_pairs_in_which_every_class_takes_part() -> None:
    rules = shapes_module.RULES
    assert len(rules) == len(set(rules.values())) == 10
    assert all((other, subject) not in rules for subject, other in rules)
    assert {name for pair in rules for name in pair} == set(drawing.CLASSES)


def test_boxes_of_shapes_are_tight(shapes: Path) -> None:
    for name in drawing.CLASSES:
        covered = drawing._coverage(name, 31, 44) > 0
        assert covered.any(axis=0).all(), name
        assert covered.any(axis=1).all(), name
    sides = np.concatenate([np.ptp(b.reshape(-1, 2, 2), axis=1) for b in boxes_of(shapes)])
    assert (sides.min(), sides.max()) == (20, 44)


def test_shapes_hardly_overlap(shapes: Path) -> None:
    for boxes in boxes_of(shapes):
        low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
        high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
        common = np.clip(high - low, 0, None).prod(-1)
        np.fill_diagonal(common, 0)
        assert common.max() <= 0.1 * 20 * 44


def boxes_of(shapes: Path) -> list[np.ndarray]:
    scenes = read_scenes(shapes, read_manifest(shapes), "train")
    return [scenes.objects(i).boxes for i in range(len(scenes))]


# Scenes of shapes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_prep.prepare("shape-scenes", data_dir=tmp_path_factory.mktemp("data")).folder


def test_shape_scenes_are_the_same_for_good(scenes: Path) -> None:
    manifest = read_manifest(scenes)
    assert manifest.digest == "7b8d8c02664b6a07e1ccc1c4465d40b92d16a350ceedeb256274656ec6cdec73"
    assert (manifest.complete, manifest.image_counts()) == (True, {"train": 800, "test": 400})


def test_the_pairs_of_classes_are_divided_and_every_class_is_in_one_pair_of_every_category() -> None:
    pairs = shape_scenes.CATEGORIES.values()
    assert len(pairs) == 7
    assert sorted(tuple(sorted(pair)) for category in pairs for pair in category) == list(combinations(range(8), 2))
    assert all(sorted(label for pair in category for label in pair) == list(range(8)) for category in pairs)


def test_the_category_of_a_scene_is_that_of_the_two_classes_in_it(scenes: Path) -> None:
    manifest = read_scene_manifest(scenes, "categories")
    of_pair = {frozenset(pair): name for name, pairs in shape_scenes.CATEGORIES.items() for pair in pairs}
    for part in ("train", "test"):
        held = read_scenes(scenes, manifest, part)
        for i in range(len(held)):
            found = held.objects(i)
            assert of_pair[frozenset(found.labels.tolist())] == manifest.categories[held.categories[i]]
            assert 4 <= len(found.labels) <= 7
            counts = np.bincount(found.labels)
            assert len(found.relations) == 2 * np.prod(counts[counts > 0])
        assert np.ptp(manifest.splits[part].per_category) == 1
        assert len({frozenset(held.objects(i).labels.tolist()) for i in range(len(held))}) == 28


def test_no_picture_is_shared_by_splits_or_sets(scenes: Path, shapes: Path) -> None:
    pictures = []
    for folder in (scenes, shapes):
        for part in ("train", "test"):
            held = read_scenes(folder, read_manifest(folder), part)
            pictures += [held.encoded(i) for i in range(len(held))]
    assert len(set(pictures)) == len(pictures) == 2000
