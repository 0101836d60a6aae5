"""Recipes, tables, data sets and single runs as rich tables, for `affsup list`, `show` and `doctor`."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from pathlib import Path

from rich.console import RenderableType
from rich.markup import escape

import data_prep
from affsup_cli.recipe import Recipe, differences, field_help, is_file_name, load_recipe, parse_toml, recipe_names
from affsup_cli.reporting.select.experiments import experiments, spec_cells
from affsup_cli.reporting.select.spec import load_spec, report_names
from affsup_cli.resolve import run_path
from affsup_cli.runs.folder import RunFolder, run_folders
from affsup_cli.runs.results import TrainResult, read_result
from affsup_cli.views.console import metric_text
from affsup_cli.views.split_table import left_out_lines, split_table
from affsup_cli.views.tables import FittingTable
from data_prep.errors import AffsupError, UsageError, counted, did_you_mean, quote, shorten
from data_prep.store import AnyManifest, read_manifest


def recipes() -> FittingTable:
    """Return the table of recipes."""
    rows = [(name, inspect.getdoc(type(load_recipe(name))) or "") for name in recipe_names()]
    return FittingTable("recipes", ("name", "what it trains"), rows, prose=("what it trains",))


def tables() -> FittingTable:
    """Return the table of tables and figures."""
    rows = []
    for name in report_names():
        spec = load_spec(name)
        wanted = experiments(spec)
        sets = dict.fromkeys(str(each.recipe.flat()["data.name"]) for each in wanted)
        rows.append((name, spec.title.partition(": ")[2] or spec.title, "\n".join(sets), str(len(wanted))))
    columns = ("name", "what it shows", "data", "runs")
    return FittingTable("tables and figures", columns, rows, right=("runs",), prose=("what it shows",))


def datasets(data_dir: Path) -> FittingTable:
    """Return the table of data sets, with those that are prepared."""
    rows = []
    for name in data_prep.dataset_names(data_dir):
        folder = data_dir / name
        installed = data_prep.datasets().get(name)
        try:
            state = _counts(read_manifest(folder)) if folder.exists() else f"no: affsup prepare {name}"
            summary = (installed or data_prep.get(name, data_dir)).summary
        except AffsupError as error:
            state, summary = shorten(error), installed.summary if installed else "your own"
        rows.append((name, summary, state))
    columns = ("name", "what it is", "prepared")
    return FittingTable(f"data sets (in {data_dir})", columns, rows, prose=("what it is", "prepared"))


def describe(name: str, data_dir: Path, runs_dir: Path) -> Iterable[RenderableType]:
    """Return the description of a recipe, table, figure, data set or run.

    Raises:
        UsageError: nothing has that name.
    """
    path = Path(name)
    if is_file_name(name) and path.is_file() and path.name != "recipe.toml":
        return _describe_table(name) if "kind" in parse_toml(path) else _describe_recipe(load_recipe(name))
    if name in recipe_names():
        return _describe_recipe(load_recipe(name))
    if name in report_names():
        return _describe_table(name)
    if name in data_prep.dataset_names(data_dir):
        return _describe_dataset(read_manifest(data_dir / name))
    run = RunFolder(run_path(name, runs_dir))
    if run.exists:
        return _describe_run(run)
    known = [*recipe_names(), *report_names(), *data_prep.datasets(), *(run.name for run in run_folders(runs_dir))]
    raise UsageError(f"nothing is called {quote(name)}{did_you_mean(name, known)}: see `affsup list`")


def _describe_recipe(recipe: Recipe) -> Iterable[RenderableType]:
    explained = field_help(type(recipe))
    rows = [
        (key, plain(value), explained.get(key, ""))
        for key, value in recipe.flat().items()
        if key not in ("name", "task")
    ]
    title = f"recipe {recipe.name} (for --set)"
    yield FittingTable(title, ("field", "value", "meaning"), rows, prose=("meaning",), optional=("meaning",))


def _describe_table(name: str) -> Iterable[RenderableType]:
    spec = load_spec(name)
    cells = spec_cells(spec)
    rows = []
    for cell in cells:
        data = str(cell.recipe.flat()["data.name"])
        shipped = cell.recipe.name in recipe_names()  # a user's recipe has no name to load it by
        sets = _changes(load_recipe(cell.recipe.name, {"data.name": data}), cell.recipe) if shipped else []
        if cell.baseline:
            sets += ["timed in alternation with", *_changes(cell.recipe, cell.baseline)]
        rows.append((cell.key, cell.recipe.name, data, "\n".join(sets) or "–", str(cell.seeds)))
    columns = ("cell (for --only)", "recipe", "data", "sets", "runs")
    yield FittingTable(spec.title, columns, rows, right=("runs",))
    total = len(experiments(spec))
    shared = ", some of them in several cells" if total < sum(cell.seeds for cell in cells) else ""
    yield f"{counted(total, 'run')} in all{shared}"


def _changes(first: Recipe, second: Recipe) -> list[str]:
    """Return the settings KEY=VALUE that turn the first recipe into the second."""
    changed = differences(first.identity(), second.identity())
    return [f"{key}={plain(value)}" for key, (_, value) in changed.items()]


def _describe_dataset(manifest: AnyManifest) -> Iterable[RenderableType]:
    yield split_table(manifest)
    yield from map(escape, left_out_lines(manifest))
    source = manifest.source
    matched = {True: "matched", False: "not matched", None: "not known"}[source.official]
    yield f"from {source.kind} {', '.join(source.files)} (official checksum: {matched})"
    yield f"content {manifest.digest}"


def _describe_run(run: RunFolder) -> Iterable[RenderableType]:
    fields = [(key, plain(value)) for key, value in run.recipe().flat().items()]
    yield FittingTable(str(run.path), ("field", "value"), fields, prose=("value",))
    ran_on = run.environment()
    data = ran_on.pop("data")
    rows = [*ran_on.items(), *((f"data.{key}", value) for key, value in data.items())]
    environment = [(key, plain(value)) for key, value in rows]
    yield FittingTable("environment", ("field", "value"), environment, prose=("value",))
    if run.finished:
        result = read_result(run)
        metrics = result.metrics if isinstance(result, TrainResult) else {}
        yield FittingTable(
            "result",
            ("metric", "value"),
            [(key, metric_text(key, value)) for key, value in metrics.items()],
            right=("value",),
        )
    else:
        yield f"unfinished, {counted(run.history().epochs, 'epoch')} done"


def _counts(manifest: AnyManifest) -> str:
    counts = ", ".join(f"{count:,} {split}" for split, count in manifest.image_counts().items())
    return counts + ("" if manifest.complete else " (a part)")


def plain(value: object) -> str:
    """Return a value of a recipe or environment as text."""
    if value is None:
        return "–"
    return str(value).lower() if isinstance(value, bool) else str(value)
