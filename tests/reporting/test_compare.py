from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from affsup_cli.reporting.compare import best_runs, compare_runs, metric_direction, write_curves
from affsup_cli.reporting.render.figure import PALETTE
from affsup_cli.runs.folder import RunFolder
from data_prep.errors import AffsupError, UsageError
from tests.reporting.fake_runs import AFFINITY, BASE, SHORT, RunMaker, decay
from tests.reporting.pictures import margin_is_white, pixels

VOC = {"data.name": "voc07"}


@pytest.fixture
def make(tmp_path: Path) -> RunMaker:
    return RunMaker(tmp_path / "runs")


def test_only_fields_that_differ_are_told(make: RunMaker) -> None:
    found = compare_runs([make.train(BASE, 0.5), make.train(AFFINITY, 0.6, seed=3), make.train(AFFINITY, 0.6)])
    assert found.recipes == {"seed": (0, 3, 0), "affinity.loss": ("none", "focal", "focal")}
    assert found.environments == {}
    assert found.notes == (
        "run001 has finished no epoch yet",
        "run002 has finished no epoch yet",
        "run003 has finished no epoch yet",
    )


def test_where_runs_execute_is_no_part_of_their_recipes(make: RunMaker) -> None:
    found = compare_runs([make.train({**BASE, "run.device": "cpu"}, 0.5), make.train(BASE, 0.5)])
    assert found.recipes == {}


def test_machines_code_and_data_are_compared_without_the_date(make: RunMaker) -> None:
    first = make.train(BASE, 0.5, data={"digest": "e" * 64, "classes": ["a"]}, commit="f" * 40)
    found = compare_runs([first, make.train(BASE, 0.5)])
    assert found.environments == {
        "commit": ("f" * 40, "0123456789abcdef0123456789abcdef01234567"),
        "data.digest": ("e" * 64, "d" * 64),
    }


def test_numbers_stand_side_by_side_those_of_the_test_split_first(make: RunMaker) -> None:
    runs = [
        make.finish(BASE, {"train_loss": 1.0, "val_accuracy": 0.4, "test_accuracy": 0.5}),
        make.finish(AFFINITY, {"train_loss": 0.5, "train_mass": 0.2, "test_accuracy": 0.6}),
    ]
    found = compare_runs(runs)
    assert list(found.metrics.items()) == [
        ("test_accuracy", (0.5, 0.6)),
        ("val_accuracy", (0.4, None)),
        ("train_loss", (1.0, 0.5)),
        ("train_mass", (None, 0.2)),
    ]


@pytest.mark.parametrize(
    ("metric", "direction"),
    [
        ("test_accuracy_macro", "higher"),
        ("test_map_50", "higher"),
        ("test_recall@100", "higher"),
        ("train_class_loss", "lower"),
        ("train_loss", "lower"),
        ("test_mass", None),
    ],
)
def test_what_is_better(metric: str, direction: str | None) -> None:
    assert metric_direction(metric) == direction


def test_the_best_is_marked_where_there_is_one(make: RunMaker) -> None:
    values = ({"loss": 2.0, "mass": 0.1}, {"loss": 1.0, "mass": 0.3}, {"loss": 1.0, "mass": 0.2})
    runs = [
        make.finish(BASE, {"train_loss": v["loss"], "test_mass": v["mass"], "test_accuracy": 0.5, "val_accuracy": loss})
        for v, loss in zip(values, (0.3, 0.2, 0.1), strict=True)
    ]
    found = compare_runs(runs)
    assert best_runs(found, "train_loss") == {1, 2}
    assert best_runs(found, "val_accuracy") == {0}
    assert best_runs(found, "test_mass") == best_runs(found, "test_accuracy") == frozenset()


def test_an_unfinished_run_is_compared_as_far_as_it_is_and_never_the_best(make: RunMaker) -> None:
    going = make.start({**BASE, **SHORT})
    going.append_metrics({"epoch": 1, "train_loss": 0.1, "val_accuracy": 0.9})
    found = compare_runs([make.finish(BASE, {"val_accuracy": 0.5}), make.finish(BASE, {"val_accuracy": 0.4}), going])
    assert (found.runs[2].finished, found.runs[2].epochs, found.runs[2].planned) == (False, 1, 2)
    assert found.metrics["val_accuracy"] == (0.5, 0.4, 0.9)
    assert best_runs(found, "val_accuracy") == {0}
    assert any("newest epoch" in note for note in found.notes)


