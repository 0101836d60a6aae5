"""The parts of a report: tables of text, footnotes, notes, files."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from affsup_cli.reporting.footnotes import LETTERS
from affsup_cli.runs.index import Run
from data_prep.errors import printable

DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
_NEGATIVE = re.compile(r"(?<![\w)])-(?=\d)")
_PLAIN = str.maketrans(LETTERS, "abcdefghijklmnoprstuvwxyz")
_MARKS = re.compile(rf"(?: [{LETTERS}]+)+$")


_LONG_FIELD = 45  # characters
_SHARES = ("accuracy", "map_", "recall", "attention_")


def is_share(metric: str) -> bool:
    """Return whether a metric is shown in percent: accuracies, precisions, recalls, shares of attention."""
    return any(share in metric for share in _SHARES)


@dataclasses.dataclass(frozen=True)
class Source:
    """The runs behind a number: `label` names them in the report, `marks` are their footnote marks."""

    label: str
    runs: tuple[Run, ...]
    marks: str


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of text as shown; `rows` have as many fields as `header`.

    If the second heading is empty, consecutive rows with one label form a group, and their second field names the kind
    of entry. `sources` are the runs behind the fields, by row and column; the paper's numbers have none.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    sources: Mapping[tuple[int, int], Source] = dataclasses.field(default_factory=dict)

    @property
    def grouped(self) -> bool:
        """Whether rows form groups."""
        return self.header[1] == ""

    @property
    def wraps(self) -> bool:
        """Whether its fields are words that may take several lines, not numbers."""
        return not self.grouped and any(len(field) > _LONG_FIELD for row in self.rows for field in row)

    def bodies(self) -> list[list[int]]:
        """Return the row numbers of each body of an HTML table: those of each group, or all."""
        return self.groups() if self.grouped else [list(range(len(self.rows)))]

    def groups(self) -> list[list[int]]:
        """Return the row numbers of each group."""
        if not self.grouped:
            return [[row] for row in range(len(self.rows))]
        numbered = itertools.groupby(enumerate(self.rows), key=lambda row: row[1][0])
        return [[number for number, _ in rows] for _, rows in numbered]


def with_minus(text: str) -> str:
    """Return `text` with a minus sign in place of the hyphen before a number."""
    return _NEGATIVE.sub(MINUS, text)


def split_marks(text: str) -> tuple[str, list[str]]:
    """Return a field's text without its marks, and the marks."""
    marks = _MARKS.search(text)
    return (text[: marks.start()], marks[0].split()) if marks else (text, [])


def plain_mark(mark: str) -> str:
    """Return a mark in plain letters a to z, for formats with their own superscript."""
    return mark.translate(_PLAIN)


@dataclasses.dataclass(frozen=True)
class Content:
    """The content that one kind of report builds.

    Attributes:
        caption: how to read the numbers.
        tables: the numbers as text.
        footnotes: the text of each mark.
        notes: runs that were left out, missing numbers.
        used: the runs that the numbers came from.
        files: content by file name suffix (`.csv`, `.cells.csv`, `.png`).
    """

    caption: str
    tables: tuple[Table, ...]
    footnotes: tuple[str, ...]
    notes: tuple[str, ...]
    used: tuple[Run, ...]
    files: Mapping[str, bytes]


@dataclasses.dataclass(frozen=True)
class Report:
    """A finished report.

    Attributes:
        name: its name for `affsup report`.
        title: the table's or figure's name and subject.
        content: its tables, footnotes and files.
        provenance: the machines, the code and the dates of its runs.
        notes: what was left out or is missing, and the command that adds it.
        missing: number of runs that the full report lacks.
        paths: the written files.
    """

    name: str
    title: str
    content: Content
    provenance: tuple[str, ...]
    notes: tuple[str, ...]
    missing: int
    paths: tuple[Path, ...] = ()


def csv_bytes(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> bytes:
    """Return CSV in UTF-8; numbers in full precision, None as an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return printable(text.getvalue()).encode()
