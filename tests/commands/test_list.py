from __future__ import annotations

from pathlib import Path

import pytest

from affsup_cli.commands.list import list_
from affsup_cli.commands.show import show
from affsup_cli.views import tables
from data_prep.errors import UsageError
from tests.commands.calling import invoke
from tests.reporting.fake_runs import AFFINITY, BASE, SHORT, RunMaker

LONG = "minibatch-tiny-imagenet-resnet101-focal-seed0-5d0c41f2"


@pytest.fixture
def make(tmp_path: Path) -> RunMaker:
    """Runs of two data sets in every state."""
    make = RunMaker(tmp_path / "runs")
    make.train(BASE, 0.5, name="base")
    make.train({**AFFINITY, "affinity.gamma": 2.0}, 0.7, name="gamma2")
    make.train({**AFFINITY, "data.name": "digits"}, 0.6, name="digits")
    make.start({**BASE, **SHORT}, name="going").append_metrics({"epoch": 1})
    make.measure(AFFINITY, [1.0], [1.0], name="costs")
    damaged = make.train(BASE, 0.9, name="broken")
    (damaged.path / "result.json").write_text("{}")
    return make


def listed(make: RunMaker, *arguments: str) -> list[str]:
    """The names in the order in which they are listed."""
    result = invoke(list_, "runs", "--runs", str(make.root), *arguments)
    assert result.exit_code == 0, result.exception
    known = {path.name for path in make.root.iterdir()}
    return [
        line.split()[0] for line in result.output.splitlines() if line.split()[0] in known and "damaged:" not in line
    ]


def row(make: RunMaker, name: str) -> list[str]:
    result = invoke(list_, "runs", "--runs", str(make.root))
    return next(line.split() for line in result.output.splitlines() if line.startswith(f"{name} "))


def test_a_row_says_what_a_run_is_and_came_to(make: RunMaker) -> None:
    started = ["2026-11-01", "10:01"]
    assert row(make, "base") == ["base", "cifar10", "200", "finished", "accuracy", "50.00%", "0.400", *started]
    assert row(make, "going")[1:8] == ["cifar10", "1", "of", "2", "unfinished", "–", "–"]
    assert row(make, "costs")[1:6] == ["cifar10", "costs", "finished", "–", "–"]
    assert row(make, "broken")[1:6] == ["cifar10", "–", "damaged", "–", "–"]


def test_what_is_damaged_is_named_below(make: RunMaker) -> None:
    result = invoke(list_, "runs", "--runs", str(make.root), "--state", "damaged")
    assert "1 of 6 runs" in result.output
    assert "broken is damaged: " in result.output
    assert "result.json is damaged: expected an object with the key 'kind'" in result.output


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ([], ["base", "broken", "costs", "digits", "gamma2", "going"]),
        (["--reverse"], ["going", "gamma2", "digits", "costs", "broken", "base"]),
        (["--state", "finished"], ["base", "costs", "digits", "gamma2"]),
        (["--state", "unfinished"], ["going"]),
        (["--where", "data.name=dig*"], ["digits"]),
        (["--where", "affinity.gamma=2"], ["gamma2"]),
        (["--where", "affinity.gamma=[24].0", "--where", "affinity.loss=focal"], ["costs", "digits", "gamma2"]),
        (["--where", "train.test_curve=false", "--where", "train.epochs=2"], ["going"]),
        (["--where", "model.width=7"], []),
        (["--sort", "started"], ["base", "gamma2", "digits", "going", "costs", "broken"]),
        (["--sort", "test_accuracy", "--reverse", "--limit", "3"], ["gamma2", "digits", "base"]),
        (["--sort", "test_accuracy"], ["base", "digits", "gamma2", "broken", "costs", "going"]),
        (["--sort", "seconds", "--limit", "1"], ["base"]),
    ],
)
def test_runs_are_chosen_and_sorted(make: RunMaker, arguments: list[str], names: list[str]) -> None:
    assert listed(make, *arguments) == names


def test_what_is_sorted_by_is_shown(make: RunMaker) -> None:
    result = invoke(list_, "runs", "--runs", str(make.root), "--sort", "val_accuracy")
    assert "val_accuracy" in result.output
    assert "49.00%" in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["runs", "--where", "gamma"], "expected KEY=VALUE"),
        (["runs", "--where", "affinity.gama=2"], "did you mean 'affinity.gamma'"),
        (["runs", "--sort", "test_acuracy"], "did you mean 'test_accuracy'"),
        (["tables", "--where", "task=relnet"], "--where is an option of `affsup list runs`"),
        (["--limit", "2"], "--limit is an option of `affsup list runs`"),
        (["datasets", "--reverse"], "--reverse is an option of `affsup list runs`"),
    ],
)
def test_a_mistake_is_named(make: RunMaker, arguments: list[str], said: str) -> None:
    result = invoke(list_, *arguments, "--runs", str(make.root))
    assert isinstance(result.exception, UsageError)
    assert said in str(result.exception)


