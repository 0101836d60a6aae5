"""Training images per CPU-second in float32 and in bf16: ResNet-20, batch 128, 3x32x32, blocks of steps in turns.

    python benchmarks/bf16_cpu.py

Half a CPU-minute a round on a processor without bfloat16 instructions.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from record import record

from affsup_cli.models.classifiers.build import build_classifier
from affsup_cli.runtime.devices import autocast, has_bf16_instructions

BATCH = 128


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2)
    arguments = parser.parse_args()
    device = torch.device("cpu")
    torch.manual_seed(0)
    images = torch.randn(BATCH, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (BATCH,))
    model = build_classifier("resnet20", 3, 10).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)

    def cpu_seconds(precision: str, steps: int) -> float:
        begun = time.process_time()
        for _ in range(steps):
            with autocast(device, precision):
                _, logits = model(images)
            loss = F.cross_entropy(logits.float(), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return time.process_time() - begun

    seconds: dict[str, list[float]] = {"float32": [], "bf16": []}
    for precision in seconds:
        cpu_seconds(precision, 1)
    for _ in range(arguments.rounds):
        for precision, found in seconds.items():
            found.append(cpu_seconds(precision, arguments.steps))
    ratios = [slow / fast for fast, slow in zip(*seconds.values(), strict=True)]
    rows = [
        {
            "precision": precision,
            "images_per_cpu_second": round(BATCH * arguments.steps / statistics.median(found), 1),
            "seconds_over_float32": round(statistics.median(ratios), 2) if precision == "bf16" else 1.0,
            "rounds": arguments.rounds,
            "bf16_instructions": has_bf16_instructions(device),
        }
        for precision, found in seconds.items()
    ]
    record("bf16_cpu", rows, device)


if __name__ == "__main__":
    main()
