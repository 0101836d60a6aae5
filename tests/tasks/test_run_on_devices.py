"""A run from its first step to its predictions, on the CPU and on a GPU: the same code, tested where it runs."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from affsup_cli.commands.predict import predict
from affsup_cli.recipe import Recipe, load_recipe
from affsup_cli.runs.checkpoint import load_checkpoint
from affsup_cli.runs.folder import RunFolder
from affsup_cli.runs.results import read_train_result
from affsup_cli.runtime.stop import Stopped
from affsup_cli.tasks import build_task
from affsup_cli.tasks.launch import evaluate_run, train_run
from affsup_cli.training.cost import peak_megabytes
from affsup_cli.training.observers import Observer
from tests.commands.calling import invoke
from tests.small_scenes import small, small_scene

KINDS = ("minibatch", "relnet", "scene")


def recipe_of(kind: str, device: torch.device) -> Recipe:
    """Two epochs with so small a learning rate that other rounding changes little."""
    fields: dict[str, Any] = {"run.device": str(device), "train.epochs": 2, "train.learning_rate": 1e-3}
    if kind == "relnet":
        return small(**fields)
    if kind == "scene":
        return small_scene(**fields)
    return load_recipe("minibatch", fields | {"train.batch_size": 32, "data.train_images": 200, "train.milestones": []})


@pytest.fixture(params=KINDS)
def trained(
    request: pytest.FixtureRequest, device: torch.device, digits: Path, shape_scenes: Path, tmp_path: Path
) -> tuple[Recipe, Path, Path | None, RunFolder]:
    """A recipe, its data folder, the run that it builds on, and a finished run."""
    recipe = recipe_of(request.param, device)
    data = digits if request.param == "minibatch" else shape_scenes
    network = request.getfixturevalue("part_a") if request.param == "scene" else None
    run = RunFolder(tmp_path / "whole")
    return recipe, data, network, train_run(recipe, data, run, pretrained=network)


class StopAfterFirstEpoch(Observer):
    """Sends the signal of a cluster that takes the machine back."""

    def epoch_ended(self, record: Mapping[str, Any]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_stopped_run_goes_on_and_ends_like_one_left_alone(
    device: torch.device, trained: tuple[Recipe, Path, Path | None, RunFolder], tmp_path: Path
) -> None:
    recipe, data, network, whole = trained
    run = RunFolder(tmp_path / "stopped")
    with pytest.raises(Stopped, match="saved"):
        train_run(recipe, data, run, observers=lambda: [StopAfterFirstEpoch()], pretrained=network)
    train_run(recipe, data, run, resume=True, pretrained=network)
    found, wanted = (load_checkpoint(each.checkpoint, torch.device("cpu"))["model"] for each in (run, whole))
    exact = {"rtol": 0, "atol": 0} if device.type == "cpu" else {"rtol": 1e-2, "atol": 1e-3}
    torch.testing.assert_close(found, wanted, **exact)


def test_a_trained_model_gives_the_same_numbers_on_the_cpu_and_predicts(
    device: torch.device, trained: tuple[Recipe, Path, Path | None, RunFolder], tmp_path: Path
) -> None:
    _, data, _, run = trained
    on_cpu = evaluate_run(run, data, "test", "cpu")
    # Recall and attention depend on thresholds, which another device's rounding may cross.
    compared = {name: value for name, value in on_cpu.items() if re.search("accuracy|mass|map", name)}
    found = read_train_result(run).metrics
    assert compared
    assert {name: found[name] for name in compared} == pytest.approx(
        compared, rel=0, abs=1e-6 if device.type == "cpu" else 0.02
    )
    picture = tmp_path / "grey.png"
    Image.new("RGB", (90, 70), (128, 128, 128)).save(picture)
    done = invoke(predict, str(run.path), str(picture), "--device", str(device), "--out", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output


def test_the_memory_of_a_training_step_is_measured(device: torch.device, digits: Path) -> None:
    recipe = recipe_of("minibatch", device)
    assert peak_megabytes(partial(build_task, recipe, digits), recipe) > 1
