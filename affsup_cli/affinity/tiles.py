"""Log-odds of M (eq. 3, 12) without the N x N matrix: from features, in tiles of rows, in memory linear in N.

Affinities are a product, `W = queries @ keys.T`. The sums of exp(W) over the target and over the rest are kept as
`total * exp(peak)` and rescaled when a larger affinity is found (online softmax). With `E = exp(W - peak)` over one
part, the gradient of its log-sum-exp is `E @ keys / total` for the queries and `E.T @ queries / total` for the keys, so
that a matrix softmax needs one pass for value and gradient. A row softmax recomputes its tiles in the backward pass.

A target is an integer tensor: `[N]`, the category of each entity in ascending order (blocks along the diagonal); or
`[E, 2]`, (row, column) of each edge.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from affsup_cli.affinity.precision import without_autocast, without_tf32

# Affinities in a tile: few enough for a CPU's cache, enough to occupy a GPU.
_CPU_TILE, _GPU_TILE = 2**20, 2**25
_FEWEST_ROWS = 64


class Product(NamedTuple):
    """Affinities `queries @ keys.T` of one graph: `[N, d]` and `[K, d]`, float32 or float64.

    `symmetric`: W is symmetric, and the gradient of queries and keys is returned for the queries alone.
    `diagonal`: the value of W on it, "product" or "zero"; or "absent", neither in the target nor in the rest.
    """

    queries: Tensor
    keys: Tensor
    symmetric: bool
    diagonal: str


def tile_rows(columns: int, device: torch.device) -> int:
    """The default number of rows of a tile."""
    return max((_CPU_TILE if device.type == "cpu" else _GPU_TILE) // max(columns, 1), _FEWEST_ROWS)


def matrix_log_odds(product: Product, target: Tensor, tile: int) -> Tensor:
    """`log M - log(1 - M)` of the whole matrix, a scalar: -inf without a target, inf with a full target."""
    gradient = torch.is_grad_enabled() and (product.queries.requires_grad or product.keys.requires_grad)
    log_odds: Tensor = _matrix_pass(*product, target, tile, gradient)[0]
    return log_odds


def row_log_odds(product: Product, target: Tensor, tile: int) -> tuple[Tensor, Tensor]:
    """The log-odds of each row, `[N]`; and of the whole matrix, a scalar without gradient."""
    log_odds, peaks, totals = _row_pass(product.queries, product.keys, product.diagonal, target, tile)
    # The sums of the rows are added relative to the largest of their peaks.
    peak = peaks.amax(dim=1) if peaks.shape[1] else peaks.sum(dim=1) - torch.inf
    total = (totals * (peaks - _finite(peak).unsqueeze(1)).exp()).sum(dim=1)
    return log_odds, _log_odds(peak, total)


class _Edges:
    """An edge list without duplicates, sorted by row, for access tile by tile."""

    def __init__(self, product: Product, edges: Tensor, tile: int) -> None:
        queries, keys, symmetric, _ = product
        sources, ends = edges.unbind(1)
        if bool(((edges < 0) | (edges >= edges.new_tensor([queries.shape[0], keys.shape[0]]))).any()):
            raise ValueError(
                f"edges must lie within the graph of {queries.shape[0]} x {keys.shape[0]}, "
                f"found indices from {int(edges.min())} to {int(edges.max())}"
            )
        codes = torch.unique(sources * keys.shape[0] + ends)
        share = codes.new_ones(codes.shape, dtype=queries.dtype)
        if symmetric:
            # With a symmetric W, an edge without its mirror image is half in the target and half in the rest.
            mirrored = codes % keys.shape[0] * keys.shape[0] + codes // keys.shape[0]
            codes, count = torch.unique(torch.cat([codes, mirrored]), return_counts=True)
            share = count.to(queries.dtype) / 2
        self._rows, self._columns = codes // keys.shape[0], codes % keys.shape[0]
        self._in_target, self._in_rest = share.log(), (1 - share).log()
        starts = torch.arange(0, queries.shape[0] + tile, tile, device=edges.device)
        self._bounds: list[int] = torch.searchsorted(self._rows, starts).tolist()
        self._tile = tile

    def extract(self, logits: Tensor, start: int, first: int) -> _Sparse:
        """Return the target's entries of a tile and remove them from `logits`, which keep the rest."""
        index = start // self._tile
        span = slice(self._bounds[index], self._bounds[index + 1])
        rows, columns = self._rows[span] - start, self._columns[span] - first
        in_target, in_rest = self._in_target[span], self._in_rest[span]
        if first:
            kept = columns >= 0
            rows, columns, in_target, in_rest = rows[kept], columns[kept], in_target[kept], in_rest[kept]
        values = logits[rows, columns]
        logits[rows, columns] = values + in_rest
        return _Sparse(rows, columns, values + in_target)


