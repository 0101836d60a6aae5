"""Progress of a run: a live line on a terminal, else one line per minute and per epoch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from affsup_cli.training.observers import Observer, Progress

LINE_SECONDS = 60.0
DAYS_FROM = 48 * 3600


class LiveLine(Observer):
    """Shows epoch, images/s, losses, M, the gradient share of L_G and the time left."""

    def __init__(self, console: Console, label: str = "") -> None:
        self._console = console
        self._label = f"{label}  " if label else ""
        self._printed = time.monotonic()
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        if self._live:
            self._live.start()

    def progressed(self, progress: Progress) -> None:
        """Redraw."""
        if not self._live and time.monotonic() - self._printed < LINE_SECONDS:
            return
        done = f"{self._label}epoch {progress.epoch}/{progress.epochs}, {progress.step / progress.steps:.0%}"
        rest = [
            f"{duration(progress.seconds_left)} left",
            f"{progress.images_per_second:,.0f} images/s",
            *numbers("train", progress.averages),
        ]
        line = " · ".join([done, *rest])
        if self._live:
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"))
        else:
            self._console.print(line, markup=False)
            self._printed = time.monotonic()

    def epoch_ended(self, record: Mapping[str, Any]) -> None:
        """Print a permanent line for the epoch."""
        validation = [
            text.format(record[key])
            for key, text in (("val_accuracy", "val accuracy {:.2%}"), ("val_mass", "M {:.3f}"))
            if key in record
        ]
        parts = [
            f"{self._label}epoch {record['epoch']}: {', '.join(numbers('train', record))}",
            *([", ".join(validation)] if validation else []),
            f"{record['images_per_second']:,.0f} images/s",
        ]
        self._console.print(" · ".join(parts), markup=False)

    def close(self) -> None:
        """Remove the line."""
        if self._live:
            self._live.stop()


def numbers(split: str, values: Mapping[str, Any]) -> list[str]:
    """Return M, the losses and the gradient share of a split as texts."""
    said = [
        (f"{split}_mass", "M {:.3f}"),
        (f"{split}_loss", "loss {:.3f}"),
        (f"{split}_class_loss", "class {:.3f}"),
        (f"{split}_box_loss", "box {:.3f}"),
        (f"{split}_objectness_loss", "objectness {:.3f}"),
        (f"{split}_proposal_loss", "proposals {:.3f}"),
        (f"{split}_pair_loss", "pairs {:.3f}"),
        (f"{split}_affinity_loss", "L_G {:.3f}"),
        ("gradient_share", "L_G's gradient {:.1%}"),
    ]
    return [text.format(values[key]) for key, text in said if key in values]


def duration(seconds: float) -> str:
    """Return a duration as text: 0:59, 1:02:03, from two days on 3 d 4 h."""
    if seconds >= DAYS_FROM:
        days, hours = divmod(round(seconds / 3600), 24)
        return f"{days} d {hours} h"
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
