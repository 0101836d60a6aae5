from __future__ import annotations

import os

import pytest
import torch

from affsup_cli.recipe import load_recipe
from affsup_cli.sweeps import slots
from affsup_cli.sweeps.slots import find_slots
from data_prep.errors import UsageError


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    monkeypatch.setattr(slots, "usable_cores", lambda: 8)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_one_job_on_a_cpu_has_all_of_it() -> None:
    (slot,) = find_slots("cpu")
    assert (slot.device, slot.environment) == ("cpu", {})


def test_jobs_on_a_cpu_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "usable_cores", lambda: 7)
    found = find_slots("cpu", 3)
    assert [slot.environment for slot in found] == [{"OMP_NUM_THREADS": "2"}] * 3
    assert found[0] != found[1]
    assert found[0].alone().environment == {}
    monkeypatch.setattr(slots, "usable_cores", lambda: 1)
    assert find_slots("cpu", 2)[0].environment == {"OMP_NUM_THREADS": "1"}


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_jobs_are_spread_over_the_gpus_and_each_sees_its_gpu_alone(device: str) -> None:
    found = find_slots(device, 2)
    assert [slot.device for slot in found] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in found] == ["0", "1", "0", "1"]
    assert {slot.environment["OMP_NUM_THREADS"] for slot in found} == {"2"}
    assert found[1].name == "GPU 1"
    assert found[1].alone().environment == {"CUDA_VISIBLE_DEVICES": "1"}


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_that_was_asked_for_is_the_first_that_its_process_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", "GPU-aa,GPU-bb")
    (slot,) = find_slots("cuda:1")
    assert slot.environment["CUDA_VISIBLE_DEVICES"] == "GPU-bb"
    assert slot.recipe(load_recipe("minibatch", {"run.device": "cuda:1"})).run.device == "cuda"
    assert slot.recipe(load_recipe("minibatch")).run.device == "auto"


def test_a_device_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match=r"run\.device = 'tpu'"):
        find_slots("tpu")
