from __future__ import annotations

from typing import Any

import pytest

from affsup_cli.recipe import load_recipe
from affsup_cli.reporting.footnotes import Footnotes
from affsup_cli.reporting.select.experiments import Cell
from affsup_cli.reporting.select.match import SelectedRuns, select_runs
from affsup_cli.runs.index import RunIndex, TrainedRun
from tests.reporting.fake_runs import AFFINITY, BASE, SHORT, RunMaker

CELLS = {
    "base": Cell("base", load_recipe("minibatch", BASE), 10),
    "affinity": Cell("affinity", load_recipe("minibatch", AFFINITY), 10),
}
SUBSET = {"limit": 5000, "complete": False}


def sound(_: TrainedRun) -> None:
    return None


def select(make: RunMaker) -> SelectedRuns:
    return select_runs(CELLS, RunIndex(make.root).trained, sound)


def names(selection: SelectedRuns) -> dict[str, list[str]]:
    assert selection.group is not None
    return {
        cell: [by_seed[seed].folder.name for seed in sorted(by_seed)] for cell, by_seed in selection.group.runs.items()
    }


def departures(selection: SelectedRuns) -> tuple[str, ...]:
    assert selection.group is not None
    return selection.group.departures


def test_without_runs_nothing_is_chosen(make: RunMaker) -> None:
    assert select(make) == SelectedRuns(None, ())


@pytest.mark.parametrize(
    "other",
    [
        {"data.name": "cifar100"},
        {"model.arch": "resnet56"},
        {"affinity.gamma": 2},
        {"affinity.lambda": 0.01},
        {"affinity.diagonal": "keep"},
        {"affinity.loss": "log"},
    ],
)
def test_a_run_of_another_experiment_is_never_in_a_cell(make: RunMaker, other: dict[str, Any]) -> None:
    make.train({**AFFINITY, **other}, 0.9)
    assert select(make).group is None


@pytest.mark.parametrize(
    "moot", [{"affinity.gamma": 2}, {"affinity.softmax": "row"}, {"affinity.measure": False}, {"affinity.lambda": 1}]
)
def test_without_l_g_the_form_of_it_does_not_matter(make: RunMaker, moot: dict[str, Any]) -> None:
    make.train({**BASE, **moot}, 0.9)
    selection = select(make)
    assert names(selection) == {"base": ["run001"]}
    assert departures(selection) == ()


@pytest.mark.parametrize("graph", [{"affinity.diagonal": "keep"}, {"affinity.features": "logits"}])
def test_a_base_run_that_measured_m_of_another_graph_is_of_another_cell(make: RunMaker, graph: dict[str, Any]) -> None:
    make.train({**BASE, **graph}, 0.9)
    assert select(make).group is None


@pytest.mark.parametrize("observing", [{"train.test_curve": True}, {"affinity.measure": False}, {"run.device": "cpu"}])
def test_recording_more_is_no_departure(make: RunMaker, observing: dict[str, Any]) -> None:
    make.train({**AFFINITY, **observing}, 0.9)
    assert departures(select(make)) == ()


RELNET = {"data.name": "voc07"}
UNSUPERVISED = {**RELNET, "affinity.loss": "none"}
DETECTION = {
    "frcnn": Cell("frcnn", load_recipe("frcnn", RELNET), 3),
    "relnet": Cell("relnet", load_recipe("relnet", UNSUPERVISED), 3),
    "affinity": Cell("affinity", load_recipe("relnet", RELNET), 3),
}


def select_detection(make: RunMaker) -> SelectedRuns:
    return select_runs(DETECTION, RunIndex(make.root).trained, sound)


def test_detection_runs_stand_in_the_cell_of_their_recipe_and_loss(make: RunMaker) -> None:
    make.finish(RELNET, {}, recipe_name="frcnn", name="a")
    make.finish(UNSUPERVISED, {}, recipe_name="relnet", name="b")
    make.finish(RELNET, {}, recipe_name="relnet", name="c")
    make.finish(RELNET, {}, recipe_name="relpn", name="d")
    selection = select_detection(make)
    assert names(selection) == {"frcnn": ["a"], "relnet": ["b"], "affinity": ["c"]}
    assert departures(selection) == ()


