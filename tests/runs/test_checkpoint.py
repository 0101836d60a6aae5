from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from affsup_cli.runs.checkpoint import (
    BackgroundSaver,
    explain_mismatch,
    load_checkpoint,
    random_state,
    save_checkpoint,
    set_random_state,
)
from data_prep.errors import AffsupError

CPU = torch.device("cpu")


def test_what_is_saved_loads(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.pt", {"w": torch.arange(3), "epoch": 2, "best": None})
    state = load_checkpoint(tmp_path / "c.pt", CPU)
    assert torch.equal(state["w"], torch.arange(3))
    assert (state["epoch"], state["best"]) == (2, None)


def test_a_failed_write_leaves_the_previous_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"epoch": 1})
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(AffsupError, match=r"no space to write .*c\.pt"):
        save_checkpoint(path, {"epoch": 2})
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["c.pt"]


def test_a_write_beyond_the_file_size_limit_names_the_limit(tmp_path: Path) -> None:
    # torch.save turns the system's error into a RuntimeError of its own; only a real one shows that we know it.
    script = textwrap.dedent(
        f"""
        import resource, torch
        from pathlib import Path
        from affsup_cli.runs.checkpoint import save_checkpoint
        path = Path({str(tmp_path / "c.pt")!r})
        save_checkpoint(path, {{"epoch": 1}})
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
        save_checkpoint(path, {{"w": torch.zeros(1_000_000)}})
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode != 0
    assert "it would be larger than the file-size limit" in done.stderr
    assert load_checkpoint(tmp_path / "c.pt", CPU) == {"epoch": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["c.pt"]


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "not a dict"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"w": torch.zeros(1000)})
    content = path.read_bytes()
    path.write_bytes(
        {"truncated": content[: len(content) // 2], "garbage": b"not a checkpoint at all" * 9, "empty": b""}.get(
            damage, b""
        )
    )
    if damage == "not a dict":
        torch.save(torch.zeros(2), path)
    with pytest.raises(AffsupError, match=r"c\.pt"):
        load_checkpoint(path, CPU)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"model": Evil()}, tmp_path / "c.pt")
    with pytest.raises(AffsupError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path / "c.pt", CPU)
    (tmp_path / "p.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(AffsupError, match="is damaged"):
        load_checkpoint(tmp_path / "p.pt", CPU)
    assert not (tmp_path / "ran").exists()


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(AffsupError, match=r"c\.pt is missing"):
        load_checkpoint(tmp_path / "c.pt", CPU)


def test_the_random_state_comes_back(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.pt", {"random": random_state(CPU)})
    expected = torch.rand(3)
    torch.rand(5)
    assert set_random_state(load_checkpoint(tmp_path / "c.pt", CPU)["random"], CPU)
    assert torch.equal(torch.rand(3), expected)


def test_what_is_written_in_the_background_is_the_state_when_it_was_given(tmp_path: Path) -> None:
    weights = torch.zeros(3)
    momentum = [torch.zeros(2), (torch.zeros(1), "plain")]
    with BackgroundSaver(CPU) as saver:
        saver.save(tmp_path / "c.pt", {"w": weights, "momentum": momentum})
        weights += 1
        momentum[0] += 1
        saver.wait()
        assert load_checkpoint(tmp_path / "c.pt", CPU)["w"].tolist() == [0, 0, 0]
    assert load_checkpoint(tmp_path / "c.pt", CPU)["momentum"][0].tolist() == [0, 0]


def test_saving_does_not_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    let_go, write = threading.Event(), torch.save

    def slow(*arguments: Any) -> None:
        let_go.wait(60)
        write(*arguments)

    monkeypatch.setattr(torch, "save", slow)
    with BackgroundSaver(CPU) as saver:
        for number in (1, 2):
            saver.save(tmp_path / f"{number}.pt", {"epoch": number})
        assert not list(tmp_path.glob("*.pt"))
        let_go.set()
    assert {path.name for path in tmp_path.iterdir()} == {"1.pt", "2.pt"}


def test_a_write_that_fails_in_the_background_is_said_and_what_follows_it_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(state: dict[str, Any], path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    saver = BackgroundSaver(CPU)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        saver.save(tmp_path / "last.pt", {"epoch": 1})
        with pytest.raises(AffsupError, match=r"no space to write .*last\.pt"):
            saver.wait()
    saver.save(tmp_path / "best.pt", {"epoch": 1})
    with pytest.raises(AffsupError, match=r"no space to write .*last\.pt"), saver:
        pass
    assert not list(tmp_path.iterdir())


def test_what_a_check_refuses_is_not_written(tmp_path: Path) -> None:
    def refuse(state: dict[str, Any]) -> None:
        raise AffsupError(f"epoch {state['epoch']} is not worth it")

    saver = BackgroundSaver(CPU)
    saver.save(tmp_path / "c.pt", {"epoch": 1}, refuse)
    with pytest.raises(AffsupError, match="epoch 1 is not worth it"), saver:
        pass
    assert not list(tmp_path.iterdir())


def test_a_loaded_state_outlives_its_file(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.pt", {"w": torch.arange(1000)})
    state = load_checkpoint(tmp_path / "c.pt", CPU)
    save_checkpoint(tmp_path / "c.pt", {"w": torch.zeros(1000)})
    state["w"] += 1
    assert torch.equal(state["w"], torch.arange(1000) + 1)
    assert load_checkpoint(tmp_path / "c.pt", CPU)["w"].sum() == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"weight": torch.zeros(2, 5)},
            "RuntimeError: size mismatch for weight: copying a param with shape torch.Size([2, 5])",
        ),
        ({"other": torch.zeros(1), "more": torch.zeros(1)}, 'RuntimeError: Unexpected key(s) in state_dict: "other")'),
    ],
)
def test_what_does_not_fit_is_named_with_the_cure(change: dict[str, Any], said: str) -> None:
    layer = torch.nn.Linear(3, 2)
    with pytest.raises(AffsupError) as error, explain_mismatch(Path("c.pt"), "take another"):
        layer.load_state_dict(layer.state_dict() | change)
    assert str(error.value).startswith("c.pt is not of this run (")
    assert said in str(error.value)
    assert str(error.value).endswith("): take another")


def test_a_fault_without_words_is_named_by_its_kind() -> None:
    with pytest.raises(AffsupError, match="ValueError"), explain_mismatch(Path("c.pt")):
        raise ValueError
