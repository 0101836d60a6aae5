from __future__ import annotations

from functools import partial

import pytest

from affsup_cli.recipe import load_recipe
from affsup_cli.training import cost
from affsup_cli.training.cost import peak_megabytes, time_alternating
from tests.training.toy import ToyTask

RECIPE = load_recipe("minibatch")


def test_turns_alternate_and_a_round_has_the_same_steps_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "ROUND_SECONDS", 1e-9)
    taken: list[str] = []

    def build(name: str) -> ToyTask:
        task = ToyTask()
        plain = task.losses
        task.losses = lambda step: (taken.append(name), plain(step))[1]  # type: ignore[method-assign]
        return task

    heard: list[int] = []
    measured = time_alternating(partial(build, "a"), partial(build, "b"), RECIPE, 4, heard.append)
    assert heard == [1, 2, 3, 4]
    assert (measured["rounds"], measured["steps_per_round"], measured["steps_per_epoch"]) == (4, cost.MIN_STEPS, 4)
    in_rounds = "".join(taken)[-4 * 2 * cost.MIN_STEPS :]
    steps = cost.MIN_STEPS
    assert in_rounds == ("a" * steps + "b" * steps + "b" * steps + "a" * steps) * 2
    for variant in ("baseline", "treatment"):
        assert len(measured[variant]["seconds_per_epoch"]) == 4
        assert all(seconds > 0 for seconds in measured[variant]["seconds_per_epoch"])


def test_seconds_are_scaled_from_the_steps_to_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(cost.time, "perf_counter", lambda: float(next(clock)))  # a second between two looks
    measured = time_alternating(partial(ToyTask, steps=50), partial(ToyTask, steps=50), RECIPE, 1, lambda _: None)
    assert measured["baseline"]["seconds_per_epoch"] == [50 / measured["steps_per_round"]]


def test_peak_memory_is_that_of_a_process_of_its_own() -> None:
    small = peak_megabytes(partial(ToyTask, batch=8), RECIPE)
    large = peak_megabytes(partial(ToyTask, batch=4_000_000, steps=1), RECIPE)
    # 4 million rows of 3 float32 are 46 MiB, drawn, cut and passed on.
    assert 46 < large - small < 2000
    assert peak_megabytes(partial(ToyTask, batch=8), RECIPE) < small + 40


def test_peak_memory_leaves_out_what_the_calling_process_once_held() -> None:
    held = bytearray(1_500_000_000)  # zeroed pages are touched
    held[::4096] = b"x" * len(held[::4096])
    del held
    assert peak_megabytes(partial(ToyTask, batch=8), RECIPE) < 1400
