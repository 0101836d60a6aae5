"""Object detection and relationship proposals (sections 4.1, 4.2, 6.5): frcnn, relnet and relpn."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from affsup_cli.affinity import (
    AffinityLoss,
    category_pair_target,
    different_category_target,
    different_instance_target,
    match_proposals,
    relationship_target,
    target_mass,
)
from affsup_cli.data.scenes import SceneBatch, SceneBatches, SceneEpochs
from affsup_cli.engine.devices import autocast, configure_cuda, resolve_device
from affsup_cli.engine.examples import write_examples
from affsup_cli.engine.run_folder import RunFolder
from affsup_cli.engine.task import Losses
from affsup_cli.errors import UsageError, did_you_mean
from affsup_cli.metrics.average import Averages
from affsup_cli.metrics.detection import DetectionPrecision
from affsup_cli.metrics.relationship import RelationshipRecall
from affsup_cli.models.backbones import build_backbone
from affsup_cli.models.detector import DetectorNetwork, DetectorOptions, Regions, RelationOptions
from affsup_cli.models.nms import soft_nms
from affsup_cli.models.relpn import PairScorer
from affsup_cli.recipe import DetectionRecipe, RelationAffinity, RelnetRecipe, RelpnRecipe
from affsup_cli.tasks.scene_examples import Examples
from affsup_cli.tasks.scene_findings import RelationshipProposals, write_detections
from data_prep.format import read_scene_manifest, read_scenes

ABSENT = -1e4  # an affinity that no softmax gives any weight, in place of those of proposals that only pad


class SceneNetwork(nn.Module):
    """A detector, and for `relpn` what scores its pairs."""

    def __init__(self, detector: DetectorNetwork, pairs: PairScorer | None) -> None:
        super().__init__()
        self.detector = detector
        self.pairs = pairs


class DetectionTask:
    """A detector on scenes: L = detection + proposal losses + lambda L_G on its attention (eq. 8)."""

    def __init__(self, recipe: DetectionRecipe, data_dir: Path, pretrained: bool = True) -> None:
        self._recipe = recipe
        self._device = resolve_device(recipe.run.device)
        self._folder = data_dir / recipe.data.name
        manifest = read_scene_manifest(self._folder)
        self._manifest = manifest
        self._train = read_scenes(self._folder, manifest, "train")
        self._affinity = recipe.affinity if isinstance(recipe, RelnetRecipe) else None
        self._refuse_what_does_not_fit()
        configure_cuda(recipe.train.precision)
        torch.manual_seed(recipe.seed)
        model = build_network(recipe, len(manifest.classes), pretrained)
        self.model = model.to(memory_format=torch.channels_last).to(self._device)
        self._epochs = SceneEpochs(self._batches("train"), recipe.data.mirror, recipe.train.batch_size, recipe.seed)
        self.steps = self._epochs.steps
        self.data: dict[str, Any] = {
            "name": manifest.dataset,
            "digest": manifest.digest,
            "limit": manifest.limit,
            "complete": manifest.complete,
            "official": manifest.source.official,
            "classes": manifest.classes,
            "weights": _checksum(recipe.model.weights) if pretrained else None,
        }
        self._ranking = Ranking(recipe, self.model)
        self._loss = _loss_module(self._affinity)
        self._found: dict[str, tuple[DetectionPrecision, RelationshipProposals, Examples]] = {}

    def begin_epoch(self, epoch: int) -> None:
        """Draw the epoch's order."""
        self._epochs.begin(epoch)

    def losses(self, step: int) -> Losses:
        """Run one batch; metrics: the share of images with an empty target, and M over those with one."""
        batch = self._epochs.batch(step)
        regions, main = self._regions(batch, batch.boxes)
        main |= self.model.detector.detection_losses(regions, batch.boxes, batch.labels)
        metrics: dict[str, Tensor] = {}
        of_some: dict[str, tuple[Tensor, Tensor]] = {}
        loss = None
        affinity = self._affinity
        if affinity is not None and (affinity.loss != "none" or affinity.measure):
            target = self._target(regions, batch, affinity)
            with torch.set_grad_enabled(affinity.loss != "none"):
                graph = self._ranking.of_heads(regions, affinity.heads)
                if affinity.loss != "none":
                    loss = self._loss(graph, target.unsqueeze(1).expand_as(graph))
            mass, supervised = self._mass(graph.detach().mean(dim=1), target)
            metrics["empty_target"] = 1 - supervised.float() / len(target)
            of_some["mass"] = (mass, supervised)
        if self.model.pairs is not None:
            scores = self._ranking.graph(regions)
            if scores is None:
                raise AssertionError("pairs are scored where there is a scorer")
            wanted = relationship_target(match_proposals(regions.boxes, batch.boxes), batch.relations)
            main["pair_loss"] = self.model.pairs.loss(scores, wanted, regions.present)
        return Losses(
            size=len(batch.index),
            main=main,
            affinity=loss,
            weight=affinity.lambda_ if affinity else 0.0,
            meeting=regions.pooled,
            metrics=metrics,
            of_some=of_some,
        )

    def evaluate(self, split: str) -> dict[str, float]:
        """Return detection precision; of networks with a graph of relations its recall at every K, and M."""
        scenes = read_scenes(self._folder, self._manifest, split)
        precision = DetectionPrecision(self._manifest.classes, voc=self._manifest.dataset.startswith("voc"))
        recall = RelationshipRecall(self._recipe.test.recall_at)
        proposals = RelationshipProposals()
        examples = Examples(scenes)
        averages = Averages()
        for batch, regions, graph in self._predictions(split):
            if self._affinity is not None and graph is not None:
                mass, supervised = self._mass(graph, self._target(regions, batch, self._affinity))
                averages.add({"mass": mass}, supervised)
            found = self.model.detector.detections(regions, batch.sizes)
            for place, index in enumerate(batch.index):
                scale = batch.scales[place].repeat(2)
                objects, image_id = scenes.objects(index), int(scenes.ids[index])
                boxes, probabilities = found[place]
                chosen, labels, scores = soft_nms(boxes, probabilities, keep=self._recipe.test.detections)
                precision.update(
                    image_id,
                    boxes[chosen] / scale,
                    scores,
                    labels,
                    objects.boxes,
                    objects.labels,
                    objects.difficult,
                    objects.crowd,
                )
                if graph is not None:
                    count = int(regions.present[place].sum())
                    of_image, where = graph[place, :count, :count], regions.boxes[place, :count] / scale
                    gt_boxes = torch.from_numpy(objects.boxes).to(where)
                    recall.update(where, of_image, gt_boxes, torch.from_numpy(objects.relations).to(where.device))
                    proposals.add(image_id, where, of_image)
                    examples.add(index, where, of_image)
        self._found = {split: (precision, proposals, examples)}
        measured = precision.compute() | averages.read()
        if self._has_graph:
            computed = recall.compute()
            measured |= {f"recall@{k}": value for k, value in computed["micro"].items()}
            measured |= {f"recall_macro@{k}": value for k, value in computed["macro"].items()}
        # Without an object, or without a pair, in the whole split there is nothing to be right or wrong about.
        return {name: value for name, value in measured.items() if not math.isnan(value)}

    def score(self, metrics: Mapping[str, float]) -> float:
        """Choose by mAP: for sets of scenes that have a validation split, of which there are none yet."""
        return metrics["map_all"]

    def export(self, folder: Path, split: str) -> None:
        """Write detections (COCO's format), the strongest relationship proposals, and pictures to look at."""
        precision, proposals, examples = self._found[split]
        run = RunFolder(folder)
        write_detections(run.detections(split), precision.coco_results(self._manifest.category_ids))
        if self._has_graph:
            proposals.write(run.relationships(split))
            if split == "test":
                write_examples(run.examples, self._manifest.classes, examples.finished())

    @property
    def _has_graph(self) -> bool:
        return self._affinity is not None or self.model.pairs is not None

    def _batches(self, split: str) -> SceneBatches:
        data = self._recipe.data
        scenes = self._train if split == "train" else read_scenes(self._folder, self._manifest, split)
        return SceneBatches(scenes, data.short_side, data.long_side, self._device)

    @torch.no_grad()
    def _predictions(self, split: str) -> Iterator[tuple[SceneBatch, Regions, Tensor | None]]:
        """Yield batches of a split, what was found in them, and the graph that ranks pairs `[B, N, N]`."""
        self.model.eval()
        for batch in self._batches(split).in_order(self._recipe.train.batch_size):
            regions, _ = self._regions(batch)
            yield batch, regions, self._ranking.graph(regions)

    def _regions(self, batch: SceneBatch, gt_boxes: Tensor | None = None) -> tuple[Regions, dict[str, Tensor]]:
        pixels = batch.images.to(torch.float32, memory_format=torch.channels_last)
        with autocast(self._device, self._recipe.train.precision):
            found: tuple[Regions, dict[str, Tensor]] = self.model.detector(pixels, batch.sizes, gt_boxes)
        return found

    def _target(self, regions: Regions, batch: SceneBatch, affinity: RelationAffinity) -> Tensor:
        """T of each image's proposals, bool `[B, N, N]`."""
        match = match_proposals(regions.boxes, batch.boxes)
        if affinity.target == "different-category":
            return different_category_target(match, batch.labels)
        if affinity.target == "different-instance":
            return different_instance_target(match)
        if affinity.target == "relationship":
            return relationship_target(match, batch.relations)
        classes = self._manifest.classes
        second = classes.index(affinity.second) if affinity.second else None
        return category_pair_target(match, batch.labels, first=classes.index(affinity.first), second=second)

    def _mass(self, graph: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Mean M over the images with a target, of the whole matrix (eq. 3), and how many these are."""
        supervised = target.flatten(1).any(dim=1)
        count = supervised.sum()
        return (target_mass(graph, target) * supervised).sum() / count.clamp(min=1), count

    def _refuse_what_does_not_fit(self) -> None:
        needs_annotated = isinstance(self._recipe, RelpnRecipe) or (
            self._affinity is not None and self._affinity.target == "relationship"
        )
        name = self._manifest.dataset
        if needs_annotated and self._manifest.relations != "annotated":
            raise UsageError(
                f"{self._recipe.name} with this target learns from annotated relations, and {name} has none: "
                "take vg or shapes, or affinity.target = different-category"
            )
        for field in ("first", "second"):
            wanted = getattr(self._affinity, field, "")
            if wanted and wanted not in self._manifest.classes:
                hint = did_you_mean(wanted, self._manifest.classes)
                raise UsageError(f"affinity.{field} = '{wanted}' is no class of {name}{hint}")


class Ranking:
    """The graph of a network that ranks pairs of proposals: a relation module's W, or the scores of pairs.

    Args:
        recipe: which module and form of W.
        model: the network.
    """

    def __init__(self, recipe: DetectionRecipe, model: SceneNetwork) -> None:
        self._affinity = recipe.affinity if isinstance(recipe, RelnetRecipe) else None
        self._pairs = model.pairs

    def graph(self, regions: Regions) -> Tensor | None:
        """Return `[B, N, N]`, row = reference or subject; None where the network has no graph."""
        if self._pairs is not None:
            scores: Tensor = self._pairs(regions.features[:, : regions.boxes.shape[1]], regions.boxes)
            return scores.masked_fill(~_both(regions.present), ABSENT)
        return None if self._affinity is None else self.of_heads(regions, "mean").squeeze(1)

    def of_heads(self, regions: Regions, heads: str) -> Tensor:
        """Return W of the supervised module, `[B, 1, N, N]` of the heads' mean or `[B, heads, N, N]` of each."""
        if self._affinity is None:
            raise AssertionError("only relnet has relation modules")
        graph = regions.graphs[self._affinity.module - 1]
        logits = graph.dots + graph.geometry if self._affinity.geometry else graph.dots
        logits = logits[:, :, : regions.boxes.shape[1]]
        if heads == "mean":
            logits = logits.mean(dim=1, keepdim=True)
        return logits.masked_fill(~_both(regions.present).unsqueeze(1), ABSENT)


def build_network(recipe: DetectionRecipe, classes: int, pretrained: bool = True) -> SceneNetwork:
    """Build the recipe's network; new weights are drawn from torch's global generator.

    Args:
        recipe: what to build.
        classes: how many.
        pretrained: load the backbone's weights; without, only a state dict of the whole makes it useful.

    Raises:
        UsageError: the architecture is unknown or has no such weights.
        AffsupError: a file of weights cannot be used.
    """
    model = recipe.model
    backbone = build_backbone(model.arch, model.weights, model.pixels, load=pretrained)
    relation = None
    if isinstance(recipe, RelnetRecipe):
        relation = RelationOptions(recipe.relation.modules, recipe.relation.heads, recipe.relation.key_dim)
    options = DetectorOptions(
        model.anchor_scales,
        model.anchor_ratios,
        model.proposals,
        model.candidates,
        model.pooling,
        model.channels,
        model.width,
        model.initial,
        model.mined,
    )
    pairs = None
    if isinstance(recipe, RelpnRecipe):
        pairs = PairScorer(model.width, recipe.pairs.hidden, recipe.pairs.sampled)
    return SceneNetwork(DetectorNetwork(backbone, classes, options, relation), pairs)


def _checksum(weights: str) -> str | None:
    """SHA-256 of a file of weights; None where they are no file."""
    if not Path(weights).is_file():
        return None
    with Path(weights).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _loss_module(affinity: RelationAffinity | None) -> AffinityLoss:
    if affinity is None or affinity.loss == "none":
        return AffinityLoss()
    return AffinityLoss(affinity.loss, affinity.gamma, affinity.softmax)


def _both(present: Tensor) -> Tensor:
    """Pairs `[B, N, N]` of proposals that are both more than padding."""
    return present.unsqueeze(1) & present.unsqueeze(2)
