"""L_G, M and the gradient of L_G in closed form, from one pass over the graph.

The numbers are those of autograd on `affsup_cli.affinity.loss`, with fewer operators: on a GPU the graph of a
mini-batch is so small that the number of kernels decides its time. With d the log-odds of M, P_T and P_R the softmax
over the entries in the target and over the others, the gradient is `dL/dW = dL/dd (P_T - P_R)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from affsup_cli.affinity.forms import FORMS
from affsup_cli.affinity.options import LossOptions
from affsup_cli.affinity.precision import without_tf32


class LossAndMass(NamedTuple):
    """The loss, and M of each graph's whole matrix (eq. 3) without gradient, also with a softmax of each row."""

    loss: Tensor
    mass: Tensor


class MassLoss(torch.autograd.Function):
    """L_G of every form that has a softmax, with M; see `affsup_cli.affinity.loss.affinity_loss`.

    Inputs are logits `[..., N, K]`, float32 or float64, and a bool target and None or a bool mask of that shape; the
    outputs are those of `LossAndMass`. The gradient can be differentiated again: autograd then differentiates
    `reference`, a function of the logits.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        mask: Tensor | None,
        options: LossOptions,
        reference: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Compute loss and M, and the gradient where the logits require one."""
        loss, mass, gradient = _loss_and_mass(logits, target, mask, options, ctx.needs_input_grad[0])
        if gradient is not None:
            ctx.save_for_backward(logits, gradient)
            ctx.reference = reference
        ctx.mark_non_differentiable(mass)
        ctx.set_materialize_grads(False)
        return loss, mass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """Scale the stored gradient; for a second derivative, differentiate `reference` by autograd."""
        return _scaled_gradient(ctx, gradients[0]), None, None, None, None


class L2MassLoss(torch.autograd.Function):
    """`MassLoss` of `W[m, n] = -||f_m - f_n||^2 / 2` (eq. 11), with the gradient of the features `[N, d]`.

    `reference` is a function of the features. The reduction is "mean".
    """

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        target: Tensor,
        mask: Tensor | None,
        options: LossOptions,
        reference: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Compute loss and M, and the gradient where the features require one."""
        centered = features - features.mean(dim=0)
        with without_tf32(centered):
            gram = centered @ centered.mT
            squared_norms = gram.diagonal()
            logits = gram.sub_(squared_norms.unsqueeze(1) + squared_norms, alpha=0.5)
            loss, mass, gradient = _loss_and_mass(logits, target, mask, options, ctx.needs_input_grad[0])
            if gradient is not None:
                ctx.save_for_backward(features, _l2_gradient(gradient, centered))
                ctx.reference = reference
        ctx.mark_non_differentiable(mass)
        ctx.set_materialize_grads(False)
        return loss, mass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """Scale the stored gradient; for a second derivative, differentiate `reference` by autograd."""
        return _scaled_gradient(ctx, gradients[0]), None, None, None, None


class L2MassKernel(torch.autograd.Function):
    """`L2MassLoss` of class ids on a GPU: two Triton kernels in place of some 25 operators.

    Inputs are float32 features `[N, d]` and integer class ids `[N]`; entries of the label `ignore_index` are left out.
    """

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        labels: Tensor,
        ignore_index: int | None,
        options: LossOptions,
        reference: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Compute loss and M, and the gradient where the features require one."""
        from affsup_cli.affinity.l2_kernel import loss_mass_gradient  # imports Triton

        loss, mass, gradient = loss_mass_gradient(features, labels, ignore_index, options, ctx.needs_input_grad[0])
        if gradient is not None:
            ctx.save_for_backward(features, gradient)
            ctx.reference = reference
        ctx.mark_non_differentiable(mass)
        ctx.set_materialize_grads(False)
        return loss, mass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """Scale the stored gradient; for a second derivative, differentiate `reference` by autograd."""
        return _scaled_gradient(ctx, gradients[0]), None, None, None, None


