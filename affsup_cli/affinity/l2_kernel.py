"""L_G, M and the gradient of a small mini-batch in two Triton kernels.

The numbers are those of `affsup_cli.affinity.closed_form.L2MassLoss` up to rounding. At a batch of 128 that function is
about 25 operators of some microseconds each; here the graph never leaves the registers.

1. Each program computes a block of rows of W (eq. 11), and writes for each row the maximum and the sum of exponentials
   over its target and over the rest.
2. Each program computes its rows of W again. From the numbers of all rows it has the log-odds of M, hence L_G and
   dL/dlog-odds; and since W and the target are symmetric, also its rows of B = dL/dW + (dL/dW)^T and of the gradient
   `B f - diag(B 1) f`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from affsup_cli.affinity.options import LossOptions

BLOCK_ROWS = 4


def loss_mass_gradient(
    features: Tensor, labels: Tensor, ignore_index: int | None, options: LossOptions, needs_gradient: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return L_G, M and, where needed, dL_G/dfeatures.

    Args:
        features: float32 `[N, d]`, N at least 1.
        labels: integer class ids `[N]`.
        ignore_index: label of the entries that are left out; None for none.
        options: of the loss; every form but "bce".
        needs_gradient: compute the gradient.
    """
    nodes, dimensions = features.shape
    features, labels = features.detach().contiguous(), labels.contiguous()
    statistics = features.new_empty(4, nodes)
    loss, mass = features.new_empty(()), features.new_empty(())
    gradient = torch.empty_like(features) if needs_gradient else None
    blocks = triton.cdiv(nodes, BLOCK_ROWS)
    graph = (features, labels, nodes, dimensions, 0 if ignore_index is None else ignore_index)
    constants = {"IGNORES": ignore_index is not None, "KEEPS_DIAGONAL": options.diagonal == "keep"}
    constants |= block_sizes(nodes, dimensions) | compiler_options(nodes)
    with torch.cuda.device_of(features):  # Triton launches on the current GPU, which may be another one
        _row_statistics[(blocks,)](*graph, statistics, **constants)
        _combine[(blocks if needs_gradient else 1,)](
            *graph,
            statistics,
            loss,
            mass,
            gradient,
            float(options.gamma),
            FORM="log" if options.form == "focal" and options.gamma == 0 else options.form,
            ROW_SOFTMAX=options.softmax == "row",
            ROW_AVERAGE=options.row_average,
            NEEDS_GRADIENT=needs_gradient,
            **constants,
        )
    return loss, mass, gradient


def block_sizes(nodes: int, dimensions: int) -> dict[str, int]:
    """Return the rows, columns and channels that a program holds at a time, of a graph of `nodes` nodes."""
    columns = max(16, triton.next_power_of_2(nodes))
    return {"ROWS": BLOCK_ROWS, "COLUMNS": columns, "CHANNELS": 16 if dimensions <= 16 else 32}


def compiler_options(nodes: int) -> dict[str, Any]:
    """Return the options of Triton's compiler for a graph of `nodes` nodes.

    A stage holds 32 channels of all nodes in shared memory: three stages of 256 nodes need more than the 99 KB of GPUs
    of compute capability 8.6, 8.9 and 12.0, two need 70 KB.
    """
    return {"num_stages": 3 if nodes <= 128 else 2, "enable_fp_fusion": True}  # Triton 3.9 asks that fusion be chosen


@triton.jit
def _row_statistics(
    features,
    labels,
    nodes,
    dimensions,
    ignored,
    statistics,
    IGNORES: tl.constexpr,
    KEEPS_DIAGONAL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Write maximum and sum of exponentials of each row's target and rest to `statistics` `[4, N]`."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    affinities, target, rest = _graph_rows(
        features, labels, nodes, dimensions, ignored, rows, IGNORES, KEEPS_DIAGONAL, ROWS, COLUMNS, CHANNELS
    )
    target_peak, target_sum = _peak_and_sum(affinities, target)
    rest_peak, rest_sum = _peak_and_sum(affinities, rest)
    tl.store(statistics + rows, target_peak, mask=rows < nodes)
    tl.store(statistics + nodes + rows, target_sum, mask=rows < nodes)
    tl.store(statistics + 2 * nodes + rows, rest_peak, mask=rows < nodes)
    tl.store(statistics + 3 * nodes + rows, rest_sum, mask=rows < nodes)


