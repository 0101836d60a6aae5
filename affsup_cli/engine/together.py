"""Several runs side by side in one process: by turns, a step each, so that a GPU has the kernels of all at once.

Each ends as if it ran alone. What runs of one process share is kept apart here: torch's global random numbers, and the
time that an epoch is said to take.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import torch

from affsup_cli.engine.checkpoint import random_state, set_random_state
from affsup_cli.engine.recorded import each_within

Pieces = Generator[None, None, object]
"""A run that stops between two steps, such as `Trainer.pieces`."""


class SharedClock:
    """Seconds of a process as each of its runs has them: one of n runs that take turns has an n-th of the time."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def __call__(self) -> float:
        """Return the seconds so far."""
        return self._seconds

    def went_on(self, seconds: float, runs: int) -> None:
        """Count `seconds` in which so many runs had a turn each."""
        self._seconds += seconds / runs


def take_turns(
    runs: Sequence[Pieces], clock: SharedClock, device: torch.device
) -> Iterator[tuple[int, Exception | None]]:
    """Take all runs to their ends, a piece of each on `device` by turns; one that fails stops no other.

    Yields:
        The place of each run that has come to its end, and the exception that ended it, if one did.
    """
    active = {place: each_within(run, OwnRandom(device)) for place, run in enumerate(runs)}
    with contextlib.ExitStack() as left:
        for run in active.values():
            left.callback(run.close)
        while active:
            begun, took_part = time.perf_counter(), len(active)
            for place, run in tuple(active.items()):
                try:
                    next(run)
                except StopIteration:
                    del active[place]
                    yield place, None
                except Exception as error:
                    del active[place]
                    yield place, error
            clock.went_on(time.perf_counter() - begun, took_part)


class OwnRandom(contextlib.AbstractContextManager[None]):
    """Whenever it is entered, torch's global random numbers for `device` go on where they were when it was left."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._state: dict[str, Any] | None = None

    def __call__(self) -> OwnRandom:
        """Return this: one for all turns."""
        return self

    def __enter__(self) -> None:
        """Take up the numbers."""
        if self._state is not None:
            set_random_state(self._state, self._device)

    def __exit__(self, *_: object) -> None:
        """Keep their state."""
        self._state = random_state(self._device)
