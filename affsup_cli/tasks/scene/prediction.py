"""Scene categories of pictures, from a trained scene classifier."""

from __future__ import annotations

from pathlib import Path

import torch

from affsup_cli.data.scenes import SceneBatches, SinglePicture
from affsup_cli.recipe import SceneRecipe
from affsup_cli.runs.checkpoint import explain_mismatch
from affsup_cli.runs.export import TrainedModel
from affsup_cli.runtime.devices import configure_cuda, resolve_device
from affsup_cli.tasks.pictures import open_for_prediction
from affsup_cli.tasks.scene.feature_cache import compute_features
from affsup_cli.tasks.scene.task import build_scene_classifier
from data_prep.errors import AffsupError


class ScenePredictor:
    """A trained scene classifier for pictures; needs no prepared data set.

    Args:
        trained: the run.
        recipe: its recipe.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        UsageError: the device does not exist.
        AffsupError: the weights cannot be read.
    """

    def __init__(self, trained: TrainedModel, recipe: SceneRecipe, device: str) -> None:
        self._recipe = recipe
        self._device = resolve_device(device)
        configure_cuda(recipe.train.precision)
        self.categories = trained.environment["data"].get("categories")
        if not isinstance(self.categories, list):
            raise AffsupError(f"the run of {trained.path} names no categories (data.categories in its environment)")
        self.model, _ = build_scene_classifier(recipe, len(self.categories), fresh=False)
        self.model.to(self._device).eval()
        with explain_mismatch(trained.path, trained.cure):
            self.model.load_state_dict(trained.state(self._device))

    @torch.no_grad()
    def predict(self, path: Path) -> dict[str, float]:
        """Return the probability of each category, the likeliest first.

        Raises:
            AffsupError: the file is not a picture.
        """
        data = self._recipe.data
        pictures = SceneBatches(SinglePicture(open_for_prediction(path)), data.short_side, data.long_side, self._device)
        (batch,) = pictures.sequential(1)
        described = compute_features(self.model, batch, self._recipe)
        probabilities = self.model(described[None]).softmax(dim=1)[0]
        order = probabilities.argsort(descending=True).tolist()
        return {self.categories[index]: probabilities[index].item() for index in order}
