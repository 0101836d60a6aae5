from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from affsup_cli.app import app
from affsup_cli.distributed import collectives
from affsup_cli.recipe import load_recipe
from affsup_cli.runs.checkpoint import save_checkpoint
from affsup_cli.tasks import build_task
from affsup_cli.tasks.dry_run import dry_run
from affsup_cli.training.step import TrainingStep
from data_prep.errors import AffsupError, UsageError

CPU = {"run.device": "cpu"}


def test_sizes_are_those_of_the_run(digits: Path, tmp_path: Path) -> None:
    recipe = load_recipe("minibatch", {**CPU, "train.batch_size": 50})
    sizes = dry_run(recipe, digits, 3)
    task = build_task(recipe, digits)
    assert sizes.images_each == [17, 17, 16]
    assert sizes.steps == task.steps
    assert sizes.parameters == sizes.trained == sum(value.numel() for value in task.model.parameters())
    steps = TrainingStep(task, recipe.train)
    task.begin_epoch(0)
    steps.begin(0, 0)
    steps.run(0)
    save_checkpoint(tmp_path / "last.pt", {"model": task.model.state_dict(), "optimizer": steps.state_dict()})
    written = (tmp_path / "last.pt").stat().st_size
    assert sizes.checkpoint_bytes == pytest.approx(written, rel=0.2)  # the file has names and a table of contents too


def test_activations_grow_with_the_images_of_a_process(digits: Path) -> None:
    recipe = load_recipe("minibatch", {**CPU, "train.batch_size": 64})
    one, two = (dry_run(recipe, digits, count).activation_bytes for count in (1, 2))
    assert one == pytest.approx(2 * two, rel=0.05)


@pytest.mark.parametrize("name", ["relnet", "frcnn", "relpn", "scene"])
def test_detectors_and_scenes_have_sizes(shape_scenes: Path, name: str) -> None:
    sizes = dry_run(load_recipe(name, CPU), shape_scenes, 2)
    assert sizes.parameters >= sizes.trained
    assert sizes.trained > 0
    assert (sizes.activation_bytes == 0) == (name == "scene")  # its network is frozen
    assert sizes.images > 0


def test_nothing_is_written_and_no_gpu_is_needed(digits: Path, tmp_path: Path) -> None:
    places = ["--data", str(digits), "--runs", str(tmp_path / "runs")]
    done = CliRunner().invoke(app, ["train", "minibatch", "--gpus", "8", "--dry-run", *places])
    assert done.exit_code == 0, done.output
    assert "processes: 8, each with 16 of the images of a step" in done.output
    assert not (tmp_path / "runs").exists()


def test_what_cannot_be_run_is_refused(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="an image for each"):
        dry_run(load_recipe("minibatch", {**CPU, "train.batch_size": 4}), digits, 5)
    with pytest.raises(AffsupError, match="not prepared"):
        dry_run(load_recipe("minibatch", CPU), tmp_path, 1)


@pytest.mark.parametrize(
    ("name", "fields", "processes"),
    [
        ("minibatch", {"data.train_images": 99_999}, 1),
        ("minibatch", {"data.pad": 8}, 1),
        ("minibatch", {"data.train_images": 101, "train.batch_size": 50}, 1),
        ("minibatch", {"model.arch": "resnet18", "data.train_images": 103, "train.batch_size": 100}, 2),
        ("relnet", {"affinity.target": "category-pair", "affinity.first": "circel"}, 1),
    ],
)
def test_what_the_run_would_refuse_is_refused(
    digits: Path,
    shape_scenes: Path,
    name: str,
    fields: dict[str, object],
    processes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = load_recipe(name, CPU | fields)
    data = digits if name == "minibatch" else shape_scenes
    with pytest.raises(UsageError) as planned:
        dry_run(recipe, data, processes)
    monkeypatch.setattr(collectives, "world_size", lambda: processes)
    with pytest.raises(UsageError) as refused:
        build_task(recipe, data)
    assert str(planned.value) == str(refused.value)
