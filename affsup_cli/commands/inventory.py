"""What there is on this machine, as rich tables: `affsup list`, `show` and `doctor` print them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

import data_prep
from affsup_cli.commands.console import counted, metric_text
from affsup_cli.commands.split_table import left_out_lines, split_table
from affsup_cli.engine.run_folder import RunFolder, run_folders
from affsup_cli.errors import AffsupError, UsageError, did_you_mean
from affsup_cli.recipe import Recipe, field_help, load_recipe, recipe_names
from affsup_cli.reporting.experiments import experiments
from affsup_cli.reporting.spec import load_spec, report_names
from data_prep.format import AnyManifest, read_manifest

_HEADLINES = {"test_accuracy": "accuracy", "test_map_50": "mAP@0.5"}


def recipes() -> Table:
    """Recipes and what they are about."""
    rows = ((name, inspect.getdoc(type(load_recipe(name))) or "") for name in recipe_names())
    return _table("recipes", ("name", "what it trains"), rows)


def tables() -> Table:
    """Tables and figures."""
    rows = []
    for name in report_names():
        spec = load_spec(name)
        rows.append((name, spec.title.partition(": ")[2] or spec.title, str(len(experiments(spec)))))
    return _table("tables and figures", ("name", "what it shows", "runs"), rows, right=("runs",))


def datasets(data_dir: Path) -> Table:
    """Data sets, and which are prepared."""
    rows = []
    for name, dataset in data_prep.datasets().items():
        folder = data_dir / name
        try:
            state = _counts(read_manifest(folder)) if folder.exists() else f"no: affsup prepare {name}"
        except AffsupError as error:
            state = str(error)
        rows.append((name, dataset.summary, state))
    return _table(f"data sets (in {data_dir})", ("name", "what it is", "prepared"), rows)


def runs(runs_dir: Path) -> RenderableType:
    """Runs, finished or not."""
    rows = [_run_row(run) for run in run_folders(runs_dir)]
    if not rows:
        return f"no runs in {runs_dir} yet: `affsup train minibatch` makes one"
    return _table(
        f"runs (in {runs_dir})", ("name", "state", "on the test split", "M"), rows, right=("on the test split", "M")
    )


def describe(name: str, data_dir: Path, runs_dir: Path) -> Iterable[RenderableType]:
    """Return what there is to say about anything that has a name.

    Raises:
        UsageError: nothing has that name.
    """
    if name in recipe_names():
        return _describe_recipe(load_recipe(name))
    if name in report_names():
        return _describe_table(name)
    if name in data_prep.datasets():
        return _describe_dataset(read_manifest(data_dir / name))
    run = RunFolder(Path(name) if Path(name).is_dir() else runs_dir / name)
    if run.exists:
        return _describe_run(run)
    known = [*recipe_names(), *report_names(), *data_prep.datasets(), *(run.name for run in run_folders(runs_dir))]
    raise UsageError(f"nothing is called '{name}'{did_you_mean(name, known)}: see `affsup list`")


def _describe_recipe(recipe: Recipe) -> Iterable[RenderableType]:
    explained = field_help(recipe)
    rows = [
        (key, _plain(value), explained.get(key, ""))
        for key, value in recipe.flat().items()
        if key not in ("name", "task")
    ]
    yield _table(f"recipe {recipe.name} (for --set)", ("field", "value", ""), rows)


def _describe_table(name: str) -> Iterable[RenderableType]:
    spec = load_spec(name)
    wanted = experiments(spec)
    seeds: dict[tuple[str, ...], int] = {}
    for experiment in wanted:
        seeds[experiment.keys] = seeds.get(experiment.keys, 0) + 1
    rows = [("\n".join(keys), str(count)) for keys, count in seeds.items()]
    yield _table(spec.title, ("cell (for --only)", "runs"), rows, right=("runs",))


def _describe_dataset(manifest: AnyManifest) -> Iterable[RenderableType]:
    yield split_table(manifest)
    yield from map(escape, left_out_lines(manifest))
    source = manifest.source
    matched = {True: "matched", False: "not matched", None: "not known"}[source.official]
    yield f"from {source.kind} {', '.join(source.files)} (official checksum: {matched})"
    yield f"content {manifest.digest}"


def _describe_run(run: RunFolder) -> Iterable[RenderableType]:
    yield _table(
        str(run.path), ("field", "value"), [(key, _plain(value)) for key, value in run.recipe().flat().items()]
    )
    ran_on = run.environment()
    data = ran_on.pop("data")
    rows = [*ran_on.items(), *((f"data.{key}", value) for key, value in data.items())]
    yield _table("ran on", ("what", "value"), [(key, _plain(value)) for key, value in rows])
    if run.finished:
        metrics = run.result().get("metrics", {})
        yield _table(
            "result",
            ("metric", "value"),
            [(key, metric_text(key, value)) for key, value in metrics.items()],
            right=("value",),
        )
    else:
        yield f"unfinished, {counted(len(run.metrics()), 'epoch')} done"


def _run_row(run: RunFolder) -> tuple[str, str, str, str]:
    try:
        if not run.finished:
            return run.name, f"unfinished, {counted(len(run.metrics()), 'epoch')} done", "–", "–"
        result = run.result()
        if result["kind"] == "cost":
            return run.name, "measured", "–", "–"
        metrics = result["metrics"]
        shown = [f"{label} {metrics[key]:.2%}" for key, label in _HEADLINES.items() if key in metrics]
        mass = f"{metrics['test_mass']:.3f}" if "test_mass" in metrics else "–"
        return run.name, counted(result["epochs"], "epoch"), ", ".join(shown), mass
    except (AffsupError, KeyError) as error:
        return run.name, f"damaged: {error}", "–", "–"


def _counts(manifest: AnyManifest) -> str:
    counts = ", ".join(f"{count:,} {split}" for split, count in manifest.image_counts().items())
    return counts + ("" if manifest.complete else " (a part)")


def _plain(value: object) -> str:
    if value is None:
        return "–"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
