"""One of several processes that train with gather=True: `python -m tests.affinity.gather_process ...`."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from affsup_cli.affinity import BatchAffinityLoss

IMAGES = 12
IGNORED = 4  # an image without a label


def batch() -> tuple[Tensor, Tensor]:
    inputs = torch.randn(IMAGES, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = torch.arange(IMAGES) % 3
    labels[IGNORED] = -100
    return inputs, labels


def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(5, 4, dtype=torch.float64)


def result(model: nn.Module, inputs: Tensor, labels: Tensor, gather: bool) -> dict[str, Tensor]:
    loss, mass = BatchAffinityLoss(gather=gather, ignore_index=-100).loss_and_mass(model(inputs), labels)
    loss.backward()
    weight = next(model.parameters())
    assert weight.grad is not None
    return {"loss": loss.detach(), "mass": mass, "gradient": weight.grad}


def main(rank: int, count: int, uneven: bool, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count)
    inputs, labels = batch()
    ends = [IMAGES * place // count for place in range(count + 1)]
    if uneven:
        ends[1] += 1
    part = slice(ends[rank], ends[rank + 1])
    torch.save(result(DistributedDataParallel(layer()), inputs[part], labels[part], gather=True), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "uneven", sys.argv[4])
