from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from affsup_cli.reporting.footnotes import Footnotes
from affsup_cli.reporting.render.document import MINUS
from affsup_cli.reporting.report import build_report, read_formats, write_index
from affsup_cli.reporting.select.spec import report_names
from affsup_cli.runs.index import RunIndex
from data_prep.errors import AffsupError, UsageError
from tests.reporting.fake_runs import AFFINITY, BASE, SHORT, RunMaker, blobs, decay

DIGITS = {"data.name": "digits", "model.arch": "resnet20", "train.test_curve": True}
DEMO_PAGE = f"""\
# Table 3 on digits: base and affinity-supervised ResNet-20 on 8x8 handwritten digits

| digits |  | ResNet 20 |
| --- | --- | --- |
| base CNN | ours | 91.00 ± 1.41 (2) ᵃ |
| Affinity Sup | ours | 92.00 (1) ᵃ |
| Affinity Sup {MINUS} base CNN | ours, paired | +2.00 (1) ᵃ |

Classification accuracy on the test split in percent, of the epoch that is best on the validation split. Ours: mean \
± sample standard deviation (runs); paired by seed: mean [95 % interval, from two pairs on] (pairs).

ᵃ train.epochs = 2 instead of 40; train.milestones = [] instead of [20, 30]

- Machine: Test GPU (cuda:0, 2 threads), Python 3.11.7, torch 2.15.0
- Code: affsup 0.1.0, commit 0123456789ab
- Runs started: 2026-11-01
- 6 of 6 runs exactly as in this recipe are missing: `affsup sweep digits-table3` trains them
"""


def test_a_page_reads_as_it_should(make: RunMaker, tmp_path: Path) -> None:
    make.train({**DIGITS, **SHORT, "affinity.loss": "none"}, 0.90, seed=0)
    make.train({**DIGITS, **SHORT, "affinity.loss": "none"}, 0.92, seed=1)
    make.train({**DIGITS, **SHORT}, 0.92, seed=0)
    build_report("digits-table3", RunIndex(make.root), tmp_path / "out")
    assert (tmp_path / "out" / "digits-table3.md").read_text(encoding="utf-8") == DEMO_PAGE


@pytest.mark.parametrize("name", report_names())
def test_an_empty_machine_gets_a_report_that_says_what_fills_it(name: str, tmp_path: Path) -> None:
    report = build_report(name, RunIndex(tmp_path / "runs"), tmp_path / "out")
    assert f"`affsup sweep {name}`" in report.notes[-1]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in report.paths}
    assert not list((tmp_path / "out").glob("*.png"))


def test_the_same_runs_give_the_same_bytes(make: RunMaker, tmp_path: Path) -> None:
    for seed in range(2):
        for overrides in (BASE, AFFINITY):
            fields = {**overrides, "train.test_curve": True, "train.epochs": 4}
            make.train(fields, 0.9, seed, curve=decay(4, 0.9, 0.3), features=blobs(40, 4))
        make.finish({"data.name": "vg"}, {"test_recall@100": 0.1, "test_recall@500": 0.2}, seed, recipe_name="relpn")
    written = []
    for out in (tmp_path / "one", tmp_path / "two"):
        paths = [path for name in report_names() for path in build_report(name, RunIndex(make.root), out).paths]
        written.append({path.name: path.read_bytes() for path in paths})
    assert {
        "table3.csv",
        "table3.cells.csv",
        "figure5.png",
        "figure4.png",
        "figure6.png",
        "figure6.scores.csv",
    } <= written[0].keys()
    assert written[0] == written[1]


def test_the_page_of_a_figure_shows_the_picture(make: RunMaker, tmp_path: Path) -> None:
    make.train({**BASE, "train.test_curve": True, "train.epochs": 4}, 0.9, curve=decay(4, 0.9, 0.3))
    build_report("figure5", RunIndex(make.root), tmp_path)
    assert "(figure5.png)" in (tmp_path / "figure5.md").read_text(encoding="utf-8")


def test_a_complete_table_misses_nothing(make: RunMaker, tmp_path: Path) -> None:
    for seed in range(3):
        make.train({**DIGITS, "affinity.loss": "none"}, 0.9, seed)
        make.train(DIGITS, 0.9, seed)
    assert not any(
        "affsup sweep" in note for note in build_report("digits-table3", RunIndex(make.root), tmp_path).notes
    )


def test_a_missing_seed_is_counted(make: RunMaker, tmp_path: Path) -> None:
    make.train(DIGITS, 0.9, seed=0)
    make.start(DIGITS, seed=1)
    notes = build_report("digits-table3", RunIndex(make.root), tmp_path).notes
    assert notes[-1] == "5 of 6 runs exactly as in this recipe are missing: `affsup sweep digits-table3` trains them"


def test_an_unfinished_run_is_named_with_how_to_go_on(make: RunMaker, tmp_path: Path) -> None:
    stopped = make.start({**AFFINITY, **SHORT}, name="stopped")
    make.start({**AFFINITY, "affinity.gamma": 2}, name="of-no-cell")
    notes = build_report("table3", RunIndex(make.root), tmp_path / "out").notes
    (note,) = [note for note in notes if note.startswith("Not finished")]
    assert f"`affsup train {stopped.path / 'recipe.toml'} --name stopped --resume`" in note


