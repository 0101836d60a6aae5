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


def select_device(name: str) -> torch.device:
    """Return the device as `resolve_device` does; a GPU becomes the current one, so that no other is used.

    Raises:
        UsageError: no such device, or this machine does not have it.
    """
    device = resolve_device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def configure_determinism(deterministic: bool) -> None:
    """Allow deterministic kernels only (`run.deterministic`), or all; call it before `configure_cuda`.

    An operation that has no deterministic kernel then raises a RuntimeError that names it.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
    torch.use_deterministic_algorithms(deterministic)


def configure_cuda(precision: str, fixed_shapes: bool = False) -> None:
    """Enable TF32 for "tf32" alone (torch's default enables it in part), and cuDNN's benchmark mode.

    The benchmark mode chooses kernels by their time, so it stays off where kernels must be deterministic.

    Args:
        precision: the recipe's `train.precision`.
        fixed_shapes: all batches have the same shape. cuDNN's benchmark mode searches once for each shape, so that it
            would be slow on scenes of many sizes.
    """
    torch.backends.cudnn.benchmark = fixed_shapes and not torch.are_deterministic_algorithms_enabled()
    allowed = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return the autocast context of `precision` on `device`: bfloat16 for "bf16", none otherwise."""
    resolved = resolve_precision(precision, device)
    return torch.autocast(device.type, torch.bfloat16) if resolved == "bf16" else contextlib.nullcontext()


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return `precision`, or for "auto" the faster of "bf16" and "float32" on `device`."""
    if precision != "auto":
        return precision
    return "bf16" if has_bf16_instructions(device) else "float32"


def has_bf16_instructions(device: torch.device) -> bool:
    """Return whether the device multiplies bfloat16 matrices in hardware; without, bf16 is slower than float32.

    GPUs of compute capability 8.0 and above do, x86 processors with AVX-512 BF16 or AMX, ARM processors with BF16. Of a
    processor without /proc/cpuinfo it is not known, and taken for no.
    """
    if device.type == "cuda":
        return bool(torch.cuda.get_device_capability(device) >= (8, 0))
    return bool(_cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"})


def slow_bf16(precision: str, device: torch.device) -> str | None:
    """Return a warning if "bf16" is slow on `device`, else None."""
    if resolve_precision(precision, device) != "bf16" or has_bf16_instructions(device):
        return None
    return (
        f"train.precision = 'bf16' is slower than 'float32' on {device_name(device)}, which has no bfloat16 "
        "instructions; 'auto' chooses"
    )


def memory_format(channels_last: bool) -> torch.memory_format:
    """Return the memory format of images and convolution weights for `run.channels_last`."""
    return torch.channels_last if channels_last else torch.contiguous_format


def compile_modules(*modules: nn.Module, device: torch.device, sizes_differ: bool = False) -> None:
    """Compile `modules` in place by torch.compile; parameters and their names stay the same.

    Args:
        modules: compiled one by one.
        device: their device.
        sizes_differ: compile once for inputs of many sizes, rather than once for each size.

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
        module.compile(dynamic=sizes_differ)


def device_name(device: torch.device) -> str:
    """Return the product name of the device."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return _processor()


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpu_flags() -> set[str]:
    return set((_cpuinfo("flags") or _cpuinfo("Features")).split())


def _cpuinfo(field: str) -> str:
    """Return the first value of a field of /proc/cpuinfo; empty where there is none."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")
