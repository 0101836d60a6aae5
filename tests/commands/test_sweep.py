from __future__ import annotations

from pathlib import Path

from affsup_cli.commands import sweep as command
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
