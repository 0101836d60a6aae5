"""Class probabilities of pictures, from a trained image classifier."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from affsup_cli.models.classifiers.build import build_classifier
from affsup_cli.recipe import MinibatchRecipe
from affsup_cli.runs.checkpoint import explain_mismatch
from affsup_cli.runs.export import TrainedModel
from affsup_cli.runtime.devices import autocast, configure_cuda, resolve_device
from data_prep.errors import AffsupError


class ClassifierPredictor:
    """A trained image classifier for pictures; needs no prepared data set.

    Args:
        trained: the run.
        recipe: its recipe.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        UsageError: the device does not exist.
        AffsupError: the weights cannot be read, or the run does not record how its images were prepared.
    """

    def __init__(self, trained: TrainedModel, recipe: MinibatchRecipe, device: str) -> None:
        self._device = resolve_device(device)
        self._precision = recipe.train.precision
        configure_cuda(self._precision)
        self.classes = trained.classes
        record: Any = trained.environment["data"].get("preprocessing")
        if not isinstance(record, dict):
            raise AffsupError(
                f"the run of {trained.path} does not record the size and the statistics of its images "
                "(data.preprocessing in its environment): an older affsup has trained it. Train it anew"
            )
        self._channels, self._height, self._width = record["image_shape"]
        self._mean, self._std = (torch.tensor(record[name]).view(-1, 1, 1) for name in ("mean", "std"))
        self.model = build_classifier(recipe.model.arch, self._channels, len(self.classes)).to(self._device).eval()
        with explain_mismatch(trained.path, trained.cure):
            self.model.load_state_dict(trained.state(self._device))

    def preprocess(self, image: NDArray[np.uint8]) -> torch.Tensor:
        """Return the network's input `[C, H, W]` of an RGB image: scaled to cover H x W, cropped at the centre."""
        picture = Image.fromarray(image)
        if self._channels == 1:
            picture = picture.convert("L")
        scale = max(self._width / picture.width, self._height / picture.height)
        size = max(round(picture.width * scale), self._width), max(round(picture.height * scale), self._height)
        left, top = (size[0] - self._width) // 2, (size[1] - self._height) // 2
        scaled = picture.resize(size, Image.Resampling.BILINEAR)
        cropped = np.array(scaled.crop((left, top, left + self._width, top + self._height)))
        pixels = torch.from_numpy(cropped.reshape(self._height, self._width, self._channels)).permute(2, 0, 1)
        return (pixels.float() / 255 - self._mean) / self._std

    @torch.no_grad()
    def predict(self, image: NDArray[np.uint8]) -> dict[str, float]:
        """Return the probability of each class for an RGB image `[H, W, 3]`, in descending order."""
        pixels = self.preprocess(image).unsqueeze(0).to(self._device)
        with autocast(self._device, self._precision):
            _, logits = self.model(pixels)
        probabilities = logits[0].float().softmax(dim=0)
        order = probabilities.argsort(descending=True).tolist()
        return {self.classes[index]: probabilities[index].item() for index in order}
