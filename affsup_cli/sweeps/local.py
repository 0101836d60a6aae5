"""A sweep on this machine, from its plan to its end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from affsup_cli.engine.stop import StopRequest
from affsup_cli.sweeps.packs import alone, packed
from affsup_cli.sweeps.places import Place
from affsup_cli.sweeps.plan import Plan, Step
from affsup_cli.sweeps.schedule import Outcome, Watcher, run_steps
from affsup_cli.sweeps.workers import LocalWorkers


def run_here(
    plan: Plan, data_dir: Path, places: Sequence[Place], watcher: Watcher, together: int = 1
) -> dict[Step, Outcome]:
    """Do what a plan has to do: training runs side by side, then cost comparisons, each alone on the machine.

    The first Ctrl-C or SIGTERM lets all runs save and leave, a second Ctrl-C kills them.

    Args:
        plan: whose runs.
        data_dir: where the data sets are prepared.
        places: room for a process each.
        watcher: told of all that happens.
        together: so many runs that are alike a process trains side by side at most.

    Returns:
        What became of each step; those that a stop kept from beginning are missing.
    """
    outcomes: dict[Step, Outcome] = {}
    trainings = packed([step for step in plan.to_do if step.baseline is None], together, len(places))
    comparisons = alone([step for step in plan.to_do if step.baseline is not None])
    with StopRequest() as stop:
        for packs, room in ((trainings, places), (comparisons, [places[0].alone()])):
            workers = LocalWorkers(room)
            try:
                outcomes |= run_steps(packs, data_dir, workers, watcher, stop)
            finally:
                workers.close()
    return outcomes
