from __future__ import annotations

from pathlib import Path

import pytest

from affsup_cli.recipe import (
    RECIPE_OF_TASK,
    MinibatchRecipe,
    differences,
    field_help,
    load_recipe,
    parse_override,
    read_recipe,
    recipe_names,
)
from data_prep.errors import AffsupError, UsageError


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_loads_and_is_of_a_known_task(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert type(recipe) is RECIPE_OF_TASK[recipe.task]


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_cifar_schedule_is_that_of_section_6_2(dataset: str) -> None:
    flat = load_recipe("minibatch", {"data.name": dataset}).flat()
    expected = {
        "train.epochs": 200,
        "train.batch_size": 128,
        "train.learning_rate": 0.1,
        "train.milestones": [100, 150],
        "train.momentum": 0.9,
        "train.weight_decay": 5e-4,
        "data.pad": 4,
        "data.flip": True,
        "affinity.loss": "focal",
        "affinity.gamma": 4,
        "affinity.lambda": 0.1,
        "train.precision": "float32",
        "train.compile": False,
    }
    assert {key: flat[key] for key in expected} == expected


def test_tiny_imagenet_schedule_is_that_of_section_6_2() -> None:
    flat = load_recipe("minibatch", {"data.name": "tiny-imagenet"}).flat()
    expected = {
        "train.epochs": 90,
        "train.milestones": [30, 60],
        "data.pad": 0,
        "data.flip": True,
        "model.arch": "resnet18",
    }
    assert {key: flat[key] for key in expected} == expected


def test_overrides_win_over_the_defaults_of_a_data_set() -> None:
    recipe = load_recipe("minibatch", {"data.name": "tiny-imagenet", "train.epochs": 3, "model.arch": "resnet50"})
    assert recipe.train.epochs == 3
    assert isinstance(recipe, MinibatchRecipe)
    assert recipe.model.arch == "resnet50"


def test_a_stored_recipe_reads_back_equal(tmp_path: Path) -> None:
    recipe = load_recipe("minibatch", {"affinity.gamma": 2.5, "train.milestones": [3, 5]})
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.to_toml())
    assert read_recipe(path) == recipe


def test_a_recipe_file_of_ones_own_works_by_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(load_recipe("minibatch").to_toml().replace('name = "minibatch"', 'name = "mine"'))
    assert load_recipe(str(path), {"seed": 3}).identity() == load_recipe("minibatch", {"seed": 3}).identity() | {
        "name": "mine"
    }


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"train.epohcs": 3}, "no field 'train.epohcs' (did you mean 'train.epochs'?)"),
        ({"gamma": 3}, "did you mean 'affinity.gamma'?"),
        ({"train.epochs": "many"}, "train.epochs = 'many': input should be a valid integer"),
        ({"train.epochs": 2.0}, "train.epochs = 2.0"),
        ({"train.epochs": 0}, "train.epochs = 0"),
        ({"affinity.loss": "hinge"}, "affinity.loss = 'hinge': input should be 'none', 'focal'"),
        ({"affinity.gamma": 0.5}, "must be 0 or at least 1"),
        ({"affinity.gamma": -1.0}, "must be 0 or at least 1"),
        ({"affinity.gamma": float("nan")}, "affinity.gamma = nan"),
        ({"affinity.gamma": float("inf")}, "affinity.gamma = inf"),
        ({"affinity.lambda": -0.1}, "affinity.lambda = -0.1"),
        ({"train": 3}, "train = 3"),
        ({"train.epochs.first": 3}, "'epochs' is a value, not a section"),
        ({"seed": True}, "seed = True"),
        ({"seed": 2**64}, "seed = 18446744073709551616"),
        ({"data.name": [1]}, "data.name = [1]"),
        ({"name": "../elsewhere"}, "name = '../elsewhere'"),
    ],
)
def test_what_is_wrong_with_a_field_is_said_with_its_name(overrides: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError) as raised:
        load_recipe("minibatch", overrides)
    assert said in str(raised.value)


@pytest.mark.parametrize("gamma", [0, 1, 1.5, 4])
def test_gamma_may_be_zero_or_at_least_one(gamma: float) -> None:
    assert load_recipe("minibatch", {"affinity.gamma": gamma}).flat()["affinity.gamma"] == gamma


def test_an_unknown_recipe_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="did you mean 'minibatch'"):
        load_recipe("minibach")


@pytest.mark.parametrize(
    ("line", "said"),
    [("datasets = 3", "datasets = 3"), ("[datasets]\ndigits = 3", "datasets.digits = 3"), ("data = 3", "data = 3")],
)
def test_a_value_where_a_table_belongs_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'task = "minibatch"\n{line}\n')
    with pytest.raises(UsageError, match=f"{said}: expected a table"):
        load_recipe(str(path), {} if line == "data = 3" else {"data.name": "digits"})


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(load_recipe("minibatch").to_toml(), encoding="utf-8-sig")
    assert load_recipe(str(path)) == load_recipe("minibatch")


def test_a_broken_recipe_file_is_named_with_the_place(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("seed = \n")
    with pytest.raises(AffsupError, match=r"broken\.toml is not valid TOML: .*line 1"):
        load_recipe(str(path))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train.epochs=2", ("train.epochs", 2)),
        ("train.milestones=[3, 5]", ("train.milestones", [3, 5])),
        ("train.compile=true", ("train.compile", True)),
        ("data.name=cifar10", ("data.name", "cifar10")),
        ('data.name="cifar10"', ("data.name", "cifar10")),
        ("affinity.lambda=1e-2", ("affinity.lambda", 0.01)),
    ],
)
def test_set_reads_values_as_toml_or_plain_text(text: str, expected: tuple[str, object]) -> None:
    assert parse_override(text) == expected


