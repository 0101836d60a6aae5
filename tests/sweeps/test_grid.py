from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from affsup_cli.app import app
from affsup_cli.reporting.report import build_report
from affsup_cli.reporting.select.experiments import experiments, spec_cells
from affsup_cli.reporting.select.spec import GridSpec, read_spec
from affsup_cli.runs.index import RunIndex
from affsup_cli.sweeps.grid import MAX_CELLS, Axis, grid_table, parse_axis, write_grid
from data_prep.errors import UsageError
from tests.reporting.fake_runs import RunMaker

AXES = [parse_axis("affinity.gamma=0,2,4"), parse_axis("affinity.lambda=0.01,0.1")]


def call(*arguments: str) -> tuple[str, BaseException | None]:
    done = CliRunner().invoke(app, arguments)
    return done.output, done.exception


def test_values_are_read_as_those_of_set() -> None:
    assert parse_axis("affinity.gamma=0,2.5") == Axis("affinity.gamma", (0, 2.5))
    assert parse_axis("model.arch = resnet20, resnet56").values == ("resnet20", "resnet56")
    assert parse_axis("train.milestones=[1,2],[3]").values == ([1, 2], [3])


@pytest.mark.parametrize("text", ["affinity.gamma", "affinity.gamma=", "=1,2", "a=1,,2", "a=1,1"])
def test_an_axis_without_values_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--grid"):
        parse_axis(text)


def test_a_grid_is_a_table_of_all_combinations(tmp_path: Path) -> None:
    spec = read_spec(write_grid(grid_table("minibatch", AXES, 3, {"train.epochs": 2}), tmp_path))
    assert isinstance(spec, GridSpec)
    cells = spec_cells(spec)
    assert [cell.key for cell in cells][:2] == ["grid/lambda-0.01/gamma-0", "grid/lambda-0.01/gamma-2"]
    assert {(cell.recipe.flat()["affinity.gamma"], cell.recipe.flat()["affinity.lambda"]) for cell in cells} == {
        (gamma, weight) for gamma in (0, 2, 4) for weight in (0.01, 0.1)
    }
    assert all(cell.recipe.train.epochs == 2 for cell in cells)
    assert len(experiments(spec)) == 18


def test_one_field_is_a_column_and_a_third_makes_blocks(tmp_path: Path) -> None:
    one = read_spec(write_grid(grid_table("minibatch", AXES[:1], 1, {}), tmp_path))
    assert [cell.key for cell in spec_cells(one)] == ["grid/gamma-0", "grid/gamma-2", "grid/gamma-4"]
    third = parse_axis("affinity.softmax=matrix,row")
    three = read_spec(write_grid(grid_table("minibatch", [*AXES, third], 1, {}), tmp_path))
    assert isinstance(three, GridSpec)
    assert [block.key for block in three.blocks] == ["softmax-matrix", "softmax-row"]
    assert len(spec_cells(three)) == 12
    assert len(list((tmp_path / "grids").iterdir())) == 2


