"""What two processes and one must do alike: `python -m tests.two_processes DATA OUT` is one of two processes.

`python -m tests.two_processes OUT` is one of two that are stopped while the first of them cannot save.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from affsup_cli.distributed import collectives
from affsup_cli.distributed.shard import Shard
from affsup_cli.models.detection import detector
from affsup_cli.recipe import Recipe, load_recipe
from affsup_cli.runs import checkpoint
from affsup_cli.runs.checkpoint import save_checkpoint
from affsup_cli.runs.folder import RunFolder
from affsup_cli.runtime.stop import Stopped
from affsup_cli.tasks import build_task
from affsup_cli.training import trainer
from affsup_cli.training.task import Losses, Task, all_reduce_losses
from affsup_cli.training.trainer import Trainer
from data_prep.errors import AffsupError
from tests.small_scenes import small, small_scene
from tests.training.toy import ToyTask

FIELDS = {"train.epochs": 2, "train.learning_rate": 0.05, "train.milestones": [], "run.device": "cpu"}
UNTRAINED = {"model__features": "scene", "model__pretrained": False}


class SharedToy(ToyTask):
    """The toy for several processes: batches of 4, 4, 4 and 1; L_G is the mean over what has a target."""

    def __init__(self, *, random: bool = False) -> None:
        super().__init__(steps=4, batch=4)
        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Dropout(0.2 if random else 0.0), nn.Linear(5, 1))
        self.images = 3 * 4 + 1

    def losses(self, step: int) -> Losses:
        here = (self.epochs_begun[-1], step)
        self.before_step.pop(here, lambda: None)()
        whole = min(4, self.images - 4 * step)
        share = Shard(collectives.rank(), collectives.world_size())
        part = slice(4 * step, 4 * step + whole)
        x, y = (values[part][share.slice_or_dummy(whole)] for values in (self.x, self.y))
        prediction = self.model(x)
        target = y > 0
        error = (prediction - y).square().mean()
        return Losses(
            size=share.size(whole),
            main={"fit_loss": error * float("nan") if here == self.poisoned else error},
            affinity=(prediction.square() * target).sum() / target.sum().clamp(min=1),
            weight=self.weight,
            shared_features=prediction,
            metrics={"bias": prediction.mean()},
            masked_means={"above": ((prediction * target).sum() / target.sum().clamp(min=1), target.sum())},
            global_batch_size=whole,
            counts={"affinity": target.sum()},
        )


def train(task: Any, recipe: Recipe, folder: Path) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    run = RunFolder(folder)
    result = Trainer(task, recipe, run).run()
    collectives.all_gather_object(None)  # wait for the first process's files
    return {
        "model": {name: value.clone() for name, value in task.model.state_dict().items()},
        "metrics": result["metrics"],
        "epochs": [
            {name: value for name, value in record.items() if name not in ("seconds", "images_per_second")}
            for record in run.metrics()
        ],
    }


def toy(random: bool, folder: Path) -> dict[str, Any]:
    return train(SharedToy(random=random), load_recipe("minibatch", FIELDS), folder)


def stopped_toy(folder: Path) -> dict[str, Any]:
    """Trained until the last process is asked to stop in its second step, and resumed by all."""
    recipe = load_recipe("minibatch", FIELDS)
    task = SharedToy(random=True)
    if collectives.rank() == collectives.world_size() - 1:
        task.before_step[(0, 1)] = lambda: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "SYNC_SECONDS", 0)
        with pytest.raises(Stopped, match="epoch 1 after step 2 of 4"):
            train(task, recipe, folder)
        torch.rand(7)
        return train(SharedToy(random=True), recipe, folder)


def stopped_while_it_saves(folder: Path, save: Callable[..., None]) -> bool:
    """Stop all processes in their second step; say whether this one left with a checkpoint on the disk."""
    task = SharedToy()
    task.before_step[(0, 1)] = lambda: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "SYNC_SECONDS", 0)
        patch.setattr(checkpoint, "save_checkpoint", save)
        with pytest.raises(Stopped):
            train(task, load_recipe("minibatch", FIELDS), folder)
    return RunFolder(folder).checkpoint.exists()


def save_slowly(path: Path, state: dict[str, Any], previous: Path | None = None) -> None:
    time.sleep(0.5)
    save_checkpoint(path, state, previous)


def refuse_to_save(path: Path, state: dict[str, Any], previous: Path | None = None) -> None:
    raise AffsupError("the disk is full")


def poisoned_toy(folder: Path) -> str:
    """What the processes say of a loss that is not finite on the last of them."""
    task = SharedToy()
    if collectives.rank() == collectives.world_size() - 1:
        task.poisoned = (0, 1)
    with pytest.raises(AffsupError) as caught:
        train(task, load_recipe("minibatch", FIELDS), folder)
    return str(caught.value)


def step(task: Any, number: int | None, *, frozen: bool) -> dict[str, Any]:
    """A step's numbers and gradients; by default of the step that has a single image."""
    same = collectives.ModelReplica(task.model)
    task.begin_epoch(0)
    task.model.train(not frozen)
    if number is None:
        number = next(number for number in range(task.steps) if task._epochs.size(number) == 1)
    losses = task.losses(number)
    whole, part = all_reduce_losses(losses)
    share = part.gradient_share().item()
    torch.autograd.backward(part.total())
    same.all_reduce_gradients(losses.size / whole.size)
    named = {"total": whole.total(), **whole.main, **whole.metrics}
    if whole.affinity is not None:
        named["affinity"] = whole.affinity
    named |= {f"{name} of some": value for name, (value, _) in whole.masked_means.items()}
    named |= {f"counted {name}": count for name, (_, count) in whole.masked_means.items()}
    return {
        "here": losses.size,
        "values": {name: value.item() for name, value in named.items()} | {"share": share},
        "gradients": {
            name: value.grad.clone() for name, value in task.model.named_parameters() if value.grad is not None
        },
    }


