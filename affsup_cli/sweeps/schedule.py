"""The order of the runs of a sweep, and what a failure means for the others. A launcher decides where they run."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, Protocol

from affsup_cli.runtime.stop import StopRequest
from affsup_cli.sweeps.messages import EpochEnded, Event, RunEnded, RunRequest
from affsup_cli.sweeps.plan import PlannedRun
from affsup_cli.training.observers import Progress

POLL_SECONDS = 0.25
AGAIN_SECONDS = 5.0
"""How long to wait before checking again a run that another process is doing."""


class Launcher(Protocol):
    """Does runs somewhere, such as `LocalWorkers` in processes of this machine."""

    def has_room(self) -> bool:
        """Return whether another run would begin at once."""

    def start(self, number: int, request: RunRequest) -> str:
        """Begin a run, which its events name by `number`; returns where it runs, such as a device."""

    def events(self, seconds: float) -> Iterable[tuple[int, Event]]:
        """Wait at most `seconds`; return the events of runs, by number. The last event of each run is a `RunEnded`."""

    def stop(self) -> None:
        """Tell all runs to save and exit; return at once."""

    def close(self) -> None:
        """Release everything; runs that still go on are killed."""


class SweepObserver:
    """Callbacks of a sweep; subclasses override the ones they need."""

    def started(self, planned: PlannedRun, where: str) -> None:
        """A run has begun."""

    def progressed(self, planned: PlannedRun, progress: Progress) -> None:
        """A run has made progress; at most a few calls a second. Of a cost comparison `epoch` counts rounds."""

    def epoch_ended(self, planned: PlannedRun, epoch: EpochEnded) -> None:
        """A line of metrics.jsonl was written."""

    def run_elsewhere(self, planned: PlannedRun) -> None:
        """A run waits because another process is running it; called at each check."""

    def ended(self, planned: PlannedRun, outcome: Outcome) -> None:
        """A run has ended, or will never begin."""

    def reported(self, line: str) -> None:
        """A message about the whole sweep, such as how its processes share a GPU."""

    def stopping(self) -> None:
        """All runs in progress have been told to save and exit."""

    def ticked(self) -> None:
        """Called a few times a second."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended, and why if it is not finished."""

    how: Literal["finished", "stopped", "failed", "not run"]
    reason: str = ""


def run_planned(
    planned_runs: Sequence[PlannedRun], data_dir: Path, launcher: Launcher, observer: SweepObserver, stop: StopRequest
) -> dict[PlannedRun, Outcome]:
    """Start planned runs as `launcher` has room for them, each after the one that it needs.

    A run that fails stops no other. A run that another process is running, such as another sweep, waits until that
    process has finished the run or released its folder.

    Returns:
        The outcome of each run; after a stop, those that have not begun are missing.
    """
    outcomes: dict[PlannedRun, Outcome] = {}
    waiting = list(planned_runs)
    running: dict[int, PlannedRun] = {}
    again_at: dict[PlannedRun, float] = {}
    stopping = False

    def end(planned: PlannedRun, outcome: Outcome) -> None:
        outcomes[planned] = outcome
        observer.ended(planned, outcome)

    def postpone(planned: PlannedRun) -> None:
        again_at[planned] = time.monotonic() + AGAIN_SECONDS
        observer.run_elsewhere(planned)

    while waiting or running:
        if stop.requested:
            waiting.clear()
            if not stopping:
                launcher.stop()
                observer.stopping()
                stopping = True
        for planned in tuple(waiting):
            if blocked := _blocked_outcome(planned, outcomes):
                waiting.remove(planned)
                end(planned, blocked)
        now = time.monotonic()
        for planned in [
            planned for planned in waiting if again_at.get(planned, now) <= now and _ready(planned, outcomes)
        ]:
            if not launcher.has_room():
                break
            if planned.folder.in_use:
                postpone(planned)
                continue
            waiting.remove(planned)
            if planned.folder.finished:  # by another process
                end(planned, Outcome("finished"))
                continue
            number = planned_runs.index(planned)
            running[number] = planned
            observer.started(planned, launcher.start(number, request_of(planned, data_dir)))
        for number, event in launcher.events(POLL_SECONDS):
            planned = running[number]
            match event:
                case Progress():
                    observer.progressed(planned, event)
                case EpochEnded():
                    observer.epoch_ended(planned, event)
                case RunEnded():
                    del running[number]
                    if event.how == "busy":  # another process began it at the same moment
                        waiting.append(planned)
                        postpone(planned)
                    else:
                        end(planned, Outcome(event.how, event.reason))
        observer.ticked()
    return outcomes


def request_of(planned: PlannedRun, data_dir: Path) -> RunRequest:
    """Return the request for the process that does a run."""
    pretrained = planned.needs.folder.path if planned.needs else None
    return RunRequest(planned.recipe, planned.baseline, data_dir, planned.folder.path, pretrained)


def _ready(planned: PlannedRun, outcomes: dict[PlannedRun, Outcome]) -> bool:
    needs = planned.needs
    return needs is None or needs.state == "finished" or (needs in outcomes and outcomes[needs].how == "finished")


def _blocked_outcome(planned: PlannedRun, outcomes: dict[PlannedRun, Outcome]) -> Outcome | None:
    """Return the outcome of a run that can never begin, None if it may yet begin."""
    if planned.state == "damaged":
        return Outcome("failed", planned.damage)
    needs = planned.needs
    if needs is not None and needs in outcomes and outcomes[needs].how != "finished":
        return Outcome("not run", f"needs {needs.label}")
    return None