def test_detection_runs_with_a_smaller_backbone_fill_their_cells_under_a_mark(make: RunMaker) -> None:
    for recipe_name in ("frcnn", "relnet"):
        make.finish({**RELNET, "model.arch": "resnet50"}, {}, recipe_name=recipe_name)
    selection = select_detection(make)
    assert names(selection).keys() == {"frcnn", "affinity"}
    assert departures(selection) == ("model.arch = resnet50 instead of resnet101",)


@pytest.mark.parametrize(
    ("field", "fits"),
    [
        ({"affinity.gamma": 5}, True),
        ({"affinity.lambda": 0.1}, True),
        ({"affinity.softmax": "row"}, True),
        ({"affinity.target": "different-instance"}, False),
        ({"affinity.module": 1}, False),
        ({"affinity.heads": "each"}, False),
        ({"affinity.geometry": True}, False),
    ],
)
def test_without_l_g_the_graph_and_target_measured_matter_in_detection_and_the_form_of_l_g_does_not(
    make: RunMaker, field: dict[str, Any], fits: bool
) -> None:
    make.finish({**UNSUPERVISED, **field}, {}, recipe_name="relnet")
    assert (select_detection(make).group is not None) == fits


def test_every_departure_is_put_into_words(make: RunMaker) -> None:
    make.train({**AFFINITY, **SHORT, "train.precision": "bf16", "data.flip": False}, 0.5, data=SUBSET)
    assert set(departures(select(make))) == {
        "data.flip = false instead of true",
        "train.epochs = 2 instead of 200",
        "train.milestones = [] instead of [100, 150]",
        "train.precision = bf16 instead of float32",
        "5,000 of the training images",
    }


def test_an_incomplete_data_set_without_a_limit_is_a_departure(make: RunMaker) -> None:
    make.train(AFFINITY, 0.5, data={"complete": False})
    assert departures(select(make)) == ("a part of the data set",)


def test_a_recipes_label_is_no_departure(make: RunMaker) -> None:
    make.train({**AFFINITY, "name": "mine"}, 0.9)
    assert departures(select(make)) == ()


def test_faithful_runs_come_before_any_number_of_others_and_are_not_mixed_with_them(make: RunMaker) -> None:
    for seed in range(3):
        make.train({**BASE, **SHORT}, 0.5, seed)
        make.train({**AFFINITY, **SHORT}, 0.5, seed)
    make.train(BASE, 0.9, seed=7, name="faithful")
    selection = select(make)
    assert names(selection) == {"base": ["faithful"]}
    footnotes = Footnotes()
    (left_out,) = selection.remarks(footnotes)
    assert left_out == (
        "left out (not comparable with the runs shown ᵃ): run001, run002, run003, run004, run005, run006"
    )
    assert footnotes.lines() == ("ᵃ train.epochs = 2 instead of 200; train.milestones = [] instead of [100, 150]",)


def test_a_group_that_fills_both_rows_comes_before_a_longer_one_that_fills_one(make: RunMaker) -> None:
    make.train({**BASE, "train.epochs": 100}, 0.8)
    make.train({**BASE, **SHORT}, 0.5, name="short-base")
    make.train({**AFFINITY, **SHORT}, 0.5, name="short-affinity")
    assert names(select(make)) == {"base": ["short-base"], "affinity": ["short-affinity"]}


def test_of_groups_that_fill_both_rows_the_longest_is_chosen(make: RunMaker) -> None:
    for epochs, seeds in ((10, 3), (20, 1)):
        for seed in range(seeds):
            make.train({**BASE, "train.epochs": epochs}, 0.5, seed)
            make.train({**AFFINITY, "train.epochs": epochs}, 0.5, seed)
    assert departures(select(make)) == ("train.epochs = 20 instead of 200",)


