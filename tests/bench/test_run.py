from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from affsup_cli.bench import run as whole
from affsup_cli.bench.needs import Kind, Speed, needed_runs
from affsup_cli.bench.parts import Rate, Sizes, measure_parts
from affsup_cli.bench.run import TOTAL, Bench, Estimate, run_bench
from affsup_cli.bench.speeds import Ratio
from affsup_cli.errors import UsageError

SMALL = Sizes(nodes=32, images=2, proposals=8, rounds=1)
KIND = Kind("relnet", "resnet101", "600x1000")


def test_runs_that_tables_share_count_once_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(whole, "make", lambda name, folder: told.append(name))
    monkeypatch.setattr(whole, "measure", lambda kinds, *_: ({kind: Speed(3600.0, 1, 0.0, 1) for kind in kinds}, []))
    found = run_bench(["table5", "table6"], "cpu", id, SMALL)  # type: ignore[arg-type]
    assert [estimate.table for estimate in found.estimates] == ["table5", "table6", TOTAL]
    together = needed_runs("table5") | needed_runs("table6")
    assert found.estimates[-1].runs == len(together)
    assert found.estimates[-1].hours == pytest.approx(
        sum(8 * {"voc07": 5011, "coco": 35504}[run.recipe.flat()["data.name"]] for run in together.values())
    )
    assert set(told) <= {"voc07", "coco"}


def test_a_wrong_table_is_refused_before_anything_is_timed() -> None:
    with pytest.raises(UsageError, match="no table or figure 'tabel3'"):
        run_bench(["tabel3"], "cpu", id, SMALL)  # type: ignore[arg-type]


def test_the_parts_are_timed() -> None:
    ratios, rates = measure_parts(torch.device("cpu"), id, SMALL)  # type: ignore[arg-type]
    assert [ratio.what for ratio in ratios] == ["L_G of 32 nodes, plain ÷ tiled", "mAP by pycocotools ÷ ours"]
    assert all(rate.images_per_second > 0 for rate in rates)


def test_the_csv_has_machine_date_and_commit_in_each_row(tmp_path: Path) -> None:
    bench = Bench(
        torch.device("cpu"),
        (Estimate("table1", 21, 123.4, (KIND,)),),
        {KIND: Speed(9.5, 1, 2.5, 2)},
        (Ratio("a ÷ b", 1.01, 3, "at most 1.02"),),
        (Rate("recall", 1234.5),),
    )
    bench.write(tmp_path / "new" / "bench.csv")
    with (tmp_path / "new" / "bench.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["what"], row["name"], row["value"], row["measured"]) for row in rows] == [
        ("table", "table1", "123.4", "21 runs"),
        ("step", "relnet resnet101 600x1000", "9.5", "1 steps"),
        ("evaluation", "relnet resnet101 600x1000", "2.5", "2 images"),
        ("ratio", "a ÷ b", "1.01", "3 rounds"),
        ("rate", "recall", "1234", ""),
    ]
    assert all(row["device"] and row["threads"] and row["torch"] and row["date"] and row["commit"] for row in rows)
