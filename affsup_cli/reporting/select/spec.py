"""The files of `recipes/tables`, read and checked: one file for each table or figure.

Seven kinds: a `grid` of numbers in the paper's layout (tables 1-3 and 5-7), a `cost` comparison (table 4),
relationship `recall` against K (table 8, figure 4), `curves` over the epochs (figure 5), an `embedding` of features
(figure 6), the `relations` found on test images (figures 1 and 7), and the supervision `targets` (figure 9).
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from affsup_cli.recipe import Section, is_file_name, parse_toml, recipes_folder
from data_prep.errors import AffsupError, UsageError, did_you_mean, quote, shorten

T = TypeVar("T")
Key = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$", description="one part of a cell's key")]


class Setting(Section):
    """Recipe fields that a part of a table or figure sets."""

    overrides: dict[str, Any] = Field(default={}, alias="set")


class Variant(Setting):
    """One choice on an axis of a table or figure, and the recipe fields that it sets."""

    label: str


class KeyedVariant(Variant):
    """A variant in an ordered list."""

    key: Key


class GridFields(Setting):
    """What an entry of a grid shows. Set at the table, a block, a column or a row; the last of these wins.

    `set` is merged in the same order.
    """

    recipe: str | None = None
    metric: str | None = Field(default=None, description="a key of the run's metrics")
    scale: float | None = Field(default=None, description="factor of the shown value; default 1")
    digits: int | None = Field(default=None, ge=0, description="decimals shown; default 2")


class PaperValue(NamedTuple):
    """A number of the paper; `std` is None where the paper prints no deviation."""

    mean: float
    std: float | None = None


class GridRow(Variant, GridFields):
    """A row of every block."""


class GridColumn(KeyedVariant, GridFields):
    """A column of a block, and the paper's numbers in it: `{row key: mean or [mean, standard deviation]}`."""

    paper: dict[str, float | tuple[float, float]] = Field(default={})
    elsewhere: dict[str, float] = Field(default={}, description="published numbers of other projects, by row key")


class GridBlock(KeyedVariant, GridFields):
    """A block of rows with its own column headings: one data set."""

    seeds: int = Field(ge=1, description="runs per cell")
    elsewhere: str | None = Field(default=None, description="the source of the columns' `elsewhere`, for a footnote")
    columns: tuple[GridColumn, ...] = Field(min_length=1)


@dataclasses.dataclass(frozen=True)
class GridEntry:
    """One number of a grid.

    Attributes:
        column: key of its column.
        row: key of its row.
        cell: key of the cell whose runs it shows; entries that differ only in the metric share a cell.
        recipe: name of their recipe.
        overrides: fields set in the recipe.
        metric: key of the run's metrics.
        scale: factor of the shown value.
        digits: decimals shown.
        paper: the paper's number, if it prints one.
        elsewhere: the number of another project, if one is known.
    """

    column: str
    row: str
    cell: str
    recipe: str
    overrides: dict[str, Any]
    metric: str
    scale: float
    digits: int
    paper: PaperValue | None
    elsewhere: float | None = None


