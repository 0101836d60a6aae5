"""The shard of a batch or a list that one of several processes has."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shard:
    """The part of process `rank` of `count`: contiguous, as even as possible; that of rank 0 is never empty.

    Attributes:
        rank: 0 <= rank < count.
        count: the number of processes.
    """

    rank: int = 0
    count: int = 1

    def slice_of(self, number: int) -> slice:
        """Return which of `number` items are in this shard."""
        return slice(self._start(self.rank, number), self._start(self.rank + 1, number))

    def size(self, number: int) -> int:
        """Return how many of `number` items are in this shard."""
        return self.sizes(number)[self.rank]

    def sizes(self, number: int) -> list[int]:
        """Return how many of `number` items are in the shard of each process."""
        return [self._start(rank + 1, number) - self._start(rank, number) for rank in range(self.count)]

    def slice_or_dummy(self, number: int) -> slice:
        """Return `slice_of(number)`, or the first item where that is empty, to compute on with weight 0.

        So a process without an image takes part in the collectives of the step, for which the others wait.
        """
        return self.slice_of(number) if self.size(number) else slice(0, 1)

    def _start(self, rank: int, number: int) -> int:
        return -(-number * rank // self.count)


WHOLE = Shard()
"""The shard of a single process: everything."""
