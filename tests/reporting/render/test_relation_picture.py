from __future__ import annotations

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from affsup_cli.reporting.render.relation_picture import (
    OTHER_COLOUR,
    PARTNER_COLOUR,
    REFERENCE_COLOUR,
    WEIGHT_COLOUR,
    draw_relations,
    picture_of_detections,
)
from tests.reporting.pictures import has_colour, pixels

IMAGE = np.zeros((100, 200, 3), dtype=np.uint8)
REFERENCE = [10, 20, 60, 80]
PARTNERS = [[100, 10, 150, 90], [120, 30, 190, 70]]


def blank() -> Axes:
    return Figure(figsize=(4, 2)).subplots()


def boxes(axes: Axes, colour: str) -> list[list[float]]:
    """The frames of one colour, the first drawn first."""
    frames = [patch for patch in axes.patches if to_hex(patch.get_edgecolor()) == colour and patch.get_linewidth() > 0]
    return [list(frame.get_bbox().extents) for frame in frames]


def words(axes: Axes) -> dict[str, str]:
    return {text.get_text(): to_hex(text.get_color()) for text in axes.texts}


def test_the_reference_is_blue_its_partners_orange_the_strongest_on_top() -> None:
    axes = blank()
    draw_relations(axes, IMAGE, REFERENCE, PARTNERS, [0.5, 0.25])
    assert boxes(axes, REFERENCE_COLOUR) == [REFERENCE]
    assert boxes(axes, PARTNER_COLOUR) == PARTNERS[::-1]


def test_weights_are_red_and_names_beside_them() -> None:
    axes = blank()
    draw_relations(axes, IMAGE, REFERENCE, PARTNERS, [0.5, 0.0321], reference_name="cow", partner_names=["dog", ""])
    drawn = words(axes)
    assert set(drawn) == {"cow", "0.50", "dog", "0.032"}
    assert drawn["0.50"] == drawn["0.032"] == WEIGHT_COLOUR
    assert drawn["cow"] == REFERENCE_COLOUR


def test_a_weight_stands_at_its_box() -> None:
    axes = blank()
    draw_relations(axes, IMAGE, REFERENCE, [[150, 60, 190, 90], [10, 60, 50, 90]], [0.5, 0.25])
    place = {text.get_text(): text.get_position() for text in axes.texts}
    assert place["0.50"][0] > 100 > place["0.25"][0]
    assert place["0.50"][1] > 50


def test_labels_of_boxes_in_one_place_do_not_cover_each_other() -> None:
    axes = blank()
    draw_relations(axes, IMAGE, [60, 30, 120, 80], [[60, 30, 120, 80]] * 4, [0.4, 0.3, 0.2, 0.1], reference_name="cow")
    labels = [patch.get_bbox() for patch in axes.patches if patch.get_linewidth() == 0]
    assert len(labels) == 5
    for place, one in enumerate(labels):
        for other in labels[place + 1 :]:
            shared = one.intersection(one, other)
            assert shared is None or shared.width * shared.height < 1e-6


def test_a_label_at_the_edge_stays_within_the_image() -> None:
    axes = blank()
    draw_relations(axes, IMAGE, [190, 90, 200, 100], [[0, 0, 3, 3]], [0.5], reference_name="a long name")
    for label in (patch.get_bbox() for patch in axes.patches if patch.get_linewidth() == 0):
        assert (label.x0 >= 0, label.y0 >= 0, label.x1 <= 200, label.y1 <= 100) == (True,) * 4


def test_without_partners_the_reference_stands_alone() -> None:
    axes = blank()
    draw_relations(axes, IMAGE, REFERENCE, np.zeros((0, 4)), np.zeros(0))
    assert boxes(axes, PARTNER_COLOUR) == []
    assert words(axes) == {}


def test_without_weights_only_names_are_written() -> None:
    axes = blank()
    draw_relations(axes, IMAGE, REFERENCE, PARTNERS, partner_names=["dog", "boat"])
    assert set(words(axes)) == {"dog", "boat"}


def test_others_are_grey_and_named() -> None:
    axes = blank()
    draw_relations(axes, IMAGE, None, [], other_boxes=PARTNERS, other_names=["dog 0.90", "boat 0.40"])
    assert boxes(axes, OTHER_COLOUR) == PARTNERS[::-1]
    assert boxes(axes, REFERENCE_COLOUR) == []
    assert set(words(axes)) == {"dog 0.90", "boat 0.40"}


def test_a_picture_of_detections_shows_the_reference_its_partners_and_the_others() -> None:
    found = [[10, 20, 60, 80], [70, 5, 95, 60]]
    png = picture_of_detections(IMAGE, found, ["cow 0.9", "dog 0.5"], 0, [[100, 10, 150, 90]], [0.5], ["dog"])
    assert all(has_colour(png, colour, 100) for colour in (REFERENCE_COLOUR, PARTNER_COLOUR, OTHER_COLOUR))
    height, width = pixels(png).shape[:2]
    assert width == pytest.approx(2 * height, rel=0.01)


def test_a_picture_in_which_nothing_was_found_is_the_image() -> None:
    png = picture_of_detections(IMAGE, np.zeros((0, 4)), [], None, [], [], [])
    assert not any(has_colour(png, colour, 1) for colour in (REFERENCE_COLOUR, PARTNER_COLOUR, OTHER_COLOUR))


def test_names_that_are_not_one_a_partner_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        draw_relations(blank(), IMAGE, REFERENCE, PARTNERS, [0.5, 0.2], partner_names=["dog"])
