from __future__ import annotations

import os
import signal
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch

from affsup_cli.engine.run_folder import RunFolder
from affsup_cli.engine.stop import Stopped, StopRequest
from affsup_cli.engine.together import Pieces, SharedClock, take_turns
from affsup_cli.engine.training import Trainer
from data_prep.errors import AffsupError
from tests.engine.test_training import assert_same_end, folder, recipe
from tests.engine.toy import ToyTask


class SeededToy(ToyTask):
    """Other weights and other dropout with each seed."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        for layer in self.model:
            if isinstance(layer, torch.nn.Linear):
                layer.reset_parameters()


def pieces(task_of: Any, run: RunFolder, stop: StopRequest, **fields: Any) -> Pieces:
    trainer = Trainer(task_of(), recipe(**fields), run)
    yield
    yield from trainer.pieces(stop)


def ends(runs: list[Pieces]) -> dict[int, Exception | None]:
    return dict(take_turns(runs, SharedClock(), torch.device("cpu")))


def alone(path: Path, seed: int, **fields: Any) -> RunFolder:
    run = folder(path / f"alone{seed}")
    Trainer(SeededToy(seed), recipe(**fields), run).run()
    return run


def test_runs_by_turns_end_to_the_bit_as_each_alone_with_random_numbers_of_their_own(tmp_path: Path) -> None:
    expected = [alone(tmp_path, seed) for seed in range(3)]
    with StopRequest() as stop:
        runs = [folder(tmp_path / f"run{seed}") for seed in range(3)]
        ended = ends([pieces(lambda seed=seed: SeededToy(seed), run, stop) for seed, run in enumerate(runs)])
    assert ended == {0: None, 1: None, 2: None}
    for run, of_its_own in zip(runs, expected, strict=True):
        assert_same_end(run, of_its_own)


def test_one_that_fails_stops_no_other(tmp_path: Path) -> None:
    expected = alone(tmp_path, 1)
    poisoned = SeededToy(0)
    poisoned.poisoned = (1, 2)
    runs = [folder(tmp_path / f"run{seed}") for seed in range(2)]
    with StopRequest() as stop:
        ended = ends([pieces(lambda: poisoned, runs[0], stop), pieces(lambda: SeededToy(1), runs[1], stop)])
    assert isinstance(ended[0], AffsupError)
    assert "not finite in epoch 2, step 3" in str(ended[0])
    assert ended[1] is None
    assert_same_end(runs[1], expected)


def test_a_signal_saves_all_and_each_goes_on_alone_or_with_others(tmp_path: Path) -> None:
    expected = [alone(tmp_path, seed) for seed in range(3)]
    runs = [folder(tmp_path / f"run{seed}") for seed in range(3)]

    def sender() -> SeededToy:
        task = SeededToy(1)
        task.before_step[(1, 2)] = lambda: os.kill(os.getpid(), signal.SIGTERM)
        return task

    tasks = [lambda: SeededToy(0), sender, lambda: SeededToy(2)]
    with StopRequest() as stop:
        ended = ends([pieces(task, run, stop) for task, run in zip(tasks, runs, strict=True)])
    assert all(isinstance(error, Stopped) for error in ended.values())
    assert not any(run.finished for run in runs)
    Trainer(SeededToy(0), recipe(), runs[0]).run()
    with StopRequest() as stop:
        ended = ends([pieces(lambda seed=seed: SeededToy(seed), runs[seed], stop) for seed in (1, 2)])
    assert ended == {0: None, 1: None}
    for run, of_its_own in zip(runs, expected, strict=True):
        assert_same_end(run, of_its_own)


def test_runs_that_are_left_early_are_closed() -> None:
    closed: list[str] = []

    def run(name: str) -> Generator[None, None, None]:
        try:
            yield
            if name == "a":
                raise KeyboardInterrupt
            yield
        finally:
            closed.append(name)

    with pytest.raises(KeyboardInterrupt):
        ends([run("a"), run("b")])
    assert sorted(closed) == ["a", "b"]


def test_of_the_time_each_run_has_its_share() -> None:
    clock = SharedClock()
    clock.went_on(6.0, 3)
    clock.went_on(1.0, 1)
    assert clock() == 3.0
