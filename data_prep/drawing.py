"""Draw scenes of coloured shapes for the generated data sets.

The scenes are identical on all machines and versions: only integers are drawn, from NumPy's frozen legacy generator,
and pictures are stored without compression.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.store import Annotations

CLASSES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart")
_SIDE = 128
_FINE = 4  # coverage of a pixel is sampled at 4 x 4 points
_POLYGONS = {  # in the unit square; each touches all four sides
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


@dataclass(frozen=True)
class SceneContent:
    """The content of a scene to be drawn; the fields are those of `data_prep.annotations.SceneAnnotation`."""

    labels: Sequence[int]
    relations: Sequence[tuple[int, int, int]] = ()
    category: int | None = None


class DrawnPictures(dict[str, bytes]):
    """Generated pictures by file name; implements `data_prep.raw.Pictures`."""

    def size(self, name: str) -> int:
        """Return the size of a picture in bytes."""
        return len(self[name])

    def location(self, name: str) -> str:
        """Return the name: a generated picture has no path."""
        return name


def draw_scenes(
    counts: Mapping[Literal["train", "test"], int],
    first_seed: int,
    scene_content: Callable[[np.random.RandomState, int], SceneContent],
) -> tuple[Annotations, Annotations, DrawnPictures]:
    """Draw the training and the test scenes of a data set.

    Args:
        counts: Number of `train` and `test` scenes.
        first_seed: Seed of the training scenes; the test scenes have the next one. No two data sets share a seed.
        scene_content: Returns the content of a scene from the random generator and the index in its split.

    Returns:
        The annotations of the training and the test scenes, and the pictures of both.
    """
    import numpy as np

    from data_prep.annotations import SceneAnnotation, concatenate

    pictures, parts = DrawnPictures(), []
    for seed, (part, count) in enumerate(counts.items(), start=first_seed):
        random = np.random.RandomState(seed)  # the legacy generator: its stream never changes
        scenes = []
        for number in range(count):
            content = scene_content(random, number)
            boxes = _place_boxes(random, len(content.labels))
            scene = SceneAnnotation(
                name=f"{part}_{number:04d}.png",
                id=1000 * seed + number,
                size=(_SIDE, _SIDE),
                boxes=[(x, y, x + w, y + h) for x, y, w, h in boxes],
                labels=content.labels,
                relations=content.relations,
                category=content.category,
            )
            scenes.append(scene)
            pictures[scene.name] = _png(_draw(random, content.labels, boxes))
        parts.append(concatenate(scenes))
    train, test = parts
    return train, test, pictures


def _place_boxes(random: np.random.RandomState, count: int) -> list[tuple[int, int, int, int]]:
    """Return boxes x, y, w, h with sides of 20 to 44 pixels that overlap by at most 2 pixels."""
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
    random: np.random.RandomState, labels: Sequence[int], boxes: list[tuple[int, int, int, int]]
) -> NDArray[np.uint8]:
    """Draw shapes of contrasting colours on a cloudy background and add noise: uint8 [128, 128, 3]."""
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
    """Return the number of sample points of each pixel that are inside the shape, int64 [height, width]."""
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
    """Return a PNG file with one uncompressed block, as the output of compressors depends on their version."""
    import numpy as np

    height, width, _ = image.shape
    rows = np.pad(
        image.reshape(height, -1), ((0, 0), (1, 0))
    ).tobytes()  # each row begins with its filter type: 0, none
    stored = b"\x78\x01\x01" + struct.pack("<HH", len(rows), 0xFFFF ^ len(rows)) + rows
    stored += struct.pack(">I", zlib.adler32(rows))

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", stored) + chunk(b"IEND", b"")
