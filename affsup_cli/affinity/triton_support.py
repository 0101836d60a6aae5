"""Whether Triton kernels can be used on this machine: PyTorch's operators are used where they cannot."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from functools import cache
from pathlib import Path

import torch


@cache
def why_not_triton(device: torch.device) -> str | None:
    """Return why Triton cannot compile for a CUDA `device` on this machine; None if it can."""
    if torch.version.cuda is None:
        return "PyTorch is built without CUDA"
    if not importlib.util.find_spec("triton"):
        return "Triton is not installed"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "the GPU is older than compute capability 8.0"
    if not any(shutil.which(compiler) for compiler in (os.environ.get("CC", ""), "gcc", "clang")):
        return "no C compiler is on the PATH"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "Python's C header files are not installed"
    return None
