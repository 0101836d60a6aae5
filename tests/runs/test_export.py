from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file

from affsup_cli.recipe import load_recipe
from affsup_cli.runs.checkpoint import save_checkpoint
from affsup_cli.runs.digest import without_digest
from affsup_cli.runs.export import export_trained, open_trained
from affsup_cli.runs.folder import RunFolder
from data_prep.errors import AffsupError, UsageError

CPU = torch.device("cpu")
DATA = {"name": "digits", "digest": "d" * 64, "limit": None, "complete": True, "official": None, "classes": ["a", "b"]}


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    return dict(model.to(memory_format=torch.channels_last).state_dict())


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A finished run of a network of two layers."""
    folder = RunFolder(tmp_path / "runs" / "mine")
    folder.path.mkdir(parents=True)
    folder.write_recipe(load_recipe("minibatch", {"affinity.gamma": 2.0}))
    folder.write_environment({"torch": "2.15.0", "data": DATA})
    save_checkpoint(folder.best, {"model": weights(), "epoch": 3, "score": 0.5})
    folder.write_result({"kind": "train", "epochs": 3, "best_epoch": 3, "metrics": {"test_accuracy": 0.75}})
    return folder


@pytest.fixture
def export(run: RunFolder) -> Path:
    path = run.path.parent.parent / "out" / "mine.safetensors"
    export_trained(open_trained(run.path), path)
    return path


def known(path: Path) -> dict[str, Any]:
    """What the file says of itself, read from its bytes as the safetensors format is described."""
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return dict(json.loads(header["__metadata__"]["affsup"]))


@pytest.mark.parametrize("exported", [False, True])
def test_a_run_and_its_export_tell_the_same(run: RunFolder, export: Path, exported: bool) -> None:
    trained = open_trained(export if exported else run.path)
    assert trained.name == "mine"
    assert trained.recipe == run.recipe()
    assert trained.environment == run.environment()
    assert trained.metrics == {"test_accuracy": 0.75}
    assert trained.classes == ["a", "b"]
    state = trained.state(CPU)
    assert state.keys() == weights().keys()
    assert all(torch.equal(state[name], value) for name, value in weights().items())


def test_the_file_is_one_that_other_programs_read(export: Path) -> None:
    arrays = load_file(export)
    assert all(np.array_equal(arrays[name], value.numpy()) for name, value in weights().items())
    assert known(export)["classes"] == ["a", "b"]
    assert known(export)["metrics"] == {"test_accuracy": 0.75}
    assert "gamma = 2.0" in known(export)["recipe"]


def test_the_same_run_exports_to_the_same_bytes(run: RunFolder, export: Path) -> None:
    again = [export.with_name(f"{number}.safetensors") for number in range(4)]
    for path in again:
        export_trained(open_trained(run.path), path)
    assert {path.read_bytes() for path in again} == {export.read_bytes()}


def test_the_digest_is_of_names_types_shapes_and_contents(run: RunFolder, export: Path) -> None:
    expected = hashlib.sha256()
    for name, value in sorted(weights().items()):
        expected.update(f"{name} {value.dtype} {list(value.shape)}\n".encode() + value.numpy().tobytes("C"))
    assert open_trained(run.path).digest == expected.hexdigest()
    assert open_trained(export).digest == expected.hexdigest()


def test_an_unfinished_run_has_a_model_and_no_numbers(run: RunFolder) -> None:
    (run.path / "result.json").unlink()
    trained = open_trained(run.path)
    assert trained.metrics == {}
    assert trained.state(CPU).keys() == weights().keys()
    run.best.unlink()
    with pytest.raises(AffsupError, match=r"best\.pt is missing: no epoch is finished, or it was deleted"):
        open_trained(run.path)


def test_a_cost_comparison_is_no_model(run: RunFolder) -> None:
    measured = {"seconds_per_epoch": [1.0], "peak_megabytes": None}
    run.write_result({"kind": "cost", "baseline": measured, "treatment": measured})
    with pytest.raises(UsageError, match="compares costs"):
        open_trained(run.path)


def test_what_is_no_run_and_no_export_is_refused(run: RunFolder, tmp_path: Path) -> None:
    save_file({"w": torch.zeros(2)}, tmp_path / "foreign.safetensors", metadata={"format": "pt"})
    save_file({"w": torch.zeros(2)}, tmp_path / "bare.safetensors")
    for path, said in (
        (tmp_path / "nothing", "nothing is not a run folder"),
        (tmp_path / "nothing.safetensors", "no file .*nothing"),
        (run.best, "expected a run folder, or a .safetensors file"),
        (tmp_path / "foreign.safetensors", "written by another program"),
        (tmp_path / "bare.safetensors", "written by another program"),
    ):
        with pytest.raises(UsageError, match=said):
            open_trained(path)


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_a_file_cut_off_is_named(export: Path, kept: int) -> None:
    export.write_bytes(export.read_bytes()[:kept])
    with pytest.raises(AffsupError, match=r"mine\.safetensors is damaged"):
        open_trained(export)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "has format 2, this affsup reads 1"),
        ({"recipe": "task = 'minibatch'"}, "of another version of affsup"),
        ({"recipe": "task = 'juggling'"}, "of another version of affsup"),
        ({"recipe": "]["}, "of another version of affsup"),
        ({"environment": {}}, "of another version of affsup"),
        ({"metrics": None}, "of another version of affsup"),
        ({"recipe": {"task": "minibatch"}}, "of another version of affsup"),
        ({"environment": {"data": {"name": "digits"}}}, "of another version of affsup"),
        ({"name": 3}, "of another version of affsup"),
    ],
)
def test_a_record_that_does_not_fit_is_named(export: Path, change: dict[str, Any], said: str) -> None:
    save_file(weights_of(export), export, metadata={"affsup": json.dumps(without_digest(known(export)) | change)})
    with pytest.raises(AffsupError, match=said):
        open_trained(export)


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in load_file(path).items()}


def test_a_checkpoint_without_a_model_is_named(run: RunFolder) -> None:
    save_checkpoint(run.best, {"model": {"epoch": 3}})
    with pytest.raises(AffsupError, match=r"best\.pt holds no model"):
        open_trained(run.path).state(CPU)


def test_only_an_export_is_overwritten(run: RunFolder, export: Path, tmp_path: Path) -> None:
    trained = open_trained(run.path)
    export_trained(trained, export)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"w": torch.zeros(2)}, foreign)
    before = foreign.read_bytes()
    for path, said in ((foreign, "not overwritten"), (tmp_path / "mine.pt", r"ends in \.safetensors")):
        with pytest.raises(UsageError, match=said):
            export_trained(trained, path)
    assert foreign.read_bytes() == before
    assert sorted(path.name for path in export.parent.iterdir()) == ["mine.safetensors"]