class _Sparse(NamedTuple):
    """Entries of a tile: rows and columns within it, and their logits."""

    rows: Tensor
    columns: Tensor
    logits: Tensor


class _Block(NamedTuple):
    """Columns of a tile from column `first` of the tile on; logits are -inf outside the target."""

    first: int
    logits: Tensor


class _Tile(NamedTuple):
    """Rows from `start` on, columns from `first` on: logits of the rest (-inf elsewhere), and the target's entries."""

    start: int
    first: int
    rest: Tensor
    target: _Block | _Sparse


def _tiles(product: Product, target: Tensor, tile: int) -> Iterator[_Tile]:
    """Yield the matrix in tiles of rows; of a symmetric one, the upper triangle. Tiles share one buffer."""
    queries, keys, symmetric, diagonal = product
    rows, columns = queries.shape[0], keys.shape[0]
    edges = _Edges(product, target, tile) if target.dim() == 2 else None
    memory = queries.new_empty(min(tile, rows) * columns)
    for start in range(0, rows, tile):
        stop, first = min(start + tile, rows), start if symmetric else 0
        out = memory[: (stop - start) * (columns - first)].view(stop - start, columns - first)
        logits = torch.mm(queries[start:stop], keys[first:].mT, out=out)
        if diagonal != "product":
            logits.diagonal(start - first).fill_(0.0 if diagonal == "zero" else -torch.inf)
        if edges:
            yield _Tile(start, first, logits, edges.extract(logits, start, first))
            continue
        low, high = _same_category(target, start, stop)
        low = max(low, first)
        window = logits[:, low - first : high - first]
        same = target[start:stop].unsqueeze(1) == target[low:high]
        inside = window.masked_fill(~same, -torch.inf)
        window.masked_fill_(same, -torch.inf)
        yield _Tile(start, first, logits, _Block(low - first, inside))


def _same_category(categories: Tensor, start: int, stop: int) -> tuple[int, int]:
    """The range of columns with the categories of these rows; all columns on a GPU, to avoid a synchronisation."""
    if not categories.is_cpu:
        return 0, categories.shape[0]
    low = torch.searchsorted(categories, categories[start])
    return int(low), int(torch.searchsorted(categories, categories[stop - 1], right=True))


class _Sum:
    """`sum(exp(W))` of one part of the matrix, as `total * exp(peak)`, and the sums for its gradient."""

    def __init__(self, product: Product, gradient: bool) -> None:
        queries, keys, self._symmetric, _ = self._product = product
        self.peak = queries.new_full((), -torch.inf)
        self._totals = queries.new_zeros(queries.shape[0])
        self._by_query = torch.zeros_like(queries) if gradient else None
        self._by_key = torch.zeros_like(keys) if gradient and not product.symmetric else None

    def add(self, logits: Tensor, start: int, first: int) -> None:
        """Add a tile's columns from `first` (of the matrix) on; the logits are overwritten."""
        stop, last = start + logits.shape[0], first + logits.shape[1]
        weights = self._weights(logits)
        mirrored_weights = weights[:, max(stop - first, 0) :] if self._symmetric else None
        self._totals[start:stop] += weights.sum(dim=1)
        if mirrored_weights is not None:
            self._totals[start:stop] += mirrored_weights.sum(dim=1)
        if self._product.diagonal == "zero":
            _without_diagonal(weights, start - first)
        if self._by_query is not None:
            keys = self._product.keys
            self._by_query[start:stop].addmm_(weights, keys[first:last])
            if mirrored_weights is not None:
                self._by_query[last - mirrored_weights.shape[1] : last].addmm_(mirrored_weights.mT, keys[start:stop])
        if self._by_key is not None:
            self._by_key[first:last].addmm_(weights.mT, self._product.queries[start:stop])

    def add_sparse(self, sparse: _Sparse, start: int, stop: int, first: int) -> None:
        """Add entries of a tile whose rows are `start` to `stop`; their logits are overwritten."""
        weights = self._weights(sparse.logits)
        rows, columns = sparse.rows + start, sparse.columns + first
        self._totals.index_add_(0, rows, weights)
        # The columns beyond the tile's own rows stand for both triangles of a symmetric matrix.
        mirrored_weights = weights * (columns >= stop)
        if self._symmetric:
            self._totals.index_add_(0, rows, mirrored_weights)
        if self._by_query is not None:
            queries, keys = self._product.queries, self._product.keys
            if self._product.diagonal == "zero":
                weights = weights * (rows != columns)
            _add_edges(self._by_query, rows, columns, weights, keys)
            if self._symmetric:
                _add_edges(self._by_query, columns, rows, mirrored_weights, keys)
            if self._by_key is not None:
                _add_edges(self._by_key, columns, rows, weights, queries)

    def total(self) -> Tensor:
        """The sum relative to `exp(peak)`."""
        return self._totals.sum()

    def gradients(self) -> list[Tensor]:
        """Gradients of the log-sum-exp for queries and keys, 0 for an empty part."""
        share = (1 + self._symmetric) / self.total().masked_fill(self.peak == -torch.inf, 1)
        return [part.mul_(share) for part in (self._by_query, self._by_key) if part is not None]

    def _weights(self, logits: Tensor) -> Tensor:
        """Turn logits into `exp(W - peak)` in place; first update the peak and rescale the sums so far."""
        if not logits.numel():
            return logits
        peak = torch.maximum(self.peak, logits.amax())
        finite = _finite(peak)
        shrink = (self.peak - finite).exp()
        self.peak = peak
        # The peak seldom changes; the test would synchronise a GPU.
        if not (logits.is_cpu and shrink.item() == 1):
            for part in (self._totals, self._by_query, self._by_key):
                if part is not None:
                    part.mul_(shrink)
        return logits.sub_(finite).exp_()


