"""Where objects attend to: the shares of their attention on their own object, other objects and the background."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchvision.ops import box_iou

from affsup_cli.affinity.target import match_proposals

PROPOSAL_KINDS = ("same_object", "same_class", "other_class", "background")


class AttentionShares:
    """The mean attention of annotated objects on four kinds of proposals, over the objects of a split.

    The reference of an object is the proposal that overlaps it most, by at least 0.5. Its attention is its row of W
    under a softmax without itself. An object counts if the mass of that row, under the softmax over the whole matrix
    (eq. 3) without the diagonal, is at least an even share 1/N: the other rows hardly contribute to M.
    """

    def __init__(self) -> None:
        self.objects = 0
        self._sums = torch.zeros(len(PROPOSAL_KINDS), dtype=torch.float64)

    def update(self, boxes: Tensor, affinity: Tensor, gt_boxes: Tensor, gt_labels: Tensor) -> None:
        """Add an image.

        Args:
            boxes: proposals `[N, 4]`, x1, y1, x2, y2 in pixels.
            affinity: W `[N, N]`, row = reference.
            gt_boxes: annotated objects `[G, 4]`, in the same format.
            gt_labels: their class ids `[G]`.
        """
        if len(boxes) < 2 or not len(gt_boxes):
            return
        gt_boxes, gt_labels = gt_boxes.to(boxes), gt_labels.to(boxes.device)
        overlap, references = box_iou(gt_boxes, boxes).max(dim=1)
        logits = affinity.double().masked_fill(torch.eye(len(boxes), dtype=torch.bool, device=boxes.device), -math.inf)
        row_mass = logits.flatten().softmax(dim=0).view_as(logits).sum(dim=1)
        counted = (overlap >= 0.5) & (row_mass[references] >= 1 / len(boxes))
        share = logits[references[counted]].softmax(dim=1)
        match = match_proposals(boxes, gt_boxes)
        on_object = (match >= 0).unsqueeze(0)
        own = match.unsqueeze(0) == counted.nonzero()
        same_class = gt_labels[match.clamp(min=0)].unsqueeze(0) == gt_labels[counted].unsqueeze(1)
        kinds = (own, on_object & same_class & ~own, on_object & ~same_class, ~on_object.expand_as(own))
        self._sums += torch.stack([(share * kind).sum() for kind in kinds]).cpu()
        self.objects += int(counted.sum())

    def merge(self, other: AttentionShares) -> None:
        """Add the images of another instance."""
        self._sums += other._sums
        self.objects += other.objects

    def compute(self) -> dict[str, float]:
        """Return the mean share of each kind, 0..1 with sum 1, NaN without any object."""
        means = self._sums / self.objects if self.objects else torch.full_like(self._sums, math.nan)
        return dict(zip((f"attention_{kind}" for kind in PROPOSAL_KINDS), means.tolist(), strict=True))
