"""Tables on the terminal in which names, keys and commands stay on one line."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from affsup_cli.views.console import console as _console
from data_prep.errors import printable

_GAP = 2
_LEAST_TEXT = 20  # columns of a field that may fold


def line_width() -> int | None:
    """Return the width of the terminal; None for a file or a pipe, where lines may have any length."""
    return _console.width if _console.is_terminal else None


class FittingTable:
    """A table that drops optional columns, folds columns of prose, or lists its fields, until keys fit on one line.

    Args:
        title: heading of the table.
        columns: headings of the columns; the first column holds the key of each row.
        rows: fields as rich markup.
        right: columns that are aligned to the right.
        prose: columns whose fields may fold.
        optional: columns that may be dropped, the first one first.
    """

    def __init__(
        self,
        title: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        right: Sequence[str] = (),
        prose: Sequence[str] = (),
        optional: Sequence[str] = (),
    ) -> None:
        self.title = printable(title)
        self._columns = list(columns)
        self._rows = [[Text.from_markup(printable(field)) for field in row] for row in rows]
        self._right, self._prose, self._optional = right, prose, optional

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render it at the width of the terminal."""
        limit = line_width()
        for dropped in range(len(self._optional) + 1):
            shown = [place for place, name in enumerate(self._columns) if name not in self._optional[:dropped]]
            widths = {place: self._width(place) for place in shown}
            gaps = _GAP * (len(shown) - 1)
            natural = sum(widths.values()) + gaps
            least = gaps + sum(
                min(width, _LEAST_TEXT) if self._columns[place] in self._prose else width
                for place, width in widths.items()
            )
            if limit is None or least <= limit:
                yield self._table(widths, natural if limit is None else min(natural, limit))
                return
        yield Text(self.title, style="bold")
        for key, *fields in self._rows:
            yield key
            for name, field in zip(self._columns[1:], fields, strict=True):
                for line in field.split("\n", allow_blank=True):
                    yield Text.assemble("  ", (f"{name} " if name else "", "dim"), line)

    def _width(self, place: int) -> int:
        lines = [line for row in self._rows for line in row[place].plain.splitlines()]
        return max((cell_len(line) for line in (self._columns[place], *lines)), default=0)

    def _table(self, widths: dict[int, int], width: int) -> Table:
        table = Table(title=self.title, title_justify="left", title_style="bold", header_style="dim", box=None)
        table.pad_edge, table.width = False, width
        for place, least in widths.items():
            name = self._columns[place]
            folds = name in self._prose
            table.add_column(
                Text(name),
                justify="right" if name in self._right else "left",
                overflow="fold",
                no_wrap=not folds,
                min_width=min(least, _LEAST_TEXT) if folds else least,
            )
        for row in self._rows:
            table.add_row(*(row[place] for place in widths))
        return table
