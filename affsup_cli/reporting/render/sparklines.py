"""Sparklines: a run's metrics over the epochs as small SVGs, for the page."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from affsup_cli.reporting.select.statistics import is_finite

MAX_POINTS = 200

_WIDTH, _HEIGHT = 240, 84
_DIGIT = 6.2  # width of a character of the labels
_QUANTITIES = (
    ("loss", ("train_loss",)),
    ("accuracy", ("val_accuracy", "test_accuracy")),
    ("mAP@0.5", ("val_map_50", "test_map_50")),
    ("M", ("val_mass", "train_mass")),
    ("gradient share of L_G", ("gradient_share",)),
)
_SPLITS = {"train": "training", "val": "validation", "test": "test"}
_UNIT_RANGE = (
    "M",
    "gradient share of L_G",
)  # drawn from 0 to 1, so that runs with and without L_G are comparable


@dataclasses.dataclass(frozen=True)
class Sparkline:
    """One quantity of a run as (epoch, value), by epoch; values that are not finite are left out."""

    quantity: str
    label: str
    points: tuple[tuple[int, float], ...]

    def svg(self, low: float, high: float) -> str:
        """Return the SVG element, its axis from `low` to `high`."""
        epochs = [epoch for epoch, _ in self.points]
        first, last = epochs[0], epochs[-1]
        span, reach = last - first or 1, high - low or 1.0
        top, bottom = number(high), number(low)
        left = round(6 + _DIGIT * max(len(top), len(bottom)))
        right, foot = _WIDTH - 4, _HEIGHT - 14
        drawn = []
        for epoch, value in _subsample(self.points):
            x, y = left + (epoch - first) / span * (right - left), foot - (value - low) / reach * (foot - 8)
            drawn.append(f"{x:.1f} {y:.1f}")
        ends = f"{number(self.points[0][1])} to {number(self.points[-1][1])}"
        said = f"{self.label} over epochs {first} to {last}: from {ends}"
        return (
            f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(said)}">'
            f'<path class="axes" d="M{left} 8V{foot}H{right}"/>'
            f'<path class="line" d="M{"L".join(drawn)}"/>'
            f'<circle cx="{drawn[-1].split()[0]}" cy="{drawn[-1].split()[1]}" r="2.5"/>'
            f'<text x="{left - 4}" y="12" text-anchor="end">{top}</text>'
            f'<text x="{left - 4}" y="{foot}" text-anchor="end">{bottom}</text>'
            f'<text x="{left}" y="{_HEIGHT - 3}">{first}</text>'
            f'<text x="{right}" y="{_HEIGHT - 3}" text-anchor="end">epoch {last}</text></svg>'
        )


def number(value: float) -> str:
    """Return a number with three significant digits."""
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


def sparklines(records: Sequence[Mapping[str, Any]]) -> list[Sparkline]:
    """Return what the epochs of a run recorded of loss, accuracy or mAP, M and the gradient share of L_G.

    Of several splits the validation split is taken.
    """
    found = []
    for kind, metrics in _QUANTITIES:
        for metric in metrics:
            points = tuple((record["epoch"], record[metric]) for record in records if is_finite(record.get(metric)))
            if points:
                split = _SPLITS.get(metric.partition("_")[0])
                found.append(Sparkline(kind, f"{kind}, {split}" if split else kind, points))
                break
    return found


def value_ranges(sparklines_of_runs: Iterable[Sparkline]) -> dict[str, tuple[float, float]]:
    """Return for each kind the least and the greatest value: runs that are drawn between them compare."""
    values: dict[str, list[float]] = {}
    for curve in sparklines_of_runs:
        values.setdefault(curve.quantity, []).extend(value for _, value in curve.points)
    return {kind: (0.0, 1.0) if kind in _UNIT_RANGE else (min(found), max(found)) for kind, found in values.items()}


def _subsample(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return at most `MAX_POINTS` of them, evenly spread, with the first and the last."""
    if len(points) <= MAX_POINTS:
        return list(points)
    step = (len(points) - 1) / (MAX_POINTS - 1)
    return [points[round(place * step)] for place in range(MAX_POINTS)]
