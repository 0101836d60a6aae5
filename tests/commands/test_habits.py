"""Completion in the shell, beginnings of names, and keys that stay on one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from affsup_cli import completion
from affsup_cli.app import app
from affsup_cli.commands.compare import compare
from affsup_cli.commands.list import list_
from affsup_cli.commands.show import show
from affsup_cli.commands.train import train
from affsup_cli.recipe import recipe_names
from affsup_cli.reporting.select.spec import report_names
from affsup_cli.resolve import run_path
from affsup_cli.views import tables
from data_prep.errors import UsageError
from tests.commands.calling import invoke
from tests.reporting.fake_runs import AFFINITY, BASE, RunMaker

NAMES = ("minibatch-digits-base-seed0-11", "minibatch-digits-focal-seed0-22", "relnet-shapes-seed0-33")


@pytest.fixture
def make(tmp_path: Path) -> RunMaker:
    make = RunMaker(tmp_path / "runs")
    for name in NAMES:
        make.train(BASE, 0.5, name=name)
    (make.root / ".slurm").mkdir()
    return make


def completed(*words: str) -> list[str]:
    """What bash offers for the last of these words."""
    line = " ".join(("affsup", *words))
    environment = {"_AFFSUP_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words))}
    result = CliRunner().invoke(app, prog_name="affsup", env=environment)
    return result.output.split()


def test_runs_are_completed_in_the_folder_that_the_command_names(make: RunMaker) -> None:
    for command in ("show", "evaluate", "export", "compare", "predict"):
        assert completed(command, "--runs", str(make.root), "minibatch-")[-2:] == list(NAMES[:2])
    assert completed("evaluate", "--runs", str(make.root / "nowhere"), "m") == []


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["report", "small-t"], ["small-table3"]),
        (["sweep", "al"], ["all"]),
        (["train", "rel"], ["relnet", "relpn"]),
        (["train", "relnet", "--dataset", "voc"], ["voc07"]),
        (["prepare", "cifar1"], ["cifar10", "cifar100"]),
        (["show", "figure9"], ["figure9"]),
        (["train", "relnet", "--set", "relation.h"], ["relation.heads="]),
        (["list", "runs", "--where", "affinity.gam"], ["affinity.gamma="]),
    ],
)
def test_names_and_fields_are_completed(words: list[str], offered: list[str]) -> None:
    assert completed(*words) == offered


def test_fields_are_those_of_the_recipe_that_is_named() -> None:
    context = typer.Context(typer.main.get_command(app))
    context.params["recipe"] = "minibatch"
    assert completion.complete_field(context, "relation.") == []
    context.params["recipe"] = "mine.toml"
    assert "relation.heads=" in completion.complete_field(context, "relation.")


def test_the_beginning_of_one_name_only_is_enough(make: RunMaker) -> None:
    assert run_path("relnet", make.root) == make.root / NAMES[2]
    assert run_path("minibatch-digits-f", make.root) == make.root / NAMES[1]
    assert run_path(NAMES[0], make.root) == make.root / NAMES[0]
    assert run_path("nothing", make.root) == make.root / "nothing"
    with pytest.raises(UsageError, match=f"minibatch is the beginning of 2 runs: {NAMES[0]}, {NAMES[1]}"):
        run_path("minibatch", make.root)
    assert "relnet-shapes" in invoke(show, "relnet-", "--runs", str(make.root)).output
    assert invoke(compare, "relnet-", NAMES[0], "--runs", str(make.root), "--out", str(make.root)).exit_code == 0


def test_a_whole_name_is_no_beginning_of_another(make: RunMaker) -> None:
    make.train(BASE, 0.5, name=f"{NAMES[0]}0")
    assert run_path(NAMES[0], make.root) == make.root / NAMES[0]


@pytest.mark.parametrize("name", [*recipe_names(), *report_names()])
@pytest.mark.parametrize("width", [80, None])
def test_no_key_is_broken(name: str, width: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "line_width", lambda: 10_000)
    whole = {word for word in invoke(show, name).output.split() if "=" in word or "/" in word or "." in word}
    monkeypatch.setattr(tables, "line_width", lambda: width)
    shown = invoke(show, name).output
    keys = {word for word in whole if word[0].isalpha() and ("=" in word or "/" in word)}
    assert not keys - set(shown.split())


@pytest.mark.parametrize("kind", ["recipes", "tables", "datasets"])
def test_lists_fit_a_narrow_terminal_and_keep_their_names(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "line_width", lambda: 80)
    lines = invoke(list_, kind, "--data", "nowhere").output.splitlines()
    assert max(map(len, lines)) <= 80
    names = {"recipes": recipe_names(), "tables": report_names(), "datasets": ["tiny-imagenet", "shape-scenes"]}[kind]
    assert {line.split()[0] for line in lines if line.strip()} >= set(names)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["minibatch", "--dataset", "voc07"],
            "data set 'voc07' holds scenes, for frcnn, relnet, relpn: minibatch takes cifar10, cifar100, digits, "
            "tiny-imagenet",
        ),
        (
            ["relnet", "--dataset", "cifar10"],
            "holds labelled images, for minibatch: relnet takes coco, shapes, vg, voc07",
        ),
        (["scene", "--dataset", "voc07"], "holds scenes without categories, for frcnn, relnet, relpn: scene takes"),
    ],
)
def test_a_data_set_of_another_task_is_refused_with_those_that_fit(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    result = invoke(train, *arguments, "--data", str(tmp_path), "--runs", str(tmp_path / "runs"))
    assert isinstance(result.exception, UsageError)
    assert said in str(result.exception)


def test_arguments_are_checked_before_data_are_prepared(tmp_path: Path) -> None:
    result = invoke(train, "minibatch", "--device", "cuda:77", "--data", str(tmp_path / "data"))
    assert isinstance(result.exception, UsageError)
    assert "cuda:77" in str(result.exception)
    assert not (tmp_path / "data").exists()


def test_a_run_list_names_runs_on_one_line(make: RunMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    make.train({**AFFINITY, "data.name": "tiny-imagenet"}, 0.5, name="a-run-of-a-long-name-" * 4)
    for width in (200, 80, 40, None):
        monkeypatch.setattr(tables, "line_width", lambda width=width: width)
        shown = invoke(list_, "runs", "--runs", str(make.root)).output
        assert {path.name for path in make.root.iterdir() if path.name != ".slurm"} <= set(shown.split())
