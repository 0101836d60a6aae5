"""Callbacks of a training run, such as the terminal's live line and trackers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Progress:
    """The progress of a run.

    Attributes:
        epoch: 1 .. epochs.
        epochs: in the whole run.
        step: finished steps of this epoch.
        steps: in an epoch.
        averages: means over the epoch so far, named as in metrics.jsonl.
        images_per_second: of this epoch's training steps.
        seconds_left: estimate for the rest of the run.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    averages: Mapping[str, float]
    images_per_second: float
    seconds_left: float


class Observer:
    """Callbacks of a run; subclasses override the ones they need."""

    def progressed(self, progress: Progress) -> None:
        """The run has made progress; called a few times a second at most."""

    def epoch_ended(self, record: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl was written."""

    def close(self) -> None:
        """Release resources: the run has ended, finished or not."""
