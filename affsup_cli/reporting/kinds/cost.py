"""Time of an epoch and peak memory, with and without L_G (table 4)."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator
from typing import Any

from affsup_cli.reporting.footnotes import Footnotes
from affsup_cli.reporting.render.document import DASH, Content, Source, Table, csv_bytes
from affsup_cli.reporting.select.experiments import Cell, spec_cells
from affsup_cli.reporting.select.match import departures
from affsup_cli.reporting.select.spec import CostBlock, CostRow, CostSpec
from affsup_cli.reporting.select.statistics import summarize
from affsup_cli.runs.index import MeasuredRun, RunIndex
from affsup_cli.runs.results import Measurement

_CSV_COLUMNS = (
    *("block", "row", "unit", "statistic", "runtime", "runtime_std", "runtime_min", "runtime_max", "rounds"),
    *("memory", "paper_runtime", "paper_memory", "marks", "device", "run"),
)

_CAPTION = "Ours: mean ± sample standard deviation (rounds); ratio: median [lowest, highest] (rounds)."


@dataclasses.dataclass(frozen=True)
class _BlockMeasurement:
    """The measurement that fills a block, and how it departs from the recipe."""

    run: MeasuredRun
    departures: tuple[str, ...]

    @property
    def ratios(self) -> list[float]:
        """Treatment over baseline, one value for each round; both were timed directly after each other."""
        result = self.run.result
        rounds = zip(result.treatment.seconds_per_epoch, result.baseline.seconds_per_epoch, strict=True)
        return [treatment / baseline for treatment, baseline in rounds]

    @property
    def memory_ratio(self) -> float | None:
        """Treatment over baseline."""
        treatment, baseline = self.run.result.treatment.peak_megabytes, self.run.result.baseline.peak_megabytes
        return treatment / baseline if treatment and baseline else None


def build_cost(spec: CostSpec, runs: RunIndex) -> Content:
    """Build a cost comparison from the finished measurements.

    `.csv` has three lines for each block: the two variants (mean over the rounds, seconds and megabytes)
    and their ratio (median over the rounds).
    """
    footnotes = Footnotes()
    tables: list[Table] = []
    numbers: list[dict[str, Any]] = []
    used: list[MeasuredRun] = []
    notes: list[str] = []
    for block, cell in zip(spec.blocks, spec_cells(spec), strict=True):
        found = _measurements(cell, runs)
        measurement = found[0] if found else None
        notes += [
            f"{block.key}: left out (another measurement is shown): {other.run.folder.name}" for other in found[1:]
        ]
        used += [measurement.run] if measurement else []
        marks = (
            footnotes.mark_departures(measurement.departures, measurement.run.environment.data) if measurement else ""
        )
        tables.append(_table(block, measurement, marks))
        numbers += _csv_rows(block, measurement, marks)
    return Content(
        caption=f"{spec.caption} {_CAPTION}",
        tables=tuple(tables),
        footnotes=footnotes.lines(),
        notes=tuple(notes),
        used=tuple(used),
        files={".csv": csv_bytes(numbers, _CSV_COLUMNS)},
    )


def _measurements(cell: Cell, runs: RunIndex) -> list[_BlockMeasurement]:
    """Return the measurements of a cell, best first: those that follow the recipe, then the newest."""
    found = []
    for run in reversed(runs.measured):
        # Recording costs time, so fields that only observe count as departures too.
        departed = departures(cell, run, observing=frozenset())
        if departed is not None:
            found.append(_BlockMeasurement(run, departed))
    return sorted(found, key=lambda measurement: bool(measurement.departures))


def _table(block: CostBlock, measurement: _BlockMeasurement | None, marks: str) -> Table:
    header = (block.label, "1-epoch runtime, paper", "ours", "peak memory, paper", "ours")
    result = measurement.run.result if measurement else None
    variants = [
        (block.baseline, result.baseline if result else None),
        (block.treatment, result.treatment if result else None),
    ]
    rows = [
        (
            row.label,
            _paper_duration(row.paper_seconds),
            _ours_duration(measured) + (marks if measured else ""),
            f"{row.paper_megabytes:,.0f} MB",
            f"{measured.peak_megabytes:,.0f} MiB{marks}" if measured and measured.peak_megabytes else DASH,
        )
        for row, measured in variants
    ]
    ratio = memory = DASH
    if measurement:
        ratios = measurement.ratios
        ratio = f"{statistics.median(ratios):.3f} [{min(ratios):.3f}, {max(ratios):.3f}] ({len(ratios)}){marks}"
        memory = f"{measurement.memory_ratio:.3f}{marks}" if measurement.memory_ratio else DASH
    paper_time, paper_memory = _paper_ratios(block)
    rows.append(("ratio", f"{paper_time:.3f}", ratio, f"{paper_memory:.3f}", memory))
    sources = {}
    if measurement:
        source = Source(block.label, (measurement.run,), marks)
        sources = {(row, column): source for row in range(len(rows)) for column in (2, 4) if rows[row][column] != DASH}
    return Table(header, tuple(rows), sources)


def _time_unit(seconds: float) -> tuple[float, str]:
    return (1, "seconds") if seconds < 600 else (60, "minutes")


def _paper_duration(seconds: float) -> str:
    size, unit = _time_unit(seconds)
    return f"{seconds / size:.1f} {unit}"


def _ours_duration(measured: Measurement | None) -> str:
    if measured is None:
        return DASH
    summary = summarize(measured.seconds_per_epoch)
    size, unit = _time_unit(summary.mean)
    spread = "" if summary.std is None else f" ± {summary.std / size:.2f}"
    return f"{summary.mean / size:.2f}{spread} {unit} ({summary.n})"


def _paper_ratios(block: CostBlock) -> tuple[float, float]:
    treatment, baseline = block.treatment, block.baseline
    return treatment.paper_seconds / baseline.paper_seconds, treatment.paper_megabytes / baseline.paper_megabytes


def _csv_rows(block: CostBlock, measurement: _BlockMeasurement | None, marks: str) -> Iterator[dict[str, Any]]:
    origin: dict[str, Any] = {}
    if measurement:
        origin = {
            "marks": marks.strip(),
            "device": measurement.run.environment.device_name,
            "run": measurement.run.folder.name,
        }
    result = measurement.run.result if measurement else None
    yield _variant_row(block, "baseline", block.baseline, result.baseline if result else None) | origin
    yield _variant_row(block, "treatment", block.treatment, result.treatment if result else None) | origin
    time, memory = _paper_ratios(block)
    ratio: dict[str, Any] = {"block": block.key, "row": "ratio", "unit": "ratio", "statistic": "median"}
    ratio |= {"paper_runtime": time, "paper_memory": memory}
    if measurement:
        ratio |= {"runtime": statistics.median(measurement.ratios), **_spread(measurement.ratios)}
        ratio |= {"memory": measurement.memory_ratio}
    yield ratio | origin


def _variant_row(block: CostBlock, name: str, row: CostRow, measured: Measurement | None) -> dict[str, Any]:
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
