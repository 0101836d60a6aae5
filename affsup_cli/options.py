"""Options that several commands share, and the paths that their values name."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from affsup_cli.completion import complete_field
from data_prep.errors import UsageError, shorten


def expand_user(value: Any) -> Any:
    """Return a path option with `~` replaced by the home folder: the shell does not do so in `--data=~/sets`."""
    try:
        if isinstance(value, list):
            return [path.expanduser() for path in value]
        return value.expanduser() if value else value
    except RuntimeError as error:
        raise typer.BadParameter(str(error)) from None


DataDir = Annotated[
    Path,
    typer.Option(
        "--data",
        file_okay=False,
        envvar="AFFSUP_DATA",
        callback=expand_user,
        help="Folder of the prepared data sets.",
    ),
]
RunsDir = Annotated[
    Path,
    typer.Option(
        "--runs", file_okay=False, envvar="AFFSUP_RUNS", callback=expand_user, help="Folder of the run folders."
    ),
]
OutDir = Annotated[
    Path,
    typer.Option(
        "--out", file_okay=False, envvar="AFFSUP_REPORTS", callback=expand_user, help="Folder for tables and figures."
    ),
]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:N.", metavar="DEVICE")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any other field of the recipe, such as train.batch_size=64. Repeatable.",
        autocompletion=complete_field,
    ),
]

OPTION_OF_FIELD = {
    "data.name": "--dataset",
    "model.arch": "--arch",
    "affinity.loss": "--loss",
    "affinity.gamma": "--gamma",
    "affinity.lambda": "--lambda",
    "affinity.softmax": "--softmax",
    "affinity.target": "--target",
    "train.epochs": "--epochs",
    "seed": "--seed",
    "run.device": "--device",
}
"""The option of `affsup train` for a field of a recipe; others are `--set`."""

DATA_DIR = Path("data")
RUNS_DIR = Path("runs")
REPORTS_DIR = Path("reports")
_NAMED = 5  # runs in a message


class RunState(StrEnum):
    """Whether a run is complete."""

    FINISHED = "finished"
    UNFINISHED = "unfinished"
    DAMAGED = "damaged"


def run_path(named: str, runs: Path) -> Path:
    """Return the run folder for an argument: a path, also of its recipe.toml, a name under `runs`, or its beginning.

    Raises:
        UsageError: several names begin like this.
    """
    path = Path(named).expanduser()
    if path.name == "recipe.toml":
        return path.parent
    if path.is_dir():
        return path
    if (runs / named).is_dir():
        return runs / named
    found = [name for name in run_names(runs) if name.startswith(named)]
    if len(found) > 1:
        several = f"{', '.join(found[:_NAMED])}{', ...' if len(found) > _NAMED else ''}"
        raise UsageError(f"{shorten(named)} is the beginning of {len(found)} runs: {several}")
    return runs / (found[0] if found else named)


def run_names(runs: Path) -> list[str]:
    """Return the names of the run folders under `runs`, without reading them."""
    if not runs.is_dir():
        return []
    return sorted(path.name for path in runs.iterdir() if not path.name.startswith(".") and path.is_dir())


def model_path(named: str, runs: Path) -> Path:
    """Return the exported model for an argument if it is a file or ends in `.safetensors`, else `run_path`."""
    path = Path(named).expanduser()
    return path if path.is_file() or named.endswith(".safetensors") else run_path(named, runs)
