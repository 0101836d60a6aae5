"""From a recipe to a finished run folder: what `affsup train` and `affsup sweep` both do."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from affsup_cli.engine.cost import peak_megabytes, time_in_turns
from affsup_cli.engine.environment import environment
from affsup_cli.engine.observer import Observer, TensorBoard
from affsup_cli.engine.run_folder import RunFolder, run_folders
from affsup_cli.engine.training import Trainer
from affsup_cli.errors import AffsupError, UsageError
from affsup_cli.recipe import Recipe, differences
from affsup_cli.tasks import build_task
from data_prep.format import read_manifest


def data_digest(recipe: Recipe, data_dir: Path) -> str | None:
    """Return what stands for the content of the recipe's prepared data set; None where it is not prepared."""
    folder = data_dir / str(recipe.flat()["data.name"])
    return read_manifest(folder).digest if folder.exists() else None


def run_name(recipe: Recipe, data: str | None) -> str:
    """Return a folder name that says what the run is and is unique to its recipe and `data_digest`."""
    fields = recipe.flat()
    parts = [recipe.name, str(fields["data.name"]), str(fields["model.arch"])]
    if "affinity.loss" in fields:
        parts.append("base" if fields["affinity.loss"] == "none" else str(fields["affinity.loss"]))
    unique = hashlib.sha256(f"{recipe.digest()} {data}".encode()).hexdigest()[:8]
    return "-".join([*parts, f"seed{recipe.seed}", unique])


def train_run(
    recipe: Recipe,
    data_dir: Path,
    run: RunFolder,
    resume: bool = False,
    observers: Callable[[], Sequence[Observer]] = tuple,
) -> RunFolder:
    """Train `recipe` in the folder `run`; a folder whose run is finished is left as it is.

    Args:
        recipe: what to train.
        data_dir: where the data sets are prepared.
        run: where to; need not exist.
        resume: continue an unfinished run.
        observers: makes those who watch, once everything has been checked.

    Raises:
        UsageError: the folder holds an unfinished run and `resume` is false, or a run of another recipe, or there is
            nothing to resume.
        AffsupError: the data set is not prepared or has changed, another process trains here, the training failed.
    """
    if _is_finished(recipe, run, resume):
        return run
    fresh = not run.checkpoint.exists()
    task = build_task(recipe, data_dir, fresh=fresh)
    with run.lock():
        if _is_finished(recipe, run, resume):  # another process may have come first
            return run
        now = environment(next(task.model.parameters()).device, task.data, task.weights)
        if resume:
            refuse_other_data(run, now["data"])
            if fresh:
                _refuse_other_weights(run, task.weights)
        else:
            run.write_environment(now)
            run.write_recipe(recipe)
        watching = [*observers(), *([TensorBoard(run.path)] if recipe.run.tensorboard else [])]
        try:
            Trainer(task, recipe, run, watching).run()
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
                raise
            raise AffsupError(
                "out of memory: a new run with a smaller train.batch_size, or for scenes data.short_side or "
                f"model.proposals, needs less ({str(error).splitlines()[0]})"
            ) from error
        finally:
            for observer in watching:
                observer.close()
    return run


def _is_finished(recipe: Recipe, run: RunFolder, resume: bool) -> bool:
    """Say whether nothing is left to do; refuse what must not go on in this folder."""
    if not run.exists:
        if resume:
            raise UsageError(_nothing_to_resume(recipe, run))
        run.refuse_remains()
        return False
    _refuse_other_recipe(recipe, run)
    if not run.finished and not resume:
        raise UsageError(f"{run.path} holds this run, unfinished: add --resume to continue it, or a --name for another")
    return run.finished


def _refuse_other_recipe(recipe: Recipe, run: RunFolder) -> None:
    changed = differences(run.recipe().identity(), recipe.identity())
    if changed:
        raise UsageError(
            f"{run.path} holds a run of another recipe: {_in_words(changed)}. Use the same fields, or another --name"
        )


def _in_words(changed: Mapping[str, tuple[Any, Any]]) -> str:
    return "; ".join(f"{key} is {stored!r} there, {asked!r} here" for key, (stored, asked) in changed.items())


def refuse_other_data(run: RunFolder, data: Mapping[str, Any]) -> None:
    """Refuse to go on with `run` on other data than it was begun on.

    Raises:
        UsageError: the digests differ.
    """
    stored = run.environment()["data"]
    if stored["digest"] != data["digest"]:
        raise UsageError(
            f"{run.path} was begun on other data: {stored['name']} with digest {stored['digest'][:12]}, prepared now "
            f"is {data['digest'][:12]}. Prepare the data set as it was, or begin a new run with another --name"
        )


def _refuse_other_weights(run: RunFolder, weights: str | None) -> None:
    stored = run.environment().get("weights")
    if stored != weights:
        raise UsageError(
            f"{run.path} was begun from pretrained weights with SHA-256 {stored}, the file now has {weights}: put back "
            "the former, or begin a new run with another --name"
        )


def _nothing_to_resume(recipe: Recipe, run: RunFolder) -> str:
    message = f"nothing to resume: {run.path} does not exist"
    unfinished = [other for other in run_folders(run.path.parent) if not other.finished]
    candidates = [(differences(other.recipe().identity(), recipe.identity()), other) for other in unfinished]
    if not candidates:
        return message
    changed, nearest = min(candidates, key=lambda candidate: len(candidate[0]))
    return f"{message}. The nearest unfinished run is {nearest.name}: {_in_words(changed)}"


def measure_run(
    baseline: Recipe, treatment: Recipe, data_dir: Path, run: RunFolder, rounds: int, progress: Callable[[int], None]
) -> RunFolder:
    """Measure time and memory of two recipes in turns (table 4); the result is kept as a run folder of `treatment`."""
    builders = [partial(build_task, recipe, data_dir) for recipe in (baseline, treatment)]
    with run.lock():
        task = build_task(treatment, data_dir)
        now = environment(next(task.model.parameters()).device, task.data, task.weights)
        measured = time_in_turns(builders[0], lambda: task, treatment.train, rounds, progress)
        for variant, builder in zip(("baseline", "treatment"), builders, strict=True):
            measured[variant]["peak_megabytes"] = peak_megabytes(builder, treatment.train)
        run.write_environment(now)
        run.write_recipe(treatment)
        run.write_result({"kind": "cost", **measured})
    return run
