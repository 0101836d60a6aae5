"""How long `affsup --help` takes, against importing typer and rich alone, and the mini-batch path to its imports.

Each call is a fresh process, and all take turns.

    python benchmarks/startup.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import torch
from record import record

ROUNDS = 9
CALLS = {
    "import typer, rich": "import typer, rich, rich.console, rich.table, rich.panel",
    "affsup --help": "import sys; sys.argv = ['affsup', '--help']; import affsup_cli.app as a; a.main()",
    "affsup train --help": "import sys; sys.argv = ['affsup', 'train', '--help']; import affsup_cli.app as a; a.main()",
    "import torch": "import torch",
    "import the mini-batch path": "import affsup_cli.tasks.launch, affsup_cli.tasks.minibatch",
    "import torch, torchvision": "import torch, torchvision",
}


def seconds(code: str) -> float:
    """Return the wall time of a fresh interpreter that runs `code`."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def main() -> None:
    """Measure and record."""
    times: dict[str, list[float]] = {name: [] for name in CALLS}
    for _ in range(ROUNDS):
        for name, code in CALLS.items():
            times[name].append(seconds(code))
    reference = times["import typer, rich"]
    rows = [
        {
            "call": name,
            "seconds": round(statistics.median(measured), 3),
            "ratio_to_typer_and_rich": round(
                statistics.median(a / b for a, b in zip(measured, reference, strict=True)), 2
            ),
            "rounds": ROUNDS,
        }
        for name, measured in times.items()
    ]
    record("startup", rows, torch.device("cpu"))


if __name__ == "__main__":
    main()
