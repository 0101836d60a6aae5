"""The precision of the method: float32 or wider, with autocast off."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Return a context in which autocast is off for the device type of `tensor`."""
    device_type = tensor.device.type
    return torch.autocast(device_type, enabled=False) if torch.amp.is_autocast_available(device_type) else nullcontext()


def at_least_float32(name: str, tensor: Tensor) -> Tensor:
    """Return float16 and bfloat16 as float32, float32 and float64 as they are.

    Raises:
        TypeError: `tensor` is not floating point; `name` is its name in the message.
    """
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, found {tensor.dtype}: call {name}.float()")
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
