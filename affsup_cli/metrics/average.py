"""Averages of scalars that stay on the device until they are read."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Averages:
    """Weighted means of named scalars, kept as float64 sums on their device; only reading them waits for it."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float | Tensor] = {}

    def add(self, values: Mapping[str, Tensor], weight: float | Tensor) -> None:
        """Count each scalar `weight` times; a value that counts 0 times must be finite all the same."""
        for name, value in values.items():
            term = value.detach().double() * weight
            self._sums[name] = self._sums[name] + term if name in self._sums else term
            self._weights[name] = self._weights.get(name, 0.0) + weight

    def read(self) -> dict[str, float]:
        """Return the means so far, without those of which nothing has counted yet."""
        if not self._sums:
            return {}
        sums = torch.stack(list(self._sums.values()))
        weights = [
            torch.as_tensor(weight, dtype=torch.float64, device=sums.device) for weight in self._weights.values()
        ]
        of_sums, of_weights = torch.stack([sums, torch.stack(weights)]).tolist()
        read = zip(self._sums, of_sums, of_weights, strict=True)
        return {name: total / weight for name, total, weight in read if weight}

    def state_dict(self) -> dict[str, dict[str, float]]:
        """Return the sums as plain numbers, for a checkpoint."""
        return {
            "sums": {name: value.item() for name, value in self._sums.items()},
            "weights": {name: float(weight) for name, weight in self._weights.items()},
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, float]], device: torch.device) -> None:
        """Continue from `state_dict`."""
        self._sums = {
            name: torch.tensor(value, dtype=torch.float64, device=device) for name, value in state["sums"].items()
        }
        self._weights = dict(state["weights"])
