"""Averages of scalars that stay on the device until they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class Averages:
    """Weighted means of named scalars, kept as float64 sums on their device; only reading synchronises with it.

    Once all names are known the sums keep their memory, so that a captured CUDA graph can add to them.
    """

    def __init__(self) -> None:
        self._rows: dict[tuple[str, ...], Tensor] = {}  # [2, names]: sums, and total weights
        self._loaded: dict[str, tuple[float, float]] = {}  # sum and weight of all names, in order; 0 for those in a row

    def add(self, values: Mapping[str, Tensor], weight: float | Tensor) -> None:
        """Add each scalar with `weight`; a value with weight 0 must be finite, too."""
        self.add_row(tuple(values), float64_row(list(values.values())), weight)

    def add_row(self, names: tuple[str, ...], numbers: Tensor, weight: float | Tensor) -> None:
        """Add `numbers`, float64 `[names]`, with `weight`."""
        if names not in self._rows:
            initial = [self._loaded.get(name, (0.0, 0.0)) for name in names]
            self._rows[names] = torch.tensor(initial, dtype=torch.float64, device=numbers.device).T.contiguous()
            self._loaded |= dict.fromkeys(names, (0.0, 0.0))
        sums, weights = self._rows[names]
        sums.add_(numbers * weight)
        weights.add_(weight)

    def read(self) -> dict[str, float]:
        """Return the means so far; names with a total weight of 0 are left out."""
        return {name: total / weight for name, (total, weight) in self._totals().items() if weight}

    def reset(self) -> None:
        """Set all sums to 0."""
        for row in self._rows.values():
            row.zero_()
        self._loaded = dict.fromkeys(self._loaded, (0.0, 0.0))

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
        self._loaded = {name: (total, float(state["weights"][name])) for name, total in state["sums"].items()}

    def _totals(self) -> dict[str, tuple[float, float]]:
        """Return the sum and the weight of each name; synchronises with the device once."""
        totals = dict(self._loaded)
        if self._rows:
            names = [name for row in self._rows for name in row]
            for name, total, weight in zip(names, *torch.cat(list(self._rows.values()), dim=1).tolist(), strict=True):
                loaded_total, loaded_weight = totals[name]
                totals[name] = loaded_total + total, loaded_weight + weight
        return totals


def float64_row(values: Sequence[Tensor]) -> Tensor:
    """Stack scalars as a float64 vector without gradient."""
    return torch.stack([value.detach() for value in values]).double()
