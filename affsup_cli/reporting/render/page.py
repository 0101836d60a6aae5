"""One self-contained HTML page: reports, the runs behind their numbers, and what these ran on.

It loads nothing: pictures are data URIs, curves are inline SVG, the style sheet is `page.css`, and there is no script.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from affsup_cli.recipe import trains_the_same
from affsup_cli.reporting.render.document import Report, Source, Table, plain_mark, split_marks, with_minus
from affsup_cli.reporting.render.sparklines import Sparkline, number, sparklines, value_ranges
from affsup_cli.runs.index import MeasuredRun, Run, TrainedRun
from data_prep.errors import AffsupError

_TITLE = "Affinity graph supervision: tables and figures"
_STYLE = Path(__file__).with_name("page.css")
_INLINE = re.compile(r"`([^`]+)`|\b([LF])_(G|S|C|in)\b")
_SHARES = ("accuracy", "map_", "recall")
_METRICS = {
    "accuracy_macro": "accuracy, mean over classes",
    "map_all": "mAP@all",
    "map_50": "mAP@0.5",
    "map_50_voc07": "mAP@0.5, 11 points",
    "map_50_area": "mAP@0.5, area",
    "mass": "M",
    "recall_macro": "recall, mean over images",
}


@dataclasses.dataclass
class _Experiment:
    """Runs that differ in their seed alone, and where their numbers stand: (report, source)."""

    anchor: str
    runs: dict[str, Run] = dataclasses.field(default_factory=dict)
    uses: dict[tuple[str, str], tuple[Report, Source]] = dataclasses.field(default_factory=dict)

    @property
    def title(self) -> str:
        """Its place in the first report that shows it."""
        return next(iter(self.uses.values()))[1].label


class _Links:
    """The ids of the sections on runs."""

    def __init__(self, reports: Sequence[Report]) -> None:
        self._experiments: dict[str, _Experiment] = {}
        self._runs: dict[str, str] = {}
        for report in reports:
            for source in sources(report):
                for run in source.runs:
                    new = _Experiment(f"runs-{len(self._experiments) + 1}")
                    experiment = self._experiments.setdefault(_experiment_key(run), new)
                    experiment.runs.setdefault(run.folder.name, run)
                    experiment.uses.setdefault((report.name, source.label), (report, source))
                    self._runs.setdefault(run.folder.name, f"run-{len(self._runs) + 1}")

    @property
    def experiments(self) -> list[_Experiment]:
        """In the order in which the reports show them."""
        return list(self._experiments.values())

    @property
    def count(self) -> int:
        """How many runs there are."""
        return len(self._runs)

    def of_run(self, run: Run) -> str:
        """Return the id of a run's section."""
        return self._runs[run.folder.name]

    def of_source(self, source: Source) -> str:
        """Return the id of the section that holds the runs of a source."""
        return self._experiments[_experiment_key(source.runs[0])].anchor


def sources(report: Report) -> list[Source]:
    """Return where the numbers of a report come from, each place once."""
    found = {source.label: source for table in report.content.tables for source in table.sources.values()}
    return list(found.values())


def index_page(reports: Sequence[Report], warnings: Sequence[str]) -> str:
    """Return the page; the same reports give the same text.

    Args:
        reports: what it holds, in this order.
        warnings: a sentence for each run folder that could not be read.
    """
    links = _Links(reports)
    runs = _counted(links.count, "run") if links.count else "no runs yet"
    body = [
        '<a class="skip" href="#content">To the content</a>',
        f"<header><h1>{_TITLE}</h1>",
        f"<p>{_counted(len(reports), 'report')} of {runs}. The paper's numbers stand beside ours; each of ours leads "
        "to its runs and their curves.</p></header>",
        _contents(reports, links),
        '<main id="content">',
        *(_report(report, links) for report in reports),
        _runs(links),
        _environment(links),
        _warnings(warnings),
        "</main>",
    ]
    head = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<title>{_TITLE}</title>\n<link rel="icon" href="data:,">\n'
        f"<style>\n{_STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n"
    )
    return head + "\n".join(part for part in body if part) + "\n</body>\n</html>\n"


