"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from affsup_cli.completion import complete_field


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


class RunState(StrEnum):
    """Whether a run is complete."""

    FINISHED = "finished"
    UNFINISHED = "unfinished"
    DAMAGED = "damaged"
