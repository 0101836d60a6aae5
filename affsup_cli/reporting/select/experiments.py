"""The cells of a table or figure, and the experiments (a cell's recipe with a seed) that fill them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from affsup_cli.recipe import Recipe, load_recipe
from affsup_cli.reporting.select.spec import (
    CostSpec,
    CurvesSpec,
    EmbeddingSpec,
    GridSpec,
    RecallSpec,
    RelationsSpec,
    Spec,
    TargetsSpec,
)
from affsup_cli.runs.index import comparable_settings, identity_key
from data_prep.errors import UsageError

_MAX_SEEDS = 10_000
_CellDefinition = tuple[str, str, dict[str, Any], int, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell of a table: the runs of one recipe with any seed fill it.

    Attributes:
        key: path of the cell in its table, such as `cifar10/resnet20/affinity`.
        recipe: the recipe, with the seed of its file.
        seeds: number of runs that the table needs.
        baseline: for a cost comparison, the recipe that is timed in alternation with `recipe`; else None.
    """

    key: str
    recipe: Recipe
    seeds: int
    baseline: Recipe | None = None

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """The recipe's `comparable_settings`."""
        return comparable_settings(self.recipe)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One run that a table needs.

    Attributes:
        keys: the cells that it fills; several where a figure shows the same curve twice.
        recipe: the recipe with its seed.
        baseline: for a cost comparison, the recipe that is timed in alternation with `recipe`; None for a training run.
    """

    keys: tuple[str, ...]
    recipe: Recipe
    baseline: Recipe | None = None

    @property
    def key(self) -> str:
        """The first cell that it fills."""
        return self.keys[0]

    @property
    def kind(self) -> Literal["train", "cost"]:
        """The kind of run, for `RunIndex.find`."""
        return "train" if self.baseline is None else "cost"


def spec_cells(spec: Spec, extra: Mapping[str, Any] | None = None) -> list[Cell]:
    """Return the cells of a table or figure in order, with the overrides `extra` applied to their recipes.

    In a table of several kinds of recipe, each recipe takes the overrides that it has a field for.

    Raises:
        UsageError: `extra` sets a field that distinguishes cells, or one that no recipe has.
    """
    definitions = _cell_definitions(spec)
    shared = _overrides_by_recipe(definitions, extra or {})
    cells = []
    for key, recipe, overrides, seeds, baseline in definitions:
        kind, extra = shared[recipe]
        for field in extra:
            if field in overrides or field in baseline or kind.defines_cell(field) or field == "seed":
                raise UsageError(
                    f"{field} = {extra[field]!r}: the cells of this table fix that field ({key}). "
                    "Run such an experiment with `affsup train … --set`"
                )
        beside = load_recipe(recipe, {**overrides, **baseline, **extra}) if isinstance(spec, CostSpec) else None
        cells.append(Cell(key, load_recipe(recipe, {**overrides, **extra}), seeds, beside))
    return cells


def _overrides_by_recipe(
    definitions: Sequence[_CellDefinition], extra: Mapping[str, Any]
) -> dict[str, tuple[type[Recipe], dict[str, Any]]]:
    """Return the class of every recipe in a table, and those of the overrides `extra` that it has a field for.

    Raises:
        UsageError: none of them has a field for one.
    """
    loaded = {recipe: load_recipe(recipe, overrides) for _, recipe, overrides, _, _ in definitions}
    for field in extra:
        if not any(field in recipe.flat() for recipe in loaded.values()):
            _, name, overrides, _, _ = definitions[0]
            load_recipe(name, {**overrides, field: extra[field]})
    return {
        name: (type(recipe), {field: value for field, value in extra.items() if field in recipe.flat()})
        for name, recipe in loaded.items()
    }


def experiments(spec: Spec, seeds: int | None = None, extra: Mapping[str, Any] | None = None) -> list[Experiment]:
    """Return the runs that a table needs: all cells with seed 0, then with seed 1, so that pairs are complete early.

    Args:
        spec: the table or figure.
        seeds: runs per cell instead of the table's number. A cost comparison remains one measurement.
        extra: overrides of every recipe, such as a shorter schedule.

    Raises:
        UsageError: `seeds` is below 1 or above 10,000, or `extra` is refused (see `spec_cells`).
    """
    if seeds is not None and not 1 <= seeds <= _MAX_SEEDS:
        raise UsageError(f"--seeds {seeds}: expected 1 to {_MAX_SEEDS}")
    cells = spec_cells(spec, extra)
    wanted = [cell.seeds if seeds is None or cell.baseline else seeds for cell in cells]
    found: dict[str, Experiment] = {}
    for seed in range(max(wanted)):
        for cell in (cell for cell, count in zip(cells, wanted, strict=True) if seed < count):
            recipe = _with_seed(cell.recipe, seed)
            baseline = _with_seed(cell.baseline, seed) if cell.baseline else None
            known = found.get(identity_key(recipe))
            keys = (*known.keys, cell.key) if known else (cell.key,)
            found[identity_key(recipe)] = Experiment(keys, recipe, baseline)
    return list(found.values())


def _with_seed(recipe: Recipe, seed: int) -> Recipe:
    return recipe.model_copy(update={"seed": seed})


def _cell_definitions(spec: Spec) -> list[_CellDefinition]:
    """Return each cell as (key, recipe name, overrides, seeds, overrides of the baseline of a cost comparison)."""
    match spec:
        case GridSpec():
            cells: dict[str, _CellDefinition] = {
                entry.cell: (entry.cell, entry.recipe, entry.overrides, block.seeds, {})
                for block in spec.blocks
                for entry in spec.entries(block)
            }
            return list(cells.values())
        case RecallSpec():
            return [
                (curve.key, curve.recipe or spec.recipe, {**spec.overrides, **curve.overrides}, spec.seeds, {})
                for curve in spec.curves
            ]
        case CurvesSpec():
            return [
                (f"{panel.key}/{curve.key}", spec.recipe, {**spec.overrides, **curve.overrides}, spec.seeds, {})
                for panel in spec.panels
                for curve in panel.curves
            ]
        case TargetsSpec():
            return [("examples", spec.recipe, spec.overrides, 1, {})]
        case EmbeddingSpec() | RelationsSpec():
            return [(panel.key, spec.recipe, {**spec.overrides, **panel.overrides}, 1, {}) for panel in spec.panels]
        case CostSpec():
            return [
                (block.key, block.recipe, {**block.overrides, **block.treatment.overrides}, 1, block.baseline.overrides)
                for block in spec.blocks
            ]
