from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
import pytest
from scipy import stats

from affsup_cli.reporting.kinds.grid import build_grid
from affsup_cli.reporting.render.document import DASH, MINUS, Content
from affsup_cli.reporting.select.spec import GridSpec, load_spec
from affsup_cli.runs.index import RunIndex
from tests.reporting.fake_runs import RunMaker

VOC = {"data.name": "voc07"}
RELNET = {**VOC, "affinity.loss": "none"}
COLUMNS = ["F-RCNN", "RelNet", "smooth L1", "L2", "γ = 0", "γ = 2", "γ = 5"]


def build(make: RunMaker, name: str) -> Content:
    spec = load_spec(name)
    assert isinstance(spec, GridSpec)
    return build_grid(spec, RunIndex(make.root))


def detect(
    make: RunMaker, overrides: Mapping[str, Any], found: Mapping[str, Any], seed: int = 0, name: str | None = None
) -> None:
    recipe_name = "frcnn" if overrides == VOC and "test_recall@5000" not in found else "relnet"
    make.finish(overrides, found, seed, recipe_name=recipe_name, name=name)


def metrics(map_all: float, map_50: float, recall: float) -> dict[str, float]:
    return {"test_map_all": map_all, "test_map_50": map_50, "test_recall@5000": recall}


def shown(content: Content, row: str, entry: str, block: int = 0) -> list[str]:
    (texts,) = [line[2:] for line in content.tables[block].rows if line[:2] == (row, entry)]
    return list(texts)


def cells(content: Content, column: str) -> dict[str, Mapping[Any, Any]]:
    """The lines of `.cells.csv` of that column, by row."""
    frame = pd.read_csv(io.BytesIO(content.files[".cells.csv"]))
    return {line["row"]: line for line in frame[frame["column"] == column].to_dict("records")}


def test_table1_has_metrics_as_rows_each_with_its_differences(make: RunMaker) -> None:
    (table,) = build(make, "table1").tables
    assert table.header == ("VOC07", "", *COLUMNS)
    labels = []
    for metric in ("mAP@all (%)", "mAP@0.5 (%)", "recall@5k (%)"):
        labels += [(metric, entry) for entry in ("paper", "ours", f"ours {MINUS} paper")]
        labels += [(f"{metric} {MINUS} RelNet", entry) for entry in ("paper", "ours, paired")]
    assert [row[:2] for row in table.rows if row[1] != "elsewhere"] == labels


def test_without_runs_table1_is_the_papers_with_a_dash_where_it_has_none(make: RunMaker) -> None:
    content = build(make, "table1")
    recalls = [DASH, "43.5", "60.3 ± 0.3", "64.6 ± 0.5", "62.1 ± 0.3", "69.9 ± 0.3", "66.8 ± 0.2"]
    assert shown(content, "recall@5k (%)", "paper") == recalls
    assert shown(content, "mAP@all (%)", "paper")[:2] == ["47.0", "47.7 ± 0.1"]
    assert shown(content, "recall@5k (%)", "ours") == [DASH] * 7
    assert content.notes == ()


def test_supervised_columns_are_compared_with_the_baseline_column_and_the_others_are_blank(make: RunMaker) -> None:
    content = build(make, "table1")
    differences = ["", "", "+16.8", "+21.1", "+18.6", "+26.4", "+23.3"]
    assert shown(content, f"recall@5k (%) {MINUS} RelNet", "paper") == differences
    assert shown(content, f"recall@5k (%) {MINUS} RelNet", "ours, paired") == ["", "", *[DASH] * 5]


def test_columns_are_paired_by_seed(make: RunMaker) -> None:
    for seed, recall in {0: 0.40, 1: 0.42, 2: 0.44}.items():
        detect(make, RELNET, metrics(0.4, 0.7, recall), seed)
    for seed, recall in {1: 0.62, 2: 0.68, 9: 0.1}.items():
        detect(make, {**VOC, "affinity.gamma": 2}, metrics(0.4, 0.7, recall), seed)
    content = build(make, "table1")
    half = stats.t.ppf(0.975, 1) * math.sqrt(8) / math.sqrt(2)
    paired = shown(content, f"recall@5k (%) {MINUS} RelNet", "ours, paired")
    assert paired[5] == f"+22.0 [{22 - half:+.1f}, {22 + half:+.1f}] (2)"
    line = cells(content, "gamma2-relnet")["recall-5k"]
    assert (line["mean"], line["ci_low"], line["ci_high"]) == pytest.approx((22, 22 - half, 22 + half))
    assert (line["seeds"], line["runs"]) == ("1 2", "run002 run004 run003 run005")
    assert line["paper_mean"] == pytest.approx(26.4)


