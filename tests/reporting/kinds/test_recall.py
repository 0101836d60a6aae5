from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
import pytest

from affsup_cli.reporting.kinds.recall import build_recall
from affsup_cli.reporting.render.document import DASH, Content
from affsup_cli.reporting.select.spec import RecallSpec, load_spec
from affsup_cli.runs.index import RunIndex
from tests.reporting.fake_runs import RunMaker
from tests.reporting.pictures import has_colour, margin_is_white, pixels

VG = {"data.name": "vg"}
BASELINE = {**VG, "affinity.loss": "none"}


def recalls(micro: Mapping[int, float], macro: Mapping[int, float] | None = None) -> dict[str, float]:
    found = {f"test_recall@{k}": value for k, value in micro.items()}
    return found | {f"test_recall_macro@{k}": value for k, value in (macro or {}).items()} | {"test_map_50": 0.5}


def run(
    make: RunMaker, overrides: Mapping[str, Any], found: Mapping[str, Any], seed: int = 0, name: str = "relnet"
) -> None:
    make.finish(overrides, found, seed, recipe_name=name)


def figure4(make: RunMaker) -> Content:
    spec = load_spec("figure4")
    assert isinstance(spec, RecallSpec)
    return build_recall(spec, RunIndex(make.root))


def frame(content: Content) -> pd.DataFrame:
    return pd.read_csv(io.BytesIO(content.files[".csv"]))


def test_without_runs_the_csv_has_no_values_and_the_caption_says_that_the_paper_prints_none(make: RunMaker) -> None:
    content = figure4(make)
    assert set(content.files) == {".csv"}
    lines = frame(content)
    assert lines[["micro", "macro", "run"]].isna().all(axis=None)
    assert len(lines) == 4 * 7
    assert "ours alone" in content.caption


def test_the_csv_holds_both_averages_in_percent_for_every_curve_seed_and_k(make: RunMaker) -> None:
    for seed in range(2):
        run(make, BASELINE, recalls({500: 0.25, 100: 0.125 + seed / 8}, {500: 0.5, 100: 0.75}), seed)
    run(make, VG, recalls({100: 0.5, 500: 1.0}, {100: 0.25, 500: 0.5}), name="relpn")
    lines = frame(figure4(make))
    assert list(lines.columns) == ["curve", "seed", "k", "micro", "macro", "run", "marks", "data_digest"]
    assert lines[["curve", "seed", "k", "micro", "macro", "run"]].values.tolist() == [
        ["baseline", 0, 100, 12.5, 75.0, "run001"],
        ["baseline", 0, 500, 25.0, 50.0, "run001"],
        ["baseline", 1, 100, 25.0, 75.0, "run002"],
        ["baseline", 1, 500, 25.0, 50.0, "run002"],
        ["relpn", 0, 100, 50.0, 25.0, "run003"],
        ["relpn", 0, 500, 100.0, 50.0, "run003"],
    ]


def test_the_tables_give_mean_and_deviation_a_k_and_dashes_for_missing_curves(make: RunMaker) -> None:
    for seed, value in enumerate([0.4, 0.42]):
        run(make, {**VG, "affinity.target": "relationship"}, recalls({1000: value}, {1000: value / 2}), seed)
    content = figure4(make)
    micro, macro = content.tables
    assert micro.header == ("recall@K (%), all pairs", "1,000", "runs")
    assert micro.rows[3] == ("aff-sup-rel", "41.0 ± 1.4", "2")
    assert micro.rows[0] == ("baseline", DASH, "0")
    assert macro.header[0] == "recall@K (%), mean over images"
    assert macro.rows[3] == ("aff-sup-rel", "20.5 ± 0.7", "2")
    assert content.notes == ("no runs for baseline, Rel-PN, aff-sup-obj",)


def test_only_ks_that_all_runs_have_are_shown(make: RunMaker) -> None:
    run(make, BASELINE, recalls({100: 0.1, 500: 0.2, 1000: 0.3}))
    run(make, VG, recalls({500: 0.4, 1000: 0.5, 2000: 0.6}))
    content = figure4(make)
    assert content.tables[0].header[1:-1] == ("500", "1,000")
    assert set(frame(content)["k"]) == {500, 1000}


def test_runs_without_a_k_in_common_are_named_and_not_drawn(make: RunMaker) -> None:
    run(make, BASELINE, recalls({100: 0.1}))
    run(make, VG, recalls({500: 0.4}))
    content = figure4(make)
    assert content.files == {}
    assert content.notes == ("no K in common: run001, run002",)


def test_without_the_mean_over_images_its_table_has_dashes(make: RunMaker) -> None:
    for seed in range(2):
        run(make, BASELINE, recalls({100: 0.1}), seed)
    content = figure4(make)
    assert content.tables[1].rows[0] == ("baseline", DASH, "2")
    assert frame(content)["macro"].isna().all()


@pytest.mark.parametrize(
    ("found", "said"),
    [({"test_map_50": 0.5}, "no test_recall@K"), (recalls({100: 0.1, 500: math.nan}), "test_recall@500 is nan")],
)
def test_a_run_without_recall_or_with_a_broken_number_is_left_out(
    make: RunMaker, found: dict[str, float], said: str
) -> None:
    run(make, BASELINE, found)
    content = figure4(make)
    assert set(content.files) == {".csv"}
    assert content.notes == (f"left out ({said}): run001",)


def test_numbers_of_departed_runs_carry_a_mark(make: RunMaker) -> None:
    run(make, {**BASELINE, "train.epochs": 2}, recalls({100: 0.1}))
    run(make, {**VG, "train.epochs": 2}, recalls({100: 0.2}), name="relpn")
    content = figure4(make)
    assert [row[1] for row in content.tables[0].rows] == ["10.0 ᵃ", "20.0 ᵃ", DASH, DASH]
    assert content.footnotes == ("ᵃ train.epochs = 2 instead of 8",)
    assert set(frame(content)["marks"]) == {"ᵃ"}


def test_the_picture_has_the_papers_colours_and_nothing_is_cut_off(make: RunMaker) -> None:
    ks = (100, 500, 1000, 2000, 5000, 8000, 10000)
    run(make, BASELINE, recalls(dict.fromkeys(ks, 0.1)))
    run(make, VG, recalls(dict.fromkeys(ks, 0.2)), name="relpn")
    run(make, VG, recalls(dict.fromkeys(ks, 0.3)))
    picture = figure4(make).files[".png"]
    assert pixels(picture).shape[1] > 800
    assert all(has_colour(picture, colour) for colour in ("#222222", "#3f90da", "#ffa90e"))
    assert not has_colour(picture, "#bd1f01")
    assert margin_is_white(picture)
