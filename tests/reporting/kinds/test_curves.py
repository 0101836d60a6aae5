from __future__ import annotations

import io
from typing import Any

import pandas as pd
import pytest

from affsup_cli.reporting.kinds.curves import build_curves
from affsup_cli.reporting.render.document import DASH, Content
from affsup_cli.reporting.select.experiments import experiments
from affsup_cli.reporting.select.spec import CurvesSpec, load_spec
from affsup_cli.runs.index import RunIndex
from tests.reporting.fake_runs import CIFAR10_RESNET20, RunMaker, decay
from tests.reporting.pictures import has_colour, margin_is_white, pixels

GAMMA = "\N{GREEK SMALL LETTER GAMMA}"
RED_BOX = "#d00000"
VARIANTS: list[dict[str, Any]] = [
    {"affinity.loss": "none"},
    *({"affinity.gamma": gamma} for gamma in (0, 2, 4, 6)),
    *({"affinity.lambda": weight} for weight in (0.01, 1)),
]


def record(epoch: int, accuracy: float, mass: float | None, *, test: bool = True) -> dict[str, Any]:
    shown = {"epoch": epoch, "val_accuracy": accuracy - 0.05, "val_mass": mass}
    return shown | ({"test_accuracy": accuracy, "test_mass": mass} if test else {})


def train(make: RunMaker, variant: dict[str, Any], curve: list[dict[str, Any]], seed: int = 0, **more: Any) -> None:
    fields = {"train.test_curve": "test_accuracy" in curve[0], "train.epochs": len(curve)}
    make.train({**CIFAR10_RESNET20, **fields, **variant}, 0.9, seed, curve=curve, **more)


def figure5(make: RunMaker) -> Content:
    spec = load_spec("figure5")
    assert isinstance(spec, CurvesSpec)
    return build_curves(spec, RunIndex(make.root))


def frame(content: Content) -> pd.DataFrame:
    return pd.read_csv(io.BytesIO(content.files[".csv"]))


def test_without_runs_there_are_no_files(make: RunMaker) -> None:
    assert figure5(make).files == {}


def test_the_csv_holds_error_in_percent_and_mass_of_every_epoch_and_seed(make: RunMaker) -> None:
    for seed in range(2):
        train(make, {"affinity.gamma": 2}, [record(1, 0.5, 0.2), record(2, 0.75 + seed / 8, 0.4)], seed)
    lines = frame(figure5(make))
    assert list(lines.columns) == ["panel", "curve", "seed", "epoch", "split", "error", "mass"]
    assert lines.values.tolist() == [
        ["gamma", "gamma2", 0, 1, "test", 50.0, 0.2],
        ["gamma", "gamma2", 0, 2, "test", 25.0, 0.4],
        ["gamma", "gamma2", 1, 1, "test", 50.0, 0.2],
        ["gamma", "gamma2", 1, 2, "test", 12.5, 0.4],
    ]


def test_a_run_shown_in_both_panels_stands_in_both(make: RunMaker) -> None:
    train(make, {"affinity.loss": "none"}, [record(1, 0.5, 0.2)])
    assert list(frame(figure5(make))["panel"]) == ["gamma", "lambda"]


def test_the_tables_give_the_mean_of_the_last_epoch_and_dashes_for_missing_curves(make: RunMaker) -> None:
    for seed, final in enumerate([0.8, 0.9]):
        train(make, {"affinity.gamma": 6}, [record(1, 0.5, 0.2), record(2, final, 0.4)], seed)
    content = figure5(make)
    assert content.tables[0].rows[-1] == (f"{GAMMA} = 6", "15.00 ᵃ", "0.400 ᵃ", "2")
    assert content.tables[0].rows[0] == ("base CNN", DASH, DASH, "0")
    assert (
        f"focal exponent {GAMMA} (λ = 0.1): no runs for base CNN, {GAMMA} = 0, {GAMMA} = 2, {GAMMA} = 4"
        in content.notes
    )


def test_a_curve_without_mass_is_a_curve_of_error_alone(make: RunMaker) -> None:
    train(make, {"affinity.loss": "none"}, [record(1, 0.5, None), record(2, 0.6, None)])
    content = figure5(make)
    assert content.tables[0].rows[0] == ("base CNN", "40.00 ᵃ", DASH, "1")
    assert frame(content)["mass"].isna().all()


def test_where_one_run_lacks_the_test_curve_all_are_shown_on_validation(make: RunMaker) -> None:
    train(make, {"affinity.loss": "none"}, [record(1, 0.5, 0.2, test=False)])
    train(make, {"affinity.gamma": 2}, [record(1, 0.5, 0.2, test=False)])
    content = figure5(make)
    assert set(frame(content)["split"]) == {"validation"}
    assert frame(content)["error"].tolist() == pytest.approx([55.0] * 3)
    assert "validation split" in content.caption
    assert "train.test_curve = false instead of true" in content.footnotes[0]


