"""In what order steps are run, and what a failure means for others. Where they run is a launcher's business."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

from affsup_cli.engine.observer import Progress
from affsup_cli.engine.stop import StopRequest
from affsup_cli.sweeps.messages import Ended, Epoch, Event, Order
from affsup_cli.sweeps.packs import Pack
from affsup_cli.sweeps.plan import Step

LOOK_SECONDS = 0.25
AGAIN_SECONDS = 5.0
"""How long a run that another process does is left alone before it is looked at again."""


class Launcher(Protocol):
    """Does runs somewhere, such as `LocalWorkers` in processes of this machine."""

    def has_room(self) -> bool:
        """Say whether another pack of runs would begin at once."""

    def start(self, orders: Mapping[int, Order]) -> str:
        """Begin runs, known by their numbers from now on, in one process; returns where they run, in a word."""

    def events(self, seconds: float) -> Iterable[tuple[int, Event]]:
        """Wait so long at most, and return what runs have reported. The last report of each is an `Ended`."""

    def stop(self) -> None:
        """Tell all runs to save and leave; return at once."""

    def close(self) -> None:
        """Let go of everything; runs that still go on are killed."""


class Watcher:
    """Does nothing; subclasses override what they care about."""

    def started(self, step: Step, where: str) -> None:
        """Hear that a step has begun."""

    def progressed(self, step: Step, progress: Progress) -> None:
        """Hear of a step a few times a second at most; of a cost comparison `epoch` counts the rounds."""

    def epoch_ended(self, step: Step, epoch: Epoch) -> None:
        """Hear of a line of metrics.jsonl."""

    def run_elsewhere(self, step: Step) -> None:
        """Hear, again and again, that a step waits because another process runs it."""

    def ended(self, step: Step, outcome: Outcome) -> None:
        """Hear that a step has come to its end, or will never begin."""

    def stopping(self) -> None:
        """Hear that all that run have been told to save and leave."""

    def ticked(self) -> None:
        """Be called a few times a second, whatever happens."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a step, and why it is not finished if it is not."""

    how: Literal["finished", "stopped", "failed", "not run"]
    reason: str = ""


def run_steps(
    packs: Sequence[Pack], data_dir: Path, launcher: Launcher, watcher: Watcher, stop: StopRequest
) -> dict[Step, Outcome]:
    """Run packs of steps as `launcher` has room for them, each step after the one that it needs.

    A step that fails stops no other; those of a pack that cannot begin with it follow later.

    A step that another process runs, such as another sweep, waits until that has finished it or let go of it.

    Returns:
        What became of each; after a stop, those that have not begun are missing.
    """
    outcomes: dict[Step, Outcome] = {}
    steps = [step for pack in packs for step in pack]
    waiting = list(steps)
    running: dict[int, Step] = {}
    again_at: dict[Step, float] = {}
    stopping = False

    def end(step: Step, outcome: Outcome) -> None:
        outcomes[step] = outcome
        watcher.ended(step, outcome)

    def leave_alone(step: Step) -> None:
        again_at[step] = time.monotonic() + AGAIN_SECONDS
        watcher.run_elsewhere(step)

    def begins(step: Step) -> bool:
        if step.folder.in_use:
            leave_alone(step)
            return False
        waiting.remove(step)
        if step.folder.finished:  # by another process
            end(step, Outcome("finished"))
            return False
        return True

    while waiting or running:
        if stop.requested:
            waiting.clear()
            if not stopping:
                launcher.stop()
                watcher.stopping()
                stopping = True
        for step in tuple(waiting):
            if hindrance := _hindrance(step, outcomes):
                waiting.remove(step)
                end(step, hindrance)
        now = time.monotonic()
        due = [step for step in waiting if again_at.get(step, now) <= now and _ready(step, outcomes)]
        while due and launcher.has_room():
            pack = next(pack for pack in packs if due[0] in pack)
            begun = {steps.index(step): step for step in due if step in pack and begins(step)}
            due = [step for step in due if step not in pack]
            if begun:
                running |= begun
                where = launcher.start({number: order_of(step, data_dir) for number, step in begun.items()})
                for step in begun.values():
                    watcher.started(step, where)
        for number, event in launcher.events(LOOK_SECONDS):
            step = running[number]
            match event:
                case Progress():
                    watcher.progressed(step, event)
                case Epoch():
                    watcher.epoch_ended(step, event)
                case Ended():
                    del running[number]
                    if event.how == "busy":  # another process began it at the same moment
                        waiting.append(step)
                        leave_alone(step)
                    else:
                        end(step, Outcome(event.how, event.reason))
        watcher.ticked()
    return outcomes


def order_of(step: Step, data_dir: Path) -> Order:
    """Return what the one who runs a step must know."""
    pretrained = step.needs.folder.path if step.needs else None
    return Order(step.recipe, step.baseline, data_dir, step.folder.path, pretrained)


def _ready(step: Step, outcomes: dict[Step, Outcome]) -> bool:
    needs = step.needs
    return needs is None or needs.state == "finished" or (needs in outcomes and outcomes[needs].how == "finished")


def _hindrance(step: Step, outcomes: dict[Step, Outcome]) -> Outcome | None:
    """Return what becomes of a step that can never begin, None if it may yet."""
    if step.state == "damaged":
        return Outcome("failed", f"{step.folder.path} is damaged: move it away, then sweep again")
    needs = step.needs
    if needs is not None and needs in outcomes and outcomes[needs].how != "finished":
        return Outcome("not run", f"needs {needs.label}")
    return None