def test_of_equally_long_groups_the_one_with_most_runs_is_chosen(make: RunMaker) -> None:
    make.train({**BASE, "train.epochs": 10}, 0.5, name="alone")
    for seed in range(2):
        make.train({**BASE, "train.epochs": 10, "train.batch_size": 64}, 0.5, seed)
    assert names(select(make)) == {"base": ["run002", "run003"]}


def test_runs_on_different_data_are_not_mixed(make: RunMaker) -> None:
    make.train(BASE, 0.9, seed=0, name="other", data={"digest": "e" * 64})
    make.train(BASE, 0.9, seed=1, name="one")
    make.train(BASE, 0.9, seed=2, name="two")
    selection = select(make)
    assert names(selection) == {"base": ["one", "two"]}
    (left_out,) = selection.remarks(Footnotes())
    assert left_out.startswith("left out (not comparable with the runs shown: other data, digest eeeeeeee")
    assert left_out.endswith(": other")


def test_of_two_runs_of_a_seed_the_first_started_counts(make: RunMaker) -> None:
    make.train(BASE, 0.9, name="z-first")
    make.train({**BASE, "train.test_curve": True}, 0.99, name="a-second")
    selection = select(make)
    assert names(selection) == {"base": ["z-first"]}
    assert selection.remarks(Footnotes()) == ["left out (repeats z-first): a-second"]


def test_a_run_with_a_fault_is_left_out_and_named(make: RunMaker) -> None:
    make.train(BASE, 0.9, seed=0, name="bad")
    make.train(BASE, 0.9, seed=1, name="good")
    trained = RunIndex(make.root).trained
    selection = select_runs(CELLS, trained, lambda run: "it is bad" if run.folder.name == "bad" else None)
    assert names(selection) == {"base": ["good"]}
    assert selection.remarks(Footnotes()) == ["left out (it is bad): bad"]


def test_many_left_out_runs_are_counted_not_listed(make: RunMaker) -> None:
    for seed in range(9):
        make.train({**BASE, **SHORT}, 0.5, seed)
    make.train(BASE, 0.9)
    assert select(make).remarks(Footnotes())[0].endswith("run006 and 3 more")


def test_runs_stand_beside_others_that_depart_in_a_field_which_they_do_not_have(make: RunMaker) -> None:
    make.finish(RELNET, {}, recipe_name="frcnn", name="no-relations")
    for overrides, name in ((UNSUPERVISED, "base"), (RELNET, "affinity")):
        make.finish({**overrides, "relation.heads": 8}, {}, recipe_name="relnet", name=name)
    selection = select_detection(make)
    assert names(selection) == {"relnet": ["base"], "affinity": ["affinity"], "frcnn": ["no-relations"]}
    assert departures(selection) == ("relation.heads = 8 instead of 16",)
    assert selection.left_out == ()


def test_runs_on_a_part_of_the_data_lend_nothing_and_borrow_nothing(make: RunMaker) -> None:
    make.finish(RELNET, {}, recipe_name="frcnn", name="all-of-it")
    make.finish(RELNET, {}, recipe_name="relnet", name="a-part", data={"complete": False})
    assert names(select_detection(make)) == {"frcnn": ["all-of-it"]}


MIT67 = {"data.name": "mit67", "network.data.name": "coco", "network.affinity.loss": "none"}
UNTRAINED = {**MIT67, "model.features": "scene", "model.pretrained": False}
SCENES = {
    "imagenet": Cell("imagenet", load_recipe("scene", UNTRAINED), 3),
    "rois": Cell("rois", load_recipe("scene", {**MIT67, "model.features": "rois"}), 3),
}


