"""L_G in a plain training loop: scikit-learn's digits, a small network, M of the test images before and after.

python examples/plain_loop.py
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from affsup_cli import BatchAffinityLoss


def digits() -> tuple[Tensor, Tensor]:
    """Return the images `[1797, 64]`, 0..1, and their labels."""
    data = load_digits()
    return torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)


def main(steps: int = 300, weight: float = 0.1) -> dict[str, float]:
    """Train, and return M and accuracy on the last 297 images before and after."""
    torch.manual_seed(0)
    images, labels = digits()
    backbone = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
    head = nn.Linear(32, 10)
    affinity = BatchAffinityLoss(gamma=4.0)
    optimizer = torch.optim.Adam([*backbone.parameters(), *head.parameters()], lr=2e-3)

    def measured(when: str) -> dict[str, float]:
        with torch.no_grad():
            features = backbone(images[1500:])
            mass = affinity.loss_and_mass(features, labels[1500:]).mass
            accuracy = (head(features).argmax(1) == labels[1500:]).float().mean()
        return {f"mass {when}": mass.item(), f"accuracy {when}": accuracy.item()}

    results = measured("before")
    for _ in range(steps):
        batch = torch.randint(1500, (128,))
        features = backbone(images[batch])
        loss = F.cross_entropy(head(features), labels[batch]) + weight * affinity(features, labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return results | measured("after")


if __name__ == "__main__":
    print(main())
