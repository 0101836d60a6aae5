"""Who watches a run: the terminal's live line, TensorBoard, a test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.errors import UsageError


@dataclass(frozen=True)
class Progress:
    """Where a run is in its epoch.

    Attributes:
        epoch: 1 .. epochs.
        epochs: of the whole run.
        step: steps of this epoch that are done.
        steps: of an epoch.
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
    """Does nothing; subclasses override what they care about."""

    def progressed(self, progress: Progress) -> None:
        """Hear of the run, a few times a second at most."""

    def epoch_ended(self, record: Mapping[str, Any]) -> None:
        """Hear of a line of metrics.jsonl."""

    def close(self) -> None:
        """Let go of what is held: the run has ended, well or not."""


class TensorBoard(Observer):
    """Writes each epoch's numbers as TensorBoard scalars.

    Raises:
        UsageError: the tensorboard package is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UsageError(
                "run.tensorboard = true needs the package tensorboard: pip install 'affsup[tensorboard]'"
            ) from None
        self._writer = SummaryWriter(str(folder))

    def epoch_ended(self, record: Mapping[str, Any]) -> None:
        """Write every number of the record under its own name."""
        for name, value in record.items():
            if name != "epoch" and value is not None:
                self._writer.add_scalar(name, value, record["epoch"])

    def close(self) -> None:
        """Flush the event file."""
        self._writer.close()
