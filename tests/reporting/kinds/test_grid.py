from __future__ import annotations

import io
import math
from typing import Any

import pandas as pd
import pytest
from scipy import stats

from affsup_cli.reporting.kinds.grid import build_grid
from affsup_cli.reporting.render.document import DASH, MINUS, Content
from affsup_cli.reporting.select.spec import GridSpec, load_spec
from affsup_cli.runs.index import RunIndex
from tests.reporting.fake_runs import AFFINITY, BASE, SHORT, RunMaker


def table3(make: RunMaker) -> Content:
    spec = load_spec("table3")
    assert isinstance(spec, GridSpec)
    return build_grid(spec, RunIndex(make.root))


def rows(content: Content, block: int = 0) -> list[tuple[str, ...]]:
    """The rows of the paper and ours."""
    return [row for row in content.tables[block].rows if row[1] != "elsewhere"]


def column(content: Content, block: int = 0, place: int = 2) -> list[str]:
    return [row[place] for row in rows(content, block)]


def footnotes(content: Content) -> tuple[str, ...]:
    """The footnotes of the runs."""
    return tuple(line for line in content.footnotes if "elsewhere:" not in line)


def cells(content: Content) -> pd.DataFrame:
    return pd.read_csv(io.BytesIO(content.files[".cells.csv"]))


def resnet20_on_cifar10(content: Content, row: str) -> pd.Series[Any]:
    frame = cells(content)
    (_, line), *others = frame[
        frame[["block", "column", "row"]].eq(["cifar10", "resnet20", row]).all(axis=1)
    ].iterrows()
    assert not others
    return line


def test_without_runs_the_papers_numbers_stand_beside_dashes(make: RunMaker) -> None:
    assert column(table3(make)) == ["91.34 ± 0.27", DASH, DASH, "92.03 ± 0.21", DASH, DASH, "+0.69", DASH]


def test_the_layout_is_the_papers(make: RunMaker) -> None:
    content = table3(make)
    assert [table.header for table in content.tables] == [
        ("CIFAR-10", "", "ResNet 20", "ResNet 56", "ResNet 110"),
        ("CIFAR-100", "", "ResNet 20", "ResNet 56", "ResNet 110"),
        ("Tiny Imagenet", "", "ResNet 18", "ResNet 50", "ResNet 101"),
    ]
    assert [row[:2] for row in rows(content)] == [
        ("base CNN", "paper"),
        ("base CNN", "ours"),
        ("base CNN", f"ours {MINUS} paper"),
        ("Affinity Sup", "paper"),
        ("Affinity Sup", "ours"),
        ("Affinity Sup", f"ours {MINUS} paper"),
        (f"Affinity Sup {MINUS} base CNN", "paper"),
        (f"Affinity Sup {MINUS} base CNN", "ours, paired"),
    ]


def test_faithful_runs_give_mean_deviation_number_and_difference_without_a_mark(make: RunMaker) -> None:
    for seed, accuracy in enumerate([0.91, 0.92, 0.93]):
        make.train(BASE, accuracy, seed)
    content = table3(make)
    assert column(content)[:3] == ["91.34 ± 0.27", "92.00 ± 1.00 (3)", "+0.66"]
    assert footnotes(content) == ()


def test_a_single_run_has_no_deviation_and_no_interval(make: RunMaker) -> None:
    make.train(BASE, 0.91)
    make.train(AFFINITY, 0.92)
    shown = column(table3(make))
    assert (shown[1], shown[4], shown[7]) == ("91.00 (1)", "92.00 (1)", "+1.00 (1)")


def test_the_paired_difference_takes_common_seeds_only(make: RunMaker) -> None:
    for seed, accuracy in {0: 0.90, 1: 0.91, 2: 0.92}.items():
        make.train(BASE, accuracy, seed)
    for seed, accuracy in {1: 0.92, 2: 0.94, 9: 0.10}.items():
        make.train(AFFINITY, accuracy, seed)
    content = table3(make)
    half = stats.t.ppf(0.975, 1) * math.sqrt(0.5) / math.sqrt(2)
    assert column(content)[7] == f"+1.50 [{1.5 - half:+.2f}, {1.5 + half:+.2f}] (2)"
    line = resnet20_on_cifar10(content, "affinity-base")
    assert line["mean"] == pytest.approx(1.5)
    assert (line["ci_low"], line["ci_high"]) == pytest.approx((1.5 - half, 1.5 + half))
    assert line["seeds"] == "1 2"


def test_every_number_from_departed_runs_carries_a_mark_and_its_footnote(make: RunMaker) -> None:
    for seed in range(2):
        make.train({**BASE, **SHORT}, 0.5, seed, data={"limit": 5000, "complete": False})
        make.train({**AFFINITY, **SHORT}, 0.6, seed, data={"limit": 5000, "complete": False})
    content = table3(make)
    shown = column(content)
    assert [shown[place].endswith(" ᵃ") for place in (1, 2, 4, 5, 7)] == [True] * 5
    assert [shown[place].endswith("ᵃ") for place in (0, 3, 6)] == [False] * 3
    assert footnotes(content) == (
        "ᵃ train.epochs = 2 instead of 200; train.milestones = [] instead of [100, 150]; 5,000 of the training images",
    )


