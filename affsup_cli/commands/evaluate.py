"""`affsup evaluate`: a run's best model on a split."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from affsup_cli.completion import complete_run
from affsup_cli.options import DataDir, Device, RunsDir
from affsup_cli.resolve import DATA_DIR, RUNS_DIR, run_path


class Split(StrEnum):
    """What can be evaluated."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"


def evaluate(
    run: Annotated[str, typer.Argument(help="Run folder, or its name under --runs.", autocompletion=complete_run)],
    split: Annotated[Split, typer.Option(help="Split to evaluate.")] = Split.TEST,
    device: Device = None,
    data: DataDir = DATA_DIR,
    runs: RunsDir = RUNS_DIR,
) -> None:
    """Evaluate a run's model and print its numbers.

    Classifiers: the model of the epoch with the highest accuracy on the validation split. Detectors: the model of the
    last epoch; the command also writes their detections (COCO's format) and strongest relationship proposals to the
    run folder.

    \b
    affsup evaluate minibatch-digits-resnet20-focal-seed0-3f2a91c0
    affsup evaluate runs/my-run --split val
    """
    from affsup_cli.runs.folder import RunFolder
    from affsup_cli.tasks.launch import evaluate_run
    from affsup_cli.views.console import print_metrics

    folder = RunFolder.open(run_path(run, runs))
    print_metrics(evaluate_run(folder, data, split.value, device or "auto"))
