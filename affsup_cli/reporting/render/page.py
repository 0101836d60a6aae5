"""One self-contained HTML page of reports, their runs and the machines of these.

The template is `page.html.jinja`, the style sheet `page.css`. Pictures are data URIs and curves are inline SVG, so that
the page loads nothing. Autoescape is on: only `inline` and the SVGs return markup, and they escape their text.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from affsup_cli.recipe import trains_the_same
from affsup_cli.reporting.render.document import (
    Report,
    Source,
    is_share,
    plain_mark,
    split_marks,
    with_minus,
)
from affsup_cli.reporting.render.sparklines import Sparkline, number, sparklines, value_ranges
from affsup_cli.reporting.select.statistics import is_finite
from affsup_cli.runs.index import MeasuredRun, Run, TrainedRun
from data_prep.errors import AffsupError, counted

_TITLE = "Affinity graph supervision: tables and figures"
_FOLDER = Path(__file__).parent
_INLINE = re.compile(r"`([^`]+)`|\b([LF])_(G|S|C|in)\b")
_METRICS = {
    "accuracy_macro": "accuracy, mean over classes",
    "map_all": "mAP@all",
    "map_50": "mAP@0.5",
    "map_50_voc07": "mAP@0.5, 11 points",
    "map_50_area": "mAP@0.5, area",
    "mass": "M",
    "recall_macro": "recall, mean over images",
}


@dataclasses.dataclass(frozen=True)
class RunCurves:
    """The sparklines of a run as (label, SVG, last value), or the fault of its metrics file."""

    drawn: tuple[tuple[str, Markup, str], ...]
    fault: str = ""


@dataclasses.dataclass
class RunSection:
    """A section of the page: runs that differ only in their seed, and their uses as (report, source)."""

    anchor: str
    runs: dict[str, Run] = dataclasses.field(default_factory=dict)
    uses: dict[tuple[str, str], tuple[Report, Source]] = dataclasses.field(default_factory=dict)

    @property
    def title(self) -> str:
        """Its label in the first report that shows it."""
        return next(iter(self.uses.values()))[1].label

    def drawn(self) -> Iterator[tuple[Run, RunCurves]]:
        """Yield the runs with their curves, which have the same scales."""
        found: dict[str, list[Sparkline] | str] = {}
        for name, run in self.runs.items():
            try:
                found[name] = sparklines(run.folder.history().records)
            except AffsupError as error:
                found[name] = str(error)
        scales = value_ranges(line for lines in found.values() if not isinstance(lines, str) for line in lines)
        for name, run in self.runs.items():
            lines = found[name]
            if isinstance(lines, str):
                yield run, RunCurves((), lines)
            else:
                yield (
                    run,
                    RunCurves(
                        tuple(
                            (line.label, Markup(line.svg(*scales[line.quantity])), number(line.points[-1][1]))  # noqa: S704
                            for line in lines
                        )
                    ),
                )


class RunLinks:
    """The sections of runs, and the ids that links lead to."""

    def __init__(self, reports: Sequence[Report]) -> None:
        self._sections: dict[str, RunSection] = {}
        self._runs: dict[str, str] = {}
        for report in reports:
            for source in sources(report):
                for run in source.runs:
                    new = RunSection(f"runs-{len(self._sections) + 1}")
                    section = self._sections.setdefault(_section_key(run), new)
                    section.runs.setdefault(run.folder.name, run)
                    section.uses.setdefault((report.name, source.label), (report, source))
                    self._runs.setdefault(run.folder.name, f"run-{len(self._runs) + 1}")

    @property
    def sections(self) -> list[RunSection]:
        """In the order of the reports."""
        return list(self._sections.values())

    @property
    def count(self) -> int:
        """Number of runs."""
        return len(self._runs)

    def of_run(self, run: Run) -> str:
        """Return the id of a run's section."""
        return self._runs[run.folder.name]

    def of_source(self, source: Source) -> str:
        """Return the id of the section with the runs of a source."""
        return self._sections[_section_key(source.runs[0])].anchor