@triton.jit
def _combine(
    features,
    labels,
    nodes,
    dimensions,
    ignored,
    statistics,
    loss,
    mass,
    gradient,
    gamma,
    FORM: tl.constexpr,
    ROW_SOFTMAX: tl.constexpr,
    ROW_AVERAGE: tl.constexpr,
    NEEDS_GRADIENT: tl.constexpr,
    IGNORES: tl.constexpr,
    KEEPS_DIAGONAL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Write the loss, M and the gradient of a block of rows."""
    columns = tl.arange(0, COLUMNS)
    target_peaks, target_sums, rest_peaks, rest_sums = _load_statistics(statistics, nodes, columns)
    target_peak, target_sum = _merged(target_peaks, target_sums)
    rest_peak, rest_sum = _merged(rest_peaks, rest_sums)
    log_odds = _log_odds(target_peak, target_sum, rest_peak, rest_sum)
    if ROW_SOFTMAX:
        losses, slopes = _form(_log_odds(target_peaks, target_sums, rest_peaks, rest_sums), gamma, FORM)
        weight = 1.0
        if ROW_AVERAGE:
            weight = 1 / tl.maximum(tl.sum((target_sums != 0).to(tl.float32), 0), 1.0)
        losses = tl.where(target_sums != 0, losses, 0.0)
        total = tl.sum(losses, 0) * weight
        slopes = tl.where(target_sums != 0, slopes * weight, 0.0)
    else:
        total, slope = _form(log_odds, gamma, FORM)
        total = tl.where(target_sum != 0, total, 0.0)
        slope = tl.where(target_sum != 0, slope, 0.0)
    if tl.program_id(0) == 0:
        tl.store(loss, total)
        tl.store(mass, tl.where(target_sum != 0, _sigmoid(log_odds), 0.0))
    if NEEDS_GRADIENT:
        rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        affinities, target, rest = _graph_rows(
            features, labels, nodes, dimensions, ignored, rows, IGNORES, KEEPS_DIAGONAL, ROWS, COLUMNS, CHANNELS
        )
        if ROW_SOFTMAX:
            row_target_peaks, row_target_sums, row_rest_peaks, row_rest_sums = _load_statistics(statistics, nodes, rows)
            _, row_slopes = _form(
                _log_odds(row_target_peaks, row_target_sums, row_rest_peaks, row_rest_sums), gamma, FORM
            )
            row_slopes = tl.where(row_target_sums != 0, row_slopes * weight, 0.0)
            by_row = _share(affinities, target, row_target_peaks[:, None], row_target_sums[:, None]) - _share(
                affinities, rest, row_rest_peaks[:, None], row_rest_sums[:, None]
            )
            by_column = _share(affinities, target, target_peaks[None, :], target_sums[None, :]) - _share(
                affinities, rest, rest_peaks[None, :], rest_sums[None, :]
            )
            symmetric = row_slopes[:, None] * by_row + slopes[None, :] * by_column
        else:
            symmetric = (2 * slope) * (
                _share(affinities, target, target_peak, target_sum) - _share(affinities, rest, rest_peak, rest_sum)
            )
        symmetric = tl.where(rows[:, None] == columns[None, :], 0.0, symmetric)
        row_sums = tl.sum(symmetric, 1)
        for first in range(0, dimensions, CHANNELS):
            of_rows, of_columns = _centered(features, nodes, dimensions, first, rows, columns, CHANNELS)
            result = tl.dot(symmetric, of_columns, input_precision="ieee") - row_sums[:, None] * of_rows
            channels = first + tl.arange(0, CHANNELS)
            tl.store(
                gradient + rows[:, None] * dimensions + channels[None, :],
                result,
                mask=(rows < nodes)[:, None] & (channels < dimensions)[None, :],
            )


@triton.jit
def _graph_rows(
    features,
    labels,
    nodes,
    dimensions,
    ignored,
    rows,
    IGNORES: tl.constexpr,
    KEEPS_DIAGONAL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Rows of W `[ROWS, COLUMNS]`, and which of their entries are in the target and which in the rest."""
    columns = tl.arange(0, COLUMNS)
    affinities = tl.zeros([ROWS, COLUMNS], tl.float32)
    row_squares = tl.zeros([ROWS], tl.float32)
    column_squares = tl.zeros([COLUMNS], tl.float32)
    for first in range(0, dimensions, CHANNELS):
        of_rows, of_columns = _centered(features, nodes, dimensions, first, rows, columns, CHANNELS)
        affinities += tl.dot(of_rows, tl.trans(of_columns), input_precision="ieee")
        row_squares += tl.sum(of_rows * of_rows, 1)
        column_squares += tl.sum(of_columns * of_columns, 1)
    affinities -= 0.5 * (row_squares[:, None] + column_squares[None, :])
    diagonal = rows[:, None] == columns[None, :]
    row_labels = tl.load(labels + rows, mask=rows < nodes, other=0)
    column_labels = tl.load(labels + columns, mask=columns < nodes, other=0)
    row_counts = rows < nodes
    column_counts = columns < nodes
    if IGNORES:
        row_counts = row_counts & (row_labels != ignored)
        column_counts = column_counts & (column_labels != ignored)
    counted = row_counts[:, None] & column_counts[None, :]
    if KEEPS_DIAGONAL:
        # The distance of a node to itself is 0 also after rounding; NaN stays NaN.
        affinities = tl.where(diagonal & (affinities == affinities), 0.0, affinities)
    else:
        counted = counted & (rows[:, None] != columns[None, :])
    same = row_labels[:, None] == column_labels[None, :]
    return affinities, counted & same, counted & (row_labels[:, None] != column_labels[None, :])


@triton.jit
def _centered(features, nodes, dimensions, first, rows, columns, CHANNELS: tl.constexpr):
    """Some channels of the features of `rows` and of all nodes, minus their mean: it changes no distance."""
    channels = first + tl.arange(0, CHANNELS)
    inside = (columns < nodes)[:, None] & (channels < dimensions)[None, :]
    of_columns = tl.load(features + columns[:, None] * dimensions + channels[None, :], mask=inside, other=0.0)
    mean = tl.sum(of_columns, 0) / nodes
    of_columns = tl.where(inside, of_columns - mean[None, :], 0.0)
    inside_rows = (rows < nodes)[:, None] & (channels < dimensions)[None, :]
    of_rows = tl.load(features + rows[:, None] * dimensions + channels[None, :], mask=inside_rows, other=0.0)
    return tl.where(inside_rows, of_rows - mean[None, :], 0.0), of_columns


@triton.jit
def _peak_and_sum(affinities, part):
    """Maximum of each row over the entries of `part`, and their exponentials summed; -inf and 0 if there are none."""
    peak = tl.max(tl.where(part, affinities, float("-inf")), 1)
    return peak, tl.sum(tl.where(part, tl.exp(affinities - peak[:, None]), 0.0), 1)


@triton.jit
def _merged(peaks, sums):
    """The same numbers over all rows."""
    peak = tl.max(peaks, 0)
    return peak, tl.sum(tl.where(sums != 0, sums * tl.exp(peaks - peak), 0.0), 0)


@triton.jit
def _load_statistics(statistics, nodes, rows):
    inside = rows < nodes
    return (
        tl.load(statistics + rows, mask=inside, other=float("-inf")),
        tl.load(statistics + nodes + rows, mask=inside, other=0.0),
        tl.load(statistics + 2 * nodes + rows, mask=inside, other=float("-inf")),
        tl.load(statistics + 3 * nodes + rows, mask=inside, other=0.0),
    )


@triton.jit
def _log_odds(target_peak, target_sum, rest_peak, rest_sum):
    """Log-odds of M; inf without a rest, and of no use without a target. A sum that is NaN is not 0: NaN stays NaN."""
    value = (target_peak - rest_peak) + (tl.log(target_sum) - tl.log(rest_sum))
    return tl.where((target_sum != 0) & (rest_sum != 0), value, float("inf"))


@triton.jit
def _share(affinities, part, peak, total):
    """Softmax over the entries of `part`."""
    return tl.where(part, tl.exp(affinities - peak) / total, 0.0)


@triton.jit
def _form(log_odds, gamma, FORM: tl.constexpr):
    """Loss of M and its slope by the log-odds, as in `affsup_cli.affinity.forms`."""
    complement = _sigmoid(-log_odds)
    if FORM == "log":
        loss = _softplus(-log_odds)
        slope = -complement
    elif FORM == "focal":
        negative_log = _softplus(-log_odds)
        power = tl.exp(-gamma * _softplus(log_odds))
        loss = power * negative_log
        slope = -power * (complement + gamma * _sigmoid(log_odds) * negative_log)
    elif FORM == "l2":
        loss = complement * complement
        slope = 2 * complement * complement * (complement - 1)
    else:
        tl.static_assert(FORM == "smooth_l1")
        loss = tl.where(complement < 0.5, complement * complement, complement - 0.25)
        slope = tl.where(complement < 0.5, 2 * complement, 1.0) * complement * (complement - 1)
    return loss, slope


@triton.jit
def _sigmoid(x):
    small = tl.exp(-tl.abs(x))
    return tl.where(x < 0, small, 1.0) / (1 + small)


@triton.jit
def _softplus(x):
    """`log(1 + e^x)`."""
    small = tl.exp(-tl.abs(x))
    above_one = 1 + small
    # The logarithm of 1 + small alone would lose the digits of `small` that the sum rounds away.
    log1p = tl.where(above_one == 1, small, tl.log(above_one) * (small / (above_one - 1)))
    return tl.maximum(x, 0.0) + log1p
