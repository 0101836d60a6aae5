from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

import data_prep
from affsup_cli.data.share import Share
from affsup_cli.engine import distributed
from affsup_cli.errors import UsageError
from affsup_cli.models import detector
from tests.together import do_all


@contextlib.contextmanager
def two_processes(arguments: list[str]) -> Iterator[list[subprocess.Popen[str]]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    with contextlib.ExitStack() as ending:
        yield [
            ending.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", *arguments],
                    env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
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
    with two_processes(["tests.together", str(folder), str(out["two"])]) as processes:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(detector, "RPN_SAMPLED", 100_000)
            one = do_all(folder, out["one"])
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


@pytest.mark.parametrize("file", ["detections-test.json", "relationships-test.h5", "examples.h5"])
def test_what_two_processes_find_stands_in_the_order_of_the_images(results: dict[str, Any], file: str) -> None:
    files = [results["out"][name] / "relnet" / file for name in ("one", "two")]
    assert files[0].stat().st_size == files[1].stat().st_size
    if file.endswith("json"):
        assert files[0].read_text() == files[1].read_text()


def test_of_several_processes_that_fail_one_says_why(results: dict[str, Any]) -> None:
    assert sorted("both say this" in said for said in results["said"]) == [False, True]
    assert sorted(map(len, results["said"]))[0] == 0


def test_shares_are_contiguous_even_and_whole() -> None:
    for number in range(9):
        for count in range(1, 5):
            shares = [Share(rank, count) for rank in range(count)]
            taken = [list(range(number))[share.of(number)] for share in shares]
            assert list(chain.from_iterable(taken)) == list(range(number))
            assert [len(part) for part in taken] == shares[0].sizes(number)
            assert len(taken[0]) == max(map(len, taken)) <= min(map(len, taken)) + 1


def test_one_process_needs_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with distributed.joined("cpu"):
        assert (distributed.rank(), distributed.count()) == (0, 1)


def test_what_processes_cannot_be_started_with_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    several = "run.device = 'cuda:0': each of several processes takes a GPU of its own"
    with pytest.raises(UsageError, match=several), distributed.joined("cuda:0"):
        pass
    with pytest.raises(UsageError, match=r"WORLD_SIZE is set.*RANK expected, but not set"), distributed.joined("cpu"):
        pass
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UsageError, match="WORLD_SIZE = 'two'"), distributed.joined("cpu"):
        pass
