from __future__ import annotations

from pathlib import Path

import pytest

from affsup_cli.recipe import load_recipe
from affsup_cli.sweeps.messages import RunRequest
from affsup_cli.sweeps.slots import Slot
from affsup_cli.sweeps.workers import LocalWorkers


def test_a_run_goes_to_the_device_that_has_the_fewest(tmp_path: Path) -> None:
    request = RunRequest(load_recipe("minibatch", {"run.device": "cpu"}), None, tmp_path, tmp_path / "run", None)
    workers = LocalWorkers([Slot(device, device, {}) for device in ("a", "a", "a", "b", "b")])
    try:
        assert [workers.start(number, request) for number in range(5)] == ["a", "b", "a", "b", "a"]
        assert not workers.has_room()
    finally:
        workers.close()


@pytest.mark.parametrize("devices", [("a", "b"), ("b", "a")])
def test_a_worker_that_is_idle_is_given_the_next_run(tmp_path: Path, devices: tuple[str, str]) -> None:
    request = RunRequest(load_recipe("minibatch", {"run.device": "cpu"}), None, tmp_path, tmp_path / "run", None)
    workers = LocalWorkers([Slot(device, device, {}) for device in devices])
    try:
        first = workers.start(0, request)
        (worker,) = workers._workers
        worker.run = None  # as after a run that is finished
        assert workers.start(1, request) == first
        assert workers._workers == [worker]
    finally:
        workers.close()
