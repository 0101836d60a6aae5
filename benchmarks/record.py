"""How every benchmark keeps its result: a CSV under `results/`, with machine, date and commit in each row.

The results of a GPU have a folder for each day, such as `gpu-h200-2026-11-28`. README.md shows those of CPUs alone.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from affsup_cli.bench.run import machine

RESULTS = Path(__file__).parent / "results"


def record(name: str, rows: Sequence[dict[str, Any]], device: torch.device) -> Path:
    """Print `rows` and write them to `results/NAME-cpu.csv` or `results/gpu-.../NAME-cuda.csv`, over older ones."""
    where = machine(device)
    folder = RESULTS
    if device.type == "cuda":
        folder = RESULTS / f"gpu-{where['device'].lower().removeprefix('nvidia ').replace(' ', '-')}-{where['date']}"
        folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{device.type}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0], *where])
        writer.writeheader()
        writer.writerows({**row, **where} for row in rows)
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    print(f"written: {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
    return path
