"""The order in which steps are run, and what a failure means for the others. A launcher decides where they run."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, Protocol

from affsup_cli.runtime.stop import StopRequest
from affsup_cli.sweeps.messages import EpochEnded, Event, RunEnded, RunRequest
from affsup_cli.sweeps.plan import Step
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

    def started(self, step: Step, where: str) -> None:
        """A step has begun."""

    def progressed(self, step: Step, progress: Progress) -> None:
        """A step has made progress; at most a few calls a second. Of a cost comparison `epoch` counts rounds."""

    def epoch_ended(self, step: Step, epoch: EpochEnded) -> None:
        """A line of metrics.jsonl was written."""

    def run_elsewhere(self, step: Step) -> None:
        """A step waits because another process is running it; called at each check."""

    def ended(self, step: Step, outcome: Outcome) -> None:
        """A step has ended, or will never begin."""

    def reported(self, line: str) -> None:
        """A message about the whole sweep, such as how its processes share a GPU."""

    def stopping(self) -> None:
        """All running steps have been told to save and exit."""

    def ticked(self) -> None:
        """Called a few times a second."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a step ended, and why if it is not finished."""

    how: Literal["finished", "stopped", "failed", "not run"]
    reason: str = ""


def run_steps(
    steps: Sequence[Step], data_dir: Path, launcher: Launcher, observer: SweepObserver, stop: StopRequest
) -> dict[Step, Outcome]:
    """Run steps as `launcher` has room for them, each step after the one that it needs.

    A step that fails stops no other. A step that another process is running, such as another sweep, waits until that
    process has finished the run or released its folder.

    Returns:
        The outcome of each step; after a stop, those that have not begun are missing.
    """
    outcomes: dict[Step, Outcome] = {}
    waiting = list(steps)
    running: dict[int, Step] = {}
    again_at: dict[Step, float] = {}
    stopping = False

    def end(step: Step, outcome: Outcome) -> None:
        outcomes[step] = outcome
        observer.ended(step, outcome)

    def postpone(step: Step) -> None:
        again_at[step] = time.monotonic() + AGAIN_SECONDS
        observer.run_elsewhere(step)

    while waiting or running:
        if stop.requested:
            waiting.clear()
            if not stopping:
                launcher.stop()
                observer.stopping()
                stopping = True
        for step in tuple(waiting):
            if blocked := _blocked_outcome(step, outcomes):
                waiting.remove(step)
                end(step, blocked)
        now = time.monotonic()
        for step in [step for step in waiting if again_at.get(step, now) <= now and _ready(step, outcomes)]:
            if not launcher.has_room():
                break
            if step.folder.in_use:
                postpone(step)
                continue
            waiting.remove(step)
            if step.folder.finished:  # by another process
                end(step, Outcome("finished"))
                continue
            number = steps.index(step)
            running[number] = step
            observer.started(step, launcher.start(number, request_of(step, data_dir)))
        for number, event in launcher.events(POLL_SECONDS):
            step = running[number]
            match event:
                case Progress():
                    observer.progressed(step, event)
                case EpochEnded():
                    observer.epoch_ended(step, event)
                case RunEnded():
                    del running[number]
                    if event.how == "busy":  # another process began it at the same moment
                        waiting.append(step)
                        postpone(step)
                    else:
                        end(step, Outcome(event.how, event.reason))
        observer.ticked()
    return outcomes


def request_of(step: Step, data_dir: Path) -> RunRequest:
    """Return the request for the process that runs a step."""
    pretrained = step.needs.folder.path if step.needs else None
    return RunRequest(step.recipe, step.baseline, data_dir, step.folder.path, pretrained)


def _ready(step: Step, outcomes: dict[Step, Outcome]) -> bool:
    needs = step.needs
    return needs is None or needs.state == "finished" or (needs in outcomes and outcomes[needs].how == "finished")


def _blocked_outcome(step: Step, outcomes: dict[Step, Outcome]) -> Outcome | None:
    """Return the outcome of a step that can never begin, None if it may yet begin."""
    if step.state == "damaged":
        return Outcome("failed", step.damage)
    needs = step.needs
    if needs is not None and needs in outcomes and outcomes[needs].how != "finished":
        return Outcome("not run", f"needs {needs.label}")
    return None
