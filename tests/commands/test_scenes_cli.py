"""Detection and relationships on the command line: what a person does after `affsup prepare shapes`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from affsup_cli.app import main
from affsup_cli.runs.folder import RunFolder
from affsup_cli.training.trainer import Trainer
from tests.small_scenes import OF_SCENES, SMALL

SMALL_RELNET = SMALL | {"relation.heads": 4, "relation.key_dim": 8, "test.recall_at": [10, 500]}
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli")


@pytest.fixture
def call(place: Path, shapes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(place)
        monkeypatch.setenv("AFFSUP_DATA", str(shapes))
        monkeypatch.setattr(sys, "argv", ["affsup", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        printed = capsys.readouterr()
        return int(left.value.code or 0), printed.out, printed.err

    return run


def settings(fields: dict[str, object]) -> list[str]:
    return [part for key, value in fields.items() for part in ("--set", f"{key}={json.dumps(value)}")]


@pytest.fixture
def trained(call: Call, place: Path) -> RunFolder:
    run = RunFolder(place / "runs" / "mine")
    if not run.finished:
        code, _, error = call("train", "relnet", "--gamma", "2", "--name", "mine", *settings(SMALL_RELNET))
        assert code == 0, error
    return run


@pytest.fixture
def categorised(call: Call, place: Path, trained: RunFolder, shape_scenes: Path) -> RunFolder:
    run = RunFolder(place / "runs" / "scenes")
    if not run.finished:
        code, _, error = call("train", "scene", "--pretrained", "mine", "--name", "scenes", *settings(OF_SCENES))
        assert code == 0, error
    return run


def test_a_scene_run_takes_part_a_from_the_run_that_is_named(categorised: RunFolder, trained: RunFolder) -> None:
    assert categorised.environment()["network"]["run"] == "mine"
    assert categorised.recipe().prerequisite() == trained.recipe()
    assert 0 <= categorised.result()["metrics"]["test_accuracy"] <= 1


def test_without_a_name_part_a_is_found_by_its_recipe(call: Call, place: Path, categorised: RunFolder) -> None:
    of_network = {f"network.{key}": value for key, value in SMALL_RELNET.items()}
    code, _, error = call("train", "scene", "--name", "found", *settings(OF_SCENES | of_network))
    assert code == 0, error
    found = RunFolder(place / "runs" / "found")
    assert found.environment()["network"] == categorised.environment()["network"]
    assert found.result()["metrics"] == categorised.result()["metrics"]
    code, _, error = call("train", "scene", *settings(OF_SCENES | of_network | {"network.seed": 5}))
    assert code == 2
    assert "builds on a run of relnet-shapes-convnet-focal" in error
    assert "affsup train relnet --dataset shapes" in error


def test_pretrained_is_for_recipes_that_build_on_a_run(call: Call, trained: RunFolder) -> None:
    code, _, error = call("train", "minibatch", "--pretrained", "mine")
    assert code == 2
    assert "--pretrained is for scene: minibatch builds on no other run" in error
    untrained = OF_SCENES | {"model.pretrained": False, "model.features": "scene"}
    code, _, error = call("train", "scene", "--pretrained", "mine", *settings(untrained))
    assert code == 2
    assert "builds on no other run" in error


def test_pretrained_takes_a_run_of_the_network_alone(call: Call, place: Path, categorised: RunFolder) -> None:
    assert call("export", "scenes", "--out", "other.safetensors")[0] == 0
    for named in ("scenes", "other.safetensors"):
        code, _, error = call("train", "scene", "--pretrained", named, "--name", "none", *settings(OF_SCENES))
        assert code == 2
        assert f"{named} is a run of scene; --pretrained takes one of relnet" in error
        assert len(error) < 300
    assert not (place / "runs" / "none").exists()


def test_the_scene_of_a_picture_is_predicted_from_the_run_and_from_its_export(
    call: Call, place: Path, categorised: RunFolder
) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)).save(place / "any.png")
    assert call("export", "scenes", "--out", "scenes.safetensors")[0] == 0
    found = []
    for model in ("scenes", "scenes.safetensors"):
        code, out, error = call("predict", model, "any.png", "--out", f"seen-{model}")
        assert code == 0, error
        content = json.loads((place / f"seen-{model}" / "any.json").read_text())
        assert sum(content["categories"].values()) == pytest.approx(1, abs=1e-3)  # rounded numbers
        assert list(content["categories"].values()) == sorted(content["categories"].values(), reverse=True)
        assert f"any.png: {next(iter(content['categories']))} " in out
        found.append(content)
    assert found[0] == found[1]
    card = (place / "scenes.md").read_text()
    assert "affsup predict scenes.safetensors" in card
    assert "7 categories: garden" in card
    code, _, error = call("predict", "scenes", "any.png", "--reference", "star")
    assert code == 2
    assert "a run of scene has no objects" in error


def test_training_on_scenes_ends_in_numbers_and_files(trained: RunFolder) -> None:
    result = trained.result()
    assert {"test_map_50", "test_recall@10", "test_recall_macro@500", "test_mass"} <= set(result["metrics"])
    files = {path.name for path in trained.path.iterdir()}
    assert {"best.pt", "detections-test.json", "relationships-test.h5", "examples.h5"} <= files


def test_evaluate_gives_the_results_numbers_and_another_splits_files(trained: RunFolder, call: Call) -> None:
    code, out, error = call("evaluate", "mine", "--device", "cpu")
    assert code == 0, error
    assert f"{trained.result()['metrics']['test_map_50']:.2%}" in out
    code, out, error = call("evaluate", "mine", "--split", "train", "--device", "cpu")
    assert code == 0, error
    assert "train_mass" in out
    assert trained.detections("train").is_file()
    code, _, error = call("evaluate", "mine", "--split", "val")
    assert code == 2
    assert "no split 'val'" in error


def test_the_run_is_listed_with_its_precision_and_mass(trained: RunFolder, call: Call) -> None:
    code, out, _ = call("list", "runs")
    metrics = trained.result()["metrics"]
    assert code == 0
    assert f"mAP@0.5 {metrics['test_map_50']:.2%}" in out
    assert f"{metrics['test_mass']:.3f}" in out


def photograph(path: Path, size: tuple[int, int] = (90, 60)) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_predict_writes_a_picture_and_what_it_shows(trained: RunFolder, call: Call, place: Path) -> None:
    for name in ("holiday.png", "garden.jpg"):
        photograph(place / name)
    code, out, error = call("predict", "mine", "holiday.png", "garden.jpg", "--score", "0", "--device", "cpu")
    assert code == 0, error
    seen = json.loads((place / "predictions" / "holiday.json").read_text())
    with Image.open(place / "predictions" / "holiday.png") as picture:
        assert min(picture.size) > 100
    assert seen["size"] == [90, 60]
    assert seen["detections"]
    scores = [entry["score"] for entry in seen["detections"]]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= entry["box"][0] <= entry["box"][2] <= 90.01 for entry in seen["detections"])
    assert seen["reference"] == 0
    weights = [entry["weight"] for entry in seen["partners"]]
    assert weights == sorted(weights, reverse=True)
    assert 0 < sum(weights) <= 1
    assert f"the {seen['detections'][0]['class']} relates to {seen['partners'][0]['class']}" in out
    assert (place / "predictions" / "garden.json").is_file()


def test_predict_shows_the_partners_of_the_class_that_is_asked_for(trained: RunFolder, call: Call, place: Path) -> None:
    photograph(place / "p.png")
    call("predict", "mine", "p.png", "--score", "0", "--device", "cpu", "--out", "any")
    classes = [entry["class"] for entry in json.loads((place / "any" / "p.json").read_text())["detections"]]
    asked = next(name for name in classes if name != classes[0])
    code, _, error = call("predict", "mine", "p.png", "--score", "0", "--reference", asked, "--out", "one")
    assert code == 0, error
    assert json.loads((place / "one" / "p.json").read_text())["reference"] == classes.index(asked)


def test_predict_says_so_where_it_finds_nothing(trained: RunFolder, call: Call, place: Path) -> None:
    photograph(place / "nothing.png")
    code, out, _ = call("predict", "mine", "nothing.png", "--score", "1", "--device", "cpu")
    assert code == 0
    assert "nothing.png: 0 objects; no object of score 1 or more" in out
    assert json.loads((place / "predictions" / "nothing.json").read_text())["reference"] is None
    assert (place / "predictions" / "nothing.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["absent.png"], "no picture absent.png"),
        (["p.png", "--out", "."], "--out . would overwrite the picture p.png"),
        (["p.png", "--reference", "person"], "--reference person: the run's classes are circle, square"),
        (["p.png", "p.png"], "several pictures are called p"),
        (["text.png"], "text.png"),
    ],
)
def test_a_mistake_in_predict_gets_one_clear_message(
    trained: RunFolder, call: Call, place: Path, arguments: list[str], said: str
) -> None:
    photograph(place / "p.png")
    (place / "text.png").write_text("not a picture")
    code, _, error = call("predict", "mine", *arguments, "--device", "cpu")
    assert code in (1, 2)
    assert said in error
    assert "Traceback" not in error


def test_a_picture_that_cannot_be_read_does_not_keep_others_from_being_seen(
    trained: RunFolder, call: Call, place: Path
) -> None:
    (place / "torn.png").write_text("not a picture")
    photograph(place / "whole.png")
    code, out, error = call("predict", "mine", "torn.png", "whole.png", "--device", "cpu", "--out", "both")
    assert code == 1
    assert "torn.png" in error
    assert "whole.png: " in out
    assert (place / "both" / "whole.json").is_file()


def test_a_recipe_that_scenes_cannot_serve_is_refused_by_name(call: Call) -> None:
    for arguments, said in (
        (["frcnn", "--loss", "none"], "--loss is not for frcnn: it has no field affinity.loss"),
        (["scene", "--loss", "none"], "--loss is not for scene: part A's is --set network.affinity.loss=none"),
        (["scene", "--gamma", "2"], "--gamma is not for scene: part A's is --set network.affinity.gamma=2.0"),
        (["scene", "--arch", "resnet101"], "--set network.model.arch=resnet101"),
        (["scene", "--pretrained", ""], "--pretrained '': expected a run folder"),
        (
            ["scene", "--dataset", "voc07"],
            "'voc07' holds scenes without categories, for frcnn, relnet, relpn: scene takes",
        ),
        (["scene", "--set", "network.data.name=digits"], "'digits' holds labelled images, for minibatch: relnet takes"),
        (["relnet", "--set", "train.select=best"], "all others test the last epoch"),
        (["relnet", "--target", "neighbours"], "affinity.target"),
        (["relnet", "--arch", "vgg16"], "vgg16"),
        (["relnet", "--set", "affinity.module=3"], "affinity.module = 3"),
        (["relnet", "--set", "test.recall_at=[0]"], "test.recall_at"),
        (["relnet", "--set", "test.recall_at=[50, 10]"], "must be in ascending order"),
        (["relnet", "--set", "relation.heads=3"], "relation.heads = 3: expected a divisor of model.width"),
        (["relnet", "--set", "model.anchor_scales=[-1]"], "model.anchor_scales"),
        (["relnet", "--set", "affinity.second=heart"], "affinity.second = 'heart'"),
        (["relnet", "--set", "data.long_side=100"], "data.long_side = 100"),
        (["minibatch", "--dataset", "shapes"], "holds scenes"),
    ):
        code, _, error = call("train", *arguments)
        assert code == 2, error
        assert said in error
        assert len(error) < 300


def test_a_damaged_record_of_the_data_is_named(trained: RunFolder, call: Call) -> None:
    path = trained.path / "environment.json"
    whole = path.read_text()
    path.write_text('{"data": {}}')
    code, _, error = call("evaluate", "mine", "--device", "cpu")
    path.write_text(whole)
    assert code == 1
    assert "environment.json is damaged" in error


def test_too_little_memory_is_said_with_what_to_do(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(self: Trainer) -> None:
        torch.empty(2**60)

    monkeypatch.setattr(Trainer, "run", run)
    code, _, error = call("train", "relnet", "--name", "huge", *settings(SMALL_RELNET))
    assert code == 1
    assert "out of memory" in error
    assert "Traceback" not in error


def test_what_was_typed_does_not_steer_the_terminal(call: Call) -> None:
    code, _, error = call("show", "bell\x07\nline")
    assert code == 2
    assert "'bell\\x07\\nline'" in error
