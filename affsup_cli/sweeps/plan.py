"""The plan of a sweep: the runs that tables need, their state, the time they will take, and the obstacles."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import data_prep
from affsup_cli.recipe import RECORDING_FIELDS, Recipe
from affsup_cli.reporting.select.experiments import Experiment, experiments
from affsup_cli.reporting.select.spec import load_spec, short_name
from affsup_cli.runs.folder import RunFolder
from affsup_cli.runs.index import RunIndex, training_key
from affsup_cli.sweeps.speeds import Speeds
from affsup_cli.tasks.launch import data_digest, run_name
from data_prep.errors import AffsupError, UsageError, did_you_mean
from data_prep.store import read_manifest

_NO_FILE = ("imagenet", "none")
_CELLS_NAMED = 10


@dataclasses.dataclass(frozen=True, eq=False)
class PlannedRun:
    """A run that is needed, and the folder that it has or will have.

    Attributes:
        cells: the cells that this run fills; the recipe's label if only other runs need it.
        recipe: the recipe to train.
        baseline: of a cost comparison, the recipe measured in alternation with `recipe`; None for a training run.
        folder: the run folder.
        state: how far the folder has come; "damaged": it cannot be read.
        needs: the run that must be finished before this one, which builds on it.
        epochs_done: of an unfinished run.
    """

    cells: tuple[str, ...]
    recipe: Recipe
    baseline: Recipe | None
    folder: RunFolder
    state: Literal["finished", "unfinished", "missing", "damaged"]
    needs: PlannedRun | None
    epochs_done: int

    @property
    def label(self) -> str:
        """What it is called in messages."""
        return f"{self.cells[0]} seed {self.recipe.seed}"

    @property
    def damage(self) -> str:
        """The message for a damaged folder."""
        return (
            f"{self.folder.path} is damaged: `affsup check {self.folder.path}` shows what. Move the folder away to "
            "train this run again"
        )

    def seconds(self, speeds: Speeds) -> float | None:
        """Return how long the rest of it takes, None if that is not known."""
        of_epoch = None if self.baseline else speeds.epoch(self.recipe)
        return None if of_epoch is None else of_epoch * (self.recipe.train.epochs - self.epochs_done)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A sweep.

    Attributes:
        runs: all its runs, those that others build on first, then seed by seed; cost comparisons last.
        speeds: known durations of epochs.
        obstacles: a sentence for each missing data set or file of weights.
        warnings: a sentence for each run folder that cannot be read.
    """

    runs: tuple[PlannedRun, ...]
    speeds: Speeds
    obstacles: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def to_do(self) -> tuple[PlannedRun, ...]:
        """The runs that are not finished."""
        return tuple(planned for planned in self.runs if planned.state != "finished")

    @property
    def blocked(self) -> dict[PlannedRun, str]:
        """The runs that cannot be run because a run folder is damaged, each with a message."""
        found: dict[PlannedRun, str] = {}
        for planned in self.runs:  # a run comes after the one that it needs
            if planned.state == "damaged":
                found[planned] = planned.damage
            elif planned.needs in found:
                found[planned] = f"needs {planned.needs.label}"
        return found

    def by_cells(self) -> dict[tuple[str, ...], list[PlannedRun]]:
        """Return the runs of each cell; cells with the same runs share an entry."""
        of_cell: dict[str, list[PlannedRun]] = {}
        for planned in self.runs:
            for cell in planned.cells:
                of_cell.setdefault(cell, []).append(planned)
        alike: dict[tuple[PlannedRun, ...], list[str]] = {}
        for cell, planned_runs in of_cell.items():
            alike.setdefault(tuple(planned_runs), []).append(cell)
        return {tuple(cells): list(planned_runs) for planned_runs, cells in alike.items()}