def test_of_different_tasks_what_they_share_is_shown_and_said(make: RunMaker) -> None:
    runs = [
        make.finish(AFFINITY, {"test_accuracy": 0.5, "test_mass": 0.4}),
        make.finish(VOC, {"test_map_50": 0.5, "test_mass": 0.3}, recipe_name="relnet"),
    ]
    found = compare_runs(runs)
    assert found.metrics == {"test_mass": (0.4, 0.3)}
    assert found.recipes["task"] == ("minibatch", "relnet")
    assert "model.width" not in found.recipes
    assert "different tasks (minibatch, relnet)" in found.notes[0]


def test_the_curves_are_those_that_all_runs_have(make: RunMaker) -> None:
    full = make.train(BASE, 0.5, curve=decay(3, 0.5, 0.3))
    without_test = make.train(AFFINITY, 0.5, curve=decay(2, 0.6, 0.4, test=False))
    without_mass = make.train(AFFINITY, 0.5, curve=decay(2, 0.6, None))
    assert compare_runs([full, without_test]).curves == {
        "training loss": "train_loss",
        "accuracy": "val_accuracy",
        "target affinity mass M": "val_mass",
    }
    assert compare_runs([full, without_mass]).curves == {"training loss": "train_loss", "accuracy": "test_accuracy"}


def test_the_curves_are_written_with_their_numbers(make: RunMaker, tmp_path: Path) -> None:
    curves = [decay(3, 0.5, 0.3), decay(2, 0.6, 0.4, noise=1)]
    runs = [make.train(BASE, 0.5, curve=curve, name=name) for curve, name in zip(curves, "ab", strict=True)]
    written = write_curves(compare_runs([*runs, make.start(BASE, name="c")]), tmp_path / "new" / "out")
    assert [path.name for path in written] == ["compare.png", "compare.csv"]
    assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == ["compare.csv", "compare.png"]
    rows = list(csv.DictReader((tmp_path / "new" / "out" / "compare.csv").read_text().splitlines()))
    assert [(row["run"], row["epoch"]) for row in rows] == [("a", "1"), ("a", "2"), ("a", "3"), ("b", "1"), ("b", "2")]
    assert [float(row["test_accuracy"]) for row in rows] == [each["test_accuracy"] for run in curves for each in run]
    assert [float(row["test_mass"]) for row in rows] == [each["test_mass"] for run in curves for each in run]


def test_each_run_is_a_line_of_its_own_colour(make: RunMaker, tmp_path: Path) -> None:
    runs = [make.train(BASE, 0.5, curve=decay(9, 0.5, 0.3, noise=noise)) for noise in range(3)]
    (picture, _) = write_curves(compare_runs(runs), tmp_path)
    png = picture.read_bytes()
    drawn = {"#" + bytes(colour).hex() for colour in pixels(png).reshape(-1, 3)}
    assert drawn & set(PALETTE) == set(PALETTE[:3])
    assert margin_is_white(png)


def test_runs_without_a_common_curve_leave_no_files(make: RunMaker, tmp_path: Path) -> None:
    assert write_curves(compare_runs([make.train(BASE, 0.5), make.train(BASE, 0.6)]), tmp_path / "out") == ()
    assert not (tmp_path / "out").exists()


def test_runs_of_one_name_are_told_apart_by_their_paths(make: RunMaker, tmp_path: Path) -> None:
    other = RunMaker(tmp_path / "elsewhere")
    found = compare_runs([make.train(BASE, 0.5, name="x"), other.train(BASE, 0.5, name="x")])
    assert [run.label for run in found.runs] == [str(tmp_path / "runs" / "x"), str(tmp_path / "elsewhere" / "x")]


def test_what_cannot_be_compared_is_refused(make: RunMaker) -> None:
    run, cost = make.train(BASE, 0.5), make.measure(AFFINITY, [1.0], [1.0])
    for runs, said in (
        ([run], "two or more runs"),
        ([run, RunFolder(run.path.parent / "." / run.name)], "named twice"),
        ([run, cost], "compares costs"),
    ):
        with pytest.raises(UsageError, match=said):
            compare_runs(runs)


@pytest.mark.parametrize("content", ["{}", "no JSON", json.dumps({"kind": "train", "metrics": 3})])
def test_a_damaged_run_is_named(make: RunMaker, content: str) -> None:
    damaged = make.train(BASE, 0.5, name="broken")
    (damaged.path / "result.json").write_text(content)
    with pytest.raises(AffsupError, match=r"broken/result\.json"):
        compare_runs([make.train(BASE, 0.5), damaged])


def test_any_name_of_a_run_is_drawn_without_a_warning(make: RunMaker) -> None:
    names = ("実験1", "a$^$b", "red\x1b[31m")
    runs = [make.train(BASE, 0.5, name=name, curve=decay(3, 0.5, 0.3)) for name in names]
    picture, table = write_curves(compare_runs(runs), make.root.parent / "out")
    assert pixels(picture.read_bytes()).size
    assert "実験1" in table.read_text(encoding="utf-8")
