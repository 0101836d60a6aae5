from __future__ import annotations

from typing import Any

import pytest

from affsup_cli.recipe import load_recipe
from affsup_cli.reporting.select.experiments import experiments
from affsup_cli.reporting.select.spec import RecallSpec, load_spec
from data_prep.errors import UsageError


def test_table3_asks_for_ten_cifar_runs_and_five_tiny_imagenet_runs_a_cell() -> None:
    counts: dict[str, int] = {}
    for experiment in experiments(load_spec("table3")):
        counts[experiment.key] = counts.get(experiment.key, 0) + 1
    assert len(counts) == 18
    assert {count for key, count in counts.items() if key.startswith("cifar")} == {10}
    assert {count for key, count in counts.items() if key.startswith("tiny")} == {5}


@pytest.mark.parametrize("seeds", [0, 10_001, 1_000_000_000])
def test_no_table_has_so_many_seeds(seeds: int) -> None:
    with pytest.raises(UsageError, match=f"^--seeds {seeds}: expected 1 to 10000$"):
        experiments(load_spec("digits-table3"), seeds)


def test_all_cells_of_a_seed_come_before_the_next_seed() -> None:
    wanted = experiments(load_spec("table3"), seeds=2)
    assert [experiment.recipe.seed for experiment in wanted] == [0] * 18 + [1] * 18
    assert [experiment.key for experiment in wanted[:2]] == ["cifar10/resnet20/base", "cifar10/resnet20/affinity"]


def test_a_cells_recipe_is_that_of_the_same_call_of_train() -> None:
    by_key = {experiment.key: experiment.recipe for experiment in experiments(load_spec("table3"), seeds=1)}
    overrides = {"data.name": "tiny-imagenet", "model.arch": "resnet50", "affinity.loss": "none", "seed": 0}
    assert by_key["tiny-imagenet/resnet50/base"] == load_recipe("minibatch", overrides)


def test_curves_shown_in_two_panels_are_trained_once() -> None:
    shared = [experiment.keys for experiment in experiments(load_spec("figure5")) if len(experiment.keys) > 1]
    assert shared == [("gamma/base", "lambda/base"), ("gamma/gamma4", "lambda/lambda0.1")]


def test_a_cost_comparison_is_one_experiment_with_both_recipes() -> None:
    _, experiment = experiments(load_spec("table4"), seeds=3)
    assert experiment.kind == "cost"
    assert experiment.baseline is not None
    assert experiment.baseline.flat()["affinity.loss"] == "none"
    assert experiment.recipe.flat()["affinity.loss"] == "focal"
    differing = {key for key, value in experiment.recipe.flat().items() if experiment.baseline.flat()[key] != value}
    assert differing == {"affinity.loss"}


def digests(name: str) -> set[str]:
    return {experiment.recipe.digest() for experiment in experiments(load_spec(name))}


@pytest.mark.parametrize(
    ("name", "other", "own"),
    [
        ("figure6", "table3", 0),
        ("demo-mass", "demo", 0),
        ("demo-features", "demo", 0),
        ("demo-recall", "demo-relations", 0),
        ("table6", "table5", 0),
        ("table7", "table5", 3),
        ("table8", "table1", 3),
        ("table5", "table1", 3),
    ],
)
def test_tables_and_figures_share_runs(name: str, other: str, own: int) -> None:
    assert len(digests(name) - digests(other)) == own


def test_rows_that_differ_in_the_metric_alone_share_the_runs_of_their_column() -> None:
    keys = [experiment.keys for experiment in experiments(load_spec("table1"), seeds=1)]
    assert keys == [
        (f"voc07/{column}",) for column in ("frcnn", "relnet", "smooth-l1", "l2", "gamma0", "gamma2", "gamma5")
    ]


def test_columns_that_differ_in_the_metric_alone_share_the_runs_of_their_row() -> None:
    assert [experiment.key for experiment in experiments(load_spec("table6"))] == ["coco/relnet", "coco/affinity"]


def test_a_block_has_its_own_number_of_runs() -> None:
    blocks = [experiment.key.partition("/")[0] for experiment in experiments(load_spec("table5"))]
    assert (blocks.count("voc07"), blocks.count("coco")) == (9, 3)


def test_a_column_or_curve_may_name_a_recipe_of_its_own() -> None:
    of_table1 = {experiment.key: experiment.recipe for experiment in experiments(load_spec("table1"), seeds=1)}
    of_figure4 = {experiment.key: experiment.recipe for experiment in experiments(load_spec("figure4"))}
    assert of_table1["voc07/frcnn"] == load_recipe("frcnn", {"data.name": "voc07"})
    assert of_table1["voc07/relnet"] == load_recipe("relnet", {"data.name": "voc07", "affinity.loss": "none"})
    assert of_figure4["relpn"] == load_recipe("relpn", {"data.name": "vg"})
    assert of_figure4["aff-sup-rel"] == load_recipe("relnet", {"data.name": "vg", "affinity.target": "relationship"})


def test_figure4_on_shapes_has_the_same_curves_as_on_visual_genome() -> None:
    vg, shapes = load_spec("figure4"), load_spec("figure4-shapes")
    assert isinstance(vg, RecallSpec)
    assert isinstance(shapes, RecallSpec)
    assert vg.curves == shapes.curves


def test_a_small_backbone_may_fill_a_table_of_detection() -> None:
    wanted = experiments(load_spec("table1"), seeds=1, extra={"model.arch": "resnet50"})
    assert {experiment.recipe.flat()["model.arch"] for experiment in wanted} == {"resnet50"}


def test_extra_overrides_reach_every_recipe() -> None:
    wanted = experiments(load_spec("table3"), seeds=1, extra={"train.epochs": 2, "train.milestones": []})
    assert {experiment.recipe.train.epochs for experiment in wanted} == {2}


@pytest.mark.parametrize(
    ("extra", "field"),
    [
        ({"affinity.gamma": 2}, "affinity.gamma"),
        ({"data.name": "digits"}, "data.name"),
        ({"model.arch": "resnet20"}, "model.arch"),
        ({"seed": 3}, "seed"),
    ],
)
def test_an_override_of_what_tells_cells_apart_is_refused(extra: dict[str, Any], field: str) -> None:
    with pytest.raises(UsageError, match=rf"^{field} = .*fix that field"):
        experiments(load_spec("table3"), seeds=1, extra=extra)


def test_an_override_of_a_field_that_the_table_sets_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^train\.test_curve = False"):
        experiments(load_spec("figure5"), extra={"train.test_curve": False})


def test_less_than_one_seed_is_refused() -> None:
    with pytest.raises(UsageError, match="--seeds 0"):
        experiments(load_spec("table3"), seeds=0)
