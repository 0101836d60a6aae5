"""Training images/s of `minibatch` by the number of processes that share a GPU, as `sweep --jobs N` starts them.

Each process repeats the steps of its own run with L_G (ResNet-20 on CIFAR-10) for a few seconds; where NVIDIA's MPS is
there, it is used as by a sweep. On a CPU, processes share the cores.

    python benchmarks/shared_gpu.py --data data --processes 1 2 4 8

Needs `affsup prepare cifar10`; about a minute on a GPU.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from minibatch_training import VARIANTS, our_loop
from record import record

from affsup_cli.runtime.devices import resolve_device
from affsup_cli.sweeps.mps import mps_on_shared_gpus
from affsup_cli.sweeps.slots import Slot, find_slots


def serve(slot: Slot, data: Path, variants: list[str], seed: int, parent: Connection) -> None:
    """Build a run for each variant; then train for as many seconds as is asked, and answer with images a second."""
    device = torch.device("cuda" if slot.device.startswith("cuda") else "cpu")
    common = {"seed": seed, "affinity.loss": "focal", "affinity.measure": True}
    loops = {name: our_loop(data, device, common | VARIANTS[name]) for name in variants}
    for loop in loops.values():
        loop(2)
    parent.send("ready")
    while (asked := parent.recv()) is not None:
        variant, seconds = asked
        steps, begun = 0, time.perf_counter()
        while time.perf_counter() - begun < seconds:
            loops[variant](20)
            steps += 24  # with those that `our_loop` does before its clock runs
        parent.send(128 * steps / (time.perf_counter() - begun))


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["float32", "bf16"])
    parser.add_argument("--seconds", type=float, default=3.0)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    said: list[str] = []
    rows = []
    with mps_on_shared_gpus(find_slots(arguments.device, max(arguments.processes)), said.append) as slots:
        connections = []
        for seed, slot in enumerate(slots):
            here, there = context.Pipe()
            os.environ.update(slot.environment)
            context.Process(
                target=serve, args=(slot, arguments.data, arguments.variants, seed, there), daemon=True
            ).start()
            connections.append(here)
        for connection in connections:
            connection.recv()
        for variant in arguments.variants:
            for count in arguments.processes:
                for connection in connections[:count]:
                    connection.send((variant, arguments.seconds))
                rates = [connection.recv() for connection in connections[:count]]
                row = {"variant": variant, "processes": count, "images_per_second": round(sum(rates))}
                rows.append({**row, "shared": " ".join(said) or "-"})
        for connection in connections:
            connection.send(None)
    record("shared_gpu", rows, resolve_device(arguments.device))


if __name__ == "__main__":
    main()
