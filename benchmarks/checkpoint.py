"""What a training step waits for a checkpoint: written by the step itself, against a copy that a thread writes.

    python benchmarks/checkpoint.py

A state of 250 MB, as ResNet-101 with relation modules and its momentum has; the disk is that of --folder. How long
reading one takes is there too: into memory, against a memory map of which one layer is looked at.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from record import record
from turns import compare

from affsup_cli.runs.checkpoint import BackgroundSaver, load_checkpoint, save_checkpoint

LAYERS, BYTES = 250, 10**6
CPU = torch.device("cpu")


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    arguments = parser.parse_args()
    state = {"model": {str(layer): torch.randn(BYTES // 4) for layer in range(LAYERS)}}
    megabytes = LAYERS * BYTES // 10**6
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder, BackgroundSaver(CPU) as saver:
        path = Path(folder) / "last.pt"

        def in_memory() -> Any:
            return torch.load(path, map_location=CPU, weights_only=True)["model"]["0"].sum()

        waits = _waits(path, state, saver, arguments.rounds)
        reads = compare(in_memory, lambda: load_checkpoint(path, CPU)["model"]["0"].sum(), CPU, arguments.rounds)
    rows = [
        {"what": "a step waits", "megabytes": megabytes, **waits},
        {"what": "reading", "megabytes": megabytes, **reads},
    ]
    record("checkpoint", rows, CPU)


def _waits(path: Path, state: dict[str, Any], saver: BackgroundSaver, rounds: int) -> dict[str, Any]:
    """As `compare`, but the thread is waited for outside the time, as a run that computes meanwhile has it."""

    def ours() -> None:
        begun = time.perf_counter()
        saver.save(path, state)
        taken.append(time.perf_counter() - begun)
        saver.wait()

    taken: list[float] = []
    timed = compare(lambda: save_checkpoint(path, state), ours, CPU, rounds)
    median = 1000 * sorted(taken[1:])[rounds // 2]
    return timed | {"ours_ms": round(median, 3), "ratio": round(timed["reference_ms"] / median, 2)}


if __name__ == "__main__":
    main()
