from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, get_args

import pytest

from affsup_cli.recipe import load_recipe
from affsup_cli.recipe.schema import Tracker
from affsup_cli.runs.folder import RunFolder
from affsup_cli.training.trackers import TRACKERS, trackers
from affsup_cli.training.trainer import Trainer
from data_prep.errors import AffsupWarning, UsageError
from tests.training.test_trainer import folder, recipe
from tests.training.toy import ToyTask

Log = list[tuple[Any, ...]]


class FakeRun:
    """A run of wandb and of trackio: `log(data, step)` and `finish()`."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def log(self, data: dict[str, Any], step: int | None = None) -> None:
        self._log.append(("log", data, step))

    def finish(self, exit_code: int | None = None) -> None:
        self._log.append(("finish",))


def fake_wandb(log: Log) -> dict[str, ModuleType]:
    def init(
        project: str | None = None,
        *,
        dir: str | None = None,
        id: str | None = None,
        name: str | None = None,
        config: dict[str, Any] | None = None,
        mode: str | None = None,
        resume: str | None = None,
        settings: dict[str, Any] | None = None,
    ) -> FakeRun:
        log.append(("init", project, name, mode, resume, config, id))
        return FakeRun(log)

    return {"wandb": module("wandb", init=init)}


def fake_trackio(log: Log) -> dict[str, ModuleType]:
    def init(
        project: str,
        name: str | None = None,
        group: str | None = None,
        config: dict[str, Any] | None = None,
        resume: str = "never",
        embed: bool = True,
    ) -> FakeRun:
        log.append(("init", project, name, "", resume, config, name))
        return FakeRun(log)

    return {"trackio": module("trackio", init=init)}


def fake_mlflow(log: Log) -> dict[str, ModuleType]:
    found: list[Any] = []

    class MlflowClient:
        def __init__(self, tracking_uri: str | None = None) -> None:
            log.append(("uri", tracking_uri))

        def get_experiment_by_name(self, name: str) -> Any:
            return SimpleNamespace(experiment_id="7") if found else None

        def create_experiment(self, name: str) -> str:
            return "7"

        def search_runs(self, experiment_ids: list[str], filter_string: str = "") -> list[Any]:
            return [run for run in found if f"'{run.tag}'" in filter_string]

        def create_run(self, experiment_id: str, *, tags: dict[str, Any], run_name: str) -> Any:
            found.append(SimpleNamespace(info=SimpleNamespace(run_id="r1"), tag=tags["affsup_id"]))
            log.append(("init", experiment_id, run_name))
            return found[-1]

        def update_run(self, run_id: str, status: str | None = None, name: str | None = None) -> None:
            log.append(("update", run_id, status))

        def log_param(self, run_id: str, key: str, value: Any) -> None:
            log.append(("param", key, value))

        def log_metric(self, run_id: str, key: str, value: float, *, step: int | None = None) -> None:
            log.append(("metric", key, value, step))

        def set_terminated(self, run_id: str, status: str | None = None) -> None:
            log.append(("finish",))

    tracking = module("mlflow.tracking", MlflowClient=MlflowClient)
    return {"mlflow": module("mlflow", tracking=tracking), "mlflow.tracking": tracking}


def module(name: str, **content: Any) -> ModuleType:
    made = ModuleType(name)
    made.__dict__.update(content)
    return made


def install(monkeypatch: pytest.MonkeyPatch, fakes: dict[str, ModuleType]) -> None:
    for name, each in fakes.items():
        monkeypatch.setitem(sys.modules, name, each)


RECORDS: list[dict[str, Any]] = [
    {"epoch": 1, "train_loss": 2.5, "test_recall@100": 0.25, "absent": None},
    {"epoch": 2, "train_loss": 1.5, "test_recall@100": 0.75},
]


def track(run: RunFolder, *names: str) -> None:
    for each in trackers(run, load_recipe("minibatch", {"run.trackers": list(names)})):
        for record in RECORDS:
            each.epoch_ended(record)
        each.close()


@pytest.mark.parametrize("field", [{"run.trackers": ["tensorboard"]}, {"run.tensorboard": True}])
def test_tensorboard_holds_every_number_of_an_epoch(tmp_path: Path, field: dict[str, Any]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (board,) = trackers(RunFolder(tmp_path), load_recipe("minibatch", field))
    board.epoch_ended({"epoch": 1, "train_loss": 2.5, "val_accuracy": 0.25})
    board.epoch_ended({"epoch": 2, "train_loss": 1.5, "val_accuracy": 0.75})
    board.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    stored = {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert stored == {"train_loss": [(1, 2.5), (2, 1.5)], "val_accuracy": [(1, 0.25), (2, 0.75)]}


@pytest.mark.parametrize(("name", "fake"), [("wandb", fake_wandb), ("trackio", fake_trackio)])
def test_wandb_and_trackio_log_an_epoch_a_step_and_resume_by_an_identifier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, fake: Callable[[Log], dict[str, ModuleType]]
) -> None:
    log: Log = []
    install(monkeypatch, fake(log))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    track(RunFolder(tmp_path / "run"), name)
    begun, *logged = log
    assert begun[:2] == ("init", "affsup")
    assert begun[2].startswith("run")
    assert begun[3] == {"wandb": "offline", "trackio": ""}[name]
    assert begun[4] == "allow"
    assert begun[5]["affinity.gamma"] == load_recipe("minibatch").flat()["affinity.gamma"]
    assert logged == [
        ("log", {"train_loss": 2.5, "test_recall@100": 0.25}, 1),
        ("log", {"train_loss": 1.5, "test_recall@100": 0.75}, 2),
        ("finish",),
    ]
    track(RunFolder(tmp_path / "run"), name)
    assert log[4][6] == begun[6]
    track(RunFolder(tmp_path / "other"), name)
    assert log[8][6] != begun[6]


def test_mlflow_logs_fields_and_numbers_and_resumes_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log: Log = []
    install(monkeypatch, fake_mlflow(log))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    track(RunFolder(tmp_path / "run"), "mlflow")
    assert log[0] == ("uri", f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert ("init", "7", "run") in log
    assert ("param", "model.arch", "resnet20") in log
    metrics = [entry[1:] for entry in log if entry[0] == "metric"]
    assert metrics == [
        ("train_loss", 2.5, 1),
        ("test_recall/100", 0.25, 1),
        ("train_loss", 1.5, 2),
        ("test_recall/100", 0.75, 2),
    ]
    assert log[-1] == ("finish",)
    log.clear()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    track(RunFolder(tmp_path / "run"), "mlflow")
    assert log[:2] == [("uri", "http://server"), ("update", "r1", "RUNNING")]
    assert not [entry for entry in log if entry[0] == "param"]


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_library_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=rf"pip install 'affsup\[{name}\]'"):
        track(RunFolder(tmp_path), name)


@pytest.mark.parametrize("moment", ["init", "log", "finish"])
def test_a_failing_tracker_is_warned_of_once_and_stops_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    log: Log = []
    fakes = fake_wandb(log)

    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("the server is down")

    install(monkeypatch, fakes)
    if moment == "init":
        monkeypatch.setattr(fakes["wandb"], "init", fail)
    else:
        monkeypatch.setattr(FakeRun, moment, fail)
    run = folder(tmp_path / "run")

    def train() -> None:
        attached = trackers(run, recipe(run__trackers=["wandb", "tensorboard"]))
        Trainer(ToyTask(), recipe(), run, attached).run()
        for each in attached:
            each.close()

    with pytest.warns(AffsupWarning, match=r"wandb failed .*the server is down.*continues without it") as warned:
        train()
    assert len(warned) == 1
    assert run.finished
    assert list(run.path.glob("events.out.tfevents.*"))


def test_trackers_are_named_in_one_list() -> None:
    assert set(TRACKERS) == set(get_args(Tracker))


def test_names_may_stand_after_commas() -> None:
    assert load_recipe("minibatch", {"run.trackers": "wandb, mlflow"}).run.trackers == ("wandb", "mlflow")
    assert load_recipe("minibatch").run.trackers == ()
    with pytest.raises(UsageError, match="neptune"):
        load_recipe("minibatch", {"run.trackers": "neptune"})
