from __future__ import annotations

from pathlib import Path

import pytest

from affsup_cli.recipe import load_recipe
from affsup_cli.sweeps.messages import EpochEnded, Event, RunEnded, RunRequest, event_from_line, event_to_line
from affsup_cli.training.observers import Progress


@pytest.mark.parametrize(
    "run_request",
    [
        RunRequest(load_recipe("scene", {"seed": 3}), None, Path("data"), Path("runs/a"), Path("runs/b")),
        RunRequest(load_recipe("minibatch"), load_recipe("relnet"), Path("data"), Path("runs/ü\n"), None),
    ],
)
def test_a_request_is_a_line_that_says_all_of_it(run_request: RunRequest) -> None:
    line = run_request.to_line()
    assert line.count(b"\n") == 1
    assert RunRequest.from_line(line) == run_request


@pytest.mark.parametrize(
    "event",
    [
        Progress(1, 2, 3, 4, {"train_loss": 0.5}, 60.0, 7.0),
        EpochEnded({"epoch": 1, "seconds": 2.0}),
        RunEnded("failed", "two\nlines"),
    ],
)
def test_an_event_is_a_line_that_says_all_of_it(event: Event) -> None:
    line = event_to_line(event)
    assert line.count(b"\n") == 1
    assert event_from_line(line) == event
