from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from affsup_cli.reporting.report import build_report, write_index
from affsup_cli.reporting.select.spec import paper_names
from affsup_cli.runs.index import RunIndex
from tests.reporting.fake_runs import AFFINITY, BASE, SHORT, RunMaker, decay
from tests.reporting.html import Element, parse

ODD = "a <b> & \"c\" 'd' L_G"
REPORTS = ("table3", "table4", "figure4", "figure5", "figure9")


def write(make: RunMaker, out: Path, names: tuple[str, ...] = REPORTS) -> Path:
    index = RunIndex(make.root)
    return write_index([build_report(name, index, out) for name in names], index, out)


def page_of(make: RunMaker, out: Path, names: tuple[str, ...] = REPORTS) -> Element:
    return parse(write(make, out, names).read_text(encoding="utf-8"))


def fill(make: RunMaker) -> RunMaker:
    """Runs of every kind: departed, of an odd name, measured, with a picture, damaged."""
    for seed in range(2):
        fields = {**SHORT, "train.test_curve": True}
        make.train({**BASE, **fields}, 0.90 + seed / 50, seed, curve=decay(2, 0.9, 0.2))
    make.train({**AFFINITY, **SHORT, "train.test_curve": True}, 0.93, curve=decay(2, 0.93, 0.4), name=ODD)
    make.measure({"data.name": "cifar10", "model.arch": "resnet110", "affinity.measure": False}, [10.0], [11.0])
    make.finish({"data.name": "vg"}, {"test_recall@100": 0.1, "test_recall@500": 0.2}, recipe_name="relpn")
    damaged = make.train(BASE, 0.9, name="damaged <run>")
    (damaged.path / "result.json").write_text("{")
    return make


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> RunMaker:
    return fill(RunMaker(tmp_path_factory.mktemp("filled") / "runs"))


@pytest.fixture(scope="module")
def text(filled: RunMaker, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(filled, tmp_path_factory.mktemp("out")).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text: str) -> Element:
    return parse(text)


