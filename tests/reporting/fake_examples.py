from __future__ import annotations

import numpy as np

from affsup_cli.runs.examples import Example

CLASSES = ("sheep", "person", "dog")
SHEEP, PERSON, DOG = range(3)


def make_example(
    image_id: int,
    labels: list[int],
    *,
    partners: int = 2,
    first_weight: float = 0.5,
    without_pairs: tuple[int, ...] = (),
    size: tuple[int, int] = (60, 200),
) -> Example:
    """An image of noise with objects side by side, each larger than the one before; every pair of classes is related.

    Partners of object g are the objects after it, round and round, their weights halving. Objects in `without_pairs`
    take no part in relations.
    """
    count = len(labels)
    left = np.arange(count, dtype=np.float32) * (size[1] / max(count, 1))
    side = np.full(count, 10, dtype=np.float32) + np.arange(count, dtype=np.float32)
    boxes = np.stack((left, np.zeros_like(left), left + side, side), axis=1)
    able = [each for each in range(count) if each not in without_pairs]
    pairs = [(s, o) for s in able for o in able if labels[s] != labels[o]]
    partner_boxes = np.full((count, partners + 1, 4), np.nan, dtype=np.float32)
    partner_weights = np.full((count, partners + 1), np.nan, dtype=np.float32)
    for each in range(count):
        for place in range(partners):
            partner_boxes[each, place] = boxes[(each + 1 + place) % count]
            partner_weights[each, place] = first_weight * 0.5**place
    return Example(
        image_id=image_id,
        name=f"image{image_id}.jpg",
        image=np.random.default_rng(image_id).integers(90, 110, (*size, 3)).astype(np.uint8),
        gt_boxes=boxes,
        gt_labels=np.array(labels, dtype=np.int64),
        gt_pairs=np.array(pairs, dtype=np.int64).reshape(-1, 2),
        reference_boxes=boxes + 1,
        partner_boxes=partner_boxes,
        partner_weights=partner_weights,
    )
