"""What a recipe needs of its data set, beyond what the schema checks: for a run, and for a dry run."""

from __future__ import annotations

import torch

from affsup_cli.models.classifiers.build import build_classifier
from affsup_cli.recipe import DetectionRecipe, MinibatchRecipe, RelnetRecipe, RelpnRecipe
from data_prep.errors import UsageError, did_you_mean
from data_prep.store import ImageManifest, SceneManifest


def check_minibatch(recipe: MinibatchRecipe, manifest: ImageManifest, processes: int) -> None:
    """Refuse sizes that the data set, or so many processes, cannot train with.

    Raises:
        UsageError: the message names the field.
    """
    side, available, batch = min(manifest.image_shape[1:]), manifest.splits["train"].count, recipe.train.batch_size
    count = recipe.data.train_images or available
    if count > available:
        raise UsageError(f"data.train_images = {count}: {recipe.data.name} has {available:,} training images")
    if recipe.data.pad >= side:
        raise UsageError(f"data.pad = {recipe.data.pad}: expected less than the {side} pixels of a side")
    if count % batch == 1:
        raise UsageError(
            f"train.batch_size = {batch}: the last batch of {count} training images would be a single one, without a "
            f"pair or batch statistics; take {batch + 1}"
        )
    smallest = min(size for size in (batch, count % batch) if size)
    if processes > 1 and smallest < 2 * processes and not _takes_one_image(recipe, manifest):
        raise UsageError(
            f"train.batch_size = {batch} for {processes} processes: of a batch of {smallest} images some would have a "
            f"single one, without batch statistics in {recipe.model.arch}, whose last map is one pixel; take another "
            "size, or fewer processes"
        )


def check_detection(recipe: DetectionRecipe, manifest: SceneManifest) -> None:
    """Refuse a data set without the relations or classes that the recipe names.

    Raises:
        UsageError: the message names the field.
    """
    affinity = recipe.affinity if isinstance(recipe, RelnetRecipe) else None
    name = manifest.dataset
    needs_annotated = isinstance(recipe, RelpnRecipe) or (affinity is not None and affinity.target == "relationship")
    if needs_annotated and manifest.relations != "annotated":
        raise UsageError(
            f"{recipe.name}{' with affinity.target = relationship' if affinity else ''} learns from "
            f"annotated relations, and {name} has none: take vg or shapes"
        )
    for field in ("first", "second"):
        wanted = getattr(affinity, field, "")
        if wanted and wanted not in manifest.classes:
            raise UsageError(
                f"affinity.{field} = '{wanted}' is no class of {name}{did_you_mean(wanted, manifest.classes)}"
            )


def _takes_one_image(recipe: MinibatchRecipe, manifest: ImageManifest) -> bool:
    """Return whether the network can train on a single image: batch norm refuses one value a channel."""
    with torch.device("meta"):  # shapes alone
        model = build_classifier(recipe.model.arch, manifest.image_shape[0], len(manifest.classes))
        try:
            model(torch.empty(1, *manifest.image_shape))
        except ValueError:
            return False
    return True
