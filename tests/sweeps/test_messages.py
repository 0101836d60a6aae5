from __future__ import annotations

from pathlib import Path

import pytest

from affsup_cli.recipe import load_recipe
from affsup_cli.sweeps.messages import Ended, Epoch, Event, Order, event_from_line, event_to_line
from affsup_cli.training.observers import Progress


@pytest.mark.parametrize(
    "order",
    [
        Order(load_recipe("scene", {"seed": 3}), None, Path("data"), Path("runs/a"), Path("runs/b")),
        Order(load_recipe("minibatch"), load_recipe("relnet"), Path("data"), Path("runs/ü\n"), None),
    ],
)
def test_an_order_is_a_line_that_says_all_of_it(order: Order) -> None:
    line = order.to_line()
    assert line.count(b"\n") == 1
    assert Order.from_line(line) == order


@pytest.mark.parametrize(
    "event",
    [
        Progress(1, 2, 3, 4, {"train_loss": 0.5}, 60.0, 7.0),
        Epoch({"epoch": 1, "seconds": 2.0}),
        Ended("failed", "two\nlines"),
    ],
)
def test_an_event_is_a_line_that_says_all_of_it(event: Event) -> None:
    line = event_to_line(event)
    assert line.count(b"\n") == 1
    assert event_from_line(line) == event
