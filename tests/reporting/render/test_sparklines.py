from __future__ import annotations

import math
import re

import pytest

from affsup_cli.reporting.render.sparklines import MAX_POINTS, Sparkline, sparklines, value_ranges


def points(svg: str) -> list[tuple[float, float]]:
    path = re.search(r'class="line" d="M([^"]*)"', svg)
    assert path is not None
    return [(float(x), float(y)) for x, y in (point.split() for point in path[1].split("L"))]


def test_what_the_epochs_recorded_is_drawn_of_the_validation_split_first() -> None:
    record = {"epoch": 1, "train_loss": 2.0, "val_accuracy": 0.5, "test_accuracy": 0.4, "train_mass": 0.1}
    found = sparklines([record | {"val_mass": None, "gradient_share": 0.3}])
    assert [(curve.label, curve.points) for curve in found] == [
        ("loss, training", ((1, 2.0),)),
        ("accuracy, validation", ((1, 0.5),)),
        ("M, training", ((1, 0.1),)),
        ("gradient share of L_G", ((1, 0.3),)),
    ]


def test_numbers_that_are_not_finite_are_passed_over() -> None:
    records = [{"epoch": epoch, "train_loss": loss} for epoch, loss in enumerate([1.0, math.nan, None, 2.0], 1)]
    assert sparklines(records)[0].points == ((1, 1.0), (4, 2.0))


def test_without_records_there_is_nothing_to_draw() -> None:
    assert sparklines([]) == []


def test_a_line_goes_from_corner_to_corner_of_its_axes() -> None:
    svg = Sparkline("loss", "loss, training", ((1, 3.0), (2, 2.0), (3, 1.0))).svg(1.0, 3.0)
    axes = re.search(r'class="axes" d="M(\d+) (\d+)V(\d+)H(\d+)"', svg)
    assert axes is not None
    left, top, foot, right = map(float, axes.groups())
    assert points(svg) == [(left, top), ((left + right) / 2, (top + foot) / 2), (right, foot)]


@pytest.mark.parametrize("values", [((5, 2.0),), ((1, 2.0), (2, 2.0))])
def test_one_point_and_a_level_line_are_drawn(values: tuple[tuple[int, float], ...]) -> None:
    assert len(points(Sparkline("loss", "loss", values).svg(2.0, 2.0))) == len(values)


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    values = tuple((epoch, 1 / epoch) for epoch in range(1, 1001))
    drawn = points(Sparkline("loss", "loss", values).svg(0.0, 1.0))
    ends = points(Sparkline("loss", "loss", (values[0], values[-1])).svg(0.0, 1.0))
    assert len(drawn) == MAX_POINTS
    assert [drawn[0], drawn[-1]] == ends


def test_runs_share_a_range_and_shares_go_from_0_to_1() -> None:
    of_runs = [Sparkline("loss", "", ((1, 3.0), (2, 1.0))), Sparkline("loss", "", ((1, 2.0), (2, 0.5)))]
    assert value_ranges([*of_runs, Sparkline("M", "", ((1, 0.2),))]) == {"loss": (0.5, 3.0), "M": (0.0, 1.0)}


def test_a_label_is_escaped() -> None:
    assert 'aria-label="&lt;a&gt; &amp; &quot;b&quot; over' in Sparkline("loss", '<a> & "b"', ((1, 1.0),)).svg(0.0, 1.0)
