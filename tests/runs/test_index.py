from __future__ import annotations

import json
from pathlib import Path

import pytest

from affsup_cli.recipe import load_recipe
from affsup_cli.runs.index import RunIndex
from data_prep.errors import AffsupError, UsageError
from tests.reporting.fake_runs import AFFINITY, BASE, RunMaker


def test_a_run_is_found_by_its_identity(make: RunMaker) -> None:
    make.train(BASE, 0.9, seed=0)
    wanted = make.train(BASE, 0.9, seed=1)
    found = RunIndex(make.root).find(load_recipe("minibatch", {**BASE, "seed": 1}))
    assert found is not None
    assert found.path == wanted.path


def test_where_and_how_it_ran_is_not_part_of_a_runs_identity(make: RunMaker) -> None:
    make.train({**BASE, "run.device": "cuda:0"}, 0.9)
    assert RunIndex(make.root).find(load_recipe("minibatch", {**BASE, "run.device": "cpu"})) is not None


def test_a_run_that_differs_in_one_field_is_not_found(make: RunMaker) -> None:
    make.train({**BASE, "train.epochs": 199}, 0.9)
    assert RunIndex(make.root).find(load_recipe("minibatch", BASE)) is None


def test_an_unfinished_run_is_found(make: RunMaker) -> None:
    started = make.start(BASE)
    found = RunIndex(make.root).find(load_recipe("minibatch", BASE))
    assert found is not None
    assert (found.path, found.finished) == (started.path, False)


def test_of_two_runs_of_one_identity_the_finished_one_is_found(make: RunMaker) -> None:
    make.start(BASE, name="a")
    make.train(BASE, 0.9, name="b")
    found = RunIndex(make.root).find(load_recipe("minibatch", BASE))
    assert found is not None
    assert found.name == "b"


def test_a_cost_comparison_and_a_training_run_of_one_recipe_are_told_apart(make: RunMaker) -> None:
    make.measure(AFFINITY, [1.0], [1.0])
    index, recipe = RunIndex(make.root), load_recipe("minibatch", AFFINITY)
    assert index.find(recipe) is None
    assert index.find(recipe, "cost") is not None


def test_a_scene_run_on_a_network_of_other_data_is_not_found(make: RunMaker) -> None:
    data = {"name": "coco", "digest": "a" * 64, "limit": None, "complete": True, "official": None}
    run = make.start({}, recipe_name="scene", network={"run": "part-a", "digest": "e" * 64, "data": data})
    index, recipe = RunIndex(make.root), load_recipe("scene")
    found = [index.find(recipe, network_data=digest) for digest in (None, "a" * 64, "b" * 64)]
    assert [folder and folder.path for folder in found] == [run.path, run.path, None]


def test_no_folder_is_no_runs(tmp_path: Path) -> None:
    index = RunIndex(tmp_path / "nowhere")
    assert (index.trained, index.measured, index.unfinished, index.warnings) == ([], [], [], [])


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("recipe.toml", "task = ", "recipe.toml is not valid TOML"),
        ("recipe.toml", 'task = "minibatch"\n', "missing"),
        ("environment.json", "{", "environment.json is not valid JSON"),
        ("environment.json", "{}", "the key 'data'"),
        ("result.json", "[]", "result.json is damaged"),
        ("result.json", '{"kind": "pie"}', "pie"),
    ],
)
def test_a_damaged_run_is_left_out_with_a_warning_that_names_it(
    make: RunMaker, file: str, text: str, said: str
) -> None:
    damaged = make.train(BASE, 0.9, seed=0, name="damaged")
    make.train(BASE, 0.9, seed=1)
    (damaged.path / file).write_text(text)
    index = RunIndex(make.root)
    assert [run.recipe.seed for run in index.trained] == [1]
    (warning,) = index.warnings
    assert "damaged" in warning
    assert said in warning


def test_a_cost_comparison_with_unequal_rounds_is_left_out(make: RunMaker) -> None:
    make.measure(AFFINITY, [1.0, 1.1], [1.0])
    index = RunIndex(make.root)
    assert index.measured == []
    assert "different numbers of rounds" in index.warnings[0]


