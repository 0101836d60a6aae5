"""Image classification with affinity supervision of the mini-batch's similarity graph (section 5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from affsup_cli.affinity import BatchAffinityLoss, same_category_target
from affsup_cli.data.images import Augmentation, AugmentedEpochs, DeviceImages, load_images
from affsup_cli.distributed import collectives
from affsup_cli.distributed.shard import WHOLE, Shard
from affsup_cli.metrics.average import Averages
from affsup_cli.models.classifiers.build import build_classifier
from affsup_cli.recipe import MinibatchRecipe
from affsup_cli.runs.features import write_features
from affsup_cli.runs.folder import RunFolder
from affsup_cli.runtime.devices import autocast, compile_modules, configure_cuda, memory_format, select_device
from affsup_cli.tasks.recipe_checks import check_minibatch
from affsup_cli.training.cuda_graph import CapturedCalls
from affsup_cli.training.task import Losses
from data_prep.store import read_image_manifest

EXPORTED_IMAGES = 2000


class MinibatchTask:
    """A classifier, its data set on the device, and L = cross entropy + lambda L_G (eq. 8)."""

    def __init__(self, recipe: MinibatchRecipe, data_dir: Path) -> None:
        self._recipe = recipe
        self._device = select_device(recipe.run.device)
        folder = data_dir / recipe.data.name
        manifest = read_image_manifest(folder)
        check_minibatch(recipe, manifest, collectives.world_size())
        torch.manual_seed(recipe.seed)
        model = build_classifier(recipe.model.arch, manifest.image_shape[0], len(manifest.classes))
        configure_cuda(recipe.train.precision, fixed_shapes=True)
        layout = memory_format(recipe.run.channels_last)
        self.model = model.to(memory_format=layout).to(self._device)
        if recipe.train.compile:
            compile_modules(model.backbone, device=self._device)
        counts = {"train": recipe.data.train_images, "val": 0, "test": 0}
        splits = {
            name: load_images(folder, manifest, name, self._device, layout, count) for name, count in counts.items()
        }
        self._evaluations = {name: _Evaluation.of(data, recipe.train.batch_size) for name, data in splits.items()}
        augmentation = Augmentation(recipe.data.pad, recipe.data.flip)
        self._shard = Shard(collectives.rank(), collectives.world_size())
        self._epochs = AugmentedEpochs(splits["train"], augmentation, recipe.train.batch_size, recipe.seed, self._shard)
        self.steps = self._epochs.steps
        self.static_steps = len(splits["train"]) // recipe.train.batch_size if self._shard == WHOLE else 0
        self.captured = CapturedCalls(None)
        self.data = manifest.run_record() | {
            "preprocessing": {
                "image_shape": list(manifest.image_shape),
                "mean": list(manifest.channel_mean),
                "std": list(manifest.channel_std),
            }
        }
        self.initialised_from: dict[str, Any] = {"weights": None}
        affinity = recipe.affinity
        self._affinity = BatchAffinityLoss(
            gamma=affinity.gamma,
            form="log" if affinity.loss == "none" else affinity.loss,
            softmax=affinity.softmax,
            diagonal=affinity.diagonal,
            normalize=affinity.normalize,
            temperature=affinity.temperature,
            ignore_index=None,
            row_average=affinity.row_average,
        )

    def begin_epoch(self, epoch: int) -> None:
        """Draw the epoch's order and augmentation."""
        self._epochs.begin(epoch)

    def losses(self, step: int | Tensor) -> Losses:
        """Compute the losses of one augmented batch; metrics: accuracy, M, and whether the target was empty."""
        images, labels = self._epochs.batch(step)
        features, logits = self._forward(images)
        affinity = self._recipe.affinity
        whole = self._epochs.size(step)
        nodes = features if affinity.features == "pooled" else logits
        node_labels = labels
        metrics = {"accuracy": (logits.argmax(1) == labels).float().mean()}
        loss = None
        if affinity.loss != "none" or affinity.measure:
            with torch.set_grad_enabled(affinity.loss != "none"):
                if affinity.across == "global":
                    nodes, node_labels = self._gathered(nodes, whole), self._gathered(labels, whole)
                measured = self._affinity.loss_and_mass(nodes, node_labels)
            loss = measured.loss if affinity.loss != "none" else None
            metrics["mass"] = measured.mass
            metrics["empty_target"] = self._empty(node_labels)
        return Losses(
            size=self._shard.size(whole),
            main={
                "class_loss": F.cross_entropy(
                    logits.float(), labels, label_smoothing=self._recipe.train.label_smoothing
                )
            },
            affinity=loss,
            weight=affinity.lambda_,
            shared_features=features if affinity.features == "pooled" else logits,
            metrics=metrics,
            global_batch_size=whole,
            graph_is_global=affinity.across == "global",
        )

    @torch.no_grad()
    def evaluate(self, split: str) -> dict[str, float]:
        """Return accuracy, and M averaged over batches of the training size in a fixed shuffled order."""
        self.model.eval()
        evaluation = self._evaluations[split]
        shard = self._shard.slice_of(len(evaluation.sizes))
        evaluation.position.fill_(shard.start)
        for size in evaluation.sizes[shard]:
            work = partial(self._evaluate_batch, evaluation, size)
            if size == self._recipe.train.batch_size:
                self.captured(f"evaluate {split}", work)
            else:
                work()
        averages = Averages()
        for of_process in collectives.all_gather_object((evaluation.results[shard].cpu(), evaluation.sizes[shard])):
            for (accuracy, mass), count in zip(*of_process, strict=True):
                averages.add({"accuracy": accuracy, "mass": mass}, count)
        return averages.read()

    def _evaluate_batch(self, evaluation: _Evaluation, size: int) -> None:
        """Evaluate the next batch of `size` images; can be captured as a CUDA graph."""
        features, logits, labels = self._predictions(evaluation.data, evaluation.next_batch(size))
        correct = (logits.argmax(1) == labels).double().mean()
        nodes = features if self._recipe.affinity.features == "pooled" else logits
        mass = self._affinity.loss_and_mass(nodes, labels).mass
        evaluation.results.index_copy_(0, evaluation.position, torch.stack([correct, mass.double()]).unsqueeze(0))
        evaluation.position.add_(1)

    def score(self, metrics: Mapping[str, float]) -> float:
        """Return the validation accuracy, by which the best epoch is chosen."""
        return metrics["accuracy"]

    @torch.no_grad()
    def export(self, folder: Path, split: str) -> None:
        """Write the pooled features of up to 2,000 test images, for figure 6."""
        if split != "test":
            return
        self.model.eval()
        evaluation = self._evaluations[split]
        features: list[np.ndarray] = []
        labels: list[np.ndarray] = []
        for index in torch.split(evaluation.order[:EXPORTED_IMAGES], self._recipe.train.batch_size):
            of_batch, _, of_images = self._predictions(evaluation.data, index)
            features.append(of_batch.half().cpu().numpy())
            labels.append(of_images.cpu().numpy())
        write_features(RunFolder(folder).features, np.concatenate(features), np.concatenate(labels))

    def _forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        with autocast(self._device, self._recipe.train.precision):
            features = self.model.backbone(images)
            return features, self.model.head(features)

    def _gathered(self, rows: Tensor, whole: int) -> Tensor:
        """Rows of the images of all processes."""
        return collectives.all_gather_rows(rows[: self._shard.size(whole)], self._shard.sizes(whole))

    def _empty(self, labels: Tensor) -> Tensor:
        """1 where the batch's target has no edge, else 0."""
        edges = same_category_target(labels).sum()
        return (edges == (0 if self._recipe.affinity.diagonal == "keep" else len(labels))).float()

    def _predictions(self, data: DeviceImages, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features, logits and labels of images without augmentation."""
        images, labels = data.batch(index)
        features, logits = self._forward(images)
        return features.float(), logits.float(), labels


@dataclass(frozen=True)
class _Evaluation:
    """The evaluation of a split: in an order that is the same for all runs, with results in fixed memory.

    Attributes:
        data: its images.
        order: int64 `[n]`.
        sizes: of its batches.
        position: int64 `[1]` on the device, index of the next batch.
        results: float64 `[batches, 2]`, accuracy and M of each.
    """

    data: DeviceImages
    order: Tensor
    sizes: list[int]
    position: Tensor
    results: Tensor

    @classmethod
    def of(cls, data: DeviceImages, size: int) -> _Evaluation:
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).to(data.device)
        sizes = [len(batch) for batch in torch.split(order, size)]
        position = torch.zeros(1, dtype=torch.int64, device=data.device)
        return cls(data, order, sizes, position, torch.zeros(len(sizes), 2, dtype=torch.float64, device=data.device))

    def next_batch(self, size: int) -> Tensor:
        """Return the indices of the `size` images of the next batch."""
        first = self.position * self.sizes[0]
        return self.order[first + torch.arange(size, device=self.order.device)]