class GridSpec(GridFields):
    """Rows by columns, in blocks; some rows (or columns) are compared with a baseline row (or column)."""

    kind: Literal["grid"]
    title: str
    caption: str
    compare: Literal["rows", "columns"] = Field(description="whether `baseline` and `treatments` are rows or columns")
    baseline: Key = Field(description="the reference of paired differences")
    treatments: tuple[Key, ...] = Field(description="rows or columns whose paired differences are shown")
    rows: dict[Key, GridRow]
    blocks: tuple[GridBlock, ...] = Field(min_length=1)
    heat_map: bool = Field(default=False, description="draw the numbers as a picture as well")

    @property
    def rows_differ_in_runs(self) -> bool:
        """Whether the rows show different runs, not only different metrics."""
        return any(row.recipe or row.overrides for row in self.rows.values())

    @property
    def columns_differ_in_runs(self) -> bool:
        """Whether the columns show different runs, not only different metrics."""
        return any(column.recipe or column.overrides for block in self.blocks for column in block.columns)

    def entries(self, block: GridBlock) -> list[GridEntry]:
        """Return the block's entries, column by column."""
        return [self._entry(block, column, row) for column in block.columns for row in self.rows]

    def _entry(self, block: GridBlock, column: GridColumn, row: str) -> GridEntry:
        levels: tuple[GridFields, ...] = (self, block, column, self.rows[row])
        keys = [block.key]
        if self.columns_differ_in_runs:
            keys.append(column.key)
        if self.rows_differ_in_runs:
            keys.append(row)
        recipe = _last_given(level.recipe for level in levels)
        metric = _last_given(level.metric for level in levels)
        if recipe is None or metric is None:
            missing = "recipe" if recipe is None else "metric"
            raise ValueError(f"{block.key}/{column.key}/{row} has no {missing}: name it at table, block, column or row")
        scale, digits = _last_given(level.scale for level in levels), _last_given(level.digits for level in levels)
        paper = column.paper.get(row)
        return GridEntry(
            column=column.key,
            row=row,
            cell="/".join(keys),
            recipe=recipe,
            overrides={field: value for level in levels for field, value in level.overrides.items()},
            metric=metric,
            scale=1.0 if scale is None else scale,
            digits=2 if digits is None else digits,
            paper=None if paper is None else PaperValue(*paper) if isinstance(paper, tuple) else PaperValue(paper),
            elsewhere=column.elsewhere.get(row),
        )

    @model_validator(mode="after")
    def _parts_fit(self) -> GridSpec:
        _refuse_repeats(self.blocks)
        compared = [self.baseline, *self.treatments]
        if self.compare == "rows":
            _refuse_unknown("row", compared, self.rows)
        for block in self.blocks:
            _refuse_repeats(block.columns)
            if self.compare == "columns":
                _refuse_unknown("column", compared, [column.key for column in block.columns])
            for column in block.columns:
                _refuse_unknown("row", column.paper, self.rows)
                _refuse_unknown("row", column.elsewhere, self.rows)
                if column.elsewhere and block.elsewhere is None:
                    raise ValueError(f"{block.key}: elsewhere needs the source of these numbers")
            self.entries(block)
        return self


class CostRow(Variant):
    """A row of a cost block, and the paper's numbers in it."""

    paper_seconds: float = Field(gt=0, description="time of one epoch")
    paper_megabytes: float = Field(gt=0, description="peak memory")


class CostBlock(KeyedVariant):
    """Two variants of one experiment, timed in alternation."""

    recipe: str
    baseline: CostRow
    treatment: CostRow