def _without_diagonal(weights: Tensor, offset: int) -> None:
    """Remove the constant diagonal from a gradient exactly: its terms would cancel only up to rounding."""
    weights.diagonal(offset).zero_()


def _add_edges(out: Tensor, rows: Tensor, columns: Tensor, weights: Tensor, values: Tensor) -> None:
    """`out[r] += w * values[c]` for each edge, in pieces as large as `values`."""
    size = max(len(values), 1)
    for piece in range(0, len(rows), size):
        span = slice(piece, piece + size)
        out.index_add_(0, rows[span], weights[span].unsqueeze(1) * values[columns[span]])


def _finite(peaks: Tensor) -> Tensor:
    """Peaks with 0 in place of -inf, the peak of an empty part."""
    return peaks.masked_fill(peaks == -torch.inf, 0)


def _log_odds(peaks: Tensor, totals: Tensor) -> Tensor:
    """Log-odds from peaks and sums of target and rest, `[2, ...]`."""
    empty = peaks == -torch.inf
    logs = totals.masked_fill(empty, 1).log()
    # The peaks are subtracted first: beside a peak of thousands, the logs would be rounded away.
    return ((peaks[0] - peaks[1]) + (logs[0] - logs[1])).masked_fill(empty[0], -torch.inf)


@torch.library.custom_op("affsup::matrix_pass", mutates_args=())
def _matrix_pass(
    queries: Tensor, keys: Tensor, symmetric: bool, diagonal: str, target: Tensor, tile: int, gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-odds, and their gradients for queries and keys; a custom operator, opaque to torch.compile."""
    product = Product(queries, keys, symmetric, diagonal)
    inside, outside = _Sum(product, gradient), _Sum(product, gradient)
    for start, first, rest, sparse in _tiles(product, target, tile):
        if isinstance(sparse, _Block):
            inside.add(sparse.logits, start, first + sparse.first)
        else:
            inside.add_sparse(sparse, start, start + rest.shape[0], first)
        outside.add(rest, start, first)
    log_odds = _log_odds(torch.stack([inside.peak, outside.peak]), torch.stack([inside.total(), outside.total()]))
    gradients = [a.sub_(b) for a, b in zip(inside.gradients(), outside.gradients(), strict=True)]
    gradients += [queries.new_empty(0) for _ in range(2 - len(gradients))]
    return log_odds, gradients[0], gradients[1]


@_matrix_pass.register_fake
def _(
    queries: Tensor, keys: Tensor, symmetric: bool, diagonal: str, target: Tensor, tile: int, gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    empty = queries.new_empty(0)
    by_query = torch.empty_like(queries) if gradient else empty
    by_key = torch.empty_like(keys) if gradient and not symmetric else queries.new_empty(0)
    return queries.new_empty(()), by_query, by_key


@torch.library.custom_op("affsup::matrix_gradient", mutates_args=())
def _matrix_gradient(weight: Tensor, gradient: Tensor) -> Tensor:
    """`weight * gradient`; a custom operator, so that second derivatives raise an error."""
    return weight * gradient


@_matrix_gradient.register_fake
def _(weight: Tensor, gradient: Tensor) -> Tensor:
    return torch.empty_like(gradient)


@torch.library.custom_op("affsup::row_pass", mutates_args=())
def _row_pass(queries: Tensor, keys: Tensor, diagonal: str, target: Tensor, tile: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-odds of each row; peaks and totals of target and rest, `[2, N]`."""
    rows = queries.shape[0]
    peaks, totals = queries.new_full((2, rows), -torch.inf), queries.new_zeros(2, rows)
    for start, _, rest, sparse in _tiles(Product(queries, keys, False, diagonal), target, tile):
        span = slice(start, start + rest.shape[0])
        if isinstance(sparse, _Block):
            _sum_rows(sparse.logits, peaks[0, span], totals[0, span])
        else:
            peaks[0, span] = peaks[0, span].scatter_reduce(0, sparse.rows, sparse.logits, "amax")
            weights = (sparse.logits - _finite(peaks[0, span])[sparse.rows]).exp()
            totals[0, span] = totals[0, span].index_add(0, sparse.rows, weights)
        _sum_rows(rest, peaks[1, span], totals[1, span])
    return _log_odds(peaks, totals), peaks, totals


def _sum_rows(logits: Tensor, peaks: Tensor, totals: Tensor) -> None:
    if logits.shape[1]:
        peaks.copy_(logits.amax(dim=1))
        totals.copy_(logits.sub_(_finite(peaks).unsqueeze(1)).exp_().sum(dim=1))


@_row_pass.register_fake
def _(queries: Tensor, keys: Tensor, diagonal: str, target: Tensor, tile: int) -> tuple[Tensor, Tensor, Tensor]:
    rows = queries.shape[0]
    return queries.new_empty(rows), queries.new_empty(2, rows), queries.new_empty(2, rows)


@torch.library.custom_op("affsup::row_gradient", mutates_args=())
def _row_gradient(
    weight: Tensor,
    peaks: Tensor,
    totals: Tensor,
    queries: Tensor,
    keys: Tensor,
    diagonal: str,
    target: Tensor,
    tile: int,
) -> tuple[Tensor, Tensor]:
    """Gradients for queries and keys of the `weight`ed sum of the rows' log-odds."""
    # The backward pass may run under autocast although the forward pass did not.
    with without_autocast(queries), without_tf32(queries):
        by_query, by_key = torch.zeros_like(queries), torch.zeros_like(keys)
        empty = peaks == -torch.inf
        finite, share = _finite(peaks), weight / totals.masked_fill(empty, 1)
        for start, _, rest, sparse in _tiles(Product(queries, keys, False, diagonal), target, tile):
            span = slice(start, start + rest.shape[0])
            weights = rest.sub_(finite[1, span].unsqueeze(1)).exp_().mul_(-share[1, span].unsqueeze(1))
            if isinstance(sparse, _Block):
                inside = sparse.logits.sub_(finite[0, span].unsqueeze(1)).exp_().mul_(share[0, span].unsqueeze(1))
                weights[:, sparse.first : sparse.first + inside.shape[1]] += inside
            else:
                inside = (sparse.logits - finite[0, span][sparse.rows]).exp() * share[0, span][sparse.rows]
                weights[sparse.rows, sparse.columns] = inside
            if diagonal == "zero":
                _without_diagonal(weights, start)
            by_query[span] = weights @ keys
            by_key.addmm_(weights.mT, queries[span])
        return by_query, by_key


@_row_gradient.register_fake
def _(
    weight: Tensor,
    peaks: Tensor,
    totals: Tensor,
    queries: Tensor,
    keys: Tensor,
    diagonal: str,
    target: Tensor,
    tile: int,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(queries), torch.empty_like(keys)


def _save_matrix_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.symmetric = inputs[2]


def _matrix_backward(ctx: Any, weight: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    by_query, by_key = ctx.saved_tensors
    by_key = None if ctx.symmetric else _matrix_gradient(weight, by_key)
    return _matrix_gradient(weight, by_query), by_key, None, None, None, None, None


def _save_rows(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    queries, keys, ctx.diagonal, target, ctx.tile = inputs
    ctx.save_for_backward(*output[1:], queries, keys, target)
    ctx.mark_non_differentiable(*output[1:])


def _row_backward(ctx: Any, weight: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    *sums, queries, keys, target = ctx.saved_tensors
    by_query, by_key = _row_gradient(weight, *sums, queries, keys, ctx.diagonal, target, ctx.tile)
    return by_query, by_key, None, None, None


def _no_second_derivative(ctx: Any, *_: Tensor) -> None:
    raise RuntimeError("a loss in tiles has no second derivative: use affinity_loss of the whole matrix")


_matrix_pass.register_autograd(_matrix_backward, setup_context=_save_matrix_gradients)
_row_pass.register_autograd(_row_backward, setup_context=_save_rows)
_matrix_gradient.register_autograd(_no_second_derivative)
_row_gradient.register_autograd(_no_second_derivative)
