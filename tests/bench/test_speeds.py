from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from affsup_cli.bench import speeds
from affsup_cli.bench.needs import RunKind, kind_of
from affsup_cli.models.detection.backbone import FrozenBatchNorm
from affsup_cli.recipe import load_recipe
from affsup_cli.tasks import build_task
from affsup_cli.training.cost import WARM_UP_STEPS

CLASSIFIER = load_recipe("minibatch")
NETWORKS = {name: load_recipe(name) for name in ("relnet", "frcnn")}


class Clock:
    """Takes a known time a step, and to record one as a GPU does; keeps what it was asked for."""

    def __init__(self, seconds: float, first: float = 0.0) -> None:
        self.asked: list[int] = []
        self._each = seconds
        self._first = first

    def seconds(self, steps: int) -> float:
        extra = 0.0 if self.asked else self._first
        extra += 60.0 if sum(self.asked) < WARM_UP_STEPS <= sum(self.asked) + steps else 0.0
        self.asked.append(steps)
        return self._each * steps + extra


def test_quick_steps_are_timed_in_rounds_after_warming_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speeds, "SECONDS", 3.2)
    clock = Clock(0.1)
    taken, in_round = speeds._time_steps(clock)  # type: ignore[arg-type]
    assert clock.asked == [1, 1, WARM_UP_STEPS, 3, *[in_round] * 8]
    assert in_round == 4
    assert taken == pytest.approx([0.1] * 8)


def test_a_slow_step_is_timed_once() -> None:
    clock = Clock(9.0)
    assert speeds._time_steps(clock) == ([9.0], 1)  # type: ignore[arg-type]
    assert clock.asked == [1, 1]


def test_what_the_first_step_takes_besides_is_not_a_slow_step() -> None:
    quick = Clock(0.001, first=30.0)
    taken, in_round = speeds._time_steps(quick)  # type: ignore[arg-type]
    assert in_round == 375
    assert taken == pytest.approx([0.001] * 8)


class Passes:
    """Stands in for a clock and its task: evaluations that take known times, one after the other."""

    def __init__(self, *seconds: float) -> None:
        self._seconds = iter(seconds)

    def seconds_of(self, work: object) -> float:
        return next(self._seconds)

    def evaluate(self, split: str) -> None:
        raise AssertionError


@pytest.mark.parametrize(
    ("passes", "an_image"), [((1.2, 0.01), 0.001), ((29.0, 28.0), 2.8), ((31.0, 1.0), 3.1)], ids=str
)
def test_an_evaluation_counts_by_its_second_pass_unless_the_first_takes_very_long(
    passes: tuple[float, float], an_image: float
) -> None:
    made = Passes(*passes)
    assert speeds._evaluation(made, made, images=10) == pytest.approx(an_image)  # type: ignore[arg-type]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(speeds, "SECONDS", 0.05)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("short")
def test_a_classifier_is_timed(digits: Path) -> None:
    kind = kind_of(CLASSIFIER)
    told: list[str] = []
    found = speeds.measure({kind: CLASSIFIER}, digits, "cpu", told.append)
    assert list(found) == [RunKind("minibatch", "resnet20", "digits")]
    assert found[kind].step_seconds > 0
    assert found[kind].images == 359
    assert told == [f"minibatch resnet20 digits: {work}" for work in ("build", "training", "evaluation")]


@pytest.mark.usefixtures("short")
def test_detectors_are_timed(shapes: Path) -> None:
    found = speeds.measure({kind_of(recipe): recipe for recipe in NETWORKS.values()}, shapes, "cpu", id)  # type: ignore[arg-type]
    assert [kind.task for kind in found] == ["relnet", "frcnn"]
    assert all(speed.step_seconds > 0 and speed.image_seconds > 0 for speed in found.values())


def test_training_steps_leave_the_weights_as_they_are(digits: Path) -> None:
    task = build_task(
        CLASSIFIER.model_copy(update={"run": CLASSIFIER.run.model_copy(update={"device": "cpu"})}), digits
    )
    before = [value.clone() for value in task.model.parameters()]
    speeds.constant_weights_clock(task, CLASSIFIER).seconds(2)
    for now, then in zip(task.model.parameters(), before, strict=True):
        torch.testing.assert_close(now, then, rtol=0, atol=1e-6)


def test_frozen_batch_norm_does_not_let_numbers_grow() -> None:
    class Frozen:
        model = nn.Sequential(*(FrozenBatchNorm(2) for _ in range(40)))

    speeds._limit_activations(Frozen())  # type: ignore[arg-type]
    assert Frozen.model(torch.ones(1, 2, 3, 3)).abs().max() < 1e-6
