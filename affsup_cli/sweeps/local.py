"""A sweep on this machine, from its plan to its end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from affsup_cli.runtime.stop import StopRequest
from affsup_cli.sweeps.mps import mps_on_shared_gpus
from affsup_cli.sweeps.plan import Plan, PlannedRun
from affsup_cli.sweeps.schedule import Outcome, SweepObserver, run_planned
from affsup_cli.sweeps.slots import Slot
from affsup_cli.sweeps.workers import LocalWorkers


def run_locally(
    plan: Plan, data_dir: Path, slots: Sequence[Slot], observer: SweepObserver
) -> dict[PlannedRun, Outcome]:
    """Do the runs that a plan has to do: training runs in all slots, then cost comparisons one by one.

    The first Ctrl-C or SIGTERM lets all runs save and exit, a second Ctrl-C kills them.

    Args:
        plan: what to do.
        data_dir: the folder of the prepared data sets.
        slots: room for a process each.
        observer: its methods are called as the sweep goes on.

    Returns:
        The outcome of each run; runs that a stop kept from beginning are missing.
    """
    trainings = [planned for planned in plan.to_do if planned.baseline is None]
    comparisons = [planned for planned in plan.to_do if planned.baseline is not None]
    outcomes: dict[PlannedRun, Outcome] = {}
    with StopRequest() as stop:
        if trainings:
            with mps_on_shared_gpus(slots[: len(trainings)], observer.reported) as connected:
                outcomes |= _run_in(connected, trainings, data_dir, observer, stop)
        if comparisons:
            outcomes |= _run_in([slots[0].alone()], comparisons, data_dir, observer, stop)
    return outcomes


def _run_in(
    slots: Sequence[Slot],
    planned_runs: Sequence[PlannedRun],
    data_dir: Path,
    observer: SweepObserver,
    stop: StopRequest,
) -> dict[PlannedRun, Outcome]:
    workers = LocalWorkers(slots)
    try:
        return run_planned(planned_runs, data_dir, workers, observer, stop)
    finally:
        workers.close()
