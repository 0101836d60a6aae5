"""L_G with pytorch-metric-learning's CrossBatchMemory: the columns of the graph are the last 512 embeddings.

python examples/metric_learning.py        # needs pytorch-metric-learning
"""

from __future__ import annotations

from typing import Any

import torch
from plain_loop import digits
from pytorch_metric_learning.losses import CrossBatchMemory
from torch import Tensor, nn

from affsup_cli import BatchAffinityLoss


class PairAffinityLoss(nn.Module):
    """BatchAffinityLoss in the calling convention of pytorch-metric-learning.

    Pairs that a miner has not chosen, and those of an embedding with itself in the memory, are left out of the graph.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.affinity = BatchAffinityLoss(**options)

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: tuple[Tensor, Tensor, Tensor, Tensor],
        ref_emb: Tensor,
        ref_labels: Tensor,
    ) -> Tensor:
        """Return the loss of embeddings `[N, d]` and references `[M, d]` over the pairs of `indices_tuple`."""
        mask = torch.zeros(len(embeddings), len(ref_emb), dtype=torch.bool, device=embeddings.device)
        anchor, positive, other_anchor, negative = indices_tuple
        mask[anchor, positive] = mask[other_anchor, negative] = True
        return self.affinity(embeddings, labels, ref_emb, ref_labels, mask)


class AffinityMemory(CrossBatchMemory):
    """CrossBatchMemory with PairAffinityLoss among the losses that it accepts."""

    @staticmethod
    def supported_losses() -> list[str]:
        """Return the names of the loss classes."""
        return [*CrossBatchMemory.supported_losses(), PairAffinityLoss.__name__]


def main(steps: int = 200) -> dict[str, float]:
    """Train embeddings, and return M of the last 297 images before and after."""
    torch.manual_seed(0)
    images, labels = digits()
    network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
    affinity = PairAffinityLoss(softmax="row", row_average=True)
    loss_function = AffinityMemory(affinity, embedding_size=16, memory_size=512)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)

    def mass() -> float:
        with torch.no_grad():
            return BatchAffinityLoss().loss_and_mass(network(images[1500:]), labels[1500:]).mass.item()

    before = mass()
    for _ in range(steps):
        batch = torch.randint(1500, (64,))
        loss = loss_function(network(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {"mass before": before, "mass after": mass()}


if __name__ == "__main__":
    print(main())