def _contents(reports: Sequence[Report], links: _Links) -> str:
    lines = []
    for report in reports:
        runs = {run.folder.name for source in sources(report) for run in source.runs}
        state = f"{_counted(len(runs), 'run')}{'' if report.missing else ', complete'}" if runs else "no runs yet"
        lines.append(f'<li><a href="#{report.name}">{_inline(report.title)}</a> <small>{state}</small></li>')
    if links.count:
        lines.append(f'<li><a href="#runs">Runs</a> <small>{links.count}</small></li>')
        lines.append('<li><a href="#environment">Machines and code</a></li>')
    return (
        '<nav aria-labelledby="contents">\n<h2 id="contents">Contents</h2>\n<ul>\n' + "\n".join(lines) + "\n</ul></nav>"
    )


def _report(report: Report, links: _Links) -> str:
    content = report.content
    parts = [
        f'<section class="report" id="{report.name}" aria-labelledby="{report.name}-title">',
        f'<h2 id="{report.name}-title">{_inline(report.title)}</h2>',
    ]
    if ".png" in content.files:
        parts.append(_picture(report))
    parts += [_table(report, table, links) for table in content.tables]
    parts.append(f'<p class="caption">{_inline(content.caption)}</p>')
    if content.footnotes:
        notes = (line.partition(" ") for line in content.footnotes)
        items = (
            f'<li id="{_note(report, mark)}"><sup>{plain_mark(mark)}</sup> {_inline(text)}</li>'
            for mark, _, text in notes
        )
        parts.append(f'<ul class="footnotes">{"".join(items)}</ul>')
    parts.append(_behind(report, links))
    if report.notes:
        parts.append(f'<ul class="notes">{"".join(f"<li>{_inline(note)}</li>" for note in report.notes)}</ul>')
    return "\n".join([*(part for part in parts if part), "</section>"])


def _picture(report: Report) -> str:
    data = base64.b64encode(report.content.files[".png"]).decode()
    below = " The numbers stand below." if report.content.tables else ""
    said = f"{report.title}. {report.content.caption}{below}"
    return f'<figure class="picture"><img src="data:image/png;base64,{data}" alt="{escape(said)}"></figure>'


def _table(report: Report, table: Table, links: _Links) -> str:
    name, _ = split_marks(table.header[0])
    head = "".join(f'<th scope="col">{_field(report, text) or _hidden("which")}</th>' for text in table.header)
    body = []
    for rows in table.groups():
        lines = []
        for row in rows:
            label, *fields = table.rows[row]
            kind = ' class="ours"' if table.grouped and fields[0] == "ours" else ""
            cells = []
            if row == rows[0]:
                span = f' scope="rowgroup" rowspan="{len(rows)}"' if table.grouped else ' scope="row"'
                cells.append(f"<th{span}>{_field(report, label)}</th>")
            if table.grouped:
                cells.append(f'<th scope="row" class="entry">{_field(report, fields[0])}</th>')
            for column, text in enumerate(fields[table.grouped :], start=1 + table.grouped):
                cells.append(f"<td>{_field(report, text, table.sources.get((row, column)), links)}</td>")
            lines.append(f"<tr{kind}>{''.join(cells)}</tr>")
        body.append(f"<tbody>{''.join(lines)}</tbody>" if table.grouped else "".join(lines))
    inner = "\n".join(body) if table.grouped else f"<tbody>{''.join(body)}</tbody>"
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{escape(f"{report.title}, {name}")}">'
        f"<table><caption>{_hidden(f'{report.title}, {name}')}</caption>\n"
        f"<thead><tr>{head}</tr></thead>\n{inner}</table></div>"
    )


