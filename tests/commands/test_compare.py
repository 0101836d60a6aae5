from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from affsup_cli.commands.compare import compare
from data_prep.errors import UsageError
from tests.commands.calling import invoke
from tests.reporting.fake_runs import AFFINITY, BASE, RunMaker, decay


@pytest.fixture
def make(tmp_path: Path) -> RunMaker:
    return RunMaker(tmp_path / "runs")


def places(make: RunMaker) -> tuple[str, ...]:
    return "--runs", str(make.root), "--out", str(make.root.parent / "out")


def lines(output: str) -> list[str]:
    return [re.sub(r" +", " ", line).strip() for line in output.splitlines()]


def test_recipes_machines_and_numbers_stand_side_by_side(make: RunMaker) -> None:
    make.train(BASE, 0.5, name="base", curve=decay(3, 0.5, 0.3))
    make.train(AFFINITY, 0.625, name="sup", curve=decay(3, 0.5, 0.3), commit="e" * 40)
    result = invoke(compare, "base", "sup", *places(make))
    assert result.exit_code == 0
    said = lines(result.output)
    assert "1 base finished, 3 epochs" in said
    assert "2 sup finished, 3 epochs" in said
    assert "affinity.loss none focal" in said
    assert "commit 0123456789ab eeeeeeeeeeee" in said
    assert "test_accuracy 50.00% 62.50% (+12.50)" in said
    assert "test_mass 0.4000 0.4000 (+0.0000)" in said
    assert (make.root.parent / "out" / "compare.png").is_file()


def test_the_best_number_is_bold(make: RunMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Console(force_terminal=True, color_system="standard", width=120, file=io.StringIO())
    monkeypatch.setattr("affsup_cli.views.console.console", terminal)
    make.train(BASE, 0.5, name="base")
    make.train(AFFINITY, 0.625, name="sup")
    invoke(compare, "base", "sup", *places(make))
    assert isinstance(terminal.file, io.StringIO)
    row = next(line for line in terminal.file.getvalue().splitlines() if line.startswith("test_accuracy"))
    assert "\x1b[1m62.50% (+12.50)\x1b[0m" in row
    assert "\x1b[1m50.00%" not in row


def test_what_does_not_differ_is_said(make: RunMaker) -> None:
    for name in ("one", "two"):
        make.train(BASE, 0.5, name=name)
    result = invoke(compare, "one", str(make.root / "two"), *places(make))
    assert "recipes: no difference" in result.output
    assert "machines, code and data: no difference" in result.output
    assert "no curves" in result.output


def test_an_unfinished_run_is_compared_as_far_as_it_is(make: RunMaker) -> None:
    make.train(BASE, 0.5, name="done", curve=decay(3, 0.5, 0.3))
    make.start(BASE, name="going").append_metrics({"epoch": 1, "train_loss": 2.0, "val_accuracy": 0.25})
    result = invoke(compare, "done", "going", *places(make))
    assert result.exit_code == 0
    assert "2 going unfinished, 1 of 200 epochs" in lines(result.output)
    assert "val_accuracy 49.00% 25.00% (-24.00)" in lines(result.output)
    assert "test_accuracy 50.00% –" in lines(result.output)
    assert (make.root.parent / "out" / "compare.csv").is_file()


def test_brackets_in_a_recipe_are_printed_as_they_are(make: RunMaker) -> None:
    for name, weights in (("one", "[red]x.pt"), ("two", "none")):
        make.finish(
            {"data.name": "voc07", "model.weights": weights}, {"test_map_50": 0.5}, recipe_name="frcnn", name=name
        )
    result = invoke(compare, "one", "two", *places(make))
    assert "model.weights [red]x.pt none" in lines(result.output)


@pytest.mark.parametrize(
    ("named", "said"),
    [(["one"], "two or more runs"), (["one", "one"], "named twice"), (["one", "nowhere"], "is not a run folder")],
)
def test_a_mistake_is_named(make: RunMaker, named: list[str], said: str) -> None:
    make.train(BASE, 0.5, name="one")
    result = invoke(compare, *named, *places(make))
    assert isinstance(result.exception, UsageError)
    assert said in str(result.exception)
    assert not (make.root.parent / "out").exists()
