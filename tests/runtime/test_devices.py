from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn

from affsup_cli.distributed.launch import run_processes
from affsup_cli.runtime.devices import compile_modules, describe_gpus, gpus, resolve_device, select_device
from data_prep.errors import UsageError


@pytest.fixture
def old_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that the driver counts and PyTorch cannot use."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.2")


@pytest.mark.parametrize(("count", "words"), [(0, "no CUDA devices"), (1, "1 CUDA device"), (8, "8 CUDA devices")])
def test_the_gpus_that_are_there_are_counted(monkeypatch: pytest.MonkeyPatch, count: int, words: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    assert (gpus(), describe_gpus()) == (count, words)


@pytest.mark.usefixtures("old_driver")
def test_a_gpu_that_pytorch_cannot_use_is_none_and_the_reason_is_said() -> None:
    said = r"2 CUDA devices that PyTorch \(CUDA 13.2\) cannot use: the driver may be too old for it"
    assert gpus() == 0
    assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(UsageError, match=said):
        resolve_device("cuda")
    with pytest.raises(UsageError, match=rf"--gpus 2: this machine has {said}"):
        run_processes(2, "auto", [])


@pytest.mark.parametrize(("device", "compiler"), [("cpu", "g[+][+]"), ("cuda", "gcc")])
def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch, device: str, compiler: str) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(UsageError, match=f"such as {compiler}, and none is on the PATH"):
        compile_modules(nn.Linear(1, 1), device=torch.device(device))


def test_only_the_gpu_of_a_run_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    selected: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", selected.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [select_device(name) for name in ("cpu", "cuda:1")] == [torch.device("cpu"), torch.device("cuda", 1)]
    assert selected == [torch.device("cuda", 1)]
