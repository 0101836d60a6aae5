from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from affsup_cli.recipe import Recipe, load_recipe
from affsup_cli.runs.checkpoint import load_checkpoint, save_checkpoint
from affsup_cli.runs.folder import RunFolder
from affsup_cli.runtime.stop import Stopped
from affsup_cli.training.observers import Observer, Progress
from affsup_cli.training.step import clipped_step, learning_rate
from affsup_cli.training.trainer import Trainer
from data_prep.errors import AffsupError
from tests.training.toy import ToyTask

CPU = torch.device("cpu")


def recipe(**overrides: Any) -> Recipe:
    fields = {"train.epochs": 3, "train.learning_rate": 0.05, "train.milestones": [2], "run.checkpoint_seconds": 1e6}
    return load_recipe("minibatch", fields | {key.replace("__", "."): value for key, value in overrides.items()})


def folder(path: Path) -> RunFolder:
    path.mkdir(exist_ok=True)
    return RunFolder(path)


def weights(run: RunFolder, file: str = "checkpoint") -> dict[str, torch.Tensor]:
    return load_checkpoint(getattr(run, file), CPU)["model"]


def timeless(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in record.items() if key not in ("seconds", "images_per_second")}
        for record in records
    ]


def assert_same_end(first: RunFolder, second: RunFolder) -> None:
    for file in ("checkpoint", "best"):
        one, other = weights(first, file), weights(second, file)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert timeless(first.metrics()) == timeless(second.metrics())
    assert {**first.result(), "seconds": 0} == {**second.result(), "seconds": 0}


def test_the_cosine_schedule_is_torchs() -> None:
    train = load_recipe("minibatch", {"train.schedule": "cosine", "train.epochs": 9}).train
    parameter = torch.nn.Parameter(torch.zeros(1))
    sgd = torch.optim.SGD([parameter], train.learning_rate)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, T_max=9)
    for epoch in range(9):
        assert learning_rate(train, epoch) == pytest.approx(sgd.param_groups[0]["lr"], rel=1e-9)
        sgd.step()
        reference.step()


def test_the_learning_rate_falls_tenfold_after_each_milestone() -> None:
    train = load_recipe("minibatch", {"data.name": "cifar10"}).train
    rates = {epoch: learning_rate(train, epoch) for epoch in (0, 99, 100, 149, 150, 199)}
    assert rates == pytest.approx({0: 0.1, 99: 0.1, 100: 0.01, 149: 0.01, 150: 0.001, 199: 0.001})


def test_training_equals_a_plain_loop_with_torchs_own_sgd(tmp_path: Path) -> None:
    run = folder(tmp_path / "run")
    Trainer(ToyTask(), recipe(), run).run()

    task = ToyTask()
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for epoch in range(3):
        optimizer.param_groups[0]["lr"] = 0.05 if epoch < 2 else 0.005
        task.begin_epoch(epoch)
        task.model.train()
        for step in range(task.steps):
            losses = task.losses(step)
            optimizer.zero_grad()
            (losses.main["fit_loss"] + 0.5 * losses.affinity).backward()
            optimizer.step()
        task.evaluate("val")
    for key, value in task.model.state_dict().items():
        torch.testing.assert_close(weights(run)[key], value)


def test_metrics_are_means_over_the_images_of_the_epoch(tmp_path: Path) -> None:
    run = folder(tmp_path / "run")
    seen: list[Any] = []

    class Watched(ToyTask):
        def losses(self, step: int) -> Any:
            seen.append(super().losses(step))
            return seen[-1]

    task = Watched()
    task.images = 3 * 8 + 2  # the last batch is short
    Trainer(task, recipe(train__epochs=1), run).run()
    (record,) = run.metrics()
    fit = sum(losses.size * losses.main["fit_loss"].item() for losses in seen) / 26
    affinity = sum(losses.size * losses.affinity.item() for losses in seen) / 26
    bias = sum(losses.size * losses.metrics["bias"].item() for losses in seen) / 26
    expected = {
        "train_fit_loss": fit,
        "train_affinity_loss": affinity,
        "train_loss": fit + 0.5 * affinity,
        "train_bias": bias,
    }
    assert {key: record[key] for key in expected} == pytest.approx(expected, rel=1e-6)
    assert record["epoch"] == 1
    assert record["learning_rate"] == 0.05


def test_the_gradient_share_is_that_of_the_two_gradients_where_they_meet() -> None:
    task = ToyTask()
    task.begin_epoch(0)
    losses = task.losses(0)
    prediction, y = losses.shared_features.detach(), task.y[:8]
    of_fit, of_affinity = (2 * (prediction - y) / 8).norm(), (0.5 * 2 * prediction / 8).norm()
    assert float(losses.gradient_share()) == pytest.approx(float(of_affinity / (of_fit + of_affinity)), rel=1e-5)
    losses.total().backward()  # the graph is still there


