"""The images, objects and classes of each split, as `affsup prepare` and `affsup show` print them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.markup import escape
from rich.table import Table

from data_prep.errors import shorten
from data_prep.store import MAX_EXAMPLES, AnyManifest, ImageManifest, SceneManifest

MAX_CLASS_ROWS = 20


def split_table(manifest: AnyManifest) -> Table:
    """Return the table; many classes are shown as one range of counts."""
    return _scenes_table(manifest) if isinstance(manifest, SceneManifest) else _images_table(manifest)


def left_out_lines(manifest: AnyManifest) -> Iterable[str]:
    """Yield a line for each kind of entry that was left out of the official files, with the reason."""
    for entry in manifest.left_out if isinstance(manifest, SceneManifest) else ():
        what = entry.what if entry.count > 1 else entry.what.removesuffix("s")
        more = "; ..." if entry.count > len(entry.examples) >= MAX_EXAMPLES else ""
        yield f"left out: {entry.count:,} {what}, {entry.reason}: {'; '.join(map(shorten, entry.examples))}{more}"


def empty_category_lines(manifest: AnyManifest) -> Iterable[str]:
    """Yield a line on categories without training images."""
    table = manifest.category_table() if isinstance(manifest, SceneManifest) else []
    empty = [name for name, train, _ in table if not train]
    if empty:
        named = ", ".join(map(shorten, empty[:MAX_EXAMPLES])) + (", ..." if len(empty) > MAX_EXAMPLES else "")
        yield f"{len(empty)} of {len(table)} categories have no training image ({named})"


def _images_table(manifest: ImageManifest) -> Table:
    table = _table(f"{manifest.dataset}: images of each split", "class", manifest)
    *classes, total = manifest.split_table()
    _add_classes(table, classes)
    table.add_section()
    _add(table, *total)
    return table


def _scenes_table(manifest: SceneManifest) -> Table:
    table = _table(f"{manifest.dataset}: content of each split", "", manifest)
    for row in manifest.split_table():
        _add(table, *row)
    categories = [(f"category {name}", train, test) for name, train, test in manifest.category_table()]
    for rows, what in ((categories, "categories"), (manifest.class_table(), "classes")):
        if rows:
            table.add_section()
            _add_classes(table, rows, what)
    return table


def _table(title: str, first: str, manifest: AnyManifest) -> Table:
    table = Table(title=title)
    table.add_column(first)
    for split in manifest.image_counts():
        table.add_column(split, justify="right")
    return table


def _add_classes(table: Table, rows: Sequence[tuple[str, *tuple[int, ...]]], what: str = "classes") -> None:
    if len(rows) <= MAX_CLASS_ROWS:
        for row in rows:
            _add(table, *row)
    else:
        counts = [row[1:] for row in rows]
        ranges = [f"{min(column):,}-{max(column):,}" for column in zip(*counts, strict=True)]
        table.add_row(f"each of {len(rows)} {what}", *ranges)


def _add(table: Table, name: str, *counts: int) -> None:
    table.add_row(escape(shorten(name)), *(f"{count:,}" for count in counts))
