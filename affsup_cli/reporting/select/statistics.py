"""The numbers of a table: mean and spread of a cell, and the paired difference of two cells."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

from scipy.special import stdtrit


@dataclasses.dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (n - 1) of `n` values; a single value has no deviation."""

    mean: float
    std: float | None
    n: int


@dataclasses.dataclass(frozen=True)
class PairedDifference:
    """Mean of paired differences over `seeds`, and its two-sided 95 % interval by Student's t."""

    mean: float
    low: float | None
    high: float | None
    seeds: tuple[int, ...]


def is_finite(value: object) -> bool:
    """Return whether a metric is a number that a float can hold: no NaN, no infinity, no text."""
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:
        return False


def summarize(values: Sequence[float]) -> Summary:
    """Return mean, deviation and number of at least one value."""
    return Summary(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def paired_difference(treatment: Mapping[int, float], baseline: Mapping[int, float]) -> PairedDifference | None:
    """Return `treatment - baseline` over the seeds of both; None without such a seed. One pair has no interval."""
    seeds = tuple(sorted(treatment.keys() & baseline.keys()))
    if not seeds:
        return None
    differences = [treatment[seed] - baseline[seed] for seed in seeds]
    mean = statistics.fmean(differences)
    if len(seeds) == 1:
        return PairedDifference(mean, None, None, seeds)
    half = float(stdtrit(len(seeds) - 1, 0.975)) * statistics.stdev(differences) / math.sqrt(len(seeds))
    return PairedDifference(mean, mean - half, mean + half, seeds)