def test_different_departures_have_different_marks(make: RunMaker) -> None:
    make.train({**BASE, "train.epochs": 2}, 0.5)
    make.train({**BASE, "model.arch": "resnet56", "train.epochs": 3}, 0.5)
    make.train({**BASE, "model.arch": "resnet110", "train.epochs": 2}, 0.5)
    content = table3(make)
    assert [column(content, place=place)[1] for place in (2, 3, 4)] == ["50.00 (1) ᵃ", "50.00 (1) ᵇ", "50.00 (1) ᵃ"]
    assert len(footnotes(content)) == 2


def test_unofficial_data_has_a_footnote_of_its_own_and_unknown_data_none(make: RunMaker) -> None:
    make.train(BASE, 0.91, data={"official": False})
    make.train({**BASE, "model.arch": "resnet56"}, 0.91, data={"official": None})
    content = table3(make)
    assert column(content)[1] == "91.00 (1) ᵃ"
    assert column(content, place=3)[1] == "91.00 (1)"
    assert footnotes(content) == ("ᵃ the checksum of the cifar10 archive is not the official one",)


def test_a_run_with_a_number_that_is_not_finite_does_not_count_and_is_named(make: RunMaker) -> None:
    make.train(BASE, 0.91, seed=0)
    make.train(BASE, math.nan, seed=1, name="diverged")
    content = table3(make)
    assert column(content)[1] == "91.00 (1)"
    assert content.notes == ("cifar10/resnet20: left out (test_accuracy is nan): diverged",)


def test_the_shown_csv_has_a_column_for_each_network_and_blanks_where_a_block_lacks_it(make: RunMaker) -> None:
    make.train(BASE, 0.91)
    frame = pd.read_csv(io.BytesIO(table3(make).files[".csv"]), keep_default_na=False)
    networks = ["ResNet 20", "ResNet 56", "ResNet 110", "ResNet 18", "ResNet 50", "ResNet 101"]
    assert list(frame.columns) == ["block", "row", "entry", *networks]
    assert len(frame[frame["entry"] != "elsewhere"]) == 24
    ours = frame[(frame["row"] == "base CNN") & (frame["entry"] == "ours")].set_index("block")
    assert list(ours.loc["CIFAR-10", networks]) == ["91.00 (1)", DASH, DASH, "", "", ""]
    assert list(ours.loc["Tiny Imagenet", networks]) == ["", "", "", DASH, DASH, DASH]


def test_the_cells_csv_holds_full_precision_and_where_numbers_come_from(make: RunMaker) -> None:
    accuracies = [0.9123456789, 0.9234567891]
    for seed, accuracy in enumerate(accuracies):
        make.train({**BASE, "train.epochs": 2}, accuracy, seed)
    content = table3(make)
    line = resnet20_on_cifar10(content, "base")
    assert line["mean"] == pytest.approx(100 * sum(accuracies) / 2, abs=1e-12)
    assert line["n"] == 2
    assert (line["seeds"], line["runs"]) == ("0 1", "run001 run002")
    assert line["marks"] == "ᵃ"
    assert footnotes(content) == ("ᵃ train.epochs = 2 instead of 200",)
    assert line["data_digest"] == "d" * 64
    assert (line["paper_mean"], line["paper_std"]) == (91.34, 0.27)
    assert len(cells(content)) == 27
    assert cells(content)["n"].sum() == 2


def test_numbers_of_other_projects_stand_below_those_of_the_paper_with_their_source(make: RunMaker) -> None:
    content = table3(make)
    cifar10, cifar100, tiny = ([row for row in table.rows if row[1] == "elsewhere"] for table in content.tables)
    assert cifar10 == [("base CNN", "elsewhere", "91.73 ᵃ", "93.39 ᵃ", "93.68 ᵃ")]
    assert cifar100 == [("base CNN", "elsewhere", "69.06 ᵇ", "72.34 ᵇ", "74.31 ᵇ")]
    assert tiny == []
    assert [("akamaster" in line, "RepDistiller" in line) for line in content.footnotes] == [
        (True, False),
        (False, True),
    ]
    assert resnet20_on_cifar10(content, "base")["elsewhere"] == 91.73
    assert math.isnan(resnet20_on_cifar10(content, "affinity")["elsewhere"])


def test_a_table_without_paper_values_has_no_paper_lines(make: RunMaker) -> None:
    make.train({"data.name": "digits", "model.arch": "resnet20", "affinity.loss": "none"}, 0.95)
    spec = load_spec("digits-table3")
    assert isinstance(spec, GridSpec)
    content = build_grid(spec, RunIndex(make.root))
    assert content.tables[0].rows == (
        ("base CNN", "ours", "95.00 (1)"),
        ("Affinity Sup", "ours", DASH),
        (f"Affinity Sup {MINUS} base CNN", "ours, paired", DASH),
    )
