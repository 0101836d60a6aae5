"""The plan of a sweep and its execution; `affsup sweep` and `affsup demo` share it."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from affsup_cli.commands.console import counted
from affsup_cli.commands.live import LiveLine
from affsup_cli.engine.observer import Observer
from affsup_cli.engine.run_folder import RunFolder
from affsup_cli.errors import AffsupError, UsageError
from affsup_cli.recipe import Recipe
from affsup_cli.reporting.experiments import Experiment, experiments
from affsup_cli.reporting.runs import RunIndex
from affsup_cli.reporting.spec import load_spec
from affsup_cli.tasks.launch import data_digest, measure_run, run_name, train_run
from data_prep.format import read_manifest

COST_ROUNDS = 40


@dataclass(frozen=True)
class Step:
    """One experiment and the run folder that it has or will have.

    Attributes:
        experiment: what is to be run.
        folder: where.
        state: "finished", "unfinished" or "missing".
    """

    experiment: Experiment
    folder: RunFolder
    state: str


@dataclass(frozen=True)
class Plan:
    """A sweep's steps, in order; and which data sets they lack, in words."""

    name: str
    steps: tuple[Step, ...]
    unprepared: str

    def table(self) -> Table:
        """Return the plan for the terminal: a line a cell, its seeds and what is there."""
        cells: dict[tuple[str, ...], list[Step]] = {}
        for step in self.steps:
            cells.setdefault(step.experiment.keys, []).append(step)
        missing = sum(step.state != "finished" for step in self.steps)
        shown = Table(title=f"{self.name}: {counted(len(self.steps), 'run')}, {missing} to do", title_justify="left")
        shown.add_column("cell", overflow="fold")
        for column in ("runs", "finished", "unfinished", "to do"):
            shown.add_column(column, justify="right")
        for keys, steps in cells.items():
            states = [step.state for step in steps]
            finished, unfinished = states.count("finished"), states.count("unfinished")
            shown.add_row("\n".join(keys), *map(str, (len(steps), finished, unfinished, len(steps) - finished)))
        return shown


def wanted_experiments(
    name: str, seeds: int | None = None, only: str | None = None, extra: Mapping[str, Any] | None = None
) -> list[Experiment]:
    """List the runs that the table or figure `name` needs, of the cells that match the pattern `only`.

    Raises:
        UsageError: no such table, no cell matches, or an override is refused.
    """
    wanted = experiments(load_spec(name), seeds, extra)
    if only is not None:
        keys = [key for experiment in wanted for key in experiment.keys]
        patterns = (only, f"{only}/*")
        wanted = [
            experiment
            for experiment in wanted
            if any(fnmatch.fnmatchcase(key, pattern) for key in experiment.keys for pattern in patterns)
        ]
        if not wanted:
            raise UsageError(f"no cell of {name} matches '{only}'; its cells are {', '.join(dict.fromkeys(keys))}")
    return wanted


def plan_sweep(name: str, wanted: Sequence[Experiment], data_dir: Path, runs_dir: Path) -> Plan:
    """Find out which of the runs have been run, on the data as it is prepared now.

    Raises:
        AffsupError: a run folder is damaged, so that what is missing cannot be told.
    """
    index = RunIndex(runs_dir)
    if index.warnings:
        raise AffsupError("\n".join(index.warnings) + "\nMove such a folder away, then sweep again")
    recipe_of = {experiment.recipe.flat()["data.name"]: experiment.recipe for experiment in wanted}
    digests = {dataset: data_digest(recipe, data_dir) for dataset, recipe in recipe_of.items()}
    steps = tuple(_step(experiment, index, digests[experiment.recipe.flat()["data.name"]]) for experiment in wanted)
    needed = dict.fromkeys(step.experiment.recipe.flat()["data.name"] for step in steps if step.state != "finished")
    return Plan(name, steps, "\n".join(filter(None, (_unprepared(data_dir / dataset) for dataset in needed))))


def _unprepared(folder: Path) -> str:
    try:
        read_manifest(folder)
    except AffsupError as error:
        return str(error)
    return ""


def _step(experiment: Experiment, index: RunIndex, data: str | None) -> Step:
    found = index.find(experiment.recipe, experiment.kind, data)
    prefix = "cost-" if experiment.kind == "cost" else ""
    folder = found or RunFolder(index.root / f"{prefix}{run_name(experiment.recipe, data)}")
    return Step(experiment, folder, "missing" if found is None else "finished" if found.finished else "unfinished")


def run_sweep(plan: Plan, data_dir: Path, console: Console) -> None:
    """Do the plan's missing steps one after another; Ctrl-C leaves each where it can go on.

    Raises:
        AffsupError: a data set that they need is not prepared; nothing has been run then.
    """
    if plan.unprepared:
        raise AffsupError(plan.unprepared)
    to_do = [step for step in plan.steps if step.state != "finished"]
    for number, step in enumerate(to_do, start=1):
        label = f"{number}/{len(to_do)} {step.experiment.key} seed {step.experiment.recipe.seed}"
        console.print(f"{label} in {step.folder.path}", style="bold", markup=False)
        if step.experiment.baseline is None:
            observers = partial(_live_line, console, label)
            train_run(step.experiment.recipe, data_dir, step.folder, step.folder.exists, observers)
        else:
            _measure(step, step.experiment.baseline, data_dir, console, label)


def _live_line(console: Console, label: str) -> list[Observer]:
    return [LiveLine(console, label)]


def _measure(step: Step, baseline: Recipe, data_dir: Path, console: Console, label: str) -> None:
    with console.status(f"{label}: timing both variants in turns") as status:

        def show(turn: int) -> None:
            status.update(f"{label}: round {turn} of {COST_ROUNDS}")

        measure_run(baseline, step.experiment.recipe, data_dir, step.folder, COST_ROUNDS, show)
