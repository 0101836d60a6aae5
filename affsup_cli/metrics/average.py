"""Averages of scalars that stay on the device until they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class Averages:
    """Weighted means of named scalars, kept as float64 sums on their device; only reading them waits for it.

    Once all names are known the sums stay in the same memory, so that a recorded step goes on adding to them.
    """

    def __init__(self) -> None:
        self._rows: dict[tuple[str, ...], Tensor] = {}  # [2, names]: sums, and how much each has counted
        self._at_rest: dict[str, tuple[float, float]] = {}  # the same of what no row has; all names, in their order

    def add(self, values: Mapping[str, Tensor], weight: float | Tensor) -> None:
        """Count each scalar `weight` times; a value that counts 0 times must be finite all the same."""
        self.add_row(tuple(values), float64_row(list(values.values())), weight)

    def add_row(self, names: tuple[str, ...], numbers: Tensor, weight: float | Tensor) -> None:
        """Count `numbers`, float64 `[names]`, `weight` times each."""
        if names not in self._rows:
            begun = [self._at_rest.get(name, (0.0, 0.0)) for name in names]
            self._rows[names] = torch.tensor(begun, dtype=torch.float64, device=numbers.device).T.contiguous()
            self._at_rest |= dict.fromkeys(names, (0.0, 0.0))
        sums, counted = self._rows[names]
        sums.add_(numbers * weight)
        counted.add_(weight)

    def read(self) -> dict[str, float]:
        """Return the means so far, without those of which nothing has counted yet."""
        return {name: total / weight for name, (total, weight) in self._totals().items() if weight}

    def reset(self) -> None:
        """Forget all that was added."""
        for row in self._rows.values():
            row.zero_()
        self._at_rest = dict.fromkeys(self._at_rest, (0.0, 0.0))

    def state_dict(self) -> dict[str, dict[str, float]]:
        """Return the sums as plain numbers, for a checkpoint."""
        totals = self._totals()
        return {
            "sums": {name: total for name, (total, _) in totals.items()},
            "weights": {name: weight for name, (_, weight) in totals.items()},
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Continue from `state_dict`."""
        self._rows.clear()
        self._at_rest = {name: (total, float(state["weights"][name])) for name, total in state["sums"].items()}

    def _totals(self) -> dict[str, tuple[float, float]]:
        """Return the sum of each name, and how much it has counted; waits for the device once."""
        totals = dict(self._at_rest)
        if self._rows:
            names = [name for row in self._rows for name in row]
            for name, total, weight in zip(names, *torch.cat(list(self._rows.values()), dim=1).tolist(), strict=True):
                before, counted = totals[name]
                totals[name] = before + total, counted + weight
        return totals


def float64_row(values: Sequence[Tensor]) -> Tensor:
    """Return scalars side by side, without their gradients."""
    return torch.stack([value.detach().double() for value in values])
