from __future__ import annotations

from pathlib import Path

import pytest

from affsup_cli.recipe import load_recipe
from affsup_cli.reporting.select.experiments import Experiment
from affsup_cli.sweeps.plan import Plan, needed_recipes, plan_sweep, wanted_experiments
from data_prep.errors import UsageError
from tests.reporting.fake_runs import AFFINITY, BASE, RunMaker

ATTENTION = {"model.features": "attention"}


@pytest.fixture
def make(tmp_path: Path) -> RunMaker:
    return RunMaker(tmp_path / "runs")


def planned(make: RunMaker, wanted: list[Experiment], device: str = "Test GPU") -> Plan:
    return plan_sweep(wanted, make.root.parent / "data", make.root, {device})


def scene(seed: int = 0, **overrides: object) -> Experiment:
    return Experiment((f"scene{len(overrides)}",), load_recipe("scene", {**ATTENTION, **overrides, "seed": seed}))


@pytest.mark.parametrize(
    ("pattern", "cells"),
    [
        ("gamma2", ["table1/voc07/gamma2", "figure5/gamma/gamma2"]),
        ("gamma/gamma2", ["figure5/gamma/gamma2"]),
        ("voc07/gamma?", ["table1/voc07/gamma0", "table1/voc07/gamma2", "table1/voc07/gamma5"]),
        ("lambda", ["figure5/lambda/" + each for each in ("base", "lambda0.01", "lambda0.1", "lambda1")]),
        ("figure5/lambda/base", ["figure5/lambda/base"]),
    ],
)
def test_only_finds_whole_parts_of_keys_wherever_they_stand(pattern: str, cells: list[str]) -> None:
    wanted = wanted_experiments(["table1", "figure5"], seeds=1, only=[pattern])
    # A figure's curve that stands in two panels is one run and keeps both keys.
    assert sorted(next(key for key in each.keys if key in cells) for each in wanted) == sorted(cells)


def test_only_that_fits_nothing_names_the_nearest_of_the_cells_there_are() -> None:
    nearest = (
        r"no cell of table1, table3 matches 'amma2' \(did you mean 'gamma2'\?\); its cells are table1/voc07/gamma2, "
    )
    with pytest.raises(UsageError, match=nearest) as refused:
        wanted_experiments(["table1", "table3"], only=["amma2"])
    cells, others = str(refused.value).partition("its cells are ")[2].split(" and ")
    assert len(cells.split(", ")) == 10
    assert others == "15 others, which --dry-run shows"  # of 7 and 18
    with pytest.raises(UsageError, match=r"matches 'nonsense'; its cells are [^,]*/affinity, [^,]*/base$"):
        wanted_experiments(["digits-table3"], only=["nonsense"])


def test_runs_that_several_tables_share_are_one_and_record_what_either_needs(make: RunMaker) -> None:
    wanted = wanted_experiments(["table3", "figure5", "figure6"], seeds=1, only=["base"])
    (shared,) = [run for run in planned(make, wanted).runs if "figure6/base" in run.cells]
    assert shared.cells == ("table3/cifar10/resnet20/base", "figure5/gamma/base", "figure5/lambda/base", "figure6/base")
    assert shared.recipe.train.test_curve
    assert planned(make, wanted_experiments(["table3"], seeds=1)).runs[0].recipe.train.test_curve is False


def test_a_finished_run_is_kept_though_another_cell_needs_one_that_records_more(make: RunMaker) -> None:
    run = make.train(BASE, 0.9)
    runs = planned(make, wanted_experiments(["table3", "figure5"], seeds=1, only=["cifar10/resnet20/base"])).runs
    assert [(run.state, run.folder.path) for run in runs] == [("finished", run.path)]
    runs = planned(make, wanted_experiments(["table3", "figure5"], seeds=1, only=["base"])).runs
    states = {cell: run.state for run in runs for cell in run.cells}
    assert states["table3/cifar10/resnet20/base"] == "finished"
    assert states["figure5/gamma/base"] == "missing"


def test_seeds_come_in_turn_over_all_tables_and_cost_comparisons_last(make: RunMaker) -> None:
    runs = planned(make, wanted_experiments(["table4", "table3", "table1"], seeds=2)).runs
    assert [run.recipe.seed for run in runs if run.baseline is None] == [0] * 25 + [1] * 25
    assert [run.baseline is None for run in runs] == [True] * 50 + [False] * 2


def test_what_runs_build_on_is_one_step_before_them(make: RunMaker) -> None:
    wanted = [scene(), scene(1), scene(**{"network.affinity.loss": "none"}), scene(**{"model.features": "rois"})]
    runs = planned(make, wanted).runs
    assert [run.cells[0] for run in runs[:2]] == ["relnet-shapes-convnet-focal", "relnet-shapes-convnet-base"]
    focal, base = runs[:2]
    assert [run.needs for run in runs] == [None, None, focal, base, focal, focal]
    assert focal.recipe == wanted[0].recipe.prerequisite()
    assert {recipe.name for recipe in needed_recipes(wanted)} == {"scene", "relnet"}


