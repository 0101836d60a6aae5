"""The network of a detection recipe and the graph that ranks its pairs, for training and prediction."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from affsup_cli.data.scenes import SceneBatch
from affsup_cli.models.detection.backbones import build_backbone
from affsup_cli.models.detection.detector import DetectorNetwork, Regions
from affsup_cli.models.detection.relpn import PairScorer
from affsup_cli.recipe import DetectionRecipe, RelationAffinity, RelnetRecipe, RelpnRecipe
from affsup_cli.runtime.devices import autocast, memory_format
from data_prep.sources.open import checksums

ABSENT = -1e4  # affinity of padded proposals: its softmax weight is 0


class DetectionModel(nn.Module):
    """A detector, and for `relpn` the scorer of its pairs."""

    def __init__(self, detector: DetectorNetwork, pairs: PairScorer | None) -> None:
        super().__init__()
        self.detector = detector
        self.pairs = pairs


def build_network(recipe: DetectionRecipe, classes: int, pretrained: bool = True) -> DetectionModel:
    """Build the recipe's network; new weights are drawn from torch's global generator.

    Args:
        recipe: of the network.
        classes: their number.
        pretrained: load the backbone's weights; false if a state dict of the whole will be loaded.

    Raises:
        UsageError: the architecture is unknown or has no such weights.
        AffsupError: a file of weights cannot be used.
    """
    model = recipe.model
    backbone = build_backbone(model.arch, model.weights, model.pixels, load=pretrained)
    relation = recipe.relation if isinstance(recipe, RelnetRecipe) else None
    pairs = None
    if isinstance(recipe, RelpnRecipe):
        pairs = PairScorer(model.width, recipe.pairs.hidden, recipe.pairs.sampled)
    return DetectionModel(DetectorNetwork(backbone, classes, model, relation), pairs)


def checksum_of(weights: str) -> str | None:
    """Return the SHA-256 of a file of weights; None if `weights` (`model.weights`) is not a file."""
    return checksums(Path(weights))[0].sha256 if Path(weights).is_file() else None


def find_regions(
    model: DetectionModel, batch: SceneBatch, recipe: DetectionRecipe, gt_boxes: Tensor | None = None
) -> tuple[Regions, dict[str, Tensor]]:
    """Run the detector on a batch in the recipe's precision and memory format; see `DetectorNetwork.forward`."""
    pixels = batch.images.to(torch.float32, memory_format=memory_format(recipe.run.channels_last))
    with autocast(pixels.device, recipe.train.precision):
        found: tuple[Regions, dict[str, Tensor]] = model.detector(pixels, batch.sizes, gt_boxes)
    return found


def attention_graph(regions: Regions, affinity: RelationAffinity, heads: str) -> Tensor:
    """Return W of the supervised relation module (eq. 9), row = reference; padded proposals have no weight.

    Args:
        regions: of a relation network.
        affinity: selects the module, and whether its geometric term is added.
        heads: "mean" for `[B, 1, N, N]`, "each" for `[B, heads, N, N]`.
    """
    graph = regions.graphs[affinity.module - 1]
    logits = graph.dots + graph.geometry if affinity.geometry else graph.dots
    logits = logits[:, :, : regions.boxes.shape[1]]
    if heads == "mean":
        logits = logits.mean(dim=1, keepdim=True)
    return logits.masked_fill(~regions.pairs.unsqueeze(1), ABSENT)


def pair_scores(regions: Regions, scorer: PairScorer) -> Tensor:
    """Return the scores of pairs `[B, N, N]`, row = subject; those of padding are the lowest."""
    scores: Tensor = scorer(regions.features[:, : regions.boxes.shape[1]].float(), regions.boxes)
    return scores.masked_fill(~regions.pairs, ABSENT)


def ranking_graph(recipe: DetectionRecipe, model: DetectionModel, regions: Regions) -> Tensor | None:
    """Return the weights that rank pairs `[B, N, N]`: W's mean over heads, or scores; None if there are neither."""
    if model.pairs is not None:
        return pair_scores(regions, model.pairs)
    if isinstance(recipe, RelnetRecipe):
        return attention_graph(regions, recipe.affinity, "mean").squeeze(1)
    return None
