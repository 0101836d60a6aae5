"""Generated scenes of coloured shapes whose classes stand in known relations.

Which shape a class is can be seen; that a star `lights` a heart cannot: relations are a rule on the two classes alone
(`RULES`), so an attention that is not told of them has no reason to find them. The scenes are the same for good: only
integers are drawn, from a frozen stream, and pictures are written without compression.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

from data_prep.official import OfficialScenes, SceneSet

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.annotating import Scene
    from data_prep.scene_files import SceneFiles

CLASSES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart")
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
_SIDE = 128
_COUNTS = {"train": 600, "test": 200}
_FINE = 4  # a pixel's coverage is counted on 4 x 4 points
_RELATED = {
    (CLASSES.index(subject), CLASSES.index(other)): predicate for predicate, (subject, other) in enumerate(RULES)
}
_POLYGONS = {  # in a unit box that each touches on all four sides
    "triangle": ((0.5, 0), (1, 1), (0, 1)),
    "star": (
        (0.5, 0), (0.62, 0.38), (1, 0.38), (0.7, 0.62), (0.81, 1), (0.5, 0.77), (0.19, 1), (0.3, 0.62), (0, 0.38),
        (0.38, 0.38),
    ),
    "cross": (
        (0.33, 0), (0.67, 0), (0.67, 0.33), (1, 0.33), (1, 0.67), (0.67, 0.67), (0.67, 1), (0.33, 1), (0.33, 0.67),
        (0, 0.67), (0, 0.33), (0.33, 0.33),
    ),
    "diamond": ((0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)),
    "heart": ((0.04, 0.39), (0.25, 0.25), (0.5, 0.27), (0.75, 0.25), (0.96, 0.39), (0.5, 1)),
}  # fmt: skip


class _Pictures(dict[str, bytes]):
    """Generated pictures by file name; see `data_prep.official.Pictures`."""

    def size(self, name: str) -> int:
        """Bytes of a picture."""
        return len(self[name])

    def where(self, name: str) -> str:
        """A generated picture is nowhere."""
        return name


def _read(files: SceneFiles) -> OfficialScenes:
    from data_prep.annotating import together

    pictures = _Pictures()
    parts = {}
    for seed, (part, count) in enumerate(_COUNTS.items()):
        scenes = []
        for scene, picture in _generate(part, count, seed):
            scenes.append(scene)
            pictures[scene.name] = picture
        parts[part] = together(scenes)
    return OfficialScenes(CLASSES, tuple(RULES.values()), "annotated", parts["train"], parts["test"], pictures)


def _generate(part: str, count: int, seed: int) -> list[tuple[Scene, bytes]]:
    import numpy as np

    from data_prep.annotating import Scene

    random = np.random.RandomState(seed)  # its stream is frozen for good
    made = []
    for number in range(count):
        labels, relations = _population(random)
        boxes = _places(random, len(labels))
        scene = Scene(
            name=f"{part}_{number:04d}.png",
            id=1000 * seed + number,
            size=(_SIDE, _SIDE),
            boxes=[(x, y, x + w, y + h) for x, y, w, h in boxes],
            labels=labels,
            relations=relations,
        )
        made.append((scene, _png(_draw(random, labels, boxes))))
    return made


def _population(random: np.random.RandomState) -> tuple[list[int], list[tuple[int, int, int]]]:
    """Classes of 4 to 7 objects, few enough to repeat, with a related pair and an unrelated one of two classes."""
    while True:
        kinds = random.permutation(len(CLASSES))[: random.randint(3, 6)]
        labels = [int(label) for label in kinds[random.randint(0, len(kinds), random.randint(4, 8))]]
        pairs = [(i, j) for i, a in enumerate(labels) for j, b in enumerate(labels) if a != b]
        relations = [(i, j, _RELATED[key]) for i, j in pairs if (key := (labels[i], labels[j])) in _RELATED]
        if 0 < len(relations) < len(pairs):
            return labels, relations


def _places(random: np.random.RandomState, count: int) -> list[tuple[int, int, int, int]]:
    """Boxes x, y, w, h of 20 to 44 pixels a side that hardly overlap."""
    boxes: list[tuple[int, int, int, int]] = []
    attempts = 0
    while len(boxes) < count:
        attempts += 1
        if attempts > 200:
            boxes, attempts = [], 0
        w = random.randint(20, 45)
        h = min(max(w + random.randint(-5, 6), 20), 44)
        x, y = random.randint(0, _SIDE - w + 1), random.randint(0, _SIDE - h + 1)
        if all(min(x + w, a + c) - max(x, a) <= 2 or min(y + h, b + d) - max(y, b) <= 2 for a, b, c, d in boxes):
            boxes.append((x, y, w, h))
    return boxes


def _draw(
    random: np.random.RandomState, labels: list[int], boxes: list[tuple[int, int, int, int]]
) -> NDArray[np.uint8]:
    """Shapes of any colour that stands out, on a cloudy background, under noise: uint8 [128, 128, 3]."""
    import numpy as np

    base = random.randint(40, 216, 3)
    clouds = np.kron(random.randint(-40, 41, (8, 8, 3)), np.ones((16, 16, 1), dtype=np.int64))
    for axis in (0, 1):
        wide = np.concatenate([np.roll(clouds, 8, axis)[None], clouds[None], np.roll(clouds, -8, axis)[None]])
        clouds = (wide[0] + 2 * wide[1] + wide[2]) // 4
    canvas = base + clouds
    for label, (x, y, w, h) in zip(labels, boxes, strict=True):
        colour = random.randint(0, 256, 3)
        while abs(colour - base).sum() < 180:
            colour = random.randint(0, 256, 3)
        coverage = _coverage(CLASSES[label], w, h)[..., None]
        window = canvas[y : y + h, x : x + w]
        window += (colour - window) * coverage // (_FINE * _FINE)
    noisy: NDArray[np.int64] = canvas + random.randint(-16, 17, canvas.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def _coverage(name: str, width: int, height: int) -> NDArray[np.int64]:
    """How many of its points each pixel of a shape's box has inside the shape, int64 [height, width]."""
    import numpy as np

    x = ((np.arange(width * _FINE) + 0.5) / (width * _FINE))[None, :]
    y = ((np.arange(height * _FINE) + 0.5) / (height * _FINE))[:, None]
    square = (x >= 0) & (y >= 0)
    from_centre = (x - 0.5) ** 2 + (y - 0.5) ** 2
    if name in ("circle", "ring"):
        inside = (from_centre <= 0.25) & (from_centre >= (0.0676 if name == "ring" else 0))
    elif name == "square":
        inside = square
    else:
        inside = ~square
        corners = _POLYGONS[name]
        for (x1, y1), (x2, y2) in zip(corners, (*corners[1:], corners[0]), strict=True):
            if y1 != y2:
                inside = inside ^ (((y1 > y) != (y2 > y)) & (x < (x2 - x1) * (y - y1) / (y2 - y1) + x1))
        if name == "heart":
            for centre in (0.26, 0.74):
                inside = inside | ((x - centre) ** 2 + (y - 0.26) ** 2 <= 0.0676)
    coverage: NDArray[np.int64] = inside.reshape(height, _FINE, width, _FINE).sum(axis=(1, 3))
    return coverage


def _png(image: NDArray[np.uint8]) -> bytes:
    """A PNG file whose one block is stored, not compressed, as compressors differ from version to version."""
    import numpy as np

    height, width, _ = image.shape
    rows = np.pad(image.reshape(height, -1), ((0, 0), (1, 0))).tobytes()  # each row begins with its filter: none
    stored = b"\x78\x01\x01" + struct.pack("<HH", len(rows), 0xFFFF ^ len(rows)) + rows
    stored += struct.pack(">I", zlib.adler32(rows))

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", stored) + chunk(b"IEND", b"")


DATASET = SceneSet(
    name="shapes",
    summary="600 + 200 generated scenes of coloured shapes, 128x128, 8 classes, annotated relations",
    official_counts={"train": _COUNTS["train"], "test": _COUNTS["test"]},
    read=_read,
)
