"""The training loop: drives any `Task` from its recipe's `[train]` section and keeps its run folder."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from affsup_cli.engine.checkpoint import fitting, load_checkpoint, random_state, save_checkpoint, set_random_state
from affsup_cli.engine.observer import Observer, Progress
from affsup_cli.engine.run_folder import RunFolder
from affsup_cli.engine.stop import Stopped, StopRequest
from affsup_cli.engine.task import Losses, Task
from affsup_cli.errors import AffsupError
from affsup_cli.metrics.average import Averages
from affsup_cli.recipe import Recipe, Training

LOOK_EVERY = 50  # steps, at most, between two measurements of the gradient share and two looks at the loss
LOOKS = 8  # at least, in an epoch
REFRESH_SECONDS = 0.5
_DIVERGED = "a new run with a smaller train.learning_rate or affinity.lambda is the usual cure"


def learning_rate(train: Training, epoch: int) -> float:
    """Return the learning rate of `epoch` (0, 1, ...): divided by 10 at each milestone passed (section 6.2)."""
    return train.learning_rate * 0.1 ** sum(epoch >= milestone for milestone in train.milestones)


def optimizer(task: Task, train: Training) -> torch.optim.Optimizer:
    """Return SGD with momentum and weight decay on every parameter (section 6.2), its steps fused."""
    return torch.optim.SGD(
        task.model.parameters(), train.learning_rate, train.momentum, weight_decay=train.weight_decay, fused=True
    )


def clipped_step(steps: torch.optim.Optimizer, clip_norm: float) -> None:
    """Take a step along the gradients there are, cut down to the norm `clip_norm` if that is not 0."""
    if clip_norm:
        torch.nn.utils.clip_grad_norm_([p for group in steps.param_groups for p in group["params"]], clip_norm)
    steps.step()


class Trainer:
    """One run, from wherever its folder stands to its end.

    All that the loop needs to go on after step s of epoch e is in `last.pt`; the batches of an epoch are a function of
    the seed and the epoch. On a CPU a run that was killed and resumed therefore ends bit-identical to one left alone.

    Args:
        task: what is trained.
        recipe: its recipe; the folder holds the same.
        run: the run folder, locked by the caller.
        observers: who is told.
    """

    def __init__(self, task: Task, recipe: Recipe, run: RunFolder, observers: Sequence[Observer] = ()) -> None:
        self._task = task
        self._train = recipe.train
        self._checkpoint_seconds = recipe.run.checkpoint_seconds
        self._run = run
        self._observers = observers
        self._device = next(task.model.parameters()).device
        self._optimizer = optimizer(task, recipe.train)
        self._averages = Averages()
        self._watch = LossWatch(0, 0)
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
        if self._run.checkpoint.exists():
            self._load()
        self._run.keep_metrics(self._epoch)
        with StopRequest() as stop:
            while self._epoch < self._train.epochs:
                self._train_epoch(stop)
                self._end_epoch()
                if self._epoch < self._train.epochs:
                    self._leave_if(stop)
            return self._finish()

    def _leave_if(self, stop: StopRequest) -> None:
        if stop.requested:
            raise Stopped(
                f"stopped in epoch {self._epoch + 1} after step {self._step} of {self._task.steps}, and saved: "
                "the same call with --resume continues there"
            )

    def _train_epoch(self, stop: StopRequest) -> None:
        self._task.begin_epoch(self._epoch)
        self._task.model.train()
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self._train, self._epoch)
        self._watch = LossWatch(self._epoch, self._step)
        resumed_seconds = self._epoch_seconds
        begun = saved = refreshed = time.perf_counter()
        while self._step < self._task.steps:
            looking = self._step % min(LOOK_EVERY, math.ceil(self._task.steps / LOOKS)) == 0
            losses = self._task.losses(self._step)
            total = losses.total()
            self._record(losses, total, looking)
            self._optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(total)
            clipped_step(self._optimizer, self._train.clip_norm)
            self._step += 1
            now = time.perf_counter()
            self._epoch_seconds = resumed_seconds + now - begun
            if looking:
                self._watch.check()
            if self._step == 1 or now - refreshed > REFRESH_SECONDS:
                self._report()
                refreshed = now
            if self._step < self._task.steps and (stop.requested or now - saved > self._checkpoint_seconds):
                self._save()
                self._leave_if(stop)
                saved = time.perf_counter()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            self._epoch_seconds = resumed_seconds + time.perf_counter() - begun
        self._watch.check()

    def _record(self, losses: Losses, total: Tensor, looking: bool) -> None:
        values = {"loss": total, **losses.main, **losses.metrics}
        if losses.affinity is not None:
            values["affinity_loss"] = losses.affinity
            if looking:
                self._averages.add({"gradient_share": losses.gradient_share()}, losses.size)
        self._averages.add({f"train_{name}": value for name, value in values.items()}, losses.size)
        for name, (value, count) in losses.of_some.items():
            self._averages.add({f"train_{name}": value}, count)
        self._watch.look(values)
        self._images += losses.size

    def _report(self) -> None:
        rate = self._images / self._epoch_seconds
        done = self._step / self._task.steps
        left = self._epoch_seconds / done * (self._train.epochs - self._epoch - done)
        progress = Progress(
            self._epoch + 1, self._train.epochs, self._step, self._task.steps, self._averages.read(), rate, left
        )
        for observer in self._observers:
            observer.progressed(progress)

    def _end_epoch(self) -> None:
        selecting = self._train.select == "best"
        validation = self._task.evaluate("val") if selecting else {}
        record: dict[str, Any] = {
            "epoch": self._epoch + 1,
            "learning_rate": learning_rate(self._train, self._epoch),
            **self._averages.read(),
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
        self._averages = Averages()
        self._run.append_metrics(record)
        self._save()
        if improved:
            self._save_best()
        for observer in self._observers:
            observer.epoch_ended(record)

    def _finish(self) -> dict[str, Any]:
        with fitting(self._run.best):
            self._task.model.load_state_dict(load_checkpoint(self._run.best, self._device)["model"])
        metrics = {name: value for name, value in self._best_record().items() if name.startswith("train_")}
        for split in ("val", "test") if self._train.select == "best" else ("test",):
            metrics |= _of_split(split, self._task.evaluate(split))
            self._task.export(self._run.path, split)
        _refuse_non_finite(metrics, "of the epoch that is tested")
        result = {
            "kind": "train",
            "epochs": self._epoch,
            "best_epoch": self._best["epoch"],
            "seconds": self._seconds,
            "metrics": metrics,
        }
        self._run.write_result(result)
        return result

    def _best_record(self) -> dict[str, Any]:
        epoch: int = self._best["epoch"]
        return self._run.metrics()[epoch - 1]

    def _save(self) -> None:
        self._watch.check()
        if not all(bool(value.isfinite().all()) for value in self._task.model.state_dict().values()):
            raise AffsupError(f"the weights are not finite in epoch {self._epoch + 1}, step {self._step}: {_DIVERGED}")
        state = {
            "model": self._task.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "random": random_state(),
            "epoch": self._epoch,
            "step": self._step,
            "images": self._images,
            "averages": self._averages.state_dict(),
            "epoch_seconds": self._epoch_seconds,
            "seconds": self._seconds,
            "best": self._best,
        }
        save_checkpoint(self._run.checkpoint, state)

    def _save_best(self) -> None:
        """Only ever after `_save` of the same epoch: `_load` mends a kill between the two from that checkpoint."""
        save_checkpoint(self._run.best, {"model": self._task.model.state_dict(), **self._best})

    def _load(self) -> None:
        state = load_checkpoint(self._run.checkpoint, self._device)
        with fitting(self._run.checkpoint):
            self._task.model.load_state_dict(state["model"])
            self._optimizer.load_state_dict(state["optimizer"])
            set_random_state(state["random"])
            self._averages.load_state_dict(state["averages"], self._device)
            self._epoch, self._step, self._images = state["epoch"], state["step"], state["images"]
            self._epoch_seconds, self._seconds, self._best = state["epoch_seconds"], state["seconds"], state["best"]
        if self._step == 0 < self._epoch == self._best["epoch"]:
            self._save_best()


class LossWatch:
    """Remembers, on the device, the first step of an epoch whose loss is not finite.

    Args:
        epoch: 0, 1, ...
        step: steps of the epoch that are done already.
    """

    def __init__(self, epoch: int, step: int) -> None:
        self._epoch = epoch
        self._done = step
        self._names: tuple[str, ...] = ()
        self._seen: Tensor | None = None

    def look(self, values: Mapping[str, Tensor]) -> None:
        """Take note of the next step's scalars, of which `values["loss"]` decides."""
        self._names = tuple(values)
        numbers = torch.stack([value.detach().double() for value in values.values()])
        bad = (~torch.isfinite(values["loss"].detach())).double()
        if self._seen is None:
            self._seen = torch.cat([bad.view(1), torch.full_like(bad, self._done + 1).view(1), numbers])
            return
        following = torch.cat([bad.view(1), self._seen[1:2] + 1, numbers])
        self._seen = torch.where(self._seen[0] > 0, self._seen, following)

    def check(self) -> None:
        """Read the device.

        Raises:
            AffsupError: some step's loss was not finite; its numbers are in the message.
        """
        if self._seen is None:
            return
        bad, step, *numbers = self._seen.tolist()
        if bad:
            said = ", ".join(f"{name} = {number:.6g}" for name, number in zip(self._names, numbers, strict=True))
            place = f"epoch {self._epoch + 1}, step {step:.0f}"
            raise AffsupError(f"the loss is not finite in {place}: {said}. The run ends here: {_DIVERGED}")


def _refuse_non_finite(metrics: Mapping[str, float], when: str) -> None:
    broken = [f"{name} = {value}" for name, value in metrics.items() if not math.isfinite(value)]
    if broken:
        raise AffsupError(f"not finite {when}: {', '.join(broken)}. The run ends here: {_DIVERGED}")


def _of_split(split: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"{split}_{name}": value for name, value in metrics.items()}
