"""A trained model, in its run folder or in one exported file; the format of exported files is defined here.

An exported file is safetensors: the weights by their names in the model, and one metadata entry, `affsup`, that holds
JSON: format, name, recipe (TOML), environment, metrics, classes, categories. One entry: safetensors keeps no order.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
import xxhash
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from affsup_cli.recipe import RECIPE_OF_TASK, Recipe
from affsup_cli.runs.checkpoint import check_weights, load_weights
from affsup_cli.runs.digest import DigestError, with_digest, without_digest
from affsup_cli.runs.folder import RunFolder, write_out
from affsup_cli.runs.results import read_train_result
from data_prep.errors import AffsupError, UsageError, unreadable

SUFFIX = ".safetensors"
_METADATA_KEY = "affsup"
_FORMAT = 1
_EXPORT_AGAIN = "export the run again with `affsup export`"


@dataclass(frozen=True)
class TrainedModel:
    """A trained model and the record of its run.

    Attributes:
        path: the file that holds the weights.
        name: the run's name.
        recipe: the recipe of the run.
        environment: the content of the run's environment.json.
        metrics: the finished run's numbers by name; empty while it is not finished.
    """

    path: Path
    name: str
    recipe: Recipe
    environment: dict[str, Any]
    metrics: dict[str, float]

    @property
    def classes(self) -> list[str]:
        """The names of the data set's classes, by label.

        Raises:
            AffsupError: the run's record of its data does not name them.
        """
        classes = self.environment["data"].get("classes")
        if not isinstance(classes, list):
            raise AffsupError(f"the run of {self.path} names no classes (data.classes in its environment): damaged")
        return classes

    @property
    def cure(self) -> str:
        """What to do when the weights do not fit the recipe."""
        return _EXPORT_AGAIN if self.path.suffix == SUFFIX else RunFolder(self.path.parent).best_cure

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the weights: of every name, type, shape and content. A run and its export have the same one.

        Raises:
            AffsupError: as for `state`.
        """
        return weights_digest(self.state(torch.device("cpu")))

    def state(self, device: torch.device) -> dict[str, Tensor]:
        """Read the model's state dict onto `device`.

        Raises:
            AffsupError: the file is damaged, or the weights are not finite.
        """
        if self.path.suffix == SUFFIX:
            return _read_weights(self.path, device)
        return load_weights(self.path, device, self.cure)


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of every name, type, shape and content of a state dict."""
    return _hash_weights(state, hashlib.sha256())


def _quick_digest(state: Mapping[str, Tensor]) -> str:
    """Return the XXH3 of a state dict, which finds damage but is no proof of identity."""
    return _hash_weights(state, xxhash.xxh3_64())


def _hash_weights(state: Mapping[str, Tensor], total: _Hash) -> str:
    for name, value in sorted(state.items()):
        total.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        total.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


class _Hash(Protocol):
    def update(self, data: Any, /) -> None: ...

    def hexdigest(self) -> str: ...


def open_trained(path: Path) -> TrainedModel:
    """Open a run folder (its best model) or a file that `export_trained` wrote.

    Raises:
        UsageError: `path` is neither, or the run trains no model.
        AffsupError: there is no model yet, or something is damaged.
    """
    if path.suffix == SUFFIX and not path.is_dir():
        return _open_export(path)
    if path.is_file():
        raise UsageError(f"{path}: expected a run folder, or a {SUFFIX} file that `affsup export` wrote")
    run = RunFolder.open(path)
    metrics = read_train_result(run).metrics if run.finished else {}
    if not run.best.is_file():
        raise AffsupError(
            f"{run.best} is missing: no epoch is finished, or it was deleted; {run.resume_command} continues the run"
        )
    return TrainedModel(run.best, run.name, run.recipe(), run.environment(), metrics)


def export_trained(trained: TrainedModel, path: Path) -> None:
    """Write weights and their record into one file; the same model gives the same bytes.

    Raises:
        UsageError: `path` does not end in .safetensors, or is something else than an exported file.
        AffsupError: the weights cannot be read, or the file cannot be written.
    """
    if path.suffix != SUFFIX:
        raise UsageError(f"{path}: expected a name that ends in {SUFFIX}")
    if path.exists() and not _is_export(path):
        raise UsageError(f"{path} is no file that `affsup export` wrote, and is not overwritten: take another --out")
    record = {
        "format": _FORMAT,
        "name": trained.name,
        "recipe": trained.recipe.to_toml(),
        "environment": trained.environment,
        "metrics": trained.metrics,
        "classes": trained.classes,
        "categories": trained.environment["data"].get("categories", []),
    }
    state = {name: value.contiguous() for name, value in trained.state(torch.device("cpu")).items()}
    record["weights_xxh3"] = _quick_digest(state)
    content = save(state, metadata={_METADATA_KEY: json.dumps(with_digest(record))})
    write_out(path, content)


def _is_export(path: Path) -> bool:
    try:
        _metadata(path)
    except AffsupError:
        return False
    return True


def _metadata(path: Path) -> str:
    if not path.is_file():
        raise UsageError(f"no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            entries = file.metadata() or {}
    except OSError as error:
        raise AffsupError(unreadable(path, error)) from error
    except SafetensorError as error:
        raise AffsupError(f"{path} is damaged or no safetensors file ({error}): {_EXPORT_AGAIN}") from error
    if _METADATA_KEY not in entries:
        raise UsageError(f"{path} was written by another program: expected a file of `affsup export`")
    return str(entries[_METADATA_KEY])


class _Data(BaseModel):
    model_config = ConfigDict(extra="allow")

    name: str
    digest: str
    classes: list[str]


class _ExportedEnvironment(BaseModel):
    model_config = ConfigDict(extra="allow")

    data: _Data


class _ExportRecord(BaseModel):
    """The metadata of an exported file."""

    format: int
    name: str
    recipe: str
    environment: _ExportedEnvironment
    metrics: dict[str, float]
    weights_xxh3: str | None = None


def _open_export(path: Path) -> TrainedModel:
    text = _metadata(path)
    try:
        record = _ExportRecord.model_validate(without_digest(json.loads(text)))
        if record.format != _FORMAT:
            raise AffsupError(f"{path} has format {record.format}, this affsup reads {_FORMAT}: {_EXPORT_AGAIN}")
        fields = tomllib.loads(record.recipe)
        recipe = RECIPE_OF_TASK[fields["task"]].model_validate(fields)
        return TrainedModel(path, record.name, recipe, record.environment.model_dump(), record.metrics)
    except (ValidationError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        fault = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        raise AffsupError(
            f"the record in {path} is damaged, or of another version of affsup ({fault}): {_EXPORT_AGAIN}"
        ) from error


def _read_weights(path: Path, device: torch.device) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
            record = json.loads((file.metadata() or {})[_METADATA_KEY])
        if record.get("weights_xxh3") not in (None, _quick_digest(weights)):  # None: of an older version
            raise DigestError
    except OSError as error:
        raise AffsupError(unreadable(path, error)) from error
    except (SafetensorError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise AffsupError(f"{path} is damaged ({error}): {_EXPORT_AGAIN}") from error
    check_weights(path, weights, _EXPORT_AGAIN)
    return {name: value.to(device) for name, value in weights.items()}
