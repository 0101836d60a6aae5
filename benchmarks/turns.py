"""Time two implementations of the same result alternately."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


def compare(
    reference: Callable[[], object], ours: Callable[[], object], device: torch.device, rounds: int
) -> dict[str, Any]:
    """Return the median milliseconds of each, and the median over the rounds of reference / ours.

    Both are called once before the timed rounds. Which one is called first alternates from round to round.
    """
    calls = (("reference", reference), ("ours", ours))
    taken: dict[str, list[float]] = {"reference": [], "ours": []}
    for round_ in range(rounds + 1):
        for name, call in calls if round_ % 2 else calls[::-1]:
            _wait(device)
            begun = time.perf_counter()
            call()
            _wait(device)
            if round_:
                taken[name].append(time.perf_counter() - begun)
    ratios = [a / b for a, b in zip(taken["reference"], taken["ours"], strict=True)]
    return {
        **{f"{name}_ms": round(1000 * statistics.median(seconds), 3) for name, seconds in taken.items()},
        "ratio": round(statistics.median(ratios), 2),
        "rounds": rounds,
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
