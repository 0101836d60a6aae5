"""What writing labelled images and writing scenes have in common."""

from __future__ import annotations

from dataclasses import dataclass

from data_prep.errors import UsageError
from data_prep.official import Progress


@dataclass
class ImagesDone:
    """Tells how many images are written."""

    progress: Progress
    total: int
    done: int = 0

    def add(self, count: int) -> None:
        """Tell that so many more are."""
        self.done += count
        self.progress("images", self.done, self.total)


def refuse_excess(limit: int | None, available: int) -> None:
    """Make sure that the source has as many training images as are asked for.

    Raises:
        UsageError: It has fewer.
    """
    if limit is not None and limit > available:
        raise UsageError(f"--limit {limit}: expected at most {available}, the training images of the source")
