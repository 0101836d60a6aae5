from __future__ import annotations

from pathlib import Path

import pytest

import data_prep
from affsup_cli.bench import synthetic
from affsup_cli.bench.needs import kinds_of, needed_runs
from affsup_cli.bench.synthetic import make
from affsup_cli.reporting.select.spec import report_names
from data_prep.store import read_image_manifest, read_manifest, read_scene_manifest, read_scenes


@pytest.mark.parametrize(("name", "side", "classes"), [("cifar100", 32, 100), ("tiny-imagenet", 64, 200)])
def test_generated_images_are_a_sound_data_set_of_the_real_shape(
    name: str, side: int, classes: int, tmp_path: Path
) -> None:
    make(name, tmp_path)
    data_prep.check(name, tmp_path)
    manifest = read_image_manifest(tmp_path / name)
    assert (manifest.image_shape, len(manifest.classes)) == ([3, side, side], classes)
    assert not manifest.complete
    assert manifest.image_counts()["train"] % 128 == 0


@pytest.mark.parametrize(("name", "relations"), [("voc07", "classes"), ("vg", "annotated")])
def test_generated_scenes_are_a_sound_data_set(name: str, relations: str, tmp_path: Path) -> None:
    make(name, tmp_path)
    data_prep.check(name, tmp_path)
    manifest = read_scene_manifest(tmp_path / name)
    assert manifest.relations == relations
    scenes = read_scenes(tmp_path / name, manifest, "train")
    assert all(len(scenes.objects(index).relations) for index in range(len(scenes)))
    assert scenes.pixels(0).std() > 10


@pytest.mark.parametrize("name", ["cifar10", "voc07"])
def test_a_gpu_is_given_far_more_to_evaluate(name: str, tmp_path: Path) -> None:
    make(name, tmp_path / "cpu")
    make(name, tmp_path / "gpu", test_of_gpu=True)
    few, many = (read_manifest(tmp_path / device / name).image_counts()["test"] for device in ("cpu", "gpu"))
    assert many >= 20 * few


@pytest.mark.parametrize("table", report_names())
def test_the_data_of_every_table_can_be_generated(table: str) -> None:
    for recipe in kinds_of(list(needed_runs(table).values())).values():
        name = recipe.flat()["data.name"]
        assert name in synthetic._SHAPES or data_prep.get(name).embedded


def test_a_set_that_ships_is_itself(tmp_path: Path) -> None:
    make("digits", tmp_path)
    assert read_image_manifest(tmp_path / "digits").complete
