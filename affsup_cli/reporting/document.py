"""What every report is made of: tables of text, footnotes, notes, files; and the Markdown page that holds them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from affsup_cli.reporting.runs import Run, RunData

DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
_LETTERS = "ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻ"


@dataclasses.dataclass(frozen=True)
class Table:
    """Text in columns, as it is shown; `rows` are as wide as `header`."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Footnotes:
    """Gives every different text a mark of its own, in the order of their first use."""

    def __init__(self) -> None:
        self._marks: dict[str, str] = {}

    def mark(self, text: str) -> str:
        """Return the superscript letter (or letters) that stands for `text`."""
        if text not in self._marks:
            rest, mark = len(self._marks), ""
            while rest >= 0:
                rest, letter = divmod(rest, len(_LETTERS))
                mark, rest = _LETTERS[letter] + mark, rest - 1
            self._marks[text] = mark
        return self._marks[text]

    def mark_departures(self, departures: tuple[str, ...], data: RunData) -> str:
        """Return the marks of runs that depart from their recipes or hold unofficial data, each after a space."""
        texts = ["; ".join(departures)] if departures else []
        if data.official is False:
            texts.append(f"the checksum of the {data.name} archive is not the official one")
        return "".join(f" {self.mark(text)}" for text in texts)

    def texts(self) -> tuple[str, ...]:
        """Return the footnotes without their marks."""
        return tuple(self._marks)

    def lines(self) -> tuple[str, ...]:
        """Return the footnotes, each after its mark."""
        return tuple(f"{mark} {text}" for text, mark in self._marks.items())


@dataclasses.dataclass(frozen=True)
class Content:
    """What one kind of report works out.

    Attributes:
        caption: how to read the numbers.
        tables: the numbers as text.
        footnotes: what the marks in them mean.
        notes: runs left out, numbers that are missing.
        used: the runs that the numbers came from.
        files: what to write, by the ending of the file name (`.csv`, `.cells.csv`, `.png`).
    """

    caption: str
    tables: tuple[Table, ...]
    footnotes: tuple[str, ...]
    notes: tuple[str, ...]
    used: tuple[Run, ...]
    files: Mapping[str, bytes]


@dataclasses.dataclass(frozen=True)
class Report:
    """A finished report, for showing.

    Attributes:
        title: the table's or figure's name and subject.
        caption: how to read the numbers.
        tables: the numbers as text.
        footnotes: what the marks in them mean.
        notes: what was left out or is missing and how to fill it; the machines, the code and the dates of the runs.
        paths: the files written.
    """

    title: str
    caption: str
    tables: tuple[Table, ...]
    footnotes: tuple[str, ...]
    notes: tuple[str, ...]
    paths: tuple[Path, ...]


def markdown(title: str, content: Content, notes: Sequence[str], picture: str | None) -> str:
    """Return a page: title, picture, tables, caption, footnotes, notes."""
    parts = [f"# {title}"]
    if picture:
        parts.append(f"![{title}]({picture})")
    parts += [_markdown_table(table) for table in content.tables]
    parts.append(content.caption)
    parts += ["  \n".join(content.footnotes)] if content.footnotes else []
    parts += ["\n".join(f"- {note}" for note in notes)] if notes else []
    return "\n\n".join(parts) + "\n"


def csv_bytes(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> bytes:
    """Return CSV in UTF-8; numbers in full precision, None as an empty field."""
    import pandas as pd

    return pd.DataFrame(rows, columns=list(columns), dtype=object).to_csv(index=False, lineterminator="\n").encode()


def _markdown_table(table: Table) -> str:
    lines = [table.header, tuple("---" for _ in table.header), *table.rows]
    return "\n".join("| " + " | ".join(field.replace("|", "\\|") for field in line) + " |" for line in lines)
