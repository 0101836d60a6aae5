"""Detection recipes that a test can afford, on the generated scenes."""

from __future__ import annotations

from typing import Any

from affsup_cli.recipe import DetectionRecipe, load_recipe

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


def small(name: str = "relnet", **fields: Any) -> DetectionRecipe:
    given = {key.replace("__", "."): value for key, value in fields.items()}
    recipe = load_recipe(
        name, SMALL | ({"relation.heads": 4, "relation.key_dim": 8} if name == "relnet" else {}) | given
    )
    assert isinstance(recipe, DetectionRecipe)
    return recipe
