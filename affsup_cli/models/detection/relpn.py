"""Relationship Proposal Networks (Zhang et al., CVPR 2017), the compared system of figure 4, on our detector.

Two branches, a visual and a spatial one, score every ordered pair of proposals; they are trained on annotated
relations. Departures from the publication: subjects and objects come from one region proposal
network, ours, in place of one each (and one for their union); the visual branch sees the features of subject and object
but not those of the box around both; the spatial branch sees the three boxes relative to each other, without their
position in the image; both branches are trained jointly with the detector.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

from affsup_cli.models.detection.relation import centres_and_sizes

RELATIVE_BOXES = 12  # four numbers for each of subject to object, subject to union, union to object


class PairScorer(nn.Module):
    """Scores the compatibility of every ordered pair of proposals.

    Args:
        features: length of a proposal's feature vector.
        hidden: width of both branches.
        sampled: pairs of an image in `loss`, at most half of them annotated.
    """

    def __init__(self, features: int, hidden: int, sampled: int) -> None:
        super().__init__()
        self.subject = nn.Linear(features, hidden)
        self.object = nn.Linear(features, hidden, bias=False)
        self.place = nn.Linear(RELATIVE_BOXES, hidden)
        self.visual_score = nn.Linear(hidden, 1)
        self.spatial_score = nn.Linear(hidden, 1)
        self.sampler = BalancedPositiveNegativeSampler(sampled, 0.5)

    def forward(self, features: Tensor, boxes: Tensor) -> Tensor:
        """Return scores `[B, N, N]`, row subject and column object, of features `[B, N, d]` and boxes `[B, N, 4]`."""
        visual = (self.subject(features).unsqueeze(2) + self.object(features).unsqueeze(1)).relu()
        spatial = self.place(relative_boxes(boxes)).relu()
        scores: Tensor = (self.visual_score(visual) + self.spatial_score(spatial)).squeeze(-1)
        return scores.float()

    def loss(self, scores: Tensor, target: Tensor, pairs: Tensor) -> Tensor:
        """Return the binary cross-entropy of a balanced random sample of each image's pairs.

        Args:
            scores: `[B, N, N]`.
            target: bool `[B, N, N]`, the annotated pairs.
            pairs: bool `[B, N, N]`, false for padded proposals.
        """
        pairs = pairs & ~torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device)
        labels = target.float().masked_fill(~pairs, -1).flatten(1)
        positive, negative = self.sampler(list(labels))
        chosen = (torch.stack(positive) | torch.stack(negative)).bool()
        losses = F.binary_cross_entropy_with_logits(scores.flatten(1), labels.clamp(min=0), reduction="none")
        return (losses * chosen).sum() / chosen.sum().clamp(min=1)


def relative_boxes(boxes: Tensor) -> Tensor:
    """Encode the boxes of every ordered pair: `[B, N, N, 12]` of boxes `[B, N, 4]`, row subject, column object.

    The encoding is that of a detector (signed offset of centres in widths and heights, logarithm of the ratio of
    sizes): the object relative to the subject, the union box relative to the subject, and the object relative to the
    union box.
    """
    count = boxes.shape[1]
    subject = boxes.unsqueeze(2).expand(-1, -1, count, -1)
    other = boxes.unsqueeze(1).expand(-1, count, -1, -1)
    union = torch.cat(
        [torch.minimum(subject[..., :2], other[..., :2]), torch.maximum(subject[..., 2:], other[..., 2:])], dim=-1
    )
    return torch.cat([_encoded(a, b) for a, b in ((subject, other), (subject, union), (union, other))], dim=-1)


def _encoded(boxes: Tensor, others: Tensor) -> Tensor:
    centre, size = centres_and_sizes(boxes)
    other_centre, other_size = centres_and_sizes(others)
    return torch.cat([(other_centre - centre) / size, (other_size / size).log()], dim=-1)