class CostSpec(Section):
    """Time of an epoch and peak memory, with and without L_G."""

    kind: Literal["cost"]
    title: str
    caption: str
    blocks: tuple[CostBlock, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _keys_differ(self) -> CostSpec:
        _refuse_repeats(self.blocks)
        return self


class CurvePanel(Section):
    """Curves on the same axes."""

    key: Key
    label: str
    curves: tuple[KeyedVariant, ...] = Field(min_length=1)


class CurvesSpec(Setting):
    """Error and target mass over the epochs."""

    kind: Literal["curves"]
    title: str
    recipe: str
    seeds: int = Field(ge=1, description="runs per curve")
    panels: tuple[CurvePanel, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _keys_differ(self) -> CurvesSpec:
        _refuse_repeats(self.panels)
        for panel in self.panels:
            _refuse_repeats(panel.curves)
        return self


class EmbeddingSpec(Setting):
    """One t-SNE picture for each variant, side by side."""

    kind: Literal["embedding"]
    title: str
    recipe: str
    panels: tuple[KeyedVariant, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _keys_differ(self) -> EmbeddingSpec:
        _refuse_repeats(self.panels)
        return self


class RecallCurve(KeyedVariant):
    """A curve of relationship recall; `recipe` replaces that of the figure."""

    recipe: str | None = None


class RecallSpec(Setting):
    """Relationship recall against K, one curve for each variant."""

    kind: Literal["recall"]
    title: str
    caption: str
    recipe: str
    seeds: int = Field(ge=1, description="runs per curve")
    curves: tuple[RecallCurve, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _keys_differ(self) -> RecallSpec:
        _refuse_repeats(self.curves)
        return self


class RelationsSpec(Setting):
    """Test images with the strongest relations of one object in each, the variants side by side."""

    kind: Literal["relations"]
    title: str
    recipe: str
    skip: int = Field(default=0, ge=0, description="number of stored images that are skipped first")
    images: int = Field(ge=1, description="number of images shown")
    panels: tuple[KeyedVariant, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _keys_differ(self) -> RelationsSpec:
        _refuse_repeats(self.panels)
        return self


class TargetsSpec(Setting):
    """Supervision targets of one object, drawn on a test image."""

    kind: Literal["targets"]
    title: str
    recipe: str
    targets: tuple[Literal["different-category", "different-instance"], ...] = Field(min_length=1)


Spec = GridSpec | CostSpec | CurvesSpec | EmbeddingSpec | RecallSpec | RelationsSpec | TargetsSpec
_NOT_IN_PAPER = (2, 0, "")
_ADAPTER: TypeAdapter[Spec] = TypeAdapter(Annotated[Spec, Field(discriminator="kind")])


def report_names() -> list[str]:
    """Return the names for `load_spec`: the paper's tables, its figures, then the others by name."""
    return sorted((path.stem for path in _tables_folder().glob("*.toml")), key=_sort_key)


def paper_names() -> list[str]:
    """Return the names of the paper's tables and figures."""
    return [name for name in report_names() if _sort_key(name) < _NOT_IN_PAPER]


def short_name(name: str) -> str:
    """Return the name of a table or figure without folder and ending, for cells and files."""
    return Path(name).stem if is_file_name(name) else name


def load_spec(name: str) -> Spec:
    """Read a table or figure: a shipped one by its name, or a file by its path, which ends in .toml.

    Raises:
        UsageError: there is no such table or figure.
        AffsupError: its file is invalid.
    """
    if is_file_name(name):
        return read_spec(Path(name))
    path = _tables_folder() / f"{name}.toml"
    if name not in report_names():
        hint = did_you_mean(name, report_names())
        raise UsageError(f"no table or figure {quote(name)}{hint}: known are {', '.join(report_names())}")
    return read_spec(path)


def read_spec(path: Path) -> Spec:
    """Read a table's or figure's file.

    Raises:
        AffsupError: it is invalid; the message names the field.
    """
    try:
        # Through JSON: strict validation accepts a JSON array as a tuple, but no Python list.
        return _ADAPTER.validate_json(json.dumps(parse_toml(path)), strict=True)
    except ValidationError as error:
        fault = error.errors()[0]
        field = ".".join(map(str, fault["loc"]))
        raise AffsupError(f"{path}: {field}: {shorten(fault['msg'])}, found {quote(fault['input'])}") from error


def _tables_folder() -> Path:
    return recipes_folder() / "tables"


def _sort_key(name: str) -> tuple[int, int, str]:
    match = re.fullmatch(r"(table|figure)(\d+)", name)
    if match is None:
        return *_NOT_IN_PAPER[:2], name
    return int(match[1] == "figure"), int(match[2]), name


def _refuse_repeats(parts: Iterable[KeyedVariant | CurvePanel]) -> None:
    keys = [part.key for part in parts]
    if repeated := sorted({key for key in keys if keys.count(key) > 1}):
        raise ValueError(f"the key {', '.join(repeated)} is used twice")


def _refuse_unknown(part: str, named: Iterable[str], known: Collection[str]) -> None:
    if unknown := sorted(set(named) - set(known)):
        raise ValueError(f"no {part} {', '.join(unknown)}: the {part}s are {', '.join(known)}")


def _last_given(values: Iterable[T | None]) -> T | None:
    """Return the last value that is not None."""
    found = None
    for value in values:
        found = found if value is None else value
    return found
