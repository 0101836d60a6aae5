"""Supervision targets T (eq. 2): boolean matrices, true where an affinity should grow.

Row a is the reference and column b the entity that it relates to, as in the affinities. The targets for proposals take
the result of `match_proposals`: the ground-truth object of each proposal, -1 for none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from affsup_cli.affinity.options import MatchKind, TargetKind

MATCH_IOU = 0.5


class GroundTruth(NamedTuple):
    """The annotations of a batch of images, padded to the same numbers of objects G and relations R.

    Attributes:
        boxes: `[..., G, 4]`, x1, y1, x2, y2 in pixels.
        labels: class ids `[..., G]`.
        relations: `[..., R, 2]`, (subject, object).
        first: for "category-pair", class id of the reference; None otherwise.
        second: for "category-pair", class id of the other object; None for any class.
    """

    boxes: Tensor
    labels: Tensor
    relations: Tensor
    first: int | None = None
    second: int | None = None


def proposal_target(kind: TargetKind, boxes: Tensor, truth: GroundTruth, match: MatchKind = "argmax") -> Tensor:
    """Target T of the graph of proposals, of a kind in `TARGETS` (eq. 2).

    Args:
        kind: a name in `affsup_cli.affinity.options.TargetKind`.
        boxes: proposals `[..., N, 4]`; leading dimensions are images.
        truth: the annotations of these images.
        match: "argmax", a proposal belongs to the object that it overlaps most; or "any", to every object that it
            overlaps enough. T[a, b] is then true if any object of a and any of b are in the relation; the diagonal is
            false.

    Returns:
        bool `[..., N, N]`.

    Raises:
        TypeError: boxes or annotations are of a wrong type.
        ValueError: their shapes do not fit, or `truth` lacks what the target needs.
    """
    if match == "argmax":
        return TARGETS[kind](match_proposals(boxes, truth.boxes), truth)
    covers = (_overlaps(boxes, truth.boxes) > MATCH_IOU).float()
    real = (truth.boxes[..., 2:] > truth.boxes[..., :2]).all(dim=-1)
    objects = torch.arange(real.shape[-1], device=real.device).expand(real.shape).masked_fill(~real, -1)
    related = TARGETS[kind](objects, truth).float()
    # Sums of zeros and ones stay positive when positive, in every precision.
    target = covers @ related @ covers.mT > 0
    target.diagonal(dim1=-2, dim2=-1).fill_(False)
    return target


def same_category_target(labels: Tensor) -> Tensor:
    """Entities of the same category, section 5.2: eq. 2 with `S = {(a, b): labels[a] == labels[b]}`.

    The diagonal is true, as an entity is of its own category; the loss leaves it out with `diagonal="exclude"`.

    Args:
        labels: integer class ids `[N]`.

    Returns:
        bool `[N, N]`, symmetric.

    Raises:
        TypeError: `labels` is not an integer tensor.
        ValueError: `labels` is not one-dimensional.
    """
    _check_ids("labels", labels)
    if labels.dim() != 1:
        raise ValueError(f"labels must have the shape [N], found {list(labels.shape)}")
    return labels.unsqueeze(1) == labels.unsqueeze(0)


def match_proposals(boxes: Tensor, gt_boxes: Tensor, iou: float = MATCH_IOU) -> Tensor:
    """Ground-truth object of each proposal, conditions 1 and 2 of section 4.1.

    A proposal belongs to the object that it overlaps most (the first of equals), if that overlap exceeds `iou`.

    Args:
        boxes: proposals `[..., N, 4]` as x1, y1, x2, y2 in pixels; leading dimensions are images.
        gt_boxes: ground-truth objects `[..., G, 4]`, in the same format; pad with zeros, which match no proposal.
        iou: intersection over union that must be exceeded, strictly.

    Returns:
        int64 `[..., N]`: an index into `gt_boxes`, or -1.

    Raises:
        TypeError: an argument is not a tensor.
        ValueError: a tensor is not `[..., *, 4]`, the leading dimensions differ, or `iou` is not in [0, 1).
    """
    if not 0 <= iou < 1:
        raise ValueError(f"iou must be at least 0 and below 1, found {iou}")
    for name, value in (("boxes", boxes), ("gt_boxes", gt_boxes)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, found {type(value).__name__}: pad the images' boxes with zeros")
        if value.dim() < 2 or value.shape[-1] != 4:
            raise ValueError(f"{name} must have the shape [..., *, 4] (x1, y1, x2, y2), found {list(value.shape)}")
    if boxes.shape[:-2] != gt_boxes.shape[:-2]:
        raise ValueError(f"boxes {list(boxes.shape)} and gt_boxes {list(gt_boxes.shape)} are of different images")
    if gt_boxes.shape[-2] == 0:
        return torch.full(boxes.shape[:-1], -1, dtype=torch.int64, device=boxes.device)
    overlap = _overlaps(boxes, gt_boxes)
    best = overlap.argmax(dim=-1)
    return best.masked_fill(overlap.amax(dim=-1) <= iou, -1)


def _overlaps(boxes: Tensor, gt_boxes: Tensor) -> Tensor:
    """Intersection over union `[..., N, G]`, 0 for boxes without an area."""
    # Importing torchvision takes seconds, and mini-batch training does not need it.
    from torchvision.ops import box_iou

    overlaps = box_iou
    for _ in boxes.shape[:-2]:
        overlaps = torch.vmap(overlaps)
    overlap: Tensor = overlaps(boxes, gt_boxes)
    return overlap.nan_to_num(nan=0.0)


def different_instance_target(match: Tensor) -> Tensor:
    """Proposals of two different objects, whatever their classes, supplement E.

    Args:
        match: int64 `[..., N]` from `match_proposals`; leading dimensions are images.

    Returns:
        bool `[..., N, N]`, symmetric, false on the diagonal.

    Raises:
        TypeError: `match` is not an integer tensor.
        ValueError: `match` has no dimension.
    """
    _check_ids("match", match)
    matched = match >= 0
    return (match.unsqueeze(-1) != match.unsqueeze(-2)) & matched.unsqueeze(-1) & matched.unsqueeze(-2)


def different_category_target(match: Tensor, gt_labels: Tensor) -> Tensor:
    """Proposals of two objects of different classes, section 4.1.

    Args:
        match: int64 `[..., N]` from `match_proposals`.
        gt_labels: integer class ids of the objects, `[..., G]`.

    Returns:
        bool `[..., N, N]`, symmetric, false on the diagonal.

    Raises:
        TypeError: an argument is not an integer tensor.
        ValueError: their leading dimensions differ.
    """
    labels = _matched_labels(match, gt_labels)
    return different_instance_target(match) & (labels.unsqueeze(-1) != labels.unsqueeze(-2))


def relationship_target(match: Tensor, relations: Tensor) -> Tensor:
    """Proposals of a subject and an object whose relationship is annotated, section 6.5.

    Directed: `T[a, b]` asks for the relation from the object of a to the object of b. A relation of an object with
    itself is ignored.

    Args:
        match: int64 `[..., N]` from `match_proposals`.
        relations: integers `[..., R, 2]`, (subject, object) as indices of ground-truth objects; duplicates are
            allowed; pad with rows of -2.

    Returns:
        bool `[..., N, N]`, false on the diagonal.

    Raises:
        TypeError: an argument is not an integer tensor.
        ValueError: `relations` are not `[..., R, 2]`, or the leading dimensions differ.
    """
    different = different_instance_target(match)
    if relations.dim() < 2 or relations.shape[-1] != 2:
        raise ValueError(f"relations must have the shape [..., R, 2] (subject, object), found {list(relations.shape)}")
    check_integer("relations", relations)
    _check_images("relations", relations.shape[:-2], match)
    of_subject = match.unsqueeze(-1) == relations[..., 0].unsqueeze(-2)
    of_object = match.unsqueeze(-1) == relations[..., 1].unsqueeze(-2)
    # Sums of zeros and ones stay positive when positive, in every precision.
    return different & (of_subject.float() @ of_object.float().mT > 0)


def category_pair_target(match: Tensor, gt_labels: Tensor, *, first: int, second: int | None = None) -> Tensor:
    """Proposals of two different objects with given classes, supplement E: human-to-human, human-to-X.

    Directed: `T[a, b]` is true if a belongs to an object of class `first`, the reference, and b to one of class
    `second`. The union of both directions is `target | target.mT`.

    Args:
        match: int64 `[..., N]` from `match_proposals`.
        gt_labels: integer class ids of the objects, `[..., G]`.
        first: class id of the reference.
        second: class id of the other object; None for any class.

    Returns:
        bool `[..., N, N]`, false on the diagonal.

    Raises:
        TypeError: a tensor is not of integers.
        ValueError: their leading dimensions differ.
    """
    labels = _matched_labels(match, gt_labels)
    target = different_instance_target(match) & (labels == first).unsqueeze(-1)
    return target if second is None else target & (labels == second).unsqueeze(-2)


def _matched_labels(match: Tensor, gt_labels: Tensor) -> Tensor:
    """Class of each proposal's object `[..., N]`; undefined for proposals without one."""
    _check_ids("match", match)
    _check_ids("gt_labels", gt_labels)
    _check_images("gt_labels", gt_labels.shape[:-1], match)
    # The entry in front is read for a match of -1, also in an image without objects.
    labels = torch.cat([gt_labels.new_zeros(*gt_labels.shape[:-1], 1), gt_labels], dim=-1)
    return labels.gather(-1, match + 1)