def wanted_experiments(
    names: Sequence[str],
    seeds: int | None = None,
    only: Sequence[str] = (),
    extra: Mapping[str, Any] | None = None,
) -> list[Experiment]:
    """List the runs that tables or figures need; their cells bear the table's name in front if there are several.

    Args:
        names: of the tables and figures.
        seeds: runs a cell, instead of the tables' own numbers.
        only: patterns of cells: all of a key, or whole parts of it from anywhere, with or without the table in front.
            Without patterns all cells are wanted.
        extra: overrides of every recipe.

    Raises:
        UsageError: no such table, no cell matches, or an override is refused.
    """
    wanted: list[Experiment] = []
    known: list[str] = []
    matched: set[str] = set()
    for name in names:
        table = short_name(name)
        prefix = f"{table}/" if len(names) > 1 else ""
        for experiment in experiments(load_spec(name), seeds, extra):
            cells = tuple(f"{prefix}{key}" for key in experiment.keys)
            known += cells
            found = {pattern for pattern in only for key in experiment.keys if _matches(f"{table}/{key}", pattern)}
            matched |= found
            if found or not only:
                wanted.append(dataclasses.replace(experiment, keys=cells))
    for pattern in only:
        if pattern not in matched:
            raise UsageError(_no_such_cell(names, list(dict.fromkeys(known)), pattern))
    return wanted


def _no_such_cell(names: Sequence[str], cells: Sequence[str], only: str) -> str:
    """Return the message for a pattern without a match; it names the nearest cells."""
    parts = dict.fromkeys(part for cell in cells for part in (cell, *cell.split("/")))
    nearest = difflib.get_close_matches(only, cells, n=_CELLS_NAMED, cutoff=0.0)
    others = f" and {len(cells) - len(nearest)} others, which --dry-run shows" if len(cells) > len(nearest) else ""
    said = f"no cell of {', '.join(names)} matches '{only}'{did_you_mean(only, parts)}"
    return f"{said}; its cells are {', '.join(nearest)}{others}"


def _matches(key: str, pattern: str) -> bool:
    forms = (pattern, f"{pattern}/*", f"*/{pattern}", f"*/{pattern}/*")
    return any(fnmatch.fnmatchcase(key, form) for form in forms)


def needed_recipes(wanted: Sequence[Experiment]) -> list[Recipe]:
    """Return the recipes of `wanted` and those of the runs that they build on."""
    recipes = []
    for experiment in wanted:
        recipe: Recipe | None = experiment.recipe
        while recipe is not None:
            recipes.append(recipe)
            recipe = recipe.prerequisite()
    return recipes


def plan_sweep(wanted: Sequence[Experiment], data_dir: Path, runs_dir: Path, devices: Collection[str]) -> Plan:
    """Determine the state of each run, for the data as it is prepared now.

    Args:
        wanted: the runs; those that train the same become one.
        data_dir: the folder of the prepared data sets.
        runs_dir: where the run folders are.
        devices: product names of the sweep's devices; earlier runs on such devices give the estimates of time.
    """
    index = RunIndex(runs_dir)
    planner = _Planner(index, data_dir)
    for experiment in wanted:
        planner.add(experiment)
    planned_runs = planner.runs()
    obstacles = (*_unprepared(planned_runs, data_dir), *_missing_weights(planned_runs))
    return Plan(planned_runs, Speeds.of_runs(index, devices), obstacles, tuple(index.warnings))


@dataclasses.dataclass
class _Draft:
    """A run under construction: cells and recipes may still be added; `needs` is the key of another."""

    experiment: Experiment
    found: RunFolder | None
    needs: tuple[str, str] | None


