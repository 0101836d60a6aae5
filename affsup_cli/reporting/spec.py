"""The files of `recipes/tables`: one a table or figure, read and checked.

Four kinds: a `grid` of accuracies in the paper's layout (table 3), a `cost` comparison (table 4), `curves` over the
epochs (figure 5) and an `embedding` of features (figure 6).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from affsup_cli.errors import AffsupError, UsageError, did_you_mean
from affsup_cli.recipe import Section, parse_toml, recipes_folder

Key = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$", description="one part of a cell's key")]


class Variant(Section):
    """One choice on an axis of a table or figure, and the recipe fields that make it."""

    label: str
    overrides: dict[str, Any] = Field(default={}, alias="set")


class KeyedVariant(Variant):
    """A variant in a list, where order matters."""

    key: Key


class GridColumn(KeyedVariant):
    """A column of a block, and what the paper prints there: `{row key: (mean, standard deviation)}`."""

    paper: dict[str, tuple[float, float]] = Field(default={})


class GridBlock(KeyedVariant):
    """A block of rows under its own column heads: one data set."""

    seeds: int = Field(ge=1, description="runs a cell")
    columns: tuple[GridColumn, ...] = Field(min_length=1)


class GridSpec(Section):
    """Rows by columns of one metric, in blocks."""

    kind: Literal["grid"]
    title: str
    caption: str
    recipe: str
    metric: str = Field(description="a key of the run's metrics")
    scale: float = Field(description="what the metric is multiplied by before it is shown")
    baseline: str = Field(description="the row that paired differences are taken from")
    treatment: str = Field(description="the row whose paired difference is shown")
    rows: dict[Key, Variant]
    blocks: tuple[GridBlock, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _rows_exist(self) -> GridSpec:
        columns = [column for block in self.blocks for column in block.columns]
        named = {self.baseline, self.treatment}.union(*(column.paper for column in columns))
        if unknown := sorted(named - set(self.rows)):
            raise ValueError(f"no row {', '.join(unknown)}: the rows are {', '.join(self.rows)}")
        _refuse_repeats(self.blocks)
        for block in self.blocks:
            _refuse_repeats(block.columns)
        return self


class CostRow(Variant):
    """A row of a cost block, and what the paper prints there."""

    paper_seconds: float = Field(gt=0, description="time of one epoch")
    paper_megabytes: float = Field(gt=0, description="peak memory")


class CostBlock(Section):
    """Two variants of one experiment, measured in turns."""

    key: Key
    label: str
    recipe: str
    overrides: dict[str, Any] = Field(default={}, alias="set")
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
    """Curves that share their axes."""

    key: Key
    label: str
    curves: tuple[KeyedVariant, ...] = Field(min_length=1)


class CurvesSpec(Section):
    """Error and target mass over the epochs."""

    kind: Literal["curves"]
    title: str
    recipe: str
    seeds: int = Field(ge=1, description="runs a curve")
    overrides: dict[str, Any] = Field(default={}, alias="set")
    panels: tuple[CurvePanel, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _keys_differ(self) -> CurvesSpec:
        _refuse_repeats(self.panels)
        for panel in self.panels:
            _refuse_repeats(panel.curves)
        return self


class EmbeddingSpec(Section):
    """A t-SNE picture a variant, side by side."""

    kind: Literal["embedding"]
    title: str
    recipe: str
    overrides: dict[str, Any] = Field(default={}, alias="set")
    panels: tuple[KeyedVariant, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _keys_differ(self) -> EmbeddingSpec:
        _refuse_repeats(self.panels)
        return self


Spec = GridSpec | CostSpec | CurvesSpec | EmbeddingSpec
_NOT_IN_PAPER = (2, 0, "")
_ADAPTER: TypeAdapter[Spec] = TypeAdapter(Annotated[Spec, Field(discriminator="kind")])


def report_names() -> list[str]:
    """Return the names that `load_spec` knows, in the paper's order: tables, figures, then what is not in the paper."""
    return sorted((path.stem for path in _tables_folder().glob("*.toml")), key=_paper_order)


def paper_names() -> list[str]:
    """Return the tables and figures that the paper has."""
    return [name for name in report_names() if _paper_order(name) < _NOT_IN_PAPER]


def load_spec(name: str) -> Spec:
    """Read a table's or figure's file by its name.

    Raises:
        UsageError: there is no such table or figure.
        AffsupError: its file is faulty.
    """
    path = _tables_folder() / f"{name}.toml"
    if name not in report_names():
        hint = did_you_mean(name, report_names())
        raise UsageError(f"no table or figure '{name}'{hint}: known are {', '.join(report_names())}")
    return read_spec(path)


def read_spec(path: Path) -> Spec:
    """Read a table's or figure's file; a fault in it is named with its field."""
    try:
        # Through JSON: strict validation takes a JSON array for a tuple, a Python list not.
        return _ADAPTER.validate_json(json.dumps(parse_toml(path)), strict=True)
    except ValidationError as error:
        fault = error.errors()[0]
        field = ".".join(map(str, fault["loc"]))
        raise AffsupError(f"{path}: {field}: {fault['msg']}, found {fault['input']!r}") from error


def _tables_folder() -> Path:
    return recipes_folder() / "tables"


def _paper_order(name: str) -> tuple[int, int, str]:
    match = re.fullmatch(r"(table|figure)(\d+)", name)
    if match is None:
        return *_NOT_IN_PAPER[:2], name
    return int(match[1] == "figure"), int(match[2]), name


def _refuse_repeats(parts: Iterable[GridBlock | CostBlock | CurvePanel | KeyedVariant]) -> None:
    keys = [part.key for part in parts]
    if repeated := sorted({key for key in keys if keys.count(key) > 1}):
        raise ValueError(f"the key {', '.join(repeated)} stands twice")
