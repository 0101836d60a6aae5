"""From a recipe to a finished run folder, and its evaluation: `affsup train`, `sweep` and `evaluate`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from affsup_cli.distributed import collectives
from affsup_cli.distributed.shard import Shard
from affsup_cli.recipe import Recipe, differences, in_words
from affsup_cli.runs.checkpoint import explain_mismatch, load_weights
from affsup_cli.runs.environment import environment
from affsup_cli.runs.export import open_trained
from affsup_cli.runs.folder import RunFolder, run_folders
from affsup_cli.runtime.devices import configure_determinism, resolve_precision
from affsup_cli.tasks import build_task
from affsup_cli.training.cost import peak_megabytes, time_alternating
from affsup_cli.training.observers import Observer
from affsup_cli.training.trackers import trackers
from affsup_cli.training.trainer import Trainer
from data_prep.errors import AffsupError, UsageError
from data_prep.store import read_manifest


class OutOfMemory(AffsupError):
    """The device lacks the memory that a run takes."""


def data_digest(recipe: Recipe, data_dir: Path) -> str | None:
    """Return the digest of the recipe's prepared data set; None if it is not prepared."""
    folder = data_dir / str(recipe.flat()["data.name"])
    return read_manifest(folder).digest if folder.exists() else None


def run_name(recipe: Recipe, data: str | None, network_data: str | None = None) -> str:
    """Return a descriptive folder name that is unique to the recipe and data.

    Args:
        recipe: of the run.
        data: the `data_digest` of its data set.
        network_data: the `data_digest` of its prerequisite (`Recipe.prerequisite`), if it has one.
    """
    digests = [recipe.digest(), str(data), *([network_data] if network_data else [])]
    unique = hashlib.sha256(" ".join(digests).encode()).hexdigest()[:8]
    return f"{recipe.label()}-seed{recipe.seed}-{unique}"


def train_run(
    recipe: Recipe,
    data_dir: Path,
    run: RunFolder,
    resume: bool = False,
    observers: Callable[[], Sequence[Observer]] = tuple,
    pretrained: Path | None = None,
) -> RunFolder:
    """Train `recipe` in the folder `run`; a finished run is not changed.

    Several processes (`affsup_cli.distributed`) that all call this train one model: `train.batch_size` and
    `train.learning_rate` are those of the global batch. Rank 0 alone writes and has observers; all processes must be
    able to read the folder.

    Args:
        recipe: of the run.
        data_dir: where the data sets are prepared.
        run: its folder; need not exist.
        resume: continue an unfinished run.
        observers: creates the observers, after all checks.
        pretrained: the run folder, or an exported file, of the recipe's `prerequisite`.

    Raises:
        UsageError: the folder holds an unfinished run and `resume` is false, or a run of another recipe, or there is
            nothing to resume, or there are more processes than images in a batch.
        Diverged: a loss is not finite.
        OutOfMemory: the device lacks memory.
        AffsupError: the data set is not prepared or has changed, another process trains in the folder, or the
            training failed.
    """
    if collectives.broadcast_from_rank0(lambda: _is_finished(recipe, run, resume)):
        return run
    processes = batch_shards(recipe, collectives.world_size())
    fresh = not collectives.broadcast_from_rank0(lambda: run.resumable)
    begin = open_trained(pretrained) if pretrained and fresh else None
    configure_determinism(recipe.run.deterministic)
    with _torch_errors_explained():
        task = build_task(recipe, data_dir, fresh=fresh, network=begin)
    writes = collectives.rank() == 0
    with run.lock() if writes else nullcontext():
        # Another process may have finished the run meanwhile.
        if collectives.broadcast_from_rank0(lambda: _is_finished(recipe, run, resume)):
            return run
        device = next(task.model.parameters()).device
        now = environment(device, task.data, task.initialised_from)
        now |= {"processes": processes, "precision": resolve_precision(recipe.train.precision, device)}
        if not writes:
            pass
        elif resume:
            refuse_other_data(run, now["data"])
            if fresh:
                _refuse_other_weights(run, task.initialised_from)
            elif pretrained:
                _refuse_other_weights(run, {"network": {"digest": open_trained(pretrained).digest}})
            _note_processes(run, processes["count"])
        else:
            run.write_environment(now)
            run.write_recipe(recipe)
        attached = [*observers(), *trackers(run, recipe)] if writes else []
        try:
            with _torch_errors_explained():
                Trainer(task, recipe, run, attached).run()
        finally:
            for observer in attached:
                observer.close()
    return run


