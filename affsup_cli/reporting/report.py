"""One call from a table's or figure's name to its files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from affsup_cli.engine.run_folder import atomic_file
from affsup_cli.errors import AffsupError
from affsup_cli.reporting.document import Content, Report, markdown
from affsup_cli.reporting.experiments import experiments, spec_cells
from affsup_cli.reporting.match import changed_fields
from affsup_cli.reporting.runs import Environment, Run, RunIndex
from affsup_cli.reporting.spec import (
    CostSpec,
    CurvesSpec,
    EmbeddingSpec,
    GridSpec,
    RecallSpec,
    RelationsSpec,
    Spec,
    TargetsSpec,
    load_spec,
)


def build_report(name: str, runs: RunIndex, out: Path) -> Report:
    """Write a table's or figure's files into `out` and return what to show: the same runs always give the same bytes.

    Every report has a page `NAME.md`; tables and figures add `NAME.csv` and other endings, figures `NAME.png`.

    Raises:
        UsageError: there is no such table or figure.
        AffsupError: `out` cannot be written to.
    """
    spec = load_spec(name)
    content = _build(spec, runs)
    notes = [*content.notes, *_provenance(content.used), *_unfinished(spec, runs), *_missing(name, spec, runs)]
    picture = f"{name}.png" if ".png" in content.files else None
    page = markdown(spec.title, content, notes, picture)
    paths = []
    for ending, data in {".md": page.encode(), **content.files}.items():
        path = out / f"{name}{ending}"
        _write(path, data)
        paths.append(path)
    return Report(spec.title, content.caption, content.tables, content.footnotes, tuple(notes), tuple(paths))


def _build(spec: Spec, runs: RunIndex) -> Content:
    # Each kind loads its own heavy libraries: a table must not wait for matplotlib.
    match spec:
        case GridSpec():
            from affsup_cli.reporting.grid import build_grid

            return build_grid(spec, runs)
        case CostSpec():
            from affsup_cli.reporting.cost import build_cost

            return build_cost(spec, runs)
        case CurvesSpec():
            from affsup_cli.reporting.curves import build_curves

            return build_curves(spec, runs)
        case EmbeddingSpec():
            from affsup_cli.reporting.embedding import build_embedding

            return build_embedding(spec, runs)
        case RecallSpec():
            from affsup_cli.reporting.recall import build_recall

            return build_recall(spec, runs)
        case RelationsSpec():
            from affsup_cli.reporting.relations import build_relations

            return build_relations(spec, runs)
        case TargetsSpec():
            from affsup_cli.reporting.targets import build_targets

            return build_targets(spec, runs)


def _provenance(used: Iterable[Run]) -> list[str]:
    """Say on what machines, with which code and when the runs were made."""
    environments = [run.environment for run in used]
    if not environments:
        return []
    machines = {
        f"{ran.device_name} ({ran.device}, {ran.threads} threads), Python {ran.python}, torch {ran.torch}"
        for ran in environments
    }
    code = {_code(ran) for ran in environments}
    days = sorted({ran.started[:10] for ran in environments})
    period = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return [f"Machine: {'; '.join(sorted(machines))}", f"Code: {'; '.join(sorted(code))}", f"Runs started: {period}"]


def _code(ran: Environment) -> str:
    if ran.commit is None:
        return f"affsup {ran.affsup}"
    return f"affsup {ran.affsup}, commit {ran.commit[:12]}{' and uncommitted changes' if ran.dirty else ''}"


def _unfinished(spec: Spec, runs: RunIndex) -> list[str]:
    """Name the runs of this report's cells that have not come to their end, and how to go on with them."""
    if isinstance(spec, CostSpec):
        return []
    cells = spec_cells(spec)
    stopped = [run for run in runs.unfinished if any(changed_fields(cell, run) is not None for cell in cells)]
    return [
        f"Not finished: {run.folder.name}. Unless it is still going on, continue it with "
        f"`affsup train {run.folder.path / 'recipe.toml'} --name {run.folder.name} --resume`"
        for run in stopped
    ]


def _missing(name: str, spec: Spec, runs: RunIndex) -> list[str]:
    """Say how many runs of the full table are not there, and what makes them."""
    wanted = experiments(spec)
    found = [runs.find(experiment.recipe, experiment.kind) for experiment in wanted]
    missing = sum(folder is None or not folder.finished for folder in found)
    return (
        [f"{missing} of {len(wanted)} runs without any departure are not there yet: `affsup sweep {name}` makes them"]
        if missing
        else []
    )


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise AffsupError(f"cannot write {path}: {error.strerror}. Name another folder with --out") from error
