"""Devices and arithmetic: what a recipe's `run.device` and `train.precision` mean on this machine."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import nn

from data_prep.errors import UsageError


def gpus() -> int:
    """Return how many CUDA devices PyTorch can use: where the driver is too old it counts some, and can use none."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def gpus_in_words() -> str:
    """Return "2 CUDA devices", or why there is none to use."""
    usable, there = gpus(), torch.cuda.device_count()
    counted = f"{there or 'no'} CUDA device{'' if there == 1 else 's'}"
    if usable or not there:
        return counted
    return f"{counted} that PyTorch (CUDA {torch.version.cuda}) cannot use: the driver may be too old for it"


def resolve_device(name: str) -> torch.device:
    """Turn "auto", "cpu", "cuda" or "cuda:N" into a device that is there; auto takes CUDA where it can.

    Raises:
        UsageError: no such device, or not on this machine.
    """
    if name == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"run.device = '{name}': expected auto, cpu, cuda or cuda:N") from None
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise UsageError(f"run.device = '{name}': affsup trains on cpu and cuda")
    if (device.index or 0) >= gpus():
        raise UsageError(f"run.device = '{name}': this machine has {gpus_in_words()}")
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


def configure_cuda(precision: str) -> None:
    """Let cuDNN choose the fastest algorithms, and allow TF32 for "tf32" alone: by itself torch allows it in part."""
    torch.backends.cudnn.benchmark = True
    allowed = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return the autocast context of `precision` on `device`: bfloat16 for "bf16", none otherwise."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def memory_format(channels_last: bool) -> torch.memory_format:
    """Return how `run.channels_last` lays out images and the weights of convolutions."""
    return torch.channels_last if channels_last else torch.contiguous_format


def compile_modules(*modules: nn.Module, device: torch.device, sizes_differ: bool = False) -> None:
    """Have calls of `modules` run through torch.compile: fused kernels, the same parameters under the same names.

    Args:
        modules: what is called as it is, part by part.
        device: where they are.
        sizes_differ: compile once for inputs of many sizes, rather than for the first that comes.

    Raises:
        UsageError: this machine has no compiler: of C++, in which kernels for a CPU are written, or of C, in which
            those for a GPU are loaded.
    """
    if device.type == "cpu":
        language, compilers = "C++", [os.environ.get("CXX", ""), "g++", "clang++", "c++"]
    else:
        language, compilers = "C", [os.environ.get("CC", ""), "gcc", "clang"]
    if not any(shutil.which(compiler) for compiler in compilers):
        raise UsageError(
            f"train.compile = true needs a {language} compiler, such as {compilers[1]}, and none is on the PATH"
        )
    import torch._dynamo.config  # takes two seconds
    import torch._functorch.config

    # Two losses may go back through a module one after the other (`Losses.gradient_share`): the first must not write
    # over what the second reads.
    torch._functorch.config.donated_buffer = False
    # A sweep's worker compiles network after network through the same forward, and torch stops at eight without a word.
    torch._dynamo.config.recompile_limit = 64
    for module in modules:
        module.compile(dynamic=True if sizes_differ else None)


def device_name(device: torch.device) -> str:
    """Return what the device is called by its maker."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return _processor()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
