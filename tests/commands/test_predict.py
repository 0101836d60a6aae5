from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from affsup_cli.commands.predict import predict
from affsup_cli.models.classifiers.build import build_classifier
from affsup_cli.recipe import MinibatchRecipe, Recipe, load_recipe
from affsup_cli.runs.checkpoint import save_checkpoint
from affsup_cli.runs.export import open_trained
from affsup_cli.runs.folder import RunFolder
from affsup_cli.tasks.classifier_prediction import ClassifierPredictor
from affsup_cli.tasks.detection.network import build_network
from data_prep.errors import AffsupError, UsageError
from tests.commands.calling import invoke
from tests.small_scenes import small

CLASSES = ["cat", "dog", "ship"]
PREPROCESSING = {"image_shape": [3, 16, 16], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}


def leave_run(folder: Path, recipe: Recipe, model: torch.nn.Module, **data: Any) -> None:
    run = RunFolder(folder)
    run.path.mkdir(parents=True)
    run.write_recipe(recipe)
    data = {"name": "any", "digest": "d" * 64, "classes": CLASSES, **data}
    run.write_environment({"affsup": "0.1.0", "device": "cpu", "data": data})
    save_checkpoint(run.best, {"model": model.state_dict(), "epoch": 1, "score": 0.0})


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run of a classifier and one of a detector, and pictures of which four are strips."""
    torch.manual_seed(0)
    classifier = build_classifier("resnet20", 3, len(CLASSES))
    leave_run(tmp_path / "runs" / "classifier", load_recipe("minibatch"), classifier, preprocessing=PREPROCESSING)
    leave_run(tmp_path / "runs" / "detector", small(), build_network(small(), len(CLASSES), pretrained=False))
    (tmp_path / "photos").mkdir()
    random = np.random.default_rng(0)
    sizes = {"a": (40, 30), "b": (16, 16), "strip": (1, 5000), "line": (20000, 1), "post": (2, 3000), "row": (4000, 3)}
    for name, (width, height) in sizes.items():
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{name}.png")
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("run", ["classifier", "detector"])
def test_strips_and_huge_pictures_are_named_and_the_others_are_done(here: Path, run: str) -> None:
    huge = Image.new("1", (13_000, 13_100))
    huge.save(here / "photos" / "huge.png")
    result = invoke(predict, run, "photos", "--device", "cpu")
    assert isinstance(result.exception, AffsupError)
    lines = str(result.exception).splitlines()
    assert [line.partition(".png")[0] for line in lines] == [
        f"photos/{name}" for name in ("huge", "line", "post", "row", "strip")
    ]
    assert {path.stem for path in (here / "predictions").glob("*.json")} == {"a", "b"}


def test_a_classifier_gives_the_most_probable_classes_and_a_contact_sheet(here: Path) -> None:
    result = invoke(predict, "classifier", "photos/a.png", "photos/b.png", "--top", "2", "--device", "cpu")
    assert result.exit_code == 0, result.exception
    written = json.loads((here / "predictions" / "a.json").read_text())
    trained = open_trained(here / "runs" / "classifier")
    assert isinstance(trained.recipe, MinibatchRecipe)
    predictor = ClassifierPredictor(trained, trained.recipe, "cpu")
    probabilities = predictor.predict(np.asarray(Image.open(here / "photos" / "a.png")))
    assert sum(probabilities.values()) == pytest.approx(1)
    assert list(probabilities.values()) == sorted(probabilities.values(), reverse=True)
    best = {name: round(share, 4) for name, share in list(probabilities.items())[:2]}
    assert written == {"image": "photos/a.png", "classes": best}
    with Image.open(here / "predictions" / "contact-sheet.png") as sheet:
        assert len(set(sheet.convert("L").tobytes())) > 100


def test_pictures_of_the_networks_size_are_its_input(here: Path) -> None:
    trained = open_trained(here / "runs" / "classifier")
    assert isinstance(trained.recipe, MinibatchRecipe)
    image = np.asarray(Image.open(here / "photos" / "b.png"))
    expected = (torch.from_numpy(image.copy()).permute(2, 0, 1) / 255 - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / (
        torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    )
    torch.testing.assert_close(ClassifierPredictor(trained, trained.recipe, "cpu").preprocess(image), expected)


def test_a_classifier_without_a_record_of_its_images_is_named(here: Path) -> None:
    leave_run(here / "runs" / "old", load_recipe("minibatch"), build_classifier("resnet20", 3, 3))
    assert "does not record the size" in str(invoke(predict, "old", "photos/a.png", "--device", "cpu").exception)


def test_numbers_are_rounded(here: Path) -> None:
    assert invoke(predict, "detector", "photos/a.png", "--score", "0", "--device", "cpu").exit_code == 0
    (found, *_) = json.loads((here / "predictions" / "a.json").read_text())["detections"]
    assert found["box"] == [round(side, 2) for side in found["box"]]
    assert found["score"] == round(found["score"], 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("classifier", "nothing.png"), "no picture nothing.png"),
        (("classifier", "runs"), "no pictures in runs"),
        (("classifier", "photos/a.png", "--reference", "cat"), "a run of minibatch has no objects"),
    ],
)
def test_a_wrong_call_is_refused(here: Path, arguments: tuple[str, ...], message: str) -> None:
    error = invoke(predict, *arguments).exception
    assert isinstance(error, UsageError)
    assert message in str(error)
