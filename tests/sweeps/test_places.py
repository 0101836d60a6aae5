from __future__ import annotations

import os

import pytest
import torch

from affsup_cli.recipe import load_recipe
from affsup_cli.sweeps import places
from affsup_cli.sweeps.places import find_places
from data_prep.errors import UsageError


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    monkeypatch.setattr(places, "_cores", lambda: 8)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_one_job_on_a_cpu_has_all_of_it() -> None:
    (place,) = find_places("cpu")
    assert (place.device, place.environment) == ("cpu", {})


def test_jobs_on_a_cpu_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_cores", lambda: 7)
    found = find_places("cpu", 3)
    assert [place.environment for place in found] == [{"OMP_NUM_THREADS": "2"}] * 3
    assert found[0] != found[1]
    assert found[0].alone().environment == {}
    monkeypatch.setattr(places, "_cores", lambda: 1)
    assert find_places("cpu", 2)[0].environment == {"OMP_NUM_THREADS": "1"}


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_every_gpu_has_as_many_places_as_jobs_and_each_sees_that_gpu_alone(device: str) -> None:
    found = find_places(device, 2)
    assert [place.device for place in found] == ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]
    assert [place.environment["CUDA_VISIBLE_DEVICES"] for place in found] == ["0", "0", "1", "1"]
    assert {place.environment["OMP_NUM_THREADS"] for place in found} == {"2"}
    assert found[2].name == "GPU 1"
    assert found[2].alone().environment == {"CUDA_VISIBLE_DEVICES": "1"}


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_that_was_asked_for_is_the_first_that_its_process_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", "GPU-aa,GPU-bb")
    (place,) = find_places("cuda:1")
    assert place.environment["CUDA_VISIBLE_DEVICES"] == "GPU-bb"
    assert place.recipe(load_recipe("minibatch", {"run.device": "cuda:1"})).run.device == "cuda"
    assert place.recipe(load_recipe("minibatch")).run.device == "auto"


def test_a_device_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match=r"run\.device = 'tpu'"):
        find_places("tpu")
