"""Progress of a sweep: a live table of the current runs on a terminal, else one line for each start and end."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from affsup_cli.sweeps.messages import EpochEnded
from affsup_cli.sweeps.plan import PlannedRun
from affsup_cli.sweeps.schedule import Outcome, SweepObserver
from affsup_cli.sweeps.speeds import Speeds
from affsup_cli.training.observers import Progress
from affsup_cli.views.console import HEADLINES, metric_text
from affsup_cli.views.live_training import duration, numbers

SUMMARY_SECONDS = 30.0
REDRAW_SECONDS = 0.5
_FINAL_METRICS = {**HEADLINES, "test_mass": "M"}


@dataclasses.dataclass
class _Running:
    where: str
    begun: float
    progress: Progress | None = None
    validated: str = ""


class SweepView(SweepObserver):
    """Shows the current runs with device and progress, and the numbers of finished, waiting and failed runs.

    Args:
        console: the output.
        runs: all runs to do.
        speeds: known durations; finished epochs are added.
        parallel: number of runs at the same time.
    """

    def __init__(self, console: Console, planned_runs: Sequence[PlannedRun], speeds: Speeds, parallel: int) -> None:
        self._console = console
        self._waiting = list(planned_runs)
        self._speeds = speeds
        self._parallel = parallel
        self._elsewhere: set[PlannedRun] = set()  # part of `_waiting`
        self._jobs: dict[PlannedRun, _Running] = {}
        self._counts = dict.fromkeys(("finished", "failed", "not run", "stopped"), 0)
        self._shown = time.monotonic()
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> SweepView:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def started(self, planned: PlannedRun, where: str) -> None:
        """Print the device and the run folder."""
        self._waiting.remove(planned)
        self._elsewhere.discard(planned)
        self._jobs[planned] = _Running(where, time.monotonic())
        begins = "goes on" if planned.state == "unfinished" else "begins"
        self._say(f"{planned.label} {begins} on {where}: {planned.folder.path}")

    def progressed(self, planned: PlannedRun, progress: Progress) -> None:
        """Store it for the next redraw."""
        self._jobs[planned].progress = progress

    def epoch_ended(self, planned: PlannedRun, epoch: EpochEnded) -> None:
        """Store its validation accuracy and its duration."""
        self._speeds.add(planned.recipe, epoch.record["seconds"])
        if "val_accuracy" in epoch.record:
            self._jobs[planned].validated = f"val {metric_text('val_accuracy', epoch.record['val_accuracy'])}"

    def run_elsewhere(self, planned: PlannedRun) -> None:
        """Print it once."""
        if self._jobs.pop(planned, None):
            self._waiting.append(planned)
        if planned not in self._elsewhere:
            self._elsewhere.add(planned)
            self._say(f"{planned.label} is run by another process; waiting for it: {planned.folder.path}")

    def ended(self, planned: PlannedRun, outcome: Outcome) -> None:
        """Print the outcome and the main metrics."""
        self._counts[outcome.how] += 1
        job = self._jobs.pop(planned, None)
        if job is None:
            self._waiting.remove(planned)
            self._elsewhere.discard(planned)
        took = f" in {duration(time.monotonic() - job.begun)}" if job else ""
        if outcome.how == "finished":
            self._say(f"{planned.label} finished{took}{_headlines(planned)}")
        elif outcome.how == "stopped":
            saved = planned.baseline is None and planned.folder.resumable
            self._say(
                f"{planned.label} stopped{', its checkpoint is saved' if saved else ': it begins anew next time'}"
            )
        else:
            self._say(f"{planned.label} {outcome.how}: {outcome.reason}", style="red")

    def reported(self, line: str) -> None:
        """Print it."""
        self._say(line)

    def stopping(self) -> None:
        """Print how many runs still save."""
        self._say(
            f"stopping: {len(self._jobs)} runs save and stop; a second Ctrl-C kills them",
            style="yellow",
        )

    def ticked(self) -> None:
        """Redraw, or print a summary, if it is due."""
        now = time.monotonic()
        if now - self._shown < (REDRAW_SECONDS if self._live else SUMMARY_SECONDS):
            return
        self._shown = now
        if self._live:
            self._live.update(Group(self._table(), Text(self._summary())), refresh=True)
        else:
            reached = [_reached(planned, job.progress) for planned, job in self._jobs.items() if job.progress]
            self._say(" · ".join([self._summary(), *reached]))

    def _say(self, text: str, style: str = "") -> None:
        self._console.print(text, style=style, markup=False)

    def _summary(self) -> str:
        left = self._seconds_left()
        counted = [
            f"{self._counts['finished']} done",
            f"{len(self._jobs)} running",
            f"{len(self._waiting) - len(self._elsewhere)} waiting",
            *([f"{len(self._elsewhere)} run by another process"] if self._elsewhere else []),
            f"{self._counts['failed'] + self._counts['not run']} failed",
            f"{'–' if left is None else duration(left)} left",
        ]
        return " · ".join(counted)

    def _seconds_left(self) -> float | None:
        """Return the seconds to the end of the sweep, None while the duration of one run is unknown."""
        left = [planned.seconds(self._speeds) for planned in self._waiting]
        for planned, job in self._jobs.items():
            left.append(job.progress.seconds_left if job.progress else planned.seconds(self._speeds))
        known = [seconds for seconds in left if seconds is not None]
        return sum(known) / self._parallel if len(known) == len(left) else None

    def _table(self) -> Table:
        shown = Table(box=None, pad_edge=False, header_style="dim")
        shown.add_column("run", overflow="ellipsis", no_wrap=True)
        for column in ("on", "at", "", "left", "M", "loss or accuracy"):
            shown.add_column(column, justify="left" if column == "on" else "right", no_wrap=True)
        for planned, job in self._jobs.items():
            shown.add_row(Text(planned.label), job.where, *_columns(planned, job))
        return shown


def _columns(planned: PlannedRun, job: _Running) -> tuple[str, ...]:
    progress = job.progress
    if progress is None:
        return ("starting", "", "", "", "")
    mass = progress.averages.get("train_mass")
    losses = [text for text in numbers("train", progress.averages) if text.startswith("loss")]
    return (
        _reached(planned, progress),
        f"{progress.step / progress.steps:.0%}",
        duration(progress.seconds_left),
        "–" if mass is None else f"{mass:.3f}",
        job.validated or "".join(losses),
    )


def _reached(planned: PlannedRun, progress: Progress) -> str:
    return f"{'round' if planned.baseline else 'epoch'} {progress.epoch}/{progress.epochs}"


def _headlines(planned: PlannedRun) -> str:
    metrics = planned.folder.result().get("metrics", {})
    said = [f"{label} {metric_text(name, metrics[name])}" for name, label in _FINAL_METRICS.items() if name in metrics]
    return f": {', '.join(said)}" if said else ""
