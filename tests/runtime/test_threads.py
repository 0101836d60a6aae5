from __future__ import annotations

import threading

import pytest
import torch

from affsup_cli.runtime.threads import thread_pool


@pytest.mark.parametrize("initialised", [True, False])
def test_threads_work_on_the_gpu_that_is_current_where_they_are_made(
    monkeypatch: pytest.MonkeyPatch, initialised: bool
) -> None:
    selected: list[tuple[str, int]] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: initialised)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda gpu: selected.append((threading.current_thread().name, gpu)))
    with thread_pool(1, "worker") as pool:
        assert pool.submit(lambda: threading.current_thread().name).result() == "worker_0"
    assert selected == ([("worker_0", 1)] if initialised else [])
