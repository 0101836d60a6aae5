"""A detector exported, and used from the file alone."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from affsup_cli.commands.export import export
from affsup_cli.commands.predict import predict
from affsup_cli.options import OPTION_OF_FIELD
from affsup_cli.recipe import Recipe, load_recipe, parse_override, read_recipe
from affsup_cli.runs.checkpoint import save_checkpoint
from affsup_cli.runs.export import open_trained
from affsup_cli.runs.folder import RunFolder
from affsup_cli.tasks.detection.network import build_network
from affsup_cli.views.model_card import train_command
from data_prep.errors import AffsupError, UsageError
from tests.commands.calling import invoke
from tests.small_scenes import small

CLASSES = ["circle", "square", "triangle"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """What a finished run of a detector leaves; its network is as it began."""
    run = RunFolder(tmp_path_factory.mktemp("export") / "runs" / "mine")
    run.path.mkdir(parents=True)
    recipe = small()
    run.write_recipe(recipe)
    data = {"name": "shapes", "digest": "d" * 64, "limit": 24, "complete": False, "official": None, "classes": CLASSES}
    ran_on = {"affsup": "0.1.0", "commit": "c" * 40, "dirty": True, "python": "3.11.7", "torch": "2.15.0"}
    run.write_environment({**ran_on, "device": "cpu", "started": "2026-11-22T10:00:00+00:00", "data": data})
    torch.manual_seed(0)
    model = build_network(recipe, len(CLASSES), pretrained=False)
    save_checkpoint(run.best, {"model": model.state_dict(), "epoch": 1, "score": 0.0})
    metrics = {"train_loss": 1.5, "test_map_50": 0.125, "test_mass": 0.25}
    run.write_result({"kind": "train", "epochs": 1, "best_epoch": 1, "seconds": 5400.0, "metrics": metrics})
    return run


@pytest.fixture
def here(tmp_path: Path, trained: RunFolder, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, where runs/ holds a copy of the run."""
    shutil.copytree(trained.path, tmp_path / "runs" / "mine")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def card(here: Path) -> str:
    return (here / "exports" / "mine.md").read_text()


def test_a_run_is_exported_under_its_name_with_a_card(here: Path) -> None:
    result = invoke(export, "mine")
    assert result.exit_code == 0, result.exception
    assert sorted(path.name for path in (here / "exports").iterdir()) == ["mine.md", "mine.safetensors"]
    assert "exports/mine.safetensors" in result.output
    assert (
        open_trained(here / "exports" / "mine.safetensors").metrics == RunFolder(here / "runs/mine").result()["metrics"]
    )


def test_exported_again_it_is_the_same_bytes(here: Path) -> None:
    written = []
    for _ in range(2):
        assert invoke(export, "runs/mine", "--out", "given/x.safetensors").exit_code == 0
        written.append({path.name: path.read_bytes() for path in (here / "given").iterdir()})
    assert written[0] == written[1]
    assert written[0].keys() == {"x.md", "x.safetensors"}


def test_the_card_says_what_the_model_is_and_came_to(here: Path) -> None:
    invoke(export, "mine")
    run = RunFolder(here / "runs" / "mine")
    for said in (
        "Relation Networks",
        "Affinity Graph Supervision for Visual Recognition",
        "L_G of form `focal`, gamma 2, lambda 0.3",
        open_trained(run.path).digest,
        "| test_map_50 | 12.50% |",
        "| test_mass | 0.2500 |",
        "Of epoch 1 of 1, the last; one run, seed 0",
        "on 24 images",
        "the data set was not complete",
        "d" * 64,
        "3 classes: circle, square, triangle",
        "affsup prepare shapes --limit 24",
        "1 epoch in batches of 4 images",
        "1.5 hours of training",
        "torch: 2.15.0",
        f"commit {'c' * 40}, with changes that were not committed",
        "begun: 2026-11-22T10:00:00",
        "affsup predict mine.safetensors picture.jpg",
        "affsup train scene --pretrained mine.safetensors",
        run.recipe().to_toml(),
    ):
        assert said in card(here), said
    assert "train_loss" not in card(here)


def recipe_of(command: str) -> Recipe:
    """What `affsup train` makes of a command."""
    _, _, name, *rest = shlex.split(command)
    fields = {option: field for field, option in OPTION_OF_FIELD.items()}
    pairs = zip(rest[::2], rest[1::2], strict=True)
    return load_recipe(
        name,
        dict(parse_override(value if option == "--set" else f"{fields[option]}={value}") for option, value in pairs),
    )


