"""The training loop: drives any `Task` by its recipe's `[train]` section and writes its run folder."""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from affsup_cli.distributed import collectives
from affsup_cli.recipe import Recipe
from affsup_cli.runs.checkpoint import (
    BackgroundSaver,
    explain_mismatch,
    load_checkpoint,
    load_weights,
    random_state,
    set_random_state,
)
from affsup_cli.runs.folder import RunFolder
from affsup_cli.runs.results import first_fault
from affsup_cli.runtime.stop import Stopped, StopRequest
from affsup_cli.training.cuda_graph import side_stream
from affsup_cli.training.observers import Observer, Progress
from affsup_cli.training.step import CURE, Diverged, TrainingStep, graph_capture, learning_rate
from affsup_cli.training.task import Task
from data_prep.errors import AffsupError, AffsupWarning

GRADIENT_SHARE_INTERVAL = 50  # steps, at most, between two measurements of the gradient share
GRADIENT_SHARE_SAMPLES = 8  # measurements, at least, in an epoch
REPORT_SECONDS = 0.5
SYNC_SECONDS = 1.0  # between two times that several processes agree on whether to stop or to save


class Trainer:
    """Trains one run, from the state of its folder to its end.

    `last.pt` holds all state that is needed to continue after step s of epoch e; the batches of an epoch are a function
    of the seed and the epoch. On a CPU a run that was killed and resumed therefore ends bit-identical to one that was
    not.

    Several processes train data-parallel: each has a shard of every batch, the gradients are summed, and what a step
    logs (losses, averages, M) is the same on all of them. All take the same decisions; rank 0 alone writes. In training
    batch norm sees a process's shard alone, and each process has its own random state: dropout and the detectors'
    samplers depend on the number of processes.

    Args:
        task: what is trained.
        recipe: its recipe; the folder holds the same.
        run: the run folder, locked by the caller.
        observers: are called as the run goes on.
    """

    def __init__(self, task: Task, recipe: Recipe, run: RunFolder, observers: Sequence[Observer] = ()) -> None:
        self._task = task
        self._train = recipe.train
        self._checkpoint_seconds = recipe.run.checkpoint_seconds
        self._run = run
        self._observers = observers
        self._device = next(task.model.parameters()).device
        self._capture = graph_capture(task, recipe.run.graph)
        self._steps = TrainingStep(task, recipe.train, self._capture)
        self._seed = recipe.seed
        self._saver = BackgroundSaver(self._device)
        self._epoch = 0
        self._step = 0
        self._images = 0
        self._epoch_seconds = 0.0
        self._seconds = 0.0
        self._best: dict[str, Any] = {"epoch": 0, "score": -math.inf}

    def run(self) -> dict[str, Any]:
        """Train to the end, test the best model, write the result and return it.

        Raises:
            Stopped: SIGINT or SIGTERM was received; the checkpoint is written.
            Diverged: the loss is not finite.
            AffsupError: the disk is full.
        """
        with StopRequest() as stop, side_stream(self._device) if self._capture else contextlib.nullcontext():
            self._load_or_begin()
            with self._saver:
                while self._epoch < self._train.epochs:
                    self._train_epoch(stop)
                    self._end_epoch()
                    if self._epoch < self._train.epochs and collectives.all_reduce_max(stop.requested)[0]:
                        self._exit_stopped()
                return self._finish()

    @property
    def _writes(self) -> bool:
        return collectives.rank() == 0

    def _load_or_begin(self) -> None:
        if collectives.broadcast_from_rank0(lambda: self._run.resumable):
            self._load()
        elif collectives.rank():
            self._seed_this_process()
        if self._writes:
            self._run.keep_metrics(self._epoch)

    def _seed_this_process(self) -> None:
        """Seed torch's global generators differently on each process."""
        key = f"{self._seed} {collectives.rank()} {self._epoch} {self._step}"
        torch.manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:7]))

    def _exit_stopped(self) -> None:
        """Leave after a stop request; the checkpoint was given to the saver.

        Raises:
            Stopped: always.
        """
        self._saver.wait()
        collectives.all_gather_object(None)  # a barrier: no process leaves before rank 0 has written the checkpoint
        raise Stopped(
            f"stopped in epoch {self._epoch + 1} after step {self._step} of {self._task.steps}, and saved: "
            "the same command with --resume continues there"
        )

    def _train_epoch(self, stop: StopRequest) -> None:
        self._task.begin_epoch(self._epoch)
        self._task.model.train()
        self._steps.begin(self._epoch, self._step)
        share_interval = min(GRADIENT_SHARE_INTERVAL, math.ceil(self._task.steps / GRADIENT_SHARE_SAMPLES))
        resumed_seconds = self._epoch_seconds
        begun = saved = reported = synced = time.perf_counter()
        synced_step, next_sync = self._step, self._step + 1
        while self._step < self._task.steps:
            measure_gradient_share = self._step % share_interval == 0
            self._images += self._steps.run(self._step, measure_gradient_share)
            self._step += 1
            now = time.perf_counter()
            report = self._step == 1 or now - reported > REPORT_SECONDS
            # The check waits for the device; several processes must do so at the same step.
            if report if collectives.world_size() == 1 else measure_gradient_share:
                self._steps.loss_check.check()
            self._epoch_seconds = resumed_seconds + time.perf_counter() - begun
            if report:
                self._report()
                reported = now
            if self._step >= next_sync:
                checkpoint_due = self._step < self._task.steps and now - saved > self._checkpoint_seconds
                step_seconds = (now - synced) / (self._step - synced_step)
                stopping, saving, step_seconds = collectives.all_reduce_max(
                    stop.requested, checkpoint_due, step_seconds
                )
                synced, synced_step = now, self._step
                next_sync = self._step + _steps_between_syncs(step_seconds)
                if stopping or saving:
                    self._save()
                    saved = time.perf_counter()
                if stopping:
                    self._exit_stopped()
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
            self._epoch_seconds = resumed_seconds + time.perf_counter() - begun
        self._steps.loss_check.check()

    def _report(self) -> None:
        if not self._observers:
            return
        rate = self._images / self._epoch_seconds
        done = self._step / self._task.steps
        left = self._epoch_seconds / done * (self._train.epochs - self._epoch - done)
        progress = Progress(
            self._epoch + 1, self._train.epochs, self._step, self._task.steps, self._steps.averages.read(), rate, left
        )
        for observer in self._observers:
            observer.progressed(progress)

    def _end_epoch(self) -> None:
        selecting = self._train.select == "best"
        validation = self._task.evaluate("val") if selecting else {}
        record: dict[str, Any] = {
            "epoch": self._epoch + 1,
            "learning_rate": learning_rate(self._train, self._epoch),
            **self._steps.averages.read(),
            **_with_split("val", validation),
        }
        if self._train.test_curve:
            record |= _with_split("test", self._task.evaluate("test"))
        _refuse_non_finite(record, f"after epoch {self._epoch + 1}")
        record |= {"images_per_second": self._images / self._epoch_seconds, "seconds": self._epoch_seconds}
        self._seconds += self._epoch_seconds
        score = self._task.score(validation) if selecting else -math.inf
        improved = not selecting or score > self._best["score"]
        if improved:
            self._best = {"epoch": self._epoch + 1, "score": score}
        self._epoch, self._step, self._images, self._epoch_seconds = self._epoch + 1, 0, 0, 0.0
        self._steps.averages.reset()
        self._saver.wait()
        if self._writes:
            self._run.append_metrics(record)
        self._save()
        if improved:
            self._save_best()
        for observer in self._observers:
            observer.epoch_ended(record)

    def _finish(self) -> dict[str, Any]:
        self._saver.wait()
        if self._writes:
            weights = load_weights(self._run.best, self._device, self._run.best_cure)
            with explain_mismatch(self._run.best, self._run.best_cure):
                self._task.model.load_state_dict(weights)
        collectives.broadcast_model(self._task.model)
        best = collectives.broadcast_from_rank0(self._best_record)
        metrics = {name: value for name, value in best.items() if name.startswith("train_")}
        for split in ("val", "test") if self._train.select == "best" else ("test",):
            metrics |= _with_split(split, self._task.evaluate(split))
            if self._writes:
                self._task.export(self._run.path, split)
        _refuse_non_finite(metrics, "of the epoch that is tested")
        result = {
            "kind": "train",
            "epochs": self._epoch,
            "best_epoch": self._best["epoch"],
            "seconds": self._seconds,
            "metrics": metrics,
        }
        if self._writes:
            self._run.write_result(result)
            self._run.previous.unlink(missing_ok=True)
        return result

    def _best_record(self) -> dict[str, Any]:
        epoch: int = self._best["epoch"]
        return self._run.metrics()[epoch - 1]

    def _save(self) -> None:
        """Give the state of the run to the saver, once earlier writes are done; the copy alone delays training."""
        self._steps.loss_check.check()
        own, *others = collectives.all_gather_object(random_state(self._device))
        if not self._writes:
            return
        self._saver.wait()
        state = {
            "model": self._task.model.state_dict(),
            "optimizer": self._steps.state_dict(),
            "random": own,
            "random_of_others": others,
            "epoch": self._epoch,
            "step": self._step,
            "images": self._images,
            "averages": self._steps.averages.state_dict(),
            "epoch_seconds": self._epoch_seconds,
            "seconds": self._seconds,
            "best": self._best,
        }
        self._saver.save(self._run.checkpoint, state, _refuse_non_finite_weights, self._run.previous)

    def _save_best(self) -> None:
        """Save `best.pt`; only after `_save` of the same epoch, so that `_load` can repair a kill between the two."""
        if self._writes:
            self._saver.save(self._run.best, {"model": self._task.model.state_dict(), **self._best})

    def _load(self) -> None:
        path = self._run.path / collectives.broadcast_from_rank0(self._readable_checkpoint)
        state = load_checkpoint(path, self._device)
        with explain_mismatch(path, self._run.new_run):
            self._task.model.load_state_dict(state["model"])
            self._steps.load_state_dict(state["optimizer"])
            self._steps.averages.load_state_dict(state["averages"])
            self._epoch, self._step, self._images = state["epoch"], state["step"], state["images"]
            self._epoch_seconds, self._seconds, self._best = state["epoch_seconds"], state["seconds"], state["best"]
            states = [state["random"], *state.get("random_of_others", [])]
            own = states[collectives.rank()] if collectives.rank() < len(states) else None
            if own is None or not set_random_state(own, self._device):
                self._seed_this_process()
        if path == self._run.previous:
            self._best = collectives.broadcast_from_rank0(self._later_best)
        if self._step == 0 < self._epoch == self._best["epoch"]:
            self._save_best()

    def _readable_checkpoint(self) -> str:
        """Return the name of the checkpoint to continue from: last.pt, or previous.pt if last.pt cannot be used.

        Raises:
            AffsupError: neither can be used.
        """
        last, previous = self._run.checkpoint, self._run.previous
        try:
            self._check_position(last, load_checkpoint(last, torch.device("cpu")))
        except AffsupError as error:
            if not previous.exists():
                raise
            self._check_position(previous, load_checkpoint(previous, torch.device("cpu")))
            reason = f"{last} is missing" if not last.exists() else str(error).partition(": ")[0]
            warnings.warn(
                f"{reason}: the run continues from {previous.name}, the checkpoint before it",
                AffsupWarning,
                stacklevel=2,
            )
            return previous.name
        return last.name

    def _check_position(self, path: Path, state: Mapping[str, Any]) -> None:
        """Check the types and ranges of the position and the best epoch in a checkpoint."""
        try:
            position = _Position.model_validate({name: state.get(name) for name in _Position.model_fields})
        except ValidationError as error:
            raise AffsupError(f"{path} is damaged ({first_fault(error)}): {self._run.new_run}") from error
        epochs, steps = self._train.epochs, self._task.steps
        if position.epoch > epochs or position.step > steps or position.best.epoch > position.epoch:
            raise AffsupError(
                f"{path} is damaged (epoch {position.epoch} of {epochs}, step {position.step} of {steps}, best epoch "
                f"{position.best.epoch}): {self._run.new_run}"
            )

    def _later_best(self) -> dict[str, Any]:
        """Return the best epoch so far, which may lie after the checkpoint before the last."""
        try:
            best = load_checkpoint(self._run.best, torch.device("cpu"))
            found = _BestEpoch.model_validate({"epoch": best.get("epoch"), "score": best.get("score")})
        except (AffsupError, ValidationError):
            return self._best
        return found.model_dump() if self._epoch < found.epoch <= self._train.epochs else self._best


