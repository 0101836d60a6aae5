"""The random generator of an epoch."""

from __future__ import annotations

import torch


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Return a CPU generator that depends on `(seed, epoch)` only; different pairs give independent streams."""
    return torch.Generator().manual_seed(_mix(seed, epoch))


def _mix(seed: int, epoch: int) -> int:
    """Hash `(seed, epoch)` to 63 bits with the finaliser of SplitMix64."""
    mask = (1 << 64) - 1
    x = (seed * 0x9E3779B97F4A7C15 + epoch + 1) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return (x ^ (x >> 31)) >> 1