@pytest.mark.parametrize(
    ("axes", "extra", "said"),
    [
        (["affinity.gamma=0,0.5"], {}, "gamma"),
        (["affinity.gama=0,1"], {}, "no field 'affinity.gama'"),
        (["affinity.gamma=0", "affinity.gamma=1"], {}, "each field once"),
        (["affinity.gamma=0"], {"affinity.gamma": 1}, "each field once"),
        (["seed=0,1"], {}, "neither seed"),
        (
            [
                "train.epochs=" + ",".join(map(str, range(1, 300))),
                "train.batch_size=" + ",".join(map(str, range(2, 300))),
            ],
            {},
            "at most",
        ),
    ],
)
def test_a_grid_that_cannot_be_run_is_refused(axes: list[str], extra: dict[str, float], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        grid_table("minibatch", [parse_axis(text) for text in axes], 1, extra)


@pytest.mark.parametrize("sizes", [(MAX_CELLS,), (2, MAX_CELLS // 2), (1, 1, MAX_CELLS)])
def test_the_largest_grid_is_a_table_that_can_be_read(sizes: tuple[int, ...], tmp_path: Path) -> None:
    fields = ("affinity.lambda", "train.learning_rate", "train.weight_decay")
    axes = [
        Axis(field, tuple(0.001 + place / 10**6 for place in range(size)))
        for field, size in zip(fields, sizes, strict=False)
    ]
    spec = read_spec(write_grid(grid_table("minibatch", axes, 3, {"train.epochs": 2}), tmp_path))
    assert isinstance(spec, GridSpec)
    assert len(spec_cells(spec)) == MAX_CELLS
    more = [*axes[:-1], Axis(axes[-1].field, (*axes[-1].values, 0.5))]
    with pytest.raises(UsageError, match="expected at most 400; `affsup search`"):
        grid_table("minibatch", more, 3, {})


def test_a_grid_of_runs_is_reported_with_a_heat_map(make: RunMaker, tmp_path: Path) -> None:
    table = write_grid(grid_table("minibatch", AXES, 1, {}), make.root)
    for gamma in (0.0, 2.0, 4.0):
        for weight in (0.01, 0.1):
            make.train({"affinity.gamma": gamma, "affinity.lambda": weight}, 0.5 + gamma / 10 + weight)
    report = build_report(str(table), RunIndex(make.root), tmp_path / "out")
    assert {path.name.removeprefix(table.stem) for path in report.paths} >= {".md", ".csv", ".png"}
    assert (tmp_path / "out" / f"{table.stem}.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "out" / f"{table.stem}.md").read_text()
    assert "91.00" in text
    assert "gamma = 4" in text
    assert "lambda = 0.1" in text


def test_a_grid_is_swept_from_the_command_line(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    places = ["--data", str(digits), "--runs", str(tmp_path / "runs"), "--device", "cpu"]
    short = ["--set", "train.epochs=1", "--set", "data.train_images=64", "--set", "train.batch_size=32"]
    output, error = call("sweep", "minibatch", "--grid", "affinity.gamma=0,2", *short, *places)
    assert error is None, output
    assert "2 runs, 2 to do" in output
    (table,) = (tmp_path / "runs" / "grids").iterdir()
    assert f"`affsup report {table}" in output
    assert (tmp_path / "reports" / f"{table.stem}.png").exists()
    output, error = call("sweep", str(table), "--dry-run", *places)
    assert error is None, output
    assert "2 runs, 0 to do" in output
    _, error = call("sweep", "minibatch", "relnet", "--grid", "affinity.gamma=0,2", *places)
    assert isinstance(error, UsageError)


OWN = """
kind = "grid"
title = "Mine"
caption = "Mine."
recipe = "{recipe}"
metric = "test_accuracy"
compare = "rows"
baseline = "base"
treatments = []

[rows.base]
label = "base"
set = {{ "affinity.loss" = "none" }}

[rows.gamma2]
label = "gamma 2"
set = {{ "affinity.gamma" = 2.0 }}

[[blocks]]
key = "digits"
label = "digits"
seeds = 1
columns = [{{ key = "value", label = "value" }}]
"""


def test_a_file_stands_wherever_the_name_of_a_recipe_or_table_does(
    make: RunMaker, digits: Path, tmp_path: Path
) -> None:
    recipe, table = tmp_path / "my-recipe.toml", tmp_path / "my-table.toml"
    recipe.write_text('extends = "minibatch"\ntrain.epochs = 1\n')
    table.write_text(OWN.format(recipe=recipe))
    places = ["--data", str(digits), "--runs", str(make.root)]
    output, error = call("validate", str(recipe), str(table))
    assert error is None, output
    assert "recipe of minibatch on digits" in output
    assert "grid, 2 cells, 2 runs" in output
    output, error = call("sweep", str(table), "--dry-run", "--device", "cpu", *places)
    assert error is None, output
    assert "digits/gamma2" in output
    for path in (table, recipe):
        output, error = call("show", str(path), *places)
        assert error is None, output
    output, error = call("report", str(table), "--runs", str(make.root), "--out", str(tmp_path / "out"))
    assert error is None, output
    assert (tmp_path / "out" / "my-table.csv").exists()
    run = make.train({"affinity.gamma": 2.0}, 0.5, name="mine")
    output, error = call("show", str(run.path / "recipe.toml"), *places)
    assert error is None, output
    assert "mine" in output


def test_validate_names_each_mistake(tmp_path: Path) -> None:
    bad, missing = tmp_path / "bad.toml", tmp_path / "missing.toml"
    bad.write_text('extends = "minibatch"\ntrain.epoch = 1\n')
    table = tmp_path / "table.toml"
    table.write_text(OWN.format(recipe="minibatch").replace("affinity.gamma", "affinity.gama"))
    output, error = call("validate", str(bad), str(missing), str(table))
    assert str(error) == "3 of 3 files invalid"
    assert "no field 'train.epoch'" in output
    assert "missing.toml cannot be read" in output
    assert "no field 'affinity.gama'" in output


def test_only_may_be_given_several_times(digits: Path, tmp_path: Path) -> None:
    places = ["--data", str(digits), "--runs", str(tmp_path), "--device", "cpu", "--dry-run"]
    output, error = call("sweep", "digits-table3", "--only", "base", "--only", "affinity", *places)
    assert error is None, output
    everything, _ = call("sweep", "digits-table3", *places)
    assert output == everything
    _, error = call("sweep", "digits-table3", "--only", "base", "--only", "nothing", *places)
    assert isinstance(error, UsageError)
    assert "matches 'nothing'" in str(error)
