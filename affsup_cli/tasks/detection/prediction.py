"""Objects and their relations in pictures, from a trained detector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from affsup_cli.data.scenes import SceneBatches, SinglePicture
from affsup_cli.models.detection.nms import soft_nms
from affsup_cli.recipe import DetectionRecipe
from affsup_cli.runs.checkpoint import explain_mismatch
from affsup_cli.runs.export import TrainedModel
from affsup_cli.runtime.devices import configure_cuda, resolve_device
from affsup_cli.tasks.detection.examples import strongest_partners
from affsup_cli.tasks.detection.network import build_network, find_regions, ranking_graph
from affsup_cli.tasks.pictures import open_for_prediction
from data_prep.errors import UsageError


@dataclass(frozen=True)
class Partners:
    """The strongest partners of a reference object.

    Attributes:
        reference: index of the detection.
        boxes: float32 `[P, 4]` of the proposals with the largest weights, in pixels.
        weights: float32 `[P]`, shares of the reference's attention, in 0..1.
        labels: int64 `[P]`, the most probable class of each without the background.
    """

    reference: int
    boxes: NDArray[np.float32]
    weights: NDArray[np.float32]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Prediction:
    """The detections of a picture, by descending score.

    Attributes:
        path: the picture's file.
        image: uint8 `[H, W, 3]`.
        boxes: float32 `[D, 4]` as x1, y1, x2, y2 in pixels.
        labels: int64 `[D]`.
        scores: float32 `[D]`, 0..1.
        partners: of the chosen reference; None without detections, or if the network has no graph.
    """

    path: Path
    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    partners: Partners | None


class DetectionPredictor:
    """A trained detector for pictures; needs no prepared data set.

    Args:
        trained: a detector.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        UsageError: the model is no detector, or the device does not exist.
        AffsupError: the weights cannot be read.
    """

    def __init__(self, trained: TrainedModel, device: str) -> None:
        recipe = trained.recipe
        if not isinstance(recipe, DetectionRecipe):
            raise UsageError(
                f"{trained.name} is a run of '{recipe.task}': predict takes runs of frcnn, relnet, relpn and scene"
            )
        self._recipe = recipe
        self._device = resolve_device(device)
        configure_cuda(recipe.train.precision)
        self.classes: Sequence[str] = trained.classes
        self.model = build_network(recipe, len(self.classes), pretrained=False).to(self._device).eval()
        with explain_mismatch(trained.path, trained.cure):
            self.model.load_state_dict(trained.state(self._device))

    def predict(self, path: Path, reference: str | None, least: float) -> Prediction:
        """Find objects in a picture, and for one of them the partners that it attends to most.

        Args:
            path: the picture's file.
            reference: class of the reference object; None for the most confident detection of all.
            least: score that a detection needs.

        Raises:
            UsageError: there is no such class.
            AffsupError: the file is not a picture.
        """
        if reference is not None and reference not in self.classes:
            raise UsageError(f"--reference {reference}: the run's classes are {', '.join(self.classes)}")
        return self._of_image(path, open_for_prediction(path), reference, least)

    @torch.no_grad()
    def _of_image(self, path: Path, image: NDArray[np.uint8], reference: str | None, least: float) -> Prediction:
        data = self._recipe.data
        (batch,) = SceneBatches(SinglePicture(image), data.short_side, data.long_side, self._device).sequential(1)
        regions, _ = find_regions(self.model, batch, self._recipe)
        scale = batch.scales[0].repeat(2)
        ((refined, probabilities),) = self.model.detector.detections(regions, batch.sizes)
        chosen, labels, scores = soft_nms(refined, probabilities, keep=self._recipe.test.detections, least=least)
        graph = ranking_graph(self._recipe, self.model, regions)
        partners = None
        candidates = (
            labels == self.classes.index(reference) if reference is not None else torch.ones_like(labels).bool()
        )
        if graph is not None and candidates.any():
            index = int(candidates.nonzero()[0])
            count = int(regions.present[0].sum())
            proposals = regions.boxes[0, :count]
            strongest, weights = strongest_partners(proposals, graph[0, :count, :count], int(chosen[index]))
            partners = Partners(
                index,
                (proposals[strongest] / scale).cpu().numpy(),
                weights.cpu().numpy(),
                probabilities[strongest].argmax(dim=1).cpu().numpy(),
            )
        return Prediction(
            path,
            image,
            (refined[chosen] / scale).cpu().numpy(),
            labels.cpu().numpy(),
            scores.cpu().numpy(),
            partners,
        )
