"""Which part of what is divided among processes is this one's."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """The part of process `rank` of `count`: contiguous, as even as can be, the first process never without any.

    Attributes:
        rank: 0 <= rank < count.
        count: how many processes there are.
    """

    rank: int = 0
    count: int = 1

    def of(self, number: int) -> slice:
        """Return which of `number` things are this process's."""
        return slice(self._before(self.rank, number), self._before(self.rank + 1, number))

    def size(self, number: int) -> int:
        """Return how many of `number` things are this process's."""
        return self.sizes(number)[self.rank]

    def sizes(self, number: int) -> list[int]:
        """Return how many of `number` things each process has."""
        return [self._before(rank + 1, number) - self._before(rank, number) for rank in range(self.count)]

    def stand_in(self, number: int) -> slice:
        """Return `of(number)`, or the first of all where that is empty: to compute on, and to count for nothing.

        A process without an image so takes the same steps as the others, which wait for it.
        """
        return self.of(number) if self.size(number) else slice(0, 1)

    def _before(self, rank: int, number: int) -> int:
        return -(-number * rank // self.count)


ALONE = Share()
"""All of everything."""