def test_no_runs_are_said_to_be_none(tmp_path: Path) -> None:
    assert "no runs in" in invoke(list_, "runs", "--runs", str(tmp_path)).output


def test_on_a_narrow_terminal_the_fields_of_a_run_stand_below_its_name(
    make: RunMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "line_width", lambda: 60)
    make.train({**AFFINITY, "data.name": "tiny-imagenet"}, 0.5, name=LONG)
    lines = invoke(list_, "runs", "--runs", str(make.root)).output.splitlines()
    at = lines.index(LONG)
    assert lines[at + 1 : at + 4] == ["  data tiny-imagenet", "  epochs 90", "  state finished"]
    assert max(map(len, lines[1:-1])) <= 60  # but for the title, which holds a path, and a message


def test_tables_are_listed_with_their_data_and_runs() -> None:
    found = invoke(list_, "tables").output.splitlines()
    at = next(number for number, line in enumerate(found) if line.startswith("table3 "))
    assert found[at].split()[-2:] == ["cifar10", "150"]
    assert [line.strip() for line in found[at + 1 : at + 3]] == ["cifar100", "tiny-imagenet"]


def test_a_table_is_shown_with_what_each_cell_sets() -> None:
    found = [line.split() for line in invoke(show, "table3").output.splitlines()]
    assert ["cifar10/resnet20/base", "minibatch", "cifar10", "affinity.loss=none", "10"] in found
    assert ["cifar10/resnet20/affinity", "minibatch", "cifar10", "–", "10"] in found
    assert ["150", "runs", "in", "all"] in found


def test_a_cost_comparison_is_shown_with_both_sides() -> None:
    found = invoke(show, "table4").output
    assert "timed in alternation with" in found
    assert "affinity.loss=none" in found


def test_a_run_that_stands_in_several_cells_is_counted_once() -> None:
    assert "7 runs in all, some of them in several cells" in invoke(show, "figure5").output


def test_an_odd_file_makes_its_run_damaged_and_no_other(make: RunMaker) -> None:
    environment = make.root / "base" / "environment.json"
    environment.unlink()
    environment.mkdir()
    (make.root / "going" / "metrics.jsonl").write_text("[" * 100_000 + "\n")
    result = invoke(list_, "runs", "--runs", str(make.root), "--state", "damaged")
    assert result.exit_code == 0, result.exception
    assert "3 of 6 runs" in result.output
    assert "base is damaged: " in result.output
    assert "going is damaged: " in result.output


def test_a_folder_that_may_not_be_entered_is_named_as_a_damaged_run_is(make: RunMaker, closed: Path) -> None:
    result = invoke(list_, "runs", "--runs", str(make.root))
    assert result.exit_code == 0, result.exception
    assert f"closed is damaged: {closed / 'recipe.toml'} cannot be read: Permission denied" in result.output
    assert row(make, "closed")[3] == "damaged"
    assert row(make, "base")[3] == "finished"


def test_a_name_does_not_steer_the_terminal(make: RunMaker) -> None:
    make.train(BASE, 0.5, name="red\x1b[31m\x9b1m\u202e\udcff")
    (make.root / "broken").rename(make.root / "broken\x1b[31m")
    output = invoke(list_, "runs", "--runs", str(make.root)).output
    assert not set(output) & {"\x1b", "\x9b", "\u202e", "\udcff"}
    assert r"red\x1b[31m\x9b1m\u202e\udcff" in output
    assert r"broken\x1b[31m is damaged" in output


@pytest.mark.parametrize(
    ("width", "sort", "there"),
    [
        (160, "name", {"started", "M"}),
        (128, "name", {"M"}),
        (110, "name", set()),
        (124, "started", {"started"}),
    ],
)
def test_columns_make_room_for_whole_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int, sort: str, there: set[str]
) -> None:
    make = RunMaker(tmp_path / "runs")
    make.train({**AFFINITY, "data.name": "tiny-imagenet"}, 0.5, name=LONG)
    monkeypatch.setattr(tables, "line_width", lambda: width)
    _, *shown = invoke(list_, "runs", "--runs", str(make.root), "--sort", sort).output.splitlines()
    heads = next(line.split() for line in shown if line.startswith("name"))
    assert set(heads) & {"started", "M"} == there
    assert max(map(len, shown)) <= width
    assert any(LONG in line for line in shown)


def test_of_many_metrics_a_few_are_named(tmp_path: Path) -> None:
    make = RunMaker(tmp_path / "runs")
    make.finish(BASE, {f"{split}_recall@{k}": 0.5 for split in ("test", "train") for k in range(10)})
    result = invoke(list_, "runs", "--runs", str(make.root), "--sort", "test_recal@3")
    assert isinstance(result.exception, UsageError)
    assert "did you mean 'test_recall@3'" in str(result.exception)
    assert str(result.exception).count("recall@") == 6
    assert "test_recall@4 and 15 more)" in str(result.exception)