def index_page(reports: Sequence[Report], warnings: Sequence[str]) -> str:
    """Return the page; the same reports give the same text.

    Args:
        reports: the reports in this order.
        warnings: one sentence for each run folder that could not be read.
    """
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters["inline"] = inline
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    functions = (split_marks, plain_mark, with_minus, sources, footnotes, counted, run_count, run_facts, run_metrics)
    environment.globals |= {function.__name__: function for function in (*functions, environments)}
    return environment.get_template("page.html.jinja").render(
        title=_TITLE,
        style=Markup((_FOLDER / "page.css").read_text(encoding="utf-8")),  # noqa: S704
        reports=reports,
        warnings=warnings,
        links=RunLinks(reports),
    )


def sources(report: Report) -> list[Source]:
    """Return the sources of a report's numbers, each once."""
    found = {source.label: source for table in report.content.tables for source in table.sources.values()}
    return list(found.values())


def footnotes(report: Report) -> dict[str, str]:
    """Return a report's footnotes by their mark."""
    return dict(line.split(" ", 1) for line in report.content.footnotes)


def run_count(report: Report) -> int:
    """Return the number of runs behind a report."""
    return len({run.folder.name for source in sources(report) for run in source.runs})


def run_facts(run: Run) -> dict[str, str]:
    """Return the seed, machine, code, start and data of a run, by name."""
    ran = run.environment
    return {
        "seed": str(run.recipe.seed),
        "machine": f"{ran.device_name} ({ran.device}, {counted(ran.threads, 'thread')})",
        "code": ran.code,
        "started": ran.started.replace("T", " ")[:16],
        "data": f"{ran.data.name}, digest {ran.data.digest[:8]}",
    }


def run_metrics(run: Run) -> dict[str, str]:
    """Return the test metrics of a run by name; those at several K, such as recall@100, as one."""
    if isinstance(run, MeasuredRun):
        result = run.result
        return {
            "seconds per epoch, baseline": ", ".join(map(number, result.baseline.seconds_per_epoch)),
            "seconds per epoch, with L_G": ", ".join(map(number, result.treatment.seconds_per_epoch)),
        }
    families: dict[str, list[str]] = {}
    for metric, value in run.result.metrics.items() if isinstance(run, TrainedRun) else ():
        if metric.startswith("test_") and is_finite(value):
            family, _, k = metric.removeprefix("test_").partition("@")
            shown = f"{value:.1%}" if is_share(metric) else number(value)
            name = f"test {_METRICS.get(family, family.replace('_', ' '))}"
            families.setdefault(f"{name} at K" if k else name, []).append(
                f"{k}:\N{NO-BREAK SPACE}{shown}" if k else shown
            )
    return {name: ", ".join(values) for name, values in families.items()}


def environments(links: RunLinks) -> list[tuple[str, ...]]:
    """Return one row for each different environment of the runs: machine, versions, number of runs, dates."""
    days: dict[tuple[str, ...], list[str]] = {}
    for run in (run for section in links.sections for run in section.runs.values()):
        ran = run.environment
        versions = f"Python {ran.python}, torch {ran.torch}"
        key = (ran.device_name, ran.device, str(ran.threads), ran.code, versions)
        days.setdefault(key, []).append(ran.started[:10])
    return [
        (*key, str(len(started)), " to ".join(sorted({min(started), max(started)})))
        for key, started in sorted(days.items())
    ]


def inline(text: str) -> Markup:
    """Return text as markup: backticks enclose code, L_G and F_S are symbols, everything else is escaped."""
    parts: list[Markup] = []
    end = 0
    for found in _INLINE.finditer(text):
        parts.append(escape(text[end : found.start()]))
        code, letter, index = found.groups()
        markup = "<code>{}</code>" if code else "<i>{}</i><sub>{}</sub>"
        parts.append(Markup(markup).format(*([code] if code else [letter, index])))  # noqa: S704
        end = found.end()
    return Markup("").join([*parts, escape(text[end:])])


def _section_key(run: Run) -> str:
    """Return a text that is equal for runs that differ only in their seed, or in what they record."""
    fields = {field: value for field, value in run.settings.items() if not trains_the_same([field])}
    ran = run.environment
    network = ran.network.digest if ran.network else None
    return json.dumps([type(run).__name__, fields, ran.data.digest, ran.weights, network], sort_keys=True)
