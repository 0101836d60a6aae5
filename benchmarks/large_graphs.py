"""L_G of graphs of thousands of entities, forward and backward: in tiles, as a matrix, and what metric learning offers.

Features are 64 wide, of 100 classes. Each variant runs in a process of its own, so that its peak memory is its own; the
variants of a size take turns. SupCon, NCA and NT-Xent are pytorch-metric-learning's, and left out where it is not
installed. A variant stops at the largest size that 23 GB of memory hold.

    pip install pytorch-metric-learning
    python benchmarks/large_graphs.py [--sizes N ...] [--rounds N] [--device cuda]

About a quarter of an hour on two cores.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

WIDTH, CLASSES = 64, 100
SIZES = (512, 8_192, 16_384, 65_536)
# Variants, and the largest size that each reaches within 23 GB.
VARIANTS = {
    "matrix": 16_384,
    "tiles": 65_536,
    "tiles, row softmax": 65_536,
    "tiles, dot product": 65_536,
    "tiles, 5 edges a node": 65_536,
    "SupCon": 16_384,
    "NCA": 16_384,
    "NT-Xent": 512,
}
METRIC_LEARNING = {"SupCon": "SupConLoss", "NCA": "NCALoss", "NT-Xent": "NTXentLoss"}


def loss_of(variant: str, size: int, device: Any) -> Callable[[Any], Any]:
    """The loss of features `[N, d]`."""
    import torch

    from affsup_cli.affinity import (
        affinity_loss,
        l2_affinity,
        l2_loss_and_mass,
        same_category_target,
        scaled_dot_loss_and_mass,
    )

    labels = torch.arange(size, device=device) % CLASSES
    if variant in METRIC_LEARNING:
        from pytorch_metric_learning import losses

        loss = getattr(losses, METRIC_LEARNING[variant])()
        return lambda features: loss(features, labels)
    if variant == "matrix":
        return lambda features: affinity_loss(
            l2_affinity(features), same_category_target(labels), gamma=4.0, diagonal="exclude"
        )
    if variant == "tiles, row softmax":
        return lambda features: l2_loss_and_mass(features, labels=labels, softmax="row", diagonal="exclude").loss
    if variant == "tiles, dot product":
        return lambda features: scaled_dot_loss_and_mass(features, features, labels=labels, diagonal="exclude").loss
    if variant == "tiles, 5 edges a node":
        edges = torch.randint(0, size, (5 * size, 2), generator=torch.Generator().manual_seed(0)).to(device)
        return lambda features: l2_loss_and_mass(features, edges=edges, diagonal="exclude").loss
    return lambda features: l2_loss_and_mass(features, labels=labels, gamma=4.0, diagonal="exclude").loss


def measure(variant: str, size: int, device_name: str) -> None:
    """Print seconds of a step and the memory that it took above what was there before, from the second call on."""
    import torch

    device = torch.device(device_name)

    def step(count: int) -> float:
        generator = torch.Generator().manual_seed(0)
        features = (0.3 * torch.randn(count, WIDTH, generator=generator)).to(device).requires_grad_()
        loss_of_features = loss_of(variant, count, device)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begun = time.perf_counter()
        loss_of_features(features).backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begun

    # What is imported and set up at a first call is no part of a step.
    step(2 * CLASSES)
    before = memory_mb(device, peak=False)
    seconds = step(size)
    print(json.dumps({"seconds": seconds, "peak_mb": memory_mb(device, peak=True) - before}))


def memory_mb(device: Any, peak: bool) -> float:
    """What this process holds, or held at most: of the GPU's memory, or of the machine's."""
    import torch

    if device.type == "cuda":
        return (torch.cuda.max_memory_allocated if peak else torch.cuda.memory_allocated)(device) / 2**20
    if peak:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def compare(sizes: Sequence[int], rounds: int, device: str) -> list[dict[str, Any]]:
    """Run the variants of each size in turn. This process stays small: a child begins with its peak memory."""
    installed = importlib.util.find_spec("pytorch_metric_learning") is not None
    if not installed:
        print("pytorch-metric-learning is not installed: SupCon, NCA and NT-Xent are left out")
    rows = []
    for size in sizes:
        variants = [
            name for name, reach in VARIANTS.items() if size <= reach and (installed or name not in METRIC_LEARNING)
        ]
        measured: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
        for _ in range(rounds):
            for name in variants:
                command = [sys.executable, __file__, "--variant", name, "--size", str(size), "--device", device]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                measured[name].append(json.loads(done.stdout))
        ours = measured["tiles"]
        for name, results in measured.items():
            ratios = [theirs["seconds"] / tiles["seconds"] for theirs, tiles in zip(results, ours, strict=True)]
            peak = max(each["peak_mb"] for each in results)
            rows.append(
                {
                    "entities": size,
                    "variant": name,
                    "seconds": f"{statistics.median(each['seconds'] for each in results):.3g}",
                    "peak_mb": math.ceil(peak),
                    "time_over_tiles": f"{statistics.median(ratios):.3g}",
                    "memory_over_tiles": f"{peak / max(each['peak_mb'] for each in ours):.3g}",
                    "rounds": rounds,
                }
            )
    return rows


def main() -> None:
    """Compare, or take one measurement of that."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.variant:
        measure(arguments.variant, arguments.size, arguments.device)
        return
    rows = compare(arguments.sizes, arguments.rounds, arguments.device)
    import torch  # as late as this so that children begin small
    from record import record

    record("large_graphs", rows, torch.device(arguments.device))


if __name__ == "__main__":
    main()