def test_every_id_stands_once_and_every_link_leads_to_one(page: Element) -> None:
    ids = [element.attributes["id"] for element in page.all() if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    links = [element.attributes["href"] for element in page.all("a")]
    assert {link[:1] for link in links} == {"#"}
    assert {link[1:] for link in links} <= set(ids)
    named = {element.attributes["aria-labelledby"] for element in page.all() if "aria-labelledby" in element.attributes}
    assert named <= set(ids)


def test_the_page_loads_nothing_and_has_no_script(text: str, page: Element) -> None:
    assert page.all("script", "iframe", "object", "embed") == []
    loads = [
        element.attributes[name] for element in page.all() for name in ("src", "srcset") if name in element.attributes
    ]
    loads += [link.attributes["href"] for link in page.all("link")]
    assert len(loads) == 3
    assert all(load.startswith("data:") for load in loads)
    assert "://" not in text
    assert "url(" not in text
    assert "@import" not in text


def test_headings_are_in_order_and_language_and_title_are_named(page: Element) -> None:
    levels = [int(heading.tag[1]) for heading in page.all("h1", "h2", "h3", "h4")]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert page.all("html")[0].attributes["lang"] == "en"
    assert page.all("title")[0].text
    assert "width=device-width" in str([meta.attributes for meta in page.all("meta")])


def test_tables_have_captions_and_scopes_and_pictures_say_what_they_show(page: Element) -> None:
    tables = page.all("table")
    assert len(tables) > 5
    for table in tables:
        (caption,) = table.all("caption")
        assert caption.text.strip()
        headings = table.all("th")
        assert all(heading.attributes["scope"] in ("col", "row", "rowgroup") for heading in headings)
        assert all(heading.text.strip() for heading in headings)
    assert all(len(image.attributes["alt"]) > 40 for image in page.all("img"))
    assert all(svg.attributes["role"] == "img" and svg.attributes["aria-label"] for svg in page.all("svg"))


def test_the_rows_of_a_table_are_as_wide_as_its_head(page: Element) -> None:
    for table in page.all("table"):
        width = len(table.all("thead")[0].all("th"))
        pending = 0
        for row in table.all("tbody")[0].all("tr"):
            spans = [int(cell.attributes.get("rowspan", "1")) for cell in row.all("th", "td")]
            assert len(spans) + (pending > 0) == width
            pending = max(pending, spans[0]) - 1


def test_the_contents_name_every_report_with_its_state(page: Element) -> None:
    (contents,) = page.all("nav")
    lines = {line.all("a")[0].attributes["href"]: line.all("small") for line in contents.all("li")}
    assert list(lines) == [*(f"#{name}" for name in REPORTS), "#runs", "#environment"]
    assert [lines[f"#{name}"][0].text for name in REPORTS] == ["3 runs", "1 run", "1 run", "3 runs", "no runs yet"]


def test_a_number_leads_to_its_runs_and_the_paper_to_nothing(page: Element) -> None:
    cells = page.one("table3").all("td")
    (ours,) = [cell for cell in cells if cell.text.startswith("91.00 ± 1.41 (2)")]
    runs = page.one(ours.all("a")[0].attributes["href"][1:])
    assert [heading.text for heading in runs.all("h4")] == ["run001", "run002"]
    (paper,) = [cell for cell in cells if cell.text == "91.34 ± 0.27"]
    assert paper.all("a") == []


def test_the_list_below_a_table_leads_to_each_run(page: Element) -> None:
    (listed,) = page.one("table3").all("details")
    lines = {line.text: [link.attributes["href"][1:] for link in line.all("a")] for line in listed.all("li")}
    seeds = lines["CIFAR-10, ResNet 20, base CNN: seed 0, seed 1"]
    assert [page.one(seed).all("h4")[0].text for seed in seeds] == ["run001", "run002"]


def test_a_mark_leads_to_its_footnote(page: Element) -> None:
    (ours,) = [cell for cell in page.one("table3").all("td") if cell.text.startswith("91.00")]
    (mark,) = ours.all("sup")[0].all("a")
    assert mark.text == "a"
    note = page.one(mark.attributes["href"][1:]).text
    assert note == "a train.epochs = 2 instead of 200; train.milestones = [] instead of [100, 150]"


def section_of(page: Element, *runs: str) -> Element:
    """The section that holds these runs and no other, the smallest if there are several."""
    return [each for each in page.all("section") if [heading.text for heading in each.all("h4")] == list(runs)][-1]


def test_a_run_tells_where_when_and_with_what_it_ran_and_what_came_out(page: Element) -> None:
    run = section_of(page, "run002")
    facts = dict(zip((t.text for t in run.all("dt")), (d.text for d in run.all("dd")), strict=True))
    assert facts["seed"] == "1"
    assert facts["machine"] == "Test GPU (cuda:0, 2 threads)"
    assert facts["code"] == "affsup 0.1.0, commit 0123456789ab"
    assert facts["started"] == "2026-11-01 10:02"
    assert facts["test accuracy"] == "92.0%"
    assert facts["test M"] == "0.4"
    captions = [caption.text for caption in run.all("figcaption")]
    assert [caption.rpartition(" ")[0] for caption in captions] == [
        "loss, training",
        "accuracy, validation",
        "M, validation",
    ]


def test_runs_say_in_which_reports_they_stand(page: Element) -> None:
    base = section_of(page, "run001", "run002")
    uses = [line.text for line in base.all("ul")[0].all("li")]
    assert uses[0] == "Table 3: CIFAR-10, ResNet 20, base CNNa"
    assert [use.partition(": ")[0] for use in uses] == ["Table 3", "Figure 5", "Figure 5"]


def test_a_measurement_is_a_run_too(page: Element) -> None:
    measured = section_of(page, "run004")
    assert "seconds per epoch, baseline10" in measured.text


def test_odd_names_are_text_like_any_other(page: Element) -> None:
    assert ODD in [heading.text for heading in page.all("h4")]
    assert page.all("b") == [mark for caption in page.all("figcaption") for mark in caption.all("b")]
    assert "run damaged <run> is left out" in page.one("warnings").text


def test_machines_and_code_are_listed_once(page: Element) -> None:
    (row,) = page.one("environment").all("tbody")[0].all("tr")
    assert [cell.text for cell in row.all("th", "td")] == [
        *("Test GPU", "cuda:0", "2", "affsup 0.1.0, commit 0123456789ab", "Python 3.11.7, torch 2.15.0", "5"),
        "2026-11-01",
    ]


def test_an_empty_machine_gets_the_papers_numbers_and_the_commands_that_fill_the_rest(
    make: RunMaker, tmp_path: Path
) -> None:
    names = tuple(paper_names())
    page = page_of(make, tmp_path, names)
    for name in names:
        section = page.one(name)
        assert f"affsup sweep {name}" in [code.text for code in section.all("code")]
        (caption,) = [line for line in section.all("p") if line.attributes.get("class") == "caption"]
        assert len(caption.text) > 60
    assert "92.03 ± 0.21" in page.one("table3").text
    assert [element.attributes["id"] for element in page.all("section") if "id" in element.attributes] == list(names)


def test_unreadable_curves_are_said_at_their_run(make: RunMaker, tmp_path: Path) -> None:
    run = make.train(BASE, 0.9)
    (run.path / "metrics.jsonl").write_text("{\n")
    assert "is not valid JSON" in page_of(make, tmp_path, ("table3",)).one("run-1").text


def test_what_is_wrong_with_curves_is_escaped(make: RunMaker, tmp_path: Path) -> None:
    run = make.train(BASE, 0.9, name="<b>bold")
    (run.path / "metrics.jsonl").write_text("{\n")
    page = page_of(make, tmp_path, ("table3",))
    assert not page.all("b")
    assert "<b>bold" in page.one("run-1").text


def test_the_curves_of_an_experiment_have_one_scale(make: RunMaker, tmp_path: Path) -> None:
    for seed, losses in enumerate(([3.0, 2.0], [5.0, 1.0])):
        curve = [{"epoch": epoch, "train_loss": loss} for epoch, loss in enumerate(losses, 1)]
        make.train(BASE, 0.9, seed, curve=curve)
    drawn = page_of(make, tmp_path, ("table3",)).all("svg")
    assert [[text.text for text in svg.all("text")] for svg in drawn] == [["5", "1", "1", "epoch 2"]] * 2


def test_many_runs_stay_a_small_page(make: RunMaker, tmp_path: Path) -> None:
    curve = decay(200, 0.9, 0.3)
    for seed in range(10):
        for number in range(15):
            column = {"data.name": ("cifar10", "cifar100")[number % 2], "affinity.loss": "none"}
            make.train(
                {**column, "model.arch": ("resnet20", "resnet56", "resnet110")[number % 3]}, 0.9, seed, curve=curve
            )
    path = write(make, tmp_path, ("table3",))
    assert len(parse(path.read_text(encoding="utf-8")).all("h4")) == 60
    assert path.stat().st_size < 1_000_000


def test_the_same_runs_give_the_same_bytes(filled: RunMaker, text: str, tmp_path: Path) -> None:
    assert write(filled, tmp_path).read_text(encoding="utf-8") == text


def test_the_style_has_a_dark_and_a_printed_form(text: str) -> None:
    style = re.search(r"<style>(.*)</style>", text, re.DOTALL)
    assert style is not None
    assert {"@media (prefers-color-scheme: dark)", "@media print"} <= set(re.findall(r"@media [^{]*(?=\s\{)", style[1]))