def test_a_task_without_affinity_has_no_share_and_no_affinity_loss(tmp_path: Path) -> None:
    run = folder(tmp_path / "run")
    Trainer(ToyTask(affinity=False), recipe(), run).run()
    assert all("gradient_share" not in record and "train_affinity_loss" not in record for record in run.metrics())


def test_the_best_epoch_on_validation_is_tested_and_ties_keep_the_earlier(tmp_path: Path) -> None:
    run = folder(tmp_path / "run")
    task = ToyTask()
    task.scores = [0.1, 0.7, 0.7, 0.3]
    models: list[dict[str, torch.Tensor]] = []

    class Keep(Observer):
        def epoch_ended(self, record: Mapping[str, Any]) -> None:
            models.append({key: value.clone() for key, value in task.model.state_dict().items()})

    result = Trainer(task, recipe(train__epochs=4), run, [Keep()]).run()
    assert result["best_epoch"] == 2
    assert all(torch.equal(weights(run, "best")[key], models[1][key]) for key in models[1])
    assert all(torch.equal(task.model.state_dict()[key], models[1][key]) for key in models[1])
    assert task.evaluated == ["val"] * 4 + ["val", "test"]
    assert task.exported == ["val", "test"]


def test_where_the_last_epoch_is_tested_validation_is_never_looked_at(tmp_path: Path) -> None:
    run, task = folder(tmp_path / "run"), ToyTask()
    result = Trainer(task, recipe(train__epochs=3, train__select="last"), run).run()
    assert result["best_epoch"] == 3
    assert task.evaluated == task.exported == ["test"]
    assert all(torch.equal(value, weights(run)[name]) for name, value in weights(run, "best").items())
    assert result["metrics"]["train_loss"] == run.metrics()[-1]["train_loss"]


def test_a_gradient_above_the_norm_allowed_is_cut_down_to_it() -> None:
    moved = []
    for limit in (0.0, 1.0, 100.0):
        layer = torch.nn.Linear(2, 1, bias=False)
        torch.nn.init.zeros_(layer.weight)
        steps = torch.optim.SGD(layer.parameters(), lr=1.0)
        layer(torch.tensor([3.0, 4.0])).sum().backward()
        clipped_step(steps, limit)
        moved.append(layer.weight.detach().norm().item())
    assert moved == pytest.approx([5, 1, 5], rel=1e-5)


def test_the_test_split_is_looked_at_each_epoch_only_for_a_test_curve(tmp_path: Path) -> None:
    run, task = folder(tmp_path / "run"), ToyTask()
    Trainer(task, recipe(train__test_curve=True), run).run()
    assert task.evaluated == ["val", "test"] * 4
    assert all("test_error" in record for record in run.metrics())


class Killed(BaseException):
    """Stands for kill -9: nothing between here and the checkpoint on disk may survive."""


def kill() -> None:
    raise Killed


@pytest.mark.parametrize("at", [(0, 0), (0, 2), (1, 0), (1, 3), (2, 1)])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path, at: tuple[int, int]) -> None:
    undisturbed = folder(tmp_path / "undisturbed")
    Trainer(ToyTask(), recipe(), undisturbed).run()

    run = folder(tmp_path / "killed")
    task = ToyTask()
    task.before_step[at] = kill
    every_step = recipe(run__checkpoint_seconds=1e-9)
    with pytest.raises(Killed):
        Trainer(task, every_step, run).run()
    if at != (0, 0):
        state = load_checkpoint(run.checkpoint, CPU)
        assert (state["epoch"], state["step"]) == at
    torch.manual_seed(99)  # a new process starts from another random state
    Trainer(ToyTask(), recipe(), run).run()
    assert_same_end(run, undisturbed)


