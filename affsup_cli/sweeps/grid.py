"""A table of your own from the command line: the recipe and the values of `affsup sweep RECIPE --grid FIELD=A,B`."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from affsup_cli.recipe import load_recipe, parse_override
from data_prep.errors import UsageError

FOLDER = "grids"
"""Folder of the tables, beside the run folders."""
MAX_CELLS = 400  # a table of more has more keys than a TOML file of a recipe or table may have
_KEY_CHARACTER = re.compile(r"[^a-z0-9.-]+")
_METRICS = {"minibatch": "test_accuracy", "scene": "test_accuracy", "frcnn": "test_map_50", "relnet": "test_map_50"}


@dataclass(frozen=True)
class Axis:
    """A field of a recipe, and its values in a grid."""

    field: str
    values: tuple[Any, ...]

    @property
    def label(self) -> str:
        """The last part of the field's name."""
        return self.field.rpartition(".")[2]


def parse_axis(text: str) -> Axis:
    """Read `FIELD=VALUE,VALUE`; values are TOML or plain text, as for `--set`.

    Raises:
        UsageError: there is no value, or one is given twice.
    """
    field, separator, values = (part.strip() for part in text.partition("="))
    parts = split_values(values)
    if not (field and separator and all(parts)):
        raise UsageError(f"--grid takes FIELD=VALUE,VALUE, for example affinity.gamma=0,2,4; found '{text}'")
    read = tuple(parse_override(f"{field}={part}")[1] for part in parts)
    if len({str(value) for value in read}) < len(read):
        raise UsageError(f"--grid {text}: a value is given twice")
    return Axis(field, read)


def split_values(values: str) -> list[str]:
    """Split at the commas outside of brackets."""
    depth, parts = 0, [""]
    for character in values:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def grid_table(recipe: str, axes: Sequence[Axis], seeds: int, extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table (see `reporting.select.spec.GridSpec`) of all combinations of values.

    The first axis gives the rows, the second the columns, and further ones a block for each combination.

    Args:
        recipe: name of a shipped recipe, or a TOML file.
        axes: at least one, of different fields.
        seeds: runs a cell.
        extra: overrides of every cell.

    Raises:
        UsageError: a field is given twice, the recipe refuses a combination, or there are too many.
    """
    fields = [axis.field for axis in axes]
    for field in fields:
        if fields.count(field) > 1 or field in extra or field in ("seed", "name"):
            raise UsageError(f"--grid {field}=…: expected each field once, and neither seed (--seeds) nor name")
    combinations = list(itertools.product(*(axis.values for axis in axes)))
    if len(combinations) > MAX_CELLS:
        raise UsageError(
            f"--grid: {len(combinations):,} cells, expected at most {MAX_CELLS:,}; "
            "`affsup search` tries a number of your choice"
        )
    for values in combinations:
        task = load_recipe(recipe, {**extra, **dict(zip(fields, values, strict=True))}).task
    rows, columns, *others = [*axes, None][: max(2, len(axes))]
    assert rows is not None  # noqa: S101  (there is at least one axis)
    blocks = []
    for values in itertools.product(*(axis.values for axis in others if axis)):
        chosen = {axis.field: value for axis, value in zip(others, values, strict=True) if axis}
        blocks.append(
            {
                "key": "-".join(_key(field, value) for field, value in chosen.items()) or "grid",
                "label": ", ".join(_label(field, value) for field, value in chosen.items()) or Path(recipe).stem,
                "seeds": seeds,
                "set": chosen,
                "columns": [
                    {
                        "key": _key(columns.field, value),
                        "label": _label(columns.field, value),
                        "set": {columns.field: value},
                    }
                    for value in columns.values
                ]
                if columns
                else [{"key": "value", "label": "value"}],
            }
        )
    metric = _METRICS.get(task, "test_recall@100")
    return {
        "kind": "grid",
        "title": f"{Path(recipe).stem}: {' by '.join(axis.label for axis in axes)}",
        "caption": f"{metric} in percent.",
        "recipe": recipe,
        "set": dict(extra),
        "metric": metric,
        "scale": 100.0,
        "heat_map": True,
        "compare": "rows",
        "baseline": _key(rows.field, rows.values[0]),
        "treatments": [],
        "rows": {
            _key(rows.field, value): {"label": _label(rows.field, value), "set": {rows.field: value}}
            for value in rows.values
        },
        "blocks": blocks,
    }


def write_grid(table: Mapping[str, Any], runs_dir: Path) -> Path:
    """Write a table of `grid_table` beside the runs, named after its content; return its path."""
    text = tomli_w.dumps(table)
    digest = hashlib.sha256(text.encode()).hexdigest()[:6]
    path = runs_dir / FOLDER / f"{_key('grid', table['title'])}-{digest}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _key(field: str, value: Any) -> str:
    text = f"{field.rpartition('.')[2]}-{_text(value)}"
    return _KEY_CHARACTER.sub("-", text.lower()).strip("-")


def _label(field: str, value: Any) -> str:
    return f"{field.rpartition('.')[2]} = {_text(value)}"


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
