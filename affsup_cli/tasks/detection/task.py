"""Object detection and relationship proposals (sections 4.1, 4.2, 6.5): frcnn, relnet and relpn."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from affsup_cli.affinity import (
    AffinityLoss,
    GroundTruth,
    match_proposals,
    proposal_target,
    relationship_target,
    target_mass,
)
from affsup_cli.data.scenes import SceneBatch, SceneBatches, SceneEpochs
from affsup_cli.distributed import collectives
from affsup_cli.distributed.shard import Shard
from affsup_cli.metrics.attention import AttentionShares
from affsup_cli.metrics.average import Averages
from affsup_cli.metrics.detection import DetectionPrecision
from affsup_cli.metrics.relationship import RelationshipRecall, top_pairs
from affsup_cli.models.detection.detector import Regions
from affsup_cli.models.detection.nms import soft_nms
from affsup_cli.recipe import DetectionRecipe, RelationAffinity, RelnetRecipe
from affsup_cli.runs.examples import Example, write_examples
from affsup_cli.runs.folder import RunFolder
from affsup_cli.runtime.devices import compile_modules, configure_cuda, memory_format, select_device
from affsup_cli.tasks.background import HostCopy, map_in_background
from affsup_cli.tasks.detection.examples import Examples
from affsup_cli.tasks.detection.findings import PAIRS_KEPT, RelationshipProposals, write_detections
from affsup_cli.tasks.detection.network import (
    attention_graph,
    build_network,
    checksum_of,
    find_regions,
    pair_scores,
    ranking_graph,
)
from affsup_cli.tasks.recipe_checks import check_detection
from affsup_cli.training.task import Losses
from data_prep.store import Scenes, read_scene_manifest, read_scenes

SCENE_GRAPH_KS = (20, 50, 100)
"""The values of K that are usual in scene graph generation; `test.recall_at` adds the paper's."""


