from __future__ import annotations

import io

import pandas as pd
import pytest

from affsup_cli.reporting.kinds.cost import build_cost
from affsup_cli.reporting.render.document import DASH, Content
from affsup_cli.reporting.select.spec import CostSpec, load_spec
from affsup_cli.runs.index import RunIndex
from tests.reporting.fake_runs import RunMaker

MEASURED = {"data.name": "cifar10", "model.arch": "resnet110", "affinity.measure": False}


def table4(make: RunMaker) -> Content:
    spec = load_spec("table4")
    assert isinstance(spec, CostSpec)
    return build_cost(spec, RunIndex(make.root))


def cifar10(content: Content) -> tuple[tuple[str, ...], ...]:
    return content.tables[1].rows


def test_the_blocks_stand_in_the_papers_order_with_its_units(make: RunMaker) -> None:
    content = table4(make)
    assert [table.header[0] for table in content.tables] == ["VOC07-Res101", "CIFAR10-Res110"]
    assert content.tables[0].rows == (
        ("Baseline", "79.7 minutes", DASH, "3,137 MB", DASH),
        ("Baseline + L_G", "82.3 minutes", DASH, "3,141 MB", DASH),
        ("ratio", "1.033", DASH, "1.001", DASH),
    )


def test_a_measurement_of_the_relation_network_fills_its_own_block_in_units_of_its_size(make: RunMaker) -> None:
    measured = {"data.name": "voc07", "affinity.measure": False}
    make.measure(measured, [1200.0, 1260.0], [540.0, 541.0], recipe_name="relnet")
    content = table4(make)
    assert [row[2] for row in content.tables[0].rows] == [
        "20.50 ± 0.71 minutes (2)",
        "540.50 ± 0.71 seconds (2)",
        "0.440 [0.429, 0.450] (2)",
    ]
    assert cifar10(content)[0][2] == DASH


def test_without_a_measurement_the_papers_numbers_stand_beside_dashes(make: RunMaker) -> None:
    assert cifar10(table4(make)) == (
        ("Baseline", "34.7 seconds", DASH, "2,117 MB", DASH),
        ("Baseline + L_G", "35.9 seconds", DASH, "2,139 MB", DASH),
        ("ratio", "1.035", DASH, "1.010", DASH),
    )


def test_the_ratio_is_the_median_over_rounds_not_the_ratio_of_means(make: RunMaker) -> None:
    make.measure(MEASURED, baseline=[10.0, 20.0, 40.0], treatment=[11.0, 20.0, 80.0])
    assert cifar10(table4(make)) == (
        ("Baseline", "34.7 seconds", "23.33 ± 15.28 seconds (3)", "2,117 MB", "2,000 MiB"),
        ("Baseline + L_G", "35.9 seconds", "37.00 ± 37.51 seconds (3)", "2,139 MB", "2,100 MiB"),
        ("ratio", "1.035", "1.100 [1.000, 2.000] (3)", "1.010", "1.050"),
    )


def test_the_csv_holds_the_numbers(make: RunMaker) -> None:
    make.measure(MEASURED, baseline=[10.0, 20.0, 40.0], treatment=[11.0, 20.0, 80.0])
    frame = pd.read_csv(io.BytesIO(table4(make).files[".csv"]))
    frame = frame[frame["block"] == "cifar10-resnet110"].set_index("row")
    assert list(frame["runtime"]) == pytest.approx([70 / 3, 37.0, 1.1])
    assert list(frame["rounds"]) == [3, 3, 3]
    assert list(frame["memory"]) == pytest.approx([2000, 2100, 1.05])
    assert frame.loc["ratio", "paper_runtime"] == pytest.approx(35.9 / 34.7)
    assert set(frame["run"]) == {"run001"}


def test_a_machine_that_counts_no_memory_leaves_a_dash(make: RunMaker) -> None:
    make.measure(MEASURED, [10.0], [11.0], megabytes=(None, None))
    assert [row[4] for row in cifar10(table4(make))] == [DASH, DASH, DASH]


def test_a_training_run_of_the_same_recipe_is_no_measurement(make: RunMaker) -> None:
    make.train(MEASURED, 0.9)
    assert table4(make).used == ()


def test_the_newest_faithful_measurement_is_shown_and_the_others_are_named(make: RunMaker) -> None:
    make.measure(MEASURED, [10.0], [11.0], name="old")
    make.measure(MEASURED, [10.0], [12.0], name="new")
    make.measure({**MEASURED, "train.batch_size": 64}, [10.0], [13.0], name="departed")
    content = table4(make)
    assert [run.folder.name for run in content.used] == ["new"]
    assert [note.rpartition(": ")[2] for note in content.notes] == ["old", "departed"]


def test_measuring_m_in_the_baseline_makes_it_another_comparison(make: RunMaker) -> None:
    make.measure({**MEASURED, "affinity.measure": True}, [10.0], [11.0])
    assert table4(make).used == ()


def test_a_departed_measurement_carries_a_mark_also_for_what_it_merely_records(make: RunMaker) -> None:
    make.measure({**MEASURED, "train.test_curve": True}, [10.0], [11.0])
    content = table4(make)
    assert content.footnotes == ("ᵃ train.test_curve = true instead of false",)
    assert cifar10(content)[2][2] == "1.100 [1.100, 1.100] (1) ᵃ"
