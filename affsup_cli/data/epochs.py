"""Random numbers of an epoch."""

from __future__ import annotations

import torch


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Return a generator on the CPU that is a function of `(seed, epoch)` alone; neighbouring seeds share no epoch."""
    return torch.Generator().manual_seed(_mix(seed, epoch))


def _mix(seed: int, epoch: int) -> int:
    """Spread `(seed, epoch)` over 63 bits (the finaliser of SplitMix64)."""
    mask = (1 << 64) - 1
    x = (seed * 0x9E3779B97F4A7C15 + epoch + 1) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return (x ^ (x >> 31)) >> 1