def _field(report: Report, text: str, source: Source | None = None, links: _Links | None = None) -> str:
    """Return a field: its number leads to its runs, its marks to their footnotes."""
    shown, marks = split_marks(text)
    inner = _inline(with_minus(shown))
    if source and links:
        inner = f'<a href="#{links.of_source(source)}">{inner}</a>'
    notes = dict(line.split(" ", 1) for line in report.content.footnotes) if marks else {}
    return inner + "".join(
        f'<sup><a href="#{_note(report, mark)}" title="{escape(notes[mark])}">{plain_mark(mark)}</a></sup>'
        for mark in marks
    )


def _behind(report: Report, links: _Links) -> str:
    lines = (
        f"<li>{_inline(source.label)}: "
        + ", ".join(f'<a href="#{links.of_run(run)}">{_seed(run)}</a>' for run in source.runs)
        + "</li>"
        for source in sources(report)
    )
    items = "".join(lines)
    return (
        f'<details class="behind"><summary>Runs behind the numbers</summary><ul>{items}</ul></details>' if items else ""
    )


def _runs(links: _Links) -> str:
    if not links.count:
        return ""
    parts = [
        '<section id="runs" aria-labelledby="runs-title">',
        '<h2 id="runs-title">Runs</h2>',
        '<p class="caption">Runs that differ in their seed alone stand together, and their curves have one scale. '
        "A mark beside a table or figure says how they depart from its recipe.</p>",
    ]
    parts += [_experiment(experiment, links) for experiment in links.experiments]
    return "\n".join([*parts, "</section>"])


def _experiment(experiment: _Experiment, links: _Links) -> str:
    drawn: dict[str, list[Sparkline] | str] = {}
    for name, run in experiment.runs.items():
        try:
            drawn[name] = sparklines(run.folder.metrics())
        except AffsupError as error:
            drawn[name] = str(error)
    scales = value_ranges(curve for found in drawn.values() if not isinstance(found, str) for curve in found)
    uses = "".join(_use(report, source) for report, source in experiment.uses.values())
    parts = [
        f'<section class="experiment" id="{experiment.anchor}" aria-labelledby="{experiment.anchor}-title">',
        f'<h3 id="{experiment.anchor}-title">{_inline(experiment.title)}</h3>',
        f'<ul class="uses">{uses}</ul>',
        *(_run(run, drawn[name], scales, links) for name, run in experiment.runs.items()),
    ]
    return "\n".join([*parts, "</section>"])


def _use(report: Report, source: Source) -> str:
    """Say where runs stand, under which marks."""
    name, _, _ = report.title.partition(": ")
    return f'<li><a href="#{report.name}">{_inline(name)}</a>: {_field(report, source.label + source.marks)}</li>'


def _run(run: Run, drawn: list[Sparkline] | str, scales: Mapping[str, tuple[float, float]], links: _Links) -> str:
    ran = run.environment
    facts = {
        "seed": str(run.recipe.seed),
        "machine": f"{ran.device_name} ({ran.device}, {_counted(ran.threads, 'thread')})",
        "code": ran.code,
        "started": ran.started.replace("T", " ")[:16],
        "data": f"{ran.data.name}, digest {ran.data.digest[:8]}",
    }
    shown = f"<p>{escape(drawn)}</p>" if isinstance(drawn, str) else "".join(_curve(curve, scales) for curve in drawn)
    return (
        f'<section class="run" id="{links.of_run(run)}"><h4>{escape(run.folder.name)}</h4>\n'
        f'{_list(facts)}\n{_list(_numbers(run))}\n<div class="curves">{shown}</div></section>'
    )