class DetectionTask:
    """A detector on scenes: L = detection + proposal losses + lambda L_G on its attention (eq. 8)."""

    def __init__(self, recipe: DetectionRecipe, data_dir: Path, pretrained: bool = True) -> None:
        self._recipe = recipe
        self._device = select_device(recipe.run.device)
        self._folder = data_dir / recipe.data.name
        manifest = read_scene_manifest(self._folder)
        self._manifest = manifest
        self._train = read_scenes(self._folder, manifest, "train")
        self._affinity = recipe.affinity if isinstance(recipe, RelnetRecipe) else None
        check_detection(recipe, manifest)
        configure_cuda(recipe.train.precision)
        torch.manual_seed(recipe.seed)
        model = build_network(recipe, len(manifest.classes), pretrained)
        self.model = model.to(memory_format=memory_format(recipe.run.channels_last)).to(self._device)
        if recipe.train.compile:
            detector = model.detector
            compile_modules(detector.backbone, detector.head, device=self._device, sizes_differ=True)
        self._shard = Shard(collectives.rank(), collectives.world_size())
        self._epochs = SceneEpochs(
            self._batches(self._train, int(recipe.run.cache_gb * 2**30)),
            recipe.data.mirror,
            recipe.train.batch_size,
            recipe.seed,
            self._shard,
        )
        self._samplers = self._counted_samplers()
        self.steps = self._epochs.steps
        self.data = manifest.run_record()
        self.initialised_from = {"weights": checksum_of(recipe.model.weights) if pretrained else None}
        affinity = self._affinity
        self._loss = None
        if affinity is not None and affinity.loss != "none":
            self._loss = AffinityLoss(
                affinity.loss,
                affinity.gamma,
                affinity.softmax,
                average=affinity.average,
                row_average=affinity.row_average,
            )
        self._findings: dict[str, tuple[DetectionPrecision, RelationshipProposals, list[Example]]] = {}

    def begin_epoch(self, epoch: int) -> None:
        """Draw the epoch's order."""
        self._epochs.begin(epoch)

    def losses(self, step: int) -> Losses:
        """Compute the losses of one batch; metrics: share of images with an empty target, and M over the others."""
        batch = self._epochs.batch(step)
        regions, main = self._regions(batch, batch.boxes)
        main |= self.model.detector.detection_losses(regions, batch.boxes, batch.labels)
        metrics: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        masked_means: dict[str, tuple[Tensor, Tensor]] = {}
        loss = None
        affinity = self._affinity
        if affinity is not None and (self._loss is not None or affinity.measure):
            target = self._target(regions, batch, affinity)
            with torch.set_grad_enabled(self._loss is not None):
                graph = attention_graph(regions, affinity, affinity.heads)
                masses = None
                if self._loss is not None:
                    loss, masses = self._loss.loss_and_mass(graph, target.unsqueeze(1).expand_as(graph))
                if masses is None or affinity.heads == "each":
                    masses = target_mass(graph.detach().mean(dim=1), target)
            mass, supervised = _mean_mass(masses.flatten(), target)
            if affinity.average == "with-target":
                counts["affinity"] = supervised
            metrics["empty_target"] = 1 - supervised.float() / len(target)
            masked_means["mass"] = (mass, supervised)
        if self.model.pairs is not None:
            wanted = relationship_target(match_proposals(regions.boxes, batch.boxes), batch.relations)
            main["pair_loss"] = self.model.pairs.loss(pair_scores(regions, self.model.pairs), wanted, regions.pairs)
        for name, sampler in self._samplers.items():
            counts[name] = sampler.count
        whole = self._epochs.size(step)
        return Losses(
            size=self._shard.size(whole),
            main=main,
            affinity=loss,
            weight=affinity.lambda_ if affinity else 0.0,
            shared_features=regions.pooled,
            metrics=metrics,
            masked_means=masked_means,
            global_batch_size=whole,
            counts=counts,
        )

    def evaluate(self, split: str) -> dict[str, float]:
        """Return detection precision; for networks with a graph of relations also its recall at every K, and M."""
        scenes = read_scenes(self._folder, self._manifest, split)
        findings = self._evaluate_shard(scenes)
        all_findings = collectives.gather_object(findings)
        return collectives.broadcast_from_rank0(lambda: self._measured(split, all_findings))

    def _evaluate_shard(self, scenes: Scenes) -> _Findings:
        """Evaluate this process's shard of a split."""
        detections: list[tuple[Any, ...]] = []
        masses: list[tuple[Tensor, Tensor]] = []
        recall = RelationshipRecall(self._recall_ks)
        proposals = RelationshipProposals()
        attention = AttentionShares()
        examples = Examples(scenes)

        def count(outputs: tuple[tuple[int, ...], HostCopy]) -> None:
            indices, on_host = outputs
            values = on_host.read()
            if "mass" in values:
                masses.append((values["mass"].clone(), values["supervised"].clone()))  # a copy outside of pinned memory
            for place, index in enumerate(indices):
                scale, present = values["scales"][place].repeat(2), int(values["present"][place].sum())
                objects, image_id = scenes.objects(index), int(scenes.ids[index])
                boxes, probabilities = values["refined"][place, :present], values["probabilities"][place, :present]
                chosen, labels, scores = soft_nms(boxes, probabilities, keep=self._recipe.test.detections)
                annotated = objects.boxes, objects.labels, objects.difficult, objects.crowd
                detections.append((image_id, boxes[chosen] / scale, scores, labels, *annotated))
                if "graph" in values:
                    of_image = values["graph"][place, :present, :present]
                    where = values["boxes"][place, :present] / scale
                    gt_boxes, gt_pairs = torch.from_numpy(objects.boxes), torch.from_numpy(objects.relations)
                    ranked, weights = top_pairs(of_image, max(PAIRS_KEPT, *recall.ks))
                    recall.update_ranked(where, ranked, gt_boxes, gt_pairs)
                    proposals.add(image_id, where, probabilities.argmax(dim=1), ranked, weights)
                    counted = objects.without_ignored()
                    attention.update(where, of_image, torch.from_numpy(counted.boxes), torch.from_numpy(counted.labels))
                    examples.add(index, where, of_image)

        # On a CPU a thread would only compete for cores: an evaluation took a fifth longer.
        in_turn = map_in_background if self._device.type == "cuda" else map
        deque(in_turn(count, self._outputs(scenes)), maxlen=0)
        return _Findings(detections, masses, recall, proposals, attention, examples.finished())

    def _measured(self, split: str, all_findings: Sequence[_Findings]) -> dict[str, float]:
        """Merge the findings of the processes, in the order of the images, and compute the metrics."""
        precision, averages = DetectionPrecision(self._manifest.classes, self._recipe.test.evaluator), Averages()
        recall, proposals = RelationshipRecall(self._recall_ks), RelationshipProposals()
        attention = AttentionShares()
        examples: list[Example] = []
        for findings in all_findings:
            for image in findings.detections:
                precision.update(*image)
            for mass, supervised in findings.masses:
                averages.add({"mass": mass}, supervised)
            recall.merge(findings.recall)
            proposals.merge(findings.proposals)
            attention.merge(findings.attention)
            examples += findings.examples
        self._findings = {split: (precision, proposals, examples)}
        measured = precision.compute() | averages.read()
        if self._has_graph:
            computed = recall.compute()
            measured |= {f"recall@{k}": value for k, value in computed["micro"].items()}
            measured |= {f"recall_macro@{k}": value for k, value in computed["macro"].items()}
            measured |= attention.compute()
        # NaN: the split has no object, or no pair.
        return {name: value for name, value in measured.items() if not math.isnan(value)}

    def score(self, metrics: Mapping[str, float]) -> float:
        """Return mAP. The trainer does not ask for it: detectors test the last epoch."""
        return metrics["map_all"]

    def export(self, folder: Path, split: str) -> None:
        """Write detections (COCO), the strongest relationship proposals (HDF5, SGBench) and example images."""
        precision, proposals, examples = self._findings[split]
        run = RunFolder(folder)
        write_detections(run.detections(split), precision.coco_results(self._manifest.category_ids))
        if self._has_graph:
            proposals.write(run.relationships(split))
            proposals.write_scene_graphs(run.scene_graphs(split))
            if split == "test":
                write_examples(run.examples, self._manifest.classes, examples)

    @property
    def _recall_ks(self) -> tuple[int, ...]:
        return (*SCENE_GRAPH_KS, *self._recipe.test.recall_at)

    @property
    def _has_graph(self) -> bool:
        return self._affinity is not None or self.model.pairs is not None

    def _batches(self, scenes: Scenes, cache_bytes: int = 0) -> SceneBatches:
        data = self._recipe.data
        return SceneBatches(scenes, data.short_side, data.long_side, self._device, cache_bytes)

    @torch.no_grad()
    def _outputs(self, scenes: Scenes) -> Iterator[tuple[tuple[int, ...], HostCopy]]:
        """Yield the indices of the images of each batch of this process's shard, and the network's outputs."""
        self.model.eval()
        for batch in self._batches(scenes).sequential(self._recipe.train.batch_size, self._shard):
            regions, _ = self._regions(batch)
            outputs = {"scales": batch.scales, "boxes": regions.boxes, "present": regions.present}
            outputs["refined"], outputs["probabilities"] = self.model.detector.refined(regions, batch.sizes)
            graph = ranking_graph(self._recipe, self.model, regions)
            if graph is not None:
                outputs["graph"] = graph
                if self._affinity is not None:
                    target = self._target(regions, batch, self._affinity)
                    outputs["mass"], outputs["supervised"] = _mean_mass(target_mass(graph, target), target)
            yield batch.index, HostCopy(outputs)

    def _regions(self, batch: SceneBatch, gt_boxes: Tensor | None = None) -> tuple[Regions, dict[str, Tensor]]:
        return find_regions(self.model, batch, self._recipe, gt_boxes)

    def _target(self, regions: Regions, batch: SceneBatch, affinity: RelationAffinity) -> Tensor:
        """Return T of each image's proposals, bool `[B, N, N]`."""
        first, second = (
            self._manifest.classes.index(name) if name else None for name in (affinity.first, affinity.second)
        )
        truth = GroundTruth(batch.boxes, batch.labels, batch.relations, first, second)
        return proposal_target(affinity.target, regions.boxes, truth, affinity.match)

    def _counted_samplers(self) -> dict[str, _CountingSampler]:
        """Wrap the samplers so that losses of several processes can be weighted by their number of samples."""
        if collectives.world_size() == 1:
            return {}
        proposals, pairs = self.model.detector.proposals, self.model.pairs
        proposals.fg_bg_sampler = of_anchors = _CountingSampler(proposals.fg_bg_sampler)
        samplers = {"objectness_loss": of_anchors, "proposal_loss": of_anchors}
        if pairs is not None:
            pairs.sampler = samplers["pair_loss"] = _CountingSampler(pairs.sampler)
        return samplers


@dataclass(frozen=True)
class _Findings:
    """The findings in a part of a split.

    Attributes:
        detections: the arguments of `DetectionPrecision.update`, of each image.
        masses: M of each batch, and the number of images that it is the mean of.
        recall: over these images.
        proposals: their strongest pairs.
        attention: the shares of attention of their objects.
        examples: those among these images.
    """

    detections: list[tuple[Any, ...]]
    masses: list[tuple[Tensor, Tensor]]
    recall: RelationshipRecall
    proposals: RelationshipProposals
    attention: AttentionShares
    examples: list[Example]


class _CountingSampler:
    """A sampler of positives and negatives with the number of its last samples, `count`."""

    def __init__(self, sampler: Callable[[list[Tensor]], tuple[list[Tensor], list[Tensor]]]) -> None:
        self._sampler = sampler

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        positive, negative = self._sampler(labels)
        self.count = torch.stack([mask.sum() for mask in (*positive, *negative)]).sum()
        return positive, negative


def _mean_mass(masses: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean over the images with a target of M `[B]`, and their number."""
    supervised = target.flatten(1).any(dim=1)
    count = supervised.sum()
    return (masses * supervised).sum() / count.clamp(min=1), count
