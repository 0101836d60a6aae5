"""Verify every file of a run folder, and of an exported model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from affsup_cli.runs.checkpoint import load_checkpoint, load_weights
from affsup_cli.runs.examples import read_examples
from affsup_cli.runs.export import open_trained
from affsup_cli.runs.features import read_features
from affsup_cli.runs.folder import RunFolder
from affsup_cli.runs.results import read_result
from data_prep.errors import AffsupError, unreadable
from data_prep.hdf5 import Hdf5Error, read_all

_CPU = torch.device("cpu")


def check_export(path: Path) -> list[str]:
    """Return what is damaged in an exported model, and what to do about it; an empty list if nothing is."""
    return list(_faults([lambda: open_trained(path).state(_CPU)]))


def check_run(run: RunFolder) -> list[str]:
    """Return what is damaged in a run folder, and what to do about it; an empty list if nothing is."""
    if faults := list(_faults([run.refuse_remains])):
        return faults
    checks: list[Callable[[], object]] = [run.recipe, run.environment, run.metrics]
    if run.finished:
        checks.append(partial(read_result, run))
    if run.best.exists():
        checks.append(partial(load_weights, run.best, _CPU, run.best_cure))
    for path in (run.checkpoint, run.previous):
        if path.exists():
            checks.append(partial(load_checkpoint, path, _CPU, _checkpoint_cure(run, path)))
    if run.features.exists():
        checks.append(partial(_evaluated_again, run, run.features, read_features))
    if run.examples.exists():
        checks.append(partial(_evaluated_again, run, run.examples, read_examples))
    for pattern in ("detections-*.json", "scene-graphs-*.json"):
        checks += [partial(_evaluated_again, run, path, _read_json) for path in sorted(run.path.glob(pattern))]
    checks += [partial(_evaluated_again, run, path, read_all) for path in sorted(run.path.glob("relationships-*.h5"))]
    return list(_faults(checks))


def _faults(checks: list[Callable[[], object]]) -> Iterator[str]:
    for check in checks:
        try:
            check()
        except AffsupError as error:
            yield str(error)


def _checkpoint_cure(run: RunFolder, path: Path) -> str:
    if run.finished:
        return "the run is finished and does not need it; delete it"
    if path == run.previous:
        return "delete it; the next checkpoint writes it again"
    if run.previous.exists():
        return f"{run.resume_command} continues from {run.previous.name}"
    return run.new_run


def _evaluated_again(run: RunFolder, path: Path, read: Callable[[Path], object]) -> None:
    """Read a file that an evaluation writes.

    Raises:
        AffsupError: it is damaged; the message says how to write it again.
    """
    split = path.stem.rpartition("-")[2] if "-" in path.stem else "test"
    try:
        read(path)
    except OSError as error:
        raise AffsupError(unreadable(path, error)) from error
    except (AffsupError, Hdf5Error, ValueError, RecursionError) as error:
        if isinstance(error.__cause__, OSError):
            raise
        command = f"`affsup evaluate {run.path} --split {split}`"
        raise AffsupError(f"{path} is damaged ({error}): {command} writes it again") from error


def _read_json(path: Path) -> None:
    json.loads(path.read_bytes())
