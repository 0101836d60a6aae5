from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from affsup_cli.runtime.devices import autocast, compile_modules
from affsup_cli.tasks import build_task
from affsup_cli.tasks.detection.network import DetectionModel, build_network
from affsup_cli.tasks.detection.task import DetectionTask
from tests.small_scenes import small

# The compiler asks every tensor for it, and hides the warning from all but those who have made it an error.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

SIZES = [(128, 160), (160, 128), (128, 192), (160, 160)]


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def gradient(model: nn.Module) -> Tensor:
    return torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None])


def test_a_compiled_step_is_the_plain_one(shapes: Path) -> None:
    found = []
    for compiled in (False, True):
        task = build_task(
            small(train__compile=compiled, train__batch_size=2, relation__modules=1, affinity__module=1), shapes
        )
        assert isinstance(task, DetectionTask)
        task.begin_epoch(0)
        torch.manual_seed(0)  # of the samplers
        losses = task.losses(0)
        share = losses.gradient_share()  # goes back through the head before the step does
        losses.total().backward()
        found.append((list(task.model.state_dict()), losses.total().detach(), share, gradient(task.model)))
    (plain_keys, *plain), (keys, *fast) = found
    assert counters["stats"]["unique_graphs"] == 2  # backbone and head
    assert keys == plain_keys
    torch.testing.assert_close(fast[:2], plain[:2], rtol=1e-5, atol=0)
    assert (fast[2] - plain[2]).norm() < 2e-3 * plain[2].norm()


def twins(monkeypatch: pytest.MonkeyPatch, name: str) -> tuple[DetectionModel, DetectionModel]:
    """A network, and the same compiled as a task's is, but into plain operations, which is quicker."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch.manual_seed(0)
    plain = build_network(small(name), classes=8)
    fast = copy.deepcopy(plain)
    compile_modules(fast.detector.backbone, fast.detector.head, device=torch.device("cpu"), sizes_differ=True)
    return plain, fast


def look(model: DetectionModel, size: tuple[int, int], objects: int, precision: str = "float32") -> Tensor:
    """The losses of a step on two images of noise; in evaluation what is said of their regions."""
    torch.manual_seed(sum(size))
    pixels = torch.rand(2, 3, *size).mul(255).contiguous(memory_format=torch.channels_last)
    corners = torch.rand(2, objects, 2) * 20
    boxes = torch.cat([corners, corners + 12 + 10 * torch.rand(2, objects, 2)], dim=-1)
    with autocast(pixels.device, precision):
        regions, losses = model.detector(pixels, [size] * 2, boxes if model.training else None)
        if not model.training:
            return torch.cat([regions.class_logits, regions.box_deltas], dim=-1)
        losses |= model.detector.detection_losses(regions, boxes, torch.zeros(2, objects, dtype=torch.int64))
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    return total.detach()


def test_images_of_many_sizes_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, fast = twins(monkeypatch, "relnet")
    for objects, size in enumerate(SIZES, start=1):
        torch.testing.assert_close(look(fast, size, objects), look(plain, size, objects), rtol=1e-5, atol=0)
    assert (gradient(fast) - gradient(plain)).norm() < 1e-4 * gradient(plain).norm()
    assert counters["stats"]["unique_graphs"] == 2
    fast.eval()
    plain.eval()
    with torch.no_grad():
        for size in SIZES:
            torch.testing.assert_close(look(fast, size, 0), look(plain, size, 0), rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 4
    assert not counters["graph_break"]


def test_a_compiled_step_follows_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, fast = twins(monkeypatch, "frcnn")
    entered: list[torch.dtype] = []
    fast.detector.reduce.register_forward_hook(lambda _, given, __: entered.append(given[0].dtype))
    for precision in ("bf16", "float32"):
        both = [look(model, SIZES[0], 2, precision) for model in (fast, plain)]
        torch.testing.assert_close(*both, rtol=1e-5, atol=0)
    assert entered == [torch.bfloat16, torch.float32]
