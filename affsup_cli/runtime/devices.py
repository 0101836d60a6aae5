"""Devices, precision and memory format: `run.device`, `train.precision`, `run.channels_last`, `train.compile`."""

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
    """Return the number of CUDA devices that PyTorch can use; with a driver that is too old it is 0."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def describe_gpus() -> str:
    """Return, for messages, "2 CUDA devices", or why there is none that can be used."""
    usable, present = gpus(), torch.cuda.device_count()
    counted = f"{present or 'no'} CUDA device{'' if present == 1 else 's'}"
    if usable or not present:
        return counted
    return f"{counted} that PyTorch (CUDA {torch.version.cuda}) cannot use: the driver may be too old for it"


def resolve_device(name: str) -> torch.device:
    """Return the device that "auto", "cpu", "cuda" or "cuda:N" names; "auto" is CUDA where available.

    Raises:
        UsageError: no such device, or this machine does not have it.
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
        raise UsageError(f"run.device = '{name}': this machine has {describe_gpus()}")
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


def configure_determinism(deterministic: bool) -> None:
    """Allow deterministic kernels only (`run.deterministic`), or all; call it before `configure_cuda`.

    An operation that has no deterministic kernel then raises a RuntimeError that names it.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
    torch.use_deterministic_algorithms(deterministic)


def configure_cuda(precision: str) -> None:
    """Enable cuDNN's benchmark mode, and TF32 for "tf32" alone; torch's default enables it in part.

    The benchmark mode chooses kernels by their time, so it stays off where kernels must be deterministic.
    """
    torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
    allowed = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return the autocast context of `precision` on `device`: bfloat16 for "bf16", none otherwise."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def memory_format(channels_last: bool) -> torch.memory_format:
    """Return the memory format of images and convolution weights for `run.channels_last`."""
    return torch.channels_last if channels_last else torch.contiguous_format


def compile_modules(*modules: nn.Module, device: torch.device, sizes_differ: bool = False) -> None:
    """Compile `modules` in place by torch.compile; parameters and their names stay the same.

    Args:
        modules: compiled one by one.
        device: their device.
        sizes_differ: compile once for inputs of many sizes, rather than for the size of the first input.

    Raises:
        UsageError: this machine has no compiler: of C++ for kernels on a CPU, or of C for the launchers of GPU kernels.
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

    # `Losses.gradient_share` runs two backward passes through a module: the first must not overwrite the buffers that
    # the second one reads.
    torch._functorch.config.donated_buffer = False
    # A sweep's worker compiles many networks with the same forward; torch's default silently stops at eight.
    torch._dynamo.config.recompile_limit = 64
    for module in modules:
        module.compile(dynamic=True if sizes_differ else None)


def device_name(device: torch.device) -> str:
    """Return the product name of the device."""
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
