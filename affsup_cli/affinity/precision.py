"""The precision that the method is computed in: float32 or wider, whatever the caller's autocast says."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Switch autocast off for the kind of device that `tensor` is on."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def at_least_float32(name: str, tensor: Tensor) -> Tensor:
    """Return float16 and bfloat16 as float32, float32 and float64 as they are.

    Raises:
        TypeError: `tensor` is not of a floating-point type; the message calls it `name`.
    """
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, found {tensor.dtype}: call {name}.float()")
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
