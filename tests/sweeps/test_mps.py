"""NVIDIA's MPS daemon around a sweep, with a program that stands in for `nvidia-cuda-mps-control`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from affsup_cli.recipe import load_recipe
from affsup_cli.runs.folder import RunFolder
from affsup_cli.sweeps import local, mps
from affsup_cli.sweeps.local import run_locally
from affsup_cli.sweeps.mps import CONTROL, mps_on_shared_gpus
from affsup_cli.sweeps.plan import Plan, PlannedRun
from affsup_cli.sweeps.schedule import SweepObserver
from affsup_cli.sweeps.slots import Slot
from affsup_cli.sweeps.speeds import Speeds
from affsup_cli.sweeps.workers import LocalWorkers

probe = mps.why_no_gpu

TURNS = "the processes on a GPU take turns: "


class Control:
    """The stand-in: it writes down each call, its variables and its standard input."""

    def __init__(self, folder: Path) -> None:
        self.calls = folder / "calls"
        self.program = folder / CONTROL
        self.behave()

    def behave(self, last: str = "") -> None:
        """Install the program, which ends with the shell command `last`."""
        said = '"$* $(cat) ${CUDA_VISIBLE_DEVICES-all}" "$CUDA_MPS_PIPE_DIRECTORY" "$CUDA_MPS_LOG_DIRECTORY"'
        check = '[ -d "$CUDA_MPS_PIPE_DIRECTORY" ] && [ -d "$CUDA_MPS_LOG_DIRECTORY" ] || exit 9'
        self.program.write_text(f'#!/bin/sh\n{check}\nprintf "%s|%s|%s\\n" {said} >> {self.calls}\n{last}\n')
        self.program.chmod(0o755)

    def told(self) -> list[list[str]]:
        """Each call: its arguments and input, the pipe directory and the log directory."""
        return [line.split("|") for line in self.calls.read_text().splitlines()] if self.calls.exists() else []


@pytest.fixture
def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Control:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    monkeypatch.setattr(mps, "why_no_gpu", lambda _: "")
    return Control(folder)


def slots(*devices: str) -> list[Slot]:
    return [Slot(device, "a GPU", {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "GPU-aa"}) for device in devices]


def test_processes_that_share_a_gpu_are_connected_to_a_daemon_that_is_told_to_quit(control: Control) -> None:
    lines: list[str] = []
    with mps_on_shared_gpus(slots("cuda:0", "cuda:1", "cuda:0"), lines.append) as connected:
        pipe = connected[0].environment["CUDA_MPS_PIPE_DIRECTORY"]
        log = connected[0].environment["CUDA_MPS_LOG_DIRECTORY"]
        assert control.told() == [["-d  all", pipe, log]]
    assert [slot.device for slot in connected] == ["cuda:0", "cuda:1", "cuda:0"]
    assert [slot.environment for slot in connected] == [
        {
            "OMP_NUM_THREADS": "2",
            "CUDA_VISIBLE_DEVICES": number,  # as the daemon numbers them
            "CUDA_MPS_PIPE_DIRECTORY": pipe,
            "CUDA_MPS_LOG_DIRECTORY": log,
        }
        for number in "010"
    ]
    assert control.told()[1:] == [[" quit all", pipe, log]]
    assert not Path(pipe).exists()
    assert lines == ["the processes on a GPU share it through NVIDIA's MPS"]


def test_the_daemon_is_told_to_quit_after_an_exception_too(control: Control) -> None:
    with pytest.raises(KeyboardInterrupt), mps_on_shared_gpus(slots("cuda:0", "cuda:0"), lambda _: None):
        raise KeyboardInterrupt
    assert [call[0] for call in control.told()] == ["-d  all", " quit all"]


@pytest.mark.parametrize("devices", [["cuda:0", "cuda:1"], ["cpu", "cpu"], ["cuda:0"]])
def test_without_a_shared_gpu_nothing_is_started_and_nothing_said(control: Control, devices: list[str]) -> None:
    given = slots(*devices)
    lines: list[str] = []
    with mps_on_shared_gpus(given, lines.append) as found:
        assert found == given
    assert control.told() == lines == []


@pytest.mark.parametrize(
    ("last", "reason"),
    [("echo An instance of this daemon is already running; exit 1", "An instance of this daemon"), ("exit 3", "exit")],
)
def test_a_daemon_that_does_not_start_is_said_and_done_without(control: Control, last: str, reason: str) -> None:
    control.behave(last)
    given = slots("cuda:0", "cuda:0")
    lines: list[str] = []
    with mps_on_shared_gpus(given, lines.append) as found:
        assert found == given
    (line,) = lines
    assert line.startswith(f"{TURNS}NVIDIA's MPS did not start ({reason}")
    assert len(control.told()) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine whose processes cannot use a GPU")
def test_a_daemon_through_which_no_process_can_use_a_gpu_is_stopped_at_once_and_done_without(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mps, "why_no_gpu", probe)
    given = slots("cuda:0", "cuda:0")
    lines: list[str] = []
    with mps_on_shared_gpus(given, lines.append) as found:
        assert found == given
        assert [call[0] for call in control.told()] == ["-d  all", " quit all"]
    (line,) = lines
    assert line.startswith(f"{TURNS}through NVIDIA's MPS none can use it (")
    assert len(control.told()) == 2


def test_the_error_of_a_process_is_told_without_the_advice_below_it() -> None:
    error = "torch.AcceleratorError: CUDA error: MPS client failed to connect"
    assert mps._error_line(f"Traceback:\n  File x\n{error}\nCUDA kernel errors might\n") == error
    assert mps._error_line("Killed") == ""


def test_without_the_program_the_sweep_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    given = slots("cuda:0", "cuda:0")
    lines: list[str] = []
    with mps_on_shared_gpus(given, lines.append) as found:
        assert found == given
    assert lines == [f"{TURNS}{CONTROL} is not on the PATH"]


def test_training_runs_of_a_sweep_share_gpus_through_the_daemon_and_cost_comparisons_do_not(
    control: Control, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def planned(name: str, cost: bool = False) -> PlannedRun:
        baseline = load_recipe("minibatch") if cost else None
        return PlannedRun((name,), load_recipe("minibatch"), baseline, RunFolder(tmp_path / name), "missing", None, 0)

    def run_planned(
        planned_runs: list[PlannedRun], data: Path, workers: LocalWorkers, *_: object
    ) -> dict[PlannedRun, object]:
        seen.append([slot.environment.get("CUDA_MPS_PIPE_DIRECTORY") for slot in workers._slots])
        if len(planned_runs) > 1:
            return {}
        raise KeyboardInterrupt

    class Heard(SweepObserver):
        def reported(self, line: str) -> None:
            lines.append(line)

    lines: list[str] = []
    seen: list[list[str | None]] = []
    monkeypatch.setattr(local, "run_planned", run_planned)
    plan = Plan((planned("a"), planned("b"), planned("cost", cost=True)), Speeds(), (), ())
    with pytest.raises(KeyboardInterrupt):
        run_locally(plan, tmp_path, slots("cuda:0", "cuda:0", "cuda:0"), Heard())
    (first, second), cost = seen
    assert first == second is not None
    assert cost == [None]
    assert len(lines) == 1
    assert [call[0] for call in control.told()] == ["-d  all", " quit all"]


def test_a_daemon_that_runs_already_is_used(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", "/run/mps")
    lines: list[str] = []
    given = slots("cuda:0", "cuda:0")
    with mps_on_shared_gpus(given, lines.append) as connected:
        assert connected == given
    assert lines == ["the processes on a GPU share it through the MPS daemon of CUDA_MPS_PIPE_DIRECTORY"]
    assert control.told() == []