@contextmanager
def _torch_errors_explained() -> Iterator[None]:
    """Turn torch's errors of lacking memory, and of a lacking deterministic kernel, into messages for the user."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if "does not have a deterministic implementation" in str(error):
            operation = str(error).split()[0]
            raise AffsupError(
                f"{operation} has no deterministic kernel on this device: --set run.deterministic=false trains without "
                "that promise"
            ) from error
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "allocate memory" not in str(error):
            raise
        raise OutOfMemory(
            "out of memory: a new run with a smaller train.batch_size, or for scenes data.short_side, model.width or "
            f"model.proposals, needs less ({(str(error).splitlines() or [type(error).__name__])[0]})"
        ) from error


def evaluate_run(run: RunFolder, data_dir: Path, split: str, device: str) -> dict[str, float]:
    """Evaluate the best model so far of `run` on "train", "val" or "test"; the metrics carry the split's name.

    The task's other results, such as detections, are written into the run folder.

    Raises:
        UsageError: the prepared data differs from that of the run.
        AffsupError: there is no best model yet, or it cannot be read.
    """
    stored = run.recipe()
    recipe: Recipe = stored.model_copy(update={"run": stored.run.model_copy(update={"device": device})})
    configure_determinism(recipe.run.deterministic)
    task = build_task(recipe, data_dir, fresh=False)
    refuse_other_data(run, task.data)
    weights = load_weights(run.best, next(task.model.parameters()).device, run.best_cure)
    with explain_mismatch(run.best, run.best_cure):
        task.model.load_state_dict(weights)
    metrics = task.evaluate(split)
    task.export(run.path, split)
    return {f"{split}_{name}": value for name, value in metrics.items()}


def batch_shards(recipe: Recipe, count: int) -> dict[str, Any]:
    """Return the number of processes, and the images of a whole batch for each of them.

    Raises:
        UsageError: a process would have no image.
    """
    batch = recipe.train.batch_size
    if count > batch:
        raise UsageError(f"train.batch_size = {batch} for {count} processes: expected an image for each of them")
    return {"count": count, "images_each": Shard(0, count).sizes(batch)}


def _note_processes(run: RunFolder, count: int) -> None:
    """Record the number of processes that resume a run, if it differs from the number before."""
    stored = run.environment()
    later = stored.get("processes_when_resumed", [])
    begun = stored.get("processes", {"count": count})["count"]
    if [begun, *later][-1] != count:
        run.write_environment({**stored, "processes_when_resumed": [*later, count]})


def _is_finished(recipe: Recipe, run: RunFolder, resume: bool) -> bool:
    """Return whether the run is finished; raise a UsageError if it cannot be started or resumed."""
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
            f"{run.path} holds a run of another recipe: {in_words(changed)}. Use the same fields, or another --name"
        )


def refuse_other_data(run: RunFolder, data: Mapping[str, Any]) -> None:
    """Refuse to resume `run` on other data than it was started on.

    Raises:
        UsageError: the digests differ.
    """
    stored = run.environment()["data"]
    if stored["digest"] != data["digest"]:
        raise UsageError(
            f"{run.path} was started on other data: {stored['name']} with digest {stored['digest'][:12]}; the data set "
            f"prepared now has {data['digest'][:12]}. Prepare the original data again, or {run.new_run}"
        )


def _refuse_other_weights(run: RunFolder, initialised_from: Mapping[str, Any]) -> None:
    stored = run.environment()
    for what, now in initialised_from.items():
        was = stored.get(what)
        if isinstance(now, Mapping) and isinstance(was, Mapping):
            was, now = was["digest"], now["digest"]
        if was != now:
            raise UsageError(
                f"{run.path} was started from pretrained {what} with SHA-256 {was}, found {now}: give the original "
                f"{what}, or {run.new_run}"
            )


def _nothing_to_resume(recipe: Recipe, run: RunFolder) -> str:
    message = f"nothing to resume: {run.path} does not exist"
    candidates = []
    for other in run_folders(run.path.parent):
        if not other.finished:
            with suppress(AffsupError):  # a damaged run is no candidate; `affsup list runs` names it
                candidates.append((differences(other.recipe().identity(), recipe.identity()), other))
    if not candidates:
        return message
    changed, nearest = min(candidates, key=lambda candidate: len(candidate[0]))
    return f"{message}. The nearest unfinished run is {nearest.name}: {in_words(changed)}"


def measure_run(
    baseline: Recipe, treatment: Recipe, data_dir: Path, run: RunFolder, rounds: int, progress: Callable[[int], None]
) -> RunFolder:
    """Measure time and memory of two recipes in alternation (table 4); the result is a run folder of `treatment`."""
    builders = [partial(build_task, recipe, data_dir) for recipe in (baseline, treatment)]
    with run.lock():
        task = build_task(treatment, data_dir)
        now = environment(next(task.model.parameters()).device, task.data, task.initialised_from)
        measured = time_alternating(builders[0], lambda: task, treatment, rounds, progress)
        for variant, builder in zip(("baseline", "treatment"), builders, strict=True):
            measured[variant]["peak_megabytes"] = peak_megabytes(builder, treatment)
        run.write_environment(now)
        run.write_recipe(treatment)
        run.write_result({"kind": "cost", **measured})
    return run
