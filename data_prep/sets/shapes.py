"""Generated scenes of coloured shapes with known relations between classes.

The class of a shape is visible, but its relations are not: they follow a rule on the two classes (`RULES`), so that an
attention without supervision has no reason to find them. The scenes are identical on all machines and versions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from data_prep.drawing import CLASSES, SceneContent, draw_scenes
from data_prep.raw import RawScenes, SceneSet

if TYPE_CHECKING:
    import numpy as np

    from data_prep.sources.scene_files import SceneFiles

RULES = {
    ("star", "heart"): "lights",
    ("heart", "ring"): "wears",
    ("ring", "circle"): "rolls",
    ("circle", "triangle"): "tops",
    ("triangle", "square"): "roofs",
    ("square", "star"): "frames",
    ("cross", "diamond"): "marks",
    ("diamond", "ring"): "adorns",
    ("cross", "circle"): "splits",
    ("square", "diamond"): "guards",
}
_COUNTS: dict[Literal["train", "test"], int] = {"train": 600, "test": 200}
_RELATED = {
    (CLASSES.index(subject), CLASSES.index(other)): predicate for predicate, (subject, other) in enumerate(RULES)
}


def _read(files: SceneFiles) -> RawScenes:
    return RawScenes(CLASSES, tuple(RULES.values()), "annotated", *draw_scenes(_COUNTS, 0, _scene_content))


def _scene_content(random: np.random.RandomState, _: int) -> SceneContent:
    """Return 4 to 7 objects of 3 to 5 classes, with a related and an unrelated pair of objects of different classes."""
    while True:
        kinds = random.permutation(len(CLASSES))[: random.randint(3, 6)]
        labels = [int(label) for label in kinds[random.randint(0, len(kinds), random.randint(4, 8))]]
        pairs = [(i, j) for i, a in enumerate(labels) for j, b in enumerate(labels) if a != b]
        relations = [(i, j, _RELATED[key]) for i, j in pairs if (key := (labels[i], labels[j])) in _RELATED]
        if 0 < len(relations) < len(pairs):
            return SceneContent(labels, relations)


DATASET = SceneSet(
    name="shapes",
    summary="600 + 200 generated scenes of coloured shapes, 128x128, 8 classes, annotated relations",
    official_counts=_COUNTS,
    read=_read,
)
