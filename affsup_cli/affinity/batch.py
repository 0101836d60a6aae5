"""Affinity supervision of mini-batches (section 5), ready for a classifier's training loop."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from affsup_cli.affinity.closed_form import LossAndMass
from affsup_cli.affinity.graph import l2_affinity
from affsup_cli.affinity.large import check_temperature, check_tile, l2_loss_and_mass
from affsup_cli.affinity.loss import AffinityLoss
from affsup_cli.affinity.options import DiagonalKind, LossForm, SoftmaxKind
from affsup_cli.affinity.precision import at_least_float32
from affsup_cli.affinity.target import same_category_target

LARGEST_MATRIX = 1024


class BatchAffinityLoss(nn.Module):
    """Affinity supervision of mini-batches (section 5): pulls features of one class towards each other, eq. 11 and 7.

    Nodes are the entries of a batch, affinities their negative half squared distances, and the target is the pairs of
    the same category. Add it to any classifier's loss, weighted by lambda (eq. 8; the paper's is 0.1):

        affinity = BatchAffinityLoss(gamma=4.0)
        features = backbone(images)  # [N, d], for instance after global pooling
        loss = F.cross_entropy(classifier(features), labels) + 0.1 * affinity(features, labels)

    `loss_and_mass` returns M as well, for logging; `graph` returns the affinities and the target.

    Up to 1,024 entries the graph is a matrix; above, it is computed in tiles (`l2_loss_and_mass`): the same numbers up
    to rounding, faster, in memory linear in N. In tiles the loss has no second derivative.

    Args:
        gamma: focal exponent, 0 or at least 1.
        form: "focal", "log", "l2", "smooth_l1" or "bce".
        softmax: "matrix" or "row".
        diagonal: "exclude" by default: an entry's distance to itself is 0, so
            that kept in, it takes nearly all the mass once features spread.
        normalize: L2-normalise the features first.
        temperature: positive number that the affinities are divided by.
        tile: compute any graph in tiles of so many rows; by default the size decides, and "bce" is always a matrix.

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
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        self.loss = AffinityLoss(form, gamma, softmax, diagonal)
        if tile is not None:
            check_tile(tile, form)
        self.normalize = normalize
        self.temperature = temperature
        self.tile = tile

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss of features `[N, d]` and integer class ids `[N]`, eq. 7 of eq. 11."""
        return self.loss_and_mass(features, labels).loss

    def loss_and_mass(self, features: Tensor, labels: Tensor) -> LossAndMass:
        """The loss, and M of the whole matrix (eq. 3) without gradient, also where the loss takes it row by row."""
        if not self._tiled(features):
            return self.loss.loss_and_mass(*self.graph(features, labels))
        return l2_loss_and_mass(
            self._nodes(features, labels),
            labels=labels,
            form=self.loss.form,
            gamma=self.loss.gamma,
            softmax=self.loss.softmax,
            diagonal=self.loss.diagonal,
            temperature=self.temperature,
            tile=self.tile,
        )

    def graph(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Affinities (eq. 11) and target (section 5.2) of a batch, `[N, N]` each.

        Raises:
            TypeError: `features` are not floating point or `labels` not integers.
            ValueError: `features` are not `[N, d]` or `labels` not `[N]`.
        """
        return self._affinities(self._nodes(features, labels)), same_category_target(labels)

    def extra_repr(self) -> str:
        """What `repr` shows of the options."""
        return f"normalize={self.normalize}, temperature={self.temperature}, tile={self.tile}"

    def _affinities(self, nodes: Tensor) -> Tensor:
        affinities = l2_affinity(nodes)
        return affinities if self.temperature == 1 else affinities / self.temperature

    def _tiled(self, features: Tensor) -> bool:
        return self.tile is not None or (features.shape[:1].numel() > LARGEST_MATRIX and self.loss.form != "bce")

    def _nodes(self, features: Tensor, labels: Tensor) -> Tensor:
        if features.dim() != 2 or labels.shape != features.shape[:1]:
            raise ValueError(
                f"features must have the shape [N, d] and labels [N], "
                f"found {list(features.shape)} and {list(labels.shape)}"
            )
        features = at_least_float32("features", features)
        return F.normalize(features, dim=1) if self.normalize else features