def test_what_runs_build_on_is_the_run_of_a_cell_if_there_is_one(make: RunMaker) -> None:
    network = scene().recipe.prerequisite()
    assert network is not None
    runs = planned(make, [scene(), Experiment(("table1/network",), network)]).runs
    assert [run.cells for run in runs] == [("table1/network",), ("scene0",)]
    assert runs[1].needs is runs[0]


def test_nothing_is_built_for_runs_that_are_finished(make: RunMaker) -> None:
    make.finish(ATTENTION, {"test_accuracy": 0.5}, recipe_name="scene")
    assert [run.state for run in planned(make, [scene()]).runs] == ["finished"]


@pytest.mark.parametrize("begun", [True, False])
def test_what_a_run_builds_on_is_built_again_only_if_the_run_has_no_checkpoint(make: RunMaker, begun: bool) -> None:
    run = make.start(ATTENTION, recipe_name="scene")
    if begun:
        run.checkpoint.touch()
    runs = planned(make, [scene()]).runs
    assert [run.state for run in runs] == (["unfinished"] if begun else ["missing", "unfinished"])
    assert runs[-1].folder.path == run.path
    assert runs[-1].needs is (None if begun else runs[0])


def test_a_damaged_folder_keeps_its_own_step_from_running_and_no_other(make: RunMaker) -> None:
    wanted = wanted_experiments(["table3"], seeds=1, only=["cifar10/resnet20"])
    place = planned(make, wanted).runs[0].folder.path
    for name in (place.name, "another"):
        damaged = make.train(BASE, 0.9, name=name)
        (damaged.path / "result.json").write_text("{}")
    plan = planned(make, wanted)
    assert [run.state for run in plan.runs] == ["damaged", "missing"]
    assert sorted(warning.split()[1] for warning in plan.warnings) == sorted(["another", place.name])
    (place / "recipe.toml").unlink()
    assert [run.state for run in planned(make, wanted).runs] == ["damaged", "missing"]


def test_the_time_left_is_told_from_epochs_of_other_seeds(make: RunMaker) -> None:
    run = make.train({**BASE, "train.epochs": 200}, 0.9, seed=3)
    (run.path / "result.json").write_text(run.path.joinpath("result.json").read_text().replace("1.0,", "800.0,"))
    begun = make.start(AFFINITY, seed=0)
    for epoch in range(1, 51):
        begun.append_metrics({"epoch": epoch, "seconds": 5.0})
    plan = planned(make, wanted_experiments(["table3"], seeds=1))
    by_cell = {run.cells[0]: run.seconds(plan.speeds) for run in plan.runs}
    assert by_cell["cifar10/resnet20/base"] == pytest.approx(200 * 4)
    assert by_cell["cifar10/resnet20/affinity"] == pytest.approx(150 * 5)
    assert by_cell["cifar10/resnet56/base"] is None
    assert by_cell["cifar100/resnet20/base"] is None
    elsewhere = planned(make, wanted_experiments(["table3"], seeds=1), device="Other GPU")
    assert {run.seconds(elsewhere.speeds) for run in elsewhere.runs} == {None}


def test_without_a_run_of_the_recipe_those_with_another_loss_or_length_tell_the_time(make: RunMaker) -> None:
    begun = make.start({**AFFINITY, "train.epochs": 9, "affinity.gamma": 2})
    for epoch in range(1, 3):
        begun.append_metrics({"epoch": epoch, "seconds": 7.0})
    make.start({**AFFINITY, "train.batch_size": 64}).append_metrics({"epoch": 1, "seconds": 99.0})
    plan = planned(make, wanted_experiments(["table3"], seeds=1, only=["cifar10/resnet20"]))
    assert [run.seconds(plan.speeds) for run in plan.runs] == [pytest.approx(1400)] * 2


def test_what_is_not_there_stands_in_the_way_only_of_what_needs_it(make: RunMaker) -> None:
    plan = planned(make, wanted_experiments(["small-voc", "digits-table3"], seeds=1))
    data, weights = plan.obstacles
    assert "affsup prepare voc07" in data
    assert "efficientnet-lite0-57934424.pth does not exist (model.weights of small-voc/voc07/relnet, " in weights
    for run in plan.runs:
        make.finish(run.recipe.flat() | {"seed": 0}, {}, recipe_name=run.recipe.name)
    assert planned(make, wanted_experiments(["small-voc"], seeds=1)).obstacles == ()


def test_cells_of_the_same_runs_stand_together(make: RunMaker) -> None:
    plan = planned(make, wanted_experiments(["figure5", "figure6"], seeds=1, only=["base"]))
    assert [(cells, len(runs)) for cells, runs in plan.by_cells().items()] == [
        (("figure5/gamma/base", "figure5/lambda/base", "figure6/base"), 1)
    ]