class L2Affinity(torch.autograd.Function):
    """`W[m, n] = -||f_m - f_n||^2 / 2` of features `[..., N, d]`; see `affsup_cli.affinity.graph.l2_affinity`."""

    @staticmethod
    def forward(ctx: FunctionCtx, features: Tensor) -> Tensor:
        """Compute W `[..., N, N]`."""
        # A common offset changes no distance, but its square would cost precision.
        centered = features - features.mean(dim=-2, keepdim=True)
        with without_tf32(features):
            halves = (centered / 2) @ centered.mT
        # Matrix products are not bit-symmetric on every device.
        gram = halves + halves.mT
        # Norms from the same product cancel exactly on the diagonal.
        squared_norms = gram.diagonal(dim1=-2, dim2=-1)
        affinity = torch.sub(gram, squared_norms.unsqueeze(-1) + squared_norms.unsqueeze(-2), alpha=0.5).clamp_(max=0)
        ctx.save_for_backward(features, centered, affinity)
        return affinity

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Return the gradient of the features."""
        features, centered, affinity = ctx.saved_tensors
        if torch.is_grad_enabled():
            centered = features - features.detach().mean(dim=-2, keepdim=True)
        # Where two features coincide, W is at its maximum.
        with without_tf32(features):
            return _l2_gradient(gradients[0].masked_fill(affinity >= 0, 0), centered)


def detached_without_grad(tensor: Tensor) -> Tensor:
    """Return `tensor`, detached if grad mode is off: a Function does not see the mode and would compute a gradient."""
    return tensor if torch.is_grad_enabled() else tensor.detach()


def _l2_gradient(gradient: Tensor, features: Tensor) -> Tensor:
    """Return `dL/df = B f - diag(B 1) f`, where B is dL/dW plus its transpose."""
    symmetric = gradient + gradient.mT
    return torch.addcmul(symmetric @ features, symmetric.sum(-1, keepdim=True), features, value=-1)


def _scaled_gradient(ctx: Any, loss_gradient: Tensor | None) -> Tensor | None:
    if loss_gradient is None:
        return None
    inputs, gradient = ctx.saved_tensors
    if torch.is_grad_enabled():
        loss = ctx.reference(inputs)
        differentiable: Tensor = torch.autograd.grad(loss, inputs, loss_gradient, create_graph=True)[0]
        return differentiable
    scale = loss_gradient.view(*loss_gradient.shape, *[1] * (gradient.dim() - loss_gradient.dim()))
    scaled: Tensor = gradient * scale
    return scaled


def _loss_and_mass(
    logits: Tensor, target: Tensor, mask: Tensor | None, options: LossOptions, needs_gradient: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the loss, M and dL/dW (with a reduction of "none": of the sum of the losses)."""
    lowest = torch.finfo(logits.dtype).min  # not -inf: the softmax of an empty part must be finite
    outside = torch.stack((~target, target))
    if mask is not None:
        outside |= ~mask
    parts = logits.masked_fill(outside, lowest)
    if options.diagonal == "exclude":
        parts.diagonal(dim1=-2, dim2=-1).fill_(lowest)
    flat = parts.flatten(-2) if options.softmax == "matrix" else parts
    log_shares = flat.log_softmax(-1)
    if flat.shape[-1]:
        peak, top = flat.amax(-1), log_shares.amax(-1)  # the log-sum-exp is peak - top
    else:
        peak, top = flat.new_full(flat.shape[:-1], lowest), flat.new_zeros(flat.shape[:-1])
    empty = peak[0] == lowest  # without a target
    # The peaks are subtracted first: beside a peak of thousands, the logs would be rounded away.
    log_odds = (peak[0] - peak[1]) - (top[0] - top[1])
    losses, slopes = FORMS[options.form](log_odds.masked_fill(empty, torch.inf), options.gamma)  # 0 and 0 where empty
    if options.softmax == "row":
        log_sums = (peak - top).logsumexp(-1)
        mass = (log_sums[0] - log_sums[1]).masked_fill(empty.all(-1), -torch.inf).sigmoid()
    else:
        mass = log_odds.masked_fill(empty, -torch.inf).sigmoid()
    loss, weight = reduced(losses, empty, options)
    if not needs_gradient:
        return loss, mass, None
    shares = log_shares.exp_()
    if weight is not None:
        slopes = slopes * weight
    gradient = shares[0].sub_(shares[1]).mul_(slopes.unsqueeze(-1))
    return loss, mass, gradient.view_as(logits)


def reduced(losses: Tensor, empty: Tensor, options: LossOptions) -> tuple[Tensor, Tensor | None]:
    """Reduce the losses of graphs, or of rows, as `options` say.

    Args:
        losses: `[...]` of graphs or `[..., N]` of rows, 0 where `empty`.
        empty: bool, of that shape: without a target.
        options: of the loss.

    Returns:
        The loss, and the weight of each of the losses in it; None for 1.
    """
    if options.reduction == "none":
        return losses, None
    weight = None
    if options.softmax == "row" and options.form != "bce":
        if options.row_average:
            weight = (~empty).sum(-1, keepdim=True).clamp(min=1).reciprocal()
            losses = losses * weight
        losses, empty = losses.sum(-1), empty.all(-1)
    if not losses.dim():
        return losses, weight
    counted = torch.ones_like(empty) if options.average == "batch" else ~empty
    graphs = counted.sum().clamp(min=1)
    return losses.sum() / graphs, graphs.reciprocal() if weight is None else weight / graphs
