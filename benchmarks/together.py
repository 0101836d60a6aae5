"""Runs of `minibatch` an hour: side by side in one process against one after another, on the same device.

Seeds of ResNet-20 on CIFAR-10 with L_G, and as many without it, as table 3 has them. Blocks of an epoch's steps, all of
them taken by every run, are timed in turns: each run's by itself, then all by turns. Evaluation and checkpoints are not
in it; on a GPU both ways repeat a CUDA graph a step, side by side each in a stream of its own.

    python benchmarks/together.py --data data --runs 20

Needs `affsup prepare cifar10`; about two minutes on two cores with `--runs 4`, the default there.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Generator
from pathlib import Path

from minibatch_training import now
from record import record

from affsup_cli.engine.devices import resolve_device
from affsup_cli.engine.recorded import on_own_stream
from affsup_cli.engine.step import TrainingStep, recorder_for
from affsup_cli.engine.together import SharedClock, take_turns
from affsup_cli.recipe import load_recipe
from affsup_cli.tasks import build_task

WARM_UP = 5


def run_of(data: Path, fields: dict[str, object]) -> Callable[[int], Generator[None, None, None]]:
    """Return a function that makes the next so many steps of a run, one at a time; all are steps of its first epoch."""
    recipe = load_recipe("minibatch", fields)
    task = build_task(recipe, data)
    steps = TrainingStep(task, recipe.train, recorder_for(task, recipe.run.graph))
    task.begin_epoch(0)
    task.model.train()
    steps.begin(0, 0)

    def taken(count: int) -> Generator[None, None, None]:
        steps.begin(0, 0)
        for step in range(count):
            steps.take(step)
            yield

    return taken


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--arch", default="resnet20")
    parser.add_argument("--runs", type=int, help="half of them with L_G; 20 on a GPU, 4 on a CPU if not given")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="of each run a round; 100 on a GPU, 5 on a CPU if not given")
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    on_gpu = device.type == "cuda"
    count, steps = arguments.runs or (20 if on_gpu else 4), arguments.steps or (100 if on_gpu else 5)
    shared = {"data.name": "cifar10", "model.arch": arguments.arch, "train.precision": arguments.precision}
    runs = [
        run_of(
            arguments.data,
            {**shared, "run.device": str(device), "seed": place // 2, "affinity.loss": ("focal", "none")[place % 2]},
        )
        for place in range(count)
    ]

    def seconds(together: bool) -> float:
        begun = now(device)
        pieces = [on_own_stream(run(steps), device) if on_gpu else run(steps) for run in runs]
        for group in [pieces] if together else [[each] for each in pieces]:
            if any(error for _, error in take_turns(group, SharedClock(), device)):
                raise SystemExit("a run has failed")
        return now(device) - begun

    for run in runs:
        dict(take_turns([on_own_stream(run(WARM_UP), device) if on_gpu else run(WARM_UP)], SharedClock(), device))
    taken: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(arguments.rounds):
        for side_by_side in (False, True) if turn % 2 == 0 else (True, False):
            taken[side_by_side].append(seconds(side_by_side))
    alone, together = taken[False], taken[True]
    ratios = [one / other for one, other in zip(alone, together, strict=True)]
    images = 128 * steps * count
    row = {
        "arch": arguments.arch,
        "precision": arguments.precision,
        "runs": count,
        "images_per_second_one_after_another": round(images / statistics.median(alone)),
        "images_per_second_together": round(images / statistics.median(together)),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_min": round(min(ratios), 2),
        "ratio_max": round(max(ratios), 2),
        "rounds": arguments.rounds,
        "steps": steps,
    }
    record("together", [row], device)


if __name__ == "__main__":
    main()
