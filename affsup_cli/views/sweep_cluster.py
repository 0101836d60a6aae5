"""`affsup sweep` on a Slurm cluster: parse --slurm, submit, print the state, cancel."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from affsup_cli.sweeps.plan import Plan, PlannedRun
    from affsup_cli.sweeps.slurm import RunStatus


def parse_slurm(settings: Sequence[str], device: str) -> dict[str, Any]:
    """Return the parameters of each job.

    Args:
        settings: `key=value` each, as given to --slurm.
        device: `run.device`.

    Raises:
        AffsupError: submitit is not installed.
        UsageError: a setting is not of that form, or is refused.
    """
    from affsup_cli.sweeps.slurm import slurm_parameters
    from data_prep.errors import AffsupError, UsageError, quote

    if importlib.util.find_spec("submitit") is None:
        raise AffsupError("--launcher slurm needs submitit, which is not installed: `pip install 'affsup[slurm]'`")
    if device.startswith("cuda:"):
        raise UsageError(f"--device {device}: Slurm decides which GPU a run is given; take --device cuda")
    given: list[tuple[str, str]] = []
    for setting in settings:
        key, separator, value = (part.strip() for part in setting.partition("="))
        if not (key and separator and value):
            raise UsageError(f"--slurm takes KEY=VALUE, for example partition=gpu; found {quote(setting)}")
        given.append((key, value))
    return slurm_parameters(given, device)


def submit_plan(plan: Plan, data: Path, runs: Path, asked: Mapping[str, Any]) -> None:
    """Submit the runs that a plan has to do, and print their jobs."""
    from affsup_cli.sweeps.slurm import submit
    from affsup_cli.views.console import console
    from data_prep.errors import AffsupError, counted

    new = submit(plan, data, runs, asked)
    there = len(plan.to_do) - len(new) - len(plan.blocked)
    if there:
        console.print(f"{counted(there, 'run')} in the queue already")
    if new:
        console.print(f"submitted {counted(len(new), 'run')}: {_of_jobs(new.values())}", markup=False)
    if plan.to_do:
        console.print("the same command with --status shows their state, with --cancel cancels them")
    if plan.blocked:
        lines = [f"  {planned.label}: {reason}" for planned, reason in plan.blocked.items()]
        raise AffsupError("\n".join([f"{counted(len(lines), 'run')} not submitted:", *lines]))


def cancel_jobs(plan: Plan, runs: Path) -> None:
    """Cancel the jobs of a sweep, and print them."""
    from affsup_cli.sweeps.slurm import cancel
    from affsup_cli.views.console import console
    from data_prep.errors import counted

    cancelled = cancel(plan, runs)
    if not cancelled:
        console.print("no run of this sweep is in the queue")
        return
    console.print(f"cancelled {counted(len(cancelled), 'run')}: {_of_jobs(cancelled.values())}", markup=False)
    console.print("running jobs save their checkpoints; the same sweep continues them")


def print_status(plan: Plan, title: str, runs: Path) -> None:
    """Print the state of a sweep's runs: a count, a line a run, and the logs of those that failed."""
    from rich.table import Table
    from rich.text import Text

    from affsup_cli.sweeps.slurm import statuses
    from affsup_cli.views.console import console
    from data_prep.errors import counted

    found = statuses(plan, runs)
    counts = Counter(status.state for status in found.values())
    said = ", ".join(f"{number} {state}" for state, number in counts.items())
    console.print(f"{title}: {counted(len(found), 'run')}: {said}", style="bold", markup=False)
    shown = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    shown.add_column("run", overflow="fold")
    for column in ("state", "job", "epoch"):
        shown.add_column(column, justify="right" if column == "epoch" else "left", no_wrap=True)
    shown.add_column("", overflow="fold")
    for planned, status in found.items():
        detail = "" if status.state == "failed" else status.detail
        shown.add_row(Text(planned.label), status.state, status.job or "", _epoch(planned, status), Text(detail))
    console.print(shown, soft_wrap=False)
    for planned, status in found.items():
        if status.state == "failed":
            log = f" (log: {status.log})" if status.log else ""
            console.print(f"{planned.label} failed: {status.detail}{log}", style="red", markup=False)


def _epoch(planned: PlannedRun, status: RunStatus) -> str:
    epochs = planned.recipe.train.epochs
    if status.state == "finished" or planned.baseline is not None:
        return ""
    if status.state == "running":
        return f"{min(planned.epochs_done + 1, epochs)}/{epochs}"
    return f"{planned.epochs_done} of {epochs} done" if planned.epochs_done else ""


def _of_jobs(jobs: Iterable[str]) -> str:
    """Return the names of jobs; tasks of one array share a name."""
    sizes = Counter(job.partition("_")[0] for job in jobs)
    named = [f"{job} ({size} tasks)" if size > 1 else job for job, size in sizes.items()]
    return f"job{'s' if len(named) > 1 else ''} {', '.join(named)}"
