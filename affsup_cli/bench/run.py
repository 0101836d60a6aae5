"""The whole of `affsup bench`: time, estimate, keep."""

from __future__ import annotations

import csv
import io
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from affsup_cli.bench.machine import machine
from affsup_cli.bench.needs import Kind, Speed, kind_of, kinds_of, needed_runs, seconds_of
from affsup_cli.bench.parts import Rate, Sizes, measure_parts
from affsup_cli.bench.speeds import Ratio, Tell, measure
from affsup_cli.bench.synthetic import make
from affsup_cli.engine.devices import resolve_device
from affsup_cli.engine.run_folder import write_out
from affsup_cli.reporting.experiments import Experiment
from data_prep.errors import AffsupError

TOTAL = "all of these"


@dataclass(frozen=True)
class Estimate:
    """What a table or figure takes on this device, one run after another.

    Attributes:
        table: its name; `TOTAL` for all, runs that several share counted once.
        runs: how many, those included that others build on.
        hours: of training and evaluation.
        kinds: what was timed for it.
    """

    table: str
    runs: int
    hours: float
    kinds: tuple[Kind, ...]


@dataclass(frozen=True)
class Bench:
    """What a machine is worth."""

    device: torch.device
    estimates: tuple[Estimate, ...]
    speeds: Mapping[Kind, Speed]
    ratios: tuple[Ratio, ...]
    rates: tuple[Rate, ...]

    def write(self, path: Path) -> None:
        """Keep all of it as a CSV with machine, date and commit in each row.

        Raises:
            AffsupError: it cannot be written there.
        """
        where = machine(self.device)
        text = io.StringIO()
        writer = csv.DictWriter(text, ["what", "name", "value", "unit", "measured", *where])
        writer.writeheader()
        writer.writerows({**row, **where} for row in self._rows())
        write_out(path, text.getvalue().encode())

    def _rows(self) -> Iterable[dict[str, Any]]:
        def row(what: str, name: object, value: float, unit: str, measured: object) -> dict[str, Any]:
            return {"what": what, "name": name, "value": f"{value:.4g}", "unit": unit, "measured": measured}

        for estimate in self.estimates:
            yield row("table", estimate.table, estimate.hours, "hours", f"{estimate.runs} runs")
        for kind, speed in self.speeds.items():
            yield row("step", kind, speed.step_seconds, "seconds", f"{speed.steps} steps")
            yield row("evaluation", kind, speed.image_seconds, "seconds an image", f"{speed.images} images")
        for ratio in self.ratios:
            yield row("ratio", ratio.what, ratio.value, "", f"{ratio.rounds} rounds")
        for rate in self.rates:
            yield row("rate", rate.what, rate.images_per_second, "images a second", "")


def refuse_place(path: Path) -> None:
    """Refuse, before minutes are spent, to write a file where that cannot be; nothing is made yet.

    Raises:
        AffsupError: the folder may not be written to, or cannot be made.
    """
    home = next(folder for folder in path.absolute().parents if folder.exists())
    if not (home.is_dir() and os.access(home, os.W_OK | os.X_OK)):
        raise AffsupError(f"cannot write {path}: {home} is no folder to write to. Name another place with --out")


def run_bench(tables: Sequence[str], device: str, tell: Tell, sizes: Sizes | None = None) -> Bench:
    """Time what the runs of some tables and figures are made of, on generated data of the right shape.

    Args:
        tables: their names.
        device: as `run.device`.
        tell: told what is being timed.
        sizes: of the parts that are timed on their own.

    Raises:
        UsageError: there is no such table, figure or device.
    """
    on = resolve_device(device)
    runs = {table: needed_runs(table) for table in tables}
    together: dict[tuple[str, str], Experiment] = {}
    for of_table in runs.values():
        together |= of_table
    kinds = kinds_of(list(together.values()))
    with tempfile.TemporaryDirectory(prefix="affsup-bench-") as folder:
        for name in dict.fromkeys(str(recipe.flat()["data.name"]) for recipe in kinds.values()):
            tell(f"{name}: generate")
            make(name, Path(folder), test_of_gpu=on.type == "cuda")
        speeds, ratios = measure(kinds, Path(folder), str(on), tell)
    of_parts, rates = measure_parts(on, tell, sizes or Sizes())
    estimates = [_estimate(table, list(of_table.values()), speeds) for table, of_table in runs.items()]
    if len(runs) > 1:
        estimates.append(_estimate(TOTAL, list(together.values()), speeds))
    return Bench(on, tuple(estimates), speeds, (*ratios, *of_parts), tuple(rates))


def _estimate(table: str, runs: Sequence[Experiment], speeds: Mapping[Kind, Speed]) -> Estimate:
    hours = sum(seconds_of(run, speeds) for run in runs) / 3600
    return Estimate(table, len(runs), hours, tuple(dict.fromkeys(kind_of(run.recipe) for run in runs)))