def _list(facts: Mapping[str, str]) -> str:
    items = (f"<div><dt>{_inline(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return f"<dl>{''.join(items)}</dl>"


def _curve(curve: Sparkline, scales: Mapping[str, tuple[float, float]]) -> str:
    last = number(curve.points[-1][1])
    caption = f"<figcaption>{_inline(curve.label)} <b>{last}</b></figcaption>"
    return f"<figure>{curve.svg(*scales[curve.kind])}{caption}</figure>"


def _numbers(run: Run) -> dict[str, str]:
    """Return what a run came to on the test split; those at several K, such as recall@100, together."""
    if isinstance(run, MeasuredRun):
        result = run.result
        return {
            "seconds an epoch, baseline": ", ".join(map(number, result.baseline.seconds_per_epoch)),
            "seconds an epoch, with L_G": ", ".join(map(number, result.treatment.seconds_per_epoch)),
        }
    families: dict[str, list[str]] = {}
    for metric, value in run.result.metrics.items() if isinstance(run, TrainedRun) else ():
        if metric.startswith("test_") and isinstance(value, int | float):
            family, _, k = metric.removeprefix("test_").partition("@")
            shown = f"{value:.1%}" if any(share in metric for share in _SHARES) else number(value)
            name = f"test {_METRICS.get(family, family.replace('_', ' '))}"
            families.setdefault(f"{name} at K" if k else name, []).append(
                f"{k}:\N{NO-BREAK SPACE}{shown}" if k else shown
            )
    return {name: ", ".join(values) for name, values in families.items()}


def _environment(links: _Links) -> str:
    runs = [run for experiment in links.experiments for run in experiment.runs.values()]
    if not runs:
        return ""
    days: dict[tuple[str, ...], list[str]] = {}
    for ran in (run.environment for run in runs):
        with_versions = f"Python {ran.python}, torch {ran.torch}"
        key = (ran.device_name, ran.device, str(ran.threads), ran.code, with_versions)
        days.setdefault(key, []).append(ran.started[:10])
    heads = ("machine", "device", "threads", "code", "with", "runs", "started")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    lines = []
    for facts, started in sorted(days.items()):
        period = " to ".join(sorted({min(started), max(started)}))
        machine, *rest = (escape(text) for text in (*facts, str(len(started)), period))
        lines.append(f'<tr><th scope="row">{machine}</th>{"".join(f"<td>{text}</td>" for text in rest)}</tr>')
    return (
        '<section id="environment" aria-labelledby="environment-title">'
        '<h2 id="environment-title">Machines and code</h2>\n'
        '<div class="wide" role="region" tabindex="0" aria-label="Machines and code"><table class="plain">'
        f"<caption>{_hidden('What the runs of this page ran on')}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div></section>"
    )


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    items = "".join(f"<li>{_inline(warning)}</li>" for warning in warnings)
    return (
        '<section id="warnings" aria-labelledby="warnings-title"><h2 id="warnings-title">Left out</h2>'
        f'<ul class="notes">{items}</ul></section>'
    )


def _experiment_key(run: Run) -> str:
    """Return a text that is equal for runs that differ in their seed, or in what they record, alone."""
    fields = {field: value for field, value in run.settings.items() if not trains_the_same([field])}
    ran = run.environment
    network = ran.network.digest if ran.network else None
    return json.dumps([type(run).__name__, fields, ran.data.digest, ran.weights, network], sort_keys=True)


def _note(report: Report, mark: str) -> str:
    return f"{report.name}-note-{plain_mark(mark)}"


def _seed(run: Run) -> str:
    return f"seed {run.recipe.seed}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _hidden(text: str) -> str:
    return f'<span class="hidden">{escape(text)}</span>'


def _inline(text: str) -> str:
    """Return text with what stands between backticks as code, and L_G or F_S as a symbol."""
    parts: list[str] = []
    end = 0
    for found in _INLINE.finditer(text):
        parts.append(escape(text[end : found.start()]))
        code, letter, index = found.groups()
        parts.append(f"<code>{escape(code)}</code>" if code else f"<i>{letter}</i><sub>{index}</sub>")
        end = found.end()
    return "".join(parts) + escape(text[end:])
