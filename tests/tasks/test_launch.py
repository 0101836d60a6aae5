from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import data_prep
from affsup_cli.recipe import load_recipe
from affsup_cli.runs.checkpoint import load_checkpoint
from affsup_cli.runs.folder import RunFolder
from affsup_cli.runtime.devices import configure_determinism
from affsup_cli.tasks.launch import data_digest, evaluate_run, measure_run, run_name, train_run
from affsup_cli.tasks.minibatch import MinibatchTask
from data_prep.errors import AffsupError, UsageError

SHORT = {"train.epochs": 1, "train.batch_size": 256, "run.device": "cpu"}


def test_a_name_says_what_the_run_is_and_is_unique_to_recipe_and_data(digits: Path, tmp_path: Path) -> None:
    recipe = load_recipe("minibatch", SHORT)
    data = data_digest(recipe, digits)
    name = run_name(recipe, data)
    assert name.startswith("minibatch-digits-resnet20-focal-seed0-")
    base = load_recipe("minibatch", {**SHORT, "affinity.loss": "none", "seed": 3})
    assert run_name(base, data).startswith("minibatch-digits-resnet20-base-seed3-")
    data_prep.prepare("digits", data_dir=tmp_path, limit=100)
    names = {
        name,
        run_name(load_recipe("minibatch", {**SHORT, "train.epochs": 2}), data),
        run_name(recipe, data_digest(recipe, tmp_path)),
        run_name(recipe, None),
    }
    assert len(names) == 4
    assert run_name(load_recipe("minibatch", {**SHORT, "run.device": "auto"}), data) == name
    scene = load_recipe("scene")
    assert run_name(scene, data).startswith("scene-shape-scenes-attention-convnet-focal-seed0-")
    assert run_name(scene, data, "of shapes") != run_name(scene, data) != run_name(scene, data, "of other shapes")


def test_of_unfinished_runs_the_nearest_that_can_be_read_is_named(digits: Path, tmp_path: Path) -> None:
    for name in ("broken", "near"):
        RunFolder(tmp_path / name).path.mkdir()
        RunFolder(tmp_path / name).write_recipe(load_recipe("minibatch", {**SHORT, "seed": 3}))
    (tmp_path / "broken" / "recipe.toml").write_text("seed = ")
    with pytest.raises(UsageError, match=r"^nothing to resume: .* The nearest unfinished run is near: seed"):
        train_run(load_recipe("minibatch", SHORT), digits, RunFolder(tmp_path / "run"), resume=True)


def test_a_run_is_not_continued_on_other_data(digits: Path, tmp_path: Path) -> None:
    recipe = load_recipe("minibatch", SHORT)
    run = train_run(recipe, digits, RunFolder(tmp_path / "run"))
    (run.path / "result.json").unlink()
    data_prep.prepare("digits", data_dir=tmp_path / "other", limit=400)
    before = {path.name: path.read_bytes() for path in run.path.iterdir()}
    with pytest.raises(UsageError, match="was started on other data"):
        train_run(recipe, tmp_path / "other", run, resume=True)
    assert {path.name: path.read_bytes() for path in run.path.iterdir()} == before
    assert train_run(recipe, digits, run, resume=True).finished


def test_a_model_is_not_evaluated_on_other_data(digits: Path, tmp_path: Path) -> None:
    run = train_run(load_recipe("minibatch", SHORT), digits, RunFolder(tmp_path / "run"))
    data_prep.prepare("digits", data_dir=tmp_path / "other", limit=400)
    with pytest.raises(UsageError, match="was started on other data"):
        evaluate_run(run, tmp_path / "other", "val", "cpu")
    assert evaluate_run(run, digits, "test", "cpu")["test_accuracy"] == run.result()["metrics"]["test_accuracy"]


@pytest.mark.parametrize("remains", ["result.json", "last.pt", "best.pt", "metrics.jsonl"])
def test_files_of_another_run_without_its_recipe_are_not_taken_over(digits: Path, tmp_path: Path, remains: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / remains).write_text("{}")
    with pytest.raises(AffsupError, match=rf"holds {remains} of a run without its recipe\.toml"):
        train_run(load_recipe("minibatch", SHORT), digits, RunFolder(folder))
    assert [path.name for path in folder.iterdir()] == [remains]


def test_what_a_killed_write_left_is_cleared_away(digits: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".last.pt.123.tmp").write_text("half")
    train_run(load_recipe("minibatch", SHORT), digits, RunFolder(folder))
    assert not list(folder.glob("*.tmp")) + list(folder.glob(".*.tmp"))


def test_a_run_that_never_wrote_a_checkpoint_begins_anew(digits: Path, tmp_path: Path) -> None:
    recipe = load_recipe("minibatch", SHORT)
    whole = train_run(recipe, digits, RunFolder(tmp_path / "whole"))
    begun = tmp_path / "begun"
    begun.mkdir()
    for name in ("recipe.toml", "environment.json"):
        shutil.copy(whole.path / name, begun / name)
    again = train_run(recipe, digits, RunFolder(begun), resume=True)
    assert again.result()["metrics"] == whole.result()["metrics"]


def test_a_measurement_is_kept_as_a_run_of_its_own_kind(digits: Path, tmp_path: Path) -> None:
    fields = {**SHORT, "affinity.measure": False}
    treatment, baseline = (
        load_recipe("minibatch", fields),
        load_recipe("minibatch", {**fields, "affinity.loss": "none"}),
    )
    run = measure_run(baseline, treatment, digits, RunFolder(tmp_path / "cost"), rounds=2, progress=lambda _: None)
    result = run.result()
    assert (result["kind"], result["rounds"]) == ("cost", 2)
    assert run.recipe() == treatment
    for variant in ("baseline", "treatment"):
        assert len(result[variant]["seconds_per_epoch"]) == 2
        assert result[variant]["peak_megabytes"] > 50


def test_a_run_that_does_not_fit_into_memory_says_what_needs_less(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nOf the device's memory ...")

    monkeypatch.setattr(MinibatchTask, "losses", full)
    with pytest.raises(AffsupError, match=r"^out of memory: a new run with a smaller train\.batch_size, .*memory\.\)$"):
        train_run(load_recipe("minibatch", SHORT), digits, RunFolder(tmp_path / "run"))


@pytest.fixture
def nondeterministic_after() -> Iterator[None]:
    yield
    configure_determinism(False)


@pytest.mark.usefixtures("nondeterministic_after")
def test_deterministic_runs_end_with_the_same_bits(digits: Path, tmp_path: Path) -> None:
    recipe = load_recipe("minibatch", {**SHORT, "run.deterministic": True})
    runs = [train_run(recipe, digits, RunFolder(tmp_path / name)) for name in ("a", "b")]
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    first, second = (load_checkpoint(run.best, torch.device("cpu"))["model"] for run in runs)
    assert all(torch.equal(first[name], second[name]) for name in first)
    evaluate_run(train_run(load_recipe("minibatch", SHORT), digits, RunFolder(tmp_path / "c")), digits, "val", "cpu")
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark


@pytest.mark.usefixtures("nondeterministic_after")
def test_an_operation_without_a_deterministic_kernel_is_named(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def losses(*_: Any) -> None:
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))  # one of the few on a CPU

    monkeypatch.setattr(MinibatchTask, "losses", losses)
    recipe = load_recipe("minibatch", {**SHORT, "run.deterministic": True})
    with pytest.raises(AffsupError, match=r"put_ has no deterministic kernel .*run\.deterministic=false"):
        train_run(recipe, digits, RunFolder(tmp_path / "run"))
