"""Example images of a split with the attention of their objects, for pictures of relations (figures 1, 7 and 9)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou, nms

from affsup_cli.runs.examples import Example
from data_prep.store import Objects, Scenes

COUNT = 12
MAX_PARTNERS = 5
ALMOST_EVEN = 0.99  # times an even share, as equal weights may be rounded below it
MERGED_IOU = 0.5  # of partners that overlap more, only the strongest is kept


class Examples:
    """Chooses images by their annotations alone, so that all runs on a data set have the same examples.

    Of the images with two or more classes, those with two objects of a class come first; `COUNT` of them are taken at
    even distances.
    """

    def __init__(self, scenes: Scenes) -> None:
        self._scenes = scenes
        self._chosen = set(_choose(scenes))
        self._examples: dict[int, Example] = {}

    def add(self, index: int, boxes: Tensor, affinity: Tensor) -> None:
        """Add image `index` if it was chosen.

        Args:
            index: of the image in its split.
            boxes: its proposals `[N, 4]` in pixels of the image.
            affinity: W `[N, N]`, row = reference.
        """
        if index not in self._chosen or len(boxes) < 2:
            return
        objects = self._scenes.objects(index).without_ignored()
        references = box_iou(torch.from_numpy(objects.boxes).to(boxes), boxes).argmax(dim=1)
        partners = np.full((len(references), MAX_PARTNERS, 4), np.nan, dtype=np.float32)
        weights = np.full((len(references), MAX_PARTNERS), np.nan, dtype=np.float32)
        for row, reference in enumerate(references.tolist()):
            kept, share = strongest_partners(boxes, affinity, reference)
            partners[row, : len(kept)], weights[row, : len(kept)] = boxes[kept].cpu().numpy(), share.cpu().numpy()
        self._examples[index] = Example(
            image_id=int(self._scenes.ids[index]),
            name=self._scenes.names[index],
            image=self._scenes.pixels(index),
            gt_boxes=objects.boxes,
            gt_labels=objects.labels,
            gt_pairs=objects.relations,
            reference_boxes=boxes[references].cpu().numpy(),
            partner_boxes=partners,
            partner_weights=weights,
        )

    def finished(self) -> list[Example]:
        """Return the examples in the order of their images."""
        return [self._examples[index] for index in sorted(self._examples)]


def strongest_partners(boxes: Tensor, affinity: Tensor, reference: int) -> tuple[Tensor, Tensor]:
    """Return the proposals `[P]` that proposal `reference` attends to most, and their weights `[P]`.

    A weight is an entry of the softmax of the reference's row of W without its diagonal. Of boxes that overlap by more
    than 0.5 only the strongest is kept; weights below an even share, 1 / (N - 1), are left out.

    Args:
        boxes: of the proposals, `[N, 4]`.
        affinity: W `[N, N]`, row = reference.
        reference: a row of W.
    """
    row = affinity[reference].float().clone()
    row[reference] = -torch.inf
    share = row.softmax(dim=0)
    kept = nms(boxes.float(), share, MERGED_IOU)
    kept = kept[(kept != reference) & (share[kept] * (len(boxes) - 1) > ALMOST_EVEN)][:MAX_PARTNERS]
    return kept, share[kept]


def _choose(scenes: Scenes) -> list[int]:
    described = [(index, scenes.objects(index).without_ignored()) for index in range(len(scenes))]
    meeting = [(index, objects) for index, objects in described if len(set(objects.labels.tolist())) > 1]
    first = [index for index, objects in meeting if _repeats_a_class(objects)]
    chosen = _evenly(first, COUNT)
    rest = [index for index, objects in meeting if not _repeats_a_class(objects)]
    return chosen + _evenly(rest, COUNT - len(chosen))


def _repeats_a_class(objects: Objects) -> bool:
    return len(set(objects.labels.tolist())) < len(objects.labels)


def _evenly(indices: list[int], count: int) -> list[int]:
    if len(indices) <= count:
        return indices
    return [indices[place * len(indices) // count] for place in range(count)]
