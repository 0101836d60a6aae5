"""Image classification with affinity supervision of the mini-batch's similarity graph (section 5)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from affsup_cli.affinity import BatchAffinityLoss, target_mass
from affsup_cli.data.images import Augmentation, AugmentedEpochs, load_images
from affsup_cli.engine.devices import autocast, compiled, configure_cuda, resolve_device
from affsup_cli.engine.run_folder import RunFolder, atomic_file
from affsup_cli.engine.task import Losses
from affsup_cli.errors import UsageError
from affsup_cli.metrics.average import Averages
from affsup_cli.models import build_classifier
from affsup_cli.recipe import MinibatchRecipe
from data_prep.format import Manifest, read_image_manifest

EXPORTED_IMAGES = 2000


class MinibatchTask:
    """A classifier, its data set on the device, and L = cross entropy + lambda L_G (eq. 8)."""

    def __init__(self, recipe: MinibatchRecipe, data_dir: Path) -> None:
        self._recipe = recipe
        self._device = resolve_device(recipe.run.device)
        folder = data_dir / recipe.data.name
        manifest = read_image_manifest(folder)
        _refuse_what_does_not_fit(recipe, manifest)
        torch.manual_seed(recipe.seed)
        model = build_classifier(recipe.model.arch, manifest.image_shape[0], len(manifest.classes))
        configure_cuda(recipe.train.precision)
        self.model = model.to(memory_format=torch.channels_last).to(self._device)
        self._backbone = compiled(model.backbone, self._device) if recipe.train.compile else model.backbone
        self._splits = {name: load_images(folder, manifest, name, self._device) for name in ("train", "val", "test")}
        augmentation = Augmentation(recipe.data.pad, recipe.data.flip)
        self._epochs = AugmentedEpochs(self._splits["train"], augmentation, recipe.train.batch_size, recipe.seed)
        self.steps = self._epochs.steps
        self.data = manifest.for_a_run()
        self.begun_from: dict[str, Any] = {"weights": None}
        affinity = recipe.affinity
        self._affinity = BatchAffinityLoss(
            gamma=affinity.gamma,
            form="log" if affinity.loss == "none" else affinity.loss,
            softmax=affinity.softmax,
            diagonal=affinity.diagonal,
            normalize=affinity.normalize,
            temperature=affinity.temperature,
        )

    def begin_epoch(self, epoch: int) -> None:
        """Draw the epoch's order and augmentation."""
        self._epochs.begin(epoch)

    def losses(self, step: int) -> Losses:
        """Run one augmented batch; metrics: accuracy, M, and whether the target was empty."""
        images, labels = self._epochs.batch(step)
        features, logits = self._forward(images)
        affinity = self._recipe.affinity
        metrics = {"accuracy": (logits.argmax(1) == labels).double().mean()}
        loss = None
        if affinity.loss != "none" or affinity.measure:
            with torch.set_grad_enabled(affinity.loss != "none"):
                weights, target = self._graph(features, logits, labels)
                if affinity.loss != "none":
                    loss = self._affinity.loss(weights, target)
            metrics["mass"] = self._mass(weights, target)
            alone = len(labels) if affinity.diagonal == "exclude" else 0
            metrics["empty_target"] = (target.sum() <= alone).float()
        return Losses(
            size=len(labels),
            main={"class_loss": F.cross_entropy(logits.float(), labels)},
            affinity=loss,
            weight=affinity.lambda_,
            meeting=features if affinity.features == "pooled" else logits,
            metrics=metrics,
        )

    def evaluate(self, split: str) -> dict[str, float]:
        """Return accuracy, and M averaged over batches of the training size in a fixed shuffled order."""
        averages = Averages()
        for features, logits, labels in self._predictions(split):
            correct = (logits.argmax(1) == labels).double().mean()
            weights, target = self._graph(features, logits, labels)
            averages.add({"accuracy": correct, "mass": self._mass(weights, target)}, len(labels))
        return averages.read()

    def score(self, metrics: Mapping[str, float]) -> float:
        """Choose by validation accuracy."""
        return metrics["accuracy"]

    def export(self, folder: Path, split: str) -> None:
        """Write the pooled features of up to 2,000 test images, for figure 6."""
        if split != "test":
            return
        features: list[np.ndarray] = []
        labels: list[np.ndarray] = []
        for batch_features, _, batch_labels in self._predictions("test"):
            features.append(batch_features.half().cpu().numpy())
            labels.append(batch_labels.cpu().numpy())
            if sum(map(len, labels)) >= EXPORTED_IMAGES:
                break
        with atomic_file(RunFolder(folder).features) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                features=np.concatenate(features)[:EXPORTED_IMAGES],
                labels=np.concatenate(labels)[:EXPORTED_IMAGES],
            )

    def _forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        with autocast(self._device, self._recipe.train.precision):
            features = self._backbone(images)
            return features, self.model.head(features)

    def _graph(self, features: Tensor, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        nodes = features if self._recipe.affinity.features == "pooled" else logits
        return self._affinity.graph(nodes, labels)

    def _mass(self, weights: Tensor, target: Tensor) -> Tensor:
        """M of the whole matrix (eq. 3), also where the loss takes it row by row: one scale for all runs."""
        return target_mass(weights.detach(), target, "matrix", self._recipe.affinity.diagonal)

    @torch.no_grad()
    def _predictions(self, split: str) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield features, logits and labels of a split in batches, in an order that is the same for every run."""
        data = self._splits[split]
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).to(self._device)
        self.model.eval()
        for images, labels in data.batches(order, self._recipe.train.batch_size):
            features, logits = self._forward(images)
            yield features.float(), logits.float(), labels


def _refuse_what_does_not_fit(recipe: MinibatchRecipe, manifest: Manifest) -> None:
    side, count, batch = min(manifest.image_shape[1:]), manifest.splits["train"].count, recipe.train.batch_size
    if recipe.data.pad >= side:
        raise UsageError(f"data.pad = {recipe.data.pad}: expected less than the {side} pixels of a side")
    if count % batch == 1:
        raise UsageError(
            f"train.batch_size = {batch}: the last batch of {count} training images would be a single one, without a "
            f"pair or batch statistics; take {batch + 1}"
        )