class _Planner:
    def __init__(self, index: RunIndex, data_dir: Path) -> None:
        self._index = index
        self._data_dir = data_dir
        self._digests: dict[str, str | None] = {}
        self._drafts: dict[tuple[str, str], _Draft] = {}
        self._readable = {run.folder.path for run in (*index.trained, *index.measured, *index.unfinished)}

    def add(self, experiment: Experiment) -> tuple[str, str]:
        """Add an experiment and its prerequisites; return the key of its draft."""
        found = self._find(experiment)
        if found is not None and found.finished:
            key = ("finished", str(found.path))
        else:
            key = (experiment.kind, training_key(experiment.recipe))
        known = self._drafts.get(key)
        if known is not None:
            known.experiment = _merged(known.experiment, experiment)
            known.found = known.found if key[0] == "finished" else self._find(known.experiment)
            return key
        begun = found is not None and found.resumable
        before = experiment.recipe.prerequisite() if key[0] == "train" and not begun else None
        needs = None
        if before is not None:
            run = before.run.model_copy(update=dict(experiment.recipe.run))
            needs = self.add(Experiment((), before.model_copy(update={"run": run})))
        self._drafts[key] = _Draft(experiment, found, needs)
        return key

    def runs(self) -> tuple[PlannedRun, ...]:
        """Return the runs in the order in which they should begin."""
        made: dict[tuple[str, str], PlannedRun] = {}
        for key, draft in self._drafts.items():  # a draft stands behind what it needs
            made[key] = self._planned(draft, made[draft.needs] if draft.needs else None)
        needed = {draft.needs for draft in self._drafts.values()}
        order = sorted(made, key=lambda key: (made[key].baseline is not None, key not in needed, made[key].recipe.seed))
        return tuple(made[key] for key in order)

    def _planned(self, draft: _Draft, needs: PlannedRun | None) -> PlannedRun:
        experiment, folder = draft.experiment, draft.found
        recipe = experiment.recipe
        state: Literal["finished", "unfinished", "missing", "damaged"] = "missing"
        epochs_done = 0
        if folder is None:
            prefix = "cost-" if experiment.kind == "cost" else ""
            digest = self._digest(recipe)
            network = self._digest(needs.recipe) if needs else None
            folder = RunFolder(self._index.root / f"{prefix}{run_name(recipe, digest, network)}")
            if folder.remains or (folder.exists and folder.path not in self._readable):
                state = "damaged"
        elif folder.finished:
            state = "finished"
        else:
            try:
                state, epochs_done = "unfinished", len(folder.metrics())
            except AffsupError:
                state = "damaged"
        cells = experiment.keys or (recipe.label(),)
        return PlannedRun(cells, recipe, experiment.baseline, folder, state, needs, epochs_done)

    def _find(self, experiment: Experiment) -> RunFolder | None:
        recipe = experiment.recipe
        before = recipe.prerequisite()
        of_network = self._digest(before) if before else None
        return self._index.find(recipe, experiment.kind, self._digest(recipe), of_network)

    def _digest(self, recipe: Recipe) -> str | None:
        name = str(recipe.flat()["data.name"])
        if name not in self._digests:
            try:
                self._digests[name] = data_digest(recipe, self._data_dir)
            except AffsupError:  # an obstacle if a run needs it
                self._digests[name] = None
        return self._digests[name]


def _merged(first: Experiment, second: Experiment) -> Experiment:
    """Return one experiment for the cells of both; it records what either records."""
    recipe, asked = first.recipe, second.recipe.flat()
    for field in RECORDING_FIELDS:
        if asked.get(field):
            section, _, name = field.partition(".")
            changed = getattr(recipe, section).model_copy(update={name: True})
            recipe = recipe.model_copy(update={section: changed})
    keys = tuple(dict.fromkeys((*first.keys, *second.keys)))
    return dataclasses.replace(first, keys=keys, recipe=recipe)


def _unprepared(planned_runs: Sequence[PlannedRun], data_dir: Path) -> list[str]:
    """Return a message for each missing or damaged data set; embedded data sets are prepared when needed."""
    said = []
    for name in dict.fromkeys(
        planned.recipe.flat()["data.name"] for planned in planned_runs if planned.state != "finished"
    ):
        if data_prep.get(name, data_dir).embedded and not (data_dir / name).exists():
            continue
        try:
            read_manifest(data_dir / name)
        except AffsupError as error:
            said.append(str(error))
    return said


def _missing_weights(planned_runs: Sequence[PlannedRun]) -> list[str]:
    """Return a message for each missing file of weights; a run with a checkpoint no longer needs it."""
    cells: dict[str, list[str]] = {}
    for planned in planned_runs:
        weights = planned.recipe.flat().get("model.weights", "none")
        begun = planned.state == "finished" or planned.folder.resumable
        if not begun and weights not in _NO_FILE and not Path(weights).is_file():
            cells.setdefault(weights, []).extend(planned.cells)
    return [
        f"{weights} does not exist (model.weights of {', '.join(dict.fromkeys(of))}): put the file there, or give "
        "another with --set model.weights=FILE"
        for weights, of in cells.items()
    ]
