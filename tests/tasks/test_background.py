from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from affsup_cli.tasks.background import MAX_PENDING, HostCopy, map_in_background


def test_work_is_done_in_order() -> None:
    assert list(map_in_background(lambda number: number**2, range(20))) == [number**2 for number in range(20)]


def test_an_item_is_made_while_the_one_before_it_is_worked_on() -> None:
    working, made = threading.Event(), threading.Event()
    met = []

    def items() -> Iterator[int]:
        yield 0
        met.append(working.wait(30))
        made.set()
        yield 1

    def work(number: int) -> int:
        working.set()
        met.append(made.wait(30))
        return number

    assert list(map_in_background(work, items())) == [0, 1]
    assert met == [True, True, True]


def test_no_more_than_a_few_items_wait() -> None:
    made = []

    def items() -> Iterator[int]:
        for number in range(10):
            made.append(number)
            yield number

    results = map_in_background(str, items())
    for taken in range(10):
        assert next(results) == str(taken)
        assert len(made) <= taken + 1 + MAX_PENDING


def test_an_error_of_the_work_or_of_an_item_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        list(map_in_background(lambda number: 1 // number, [1, 0, 1]))

    def items() -> Iterator[int]:
        yield 1
        raise OSError("torn")

    with pytest.raises(OSError, match="torn"):
        list(map_in_background(str, items()))


def test_tensors_come_to_the_host_as_they_are(device: torch.device) -> None:
    values = {"a": torch.arange(5, device=device), "b": torch.rand(2, 3, device=device)}
    read = HostCopy(values).read()
    assert list(read) == ["a", "b"]
    assert all(read[name].device.type == "cpu" and torch.equal(read[name], values[name].cpu()) for name in values)
