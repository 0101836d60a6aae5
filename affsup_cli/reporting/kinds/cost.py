"""Time of an epoch and peak memory, with and without L_G (table 4)."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator
from typing import Any

from affsup_cli.reporting.render.document import DASH, Content, Footnotes, Source, Table, csv_bytes
from affsup_cli.reporting.select.experiments import Cell, spec_cells
from affsup_cli.reporting.select.match import departures
from affsup_cli.reporting.select.spec import CostBlock, CostRow, CostSpec
from affsup_cli.reporting.select.statistics import summarize
from affsup_cli.runs.index import MeasuredRun, RunIndex
from affsup_cli.runs.results import Measurement

_NUMBERS = (
    *("block", "row", "unit", "statistic", "runtime", "runtime_std", "runtime_min", "runtime_max", "rounds"),
    *("memory", "paper_runtime", "paper_memory", "marks", "device", "run"),
)

_CAPTION = "Ours: mean ± sample standard deviation (rounds); ratio: median [lowest, highest] (rounds)."


@dataclasses.dataclass(frozen=True)
class _Comparison:
    """The measurement that fills a block."""

    run: MeasuredRun
    departures: tuple[str, ...]

    @property
    def ratios(self) -> list[float]:
        """Treatment over baseline, a value a round: the two of a round were measured back to back."""
        result = self.run.result
        rounds = zip(result.treatment.seconds_per_epoch, result.baseline.seconds_per_epoch, strict=True)
        return [treatment / baseline for treatment, baseline in rounds]

    @property
    def memory_ratio(self) -> float | None:
        """Treatment over baseline."""
        treatment, baseline = self.run.result.treatment.peak_megabytes, self.run.result.baseline.peak_megabytes
        return treatment / baseline if treatment and baseline else None


def build_cost(spec: CostSpec, runs: RunIndex) -> Content:
    """Work out a cost comparison from the measurements there are.

    `.csv` has three lines a block: the two variants (mean over the rounds, seconds and megabytes) and their ratio
    (median over the rounds).
    """
    footnotes = Footnotes()
    tables: list[Table] = []
    numbers: list[dict[str, Any]] = []
    used: list[MeasuredRun] = []
    notes: list[str] = []
    for block, cell in zip(spec.blocks, spec_cells(spec), strict=True):
        found = _comparisons(cell, runs)
        comparison = found[0] if found else None
        notes += [
            f"{block.key}: left out (another measurement stands here): {other.run.folder.name}" for other in found[1:]
        ]
        used += [comparison.run] if comparison else []
        marks = footnotes.mark_departures(comparison.departures, comparison.run.environment.data) if comparison else ""
        tables.append(_table(block, comparison, marks))
        numbers += _numbers(block, comparison, marks)
    return Content(
        caption=f"{spec.caption} {_CAPTION}",
        tables=tuple(tables),
        footnotes=footnotes.lines(),
        notes=tuple(notes),
        used=tuple(used),
        files={".csv": csv_bytes(numbers, _NUMBERS)},
    )


def _comparisons(cell: Cell, runs: RunIndex) -> list[_Comparison]:
    """Return the measurements of a cell, the one to show first: faithful before others, then the newest."""
    found = []
    for run in reversed(runs.measured):
        # What a run observes costs time: here no field may differ silently.
        departed = departures(cell, run, observing=frozenset())
        if departed is not None:
            found.append(_Comparison(run, departed))
    return sorted(found, key=lambda comparison: bool(comparison.departures))


def _table(block: CostBlock, comparison: _Comparison | None, marks: str) -> Table:
    header = (block.label, "1-epoch runtime, paper", "ours", "peak memory, paper", "ours")
    result = comparison.run.result if comparison else None
    variants = [
        (block.baseline, result.baseline if result else None),
        (block.treatment, result.treatment if result else None),
    ]
    rows = [
        (
            row.label,
            _duration(row.paper_seconds),
            _ours_duration(measured) + (marks if measured else ""),
            f"{row.paper_megabytes:,.0f} MB",
            f"{measured.peak_megabytes:,.0f} MB{marks}" if measured and measured.peak_megabytes else DASH,
        )
        for row, measured in variants
    ]
    ratio = memory = DASH
    if comparison:
        ratios = comparison.ratios
        ratio = f"{statistics.median(ratios):.3f} [{min(ratios):.3f}, {max(ratios):.3f}] ({len(ratios)}){marks}"
        memory = f"{comparison.memory_ratio:.3f}{marks}" if comparison.memory_ratio else DASH
    paper_time, paper_memory = _paper_ratios(block)
    rows.append(("ratio", f"{paper_time:.3f}", ratio, f"{paper_memory:.3f}", memory))
    sources = {}
    if comparison:
        source = Source(block.label, (comparison.run,), marks)
        sources = {(row, column): source for row in range(len(rows)) for column in (2, 4) if rows[row][column] != DASH}
    return Table(header, tuple(rows), sources)


def _unit(seconds: float) -> tuple[float, str]:
    return (1, "seconds") if seconds < 600 else (60, "minutes")


def _duration(seconds: float) -> str:
    size, unit = _unit(seconds)
    return f"{seconds / size:.1f} {unit}"


def _ours_duration(measured: Measurement | None) -> str:
    if measured is None:
        return DASH
    summary = summarize(measured.seconds_per_epoch)
    size, unit = _unit(summary.mean)
    spread = "" if summary.std is None else f" ± {summary.std / size:.2f}"
    return f"{summary.mean / size:.2f}{spread} {unit} ({summary.n})"


def _paper_ratios(block: CostBlock) -> tuple[float, float]:
    treatment, baseline = block.treatment, block.baseline
    return treatment.paper_seconds / baseline.paper_seconds, treatment.paper_megabytes / baseline.paper_megabytes


def _numbers(block: CostBlock, comparison: _Comparison | None, marks: str) -> Iterator[dict[str, Any]]:
    origin: dict[str, Any] = {}
    if comparison:
        origin = {
            "marks": marks.strip(),
            "device": comparison.run.environment.device_name,
            "run": comparison.run.folder.name,
        }
    result = comparison.run.result if comparison else None
    yield _variant(block, "baseline", block.baseline, result.baseline if result else None) | origin
    yield _variant(block, "treatment", block.treatment, result.treatment if result else None) | origin
    time, memory = _paper_ratios(block)
    ratio: dict[str, Any] = {"block": block.key, "row": "ratio", "unit": "ratio", "statistic": "median"}
    ratio |= {"paper_runtime": time, "paper_memory": memory}
    if comparison:
        ratio |= {"runtime": statistics.median(comparison.ratios), **_spread(comparison.ratios)}
        ratio |= {"memory": comparison.memory_ratio}
    yield ratio | origin


def _variant(block: CostBlock, name: str, row: CostRow, measured: Measurement | None) -> dict[str, Any]:
    line: dict[str, Any] = {"block": block.key, "row": name, "unit": "seconds, megabytes", "statistic": "mean"}
    line |= {"paper_runtime": row.paper_seconds, "paper_memory": row.paper_megabytes}
    if measured:
        seconds = measured.seconds_per_epoch
        line |= {"runtime": statistics.fmean(seconds), **_spread(seconds), "memory": measured.peak_megabytes}
    return line


def _spread(values: list[float]) -> dict[str, Any]:
    return {
        "runtime_std": summarize(values).std,
        "runtime_min": min(values),
        "runtime_max": max(values),
        "rounds": len(values),
    }