def test_faithful_runs_are_shown_and_others_left_out(make: RunMaker) -> None:
    train(make, {"affinity.loss": "none"}, decay(200, 0.9, 0.3))
    train(make, {"affinity.gamma": 2}, decay(3, 0.5, 0.3))
    content = figure5(make)
    assert set(frame(content)["curve"]) == {"base"}
    assert not any("ᵃ" in field for row in content.tables[0].rows for field in row)
    assert content.footnotes == ("ᵃ train.epochs = 3 instead of 200",)
    assert "left out (not comparable with the runs shown ᵃ): run002" in content.notes


@pytest.mark.parametrize(
    ("curve", "said"),
    [
        ([record(1, 0.5, 0.2)], "metrics.jsonl has 1 of 2 epochs"),
        ([record(1, 0.5, 0.2), record(2, float("nan"), 0.2)], "val_accuracy is not a number"),
    ],
)
def test_a_run_with_a_broken_curve_is_left_out_and_named(
    make: RunMaker, curve: list[dict[str, Any]], said: str
) -> None:
    make.train({**CIFAR10_RESNET20, "train.test_curve": True, "train.epochs": 2}, 0.9, curve=curve)
    content = figure5(make)
    assert content.files == {}
    assert said in content.notes[0]


def test_a_run_with_damaged_metrics_is_left_out_and_named(make: RunMaker) -> None:
    train(make, {"affinity.gamma": 2}, [record(1, 0.5, 0.2)])
    (make.root / "run001" / "metrics.jsonl").write_text("{\n")
    assert "metrics.jsonl, line 1 is not valid JSON" in figure5(make).notes[0]


def test_the_picture_shows_every_curve_and_boxes_the_best(make: RunMaker) -> None:
    for place, variant in enumerate(VARIANTS):
        train(make, variant, decay(12, 0.9 + place / 100, 0.2 + place / 10))
    png = figure5(make).files[".png"]
    assert pixels(png).shape == (1020, 1350, 3)
    assert all(has_colour(png, colour) for colour in ("#222222", "#3f90da", "#e76300", "#832db6", "#94a4a2", RED_BOX))
    assert margin_is_white(png)


def test_several_seeds_have_a_band_and_one_seed_has_none(make: RunMaker) -> None:
    pale_blue = "#e2eef9"
    train(make, {"affinity.gamma": 0}, decay(9, 0.9, 0.4))
    assert not has_colour(figure5(make).files[".png"], pale_blue, least=2000)
    train(make, {"affinity.gamma": 0}, decay(9, 0.5, 0.2), seed=1)
    assert has_colour(figure5(make).files[".png"], pale_blue, least=2000)


def test_a_curve_keeps_its_colour_where_others_are_missing(make: RunMaker) -> None:
    train(make, {"affinity.gamma": 6}, decay(5, 0.9, 0.4))
    assert has_colour(figure5(make).files[".png"], "#94a4a2", least=500)


@pytest.mark.parametrize(("last", "boxed"), [(0.2, True), (0.1, False), (0.100001, False)])
def test_curves_with_the_same_error_are_boxed_unless_all_have_it(make: RunMaker, last: float, boxed: bool) -> None:
    for gamma, error in ((0, 0.1), (2, 0.1), (6, last)):
        train(make, {"affinity.gamma": gamma}, [record(1, 1 - error, 0.4)])
    assert has_colour(figure5(make).files[".png"], RED_BOX) == boxed


def test_a_curve_alone_is_not_boxed(make: RunMaker) -> None:
    train(make, {"affinity.gamma": 2}, decay(5, 0.9, 0.4))
    assert not has_colour(figure5(make).files[".png"], RED_BOX)


def test_a_single_panel_has_its_axes_side_by_side(make: RunMaker) -> None:
    for experiment in experiments(load_spec("demo-mass")):
        make.train(experiment.recipe.flat(), 0.9, curve=decay(5, 0.9, 0.3))
    spec = load_spec("demo-mass")
    assert isinstance(spec, CurvesSpec)
    png = build_curves(spec, RunIndex(make.root)).files[".png"]
    assert pixels(png).shape == (585, 1350, 3)
    assert margin_is_white(png)


def test_an_error_of_zero_and_a_single_epoch_can_be_drawn(make: RunMaker) -> None:
    train(make, {"affinity.gamma": 2}, [record(1, 1.0, 1.0)])
    assert has_colour(figure5(make).files[".png"], "#e76300")
