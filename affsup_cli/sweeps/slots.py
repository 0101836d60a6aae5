"""Slots for the runs of a sweep on this machine: one for each run at the same time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from affsup_cli.recipe import Recipe
from affsup_cli.runtime.devices import device_name, gpus, resolve_device
from data_prep.decode.parallel import usable_cores

_THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True, eq=False)
class Slot:
    """Room for one run at a time; two on the same device are two slots.

    Attributes:
        device: "cpu" or "cuda:N", N counted over the devices that are visible here.
        name: the device's product name, as runs record it.
        environment: variables that restrict a process to its slot.
    """

    device: str
    name: str
    environment: Mapping[str, str]

    def recipe(self, recipe: Recipe) -> Recipe:
        """Return `recipe` for a process in this slot, which sees the GPU of the slot only."""
        if not recipe.run.device.startswith("cuda:"):
            return recipe
        return recipe.model_copy(update={"run": recipe.run.model_copy(update={"device": "cuda"})})

    def alone(self) -> Slot:
        """Return the same slot with all cores."""
        kept = {name: value for name, value in self.environment.items() if name != _THREADS}
        return replace(self, environment=kept)


def find_slots(device: str, jobs: int = 1) -> list[Slot]:
    """Return the slots of this machine, alternating between devices: all GPUs for "auto" and "cuda".

    Args:
        device: as `run.device`.
        jobs: slots on each GPU, or on the CPU; they share the cores.

    Raises:
        UsageError: there is no such device.
    """
    devices = _devices(device) * jobs
    threads = max(1, usable_cores() // len(devices))
    shared = {_THREADS: str(threads)} if len(devices) > 1 else {}
    return [Slot(str(found), device_name(found), shared | _visible(found)) for found in devices]


def _devices(device: str) -> list[torch.device]:
    if device == "auto":
        device = "cuda" if gpus() else "cpu"
    found = resolve_device(device)
    if device != "cuda":
        return [found]
    return [torch.device("cuda", index) for index in range(gpus())]


def _visible(device: torch.device) -> dict[str, str]:
    if device.type == "cpu":
        return {}
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return {"CUDA_VISIBLE_DEVICES": listed.split(",")[device.index] if listed else str(device.index)}
