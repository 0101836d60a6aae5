"""What L_G adds to a mini-batch training step: ResNet-20 on CIFAR-10, batch 128, with L_G ÷ without, timed in turns.

On a GPU L_G is computed by its Triton kernels, and for comparison by PyTorch's operators.

    python benchmarks/affinity_cost.py --data data

Needs `affsup prepare cifar10`; about five minutes on two cores.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from record import record

from affsup_cli.affinity import batch
from affsup_cli.recipe import load_recipe
from affsup_cli.runtime.devices import resolve_device
from affsup_cli.tasks import build_task
from affsup_cli.training.cost import time_alternating

PRECISIONS = ("float32", "bf16")


def row(precision: str, implementation: str, data: Path, device: torch.device, rounds: int) -> dict[str, object]:
    """Time steps with and without L_G in turns."""
    common = {
        "data.name": "cifar10",
        "affinity.measure": False,
        "train.precision": precision,
        "run.device": str(device),
    }
    without, with_loss = (load_recipe("minibatch", common | {"affinity.loss": form}) for form in ("none", "focal"))
    kernel_takes = batch.kernel_takes if implementation == "kernels" else lambda *_: False
    with mock.patch.object(batch, "kernel_takes", kernel_takes):
        measured = time_alternating(
            partial(build_task, without, data), partial(build_task, with_loss, data), with_loss, rounds, lambda _: None
        )
    seconds = measured["baseline"]["seconds_per_epoch"], measured["treatment"]["seconds_per_epoch"]
    ratios = [treatment / baseline for baseline, treatment in zip(*seconds, strict=True)]
    quarters = statistics.quantiles(ratios, n=4)
    return {
        "precision": precision,
        "implementation": implementation,
        "epoch_seconds_without": round(statistics.median(seconds[0]), 2),
        "epoch_seconds_with": round(statistics.median(seconds[1]), 2),
        "ratio": round(statistics.median(ratios), 4),
        "ratio_quartiles": f"{quarters[0]:.4f}-{quarters[2]:.4f}",
        "ratio_of_fastest": round(min(seconds[1]) / min(seconds[0]), 4),
        "rounds": measured["rounds"],
        "steps": measured["steps_per_round"],
    }


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=100)
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    rows = []
    for precision in PRECISIONS:
        rows.append(row(precision, "operators", arguments.data, device, arguments.rounds))
        if device.type == "cuda":
            rows.append(row(precision, "kernels", arguments.data, device, arguments.rounds))
    record("affinity_cost", rows, device)


if __name__ == "__main__":
    main()