def statistics(task: Task) -> dict[str, Tensor]:
    """The running means of a network's first batch norm after a step; no other stands before it."""
    step(task, 0, frozen=False)
    norm = next(part for part in task.model.modules() if isinstance(part, nn.BatchNorm2d))
    assert norm.running_mean is not None
    return {"mean": norm.running_mean.clone()}


def evaluated(task: Task, folder: Path) -> dict[str, float]:
    collectives.ModelReplica(task.model)
    metrics = task.evaluate("test")
    folder.mkdir(exist_ok=True)
    if collectives.rank() == 0:
        task.export(folder, "test")
    return metrics


def minibatch(data: Path, **fields: Any) -> Task:
    given = {key.replace("__", "."): value for key, value in fields.items()}
    return build_task(load_recipe("minibatch", {"run.device": "cpu", "train.batch_size": 31} | given), data)


def do_all(data: Path, out: Path) -> dict[str, Any]:
    detector.RPN_SAMPLED = 100_000  # all anchors: no random choice remains
    jobs: dict[str, Callable[[], Any]] = {
        "toy": lambda: toy(False, out / "toy"),
        "random toy": lambda: toy(True, out / "random-toy"),
        "stopped toy": lambda: stopped_toy(out / "stopped-toy"),
        "slowly saved toy": lambda: stopped_while_it_saves(out / "slow-toy", save_slowly),
        "poisoned toy": lambda: poisoned_toy(out / "poisoned-toy"),
        "minibatch": lambda: step(minibatch(data), 1, frozen=True),
        "minibatch, a graph each": lambda: step(minibatch(data, affinity__across="device"), 1, frozen=True),
        "minibatch, logits, uneven": lambda: step(
            minibatch(data, affinity__features="logits", train__batch_size=323), 4, frozen=True
        ),
        "statistics": lambda: statistics(minibatch(data)),
        "relnet": lambda: step(build_task(small(train__batch_size=3), data), 0, frozen=False),
        "relnet, one image": lambda: step(build_task(small(train__batch_size=23), data), None, frozen=False),
        "relpn": lambda: step(
            build_task(small("relpn", pairs__sampled=20_000, train__batch_size=3), data), 0, frozen=False
        ),
        "scene": lambda: step(build_task(small_scene(**UNTRAINED), data), 0, frozen=False),
        "minibatch evaluated": lambda: evaluated(minibatch(data), out / "minibatch"),
        "relnet evaluated": lambda: evaluated(build_task(small(), data), out / "relnet"),
        "scene evaluated": lambda: evaluated(build_task(small_scene(**UNTRAINED), data), out / "scene"),
    }
    return {name: job() for name, job in jobs.items()}


if __name__ == "__main__":
    with collectives.init_distributed("cpu"):
        if len(sys.argv) == 2:
            stopped_while_it_saves(Path(sys.argv[1]), refuse_to_save)
        done = do_all(Path(sys.argv[1]), Path(sys.argv[2]))
        torch.save(done, Path(sys.argv[2]) / f"{collectives.rank()}.pt")
        raise AffsupError("both say this")