class _BestEpoch(BaseModel):
    """The best epoch of a checkpoint, 0 before the first has ended."""

    model_config = ConfigDict(strict=True)

    epoch: int = Field(ge=0)
    score: float


class _Position(BaseModel):
    """The position of a checkpoint."""

    model_config = ConfigDict(strict=True)

    epoch: int = Field(ge=0)
    step: int = Field(ge=0)
    images: int = Field(ge=0)
    epoch_seconds: float = Field(ge=0, allow_inf_nan=False)
    seconds: float = Field(ge=0, allow_inf_nan=False)
    best: _BestEpoch


def _steps_between_syncs(step_seconds: float) -> int:
    return 1 if collectives.world_size() == 1 else max(1, int(SYNC_SECONDS / max(step_seconds, 1e-9)))


def _refuse_non_finite_weights(state: Mapping[str, Any]) -> None:
    if not all(bool(value.isfinite().all()) for value in state["model"].values()):
        position = f"epoch {state['epoch'] + 1}, step {state['step']}"
        raise Diverged(f"the weights are not finite in {position}: {CURE}")


def _refuse_non_finite(metrics: Mapping[str, float], when: str) -> None:
    broken = [f"{name} = {value}" for name, value in metrics.items() if not math.isfinite(value)]
    if broken:
        raise Diverged(f"not finite {when}: {', '.join(broken)}. The run ends here: {CURE}")


def _with_split(split: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"{split}_{name}": value for name, value in metrics.items()}
