"""Experiment trackers as observers: TensorBoard, Weights & Biases, MLflow and trackio (`run.trackers`).

A new tracker is a class here, its line in `TRACKERS`, its name in `recipe.schema.Tracker`, and an extra of its name.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from affsup_cli.recipe import Recipe
from affsup_cli.runs.folder import RunFolder
from affsup_cli.training.observers import Observer
from data_prep.errors import AffsupWarning, UsageError

PROJECT = "affsup"


class TensorBoard(Observer):
    """Writes scalars into an event file in the run folder."""

    def __init__(self, run: RunFolder, recipe: Recipe) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run.path))

    def epoch_ended(self, record: Mapping[str, Any]) -> None:
        """Write every number of the record under its own name."""
        for name, value in _numbers(record).items():
            self._writer.add_scalar(name, value, record["epoch"])

    def close(self) -> None:
        """Flush the event file."""
        self._writer.close()


class WeightsAndBiases(Observer):
    """Logs to Weights & Biases, into `wandb/` of the run folder; offline unless WANDB_MODE says otherwise."""

    def __init__(self, run: RunFolder, recipe: Recipe) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            id=_stable_id(run),
            resume="allow",
            dir=str(run.path),
            config=recipe.flat(),
            mode=os.environ.get("WANDB_MODE", "offline"),
            settings={"silent": True, "console": "off"},
        )

    def epoch_ended(self, record: Mapping[str, Any]) -> None:
        """Log every number of the record at the step of its epoch."""
        self._run.log(_numbers(record), step=record["epoch"])

    def close(self) -> None:
        """Write what is left."""
        self._run.finish()


class MLflow(Observer):
    """Logs to MLflow, at MLFLOW_TRACKING_URI or in `mlflow.db` beside the run folder; resumed with the run."""

    def __init__(self, run: RunFolder, recipe: Recipe) -> None:
        from mlflow.tracking import MlflowClient

        beside_runs = f"sqlite:///{run.path.parent.absolute() / 'mlflow.db'}"
        self._client = MlflowClient(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", beside_runs))
        experiment = self._client.get_experiment_by_name(PROJECT)
        number = experiment.experiment_id if experiment else self._client.create_experiment(PROJECT)
        same = self._client.search_runs([number], f"tags.affsup_id = '{_stable_id(run)}'")
        if same:
            self._run_id = same[0].info.run_id
            self._client.update_run(self._run_id, status="RUNNING")
            return
        started = self._client.create_run(number, tags={"affsup_id": _stable_id(run)}, run_name=run.name)
        self._run_id = started.info.run_id
        for name, value in recipe.flat().items():
            self._client.log_param(self._run_id, name, value)

    def epoch_ended(self, record: Mapping[str, Any]) -> None:
        """Log every number of the record at the step of its epoch; MLflow allows no @ in names: it becomes /."""
        for name, value in _numbers(record).items():
            self._client.log_metric(self._run_id, name.replace("@", "/"), value, step=record["epoch"])

    def close(self) -> None:
        """Mark the MLflow run as ended."""
        self._client.set_terminated(self._run_id)


class Trackio(Observer):
    """Logs to trackio, into its local database (TRACKIO_DIR)."""

    def __init__(self, run: RunFolder, recipe: Recipe) -> None:
        import trackio

        self._run = trackio.init(
            project=PROJECT, name=f"{run.name}-{_stable_id(run)}", config=recipe.flat(), resume="allow", embed=False
        )

    def epoch_ended(self, record: Mapping[str, Any]) -> None:
        """Log every number of the record at the step of its epoch."""
        self._run.log(_numbers(record), step=record["epoch"])

    def close(self) -> None:
        """Write what is left."""
        self._run.finish()


TRACKERS: dict[str, type[TensorBoard | WeightsAndBiases | MLflow | Trackio]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
    "trackio": Trackio,
}


class SafeTracker(Observer):
    """A tracker whose errors are warned of once, and end neither the run nor the other trackers.

    Args:
        name: of the tracker, a key of `TRACKERS`.
        run: the run folder.
        recipe: the recipe of the run.

    Raises:
        UsageError: the library of the tracker is not installed.
    """

    def __init__(self, name: str, run: RunFolder, recipe: Recipe) -> None:
        self._name = name
        self._tracker: Observer | None = None
        try:
            self._tracker = TRACKERS[name](run, recipe)
        except ImportError:
            raise UsageError(f"run.trackers: {name} is not installed: pip install 'affsup[{name}]'") from None
        except Exception as error:
            self._give_up(error)

    def epoch_ended(self, record: Mapping[str, Any]) -> None:
        """Pass the record on, unless the tracker has failed before."""
        if self._tracker is not None:
            try:
                self._tracker.epoch_ended(record)
            except Exception as error:
                self._give_up(error)

    def close(self) -> None:
        """Close the tracker, unless it has failed before."""
        if self._tracker is not None:
            try:
                self._tracker.close()
            except Exception as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._tracker = None
        reason = (str(error).splitlines() or [""])[0][:200]
        warnings.warn(
            f"the tracker {self._name} failed ({type(error).__name__}: {reason}); the run continues without it",
            AffsupWarning,
            stacklevel=3,
        )


def trackers(run: RunFolder, recipe: Recipe) -> Sequence[Observer]:
    """Return the trackers that `run.trackers`, and the older `run.tensorboard`, ask for.

    Raises:
        UsageError: the library of one is not installed.
    """
    older = ("tensorboard",) if recipe.run.tensorboard else ()
    return [SafeTracker(name, run, recipe) for name in dict.fromkeys((*older, *recipe.run.trackers))]


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in record.items() if name != "epoch" and value is not None}


def _stable_id(run: RunFolder) -> str:
    """Return an identifier of the run folder, the same when the run is resumed."""
    return hashlib.sha256(str(run.path.absolute()).encode()).hexdigest()[:16]
