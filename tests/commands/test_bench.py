from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from affsup_cli.bench import run, speeds
from affsup_cli.bench.needs import RunKind, Speed
from affsup_cli.commands.bench import bench, print_bench
from data_prep.errors import AffsupError, UsageError
from tests.commands.calling import invoke


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speeds, "SECONDS", 0.05)


def test_bench_prints_speeds_and_hours_and_keeps_them(tmp_path: Path) -> None:
    out = tmp_path / "bench.csv"
    result = invoke(bench, "digits-table3", "--device", "cpu", "--out", str(out))
    assert result.exit_code == 0, result.exception
    assert "minibatch resnet20 digits" in result.output
    assert "hours on this CPU" in result.output
    (line,) = (line for line in result.output.splitlines() if line.startswith("digits-table3 "))
    assert line.split()[1] == "6"
    with out.open(newline="", encoding="utf-8") as file:
        kept = {row["what"]: row for row in csv.DictReader(file)}
    assert kept["table"]["name"] == "digits-table3"
    assert float(kept["step"]["value"]) > 0


def test_bench_refuses_a_place_before_it_times_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "run_bench", None)
    (tmp_path / "file").touch()
    result = invoke(bench, "digits-table3", "--out", str(tmp_path / "file" / "bench.csv"))
    assert isinstance(result.exception, AffsupError)
    assert "--out" in str(result.exception)


def test_bench_says_of_detectors_alone_that_reading_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    for task, said in (("minibatch", False), ("relnet", True)):
        print_bench(run.Bench(torch.device("cpu"), (), {RunKind(task, "", ""): Speed(1.0, 1, 1.0, 1)}))
        assert ("run.cache_gb" in capsys.readouterr().out) == said


def test_bench_refuses_a_table_that_there_is_not(tmp_path: Path) -> None:
    result = invoke(bench, "table9", "--out", str(tmp_path / "bench.csv"))
    assert isinstance(result.exception, UsageError)
    assert not (tmp_path / "bench.csv").exists()
