from __future__ import annotations

import csv
import errno
import os
from pathlib import Path

import pytest
import torch

from affsup_cli.bench import run as whole
from affsup_cli.bench.needs import RunKind, Speed, needed_runs
from affsup_cli.bench.run import TOTAL, Bench, Estimate, require_writable, run_bench
from data_prep.errors import AffsupError, UsageError

KIND = RunKind("relnet", "resnet101", "600x1000")


def test_runs_that_tables_share_count_once_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(whole, "make", lambda name, folder, test_of_gpu: told.append(name))
    monkeypatch.setattr(whole, "measure", lambda kinds, *_: {kind: Speed(3600.0, 1, 0.0, 1) for kind in kinds})
    found = run_bench(["table5", "table6"], "cpu", id)  # type: ignore[arg-type]
    assert [estimate.table for estimate in found.estimates] == ["table5", "table6", TOTAL]
    together = needed_runs("table5") | needed_runs("table6")
    assert found.estimates[-1].runs == len(together)
    assert found.estimates[-1].hours == pytest.approx(
        sum(8 * {"voc07": 5011, "coco": 35504}[run.recipe.flat()["data.name"]] for run in together.values())
    )
    assert set(told) <= {"voc07", "coco"}


def test_a_wrong_table_is_refused_before_anything_is_timed() -> None:
    with pytest.raises(UsageError, match="no table or figure 'tabel3'"):
        run_bench(["tabel3"], "cpu", id)  # type: ignore[arg-type]


def test_a_place_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch(0o755)
    with pytest.raises(AffsupError, match=r"cannot write .*new.bench\.csv: .*file is not a writable folder"):
        require_writable(tmp_path / "file" / "new" / "bench.csv")


def test_a_folder_that_may_not_be_written_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # for root every folder may be
    with pytest.raises(AffsupError, match="is not a writable folder"):
        require_writable(tmp_path / "new" / "bench.csv")


def test_a_folder_that_can_be_made_is_not_made_yet(tmp_path: Path) -> None:
    require_writable(tmp_path / "new" / "bench.csv")
    assert list(tmp_path.iterdir()) == []


def test_a_csv_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bench.csv").write_text("old")

    def full(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(AffsupError, match="no space to write"):
        Bench(torch.device("cpu"), (), {}).write(tmp_path / "bench.csv")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("bench.csv", "old")]


def test_the_csv_has_machine_date_and_commit_in_each_row(tmp_path: Path) -> None:
    bench = Bench(
        torch.device("cpu"),
        (Estimate("table1", 21, 123.4, (KIND,)),),
        {KIND: Speed(9.5, 1, 2.5, 2)},
    )
    bench.write(tmp_path / "new" / "bench.csv")
    with (tmp_path / "new" / "bench.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["what"], row["name"], row["value"], row["measured"]) for row in rows] == [
        ("table", "table1", "123.4", "21 runs"),
        ("step", "relnet resnet101 600x1000", "9.5", "1 steps"),
        ("evaluation", "relnet resnet101 600x1000", "2.5", "2 images"),
    ]
    assert all(row["device"] and row["threads"] and row["torch"] and row["date"] and row["commit"] for row in rows)
