from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch.distributed import DistBackendError, TCPStore  # type: ignore[attr-defined]

import data_prep
from affsup_cli.distributed import collectives
from affsup_cli.distributed.shard import Shard
from affsup_cli.models.detection import detector
from data_prep.errors import AffsupError, UsageError
from tests.two_processes import do_all


def place_of(rank: int, store: TCPStore) -> dict[str, str]:
    """The environment of one of two processes that meet at a store, which none of them is to open."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    return {**place, "WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}


@contextlib.contextmanager
def two_processes(arguments: list[str]) -> Iterator[list[subprocess.Popen[str]]]:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with contextlib.ExitStack() as ending:
        yield [
            ending.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", *arguments],
                    env={**os.environ, **place_of(rank, store), "OMP_NUM_THREADS": "1"},
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for rank in range(2)
        ]


@pytest.fixture(scope="module")
def folder(shape_scenes: Path) -> Path:
    data_prep.prepare("digits", data_dir=shape_scenes)
    return shape_scenes


@pytest.fixture(scope="module")
def results(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process found, and each of two; their files; and what the two said at their end."""
    out = {name: tmp_path_factory.mktemp(name) for name in ("one", "two")}
    apart = tmp_path_factory.mktemp("apart")  # what the one keeps of images beside the data is not for the two to read
    for data in folder.glob("[!.]*"):
        (apart / data.name).symlink_to(data)
    with two_processes(["tests.two_processes", str(folder), str(out["two"])]) as processes:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(detector, "RPN_SAMPLED", 100_000)
            one = do_all(apart, out["one"])
        said = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1], "".join(said)
    two = [torch.load(out["two"] / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    return {"one": one, "two": two, "out": out, "said": said}


def assert_alike(found: dict[str, Any], expected: dict[str, Any], rtol: float = 1e-4, atol: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


def test_two_processes_train_what_one_trains(results: dict[str, Any]) -> None:
    one, two = results["one"]["toy"], results["two"]
    assert all(torch.equal(two[0]["toy"]["model"][name], two[1]["toy"]["model"][name]) for name in one["model"])
    assert_alike(two[0]["toy"]["model"], one["model"])
    assert len(one["epochs"]) == 2
    for found, expected in zip(two[0]["toy"]["epochs"], one["epochs"], strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
    assert two[0]["toy"]["metrics"] == two[1]["toy"]["metrics"] == pytest.approx(one["metrics"], rel=1e-4)


def test_the_first_process_alone_writes(results: dict[str, Any]) -> None:
    run = results["out"]["two"] / "toy"
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
    assert {path.name for path in run.iterdir()} == {"best.pt", "last.pt", "metrics.jsonl", "result.json"}


def test_processes_draw_random_numbers_of_their_own(results: dict[str, Any]) -> None:
    state = torch.load(results["out"]["two"] / "random-toy" / "last.pt", weights_only=True)
    (other,) = state["random_of_others"]
    assert not torch.equal(state["random"]["cpu"], other["cpu"])


def test_a_stop_of_one_process_stops_all_in_the_same_step_and_they_resume_to_the_same_bits(
    results: dict[str, Any],
) -> None:
    for of_rank in results["two"]:
        left_alone, resumed = of_rank["random toy"], of_rank["stopped toy"]
        assert all(torch.equal(left_alone["model"][name], resumed["model"][name]) for name in left_alone["model"])
        assert left_alone["epochs"] == resumed["epochs"]


def test_a_stopped_process_leaves_when_the_first_one_has_saved(results: dict[str, Any]) -> None:
    assert [of_rank["slowly saved toy"] for of_rank in results["two"]] == [True, True]


def test_a_stop_that_cannot_save_is_said_to_have_saved_by_none(tmp_path: Path) -> None:
    with two_processes(["tests.two_processes", str(tmp_path / "run")]) as processes:
        first, other = (process.communicate()[1] for process in processes)
    assert "AffsupError: the disk is full" in first
    assert other == ""
    assert [process.returncode for process in processes] == [1, 1]


def test_a_loss_that_is_not_finite_on_one_process_ends_all_with_the_same_words(results: dict[str, Any]) -> None:
    said = {of_rank["poisoned toy"] for of_rank in results["two"]}
    assert len(said) == 1
    assert "not finite in epoch 1, step 2: loss = nan, fit_loss = nan" in said.pop()


@pytest.mark.parametrize(
    "name", ["minibatch", "minibatch, logits, uneven", "relnet", "relnet, one image", "relpn", "scene"]
)
def test_a_step_of_two_processes_is_that_of_one(results: dict[str, Any], name: str) -> None:
    expected = results["one"][name]
    assert expected["gradients"]
    for of_rank in results["two"]:
        assert of_rank[name]["values"] == pytest.approx(expected["values"], rel=1e-4, abs=1e-6)
        scale = max(value.abs().max().item() for value in expected["gradients"].values())
        assert_alike(of_rank[name]["gradients"], expected["gradients"], rtol=2e-3, atol=2e-5 * scale)
    assert sum(of_rank[name]["here"] for of_rank in results["two"]) == expected["here"]


def test_a_process_can_be_without_an_image(results: dict[str, Any]) -> None:
    shares = [of_rank["relnet, one image"]["here"] for of_rank in results["two"]]
    assert shares == [1, 0]


def test_a_graph_of_each_process_is_another_than_that_of_all(results: dict[str, Any]) -> None:
    joint, apart = (results["two"][0][name]["values"] for name in ("minibatch", "minibatch, a graph each"))
    assert apart["class_loss"] == pytest.approx(joint["class_loss"])
    assert abs(apart["affinity"] / joint["affinity"] - 1) > 1e-3
    one = results["one"]
    assert one["minibatch, a graph each"]["values"] == one["minibatch"]["values"]


def test_running_statistics_are_those_of_the_whole_batch(results: dict[str, Any]) -> None:
    for of_rank in results["two"]:
        assert_alike(of_rank["statistics"], results["one"]["statistics"], atol=1e-6)


@pytest.mark.parametrize("name", ["minibatch evaluated", "relnet evaluated", "scene evaluated"])
def test_an_evaluation_by_two_processes_is_that_of_one(results: dict[str, Any], name: str) -> None:
    for of_rank in results["two"]:
        assert of_rank[name] == pytest.approx(results["one"][name], rel=1e-5, abs=1e-12)
        assert set(of_rank[name]) == set(results["one"][name])


def test_detections_of_two_processes_stand_in_the_order_of_the_images(results: dict[str, Any]) -> None:
    one, two = (
        json.loads((results["out"][name] / "relnet" / "detections-test.json").read_text()) for name in ("one", "two")
    )
    for key in ("image_id", "category_id"):
        assert [entry[key] for entry in one] == [entry[key] for entry in two]
    for key in ("bbox", "score"):  # the last bits depend on the processor and its threads
        assert np.array([entry[key] for entry in one]) == pytest.approx(
            np.array([entry[key] for entry in two]), rel=1e-4, abs=1e-4
        )


@pytest.mark.parametrize("file", ["relationships-test.h5", "examples.h5"])
def test_files_of_two_processes_have_the_rows_of_one(results: dict[str, Any], file: str) -> None:
    def shapes(path: Path) -> dict[str, tuple[int, ...]]:
        found = {}
        with h5py.File(path) as opened:
            opened.visititems(lambda name, item: found.update({name: getattr(item, "shape", ())}))
        return found

    one, two = (shapes(results["out"][name] / "relnet" / file) for name in ("one", "two"))
    assert one == two
    assert one


def test_of_several_processes_that_fail_one_says_why(results: dict[str, Any]) -> None:
    assert sorted("both say this" in said for said in results["said"]) == [False, True]
    assert sorted(map(len, results["said"]))[0] == 0


def test_shares_are_contiguous_even_and_whole() -> None:
    for number in range(9):
        for count in range(1, 5):
            shares = [Shard(rank, count) for rank in range(count)]
            taken = [list(range(number))[share.slice_of(number)] for share in shares]
            assert list(chain.from_iterable(taken)) == list(range(number))
            assert [len(part) for part in taken] == shares[0].sizes(number)
            assert len(taken[0]) == max(map(len, taken)) <= min(map(len, taken)) + 1


def test_one_process_needs_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with collectives.init_distributed("cpu"):
        assert (collectives.rank(), collectives.world_size()) == (0, 1)


def test_what_processes_cannot_be_started_with_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with (
        pytest.raises(UsageError, match=r"WORLD_SIZE is set.*RANK expected, but not set"),
        collectives.init_distributed("cpu"),
    ):
        pass
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UsageError, match="WORLD_SIZE = 'two'"), collectives.init_distributed("cpu"):
        pass
    for rank, processes in (("2", "2"), ("0", "0")):
        monkeypatch.setenv("WORLD_SIZE", processes)
        monkeypatch.setenv("RANK", rank)
        said = f"RANK = {rank} and WORLD_SIZE = {processes} in the environment: expected a RANK below WORLD_SIZE"
        with pytest.raises(UsageError, match=said), collectives.init_distributed("cpu"):
            pass


def test_a_device_that_none_can_take_is_refused_once(monkeypatch: pytest.MonkeyPatch) -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    several = "run.device = 'cuda:0': each of several processes takes a GPU of its own"
    for rank, kind, said in ((1, UsageError, several), (0, SystemExit, "2")):
        for name, value in place_of(rank, store).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(kind, match=said), collectives.init_distributed("cuda:0"):
            pass


def test_where_processes_cannot_meet_is_said_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        for name, value in zip(("MASTER_ADDR", "MASTER_PORT"), place.split(":"), strict=True):
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", "0")
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        said = f"the processes cannot find each other at {place}: .*EADDRINUSE"
        with pytest.raises(AffsupError, match=said), collectives.init_distributed("cpu"):
            pass
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_waits_for_the_others_can_be_stopped(number: signal.Signals) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(silent.getsockname()[1])}
        silent.settimeout(120)
        script = "from affsup_cli.distributed import collectives\nwith collectives.init_distributed('cpu'): pass"
        with subprocess.Popen(
            [sys.executable, "-c", script], env={**os.environ, **place, "WORLD_SIZE": "2", "RANK": "1"}
        ) as process:
            connection, _ = silent.accept()
            process.send_signal(number)
            try:
                assert process.wait(30) == -number
            finally:
                process.kill()
                connection.close()


WAITS_FOR_RANK_1 = """
import datetime, time, torch
from affsup_cli.distributed import collectives
with collectives.init_distributed("cpu"):
    collectives.set_timeout(torch.device("cpu"), datetime.timedelta(seconds=1))
    if collectives.rank():
        time.sleep(600)
    collectives.all_reduce_sum(torch.ones(1))
"""


def test_a_collective_that_a_process_does_not_join_ends_after_the_timeout_of_its_device() -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WAITS_FOR_RANK_1],
            env={**os.environ, **place_of(rank, store)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        _, said = processes[0].communicate(timeout=120)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert "another process of this run has ended, or cannot be reached" in said
    assert "imed out" in said


def test_on_gpus_the_process_group_is_bound_to_the_gpu_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL then connects at the start, where a failure is reported, and has its own timeout."""
    called: dict[str, Any] = {}

    def initialise(backend: str, **options: Any) -> None:
        called.update(options, backend=backend)

    def limit(device: torch.device, timeout: Any) -> None:
        called["limited"] = (device, timeout)

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for name, value in (place_of(1, store) | {"LOCAL_RANK": "1"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(collectives, "gpus", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch.distributed, "init_process_group", initialise)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    monkeypatch.setattr(collectives, "set_timeout", limit)
    with collectives.init_distributed("cuda"):
        pass
    gpu = torch.device("cuda", 1)
    assert (called["backend"], called["device_id"]) == ("cpu:gloo,cuda:nccl", gpu)
    assert called["timeout"] == collectives.COLLECTIVE_TIMEOUT
    assert called["limited"] == (gpu, collectives.GPU_COLLECTIVE_TIMEOUT)


def test_what_nccl_says_last_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise DistBackendError("NCCL error in: x.cpp:47\nLast error:\nno room in /dev/shm")

    monkeypatch.setattr(torch.distributed, "all_reduce", fail)
    monkeypatch.setattr(collectives, "world_size", lambda: 2)
    with pytest.raises(
        AffsupError, match=r"communication between the processes failed: NCCL error .* Last error: no room in /dev/shm"
    ):
        collectives.all_reduce_sum(torch.ones(1))


def test_an_error_that_is_not_of_the_collective_keeps_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(collectives, "broadcast_model", lambda _: None)
    monkeypatch.setattr(collectives, "world_size", lambda: 2)
    model = torch.nn.Linear(1, 1)
    model(torch.ones(1, 1)).backward()
    same = collectives.ModelReplica(model)
    monkeypatch.setattr(torch, "cat", fail)
    with pytest.raises(RuntimeError, match=r"^CUDA error"):
        same.all_reduce_gradients(0.5)
