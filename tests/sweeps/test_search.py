from __future__ import annotations

import csv
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from typer.testing import CliRunner

from affsup_cli.app import app
from affsup_cli.recipe import load_recipe
from affsup_cli.runs.folder import RunFolder, run_folders
from affsup_cli.runtime.stop import Stopped
from affsup_cli.sweeps.search import SCORES, STORAGE, Choices, Range, Search, Trial, parse_dimension
from affsup_cli.tasks.detection.task import DetectionTask
from affsup_cli.tasks.launch import evaluate_run, train_run
from affsup_cli.tasks.minibatch import MinibatchTask
from affsup_cli.tasks.scene.task import SceneTask
from affsup_cli.training.observers import Observer
from data_prep.errors import AffsupError, UsageError

pytest.importorskip("optuna", reason="a search needs optuna: pip install 'affsup[search]'")

SHORT: dict[str, Any] = {
    "train.epochs": 2,
    "train.milestones": [],
    "train.batch_size": 32,
    "data.train_images": 64,
    "run.device": "cpu",
}
SPACE = [Range("affinity.lambda", 0.01, 1.0, log=True), Choices("affinity.gamma", ("0", "2.0"))]


def search(digits: Path, runs: Path, **changed: Any) -> Search:
    given: dict[str, Any] = {"space": SPACE, "extra": SHORT, "metric": None, "study": None, "recipe": "minibatch"}
    given |= changed
    return Search(data_dir=digits, runs_dir=runs, **given)


def finish(made: Search, trials: int, watch: Sequence[Observer] = ()) -> list[tuple[Trial, str]]:
    ended: list[tuple[Trial, str]] = []
    made.run(trials, lambda number, run: watch, lambda trial, reason: ended.append((trial, reason)))
    return ended


class AtEpoch(Observer):
    """Does something when the first epoch of a run has ended."""

    def __init__(self, act: Any) -> None:
        self._act = act

    def epoch_ended(self, record: Mapping[str, Any]) -> None:
        if record["epoch"] == 1:
            self._act()


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


class Killed(Exception):
    """The process ends without a word."""


def kill() -> None:
    raise Killed


