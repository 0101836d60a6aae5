"""Models as ONNX: what another runtime computes from the file is what PyTorch computes."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from affsup_cli.commands.export import export
from affsup_cli.models.classifiers.build import build_classifier
from affsup_cli.models.detection.nms import first_nms, padded_nms
from affsup_cli.recipe import DetectionRecipe, Recipe, load_recipe
from affsup_cli.runs.checkpoint import save_checkpoint
from affsup_cli.runs.export import open_trained
from affsup_cli.runs.folder import RunFolder
from affsup_cli.tasks import onnx_export
from affsup_cli.tasks.detection.network import build_network
from affsup_cli.tasks.detection.prediction import DetectionPredictor
from data_prep.errors import AffsupError, UsageError
from tests.commands.calling import invoke
from tests.small_scenes import small, small_scene

onnx = pytest.importorskip("onnx", reason="needs onnx: pip install 'affsup[onnx]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'affsup[onnx]'")

CLASSES = ["circle", "square", "triangle"]
PREPROCESSING = {"image_shape": [3, 16, 16], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}

DETECTORS = {"detector": small(), "pooled": small("frcnn", model__pooling="pool")}


def leave_run(folder: Path, recipe: Recipe, model: torch.nn.Module, **data: Any) -> None:
    run = RunFolder(folder)
    run.path.mkdir(parents=True)
    run.write_recipe(recipe)
    data = {"name": "any", "digest": "d" * 64, "classes": CLASSES, **data}
    run.write_environment({"affsup": "0.1.0", "device": "cpu", "data": data})
    save_checkpoint(run.best, {"model": model.state_dict(), "epoch": 1, "score": 0.0})
    run.write_result({"kind": "train", "epochs": 1, "best_epoch": 1, "seconds": 1.0, "metrics": {"test_mass": 0.25}})


def classifier() -> torch.nn.Module:
    """A network whose batch statistics are not those that it began with."""
    torch.manual_seed(0)
    model = build_classifier("resnet20", 3, len(CLASSES))
    with torch.no_grad():
        model(torch.randn(32, 3, 16, 16))
    return model.eval()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of each task, with the two that can be exported."""
    root = tmp_path_factory.mktemp("onnx")
    leave_run(root / "runs" / "classifier", load_recipe("minibatch"), classifier(), preprocessing=PREPROCESSING)
    for name, recipe in DETECTORS.items():
        torch.manual_seed(0)
        leave_run(root / "runs" / name, recipe, build_network(recipe, len(CLASSES), pretrained=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for name, more in (("classifier", ()), *((name, ("--size", "96x64")) for name in DETECTORS)):
            result = invoke(export, name, "--format", "onnx", *more)
            assert result.exit_code == 0, result.exception
            assert "PyTorch" in result.output
    return root


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder to work in."""
    shutil.copytree(made, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def run_onnx(path: Path, images: torch.Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs: list[np.ndarray] = session.run(None, {"images": images.numpy()})
    return outputs


@pytest.mark.parametrize("count", [1, 3, 64])
def test_a_classifier_gives_the_same_for_any_number_of_images(made: Path, count: int) -> None:
    images = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(count))
    features, logits = run_onnx(made / "exports" / "classifier.onnx", images)
    with torch.no_grad():
        expected = classifier()(images)
    torch.testing.assert_close(torch.from_numpy(features), expected[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.from_numpy(logits), expected[1], rtol=1e-4, atol=1e-4)
    assert logits.shape == (count, 3)


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_gives_the_same_proposals(made: Path, name: str) -> None:
    images = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(5)) * 255
    boxes, probabilities, present = run_onnx(made / "exports" / f"{name}.onnx", images)
    trained = open_trained(made / "runs" / name)
    assert isinstance(trained.recipe, DetectionRecipe)
    detector = DetectionPredictor(trained, "cpu").model.detector
    with torch.no_grad():
        regions, _ = detector(images.clone(), [(64, 96)])
        (expected,) = detector.detections(regions, [(64, 96)])
    count = int(present.sum())
    assert 10 < count == len(expected[0])
    assert present[:count].all()
    torch.testing.assert_close(torch.from_numpy(boxes[:count]), expected[0], rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(torch.from_numpy(probabilities[:count]), expected[1], rtol=1e-3, atol=1e-4)


def test_the_file_names_classes_recipe_and_preprocessing(made: Path) -> None:
    session = onnxruntime.InferenceSession(str(made / "exports" / "classifier.onnx"))
    record = json.loads(session.get_modelmeta().custom_metadata_map["affsup"])
    assert record["classes"] == CLASSES
    assert record["preprocessing"] == PREPROCESSING
    assert record["recipe"] == load_recipe("minibatch").to_toml()
    assert [entry.shape for entry in session.get_inputs()] == [["batch", 3, 16, 16]]


def test_the_card_says_how_to_run_the_file(made: Path) -> None:
    card = (made / "exports" / "classifier.onnx.md").read_text()
    assert 'onnxruntime.InferenceSession("classifier.onnx")' in card
    assert "`images` float32 `[N, 3, 16, 16]`: pixels in 0..1, less [0.5, 0.4, 0.3]" in card
    assert "safetensors" not in card
    assert "`boxes` `[P, 4]`" in (made / "exports" / "detector.onnx.md").read_text()


@pytest.mark.parametrize("keep", [3, 10, 60])
def test_padded_nms_keeps_the_boxes_of_first_nms(keep: int) -> None:
    random = torch.Generator().manual_seed(keep)
    corners = torch.rand(40, 2, generator=random) * 20
    boxes = torch.cat([corners, corners + 5 + torch.rand(40, 2, generator=random) * 10], dim=1)
    scores = torch.rand(40, generator=random)
    kept, real = padded_nms(boxes, scores, 0.5, keep)
    assert kept.shape == real.shape == (keep,)
    assert kept[real].tolist() == first_nms(boxes, scores, 0.5, keep).tolist()
    assert real.tolist() == sorted(real.tolist(), reverse=True)


def test_a_network_that_differs_is_not_written(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = onnx_export._run

    def off(content: bytes, images: torch.Tensor) -> list[np.ndarray]:
        return [output + 0.01 * np.abs(output).max() for output in computed(content, images)]

    monkeypatch.setattr(onnx_export, "_run", off)
    error = invoke(export, "classifier", "--format", "onnx", "--out", "new.onnx").exception
    assert isinstance(error, AffsupError)
    assert "largest difference to PyTorch 1.0e-02 of the largest output (at most 0.001). It is not written" in str(
        error
    )
    assert not (here / "new.onnx").exists()
    assert not (here / "new.onnx.md").exists()


def test_proposals_are_compared_whatever_their_order() -> None:
    random = np.random.default_rng(0)
    boxes, shares, present = random.random((200, 4)) * 100, random.random((200, 3)), np.arange(200) < 150
    order = np.concatenate([random.permutation(150), np.arange(150, 200)])
    other = [boxes[order] + 0.01, shares[order] + 1e-4, present]
    matched, box, share = onnx_export._compare_proposals([boxes, shares, present], other)
    assert (matched, round(box, 6), round(share, 6)) == (1, 0.01, 0.0001)
    other[0][:15] += 5
    matched, _, _ = onnx_export._compare_proposals([boxes, shares, present], other)
    assert matched == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("classifier", "--format", "onnx", "--size", "16x16"), "--size is for detectors"),
        (("detector", "--format", "onnx", "--size", "16"), "expected width and height"),
        (("detector", "--size", "16x16"), "--size is for --format onnx"),
        (("classifier", "--format", "onnx", "--out", "x.safetensors"), "ends in .onnx"),
        (("classifier", "--format", "onnx", "--out", "notes.onnx"), "notes.onnx is no file that `affsup export` wrote"),
        (("scene", "--format", "onnx"), "of which only part A, the detector, can be exported"),
    ],
)
def test_what_cannot_be_exported_is_refused(here: Path, arguments: tuple[str, ...], said: str) -> None:
    (here / "notes.onnx").write_text("mine")
    leave_run(here / "runs" / "scene", small_scene(), torch.nn.Linear(1, 1))
    error = invoke(export, *arguments).exception
    assert isinstance(error, UsageError)
    assert said in str(error)
    assert (here / "notes.onnx").read_text() == "mine"


@pytest.mark.parametrize("library", ["onnx", "onnxruntime", "onnxscript"])
def test_without_a_library_the_extra_is_named(here: Path, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    error = invoke(export, "classifier", "--format", "onnx").exception
    assert isinstance(error, AffsupError)
    assert f"needs {library}, which is not installed: `pip install 'affsup[onnx]'`" in str(error)
