"""L_G in the Trainer of Hugging Face: the model returns the sum of both losses.

python examples/huggingface_trainer.py        # needs transformers and accelerate
"""

from __future__ import annotations

import tempfile

import torch
import torch.nn.functional as F
from plain_loop import digits
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from affsup_cli import BatchAffinityLoss


class Digits(Dataset[dict[str, Tensor]]):
    """Images and labels as the Trainer takes them."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"images": self.images[index], "labels": self.labels[index]}


class Classifier(nn.Module):
    """A classifier of digits; with labels, its loss is cross entropy + 0.1 L_G."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
        self.head = nn.Linear(32, 10)
        self.affinity = BatchAffinityLoss(gamma=4.0, gather=True)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Return logits `[N, 10]`, and the loss where there are labels."""
        features = self.backbone(images)
        logits = self.head(features)
        if labels is None:
            return {"logits": logits}
        return {"loss": F.cross_entropy(logits, labels) + 0.1 * self.affinity(features, labels), "logits": logits}


def main(steps: int = 300) -> dict[str, float]:
    """Train, and return M of the last 297 images before and after."""
    torch.manual_seed(0)
    images, labels = digits()
    model = Classifier()

    def mass() -> float:
        model.eval()
        with torch.no_grad():
            return model.affinity.loss_and_mass(model.backbone(images[1500:]), labels[1500:]).mass.item()

    before = mass()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=128,
            learning_rate=2e-3,
            use_cpu=True,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        Trainer(model=model, args=arguments, train_dataset=Digits(images[:1500], labels[:1500])).train()
    return {"mass before": before, "mass after": mass()}


if __name__ == "__main__":
    print(main())
