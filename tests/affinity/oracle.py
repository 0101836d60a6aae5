"""The paper's equations in float64 NumPy, written as printed: softmax first, then sums and logs, targets in loops.

`affinity_loss` and `target_mass` take one graph. `stable_log_mass` is the same quantity in extended precision, through
a log-sum-exp, for the scales of logits at which the printed form overflows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Mask = NDArray[np.bool_]


def valid_entries(size: tuple[int, int], diagonal: str) -> Mask:
    return ~np.eye(*size, dtype=bool) if diagonal == "exclude" else np.ones(size, dtype=bool)


def target_mass(logits: Matrix, target: Mask, softmax: str, diagonal: str) -> Matrix:
    """Eq. 3 ([]) and eq. 12 ([N]); 0 where there is nothing to normalise."""
    weights = np.exp(logits) * valid_entries(logits.shape, diagonal)
    total = weights.sum(axis=1, keepdims=True) if softmax == "row" else weights.sum()
    normalised = weights / np.where(total == 0, 1, total)
    return (normalised * target).sum(axis=1 if softmax == "row" else None)


def loss_of_mass(mass: Matrix, form: str, gamma: float) -> Matrix:
    """Eq. 5, 6, 7."""
    x = 1 - mass
    if form == "l2":
        return x**2
    if form == "smooth_l1":
        return np.where(np.abs(x) < 0.5, x**2, np.abs(x) - 0.25)
    return -(x ** (0 if form == "log" else gamma)) * np.log(mass)


def affinity_loss(logits: Matrix, target: Mask, form: str, gamma: float, softmax: str, diagonal: str) -> float:
    """Eq. 5-7 of eq. 3, eq. 13 and eq. 15 for a graph; 0 without a target."""
    valid = valid_entries(logits.shape, diagonal)
    if not (target & valid).any():
        return 0.0
    if form == "bce":
        p = 1 / (1 + np.exp(-logits))
        return float(-np.where(target, np.log(p), np.log(1 - p))[valid].sum())
    masses = target_mass(logits, target, softmax, diagonal)
    if softmax == "row":
        masses = masses[(target & valid).any(axis=1)]
    return float(loss_of_mass(masses, form, gamma).sum())


def stable_log_mass(logits: Matrix, target: Mask) -> tuple[np.longdouble, np.longdouble]:
    """`log M` and `log(1 - M)` of the matrix softmax, neither as a difference from 1."""
    wide = logits.astype(np.longdouble)
    log_odds = _log_sum_exp(wide[target]) - _log_sum_exp(wide[~target])
    return -np.logaddexp(0, -log_odds), -np.logaddexp(0, log_odds)


def _log_sum_exp(values: NDArray[np.longdouble]) -> np.longdouble:
    peak = values.max()
    return np.longdouble(peak + np.log(np.exp(values - peak).sum()))
