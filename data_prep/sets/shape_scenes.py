"""Generated scenes of coloured shapes, whose category is determined by their pair of classes.

A scene has objects of exactly two classes. The 28 pairs of the 8 classes are divided into 7 categories of 4 disjoint
pairs (`CATEGORIES`), so that every class is in one pair of every category. Therefore neither a single object nor a sum
over objects is informative about the category; only the combination is. Pictures are drawn as for `shapes`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from data_prep.drawing import CLASSES, SceneContent, draw_scenes
from data_prep.raw import RawScenes, SceneSet

if TYPE_CHECKING:
    import numpy as np

    from data_prep.sources.scene_files import SceneFiles

_NAMES = ("garden", "workshop", "festival", "harbour", "library", "kitchen", "orchard")
CATEGORIES = {  # a round-robin tournament: each category is a round, each class meets each other class once
    name: ((7, turn), *(((turn + k) % 7, (turn - k) % 7) for k in (1, 2, 3))) for turn, name in enumerate(_NAMES)
}
_COUNTS: dict[Literal["train", "test"], int] = {"train": 800, "test": 400}


def _read(files: SceneFiles) -> RawScenes:
    train, test, pictures = draw_scenes(_COUNTS, 10, _scene_content)
    return RawScenes(CLASSES, (), "classes", train, test, pictures, categories=_NAMES)


def _scene_content(random: np.random.RandomState, number: int) -> SceneContent:
    """Return 4 to 7 objects of the two classes of a pair, at least one of each; categories alternate."""
    category = number % len(_NAMES)
    pair = CATEGORIES[_NAMES[category]][random.randint(0, 4)]
    others = random.randint(0, 2, random.randint(2, 6))
    return SceneContent([*pair, *(pair[other] for other in others)], category=category)


DATASET = SceneSet(
    name="shape-scenes",
    summary="800 + 400 generated scenes of coloured shapes, 128x128, 7 categories that depend on the pair of classes",
    official_counts=_COUNTS,
    read=_read,
    categories=True,
)
