from __future__ import annotations

import math
from typing import cast

import pytest

from affsup_cli.bench.needs import RunKind, Speed, kind_of, kinds_of, needed_runs, seconds_of
from affsup_cli.recipe import Recipe, SceneRecipe, load_recipe
from affsup_cli.reporting.select.experiments import Experiment
from affsup_cli.reporting.select.spec import paper_names


def run(recipe: Recipe, baseline: Recipe | None = None) -> Experiment:
    return Experiment(("cell",), recipe, baseline)


def test_a_run_that_two_tables_share_has_one_key() -> None:
    table5, table6 = needed_runs("table5"), needed_runs("table6")
    assert len(table6) < len(table5.keys() | table6.keys()) < len(table5) + len(table6)


def test_runs_that_others_build_on_are_needed_too() -> None:
    tasks = [experiment.recipe.task for experiment in needed_runs("table2").values()]
    assert (tasks.count("scene"), tasks.count("relnet")) == (15, 2)


def test_every_run_of_the_paper_is_of_a_known_kind() -> None:
    runs = [experiment for table in paper_names() for experiment in needed_runs(table).values()]
    kinds = kinds_of(runs)
    assert {kind_of(experiment.recipe) for experiment in runs} == set(kinds)
    assert {kind for kind in kinds if kind.task != "minibatch"} == {
        RunKind(task, "resnet101", "600x1000") for task in ("frcnn", "relnet", "relpn")
    }
    assert all(recipe.flat()["affinity.loss"] != "none" for kind, recipe in kinds.items() if kind.task == "minibatch")


def test_a_classifier_evaluates_the_validation_split_each_epoch_and_both_splits_at_the_end() -> None:
    recipe = load_recipe("minibatch", {"data.name": "cifar10", "train.epochs": 3})
    speeds = {kind_of(recipe): Speed(2.0, 1, 0.5, 1)}
    expected = 3 * math.ceil(45_000 / 128) * 2.0 + (3 + 1) * 5_000 * 0.5 + 10_000 * 0.5
    assert seconds_of(run(recipe), speeds) == pytest.approx(expected)


def test_a_test_curve_is_evaluated_every_epoch_besides() -> None:
    fields = {"data.name": "cifar10", "train.epochs": 3}
    recipe = load_recipe("minibatch", fields)
    curve = load_recipe("minibatch", {**fields, "train.test_curve": True})
    speeds = {kind_of(recipe): Speed(2.0, 1, 0.5, 1)}
    assert seconds_of(run(curve), speeds) - seconds_of(run(recipe), speeds) == pytest.approx(3 * 10_000 * 0.5)


def test_a_detector_passes_mirror_images_and_is_evaluated_once() -> None:
    recipe = load_recipe("relnet", {"data.name": "voc07"})
    speeds = {kind_of(recipe): Speed(2.0, 1, 0.5, 1)}
    assert seconds_of(run(recipe), speeds) == pytest.approx(8 * 5011 * 2.0 + 4952 * 0.5)


def test_scene_categories_take_one_pass_of_part_a() -> None:
    recipe = cast(SceneRecipe, load_recipe("scene", {"data.name": "mit67"}))
    assert kind_of(recipe) == kind_of(recipe.network)
    speeds = {kind_of(recipe): Speed(2.0, 1, 0.5, 1)}
    assert seconds_of(run(recipe), speeds) == pytest.approx((2 * 5360 + 1340) * 0.5)


def test_a_cost_comparison_takes_its_rounds_of_both_variants() -> None:
    recipe = load_recipe("relnet", {"data.name": "voc07"})
    speeds = {kind_of(recipe): Speed(2.0, 1, 0.5, 1)}
    assert seconds_of(run(recipe, recipe), speeds) == pytest.approx(2 * (40 * 2 + 4 + 2 + 4) * 2.0)
