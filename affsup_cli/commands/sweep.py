"""`affsup sweep`: the runs that tables and figures need and do not have yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from affsup_cli.completion import complete_table
from affsup_cli.options import DataDir, Device, RunsDir, Set
from affsup_cli.resolve import DATA_DIR, REPORTS_DIR, RUNS_DIR

if TYPE_CHECKING:
    from rich.table import Table

    from affsup_cli.sweeps.plan import Plan, PlannedRun
    from affsup_cli.sweeps.schedule import Outcome
    from affsup_cli.sweeps.slots import Slot


class Where(StrEnum):
    """Where the runs are executed."""

    LOCAL = "local"
    SLURM = "slurm"


def sweep(
    tables: Annotated[
        list[str],
        typer.Argument(
            metavar="TABLE|FIGURE|FILE.toml|all",
            help="`affsup list tables` names them; all: those of the paper. With --grid, a recipe.",
            autocompletion=complete_table,
        ),
    ],
    seeds: Annotated[int | None, typer.Option(help="Runs a cell, instead of the paper's number.")] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Only these cells: gamma2, cifar10/resnet20, table3/cifar10, '*/base'. Repeatable.",
        ),
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=A,B,…",
            help="Run a recipe with each combination of these values: the first field gives the rows of a table, the "
            "second the columns. Repeatable.",
        ),
    ] = None,
    jobs: Annotated[
        int, typer.Option(min=1, help="Runs at the same time on each GPU; on the CPU, whose cores they share.")
    ] = 1,
    launcher: Annotated[
        Where, typer.Option(help="slurm: submit the runs as jobs of a Slurm cluster, and exit.")
    ] = Where.LOCAL,
    slurm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Any option of sbatch for the jobs, such as partition=gpu, cpus_per_task=8, mem=32G, and "
            "FLAG=true for a flag; time is in minutes. Repeatable.",
        ),
    ] = None,
    status: Annotated[bool, typer.Option("--status", help="Show the state of the runs, and do nothing.")] = False,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="Cancel this sweep's jobs; those that run save first.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan, and do nothing.")] = False,
    device: Device = None,
    settings: Set = None,
    data: DataDir = DATA_DIR,
    runs: RunsDir = RUNS_DIR,
) -> None:
    """Run the missing runs of tables and figures, and no others.

    One process on each GPU does one run after another. A run that several tables share is done once. A run that fails
    stops no other run: it is named at the end, with its log. The same command continues a stopped sweep. A run in
    progress in another process is waited for. The order is seed by seed, so that every cell has its first run early.
    Runs with --set depart from the recipe: the table marks them.

    With --jobs 2 or more, that many processes share each GPU: through NVIDIA's MPS, where nvidia-cuda-mps-control is
    installed and works, otherwise time-sliced.

    On a cluster each run is a job that asks for one GPU and 240 minutes, if --slurm says nothing else; one that needs
    longer, or is pre-empted, is requeued and continues from its checkpoint. --status and --cancel work from anywhere,
    at any time.

    \b
    affsup sweep table3 --dry-run
    affsup sweep table3 --only cifar10/resnet20 --seeds 3
    affsup sweep table1 table5 table6 --only voc07 --seeds 1
    affsup sweep table3 --seeds 2 --set train.epochs=10 --jobs 2
    affsup sweep table3 --seeds 10 --jobs 8
    affsup sweep table3 --only tiny-imagenet --only cifar10/resnet20
    affsup sweep minibatch --grid affinity.gamma=0,2,4 --seeds 3
    affsup sweep all --dry-run
    affsup sweep table3 --launcher slurm --slurm partition=gpu
    affsup sweep table3 --status
    affsup sweep table3 --cancel
    """
    from affsup_cli.recipe import parse_override
    from affsup_cli.reporting.select.spec import paper_names
    from affsup_cli.sweeps.plan import needed_recipes, plan_sweep, wanted_experiments
    from affsup_cli.views import sweep_cluster
    from affsup_cli.views.console import console
    from affsup_cli.views.embedded import prepare_embedded
    from data_prep.errors import AffsupError

    on_cluster = launcher is Where.SLURM
    _refuse_contradictions(on_cluster, jobs, slurm, status, cancel, dry_run)
    extra = dict(parse_override(text) for text in settings or [])
    if device is not None:
        extra["run.device"] = device
    names = list(dict.fromkeys(name for given in tables for name in (paper_names() if given == "all" else [given])))
    title = " ".join(tables)
    if grid:
        names = [_grid_file(tables, grid, seeds, extra, runs)]
        title, seeds, extra = names[0], None, {"run.device": device} if device else {}
    wanted = wanted_experiments(names, seeds, only or (), extra)
    if status or cancel:
        plan = plan_sweep(wanted, data, runs, set())
        if cancel:
            sweep_cluster.cancel_jobs(plan, runs)
        else:
            sweep_cluster.print_status(plan, title, runs)
        return
    device_asked = str(extra.get("run.device", "auto"))
    asked = sweep_cluster.parse_slurm(slurm or [], device_asked) if on_cluster else {}
    from affsup_cli.sweeps.slots import find_slots

    slots = [] if on_cluster else find_slots(device_asked, jobs)
    plan = plan_sweep(wanted, data, runs, {slot.name for slot in slots})
    if not (dry_run or plan.obstacles):
        prepare_embedded(needed_recipes(wanted), data)
        plan = plan_sweep(wanted, data, runs, {slot.name for slot in slots})
    print_plan(plan, title, slots)
    if dry_run:
        for obstacle in plan.obstacles:
            console.print(obstacle, style="yellow", markup=False)
        return
    if plan.obstacles:
        raise AffsupError("\n".join(plan.obstacles))
    if on_cluster:
        sweep_cluster.submit_plan(plan, data, runs, asked)
        return
    run_plan(plan, data, slots)
    elsewhere = "" if runs == RUNS_DIR else f" --runs {runs}"
    console.print(f"all runs of this sweep are finished; `affsup report {title}{elsewhere}` shows them", markup=False)
    if grid:
        from affsup_cli.commands.report import print_reports

        print_reports(names, runs, REPORTS_DIR)


def _grid_file(
    recipes: Sequence[str], grid: Sequence[str], seeds: int | None, extra: Mapping[str, Any], runs: Path
) -> str:
    """Write the table of --grid beside the runs, and return its path."""
    from affsup_cli.sweeps.grid import grid_table, parse_axis, write_grid
    from data_prep.errors import UsageError

    if len(recipes) != 1:
        raise UsageError(f"--grid takes one recipe, found {', '.join(recipes)}")
    fields = {field: value for field, value in extra.items() if field != "run.device"}
    return str(write_grid(grid_table(recipes[0], [parse_axis(text) for text in grid], seeds or 1, fields), runs))


def _refuse_contradictions(
    on_cluster: bool, jobs: int, slurm: Sequence[str] | None, status: bool, cancel: bool, dry_run: bool
) -> None:
    from data_prep.errors import UsageError

    if sum((status, cancel, dry_run)) > 1:
        raise UsageError("--status, --cancel and --dry-run: give one of them")
    if slurm and not on_cluster:
        raise UsageError("--slurm is for jobs of a cluster: add --launcher slurm")
    if on_cluster and jobs > 1:
        raise UsageError(
            f"--jobs {jobs} is for this machine: on a cluster --slurm array_parallelism={jobs} bounds them"
        )


def print_plan(plan: Plan, title: str, slots: Sequence[Slot]) -> None:
    """Print a plan: its total, then a line a cell, and warnings; without slots, for a cluster."""
    from affsup_cli.views.console import console, print_warning
    from data_prep.errors import counted

    where = ", ".join(dict.fromkeys(slot.device for slot in slots)) or "slurm"
    at_once = f", {len(slots)} at a time" if len(slots) > 1 else ""
    summary = f"{counted(len(plan.runs), 'run')}, {len(plan.to_do)} to do on {where}{at_once}"
    console.print(f"{title}: {summary}{_total(plan, max(1, len(slots)))}", style="bold", markup=False)
    console.print(_plan_table(plan), soft_wrap=False)
    if any(shared for _, _, shared in _lines(plan)):
        console.print("+: runs that these cells share with lines above, and that are counted there")
    for warning in (*plan.warnings, *_slow_precisions(plan, slots)):
        print_warning(warning)


def _slow_precisions(plan: Plan, slots: Sequence[Slot]) -> list[str]:
    import torch

    from affsup_cli.runtime.devices import slow_bf16

    devices = dict.fromkeys(slot.device for slot in slots)
    precisions = dict.fromkeys(planned.recipe.train.precision for planned in plan.to_do)
    found = (slow_bf16(precision, torch.device(device)) for device in devices for precision in precisions)
    return [warning for warning in dict.fromkeys(found) if warning]


def _total(plan: Plan, parallel: int) -> str:
    """Return how long all of it takes, as far as that is known."""
    from affsup_cli.views.live_training import duration

    known = [seconds for seconds in (planned.seconds(plan.speeds) for planned in plan.to_do) if seconds is not None]
    if not known:
        return ""
    least = "at least" if len(known) < len(plan.to_do) else "about"
    return f", {least} {duration(sum(known) / parallel)}"


def _plan_table(plan: Plan) -> Table:
    from rich.table import Table

    # Narrow, so that the longest key of table 3 has room in 80 columns.
    shown = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    shown.add_column("cell", overflow="fold")
    lines = _lines(plan)
    sharing = ["+"] if any(shared for _, _, shared in lines) else []
    for column in ("runs", *sharing, "finished", "unfinished", "to do", "time"):
        shown.add_column(column, justify="right")
    for cells, planned_runs, shared in lines:
        states = [planned.state for planned in planned_runs]
        finished = states.count("finished")
        counts = (finished, states.count("unfinished"), len(planned_runs) - finished)
        beside = [f"+{shared}" if shared else "" for _ in sharing]
        shown.add_row("\n".join(cells), str(len(planned_runs)), *beside, *map(str, counts), _time(plan, planned_runs))
    return shown


def _lines(plan: Plan) -> list[tuple[tuple[str, ...], list[PlannedRun], int]]:
    """Return the cells of each line, their runs that stand in no line above, and the number of those that do."""
    lines = []
    counted: set[PlannedRun] = set()
    for cells, planned_runs in plan.by_cells().items():
        own = [planned for planned in planned_runs if planned not in counted]
        counted.update(own)
        lines.append((cells, own, len(planned_runs) - len(own)))
    return lines


def _time(plan: Plan, planned_runs: Sequence[PlannedRun]) -> str:
    from affsup_cli.views.live_training import duration

    left = [planned.seconds(plan.speeds) for planned in planned_runs if planned.state != "finished"]
    known = [seconds for seconds in left if seconds is not None]
    return duration(sum(known)) if left and len(known) == len(left) else "–"


def run_plan(plan: Plan, data: Path, slots: Sequence[Slot]) -> None:
    """Do the runs that a plan has to do, and show them.

    Raises:
        AffsupError: runs have failed, or the sweep was stopped; the message names the runs.
    """
    from affsup_cli.sweeps.local import run_locally
    from affsup_cli.views.console import console
    from affsup_cli.views.live_sweep import SweepView
    from data_prep.errors import AffsupError

    with SweepView(console, plan.to_do, plan.speeds, len(slots)) as view:
        outcomes = run_locally(plan, data, slots, view)
    lines = _failures(outcomes)
    left = sum(planned not in outcomes or outcomes[planned].how != "finished" for planned in plan.to_do)
    stopped = any(planned not in outcomes or outcomes[planned].how == "stopped" for planned in plan.to_do)
    if stopped:
        lines.append(f"interrupted: {left} of {len(plan.to_do)} runs are left to do; the same command continues")
    if lines:
        raise AffsupError("\n".join(lines))


def _failures(outcomes: Mapping[PlannedRun, Outcome]) -> list[str]:
    from affsup_cli.sweeps.worker import LOG
    from data_prep.errors import counted

    failed = {planned: outcome for planned, outcome in outcomes.items() if outcome.how in ("failed", "not run")}
    if not failed:
        return []
    lines = [f"{counted(len(failed), 'run')} of this sweep failed:"]
    for planned, outcome in failed.items():
        log = planned.folder.path / LOG
        if outcome.how == "not run":
            lines.append(f"  {planned.label} was not run: {outcome.reason}")
        else:
            lines.append(f"  {planned.label}: {outcome.reason}" + (f" (log: {log})" if log.exists() else ""))
    return lines
