"""`affsup check`: verify runs, exported models and prepared data sets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from affsup_cli.options import DataDir, RunsDir
from affsup_cli.resolve import DATA_DIR, RUNS_DIR


def check(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN|FILE.safetensors|DATASET]...",
            show_default=False,
            help="Run folders or their names under --runs, exported models, names of data sets; none: all runs and "
            "data sets.",
        ),
    ] = None,
    data: DataDir = DATA_DIR,
    runs: RunsDir = RUNS_DIR,
) -> None:
    """Verify every file of runs, exported models and prepared data sets.

    Each file is read and compared with its digest. A line for each says whether it is intact, or what is damaged and
    what to do. Exit code 1: something is damaged.

    \b
    affsup check
    affsup check runs/my-run
    affsup check cifar10 exports/my-run.safetensors
    """
    from affsup_cli.views.console import console
    from data_prep.errors import AffsupError, counted

    checked = damaged = 0
    for name, faults in _check(names, data, runs):
        checked += 1
        damaged += bool(faults)
        if not faults:
            console.print(f"intact: {name}", markup=False)
        for fault in faults:
            console.print(f"damaged: {name}: {fault}", style="red", markup=False)
    if damaged:
        raise AffsupError(f"{damaged} of {checked} damaged")
    console.print(f"{counted(checked, 'item')} checked, nothing is damaged", style="green", markup=False)


def _check(names: list[str] | None, data: Path, runs: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the name of each run, file and data set, and its faults."""
    import data_prep
    from affsup_cli.resolve import run_path
    from affsup_cli.runs.check import check_export, check_run
    from affsup_cli.runs.export import SUFFIX
    from affsup_cli.runs.folder import RunFolder
    from data_prep.errors import UsageError

    if names is None:
        candidates = [RunFolder(path) for path in sorted(runs.iterdir()) if path.is_dir()] if runs.is_dir() else []
        for run in candidates:
            if run.exists or run.remains:
                yield run.name, check_run(run)
        for dataset in data_prep.dataset_names(data):
            if (data / dataset).is_dir():
                yield dataset, _check_dataset(dataset, data)
        return
    for name in names:
        path = run_path(name, runs)
        run = RunFolder(path)
        if name.endswith(SUFFIX):
            yield name, check_export(Path(name))
        elif path.is_dir() and (run.exists or run.remains):
            yield name, check_run(run)
        elif name in data_prep.dataset_names(data):
            yield name, _check_dataset(name, data)
        else:
            raise UsageError(f"'{name}' is neither a run folder, nor an exported model, nor the name of a data set")


def _check_dataset(name: str, data: Path) -> list[str]:
    import data_prep
    from data_prep.errors import AffsupError

    try:
        data_prep.check(name, data)
    except AffsupError as error:
        return [str(error)]
    return []