def test_machines_code_and_dates_of_all_used_runs_are_named_once(make: RunMaker, tmp_path: Path) -> None:
    make.train(BASE, 0.9, seed=0, device="cpu", device_name="Some CPU", started="2026-10-30T08:00:00+00:00")
    make.train(BASE, 0.9, seed=1, dirty=True)
    make.train(BASE, 0.9, seed=2, dirty=True)
    make.train(BASE, 0.9, seed=3, commit=None)
    make.train({**BASE, "affinity.loss": "log"}, 0.9, device_name="unused")
    provenance = build_report("table3", RunIndex(make.root), tmp_path / "out").provenance
    assert provenance == (
        "Machine: Some CPU (cpu, 2 threads), Python 3.11.7, torch 2.15.0; "
        "Test GPU (cuda:0, 2 threads), Python 3.11.7, torch 2.15.0",
        "Code: affsup 0.1.0; affsup 0.1.0, commit 0123456789ab; "
        "affsup 0.1.0, commit 0123456789ab and uncommitted changes",
        "Runs started: 2026-10-30 to 2026-11-01",
    )


def test_an_unknown_report_is_a_wrong_call(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no table or figure 'table9'"):
        build_report("table9", RunIndex(tmp_path), tmp_path)


def test_a_folder_that_cannot_be_made_is_one_clear_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AffsupError, match=r"cannot write .*table3\.md: .*--out"):
        build_report("table3", RunIndex(tmp_path), tmp_path / "file" / "reports")


def test_marks_go_on_after_the_last_letter_and_equal_texts_share_one() -> None:
    footnotes = Footnotes()
    marks = [footnotes.mark(f"text {number}") for number in range(60)]
    assert len(set(marks)) == 60
    assert marks[:3] == ["ᵃ", "ᵇ", "ᶜ"]
    assert marks[25:27] == ["ᵃᵃ", "ᵃᵇ"]
    assert footnotes.mark("text 1") == "ᵇ"


def test_reporting_loads_no_torch_and_a_sweeps_plan_no_plotting() -> None:
    code = """
import sys
import affsup_cli.reporting.select.experiments, affsup_cli.reporting.report
heavy = {"torch", "matplotlib", "pandas", "scipy", "sklearn", "numpy"} & sys.modules.keys()
assert not heavy, heavy
from affsup_cli.reporting.kinds import cost, curves, embedding, grid, recall, relations, targets
assert "torch" not in sys.modules
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_formats_are_read_in_their_order_and_an_unknown_one_is_refused_with_the_known() -> None:
    assert read_formats("tex, csv,tex") == ("tex", "csv")
    for text in ("csv,html", "", "csv,"):
        with pytest.raises(UsageError, match=r"known are csv, md, tex"):
            read_formats(text)


def test_only_the_formats_asked_for_are_written_and_pictures_always(make: RunMaker, tmp_path: Path) -> None:
    make.train({**BASE, "train.test_curve": True, "train.epochs": 4}, 0.9, curve=decay(4, 0.9, 0.3))
    written = {}
    for formats in (("csv",), ("md",), ("tex",)):
        paths = build_report("figure5", RunIndex(make.root), tmp_path, formats).paths
        written[formats[0]] = {path.name for path in paths}
    assert written == {
        "csv": {"figure5.csv", "figure5.png", "figure5.footnotes.csv"},
        "md": {"figure5.md", "figure5.png"},
        "tex": {"figure5.tex", "figure5.png"},
    }


def test_what_marks_mean_stands_in_a_file_of_its_own(make: RunMaker, tmp_path: Path) -> None:
    make.train({**BASE, "train.epochs": 4}, 0.9)
    build_report("table3", RunIndex(make.root), tmp_path)
    lines = (tmp_path / "table3.footnotes.csv").read_text(encoding="utf-8").splitlines()
    assert lines[:2] == ["mark,text", "ᵃ,train.epochs = 4 instead of 200"]
    assert all(',"elsewhere: ' in line for line in lines[2:])
    assert "instead of 200" not in (tmp_path / "table3.cells.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", report_names())
def test_a_report_without_runs_says_what_it_will_show(name: str, tmp_path: Path) -> None:
    content = build_report(name, RunIndex(tmp_path / "runs"), tmp_path / "out").content
    assert len(content.caption) > 60
    assert content.files.keys() <= {".csv", ".cells.csv"}


def test_any_name_of_a_run_can_be_reported(make: RunMaker, tmp_path: Path) -> None:
    make.train(BASE, 0.5, name="red\x1b[31m\udcff")
    index = RunIndex(make.root)
    report = build_report("table3", index, tmp_path / "out", ("csv", "md", "tex"))
    write_index([report], index, tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        assert "\x1b" not in path.read_text(encoding="utf-8")
    assert r"red\x1b[31m\udcff" in (tmp_path / "out" / "table3.cells.csv").read_text(encoding="utf-8")