def test_the_rows_of_a_column_are_read_off_the_same_runs(make: RunMaker) -> None:
    detect(make, RELNET, metrics(0.477, 0.793, 0.435))
    content = build(make, "table1")
    assert [row[3] for row in content.tables[0].rows if row[1] == "ours"] == ["47.7 (1)", "79.3 (1)", "43.5 (1)"]
    lines = cells(content, "relnet")
    measured = {row: line["metric"] for row, line in lines.items()}
    assert measured == {"map": "test_map_all", "map-50": "test_map_50", "recall-5k": "test_recall@5000"}
    assert {line["runs"] for line in lines.values()} == {"run001"}
    assert [run.folder.name for run in content.used] == ["run001"]


def test_a_network_that_cannot_have_a_metric_leaves_a_dash_where_the_paper_has_one(make: RunMaker) -> None:
    detect(make, VOC, {"test_map_all": 0.47, "test_map_50": 0.782})
    content = build(make, "table1")
    assert [row[2] for row in content.tables[0].rows if row[1] == "ours"] == ["47.0 (1)", "78.2 (1)", DASH]
    assert content.notes == ()


def test_a_metric_that_the_paper_has_and_a_run_lacks_is_a_dash_and_a_note(make: RunMaker) -> None:
    detect(make, RELNET, {"test_map_all": 0.47, "test_map_50": 0.782}, name="short")
    content = build(make, "table1")
    assert [row[3] for row in content.tables[0].rows if row[1] == "ours"] == ["47.0 (1)", "78.2 (1)", DASH]
    assert content.notes == ("voc07: no test_recall@5000 in short",)


def test_a_metric_missing_in_one_of_two_runs_leaves_the_other_alone(make: RunMaker) -> None:
    detect(make, RELNET, {"test_map_all": 0.47, "test_map_50": 0.782}, 0, name="short")
    detect(make, RELNET, metrics(0.49, 0.8, 0.5), 1)
    content = build(make, "table1")
    assert shown(content, "mAP@all (%)", "ours")[1] == "48.0 ± 1.4 (2)"
    assert shown(content, "recall@5k (%)", "ours")[1] == "50.0 (1)"


def test_without_paper_numbers_a_missing_metric_is_a_note(make: RunMaker) -> None:
    found = {"test_recall@50": 0.3, "test_recall@200": 0.5, "test_map_50": 0.8}
    make.finish({"data.name": "shapes", "affinity.loss": "none"}, found, recipe_name="relnet", name="short")
    missing = ("attention_same_class", "attention_other_class", "mass")
    assert build(make, "demo-relations").notes == tuple(f"shapes: no test_{metric} in short" for metric in missing)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (metrics(0.4, math.nan, 0.5), "test_map_50 is nan"),
        ({"test_accuracy": 0.9}, "no test_map_all or test_map_50 or test_recall@5000"),
    ],
)
def test_a_run_with_a_broken_number_or_none_at_all_is_left_out(
    make: RunMaker, found: dict[str, float], said: str
) -> None:
    make.finish(RELNET, found, recipe_name="relnet", name="broken")
    content = build(make, "table1")
    assert shown(content, "mAP@all (%)", "ours")[1] == DASH
    assert content.notes == (f"voc07: left out ({said}): broken",)


def test_where_columns_are_compared_the_whole_block_stands_together(make: RunMaker) -> None:
    short = {"train.epochs": 2}
    detect(make, RELNET, metrics(0.4, 0.7, 0.4), name="faithful")
    detect(make, {**RELNET, **short}, metrics(0.3, 0.6, 0.3), name="short-base")
    detect(make, {**VOC, **short, "affinity.gamma": 2}, metrics(0.3, 0.6, 0.5), name="short-affinity")
    content = build(make, "table1")
    assert shown(content, "mAP@all (%)", "ours") == [DASH, "40.0 (1)", *[DASH] * 5]
    assert content.footnotes[0] == "ᵃ train.epochs = 2 instead of 8"
    (note,) = content.notes
    assert note.startswith("voc07: left out (not comparable with the runs shown ᵃ): ")


def test_a_difference_that_rounds_to_zero_has_no_minus(make: RunMaker) -> None:
    detect(make, RELNET, metrics(0.4770, 0.7929, 0.4))
    detect(make, {**VOC, "affinity.gamma": 2}, metrics(0.4769, 0.8, 0.4))
    content = build(make, "table1")
    assert shown(content, "mAP@0.5 (%)", f"ours {MINUS} paper")[1] == "+0.0"
    assert shown(content, f"mAP@all (%) {MINUS} RelNet", "ours, paired")[5] == "+0.0 (1)"