@pytest.mark.parametrize("complete", [True, False])
def test_a_part_of_the_networks_data_set_departs_and_an_untrained_network_has_none(
    make: RunMaker, complete: bool
) -> None:
    data = {"name": "coco", "digest": "1a2b3c4d" * 8, "limit": None, "complete": complete, "official": None}
    network = {"run": "part-a", "digest": "e" * 64, "data": data}
    make.finish(UNTRAINED, {}, recipe_name="scene", name="imagenet", network=None)
    make.finish({**MIT67, "model.features": "rois"}, {}, recipe_name="scene", name="rois", network=network)
    selection = select_runs(SCENES, RunIndex(make.root).trained, sound)
    assert names(selection) == {"imagenet": ["imagenet"], "rois": ["rois"]}
    said = ("network.data.name = coco (a part of it, digest 1a2b3c4d)",)
    assert departures(selection) == (() if complete else said)


def test_an_untrained_network_of_another_backbone_is_a_departure(make: RunMaker) -> None:
    make.finish({**UNTRAINED, "network.model.arch": "resnet50"}, {}, recipe_name="scene")
    selection = select_runs(SCENES, RunIndex(make.root).trained, sound)
    assert departures(selection) == ("network.model.arch = resnet50 instead of resnet101",)


def network(digest: str = "e", data: str = "a") -> dict[str, object]:
    of_data = {"name": "coco", "digest": data * 64, "limit": None, "complete": True, "official": None}
    return {"run": f"part-a-{digest}", "digest": digest * 64, "data": of_data}


ROIS = {**MIT67, "model.features": "rois"}


def test_runs_of_a_cell_stand_on_one_network(make: RunMaker) -> None:
    for seed, digest in enumerate("efe"):
        make.finish(ROIS, {}, seed, recipe_name="scene", name=f"seed{seed}", network=network(digest))
    selection = select_runs(SCENES, RunIndex(make.root).trained, sound)
    assert names(selection) == {"rois": ["seed0", "seed2"]}
    assert [(left.reason, left.names) for left in selection.left_out] == [
        ("builds on another part A than seed0", ("seed1",))
    ]


def test_runs_of_a_cell_with_a_network_a_seed_stand_on_several(make: RunMaker) -> None:
    fields = {**ROIS, "model.network_seed": "run"}
    for seed, digest in enumerate("efg"):
        make.finish(fields, {}, seed, recipe_name="scene", name=f"seed{seed}", network=network(digest))
    cells = {"rois": Cell("mit67/rois", load_recipe("scene", fields), 3)}
    assert names(select_runs(cells, RunIndex(make.root).trained, sound)) == {"rois": ["seed0", "seed1", "seed2"]}
    assert select_runs(SCENES, RunIndex(make.root).trained, sound).group is None


def test_runs_on_networks_of_other_data_do_not_stand_together(make: RunMaker) -> None:
    make.finish(UNTRAINED, {}, recipe_name="scene", name="imagenet", network=None)
    for seed, data in enumerate("abb"):
        make.finish(ROIS, {}, seed, recipe_name="scene", name=f"seed{seed}", network=network("e", data))
    selection = select_runs(SCENES, RunIndex(make.root).trained, sound)
    assert names(selection) == {"imagenet": ["imagenet"], "rois": ["seed1", "seed2"]}
    assert [left.names for left in selection.left_out] == [("seed0",)]


def test_runs_from_other_files_of_weights_do_not_stand_together(make: RunMaker) -> None:
    for seed, weights in enumerate(("1" * 64, "2" * 64, "2" * 64)):
        make.finish(ROIS, {}, seed, recipe_name="scene", name=f"seed{seed}", network=network(), weights=weights)
    selection = select_runs(SCENES, RunIndex(make.root).trained, sound)
    assert names(selection) == {"rois": ["seed1", "seed2"]}


@pytest.mark.parametrize("field", ["network.train.test_curve", "network.affinity.measure"])
def test_what_a_network_records_beside_is_no_departure(make: RunMaker, field: str) -> None:
    recorded = not load_recipe("scene").flat()[field]
    make.finish({**ROIS, field: recorded}, {}, recipe_name="scene", name="rois", network=network())
    selection = select_runs(SCENES, RunIndex(make.root).trained, sound)
    assert names(selection) == {"rois": ["rois"]}
    assert departures(selection) == ()