def test_an_unfinished_run_without_its_environment_is_left_out_and_named(make: RunMaker) -> None:
    run = make.start(BASE)
    (run.path / "environment.json").unlink()
    index = RunIndex(make.root)
    assert index.unfinished == []
    assert "environment.json is missing" in index.warnings[0]
    assert run.name in index.warnings[0]


def test_unknown_fields_in_a_runs_files_do_not_matter(make: RunMaker) -> None:
    run = make.train(BASE, 0.9)
    content = run.result()
    run.write_result(json.loads(json.dumps({**content, "later": 1})))
    assert len(RunIndex(make.root).trained) == 1


def test_a_run_on_other_data_is_not_the_run_that_is_asked_for(make: RunMaker) -> None:
    run = make.start(BASE)
    digest = run.environment()["data"]["digest"]
    index, recipe = RunIndex(make.root), load_recipe("minibatch", BASE)
    for data, found in ((None, True), (digest, True), ("f" * 64, False)):
        assert (index.find(recipe, data=data) is not None) == found


@pytest.mark.parametrize(
    ("recorded", "asked", "found"), [(True, False, True), (True, True, True), (False, True, False)]
)
def test_a_run_that_records_more_than_is_asked_for_serves(
    make: RunMaker, recorded: bool, asked: bool, found: bool
) -> None:
    make.train({**BASE, "train.test_curve": recorded}, 0.9)
    wanted = load_recipe("minibatch", {**BASE, "train.test_curve": asked})
    assert (RunIndex(make.root).find(wanted) is not None) == found


def spoil(path: Path, how: str) -> None:
    """Put something odd in the place of a file."""
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "own loop":
        path.symlink_to(path)
    else:
        path.write_text({"deep": "[" * 100_000, "a = deep": "a = " + "[" * 100_000, "long": "9" * 5000}[how])


ODD = [
    ("environment.json", "folder"),
    ("environment.json", "deep"),
    ("environment.json", "long"),
    ("environment.json", "own loop"),
    ("result.json", "deep"),
    ("recipe.toml", "a = deep"),
]


@pytest.mark.parametrize(("file", "how"), ODD)
def test_an_odd_file_leaves_its_run_out_and_no_other(make: RunMaker, file: str, how: str) -> None:
    spoil(make.train(BASE, 0.9, name="odd").path / file, how)
    make.train(BASE, 0.9, seed=1, name="whole")
    index = RunIndex(make.root)
    assert [run.folder.name for run in index.trained] == ["whole"]
    assert f"run odd is left out: {make.root / 'odd' / file} " in index.warnings[0]


def test_a_folder_that_may_not_be_entered_is_left_out_and_named(make: RunMaker, closed: Path) -> None:
    make.train(BASE, 0.9, seed=1, name="whole")
    index = RunIndex(make.root)
    assert [run.folder.name for run in index.trained] == ["whole"]
    (warning,) = index.warnings
    assert f"run closed is left out: {closed / 'recipe.toml'} cannot be read: Permission denied. `chmod" in warning


def test_an_odd_line_of_metrics_is_named(make: RunMaker) -> None:
    run = make.start(BASE)
    (run.path / "metrics.jsonl").write_text("[" * 100_000 + "\n")
    with pytest.raises(AffsupError, match=r"metrics\.jsonl, line 1 is not valid JSON"):
        run.metrics()


def test_a_damaged_result_is_named_by_its_field(make: RunMaker) -> None:
    run = make.train(BASE, 0.9)
    (run.path / "result.json").write_text('{"kind": "train", "best_epoch": 1, "metrics": {}}')
    assert RunIndex(make.root).warnings[0].endswith("result.json is damaged: train.epochs: field required")


def test_a_run_folder_is_not_a_folder_of_runs(make: RunMaker) -> None:
    run = make.train(BASE, 0.9)
    with pytest.raises(UsageError, match=r"is a run folder: --runs is the folder above it, .*/runs$"):
        RunIndex(run.path)