@pytest.mark.parametrize("text", ["train.epochs", "=3", "", "train.epochs=1\nseed=3"])
def test_set_without_key_or_value_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="key=value"):
        parse_override(text)


def test_identity_leaves_out_where_the_run_executes_and_nothing_else() -> None:
    recipe = load_recipe("minibatch")
    elsewhere = load_recipe("minibatch", {"run.device": "cuda:1", "run.tensorboard": True, "run.checkpoint_seconds": 5})
    assert recipe.digest() == elsewhere.digest()
    for key, value in {
        "seed": 1,
        "train.epochs": 7,
        "affinity.gamma": 2,
        "data.flip": True,
        "train.precision": "bf16",
    }.items():
        assert load_recipe("minibatch", {key: value}).digest() != recipe.digest(), key


@pytest.mark.parametrize(("line", "other"), [("cache_gb = 2.0\n", 0), ("channels_last = true\n", False)])
def test_memory_is_no_part_of_a_detectors_identity_and_older_runs_read_without_it(
    tmp_path: Path, line: str, other: object
) -> None:
    recipe = load_recipe("relnet")
    assert load_recipe("relnet", {f"run.{line.split()[0]}": other}).digest() == recipe.digest()
    assert line in recipe.to_toml()
    kept = tmp_path / "recipe.toml"
    kept.write_text(recipe.to_toml().replace(line, ""))
    assert read_recipe(kept) == recipe


@pytest.mark.parametrize("name", ["minibatch", "frcnn", "relnet", "relpn"])
def test_older_runs_were_not_compiled_unless_they_say_so(tmp_path: Path, name: str) -> None:
    recipe = load_recipe(name)
    kept = tmp_path / "recipe.toml"
    kept.write_text(recipe.to_toml().replace("compile = false\n", ""))
    assert "compile" not in kept.read_text()
    assert read_recipe(kept) == recipe
    assert load_recipe(name, {"train.compile": True}).digest() != recipe.digest()


def test_differences_names_fields_with_both_values() -> None:
    first, second = load_recipe("minibatch"), load_recipe("minibatch", {"affinity.gamma": 2, "seed": 4})
    assert differences(first.flat(), second.flat()) == {"seed": (0, 4), "affinity.gamma": (4, 2)}


def test_every_field_can_be_set_by_the_key_that_show_prints() -> None:
    recipe = load_recipe("minibatch")
    assert set(field_help(type(recipe))) == set(recipe.flat())
    for key, value in recipe.flat().items():
        assert load_recipe("minibatch", {key: value}) == recipe, key


def test_the_network_of_a_scene_recipe_is_the_whole_recipe_of_the_run_that_it_builds_on() -> None:
    on_mit67 = load_recipe("scene", {"data.name": "mit67", "network.affinity.loss": "none", "network.train.epochs": 3})
    same = load_recipe("relnet", {"data.name": "coco", "affinity.loss": "none", "train.epochs": 3})
    assert on_mit67.prerequisite() == same
    generated = load_recipe("scene", {"data.name": "shape-scenes"})
    assert generated.prerequisite() == load_recipe("relnet", {"data.name": "shapes"})
    assert load_recipe("scene", {"model.features": "scene", "model.pretrained": False}).prerequisite() is None
    assert load_recipe("relnet").prerequisite() is None


def test_a_scene_recipe_can_build_on_the_network_of_its_own_seed() -> None:
    one = load_recipe("scene", {"seed": 3})
    assert (one.prerequisite() or one).seed == 0
    each = load_recipe("scene", {"seed": 3, "model.network_seed": "run"})
    assert each.prerequisite() == load_recipe("relnet", {"data.name": "shapes", "seed": 3})


def test_a_scene_recipe_takes_a_whole_network_in_place_of_its_own(tmp_path: Path) -> None:
    given = load_recipe("relnet", {"data.name": "voc07", "affinity.gamma": 5})
    recipe = load_recipe("scene", {"network": given.model_dump(mode="json", by_alias=True)})
    assert recipe.prerequisite() == given
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.to_toml())
    assert read_recipe(path) == load_recipe(str(path)) == recipe


def test_where_a_run_runs_is_no_part_of_what_it_is_in_a_network_either() -> None:
    recipe = load_recipe("scene", {"run.device": "cpu", "network.run.device": "cuda"})
    assert recipe.identity() == load_recipe("scene").identity()
    assert not [key for key in recipe.identity() if "device" in key]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"affinity.loss": "none"}, "did you mean 'network.affinity'?"),
        ({"network.affinity.gama": 2}, "did you mean 'network.affinity.gamma'?"),
        ({"network.extends": "relnt"}, "extends = 'relnt' (did you mean 'relnet'?)"),
        ({"network.extends": "frcnn"}, "network.task = 'frcnn': input should be 'relnet'"),
        ({"network": 3}, "network = 3: expected a table"),
        ({"train.select": "best"}, "expected 'last'"),
    ],
)
def test_what_is_wrong_with_a_scene_recipe_is_said(overrides: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError) as raised:
        load_recipe("scene", overrides)
    assert said in str(raised.value)


def test_what_part_a_is_tells_cells_of_scenes_apart_but_not_how_long_it_was_trained() -> None:
    defines = type(load_recipe("scene")).defines_cell
    assert all(map(defines, ("model.features", "model.pretrained", "network.data.name", "network.affinity.loss")))
    assert not any(map(defines, ("network.train.epochs", "network.model.arch", "network.affinity.lambda")))


def test_the_schedule_and_the_smoothing_of_a_classifier_tell_cells_apart() -> None:
    defines = type(load_recipe("minibatch")).defines_cell
    assert all(map(defines, ("train.schedule", "train.label_smoothing", "affinity.row_average")))
    assert not defines("train.weight_decay")
