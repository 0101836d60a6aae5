"""`affsup bench` as a function: measure speeds, estimate hours, write them to a file."""

from __future__ import annotations

import csv
import datetime
import io
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from affsup_cli.bench.needs import RunKind, Speed, kind_of, kinds_of, needed_runs, seconds_of
from affsup_cli.bench.speeds import ProgressText, measure
from affsup_cli.bench.synthetic import make
from affsup_cli.reporting.select.experiments import Experiment
from affsup_cli.runs.environment import source_commit
from affsup_cli.runs.folder import write_out
from affsup_cli.runtime.devices import device_name, resolve_device
from data_prep.errors import AffsupError

TOTAL = "all of these"


def machine(device: torch.device) -> dict[str, str | int]:
    """Return the columns that describe a measurement: device, threads, PyTorch version, date and commit.

    A "+" after the commit says that the tree has changes.
    """
    source = source_commit()
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": f"{(source['commit'] or 'unknown')[:12]}{'+' if source['dirty'] else ''}",
    }


@dataclass(frozen=True)
class Estimate:
    """The hours that a table or figure takes on this device, one run after another.

    Attributes:
        table: its name; `TOTAL` for all tables, with shared runs counted once.
        runs: number of runs, including those that others are initialised from.
        hours: of training and evaluation.
        kinds: the kinds of run that were measured for it.
    """

    table: str
    runs: int
    hours: float
    kinds: tuple[RunKind, ...]


@dataclass(frozen=True)
class Bench:
    """The speeds of a device and the hours that tables take on it."""

    device: torch.device
    estimates: tuple[Estimate, ...]
    speeds: Mapping[RunKind, Speed]

    def write(self, path: Path) -> None:
        """Write a CSV file with machine, date and commit in each row.

        Raises:
            AffsupError: the file cannot be written.
        """
        columns = machine(self.device)
        text = io.StringIO()
        writer = csv.DictWriter(text, ["what", "name", "value", "unit", "measured", *columns])
        writer.writeheader()
        writer.writerows({**row, **columns} for row in self._rows())
        write_out(path, text.getvalue().encode())

    def _rows(self) -> Iterable[dict[str, Any]]:
        def row(what: str, name: object, value: float, unit: str, measured: object) -> dict[str, Any]:
            return {"what": what, "name": name, "value": f"{value:.4g}", "unit": unit, "measured": measured}

        for estimate in self.estimates:
            yield row("table", estimate.table, estimate.hours, "hours", f"{estimate.runs} runs")
        for kind, speed in self.speeds.items():
            yield row("step", kind, speed.step_seconds, "seconds", f"{speed.steps} steps")
            yield row("evaluation", kind, speed.image_seconds, "seconds an image", f"{speed.images} images")


def require_writable(path: Path) -> None:
    """Check, before minutes of measurement, that a file can be written; creates nothing.

    Raises:
        AffsupError: the folder is not writable or cannot be created.
    """
    home = next(folder for folder in path.absolute().parents if folder.exists())
    if not (home.is_dir() and os.access(home, os.W_OK | os.X_OK)):
        raise AffsupError(f"cannot write {path}: {home} is not a writable folder. Choose another path with --out")


def run_bench(tables: Sequence[str], device: str, report: ProgressText) -> Bench:
    """Measure the kinds of run that some tables and figures need, on generated data of the same shape.

    Args:
        tables: their names.
        device: as `run.device`.
        report: called with what is being measured.

    Raises:
        UsageError: no such table, figure or device.
    """
    on = resolve_device(device)
    runs = {table: needed_runs(table) for table in tables}
    all_runs: dict[tuple[str, str], Experiment] = {}
    for of_table in runs.values():
        all_runs |= of_table
    kinds = kinds_of(list(all_runs.values()))
    with tempfile.TemporaryDirectory(prefix="affsup-bench-") as folder:
        for name in dict.fromkeys(str(recipe.flat()["data.name"]) for recipe in kinds.values()):
            report(f"{name}: generate")
            make(name, Path(folder), test_of_gpu=on.type == "cuda")
        speeds = measure(kinds, Path(folder), str(on), report)
    estimates = [_estimate(table, list(of_table.values()), speeds) for table, of_table in runs.items()]
    if len(runs) > 1:
        estimates.append(_estimate(TOTAL, list(all_runs.values()), speeds))
    return Bench(on, tuple(estimates), speeds)


def _estimate(table: str, runs: Sequence[Experiment], speeds: Mapping[RunKind, Speed]) -> Estimate:
    hours = sum(seconds_of(run, speeds) for run in runs) / 3600
    return Estimate(table, len(runs), hours, tuple(dict.fromkeys(kind_of(run.recipe) for run in runs)))
