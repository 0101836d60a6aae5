"""Relationship Proposal Networks (Zhang et al., CVPR 2017), the compared system of figure 4, on our detector.

Every ordered pair of proposals is scored by two branches, one on what both look like and one on where they lie, trained
on annotated relations. Where it departs from the publication: subjects and objects come from one region proposal
network, ours, in place of one each (and one for their union); the visual branch sees the features of subject and object
but not those of the box around both; both branches are trained together with the detector.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

from affsup_cli.models.relation import geometry_embedding

GEOMETRY_DIM = 64


class PairScorer(nn.Module):
    """Scores the compatibility of every ordered pair of proposals.

    Args:
        features: length of a proposal's feature vector.
        hidden: width of both branches.
        sampled: pairs an image that `loss` is taken over, at most half of them annotated.
    """

    def __init__(self, features: int, hidden: int, sampled: int) -> None:
        super().__init__()
        self.subject = nn.Linear(features, hidden)
        self.object = nn.Linear(features, hidden, bias=False)
        self.place = nn.Linear(GEOMETRY_DIM, hidden)
        self.visual_score = nn.Linear(hidden, 1)
        self.spatial_score = nn.Linear(hidden, 1)
        self._sampler = BalancedPositiveNegativeSampler(sampled, 0.5)

    def forward(self, features: Tensor, boxes: Tensor) -> Tensor:
        """Return scores `[B, N, N]`, row subject and column object, of features `[B, N, d]` and boxes `[B, N, 4]`."""
        seen = (self.subject(features).unsqueeze(2) + self.object(features).unsqueeze(1)).relu()
        placed = self.place(geometry_embedding(boxes, boxes, GEOMETRY_DIM)).relu()
        scores: Tensor = (self.visual_score(seen) + self.spatial_score(placed)).squeeze(-1)
        return scores.float()

    def loss(self, scores: Tensor, target: Tensor, present: Tensor) -> Tensor:
        """Return the binary cross-entropy of a balanced random sample of each image's pairs.

        Args:
            scores: `[B, N, N]`.
            target: bool `[B, N, N]`, the annotated pairs.
            present: bool `[B, N]`, the proposals that are more than padding.
        """
        pairs = present.unsqueeze(1) & present.unsqueeze(2)
        pairs &= ~torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device)
        labels = target.float().masked_fill(~pairs, -1).flatten(1)
        positive, negative = self._sampler(list(labels))
        chosen = (torch.stack(positive) | torch.stack(negative)).bool()
        losses = F.binary_cross_entropy_with_logits(scores.flatten(1), labels.clamp(min=0), reduction="none")
        return (losses * chosen).sum() / chosen.sum().clamp(min=1)
