"""A picture of an image with the relations of one object, as in figures 1, 7 and 9."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray

from affsup_cli.reporting.render.figure import DOTS_PER_INCH, PALETTE, new_figure, png_bytes, style

REFERENCE_COLOUR, PARTNER_COLOUR, WEIGHT_COLOUR, OTHER_COLOUR = PALETTE[:4]

LEAST_WEIGHT = 0.0005
"""Weights below are shown as 0.000: such partners are not drawn."""

_FONT_SIZE = 7.0
_LONG_SIDE = 7.0  # inches of a picture of its own
_CHARACTER = 0.62  # width of a character ÷ its height
_NAME_COLOUR = "#222222"

_Rectangle = tuple[float, ...]  # x1, y1, x2, y2 in pixels


def draw_relations(
    axes: Axes,
    image: NDArray[np.uint8],
    reference_box: ArrayLike | None,
    partner_boxes: ArrayLike,
    partner_weights: ArrayLike | None = None,
    *,
    reference_name: str = "",
    partner_names: Sequence[str] = (),
    other_boxes: ArrayLike = (),
    other_names: Sequence[str] = (),
) -> None:
    """Draw an image with the reference box in blue, the partner boxes in orange and their weights in red.

    Args:
        axes: the axes; their frame and ticks are removed. Labels are sized for `figure.DOTS_PER_INCH`.
        image: uint8 `[H, W, 3]`, RGB.
        reference_box: x1, y1, x2, y2 in pixels of the image; None draws none.
        partner_boxes: `[P, 4]`, the strongest first; may be empty. Weights shown as 0.000 are left out.
        partner_weights: `[P]` in 0..1; None draws none.
        reference_name: label of the reference box.
        partner_names: label of each partner box; "" for none.
        other_boxes: `[D, 4]`, drawn in grey below the rest; may be empty.
        other_names: label of each of them.
    """
    height, width = image.shape[:2]
    axes.imshow(image, interpolation="antialiased", extent=(0, width, height, 0))
    axes.set_axis_off()
    axes.set_anchor("N")
    partners, others = (np.asarray(boxes, dtype=np.float64).reshape(-1, 4) for boxes in (partner_boxes, other_boxes))
    weights = [None] * len(partners) if partner_weights is None else np.asarray(partner_weights).tolist()
    names = partner_names or [""] * len(partners)
    drawn = [each for each in zip(partners, weights, names, strict=True) if each[1] is None or each[1] >= LEAST_WEIGHT]
    reference = np.asarray([] if reference_box is None else reference_box, dtype=np.float64).reshape(-1, 4)
    # The strongest partner and the reference are drawn last, on top.
    for boxes, colour in (
        (others[::-1], OTHER_COLOUR),
        ([box for box, _, _ in drawn[::-1]], PARTNER_COLOUR),
        (reference, REFERENCE_COLOUR),
    ):
        for box in boxes:
            _draw_box(axes, box, colour)
    objects = [tuple(map(float, box)) for box in (*reference, *(box for box, _, _ in drawn), *others)]
    taken: list[_Rectangle] = []

    def label(box: NDArray[np.float64], words: list[tuple[str, str]]) -> None:
        _label(axes, image, box, words, taken, objects)

    for box in reference:
        label(box, [(reference_name, REFERENCE_COLOUR)])
    for box, weight, name in drawn:
        shown = "" if weight is None else f"{weight:.2f}" if weight >= 0.1 else f"{weight:.3f}"
        label(box, [(shown, WEIGHT_COLOUR), (name, _NAME_COLOUR)])
    for box, name in zip(others, other_names, strict=True):
        label(box, [(name, _NAME_COLOUR)])


def relations_legend(figure: Figure) -> None:
    """Add the legend of `draw_relations` below a figure."""
    handles = [
        Line2D([], [], color=REFERENCE_COLOUR, linewidth=1.8, label="reference object"),
        Line2D([], [], color=PARTNER_COLOUR, linewidth=1.8, label="proposals with the most attention"),
        Line2D([], [], color=WEIGHT_COLOUR, linestyle="", marker="$0.12$", markersize=18, label="their share of it"),
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=3, fontsize=8)


def picture_of_detections(
    image: NDArray[np.uint8],
    boxes: ArrayLike,
    names: Sequence[str],
    reference: int | None,
    partner_boxes: ArrayLike,
    partner_weights: ArrayLike,
    partner_names: Sequence[str],
) -> bytes:
    """Return a PNG of an image with its detections and the relations of one of them.

    Args:
        image: uint8 `[H, W, 3]`, RGB.
        boxes: detections `[D, 4]` as x1, y1, x2, y2 in pixels of the image; may be empty.
        names: label of each of them.
        reference: which detection is the reference; None for none.
        partner_boxes: `[P, 4]`, as `draw_relations` takes them.
        partner_weights: `[P]`.
        partner_names: `[P]`.
    """
    found = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    others = [place for place in range(len(found)) if place != reference]
    height, width = image.shape[:2]
    scale = _LONG_SIDE / max(height, width)
    with style():
        figure = new_figure(width * scale, height * scale, "", ())
        draw_relations(
            figure.subplots(),
            image,
            None if reference is None else found[reference],
            partner_boxes,
            partner_weights,
            reference_name="" if reference is None else names[reference],
            partner_names=partner_names,
            other_boxes=found[others],
            other_names=[names[place] for place in others],
        )
        return png_bytes(figure)


def _draw_box(axes: Axes, box: NDArray[np.float64], colour: str) -> None:
    x1, y1, x2, y2 = box
    style: dict[str, Any] = {"fill": False, "joinstyle": "miter"}
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, edgecolor="white", linewidth=3.2, alpha=0.6, **style))
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, edgecolor=colour, linewidth=1.8, **style))


def _label(
    axes: Axes,
    image: NDArray[np.uint8],
    box: NDArray[np.float64],
    words: list[tuple[str, str]],
    taken: list[_Rectangle],
    objects: Sequence[_Rectangle],
) -> None:
    """Write words, each in its colour, at the corner of `box` where they cover least of earlier labels and objects."""
    words = [(text, colour) for text, colour in words if text]
    if not words:
        return
    height, width = image.shape[:2]
    extent = axes.get_window_extent()
    pixels_an_inch = max(width / extent.width, height / extent.height) * DOTS_PER_INCH
    line = _FONT_SIZE / 72 * pixels_an_inch
    lengths = [_CHARACTER * line * (len(text) + 0.4) for text, _ in words]
    size = sum(lengths), 1.3 * line
    x, y = min(
        _corners(box, size, (width, height)),
        key=lambda corner: _cost((corner[0], corner[1], corner[0] + size[0], corner[1] + size[1]), taken, objects),
    )
    taken.append((x, y, x + size[0], y + size[1]))
    axes.add_patch(Rectangle((x, y), *size, facecolor="white", alpha=0.8, linewidth=0))
    for (text, colour), length in zip(words, lengths, strict=True):
        middle = x + length / 2, y + size[1] / 2
        axes.text(
            *middle, text, color=colour, fontsize=_FONT_SIZE, fontweight="bold", ha="center", va="center_baseline"
        )
        x += length


def _corners(
    box: NDArray[np.float64], size: tuple[float, float], within: tuple[float, float]
) -> list[tuple[float, float]]:
    """List places for a label of `size` at the corners of `box`, inside it, then outside; all within the image."""
    x1, y1, x2, y2 = box
    across, down = (x1, x2 - size[0]), (y1, y2 - size[1], y1 - size[1], y2, y1 - 2 * size[1], y2 + size[1])
    limits = within[0] - size[0], within[1] - size[1]
    return [(max(0.0, min(x, limits[0])), max(0.0, min(y, limits[1]))) for y in down for x in across]


def _cost(place: _Rectangle, taken: Sequence[_Rectangle], objects: Sequence[_Rectangle]) -> float:
    """Return the share of the label that earlier labels cover, plus the share of each object that it covers."""
    labels = math.fsum(_intersection(place, other) for other in taken) / _area(place)
    return 2 * labels + math.fsum(_intersection(place, box) / _area(box) for box in objects if _area(box) > 0)


def _intersection(first: _Rectangle, second: _Rectangle) -> float:
    across = min(first[2], second[2]) - max(first[0], second[0])
    down = min(first[3], second[3]) - max(first[1], second[1])
    return max(0.0, across) * max(0.0, down)


def _area(box: _Rectangle) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
