from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from affsup_cli.reporting.render.document import DASH, MINUS, Content, Report, Table
from affsup_cli.reporting.render.latex import latex_tables, latex_text
from affsup_cli.reporting.report import build_report
from affsup_cli.reporting.select.spec import report_names
from affsup_cli.runs.index import RunIndex
from tests.reporting.fake_runs import BASE, SHORT, RunMaker

NASTY = r"% & $ # _ { } \ ~ ^ < > | [x] * é 中 " + f'"q" ± {MINUS} × γ λ {DASH} … L_G F_in L_Gx'


def report(table: Table, *footnotes: str, title: str = "Table 9: Title") -> Report:
    return Report("table9", title, Content("Caption.", (table,), footnotes, (), (), {}), (), (), 0)


GRID = Table(
    ("digits", "", "ResNet 20", "ResNet 56"),
    (
        ("base CNN", "paper", "91.34 ± 0.27", DASH),
        ("base CNN", "ours", "91.00 ± 1.41 (2) ᵃ ᵇ", DASH),
        (f"Affinity {MINUS} base", "ours, paired", "-0.2 [-0.5, +0.2] (3) ᵃ", ""),
    ),
)


def rows(tex: str) -> list[str]:
    return [line.removesuffix(r" \\") for line in tex.splitlines() if line.endswith(r"\\")]


def test_a_table_has_the_papers_layout() -> None:
    tex = latex_tables(report(GRID, "ᵃ train.epochs = 2 instead of 200", "ᵇ 5,000 of 100 %"))
    assert rows(tex) == [
        "digits &  & ResNet 20 & ResNet 56",
        r"base CNN & paper & 91.34 $\pm$ 0.27 & --",
        r" & ours & 91.00 $\pm$ 1.41 (2)\textsuperscript{a}\textsuperscript{b} & --",
        r"Affinity $-$ base & ours, paired & $-$0.2 {[}$-$0.5, +0.2] (3)\textsuperscript{a} & ",
    ]
    assert [tex.count(rule) for rule in (r"\toprule", r"\midrule", r"\addlinespace", r"\bottomrule")] == [1, 1, 1, 1]
    assert r"\begin{tabular}{llcc}" in tex
    assert r"\caption{Title}" in tex
    assert r"\par \textsuperscript{b}~5,000 of 100 \%" in tex


def test_a_footnote_of_runs_left_out_is_not_below_the_table() -> None:
    assert r"\textsuperscript{c}" not in latex_tables(report(GRID, "ᵃ one", "ᵇ two", "ᶜ of others"))


def test_a_column_of_long_texts_wraps() -> None:
    table = Table(("image", "reference", "related"), (("1.jpg", "cow", "cow 0.1, " * 9),))
    assert r"\begin{tabular}{lcp{0.3\linewidth}}" in latex_tables(report(table))


def test_labels_are_repeated_where_rows_do_not_belong_together() -> None:
    table = Table(("image", "reference"), (("1.jpg", "cow"), ("1.jpg", "car")))
    assert rows(latex_tables(report(table)))[1:] == ["1.jpg & cow", "1.jpg & car"]


def test_nothing_in_a_text_is_a_command() -> None:
    assert latex_text(NASTY) == (
        r"\% \& \$ \# \_ \{ \} \textbackslash{} \textasciitilde{} \textasciicircum{} \textless{} \textgreater{} "
        r"\textbar{} {[}x] {*} é (U+4E2D) ''q'' $\pm$ $-$ $\times$ $\gamma$ $\lambda$ -- \ldots{} $L_{G}$ $F_{in}$ "
        r"L\_Gx"
    )


def test_braces_and_environments_balance(make: RunMaker, tmp_path: Path) -> None:
    make.train({**BASE, **SHORT}, 0.5)
    for name in report_names():
        build_report(name, RunIndex(make.root), tmp_path, ("tex",))
    pages = sorted(tmp_path.glob("*.tex"))
    assert {"table1.tex", "table3.tex", "table4.tex", "figure5.tex"} <= {page.name for page in pages}
    for page in pages:
        tex = page.read_text(encoding="utf-8")
        bare = re.sub(r"\\[{}\\]", "", tex)
        assert bare.count("{") == bare.count("}")
        assert re.findall(r"\\begin\{(\w+)\}", tex).count("tabular") == re.findall(r"\\end\{(\w+)\}", tex).count(
            "tabular"
        )
        for line in rows(tex):
            assert not re.search(r"(?<!\\)[%#]", line)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on this machine")
def test_a_bare_article_with_booktabs_takes_it(make: RunMaker, tmp_path: Path) -> None:
    make.train({**BASE, **SHORT}, 0.5)
    build_report("table3", RunIndex(make.root), tmp_path, ("tex",))
    table = Table((NASTY, "", NASTY), (("[a]", "* b", NASTY), (NASTY, NASTY, "-1 ᵃ")))
    (tmp_path / "nasty.tex").write_text(latex_tables(report(table, f"ᵃ {NASTY}", title=NASTY)), encoding="utf-8")
    inputs = "".join(rf"\input{{{name}}}" for name in ("table3", "nasty"))
    article = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{inputs}\end{{document}}"
    (tmp_path / "article.tex").write_text(article)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "article.tex"]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert made.returncode == 0, made.stdout[-2000:]
    assert (tmp_path / "article.pdf").is_file()