def test_the_cards_command_trains_the_same(here: Path) -> None:
    invoke(export, "mine")
    (command,) = re.findall(r"^affsup train relnet.*$", card(here), flags=re.MULTILINE)
    assert recipe_of(command).identity() == RunFolder(here / "runs" / "mine").recipe().identity()


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("minibatch", {"data.name": "cifar100", "affinity.loss": "none", "train.milestones": [3, 5], "seed": 4}),
        ("relnet", {"data.name": "coco", "affinity.target": "category-pair", "affinity.first": "dining table"}),
        ("frcnn", {"model.weights": "a file's.pt", "model.anchor_scales": [1.5]}),
    ],
)
def test_any_shipped_recipe_has_a_command(name: str, fields: dict[str, object]) -> None:
    recipe = load_recipe(name, fields)
    command = train_command(recipe)
    assert command is not None
    assert recipe_of(command) == recipe


def test_a_command_uses_the_options_that_there_are() -> None:
    recipe = load_recipe("relnet", {"data.name": "vg", "affinity.target": "relationship", "affinity.gamma": 3})
    assert train_command(recipe) == "affsup train relnet --dataset vg --gamma 3.0 --target relationship"


def test_a_recipe_of_ones_own_has_none(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(load_recipe("minibatch").to_toml().replace('name = "minibatch"', 'name = "own"'))
    assert train_command(read_recipe(own)) is None
    own.write_text(load_recipe("frcnn").to_toml().replace('name = "frcnn"', 'name = "relnet"'))
    assert train_command(read_recipe(own)) is None


def test_what_no_command_can_say_has_none() -> None:
    plain, there = load_recipe("scene"), {"network.data.name": "voc07"}
    epochs = plain.flat()["network.train.epochs"]
    assert load_recipe("scene", there).flat()["network.train.epochs"] != epochs  # a data set with its own schedule
    assert train_command(load_recipe("scene", there)) is not None
    assert train_command(load_recipe("scene", {**there, "network.train.epochs": epochs})) is None


def test_the_cards_python_reads_the_file(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    invoke(export, "mine")
    (code,) = re.findall(r"```python\n(.*?)```", card(here), flags=re.DOTALL)
    monkeypatch.chdir(here / "exports")
    names: dict[str, Any] = {}
    exec(code, names)
    best = torch.load(here / "runs" / "mine" / "best.pt", weights_only=True)["model"]
    assert names["weights"].keys() == best.keys()
    assert all(torch.equal(names["weights"][key], best[key]) for key in best)
    assert names["known"]["classes"][0] == "circle"


def test_predict_sees_the_same_with_the_file_alone(here: Path) -> None:
    invoke(export, "mine")
    pixels = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(here / "p.png")
    shared = ("p.png", "--score", "0", "--device", "cpu")
    assert invoke(predict, "mine", *shared, "--out", "of-run").exit_code == 0
    shutil.rmtree(here / "runs")
    result = invoke(predict, "exports/mine.safetensors", *shared, "--out", "of-file")
    assert result.exit_code == 0, result.exception
    seen = [json.loads((here / folder / "p.json").read_text()) for folder in ("of-run", "of-file")]
    assert seen[0] == seen[1]
    assert seen[0]["detections"]


def test_predict_names_a_file_that_is_no_model(here: Path) -> None:
    save_file({"w": torch.zeros(1)}, here / "foreign.safetensors")
    (here / "torn.safetensors").write_bytes(b"\x40\0\0\0\0\0\0\0{")
    (here / "p.png").write_bytes(b"")
    for file, said in (
        ("foreign.safetensors", "written by another program"),
        ("torn.safetensors", "damaged"),
        ("absent.safetensors", "no file absent"),
        ("p.png", "expected a run folder, or a .safetensors file"),
        ("absent", "runs/absent is not a run folder"),
    ):
        error = invoke(predict, file, "p.png").exception
        assert isinstance(error, AffsupError)
        assert said in str(error)


def test_predict_computes_as_the_run_was_trained(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("affsup_cli.tasks.detection.prediction.configure_cuda", asked.append)
    (here / "p.png").write_bytes(b"no picture")
    invoke(predict, "mine", "p.png", "--device", "cpu")
    assert asked == [RunFolder(here / "runs" / "mine").recipe().train.precision]


def test_an_unfinished_run_is_not_exported(here: Path) -> None:
    (here / "runs" / "mine" / "result.json").unlink()
    error = invoke(export, "mine").exception
    assert isinstance(error, AffsupError)
    assert (error.exit_code, "is not finished" in str(error)) == (1, True)
    assert not (here / "exports").exists()


@pytest.mark.parametrize(
    ("out", "foreign", "said"),
    [
        ("x.pt", None, "ends in .safetensors"),
        ("x.safetensors", "x.safetensors", "x.safetensors is no file that `affsup export` wrote"),
        ("x.safetensors", "x.md", "x.md is no model card of affsup"),
    ],
)
def test_nothing_of_anyone_elses_is_overwritten(here: Path, out: str, foreign: str | None, said: str) -> None:
    if foreign:
        (here / foreign).write_text("mine")
    before = sorted(path.name for path in here.iterdir())
    error = invoke(export, "mine", "--out", out).exception
    assert isinstance(error, UsageError)
    assert said in str(error)
    assert sorted(path.name for path in here.iterdir()) == before
    assert foreign is None or (here / foreign).read_text() == "mine"


WHOLE = {"kind": "train", "epochs": 1, "best_epoch": 1, "metrics": {}}


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ({"kind": "train"}, "train.epochs: field required"),
        ({**WHOLE, "metrics": {"test_mass": "much"}}, "train.metrics.test_mass: input should be a valid number"),
        ({**WHOLE, "metrics": {"test_mass": None}}, "train.metrics.test_mass: input should be a valid number"),
        ({**WHOLE, "metrics": []}, "train.metrics: input should be a valid dictionary"),
        ({**WHOLE, "seconds": "long"}, "train.seconds: input should be a valid number"),
        ({"kind": "other"}, "input tag 'other'"),
    ],
)
def test_a_damaged_result_is_named_before_anything_is_written(here: Path, result: dict[str, Any], said: str) -> None:
    (here / "runs" / "mine" / "result.json").write_text(json.dumps(result))
    error = invoke(export, "mine").exception
    assert isinstance(error, AffsupError)
    assert str(error).startswith("runs/mine/result.json is damaged: ")
    assert said in str(error)
    assert not (here / "exports").exists()


def test_weights_that_do_not_fit_are_named_with_the_cure(here: Path) -> None:
    Image.new("RGB", (60, 90)).save(here / "p.png")
    best = here / "runs" / "mine" / "best.pt"
    state = torch.load(best, weights_only=True)["model"]
    name = list(state)[3]
    save_checkpoint(best, {"model": state | {name: torch.zeros(1, 2)}})
    assert invoke(export, "mine", "--out", "x.safetensors").exit_code == 0
    for model, cure in (
        ("x.safetensors", "export the run again"),
        ("mine", "move runs/mine away and run the command again"),
    ):
        error = invoke(predict, model, "p.png", "--device", "cpu").exception
        assert isinstance(error, AffsupError)
        assert f"size mismatch for {name}: " in str(error)
        assert "torch.Size([1, 2])" in str(error)
        assert cure in str(error)


def test_a_place_that_cannot_be_written_to_is_named(here: Path) -> None:
    (here / "file").write_text("mine")
    for out, said in (
        ("/proc/x.safetensors", "cannot write /proc/x.safetensors: "),
        ("file/x.safetensors", "cannot write file/x.safetensors: file is not a folder"),
    ):
        error = invoke(export, "mine", "--out", out).exception
        assert isinstance(error, AffsupError)
        assert said in str(error)
        assert "--out" in str(error)
        assert ".tmp" not in str(error)


def test_a_name_stands_in_the_card_as_it_is(here: Path) -> None:
    (here / "runs" / "mine").rename(here / "runs" / "<img src=x>&`a`\n# b\x1b[31m")
    assert invoke(export, "<img src=x>&`a`\n# b\x1b[31m", "--out", "x.safetensors").exit_code == 0
    assert "\n# &lt;img src=x>&'a' # b\\\\x1b[31m\n" in (here / "x.md").read_text()


def test_a_card_says_whether_the_loss_was_there(here: Path) -> None:
    invoke(export, "mine")
    assert "or not" not in card(here).partition("## Results")[0]
