"""Affinity supervision of mini-batches (section 5), ready for a classifier's training loop."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from affsup_cli.affinity.closed_form import L2MassKernel, L2MassLoss, LossAndMass, detached_without_grad
from affsup_cli.affinity.gather import gather_rows, row_counts, world_size
from affsup_cli.affinity.graph import l2_affinity
from affsup_cli.affinity.large import check_temperature, check_tile, l2_loss_and_mass
from affsup_cli.affinity.loss import AffinityLoss, differentiable_loss, loss_and_mass
from affsup_cli.affinity.mass import check_mask
from affsup_cli.affinity.options import DiagonalKind, LossForm, ReductionKind, SoftmaxKind
from affsup_cli.affinity.precision import at_least_float32, without_autocast
from affsup_cli.affinity.target import check_integer
from affsup_cli.affinity.triton_support import why_not_triton

LARGEST_MATRIX = 1024
LARGEST_KERNEL = 256  # the features of so many nodes fit in the shared memory of any GPU
KERNEL_FORMS = ("focal", "log", "l2", "smooth_l1")  # a new form is computed by operators until the kernel has it, too


class BatchAffinityLoss(nn.Module):
    """Affinity supervision of mini-batches (section 5): pulls features of one class towards each other, eq. 11 and 7.

    Nodes are the entries of a batch, affinities their negative half squared distances, and the target is the pairs of
    the same category. Add it to any classifier's loss, weighted by lambda (eq. 8; the paper's is 0.1):

        affinity = BatchAffinityLoss(gamma=4.0)
        features = backbone(images)  # [N, d], for instance after global pooling
        loss = F.cross_entropy(classifier(features), labels) + 0.1 * affinity(features, labels)

    `loss_and_mass` returns M as well, for logging; `graph` returns the affinities and the target.

    With references, such as a memory of earlier batches, the rows of the graph are the features and its columns the
    references. `diagonal` then has no meaning: leave out unwanted pairs by `mask`.

    Without references, mask and multi-label targets, the graph is a matrix up to 1,024 entries; above, it is computed
    in tiles (`l2_loss_and_mass`): the same numbers up to rounding, faster, in memory linear in N. In tiles the loss has
    no second derivative. On a GPU such a graph of up to 256 entries in float32 is computed by two Triton kernels, where
    Triton can compile them (`affsup doctor` says).

    Args:
        gamma: focal exponent, 0 or at least 1.
        form: "focal", "log", "l2", "smooth_l1" or "bce".
        softmax: "matrix" or "row".
        diagonal: "exclude" by default: an entry's distance to itself is 0, so
            that kept in, it takes nearly all the mass once features spread.
        normalize: L2-normalise the features first.
        temperature: positive number that the affinities are divided by.
        tile: compute any graph in tiles of so many rows; by default the size decides, and "bce" is always a matrix.
        ignore_index: label of entries that are left out of graph and target, as in `cross_entropy`; None for none.
        row_average: with `softmax="row"`, the mean over the rows with a target in place of their sum (eq. 13).
        reduction: "mean"; or "none" for the loss of each row `[N]` with `softmax="row"`. A matrix softmax has one loss.
        gather: in a process group of torch.distributed, build the graph of the batches of all processes. Every process
            returns the same loss, and has the gradient of its own entries times the number of processes, so that the
            mean of the gradients over processes, as DistributedDataParallel takes it, is that of one process.

    Raises:
        ValueError: an option is unknown, or `gamma`, `temperature` or `tile` is refused.
    """

    def __init__(
        self,
        gamma: float = 4.0,
        form: LossForm = "focal",
        softmax: SoftmaxKind = "matrix",
        diagonal: DiagonalKind = "exclude",
        normalize: bool = False,
        temperature: float = 1.0,
        tile: int | None = None,
        ignore_index: int | None = -100,
        row_average: bool = False,
        reduction: ReductionKind = "mean",
        gather: bool = False,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        self.loss = AffinityLoss(form, gamma, softmax, diagonal, row_average=row_average, reduction=reduction)
        if tile is not None:
            check_tile(tile, form)
            if reduction == "none":
                raise ValueError('reduction="none" needs the whole matrix: leave out tile')
        self.normalize = normalize
        self.temperature = temperature
        self.tile = tile
        self.ignore_index = ignore_index
        self.gather = gather

    def forward(
        self,
        features: Tensor,
        labels: Tensor,
        ref_features: Tensor | None = None,
        ref_labels: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return L_G (eq. 7) of the affinities of eq. 11; see `loss_and_mass`."""
        return self.loss_and_mass(features, labels, ref_features, ref_labels, mask).loss

    def loss_and_mass(
        self,
        features: Tensor,
        labels: Tensor,
        ref_features: Tensor | None = None,
        ref_labels: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> LossAndMass:
        """Return the loss, and M of the whole matrix (eq. 3) without gradient, also with a softmax of each row.

        Args:
            features: `[N, d]`, floating point.
            labels: integer class ids `[N]`; or one-hot or multi-label targets `[N, C]`, positive where an entry has a
                label. Entries are of the same category if they share a label.
            ref_features: references `[K, d]`.
            ref_labels: their labels, `[K]` or `[K, C]`.
            mask: bool `[N, K]` (`[N, N]` without references): false for pairs that are left out of graph and target.

        Raises:
            TypeError: features are not floating point, ids not integers, or `mask` not bool.
            ValueError: the shapes do not fit; references without labels; or `tile` or `gather` with what they exclude.
        """
        nodes = self._nodes("features", features, labels)
        if ref_features is None and ref_labels is None:
            if self.gather and world_size() > 1:
                if mask is not None:
                    raise ValueError("gather=True takes no mask: it does not know the pairs of other processes")
                counts = row_counts(nodes)
                nodes, labels = gather_rows(nodes, counts, len(counts)), gather_rows(labels, counts)
            if self._tiled(nodes, labels, mask):
                return self._tiles(nodes, labels)
            return self._square(nodes, labels, mask)
        if ref_features is None or ref_labels is None:
            raise ValueError("ref_features and ref_labels must be given together")
        if self.gather and world_size() > 1:
            raise ValueError("gather=True takes no references: gather them before")
        if self.tile is not None:
            raise ValueError("tile is for graphs without references")
        references = self._nodes("ref_features", ref_features, ref_labels)
        target, valid = self._target(labels, ref_labels, mask)
        affinities = l2_affinity(nodes, references) / self.temperature
        return loss_and_mass(affinities, target, replace(self.loss.options, diagonal="keep"), valid)

    def graph(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return affinities (eq. 11) and target (section 5.2) of a batch, `[N, N]` each.

        Raises:
            TypeError: features are not floating point or ids not integers.
            ValueError: the shapes do not fit.
        """
        nodes = self._nodes("features", features, labels)
        target, valid = self._target(labels, labels, None)
        return l2_affinity(nodes) / self.temperature, target if valid is None else target & valid

    def extra_repr(self) -> str:
        """The options that `repr` shows."""
        names = ("normalize", "temperature", "tile", "ignore_index", "gather")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)

    def _square(self, nodes: Tensor, labels: Tensor, mask: Tensor | None) -> LossAndMass:
        options = self.loss.options
        if options.form == "bce" or options.reduction == "none":
            target, valid = self._target(labels, labels, mask)
            return loss_and_mass(l2_affinity(nodes) / self.temperature, target, options, valid)
        with without_autocast(nodes):
            scaled = detached_without_grad(nodes if self.temperature == 1 else nodes / self.temperature**0.5)
            if mask is None and labels.dim() == 1 and kernel_takes(scaled, options.form):
                return self._by_kernel(scaled, labels)
            target, valid = self._target(labels, labels, mask)

            def reference(nodes: Tensor) -> Tensor:
                return differentiable_loss(l2_affinity(nodes), target, valid, options)

            return LossAndMass(*L2MassLoss.apply(scaled, target, valid, options, reference))

    def _by_kernel(self, nodes: Tensor, labels: Tensor) -> LossAndMass:
        check_integer("labels", labels)

        def reference(nodes: Tensor) -> Tensor:
            return differentiable_loss(l2_affinity(nodes), *self._target(labels, labels, None), self.loss.options)

        return LossAndMass(*L2MassKernel.apply(nodes, labels, self.ignore_index, self.loss.options, reference))

    def _tiled(self, nodes: Tensor, labels: Tensor, mask: Tensor | None) -> bool:
        options = self.loss.options
        if self.tile is not None and (mask is not None or labels.dim() == 2):
            raise ValueError("tile is for graphs of class ids without a mask")
        large = len(nodes) > LARGEST_MATRIX and options.form != "bce" and options.reduction == "mean"
        return self.tile is not None or (large and mask is None and labels.dim() == 1)

    def _tiles(self, nodes: Tensor, labels: Tensor) -> LossAndMass:
        if self.ignore_index is not None:
            kept = labels != self.ignore_index
            nodes, labels = nodes[kept], labels[kept]
        options = self.loss.options
        return l2_loss_and_mass(
            nodes,
            labels=labels,
            form=options.form,
            gamma=options.gamma,
            softmax=options.softmax,
            diagonal=options.diagonal,
            temperature=self.temperature,
            tile=self.tile,
            row_average=options.row_average,
        )

    def _target(self, labels: Tensor, ref_labels: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Target `[N, K]`, and which pairs count (None for all)."""
        if labels.dim() != ref_labels.dim():
            raise ValueError(
                f"labels and ref_labels must both be class ids or both be multi-label, found {list(labels.shape)} and "
                f"{list(ref_labels.shape)}"
            )
        if labels.dim() == 1:
            check_integer("labels", labels)
            check_integer("ref_labels", ref_labels)
            target = labels.unsqueeze(1) == ref_labels.unsqueeze(0)
        else:
            # Sums of zeros and ones stay positive when positive, in every precision.
            target = (labels > 0).float() @ (ref_labels > 0).float().mT > 0
        if mask is not None:
            check_mask(mask, target.shape)
        if self.ignore_index is None:
            return target, mask
        rows, columns = (
            kept if kept.dim() == 1 else kept.all(dim=1)
            for kept in (labels != self.ignore_index, ref_labels != self.ignore_index)
        )
        valid = rows.unsqueeze(1) & columns.unsqueeze(0)
        return target, valid if mask is None else valid & mask

    def _nodes(self, name: str, features: Tensor, labels: Tensor) -> Tensor:
        if features.dim() != 2 or labels.dim() not in (1, 2) or len(labels) != len(features):
            raise ValueError(
                f"{name} must have the shape [N, d] and their labels [N] or [N, C], "
                f"found {list(features.shape)} and {list(labels.shape)}"
            )
        features = at_least_float32(name, features)
        return F.normalize(features, dim=1) if self.normalize else features


def kernel_takes(nodes: Tensor, form: LossForm) -> bool:
    """Return whether the graph of `nodes` `[N, d]` is computed by the Triton kernels, and not by PyTorch's operators.

    torch.compile fuses the operators itself; tensors of other types, such as fake ones, have no memory of their own.
    """
    return (
        nodes.is_cuda
        and form in KERNEL_FORMS
        and type(nodes) in (Tensor, nn.Parameter)
        and nodes.dtype == torch.float32
        and 1 <= len(nodes) <= LARGEST_KERNEL
        and nodes.shape[1] >= 1
        and not torch.compiler.is_compiling()
        and why_not_triton(nodes.device) is None
    )
