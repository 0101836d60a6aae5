"""Faults of the machine and hostile input: the right message, and no traceback."""

from __future__ import annotations

import errno
import os
import random
import re
import resource
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import h5py
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import data_prep
from affsup_cli.app import app, main
from affsup_cli.recipe import load_recipe
from affsup_cli.runs.check import check_run
from affsup_cli.runs.checkpoint import load_checkpoint, save_checkpoint
from affsup_cli.runs.export import export_trained, open_trained
from affsup_cli.runs.features import read_features
from affsup_cli.runs.folder import RunFolder
from affsup_cli.sweeps.plan import plan_sweep, wanted_experiments
from affsup_cli.tasks.launch import evaluate_run
from data_prep.errors import AffsupError, UsageError
from tests.reporting.fake_runs import BASE, RunMaker

CPU = torch.device("cpu")


def call(*arguments: str) -> BaseException | None:
    """Call affsup; returns the error that it ends with."""
    return CliRunner().invoke(app, arguments).exception


@contextmanager
def refused(monkeypatch: pytest.MonkeyPatch, number: int, name: str) -> Iterator[None]:
    """Fail each attempt to open a file of that name, as the system does; root ignores a file's mode."""
    opened = Path.open

    def fail(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == name:
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", fail)
        yield


@pytest.mark.parametrize(
    ("number", "cure"), [(errno.EACCES, r"chmod u\+r"), (errno.EMFILE, "ulimit -n"), (errno.EIO, "Input/output error")]
)
def test_a_model_that_cannot_be_opened_is_not_called_damaged(
    copy_run: Callable[[], RunFolder], monkeypatch: pytest.MonkeyPatch, number: int, cure: str
) -> None:
    run = copy_run()
    with refused(monkeypatch, number, "best.pt"), pytest.raises(AffsupError, match=cure) as error:
        open_trained(run.path).state(CPU)
    assert "best.pt cannot be read" in str(error.value)
    assert "away" not in str(error.value)


def test_too_few_file_handles_are_named(copy_run: Callable[[], RunFolder]) -> None:
    run = copy_run()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(list(Path("/proc/self/fd").iterdir()))
    held = [open(os.devnull) for _ in range(3)]  # noqa: PTH123, SIM115
    resource.setrlimit(resource.RLIMIT_NOFILE, (used, hard))
    try:
        with pytest.raises(AffsupError, match=r"Too many open files.*ulimit -n"):
            load_checkpoint(run.best, CPU)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for file in held:
            file.close()


def limited(limit: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Call affsup in a shell with a limit such as `-n 8`."""
    command = shlex.join([sys.executable, "-m", "affsup_cli", *arguments])
    return subprocess.run(["bash", "-c", f"ulimit {limit}; exec {command}"], capture_output=True, text=True)


def test_too_few_file_handles_for_a_sweep_end_in_one_line_with_the_cure(digits: Path, tmp_path: Path) -> None:
    places = ["--data", str(digits), "--runs", str(tmp_path / "runs"), "--device", "cpu"]
    ended = limited("-n 8", "sweep", "digits-table3", "--only", "base", "--seeds", "1", *places)
    assert ended.returncode == 1
    assert "Too many open files" in ended.stderr
    assert "`ulimit -n 4096`" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("kibibytes", [300_000, 1_000_000])
def test_too_little_memory_for_the_libraries_ends_in_one_line(trained: RunFolder, kibibytes: int) -> None:
    ended = limited(f"-v {kibibytes}", "evaluate", str(trained.path))
    assert ended.returncode == 1
    assert "out of memory" in ended.stderr
    assert "`ulimit -v` shows it" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("said", ["DefaultCPUAllocator: can't allocate memory: you tried", "CUDA out of memory. Tried"])
def test_torchs_lack_of_memory_in_any_command_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], said: str
) -> None:
    def fail() -> None:
        raise RuntimeError(f"{said}\nmore lines")

    monkeypatch.setattr("affsup_cli.app.app", fail)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main replaces it
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 1
    assert re.fullmatch(rf"affsup: out of memory: .* is too small \({re.escape(said)}\)\n", capsys.readouterr().err)


def test_a_recipe_that_asks_for_very_many_proposals_is_refused_wherever_it_is_read(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.write_recipe(load_recipe("relnet"))
    text = (run.path / "recipe.toml").read_text().partition("\n")[2]  # without its digest
    (run.path / "recipe.toml").write_text(re.sub(r"(?m)^proposals = .*$", f"proposals = {10**9}", text))
    with pytest.raises(
        AffsupError, match=r"model\.proposals = 1000000000: input should be less than or equal to 10000"
    ):
        run.recipe()


@pytest.mark.parametrize("name", ["images.h5", "manifest.json"])
def test_prepared_data_that_may_not_be_read_are_not_called_damaged(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    shutil.copytree(digits / "digits", tmp_path / "digits")

    def fail(*_: Any, **__: Any) -> Any:
        raise PermissionError(errno.EACCES, f"Unable to open file (name = '{name}')")

    monkeypatch.setattr(*((h5py, "File") if name == "images.h5" else (Path, "read_text")), fail)
    with pytest.raises(AffsupError, match=rf"{name} cannot be read: Permission denied. `chmod u\+r [^ ]*{name}`"):
        data_prep.check("digits", tmp_path)


def test_check_says_of_a_file_that_may_not_be_read_that_it_may_not_be_read(
    copy_run: Callable[[], RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_run()
    with refused(monkeypatch, errno.EACCES, "features.npz"):
        (fault,) = check_run(run)
    assert "features.npz cannot be read" in fault
    assert "damaged" not in fault


@pytest.mark.parametrize("kind", ["external link", "external storage"])
def test_check_reads_no_file_that_a_run_refers_to(copy_run: Callable[[], RunFolder], kind: str) -> None:
    run = copy_run()
    private = run.path.parent / "private"
    with h5py.File(private, "w") as file:
        file["secret"] = [1]
    with h5py.File(run.relationships("test"), "w") as file:
        if kind == "external link":
            file["x"] = h5py.ExternalLink(str(private), "/secret")
        else:
            file.create_dataset("x", (8,), "u1", external=[(str(private), 0, 8)])
    (fault,) = check_run(run)
    assert "refused" in fault


def test_a_name_that_is_too_long_for_a_file_is_shortened(tmp_path: Path) -> None:
    ended = limited("-n 256", "evaluate", "x" * 5000, "--runs", str(tmp_path))
    assert ended.returncode == 1
    assert "File name too long" in ended.stderr
    assert len(ended.stderr) < 300


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_neither_evaluated_nor_exported(
    copy_run: Callable[[], RunFolder], digits: Path, value: float
) -> None:
    run = copy_run()
    state = torch.load(run.best, weights_only=True)
    next(iter(state["model"].values()))[0, 0, 0, 0] = value
    save_checkpoint(run.best, state)
    said = r"best\.pt: the weights 'backbone.* are not finite"
    with pytest.raises(AffsupError, match=said):
        evaluate_run(run, digits, "test", "cpu")
    with pytest.raises(AffsupError, match=said):
        export_trained(open_trained(run.path), run.path.parent / "m.safetensors")
    assert not (run.path.parent / "m.safetensors").exists()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (torch.eye(3).to_sparse(), "is sparse_coo, expected a dense tensor"),
        (torch.empty(3, 3, device="meta"), "has no data"),
    ],
)
def test_weights_without_dense_numbers_are_named(
    copy_run: Callable[[], RunFolder], weights: torch.Tensor, said: str
) -> None:
    run = copy_run()
    save_checkpoint(run.best, {"model": {"w": weights}, "epoch": 1, "score": 0.0})
    with pytest.raises(AffsupError, match=said):
        export_trained(open_trained(run.path), run.path.parent / "m.safetensors")


def test_folders_that_look_like_temporary_files_stay(copy_run: Callable[[], RunFolder]) -> None:
    run = copy_run()
    (run.path / ".x.tmp").mkdir()
    (run.path / ".y.tmp").write_text("half")
    with run.lock():
        pass
    assert (run.path / ".x.tmp").is_dir()
    assert not (run.path / ".y.tmp").exists()


def test_a_file_system_without_locks_gives_no_foreign_warning(
    copy_run: Callable[[], RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_run()
    acquire = filelock.FileLock.acquire

    def warned(self: Any, *arguments: Any, **options: Any) -> Any:
        warnings.warn("flock not supported on this filesystem, falling back to SoftFileLock", stacklevel=2)
        return acquire(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(filelock.FileLock, "acquire", warned)
        with run.lock():  # a warning would be an error in these tests
            pass

    def unsupported(*_: Any, **__: Any) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(filelock.FileLock, "acquire", unsupported)
    with pytest.raises(AffsupError, match=r"has no file locks.*--runs"), run.lock():
        pass


def test_damaged_features_leave_their_run_out_of_the_figure(copy_run: Callable[[], RunFolder]) -> None:
    run = copy_run()
    content = bytearray(run.features.read_bytes())
    before_the_comment = len(content) - 28  # without its digest, the file is checked as one of an older version
    for place in range(0, before_the_comment, before_the_comment // 40):
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        run.features.write_bytes(damaged)
        with pytest.raises(AffsupError, match=r"features\.npz is damaged"):
            read_features(run.features)


def test_a_run_without_its_recipe_is_refused_by_a_sweep(make: RunMaker, digits: Path) -> None:
    options = ["--only", "base", "--seeds", "1", "--device", "cpu", "--data", str(digits), "--runs", str(make.root)]
    wanted = wanted_experiments(["digits-table3"], 1, ["base"], {"run.device": "cpu"})
    folder = plan_sweep(wanted, digits, make.root, set()).runs[0].folder
    folder.path.mkdir(parents=True)
    folder.write_result({"kind": "train", "epochs": 1, "best_epoch": 1, "metrics": {}})
    error = call("sweep", "digits-table3", *options)
    assert isinstance(error, AffsupError)
    assert f"{folder.path} is damaged" in str(error)
    assert "affsup check" in str(error)
    assert "--name" not in str(error)


def test_check_lists_what_is_damaged_and_fails(make: RunMaker, digits: Path) -> None:
    make.train(BASE, 0.9, name="whole")
    spoilt = make.train(BASE, 0.8, seed=1, name="spoilt")
    places = ["--data", str(digits), "--runs", str(make.root)]
    assert CliRunner().invoke(app, ["check", "whole", "digits", *places]).exit_code == 0
    recipe = spoilt.path / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("seed = 1", "seed = 3"))
    (make.root / "bare").mkdir()
    (make.root / "bare" / "best.pt").write_bytes(b"")
    done = CliRunner().invoke(app, ["check", *places])
    assert isinstance(done.exception, AffsupError)
    assert str(done.exception) == "2 of 4 damaged"
    assert "intact: whole" in done.output
    assert "intact: digits" in done.output
    assert "damaged: spoilt" in done.output
    assert "without its recipe.toml" in done.output
    assert isinstance(call("check", "nothing", *places), UsageError)


def test_check_sees_data_sets_of_the_user_and_those_that_lost_their_manifest(tmp_path: Path) -> None:
    for number in range(12):
        picture = tmp_path / "pictures" / "ab"[number % 2] / f"{number}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.frombytes("RGB", (8, 8), random.Random(number).randbytes(192)).save(picture)
    data = ["--data", str(tmp_path / "data")]
    pictures = str(tmp_path / "pictures")
    assert CliRunner().invoke(app, ["prepare", "folder", "--from", pictures, "--name", "mine", *data]).exit_code == 0
    places = [*data, "--runs", str(tmp_path / "runs")]
    for names in ([], ["mine"]):
        done = CliRunner().invoke(app, ["check", *names, *places])
        assert done.exit_code == 0
        assert "intact: mine" in done.output
    (tmp_path / "data" / "digits").mkdir()
    done = CliRunner().invoke(app, ["check", *places])
    assert str(done.exception) == "1 of 2 damaged"
    assert "damaged: digits" in done.output


HOSTILE = {
    "deep arrays": "x = " + "[" * 3000 + "]" * 3000,
    "deep tables": "x = " + "{a=" * 3000 + "1" + "}" * 3000,
    "deep names": ".".join(["a"] * 5000) + " = 1",
    "many keys": "".join(f"a.k{number} = 1\n" for number in range(50_000)),
    "long key": "x" * 500_000 + " = 1",
    "long name": "name = '" + "x" * 500_000 + "'",
    "long value": "train.precision = '" + "x" * 500_000 + "'",
    "large file": "# " + "x" * 2**20,
    "large batch": f"train.batch_size = {10**18}",
    "large number": f"seed = {10**400}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_recipe_is_refused_in_a_few_words(tmp_path: Path, name: str) -> None:
    path = tmp_path / "hostile.toml"
    path.write_text(f"extends = 'minibatch'\n{HOSTILE[name]}\n")
    with pytest.raises(AffsupError) as error:
        load_recipe(str(path))
    assert "hostile.toml" in str(error.value)
    assert len(str(error.value)) < 1000 + 2 * len(str(path))


@pytest.mark.parametrize(
    "setting",
    [".".join(["a"] * 5000) + "=1", "a=" + "[" * 5000 + "]" * 5000, "x" * 10**5 + "=1", f"train.batch_size={10**18}"],
)
def test_a_hostile_setting_is_refused_in_a_few_words(setting: str) -> None:
    error = call("train", "minibatch", "--set", setting)
    assert isinstance(error, UsageError)
    assert len(str(error)) < 1000


def test_a_network_that_no_memory_holds_is_named(shapes: Path, tmp_path: Path) -> None:
    places = ["--data", str(shapes), "--runs", str(tmp_path), "--device", "cpu"]
    error = call("train", "relnet", "--set", f"model.width={10**12}", *places)
    assert isinstance(error, AffsupError)
    assert "out of memory" in str(error)