@pytest.fixture(scope="module")
def undisturbed(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Search:
    made = search(digits, tmp_path_factory.mktemp("undisturbed"))
    assert len(finish(made, 3)) == 3
    return made


def numbers(made: Search) -> list[tuple[int, dict[str, Any], float | None]]:
    return [(trial.number, trial.values, trial.score) for trial in made.results()]


def test_a_field_is_a_range_or_several_values() -> None:
    assert parse_dimension("train.learning_rate=1e-3..0.5:log") == Range("train.learning_rate", 0.001, 0.5, True)
    assert parse_dimension("train.epochs = 2..8") == Range("train.epochs", 2, 8, False)
    assert parse_dimension("model.arch=resnet20, resnet56") == Choices("model.arch", ("resnet20", "resnet56"))
    milestones = parse_dimension("train.milestones=[1,2],[3]")
    assert milestones.probes() == ([1, 2], [3])


@pytest.mark.parametrize(
    "text",
    [
        "affinity.gamma",
        "=1..2",
        "a=",
        "a=1",
        "a=1,1",
        "a=2..1",
        "a=1..1",
        "a=0..1:log",
        "a=1,,2",
        "seed=0,1",
        "run.x=1,2",
    ],
)
def test_any_other_field_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--field"):
        parse_dimension(text)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"metric": "test_accuracy"}, "expected one of the validation split, such as val_accuracy"),
        ({"space": [Choices("affinity.gama", ("0", "1"))]}, "no field 'affinity.gama'"),
        ({"space": [Range("affinity.lambda", -1.0, 1.0, False)]}, "affinity.lambda = -1"),
        ({"space": [Range("model.arch", 1.0, 2.0, False)]}, "model.arch = 1.0: input should be a valid string"),
        ({"space": [Range("train.compile", 0.0, 1.0, False)]}, "train.compile"),
        ({"space": [Range("data.pad", 0.5, 2.0, False)]}, "data.pad = 0.5"),
        ({"space": [*SPACE, SPACE[0]]}, "each field once"),
        ({"extra": {**SHORT, "affinity.gamma": 1}}, "each field once"),
    ],
)
def test_a_search_that_cannot_be_run_is_refused_before_it_begins(
    digits: Path, tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        search(digits, tmp_path, **changed)
    assert not list(tmp_path.iterdir())


def test_data_without_a_validation_split_is_refused(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="shapes has no validation split, and a search never chooses on the test"):
        Search("relnet", [Range("affinity.gamma", 1, 4, False)], {}, None, shapes, tmp_path)


def test_the_best_trial_is_that_of_the_highest_validation_score(undisturbed: Search) -> None:
    results = undisturbed.results()
    assert sorted(trial.number for trial in results) == [0, 1, 2]
    scores = []
    for trial in results:
        assert trial.run is not None
        assert trial.run.result()["metrics"]["val_accuracy"] == trial.score
        fields = trial.run.recipe().flat()
        assert {key: fields[key] for key in trial.values} == trial.values
        assert 0.01 <= trial.values["affinity.lambda"] <= 1
        assert trial.values["affinity.gamma"] in (0, 2)
        scores.append(trial.score)
    assert scores == sorted(scores, key=lambda score: -(score or 0))
    assert len({trial.values["affinity.lambda"] for trial in results}) == 3


def test_a_run_with_the_same_fields_is_not_done_again(undisturbed: Search, digits: Path, tmp_path: Path) -> None:
    (first,) = [trial for trial in undisturbed.results() if trial.number == 0]
    by_hand = RunFolder(tmp_path / "by-hand")
    train_run(load_recipe("minibatch", {**SHORT, **first.values}), digits, by_hand)
    made = search(digits, tmp_path)
    finish(made, 1, [AtEpoch(kill)])
    (trial,) = made.results()
    assert trial.run is not None
    assert (trial.run.path, trial.values, trial.score) == (by_hand.path, first.values, first.score)


@pytest.mark.parametrize(("act", "error"), [(interrupt, Stopped), (kill, Killed)])
def test_a_search_stopped_in_a_run_continues_it_and_ends_as_one_that_was_not(
    act: Any, error: type[Exception], undisturbed: Search, digits: Path, tmp_path: Path
) -> None:
    finish(search(digits, tmp_path), 1)
    with pytest.raises(error):
        finish(search(digits, tmp_path), 3, [AtEpoch(act)])
    assert [run.finished for run in run_folders(tmp_path)].count(False) == 1
    continued = search(digits, tmp_path)
    assert [trial.number for trial, _ in finish(continued, 3)] == [1, 2]
    assert numbers(continued) == numbers(undisturbed)
    assert len(run_folders(tmp_path)) == 3
    assert finish(search(digits, tmp_path), 3) == []


def test_a_field_of_whole_numbers_is_given_whole_numbers(digits: Path, tmp_path: Path) -> None:
    made = search(digits, tmp_path, space=[Range("data.pad", 1.0, 3.0, False)])
    finish(made, 2)
    assert all(isinstance(trial.values["data.pad"], int) for trial in made.results())


def test_a_trial_that_another_process_runs_is_left_to_it(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        finish(search(digits, tmp_path), 2, [AtEpoch(kill)])
    (run,) = run_folders(tmp_path)
    made = search(digits, tmp_path)
    with run.lock():
        assert made.run(2, lambda number, run: [], lambda trial, reason: None) == 1
    assert [trial.number for trial in made.results()] == [1]


def test_values_that_are_refused_or_diverge_are_failed_trials_and_the_search_goes_on(
    digits: Path, tmp_path: Path
) -> None:
    rates = Choices("train.learning_rate", ("0.1", "1e30"))
    sizes = Choices("train.batch_size", ("32", "63"))  # of 64 images the last batch would be one
    extra = {key: value for key, value in SHORT.items() if key != "train.batch_size"}
    made = search(digits, tmp_path, space=[rates, sizes], extra=extra)
    reasons = {(t.values["train.learning_rate"], t.values["train.batch_size"]): why for t, why in finish(made, 8)}
    assert "not finite" in reasons[1e30, 32]
    assert "would be a single one" in reasons[0.1, 63]
    assert reasons[0.1, 32] == ""
    scores = [trial.score is None for trial in made.results()]
    assert scores == sorted(scores)
    assert len(scores) == 8


def test_a_mistake_that_every_run_would_have_ends_the_search(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    made = search(digits, tmp_path, extra={**SHORT, "run.trackers": "trackio"})
    with pytest.raises(UsageError, match="trackio is not installed"):
        finish(made, 2)
    assert made.results() == []


def test_runs_that_are_not_chosen_by_epoch_are_evaluated_on_the_validation_split(digits: Path, tmp_path: Path) -> None:
    made = search(digits, tmp_path, extra={**SHORT, "train.select": "last"}, metric="val_mass")
    ((trial, _),) = finish(made, 1)
    assert trial.run is not None
    assert "val_mass" not in trial.run.result()["metrics"]
    assert trial.score == evaluate_run(trial.run, digits, "val", "cpu")["val_mass"]


def test_a_metric_that_the_runs_lack_is_named_with_those_they_have(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--metric val_x: the runs have val_accuracy, val_mass"):
        finish(search(digits, tmp_path, metric="val_x"), 1)


def test_a_study_of_another_search_is_refused(digits: Path, tmp_path: Path) -> None:
    search(digits, tmp_path, study="mine")
    search(digits, tmp_path, study="mine", extra={**SHORT, "run.checkpoint_seconds": 5})
    with pytest.raises(UsageError, match=r"the study mine in .* is another search: train.epochs is 2 there, 3 here"):
        search(digits, tmp_path, study="mine", extra={**SHORT, "train.epochs": 3})


def test_a_damaged_file_of_studies_is_named(digits: Path, tmp_path: Path) -> None:
    (tmp_path / STORAGE).write_bytes(b"no database" * 100)
    with pytest.raises(AffsupError, match=r"search\.db cannot be used .*: move it away"):
        search(digits, tmp_path)


def test_without_optuna_the_extra_is_named(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(AffsupError, match=r"pip install 'affsup\[search\]'"):
        search(digits, tmp_path)


def test_the_score_is_that_by_which_each_task_chooses_its_epoch() -> None:
    class Asked(dict[str, float]):
        def __missing__(self, name: str) -> float:
            self[name] = 0.5
            return 0.5

    for names, task in (
        (["minibatch"], MinibatchTask),
        (["scene"], SceneTask),
        (["frcnn", "relnet", "relpn"], DetectionTask),
    ):
        asked = Asked()
        task.score(cast(Any, None), asked)
        assert [{SCORES[name]} for name in names] == [{f"val_{metric}" for metric in asked}] * len(names)


def test_a_search_from_the_command_line_ends_with_a_table_and_a_file(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = [f"--set={key}={json.dumps(value)}" for key, value in SHORT.items() if key != "run.device"]
    arguments = ["search", "minibatch", "--field", "affinity.lambda=0.01..1:log", "--study", "mine", *settings]
    arguments += ["--device", "cpu", "--data", str(digits)]
    for trials in ("2", "3"):
        done = CliRunner().invoke(app, [*arguments, "--trials", trials])
        assert done.exception is None, done.output
    assert "trial 0: run folder" not in done.output
    assert "mine: 3 trials" in done.output
    with (tmp_path / "reports" / "search-mine.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["trial"] for row in rows) == ["0", "1", "2"]
    for row in rows:
        run = RunFolder(tmp_path / "runs" / row["run"])
        assert float(row["val_accuracy"]) == run.result()["metrics"]["val_accuracy"]
        assert float(row["affinity.lambda"]) == run.recipe().flat()["affinity.lambda"]
    assert f"the best is trial {rows[0]['trial']}: `affsup show runs/{rows[0]['run']}`" in done.output
    assert [float(row["val_accuracy"]) for row in rows] == sorted(
        (float(r["val_accuracy"]) for r in rows), reverse=True
    )