def _check_images(name: str, leading: torch.Size, match: Tensor) -> None:
    if leading != match.shape[:-1]:
        raise ValueError(f"{name} and match {list(match.shape)} are of different images: leading {list(leading)}")


def _check_ids(name: str, ids: Tensor) -> None:
    if ids.dim() == 0:
        raise ValueError(f"{name} must have a dimension, found a scalar")
    check_integer(name, ids)


def check_integer(name: str, ids: Tensor) -> None:
    """Raise a TypeError unless `ids` is an integer tensor."""
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"{name} must be an integer tensor, found {ids.dtype}: call {name}.long()")


def _category_pair(match: Tensor, truth: GroundTruth) -> Tensor:
    if truth.first is None:
        raise ValueError('the target "category-pair" needs first, the class id of the reference')
    return category_pair_target(match, truth.labels, first=truth.first, second=truth.second)


TARGETS: dict[TargetKind, Callable[[Tensor, GroundTruth], Tensor]] = {
    "different-category": lambda match, truth: different_category_target(match, truth.labels),
    "different-instance": lambda match, truth: different_instance_target(match),
    "relationship": lambda match, truth: relationship_target(match, truth.relations),
    "category-pair": _category_pair,
}
"""The target of each kind from `match_proposals` and the ground truth."""