def test_a_departed_block_carries_one_mark(make: RunMaker) -> None:
    small = {"model.arch": "resnet50"}
    make.finish({**VOC, **small}, {"test_map_all": 0.3, "test_map_50": 0.6}, recipe_name="frcnn")
    make.finish({**RELNET, **small}, metrics(0.31, 0.61, 0.4), recipe_name="relnet")
    content = build(make, "table1")
    assert shown(content, "mAP@all (%)", "ours")[:2] == ["30.0 (1) ᵃ", "31.0 (1) ᵃ"]
    assert content.footnotes[0] == "ᵃ model.arch = resnet50 instead of resnet101"


def test_table5_shows_a_deviation_where_the_paper_has_one(make: RunMaker) -> None:
    content = build(make, "table5")
    assert shown(content, "avg mAP (%)", "paper", 0) == ["47.0", "47.7 ± 0.1", "48.2 ± 0.1"]
    assert shown(content, "avg mAP (%)", "paper", 1) == ["26.8", "27.5", "27.9"]
    assert shown(content, f"mAP@0.5 (%) {MINUS} RelNet", "paper", 0) == ["", "", "+0.6"]


def test_table6_reads_both_columns_off_the_same_runs_with_three_decimals(make: RunMaker) -> None:
    coco = {"data.name": "coco"}
    make.finish({**coco, "affinity.loss": "none"}, {"train_mass": 0.021, "test_mass": 0.0125}, recipe_name="relnet")
    make.finish(coco, {"train_mass": 0.7, "test_mass": 0.41}, recipe_name="relnet")
    content = build(make, "table6")
    assert content.tables[0].header == ("COCO M", "", "Training", "Testing")
    assert shown(content, "RelNet", "paper") == ["0.020", "0.013"]
    assert shown(content, "RelNet", "ours") == ["0.021 (1)", "0.013 (1)"]
    assert shown(content, f"RelNet + L_G {MINUS} RelNet", "paper") == ["+0.727", "+0.446"]
    assert shown(content, f"RelNet + L_G {MINUS} RelNet", "ours, paired") == ["+0.679 (1)", "+0.397 (1)"]
    assert len(content.used) == 2


def test_table7_compares_the_targets(make: RunMaker) -> None:
    targets = {"different-instance": 0.50, "different-category": 0.52}
    for target, value in targets.items():
        found = {"test_map_all": value, "test_map_50": value}
        make.finish({**VOC, "affinity.target": target}, found, recipe_name="relnet")
    content = build(make, "table7")
    assert shown(content, "avg mAP (%)", "ours") == ["50.0 (1)", "52.0 (1)"]
    assert shown(content, f"avg mAP (%) {MINUS} Diff-Instance", "paper") == ["", "+0.6"]
    assert shown(content, f"avg mAP (%) {MINUS} Diff-Instance", "ours, paired") == ["", "+2.0 (1)"]


def test_a_row_may_have_a_scale_and_decimals_of_its_own(make: RunMaker) -> None:
    found = {"test_recall@50": 0.321, "test_recall@200": 0.5, "test_mass": 0.4567, "test_map_50": 0.8}
    of_cell = {"data.name": "shapes", "train.epochs": 4, "train.milestones": [3], "affinity.lambda": 0.05}
    make.finish(of_cell, found, recipe_name="relnet")
    content = build(make, "demo-relations")
    assert [shown(content, row, "ours")[1] for row in ("recall@50 (%)", "M")] == ["32.1 (1)", "0.457 (1)"]


def test_base_networks_stand_beside_supervised_ones_of_another_lambda(make: RunMaker) -> None:
    short = {"data.name": "voc07", "train.epochs": 2, "train.milestones": []}
    found = metrics(0.3, 0.5, 0.4)
    make.finish(short, {key: value for key, value in found.items() if "recall" not in key}, recipe_name="frcnn")
    make.finish({**short, "affinity.loss": "none"}, found, recipe_name="relnet")
    make.finish({**short, "affinity.lambda": 0.2}, metrics(0.31, 0.51, 0.6), recipe_name="relnet", name="stronger")
    make.finish({**short, "affinity.lambda": 0.3, "affinity.gamma": 5}, found, recipe_name="relnet", name="strongest")
    content = build(make, "table1")
    assert [run.folder.name for run in content.used if run.folder.name in ("stronger", "strongest")] == ["stronger"]
    assert len(content.used) == 3
    assert "affinity.lambda = 0.2 instead of 0.01" in content.footnotes[0]
    assert [note for note in content.notes if note.endswith("ᵇ): strongest")]
