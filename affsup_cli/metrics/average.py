"""Averages of scalars that stay on the device until they are read."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Averages:
    """Weighted means of named scalars, kept as float64 sums on their device; only reading them waits for it."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}

    def add(self, values: Mapping[str, Tensor], weight: float) -> None:
        """Count each scalar `weight` times."""
        for name, value in values.items():
            term = value.detach().double() * weight
            self._sums[name] = self._sums[name] + term if name in self._sums else term
            self._weights[name] = self._weights.get(name, 0.0) + weight

    def read(self) -> dict[str, float]:
        """Return the means so far."""
        if not self._sums:
            return {}
        sums = torch.stack(list(self._sums.values())).tolist()
        return {name: total / self._weights[name] for name, total in zip(self._sums, sums, strict=True)}

    def state_dict(self) -> dict[str, dict[str, float]]:
        """Return the sums as plain numbers, for a checkpoint."""
        return {"sums": {name: value.item() for name, value in self._sums.items()}, "weights": dict(self._weights)}

    def load_state_dict(self, state: Mapping[str, Mapping[str, float]], device: torch.device) -> None:
        """Continue from `state_dict`."""
        self._sums = {
            name: torch.tensor(value, dtype=torch.float64, device=device) for name, value in state["sums"].items()
        }
        self._weights = dict(state["weights"])
