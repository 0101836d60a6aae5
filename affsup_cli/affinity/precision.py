"""The precision of the method: float32 or wider, with autocast and TF32 off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Return a context in which autocast is off for the device type of `tensor`."""
    device_type = tensor.device.type
    # torch.compile of torch 2.11 cannot trace the question, and compiles for devices that have autocast.
    if torch.compiler.is_compiling() or torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def without_tf32(tensor: Tensor) -> AbstractContextManager[object]:
    """Return a context in which float32 products on the device of `tensor` do not use TF32.

    Code that torch.compile has traced uses the setting of its caller.
    """
    if not tensor.is_cuda or torch.compiler.is_compiling():
        return nullcontext()
    return _ieee_products()


@contextmanager
def _ieee_products() -> Iterator[None]:
    """Turn TF32 off by the interface that the caller has used: PyTorch raises where the two are mixed."""
    matmul = torch.backends.cuda.matmul
    if matmul.fp32_precision != "tf32":
        yield
        return
    try:
        overall = torch.get_float32_matmul_precision()
    except RuntimeError:  # TF32 was allowed by `fp32_precision`
        matmul.fp32_precision = "ieee"
        try:
            yield
        finally:
            matmul.fp32_precision = "none"  # as that of torch.backends
            if matmul.fp32_precision != "tf32":
                matmul.fp32_precision = "tf32"
        return
    matmul.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32 = True
        if overall == "medium":  # which allow_tf32 leaves half set
            torch.set_float32_matmul_precision("medium")


def at_least_float32(name: str, tensor: Tensor) -> Tensor:
    """Return float16 and bfloat16 as float32, float32 and float64 as they are.

    Raises:
        TypeError: `tensor` is not floating point; `name` is its name in the message.
    """
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, found {tensor.dtype}: call {name}.float()")
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
