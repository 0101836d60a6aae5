"""Recipes on the generated scenes that a test can afford."""

from __future__ import annotations

from typing import Any

from affsup_cli.recipe import DetectionRecipe, SceneRecipe, load_recipe

SMALL = {
    "run.device": "cpu",
    "data.short_side": 64,
    "data.long_side": 64,
    "model.channels": 16,
    "model.width": 32,
    "model.proposals": 60,
    "model.candidates": 120,
    "model.anchor_scales": [1.5, 2.5],
    "train.batch_size": 4,
    "train.epochs": 1,
    "train.milestones": [],
}
SMALL_RELNET = SMALL | {"relation.heads": 4, "relation.key_dim": 8}
OF_SCENES = {
    "run.device": "cpu",
    "data.short_side": 64,
    "data.long_side": 64,
    "model.channels": 8,
    "train.batch_size": 4,
    "train.epochs": 2,
    "train.milestones": [],
}


def small(name: str = "relnet", **fields: Any) -> DetectionRecipe:
    given = {key.replace("__", "."): value for key, value in fields.items()}
    recipe = load_recipe(name, (SMALL_RELNET if name == "relnet" else SMALL) | given)
    assert isinstance(recipe, DetectionRecipe)
    return recipe


def small_scene(**fields: Any) -> SceneRecipe:
    """A recipe for scene categories whose part A is `small()`."""
    given = {key.replace("__", "."): value for key, value in fields.items()}
    of_network = {f"network.{key}": value for key, value in SMALL_RELNET.items()}
    recipe = load_recipe("scene", OF_SCENES | of_network | given)
    assert isinstance(recipe, SceneRecipe)
    return recipe
