"""How many images of each class are in each split, as `affsup prepare` and `affsup show` print it."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from data_prep.format import Manifest

LONGEST = 20


def split_table(manifest: Manifest) -> Table:
    """Return the table; where there are many classes, the range of their counts in place of a row for each."""
    table = Table(title=f"{manifest.dataset}: images of each split")
    table.add_column("class")
    for split in manifest.splits:
        table.add_column(split, justify="right")
    *classes, total = manifest.split_table()
    if len(classes) <= LONGEST:
        rows = [(escape(name), *(f"{count:,}" for count in counts)) for name, *counts in classes]
    else:
        ranges = [f"{min(counts):,}-{max(counts):,}" for counts in list(zip(*classes, strict=True))[1:]]
        rows = [(f"each of {len(classes)} classes", *ranges)]
    for row in rows:
        table.add_row(*row)
    table.add_section()
    table.add_row("total", *(f"{count:,}" for count in total[1:]))
    return table
