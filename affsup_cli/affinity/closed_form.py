"""L_G, M and the gradient of L_G in closed form, from one pass over the graph.

The numbers are those of autograd on `affsup_cli.affinity.loss`, with fewer operators: on a GPU the graph of a
mini-batch is so small that the number of kernels decides its time. With d the log-odds of M, P_T and P_R the softmax
over the entries in the target and over the others, the gradient is `dL/dW = dL/dd (P_T - P_R)`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from affsup_cli.affinity.forms import FORMS
from affsup_cli.affinity.options import DiagonalKind, SoftmaxKind


class LossAndMass(NamedTuple):
    """A scalar loss, and M of each graph's whole matrix (eq. 3) without gradient, also with a softmax of each row."""

    loss: Tensor
    mass: Tensor


class MassLoss(torch.autograd.Function):
    """L_G of every form that has a softmax, with M; see `affsup_cli.affinity.loss.affinity_loss`.

    Inputs are logits `[..., N, M]`, float32 or float64, and a bool target of that shape; the outputs are those of
    `LossAndMass`. The gradient can be differentiated again: autograd then differentiates `reference`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        form: str,
        gamma: float,
        softmax: SoftmaxKind,
        diagonal: DiagonalKind,
        reference: Any,
    ) -> tuple[Tensor, Tensor]:
        """Compute loss and M, and the gradient where the logits require one."""
        # `where` would turn the scalar into a tensor: one more kernel.
        parts = torch.stack((logits.masked_fill(~target, -torch.inf), logits.masked_fill(target, -torch.inf)))
        if diagonal == "exclude":
            parts.diagonal(dim1=-2, dim2=-1).fill_(-torch.inf)
        flat = parts.flatten(-2) if softmax == "matrix" else parts
        # An empty dimension has no maximum. A part without entries has the sum 0, and its peak must be finite.
        peak = (flat.amax(-1) if flat.shape[-1] else flat.sum(-1)).clamp(min=torch.finfo(logits.dtype).min)
        weights = (flat - peak.unsqueeze(-1)).exp_()
        total = weights.sum(-1)
        log_total = total.log()
        empty = total[0] == 0  # a graph without a target; false for NaN
        # The peaks are subtracted first: beside a peak of thousands, the logs would be rounded away.
        log_odds = (peak[0] - peak[1]) + (log_total[0] - log_total[1])
        log_odds = log_odds.masked_fill_(empty, -torch.inf)
        losses, slopes = FORMS[form](log_odds, gamma)
        losses = losses.masked_fill(empty, 0)
        empty_graphs, whole = empty, log_odds
        if softmax == "row":
            losses, empty_graphs = losses.sum(-1), empty.all(-1)
            log_sums = (peak + log_total).logsumexp(-1)
            whole = (log_sums[0] - log_sums[1]).masked_fill_(empty_graphs, -torch.inf)
        loss = losses
        if losses.dim():
            count = (~empty_graphs).sum().clamp(min=1)
            loss = losses.sum() / count
        if ctx.needs_input_grad[0]:
            slopes = slopes.masked_fill(empty, 0)
            if losses.dim():
                slopes = slopes / count
            factors = (slopes / total.clamp(min=1)).unsqueeze(-1)  # a sum is 0 or at least 1
            gradient = torch.addcmul(weights[0] * factors[0], weights[1], factors[1], value=-1)
            ctx.save_for_backward(logits, target, gradient.view_as(logits))
            ctx.reference = reference
        mass = torch.sigmoid(whole)
        ctx.mark_non_differentiable(mass)
        ctx.set_materialize_grads(False)
        return loss, mass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """Scale the stored gradient; for a second derivative, differentiate `reference` by autograd."""
        no_gradients = (None,) * 6
        loss_gradient = gradients[0]
        if loss_gradient is None:
            return None, *no_gradients
        logits, target, gradient = ctx.saved_tensors
        if torch.is_grad_enabled():
            (differentiable,) = torch.autograd.grad(
                ctx.reference(logits, target), logits, loss_gradient, create_graph=True
            )
            return differentiable, *no_gradients
        return gradient * loss_gradient, *no_gradients


class L2Affinity(torch.autograd.Function):
    """`W[m, n] = -||f_m - f_n||^2 / 2` of features `[..., N, d]`; see `affsup_cli.affinity.graph.l2_affinity`."""

    @staticmethod
    def forward(ctx: FunctionCtx, features: Tensor) -> Tensor:
        """Compute W `[..., N, N]`."""
        affinity, centered = _l2(features)
        ctx.save_for_backward(features, centered, affinity)
        return affinity

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Return `dL/df = B f - diag(B 1) f`, where B is dL/dW plus its transpose."""
        features, centered, affinity = ctx.saved_tensors
        if torch.is_grad_enabled():
            centered = features - features.detach().mean(dim=-2, keepdim=True)
        # Where two features coincide, W is at its maximum.
        weights = gradients[0].masked_fill(affinity >= 0, 0)
        symmetric = weights + weights.mT
        return torch.addcmul(symmetric @ centered, symmetric.sum(-1, keepdim=True), centered, value=-1)


def _l2(features: Tensor) -> tuple[Tensor, Tensor]:
    # A common offset changes no distance, but its square would cost precision.
    centered = features - features.mean(dim=-2, keepdim=True)
    halves = (centered / 2) @ centered.mT
    # Matrix products are not bit-symmetric on every device.
    gram = halves + halves.mT
    # Norms from the same product cancel exactly on the diagonal.
    squared_norms = gram.diagonal(dim1=-2, dim2=-1)
    affinity = torch.sub(gram, squared_norms.unsqueeze(-1) + squared_norms.unsqueeze(-2), alpha=0.5)
    return affinity.clamp_(max=0), centered
