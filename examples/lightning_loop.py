"""L_G in a LightningModule; `gather=True` gives the graph of the whole batch when it trains on several GPUs.

python examples/lightning_loop.py        # needs pytorch-lightning
"""

from __future__ import annotations

import pytorch_lightning as lightning
import torch
import torch.nn.functional as F
from plain_loop import digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from affsup_cli import BatchAffinityLoss


class Classifier(lightning.LightningModule):
    """A classifier of digits with L = cross entropy + 0.1 L_G."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
        self.head = nn.Linear(32, 10)
        self.affinity = BatchAffinityLoss(gamma=4.0, gather=True)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Return the loss of a batch; log M."""
        images, labels = batch
        features = self.backbone(images)
        loss, mass = self.affinity.loss_and_mass(features, labels)
        self.log("mass", mass, prog_bar=True)
        return F.cross_entropy(self.head(features), labels) + 0.1 * loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimiser."""
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def main(steps: int = 300) -> dict[str, float]:
    """Train, and return M of the first and of the last batch."""
    lightning.seed_everything(0, verbose=False)
    images, labels = digits()
    model = Classifier()
    loader = DataLoader(TensorDataset(images[:1500], labels[:1500]), batch_size=128, shuffle=True, drop_last=True)
    with torch.no_grad():
        before = model.affinity.loss_and_mass(model.backbone(images[1500:]), labels[1500:]).mass
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, loader)
    with torch.no_grad():
        after = model.affinity.loss_and_mass(model.backbone(images[1500:]), labels[1500:]).mass
    return {"mass before": before.item(), "mass after": after.item()}


if __name__ == "__main__":
    print(main())
