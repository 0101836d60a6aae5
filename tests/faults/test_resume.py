"""Kills, damaged checkpoints and failing writes: the run goes on to the same bits, or says what to do."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from affsup_cli.recipe import Recipe
from affsup_cli.runs.check import check_run
from affsup_cli.runs.checkpoint import load_checkpoint, save_checkpoint
from affsup_cli.runs.folder import RunFolder
from affsup_cli.training.trainer import Trainer
from data_prep.errors import AffsupError, AffsupWarning
from tests.training.test_trainer import Killed, assert_same_end, folder, kill, recipe
from tests.training.toy import ToyTask

CPU = torch.device("cpu")
EVERY_STEP = {"run__checkpoint_seconds": 1e-9}


def killed_run(path: Path, at: tuple[int, int]) -> RunFolder:
    """A run that was killed before step `at[1]` of epoch `at[0]`, with a checkpoint at every step."""
    run, task = folder(path), ToyTask()
    task.before_step[at] = kill
    with pytest.raises(Killed):
        Trainer(task, recipe(**EVERY_STEP), run).run()
    return run


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = folder(tmp_path_factory.mktemp("undisturbed"))
    Trainer(ToyTask(), recipe(), run).run()
    return run


def resume(run: RunFolder, fields: Recipe | None = None) -> None:
    torch.manual_seed(99)  # a new process starts from another random state
    Trainer(ToyTask(), fields or recipe(), run).run()


def test_a_killed_run_with_a_damaged_last_checkpoint_goes_on_from_the_one_before(
    tmp_path: Path, undisturbed: RunFolder, rng: random.Random, times: int
) -> None:
    positions = [(epoch, step) for epoch in range(3) for step in range(4)][2:]
    for number in range(times):
        run = killed_run(tmp_path / str(number), rng.choice(positions))
        content = bytearray(run.checkpoint.read_bytes())
        how = rng.choice(["flip", "truncate", "empty", "delete"])
        if how == "flip":
            content[rng.randrange(len(content) - 40)] ^= 1 << rng.randrange(8)
        run.checkpoint.write_bytes({"truncate": content[: len(content) // 2], "empty": b""}.get(how, content))
        if how == "delete":
            run.checkpoint.unlink()
        with pytest.warns(AffsupWarning, match=r"last\.pt is (damaged|missing).*continues from previous\.pt"):
            resume(run)
        assert_same_end(run, undisturbed)
        assert not run.previous.exists()


def test_the_best_epoch_after_the_previous_checkpoint_is_kept(tmp_path: Path) -> None:
    scores = [0.1, 0.9, 0.2]
    whole, run, task = folder(tmp_path / "whole"), folder(tmp_path / "run"), ToyTask()
    for each in (whole, run):
        task = ToyTask()
        task.scores = scores
        if each is run:
            task.before_step[(2, 0)] = kill
            with pytest.raises(Killed):
                Trainer(task, recipe(), each).run()
        else:
            Trainer(task, recipe(), each).run()
    run.checkpoint.write_bytes(b"damaged")  # previous.pt is that of the end of the first epoch
    again = ToyTask()
    again.scores = scores
    with pytest.warns(AffsupWarning, match="previous"):
        Trainer(again, recipe(), run).run()
    assert run.result()["best_epoch"] == 2
    assert_same_end(run, whole)


def test_without_a_usable_checkpoint_the_message_says_to_begin_a_new_run(tmp_path: Path) -> None:
    run = killed_run(tmp_path / "run", (1, 2))
    for path in (run.checkpoint, run.previous):
        path.write_bytes(b"damaged")
    with pytest.raises(AffsupError, match=r"previous\.pt is damaged .*move .* away and run the command again"):
        resume(run)


@pytest.mark.parametrize(
    "change",
    [
        {"step": "3"},
        {"step": -1},
        {"step": 10**9},
        {"epoch": 1.5},
        {"epoch": None},
        {"epoch": 10**30},
        {"best": None},
        {"best": {"epoch": 99, "score": 0.0}},
        {"best": {"epoch": 0, "score": "high"}},
        {"images": -3},
        {"seconds": float("nan")},
        {"epoch_seconds": [1.0]},
    ],
)
def test_a_position_of_wrong_type_or_range_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    run = killed_run(tmp_path / "run", (1, 2))
    run.previous.unlink()
    state = load_checkpoint(run.checkpoint, CPU)
    save_checkpoint(run.checkpoint, {**state, **change})
    with pytest.raises(AffsupError, match=r"last\.pt is damaged \(.*move .* away"):
        resume(run)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Limit the size of files that this process writes."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        signal.signal(signal.SIGXFSZ, previous)


def test_a_write_that_fails_anywhere_in_a_checkpoint_leaves_the_one_before(
    tmp_path: Path, rng: random.Random, times: int
) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"epoch": 1})
    state = {"w": torch.arange(50_000), "names": ["a"] * 1000}
    save_checkpoint(tmp_path / "whole.pt", state)
    size = (tmp_path / "whole.pt").stat().st_size
    last_kilobytes = [size - back for back in (1, 10, 27, 28, 29, 60, 500, 4000)]
    for limit in [*last_kilobytes, *(rng.randrange(4096, size) for _ in range(times))]:
        with largest_file(limit), pytest.raises(AffsupError, match=r"cannot write .*last\.pt: .*file-size limit"):
            save_checkpoint(path, state, tmp_path / "previous.pt")
        assert load_checkpoint(path, CPU) == {"epoch": 1}
        assert sorted(each.name for each in tmp_path.iterdir()) == ["last.pt", "whole.pt"]


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="mounting a small disk needs root")
def test_a_disk_that_fills_in_the_last_kilobytes_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=4m tmpfs {disk} 2>/dev/null"):
        pytest.skip("this container may not mount")
    try:
        path = disk / "last.pt"
        save_checkpoint(path, {"epoch": 1})
        failures = 0
        for pages in range(12):
            filler = disk / "filler"
            state = {"w": torch.zeros(250_000)}  # 1 MB
            free = shutil.disk_usage(disk).free
            filler.write_bytes(bytes(max(0, free - 1_000_000 - 4096 * pages)))
            message = ""
            try:
                save_checkpoint(path, state)
            except AffsupError as error:
                message = str(error)
            filler.unlink()
            if message:
                failures += 1
                assert f"no space to write {path}" in message
                assert load_checkpoint(path, CPU) == {"epoch": 1}
            save_checkpoint(path, {"epoch": 1})
            assert [each.name for each in disk.iterdir()] == ["last.pt"]
        assert failures
    finally:
        os.system(f"umount {disk}")


def test_the_previous_checkpoint_is_kept_where_the_disk_has_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refused)
    for epoch in (1, 2, 3):
        save_checkpoint(tmp_path / "last.pt", {"epoch": epoch}, tmp_path / "previous.pt")
    assert load_checkpoint(tmp_path / "last.pt", CPU) == {"epoch": 3}
    assert load_checkpoint(tmp_path / "previous.pt", CPU) == {"epoch": 2}


def test_the_folder_is_written_to_the_disk_after_a_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    save_checkpoint(tmp_path / "last.pt", {"epoch": 1})
    assert synced[-1] == str(tmp_path)


def test_a_damaged_result_is_written_again_by_the_command_that_the_message_names(
    tmp_path: Path, undisturbed: RunFolder
) -> None:
    run = RunFolder(Path(shutil.copytree(undisturbed.path, tmp_path / "run")))
    run.write_recipe(recipe())
    result = run.path / "result.json"
    result.write_text(result.read_text().replace('"epochs": 3', '"epochs": 7'))
    with pytest.raises(AffsupError, match=r"result\.json is damaged .*delete it; `affsup train .* --resume`"):
        run.result()
    result.unlink()
    resume(run)
    assert_same_end(run, undisturbed)


def test_a_damaged_best_model_of_the_last_epoch_is_written_again(tmp_path: Path) -> None:
    run = folder(tmp_path / "run")
    last = recipe(train__select="last")
    Trainer(ToyTask(), last, run).run()
    run.write_recipe(last)
    run.write_environment({"data": ToyTask.data})
    good = load_checkpoint(run.best, CPU)["model"]
    good = {name: value.clone() for name, value in good.items()}
    content = bytearray(run.best.read_bytes())
    content[len(content) // 2] ^= 4
    run.best.write_bytes(content)
    (fault,) = check_run(run)
    assert "best.pt is damaged" in fault
    assert "delete it and result.json" in fault
    run.best.unlink()
    (run.path / "result.json").unlink()
    resume(run, last)
    again = load_checkpoint(run.best, CPU)["model"]
    assert all(torch.equal(good[name], again[name]) for name in good)
