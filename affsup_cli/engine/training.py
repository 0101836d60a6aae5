"""The training loop: drives any `Task` from its recipe's `[train]` section and keeps its run folder."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import torch

from affsup_cli.engine import distributed
from affsup_cli.engine.checkpoint import BackgroundSaver, fitting, load_checkpoint, random_state, set_random_state
from affsup_cli.engine.observer import Observer, Progress
from affsup_cli.engine.recorded import finished, on_own_stream
from affsup_cli.engine.run_folder import RunFolder
from affsup_cli.engine.step import DIVERGED, TrainingStep, learning_rate, recorder_for
from affsup_cli.engine.stop import Stopped, StopRequest
from affsup_cli.engine.task import Task
from affsup_cli.recipe import Recipe
from data_prep.errors import AffsupError

LOOK_EVERY = 50  # steps, at most, between two measurements of the gradient share
LOOKS = 8  # at least, in an epoch
REFRESH_SECONDS = 0.5
ASK_SECONDS = 1.0  # between two times that several processes ask each other whether to stop or to save


class Trainer:
    """One run, from wherever its folder stands to its end.

    All that the loop needs to go on after step s of epoch e is in `last.pt`; the batches of an epoch are a function of
    the seed and the epoch. On a CPU a run that was killed and resumed therefore ends bit-identical to one left alone.

    Several processes take the steps of one: each has a share of every batch, their gradients are summed, and what a
    step makes known (losses, averages, M) is the same on all of them. They decide alike; the first one writes. In
    training batch norm sees a process's share alone, and each process draws random numbers of its own: what dropout
    and the detectors' samplers choose depends on how many there are.

    Args:
        task: what is trained.
        recipe: its recipe; the folder holds the same.
        run: the run folder, locked by the caller.
        observers: who is told.
        clock: seconds, of which epochs take so many; where runs take turns, this one's share of them.
    """

    def __init__(
        self,
        task: Task,
        recipe: Recipe,
        run: RunFolder,
        observers: Sequence[Observer] = (),
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._task = task
        self._train = recipe.train
        self._checkpoint_seconds = recipe.run.checkpoint_seconds
        self._run = run
        self._observers = observers
        self._clock = clock
        self._device = next(task.model.parameters()).device
        self._recorder = recorder_for(task, recipe.run.graph)
        self._steps = TrainingStep(task, recipe.train, self._recorder)
        self._seed = recipe.seed
        self._saver = BackgroundSaver(self._device)
        self._epoch = 0
        self._step = 0
        self._images = 0
        self._epoch_seconds = 0.0
        self._seconds = 0.0
        self._best: dict[str, Any] = {"epoch": 0, "score": -math.inf}

    def run(self) -> dict[str, Any]:
        """Train to the end, test the best model and write the result.

        Raises:
            Stopped: a signal asked for it; the checkpoint is written.
            AffsupError: the loss is not finite, or the disk is full.
        """
        with StopRequest() as stop:
            return finished(self.pieces(stop))

    def pieces(self, stop: StopRequest) -> Generator[None, None, dict[str, Any]]:
        """Do what `run` does, a step at a time: between two pieces other runs may have their turn.

        These must leave torch's global random numbers as they find them.

        Args:
            stop: entered by the caller.
        """
        pieces = self._pieces(stop)
        apart = self._recorder is not None and self._device.type == "cuda"
        return (yield from on_own_stream(pieces, self._device) if apart else pieces)

    def _pieces(self, stop: StopRequest) -> Generator[None, None, dict[str, Any]]:
        if distributed.first_decides(self._run.checkpoint.exists):
            self._load()
        elif distributed.rank():
            self._draw_apart()
        if self._writes:
            self._run.keep_metrics(self._epoch)
        with self._saver:
            while self._epoch < self._train.epochs:
                yield from self._train_epoch(stop)
                self._end_epoch()
                if self._epoch < self._train.epochs:
                    self._leave_if(distributed.highest(stop.requested)[0])
            return self._finish()

    @property
    def _writes(self) -> bool:
        return distributed.rank() == 0

    def _draw_apart(self) -> None:
        """Give this process random numbers of its own."""
        place = f"{self._seed} {distributed.rank()} {self._epoch} {self._step}"
        torch.manual_seed(int.from_bytes(hashlib.sha256(place.encode()).digest()[:7]))

    def _leave_if(self, stopping: float) -> None:
        if stopping:
            self._saver.wait()
            distributed.gathered(None)  # what is saved is what the first process has written
            raise Stopped(
                f"stopped in epoch {self._epoch + 1} after step {self._step} of {self._task.steps}, and saved: "
                "the same call with --resume continues there"
            )

    def _train_epoch(self, stop: StopRequest) -> Generator[None, None, None]:
        self._task.begin_epoch(self._epoch)
        self._task.model.train()
        self._steps.begin(self._epoch, self._step)
        resumed_seconds, begun = self._epoch_seconds, self._clock()
        saved = refreshed = asked = time.perf_counter()
        asked_at, ask_at = self._step, self._step + 1
        while self._step < self._task.steps:
            looking = self._step % min(LOOK_EVERY, math.ceil(self._task.steps / LOOKS)) == 0
            self._images += self._steps.take(self._step, looking)
            self._step += 1
            yield
            now = time.perf_counter()
            reporting = self._step == 1 or now - refreshed > REFRESH_SECONDS
            # To read the device is to wait for it; several processes must do so at the same step.
            if reporting if distributed.count() == 1 else looking:
                self._steps.watch.check()
            self._epoch_seconds = resumed_seconds + self._clock() - begun
            if reporting:
                self._report()
                refreshed = now
            if ask_at <= self._step:
                due = self._step < self._task.steps and now - saved > self._checkpoint_seconds
                pace = (now - asked) / (self._step - asked_at)
                stopping, saving, pace = distributed.highest(stop.requested, due, pace)
                asked, asked_at, ask_at = now, self._step, self._step + self._steps_between_questions(pace)
                if stopping or saving:
                    self._save()
                    self._leave_if(stopping)
                    saved = time.perf_counter()
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
            yield
            self._epoch_seconds = resumed_seconds + self._clock() - begun
        self._steps.watch.check()

    def _steps_between_questions(self, seconds_a_step: float) -> int:
        return 1 if distributed.count() == 1 else max(1, int(ASK_SECONDS / max(seconds_a_step, 1e-9)))

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
            **_of_split("val", validation),
        }
        if self._train.test_curve:
            record |= _of_split("test", self._task.evaluate("test"))
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
            with fitting(self._run.best):
                self._task.model.load_state_dict(load_checkpoint(self._run.best, self._device)["model"])
        distributed.share_model(self._task.model)
        best = distributed.first_decides(self._best_record)
        metrics = {name: value for name, value in best.items() if name.startswith("train_")}
        for split in ("val", "test") if self._train.select == "best" else ("test",):
            metrics |= _of_split(split, self._task.evaluate(split))
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
        return result

    def _best_record(self) -> dict[str, Any]:
        epoch: int = self._best["epoch"]
        return self._run.metrics()[epoch - 1]

    def _save(self) -> None:
        """Have the run's position written, once what was to be written before is: a step waits for a copy alone."""
        self._steps.watch.check()
        own, *others = distributed.gathered(random_state(self._device))
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
        self._saver.save(self._run.checkpoint, state, _refuse_weights_that_are_not_finite)

    def _save_best(self) -> None:
        """Only ever after `_save` of the same epoch: `_load` mends a kill between the two from that checkpoint."""
        if self._writes:
            self._saver.save(self._run.best, {"model": self._task.model.state_dict(), **self._best})

    def _load(self) -> None:
        state = load_checkpoint(self._run.checkpoint, self._device)
        with fitting(self._run.checkpoint):
            self._task.model.load_state_dict(state["model"])
            self._steps.load_state_dict(state["optimizer"])
            self._steps.averages.load_state_dict(state["averages"])
            self._epoch, self._step, self._images = state["epoch"], state["step"], state["images"]
            self._epoch_seconds, self._seconds, self._best = state["epoch_seconds"], state["seconds"], state["best"]
            random = [state["random"], *state.get("random_of_others", [])]
            mine = random[distributed.rank()] if distributed.rank() < len(random) else None
            if mine is None or not set_random_state(mine, self._device):
                self._draw_apart()
        if self._step == 0 < self._epoch == self._best["epoch"]:
            self._save_best()


def _refuse_weights_that_are_not_finite(state: Mapping[str, Any]) -> None:
    if not all(bool(value.isfinite().all()) for value in state["model"].values()):
        place = f"epoch {state['epoch'] + 1}, step {state['step']}"
        raise AffsupError(f"the weights are not finite in {place}: {DIVERGED}")


def _refuse_non_finite(metrics: Mapping[str, float], when: str) -> None:
    broken = [f"{name} = {value}" for name, value in metrics.items() if not math.isfinite(value)]
    if broken:
        raise AffsupError(f"not finite {when}: {', '.join(broken)}. The run ends here: {DIVERGED}")


def _of_split(split: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"{split}_{name}": value for name, value in metrics.items()}
