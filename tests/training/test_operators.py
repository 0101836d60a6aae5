"""The number of operators of a step, on which its time on a GPU depends: upper bounds, so that none creeps in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import FrozenBatchNorm2d

from affsup_cli.affinity import BatchAffinityLoss
from affsup_cli.models.detection.backbones import BACKBONES, build_backbone
from affsup_cli.recipe import Recipe, load_recipe
from affsup_cli.tasks import build_task
from affsup_cli.training.step import TrainingStep, batches_counted_at_once
from tests.small_scenes import small

CLASSIFIER = {"run.device": "cpu", "train.batch_size": 32, "data.train_images": 64}


class Operators(TorchDispatchMode):
    """Counts operators that are not views."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


def count(work: Callable[[], object]) -> int:
    with Operators() as operators:
        work()
    return operators.count


def of_step(recipe: Recipe, data: Path) -> int:
    task = build_task(recipe, data)
    task.begin_epoch(0)
    task.model.train()
    task.losses(0).total().backward()
    return count(lambda: task.losses(1).total().backward())


@pytest.mark.parametrize(
    ("options", "most"),
    [({}, 39), ({"form": "log"}, 35), ({"softmax": "row"}, 45), ({"diagonal": "keep"}, 38)],
    ids=["focal", "log", "row", "diagonal"],
)
def test_the_loss_of_a_batch_with_its_mass_and_gradient(options: dict[str, Any], most: int) -> None:
    loss = BatchAffinityLoss(ignore_index=None, **options)
    features, labels = torch.randn(16, 8, requires_grad=True), torch.arange(16) % 4
    assert count(lambda: loss.loss_and_mass(features, labels).loss.backward()) <= most


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_what_the_loss_adds_to_a_classifiers_step_and_its_metrics(digits: Path, precision: str) -> None:
    def of_training_step(fields: dict[str, Any]) -> int:
        recipe = load_recipe("minibatch", CLASSIFIER | {"train.precision": precision} | fields)
        task = build_task(recipe, digits)
        task.begin_epoch(0)
        task.model.train()
        step = TrainingStep(task, recipe.train)
        step.begin(0, 0)
        step.run(0)
        return count(lambda: step.run(1))

    base = of_training_step({"affinity.loss": "none", "affinity.measure": False})
    assert of_training_step({}) - base <= 45


def test_batches_are_counted_as_by_the_batch_norms_themselves_in_one_operator() -> None:
    def network() -> nn.Sequential:
        torch.manual_seed(0)
        frozen = nn.BatchNorm1d(4).eval()
        return nn.Sequential(*(nn.BatchNorm1d(4) for _ in range(3)), nn.BatchNorm1d(4, momentum=None), frozen)

    def counted(work: nn.Sequential) -> None:
        with batches_counted_at_once(work):
            work(images)

    images = torch.randn(8, 4)
    plain, found = network(), network()
    of_plain = [count(lambda: plain(images)) for _ in range(3)]
    assert [count(lambda: counted(found)) + 2 for _ in range(3)] == of_plain
    torch.testing.assert_close(found.state_dict(), plain.state_dict(), rtol=0, atol=0)
    with pytest.raises(ValueError, match="expected 2D or 3D input"), batches_counted_at_once(found):
        found(images[0])
    assert [int(norm.num_batches_tracked) for norm in found] == [3, 3, 3, 3, 0]


@pytest.mark.parametrize(("name", "most"), [("frcnn", 700), ("relnet", 990)])
def test_a_detectors_step(name: str, most: int, shape_scenes: Path) -> None:
    assert of_step(small(name), shape_scenes) <= most


def test_frozen_batch_norm_is_one_operator_and_keeps_the_type_of_its_input() -> None:
    backbone = build_backbone("resnet18", "imagenet", "torchvision", load=False).eval()
    reference = BACKBONES["resnet18"].build(FrozenBatchNorm2d)
    state = {
        key: torch.rand_like(value) + 0.5 if ".bn" in key else value / 10
        for key, value in reference.network.state_dict().items()
    }
    reference.network.load_state_dict(state)
    found = BACKBONES["resnet18"].build(type(backbone.early[1]))
    found.network.load_state_dict(state)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(found.early(images), reference.early(images), rtol=1e-4, atol=1e-5)
        assert count(lambda: found.early(images)) * 2 < count(lambda: reference.early(images))
        with torch.autocast("cpu", torch.bfloat16):
            assert found.early(images).dtype == torch.bfloat16
