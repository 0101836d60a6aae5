from __future__ import annotations

from pathlib import Path

import pytest

from affsup_cli.commands import sweep as command
from affsup_cli.runtime import devices
from tests.commands.calling import invoke


def plan_lines(tmp_path: Path, *arguments: str) -> list[list[str]]:
    """The words of each line that `sweep --dry-run` prints."""
    folders = ("--data", str(tmp_path / "data"), "--runs", str(tmp_path / "runs"))
    printed = invoke(command.sweep, *arguments, "--device", "cpu", "--dry-run", *folders).output
    return [line.split() for line in printed.splitlines()]


def test_each_run_is_counted_once_so_that_the_lines_of_a_plan_add_up_to_its_title(tmp_path: Path) -> None:
    title, heads, *lines = plan_lines(tmp_path, "table3", "figure6", "--only", "base")
    note = next(number for number, line in enumerate(lines) if line[0] == "+:")
    assert heads == ["cell", "runs", "+", "finished", "unfinished", "to", "do", "time"]
    assert lines[:2] == [
        ["table3/cifar10/resnet20/base", "10", "0", "0", "10", "–"],
        ["figure6/base", "0", "+1", "0", "0", "0", "–"],
    ]
    runs, to_do = (sum(int(line[place]) for line in lines[:note]) for place in (1, -2))
    assert title[2:7] == [str(runs), "runs,", str(to_do), "to", "do"]


def test_the_plan_of_a_table_that_shares_nothing_has_no_column_for_it(tmp_path: Path) -> None:
    _, heads, *lines = plan_lines(tmp_path, "table3", "--seeds", "1")
    assert "+" not in heads
    assert not any(line[0] == "+:" for line in lines)


@pytest.mark.parametrize(("precision", "warnings"), [("bf16", 1), ("float32", 0), ("auto", 0)])
def test_a_precision_that_is_slow_on_this_processor_is_named_before_a_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, warnings: int
) -> None:
    monkeypatch.setattr(devices, "has_bf16_instructions", lambda device: False)
    lines = plan_lines(tmp_path, "table3", "--seeds", "1", "--jobs", "2", "--set", f"train.precision={precision}")
    assert sum(line[:3] == ["warning:", "train.precision", "="] for line in lines) == warnings
