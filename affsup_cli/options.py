"""Options that several commands share, and the paths that their values name."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

DataDir = Annotated[
    Path, typer.Option("--data", file_okay=False, envvar="AFFSUP_DATA", help="Folder of the prepared data sets.")
]
RunsDir = Annotated[
    Path, typer.Option("--runs", file_okay=False, envvar="AFFSUP_RUNS", help="Folder of the run folders.")
]
OutDir = Annotated[
    Path, typer.Option("--out", file_okay=False, envvar="AFFSUP_REPORTS", help="Folder for tables and figures.")
]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:N.", metavar="DEVICE")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Any other field of the recipe, such as train.batch_size=64. Repeatable."
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


class RunState(StrEnum):
    """Whether a run is complete."""

    FINISHED = "finished"
    UNFINISHED = "unfinished"
    DAMAGED = "damaged"


def run_path(named: str, runs: Path) -> Path:
    """Return the run folder for an argument: that of the path of a folder or its recipe.toml, else of that name."""
    if Path(named).name == "recipe.toml":
        return Path(named).parent
    return Path(named) if Path(named).is_dir() else runs / named


def model_path(named: str, runs: Path) -> Path:
    """Return the exported model for an argument if it is a file or ends in `.safetensors`, else `run_path`."""
    return Path(named) if Path(named).is_file() or named.endswith(".safetensors") else run_path(named, runs)
