"""L_G and M of graphs whose N x N matrix is too large: exact, in tiles of rows, in memory linear in N."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from affsup_cli.affinity.closed_form import LossAndMass, reduced
from affsup_cli.affinity.loss import checked_options, mass_losses
from affsup_cli.affinity.mass import LogOdds
from affsup_cli.affinity.options import DiagonalKind, LossForm, LossOptions, SoftmaxKind
from affsup_cli.affinity.precision import at_least_float32, without_autocast, without_tf32
from affsup_cli.affinity.target import check_integer
from affsup_cli.affinity.tiles import Product, matrix_log_odds, row_log_odds, tile_rows


def l2_loss_and_mass(
    features: Tensor,
    *,
    labels: Tensor | None = None,
    edges: Tensor | None = None,
    form: LossForm = "focal",
    gamma: float = 2.0,
    softmax: SoftmaxKind = "matrix",
    diagonal: DiagonalKind = "keep",
    temperature: float = 1.0,
    tile: int | None = None,
    row_average: bool = False,
) -> LossAndMass:
    """Loss and M of `l2_affinity(features) / temperature` (eq. 11) without the whole matrix.

    The numbers are those of `affinity_loss` and `target_mass` up to rounding. The target is either the pairs with equal
    `labels` or the `edges`. Memory holds `tile` rows of the matrix and a few copies of the features. There is no second
    derivative. In float32 the error of an affinity is about 1e-7 of the largest squared distance from the mean; use
    float64 for features that spread over thousands.

    Args:
        features: `[N, d]`, floating point; computed in float32 or wider with autocast off.
        labels: integer class ids `[N]`; the target of `same_category_target`.
        edges: integers `[E, 2]`, (row, column) of each entry of the target; duplicates count once. On CUDA
            the host reads the list once.
        form: "focal", "log", "l2" or "smooth_l1"; "bce" has no M, and no tiles.
        gamma: focal exponent, 0 or at least 1; other forms ignore it.
        softmax: over the whole matrix, or over the columns of each row.
        diagonal: "exclude" leaves the diagonal out of the target and of the softmax.
        temperature: positive number that the affinities are divided by.
        tile: rows at a time; by default as many as make a million affinities (more on a GPU), 64 at least.
        row_average: with `softmax="row"`, the mean over the rows with a target in place of their sum.

    Raises:
        TypeError: `features` are not floating point, `labels` or `edges` not integers.
        ValueError: the shapes do not fit, not exactly one target is given, an edge is out of range, or an option is
            refused.
    """
    if features.dim() != 2:
        raise ValueError(f"features must have the shape [N, d], found {list(features.shape)}")
    check_temperature(temperature)
    options = checked_options(form, gamma, softmax, diagonal, row_average=row_average)
    with without_autocast(features), without_tf32(features):
        features = at_least_float32("features", features)
        # A common offset changes no distance, but its square would cost precision.
        features = (features - features.detach().mean(dim=0)) / temperature**0.5
        ones = torch.ones_like(features[:, :1])
        halves = -features.square().sum(dim=1, keepdim=True) / 2
        # -|a - b|^2 / 2 = a.b - |a|^2 / 2 - |b|^2 / 2, as one product.
        queries, keys = torch.cat([features, halves, ones], dim=1), torch.cat([features, ones, halves], dim=1)
        symmetric = softmax == "matrix"
        product = Product(
            queries, keys.detach() if symmetric else keys, symmetric, "zero" if diagonal == "keep" else "absent"
        )
        return _loss_and_mass(product, labels, edges, options, tile)


def scaled_dot_loss_and_mass(
    queries: Tensor,
    keys: Tensor,
    *,
    labels: Tensor | None = None,
    edges: Tensor | None = None,
    form: LossForm = "focal",
    gamma: float = 2.0,
    softmax: SoftmaxKind = "matrix",
    diagonal: DiagonalKind = "keep",
    tile: int | None = None,
    row_average: bool = False,
) -> LossAndMass:
    """Loss and M of `scaled_dot_affinity(queries, keys)` (eq. 9) without the whole matrix.

    As `l2_loss_and_mass`. The product is computed in float32 or wider with autocast off.

    Args:
        queries: `[N, d]`.
        keys: `[K, d]`; N of them with `labels` and with `diagonal="exclude"`.
        labels: integer class ids `[N]`; the target of `same_category_target`.
        edges: integers `[E, 2]`, (row, column) of each entry of the target.
        form: "focal", "log", "l2" or "smooth_l1".
        gamma: focal exponent, 0 or at least 1; other forms ignore it.
        softmax: over the whole matrix, or over the columns of each row.
        diagonal: "exclude" leaves the diagonal out of the target and of the softmax.
        tile: rows at a time; by default as many as make a million affinities (more on a GPU), 64 at least.
        row_average: with `softmax="row"`, the mean over the rows with a target in place of their sum.

    Raises:
        TypeError: `queries` or `keys` are not floating point, `labels` or `edges` not integers.
        ValueError: the shapes do not fit, not exactly one target is given, an edge is out of range, or an option is
            refused.
    """
    if queries.dim() != 2 or keys.dim() != 2 or queries.shape[1] != keys.shape[1]:
        raise ValueError(
            f"queries [N, d] and keys [K, d] must share d, found {list(queries.shape)} and {list(keys.shape)}"
        )
    if diagonal == "exclude" and len(queries) != len(keys):
        raise ValueError(
            f'diagonal="exclude" needs a square graph, found {len(queries)} x {len(keys)}: use diagonal="keep"'
        )
    options = checked_options(form, gamma, softmax, diagonal, row_average=row_average)
    with without_autocast(queries), without_tf32(queries):
        queries, keys = at_least_float32("queries", queries), at_least_float32("keys", keys)
        product = Product(
            queries / math.sqrt(queries.shape[1]), keys, False, "product" if diagonal == "keep" else "absent"
        )
        return _loss_and_mass(product, labels, edges, options, tile)


def check_temperature(temperature: float) -> None:
    """Raise a ValueError unless `temperature` is positive and finite."""
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be a positive finite number, found {temperature}")


def check_tile(tile: int | None, form: str) -> None:
    """Raise a ValueError for a tile below 1 row, and for "bce", which has no tiles."""
    if form == "bce":
        raise ValueError('form "bce" is not computed in tiles: use affinity_loss, or another form')
    if tile is not None and tile < 1:
        raise ValueError(f"tile must be at least 1 row, found {tile}")


def _loss_and_mass(
    product: Product, labels: Tensor | None, edges: Tensor | None, options: LossOptions, tile: int | None
) -> LossAndMass:
    check_tile(tile, options.form)
    rows, columns = product.queries.shape[0], product.keys.shape[0]
    product, target = _with_target(product, labels, edges)
    tile = min(tile or tile_rows(columns, product.queries.device), max(rows, 1))
    if options.softmax == "matrix":
        log_odds = matrix_log_odds(product, target, tile)
        whole = log_odds.detach()
    else:
        log_odds, whole = row_log_odds(product, target, tile)
    supervised = log_odds != -torch.inf
    losses = mass_losses(LogOdds(log_odds, supervised), options.form, options.gamma)
    return LossAndMass(reduced(losses, ~supervised, options)[0], torch.sigmoid(whole))


def _with_target(product: Product, labels: Tensor | None, edges: Tensor | None) -> tuple[Product, Tensor]:
    """The product with its rows in the order of the target, and the target."""
    rows, columns = product.queries.shape[0], product.keys.shape[0]
    if labels is not None and edges is None:
        check_integer("labels", labels)
        if labels.shape != (rows,) or labels.shape != (columns,):
            raise ValueError(
                f"labels [N] need as many entities in the rows as in the columns, "
                f"found {list(labels.shape)} for a graph of {rows} x {columns}"
            )
        # Sorted by label, each category is a block of the matrix.
        labels, order = labels.sort()
        return product._replace(queries=product.queries[order], keys=product.keys[order]), labels
    if edges is not None and labels is None:
        check_integer("edges", edges)
        if edges.dim() != 2 or edges.shape[1] != 2:
            raise ValueError(
                f"edges must have the shape [E, 2] (row, column), found {list(edges.shape)}: "
                "an edge index [2, E] is edges.mT"
            )
        return product, edges.long()
    raise ValueError("the target must be either labels or edges, found " + ("neither" if labels is None else "both"))
