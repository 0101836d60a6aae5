"""How TOML, data-set defaults and overrides become one recipe.

A recipe file holds the sections of `affsup_cli.recipe.schema`, plus one optional table `[datasets.NAME.SECTION]` for
each data set whose schedule or augmentation departs from the file's own. It may name the shipped recipe that it
`extends`. The order is: extended file, file, data set, overrides. A recipe that builds on another run, as `scene` does
on `relnet`, contains that run's whole recipe as a table, which may have an `extends`, too.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from affsup_cli.recipe.schema import RECIPE_OF_TASK, Recipe, field_descriptions, flatten
from data_prep.errors import AffsupError, UsageError, did_you_mean, quote, shorten

MAX_BYTES = 2**20
MAX_KEYS = 5_000
MAX_DEPTH = 12
"""Bounds of a TOML file."""
_MAX_PROBLEMS = 10


def recipes_folder() -> Path:
    """Return the folder of the shipped recipes: inside the installed package, beside it in a source checkout."""
    package = Path(str(resources.files("affsup_cli")))
    shipped = package / "recipes"
    return shipped if shipped.is_dir() else package.parent / "recipes"


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes."""
    return sorted(path.stem for path in recipes_folder().glob("*.toml"))


def load_recipe(name: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Resolve a shipped recipe (by name) or a file (a path that ends in .toml) with dotted `overrides`.

    An override may also be a whole table, such as `network`, which then takes the place of the file's.

    Raises:
        UsageError: there is no such recipe, a key is unknown, or a value is refused.
    """
    return _validate(_assembled(_file_of(name), dict(overrides or {})), where=f"recipe {name}")


def recipe_kind(name: str) -> type[Recipe]:
    """Return the class of a shipped recipe or a file without checking its other fields.

    Raises:
        UsageError: there is no such recipe, or its task is unknown.
    """
    return _kind(_extended(parse_toml(_file_of(name))), where=f"recipe {name}")


def read_recipe(path: Path) -> Recipe:
    """Read the resolved recipe in a run folder."""
    try:
        return _validate(parse_toml(path), where=str(path))
    except UsageError as error:
        raise AffsupError(
            f"{error}. The run's recipe is damaged: move its folder away and run the command again"
        ) from error


def parse_override(text: str) -> tuple[str, Any]:
    """Split `key=value`; the value is read as TOML (`true`, `3`, `[3, 5]`, `"text"`), else taken as plain text."""
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise UsageError(f"--set takes key=value, for example train.epochs=2; found '{text}'")
    if key.count(".") > MAX_DEPTH:
        raise UsageError(
            f"--set: a key of {key.count('.') + 1:,} parts; no field of a recipe has more than {MAX_DEPTH}"
        )
    try:
        parsed = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()
    except RecursionError:
        raise UsageError(f"--set {key}: the value is nested too deeply") from None
    if len(parsed) > 1:
        raise UsageError(f"--set takes one key=value; found more lines in {text!r}")
    return key.strip(), parsed["value"]


def parse_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; errors name file, line and column."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise AffsupError(f"{path} has {size:,} bytes, expected a recipe or table of at most {MAX_BYTES:,}")
        fields = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise AffsupError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise AffsupError(f"{path} is not valid TOML: {shorten(error)}") from error
    _refuse_deep_or_long(fields, path)
    return fields


def _refuse_deep_or_long(fields: dict[str, Any], path: Path) -> None:
    """Refuse tables that are nested more deeply, or have more keys, than any recipe."""
    level: list[Any] = [fields]
    keys = 0
    for _ in range(MAX_DEPTH + 1):
        tables = [value for value in level if isinstance(value, dict)]
        keys += sum(map(len, tables))
        if keys > MAX_KEYS:
            raise AffsupError(f"{path} has more than {MAX_KEYS:,} keys: expected a recipe or table")
        level = [value for table in tables for value in table.values()]
        level += [value for values in level if isinstance(values, list) for value in values]
        if not level:
            return
    raise AffsupError(f"{path} has tables nested more than {MAX_DEPTH} deep: expected a recipe or table")


def is_file_name(name: str) -> bool:
    """Return whether the name of a recipe, table or figure is a path to a TOML file."""
    return name.endswith(".toml")


def _file_of(name: str) -> Path:
    if is_file_name(name):
        path = Path(name)
        if not path.is_file():
            raise UsageError(f"no recipe file {name}")
        return path
    path = recipes_folder() / f"{name}.toml"
    if not path.is_file():
        raise UsageError(
            f"no recipe '{name}'{did_you_mean(name, recipe_names())}: known are {', '.join(recipe_names())}"
        )
    return path


def _assembled(path: Path, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Combine the extended file, the file's own fields, those for its data set, and overrides."""
    fields = _extended(parse_toml(path))
    of_datasets = _table(fields.pop("datasets", {}), "datasets")
    fields.setdefault("name", path.stem)
    dataset = str(overrides.get("data.name", _table(fields.get("data", {}), "data").get("name")))
    for key, value in flatten(_table(of_datasets.get(dataset, {}), f"datasets.{dataset}")):
        _assign(fields, key, value)
    for key, value in overrides.items():
        _assign(fields, key, value)
    if "extends" in _table(fields.get("network", {}), "network"):
        within = dict(fields["network"])
        fields["network"] = _assembled(_shipped(within.pop("extends")), dict(flatten(within)))
    return fields


def _extended(fields: dict[str, Any]) -> dict[str, Any]:
    """Put a file's fields on top of those of the shipped recipe that it `extends`."""
    base = fields.pop("extends", None)
    if base is None:
        return fields
    below = _extended(parse_toml(_shipped(base)))
    for key, value in flatten(fields):
        _assign(below, key, value)
    return below


def _shipped(name: Any) -> Path:
    if name not in recipe_names():
        raise UsageError(f"extends = {name!r}{did_you_mean(str(name), recipe_names())}: name a shipped recipe")
    return recipes_folder() / f"{name}.toml"


def _kind(fields: Mapping[str, Any], where: str) -> type[Recipe]:
    task = fields.get("task")
    kind = RECIPE_OF_TASK.get(str(task))
    if kind is None:
        raise UsageError(f"{where}: task = {task!r}, expected one of {', '.join(RECIPE_OF_TASK)}")
    return kind


def _validate(fields: dict[str, Any], where: str) -> Recipe:
    kind = _kind(fields, where)
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        known = [key for key, _ in field_descriptions(kind)]
        problems = error.errors()
        lines = [f"{where}: {_explain(problem, known)}" for problem in problems[:_MAX_PROBLEMS]]
        if len(problems) > _MAX_PROBLEMS:
            lines.append(f"{where}: {len(problems) - _MAX_PROBLEMS:,} more problems")
        raise UsageError("\n".join(lines)) from error


def _explain(problem: Any, known: list[str]) -> str:
    key = shorten(".".join(str(part) for part in problem["loc"]))
    if problem["type"] == "extra_forbidden":
        within = next(
            (field[: place + len(key)] for field in known if (place := f".{field}.".find(f".{key}.")) > 0), ""
        )
        hint = f" (did you mean '{within}'?)" if within else did_you_mean(key, known)
        return f"no field '{key}'{hint}; `affsup show` with the recipe's name lists the fields"
    if problem["type"] == "missing":
        return f"the field '{key}' is missing"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if isinstance(problem["input"], dict):  # a check of several fields names them itself
        return message
    return f"{key} = {quote(problem['input'])}: {message[0].lower() + message[1:]}"


def _table(value: Any, key: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f"{key} = {quote(value)}: expected a table")
    return value


def _assign(fields: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, last = dotted.split(".")
    for section in sections:
        inner = fields.setdefault(section, {})
        if not isinstance(inner, dict):
            raise UsageError(f"no field '{dotted}': '{section}' is a value, not a section")
        fields = inner
    fields[last] = value
