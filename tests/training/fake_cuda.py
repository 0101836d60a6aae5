"""A CUDA device that computes nothing, on any machine: tensors that know their shapes, types and where they would be.

A mini-batch step on it shows what no CPU can: which operators would have a tensor of the host among theirs. What
autograd and the optimiser's kernel do in C++ stays out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from affsup_cli.data.images import DeviceImages
from affsup_cli.tasks import minibatch
from affsup_cli.training import step
from data_prep.store import ImageManifest
from tests.training.cpu_capture import refused, tensors

CUDA = torch.device("cuda", 0)


class HostTouchedError(Exception):
    """An operator reads from the host or writes there."""


class OnDevice(TorchDispatchMode):
    """Refuses operators that no graph can hold, and tensors of the host."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if refused(func, args) or any(each.device.type == "cpu" for each in tensors((args, kwargs, output))):
            raise HostTouchedError(func.name())
        return output


@contextmanager
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within it, `MinibatchTask` is built on a fake CUDA device."""
    build = minibatch.build_classifier

    def build_there(*args: Any) -> torch.nn.Module:
        with torch.device(CUDA):
            return build(*args)

    def no_images(
        folder: Path, manifest: ImageManifest, split: str, device: torch.device, layout: torch.memory_format, count: int
    ) -> DeviceImages:
        count, (channels, height, width) = count or manifest.splits[split].count, manifest.image_shape
        images = torch.zeros(count, height, width, channels, dtype=torch.uint8)
        labels = torch.zeros(count, dtype=torch.int64)
        return DeviceImages(images, labels, manifest.channel_mean, manifest.channel_std, device, layout)

    def updated(optimizer: torch.optim.Optimizer, clip_norm: float) -> None:
        if any(group["lr"].device != CUDA for group in optimizer.param_groups):
            raise HostTouchedError("the learning rate")

    with monkeypatch.context() as patch, FakeTensorMode(allow_non_fake_inputs=True):
        patch.setattr(minibatch, "select_device", lambda _: CUDA)
        patch.setattr(minibatch, "configure_cuda", lambda *_, **__: None)
        patch.setattr(minibatch, "build_classifier", build_there)
        patch.setattr(torch.nn.Module, "to", lambda module, *_, **__: module)  # it is there already
        patch.setattr(minibatch, "load_images", no_images)
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
        patch.setattr(step, "clipped_step", updated)
        patch.setattr(torch.autograd, "backward", lambda _: None)
        patch.setattr(torch.autograd, "grad", lambda _, at, **__: (torch.empty_like(at),))
        yield