@pytest.mark.parametrize("moment", ["append_metrics", "_save", "_save_best"])
def test_a_kill_between_the_writes_of_an_epochs_end_loses_nothing(
    tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = folder(tmp_path / "undisturbed")
    Trainer(ToyTask(), recipe(), undisturbed).run()

    run = folder(tmp_path / "killed")
    owner = RunFolder if moment == "append_metrics" else Trainer
    original: Callable[..., None] = getattr(owner, moment)
    calls = []

    def write_then_die(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 2 and moment == "_save_best":
            kill()  # before the best model is written, after the checkpoint that says it is the best
        original(*arguments)
        if len(calls) == 2:
            kill()

    with monkeypatch.context() as patch:
        patch.setattr(owner, moment, write_then_die)
        with pytest.raises(Killed):
            Trainer(ToyTask(), recipe(), run).run()
    Trainer(ToyTask(), recipe(), run).run()
    assert_same_end(run, undisturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_run_goes_on_from_there(tmp_path: Path, number: signal.Signals) -> None:
    undisturbed = folder(tmp_path / "undisturbed")
    Trainer(ToyTask(), recipe(), undisturbed).run()

    run, task = folder(tmp_path / "stopped"), ToyTask()
    task.before_step[(1, 1)] = lambda: os.kill(os.getpid(), number)
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Stopped, match=r"epoch 2 after step 2 of 4.*--resume"):
        Trainer(task, recipe(), run).run()
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert not run.finished
    Trainer(ToyTask(), recipe(), run).run()
    assert_same_end(run, undisturbed)


def test_a_loss_that_is_not_finite_stops_the_run_with_its_numbers_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    run, task = folder(tmp_path / "run"), ToyTask()
    task.poisoned = (1, 2)
    with pytest.raises(
        AffsupError, match=r"not finite in epoch 2, step 3: loss = nan, fit_loss = nan, bias = .*affinity_loss"
    ):
        Trainer(task, recipe(), run).run()
    state = load_checkpoint(run.checkpoint, CPU)
    assert state["epoch"] == 1
    assert all(value.isfinite().all() for value in state["model"].values())
    assert len(run.metrics()) == 1


@pytest.mark.parametrize("split", ["val", "test"])
def test_an_evaluation_that_is_not_finite_ends_the_run_without_a_result(tmp_path: Path, split: str) -> None:
    run, task = folder(tmp_path / "run"), ToyTask()
    task.spoiled = {split: float("nan")}
    with pytest.raises(AffsupError, match=f"{split}_error = nan"):
        Trainer(task, recipe(), run).run()
    assert not run.finished
    assert run.checkpoint.exists() == (split == "test")


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    run, task = folder(tmp_path / "run"), ToyTask()

    def spoil() -> None:
        with torch.no_grad():
            task.model[3].bias.fill_(float("inf"))

    task.before_step[(1, 3)] = spoil  # the last step of the epoch: no later loss can tell
    task.losses = lambda step, plain=task.losses: plain(step) if step < 3 else (plain(0), spoil())[0]  # type: ignore[method-assign]
    with pytest.raises(AffsupError, match="not finite"):
        Trainer(task, recipe(), run).run()
    assert not run.checkpoint.exists() or all(value.isfinite().all() for value in weights(run).values())


@pytest.mark.parametrize("damage", ["", '{"epoch": 2}\n', "[1, 2]\n", "\xff\n", "{\n"])
def test_a_run_whose_record_is_lost_is_not_continued(tmp_path: Path, damage: str) -> None:
    run, task = folder(tmp_path / "run"), ToyTask()
    task.before_step[(2, 0)] = kill
    with pytest.raises(Killed):
        Trainer(task, recipe(), run).run()
    (run.path / "metrics.jsonl").write_text(damage, encoding="latin-1")
    with pytest.raises(AffsupError, match=r"metrics\.jsonl"):
        Trainer(ToyTask(), recipe(), run).run()


@pytest.mark.parametrize("content", [{"a": 1}, {"model": {}}, {"model": {"weight": torch.zeros(3)}}])
@pytest.mark.parametrize("file", ["checkpoint", "best"])
def test_a_checkpoint_of_something_else_is_named(tmp_path: Path, file: str, content: dict[str, Any]) -> None:
    run = folder(tmp_path / "run")
    Trainer(ToyTask(), recipe(), run).run()
    torch.save(content, getattr(run, file))
    if file == "best":  # at the run's end nothing writes it again, unless the last epoch is the best
        state = load_checkpoint(run.checkpoint, CPU)
        save_checkpoint(run.checkpoint, {**state, "best": {"epoch": 1, "score": 0.0}})
    with pytest.raises(AffsupError, match=getattr(run, file).name):
        Trainer(ToyTask(), recipe(), run).run()


def test_observers_hear_of_progress_and_epochs(tmp_path: Path) -> None:
    heard: list[Any] = []

    class Listener(Observer):
        def progressed(self, progress: Progress) -> None:
            heard.append(progress)

        def epoch_ended(self, record: Mapping[str, Any]) -> None:
            heard.append(record["epoch"])

    Trainer(ToyTask(), recipe(), folder(tmp_path / "run"), [Listener()]).run()
    first = heard[0]
    assert (first.epoch, first.epochs, first.step, first.steps) == (1, 3, 1, 4)
    assert first.images_per_second > 0
    assert first.seconds_left > 0
    assert [each for each in heard if isinstance(each, int)] == [1, 2, 3]


def test_checkpoints_load_without_running_code_and_hold_everything(tmp_path: Path) -> None:
    run, task = folder(tmp_path / "run"), ToyTask()
    task.before_step[(1, 2)] = kill
    with pytest.raises(Killed):
        Trainer(task, recipe(run__checkpoint_seconds=1e-9), run).run()
    state = torch.load(run.checkpoint, weights_only=True)
    assert {"model", "optimizer", "random", "epoch", "step", "averages", "best", "seconds"} <= set(state)
    assert len(state["optimizer"]["state"]) == len(list(task.model.parameters()))
