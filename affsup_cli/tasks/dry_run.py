"""What a run would take, without its pixels and without memory: networks are built on torch's meta device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from affsup_cli.models.classifiers.build import build_classifier
from affsup_cli.models.scene import SceneClassifier
from affsup_cli.recipe import DetectionRecipe, MinibatchRecipe, Recipe, SceneRecipe
from affsup_cli.tasks.detection.network import DetectionModel, build_network
from affsup_cli.tasks.launch import batch_shards
from affsup_cli.tasks.recipe_checks import check_detection, check_minibatch
from data_prep.store import read_image_manifest, read_scene_manifest

_BYTES = 4  # of a float32


@dataclass(frozen=True)
class DryRun:
    """The sizes of a run.

    Attributes:
        images: of an epoch, mirror images included.
        steps: of an epoch.
        images_each: images of a step for each process, by rank.
        parameters: number of parameters.
        trained: number of trained parameters.
        state_bytes: memory of a process for weights, gradients and momentum.
        activation_bytes: memory of a process for the tensors that the backward pass needs, in float32; of a detector
            those of the backbone on the largest image, so at least.
        checkpoint_bytes: size of last.pt.
    """

    images: int
    steps: int
    images_each: list[int]
    parameters: int
    trained: int
    state_bytes: int
    activation_bytes: int
    checkpoint_bytes: int


def dry_run(recipe: Recipe, data_dir: Path, processes: int) -> DryRun:
    """Return the sizes of a run of `recipe` by `processes` processes.

    Raises:
        UsageError: the data set has not the images, relations or classes that the recipe asks for, or a process would
            have no image.
        AffsupError: the data set is not prepared.
    """
    images_each = batch_shards(recipe, processes)["images_each"]
    folder = data_dir / str(recipe.flat()["data.name"])
    if isinstance(recipe, MinibatchRecipe):
        manifest = read_image_manifest(folder)
        check_minibatch(recipe, manifest, processes)
        images = recipe.data.train_images or manifest.image_counts()["train"]
        with torch.device("meta"):
            model: nn.Module = build_classifier(recipe.model.arch, manifest.image_shape[0], len(manifest.classes))
            batch = torch.empty(max(images_each), *manifest.image_shape)
            activations = _saved_bytes(model, batch)
    elif isinstance(recipe, DetectionRecipe | SceneRecipe):
        of_network = recipe.network if isinstance(recipe, SceneRecipe) else recipe
        scenes = read_scene_manifest(folder, "categories" if isinstance(recipe, SceneRecipe) else "objects")
        objects = read_scene_manifest(data_dir / of_network.data.name)
        if not isinstance(recipe, SceneRecipe) or recipe.prerequisite():
            check_detection(of_network, objects)
        images = scenes.image_counts()["train"] * (1 + recipe.data.mirror)
        with torch.device("meta"):
            network = build_network(of_network, len(objects.classes), pretrained=False)
            model = network
            if isinstance(recipe, SceneRecipe):
                model = SceneClassifier(network.detector, recipe.model, len(scenes.categories))
            size = recipe.data.short_side, recipe.data.long_side
            activations = _saved_bytes(_Maps(network, size), torch.empty(max(images_each), 3, *size))
    else:
        raise NotImplementedError(recipe.task)
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    stored = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    return DryRun(
        images=images,
        steps=-(-images // recipe.train.batch_size),
        images_each=images_each,
        parameters=sum(value.numel() for value in model.parameters()),
        trained=trained,
        state_bytes=stored + 2 * _BYTES * trained,
        activation_bytes=activations,
        checkpoint_bytes=stored + _BYTES * trained,
    )


class _Maps(nn.Module):
    """The backbone of a detector, on images of one size."""

    def __init__(self, network: DetectionModel, size: tuple[int, int]) -> None:
        super().__init__()
        self._network = network
        self._size = size

    def forward(self, images: Tensor) -> Any:
        return self._network.detector.maps(images, [self._size] * len(images))


def _saved_bytes(model: nn.Module, images: Tensor) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, without the parameters."""
    parameters = {value.untyped_storage()._cdata for value in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no storage takes the place of one that was freed

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in parameters:
            kept[storage._cdata] = storage.nbytes()
            alive.append(value)
        return value

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        model(images)
    return sum(kept.values())
