"""The environment of a run: stored in its folder, shown by `affsup doctor`."""

from __future__ import annotations

import datetime
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import affsup_cli
from affsup_cli.runtime.devices import device_name

LIBRARIES = (
    *("torch", "torchvision", "numpy", "pandas", "h5py", "pycocotools"),
    *("scikit-learn", "matplotlib", "safetensors", "typer"),
)


def environment(device: torch.device, data: Mapping[str, Any], initialised_from: Mapping[str, Any]) -> dict[str, Any]:
    """Return the environment of a run; `data` and `initialised_from` are attributes of its `Task`."""
    return {
        "affsup": affsup_cli.__version__,
        **source_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": str(device),
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "data": dict(data),
        **initialised_from,
    }


def source_commit() -> dict[str, Any]:
    """Return affsup's git commit, None in an installed copy, and whether the working tree differs from it."""
    folder = Path(affsup_cli.__file__).parent
    if not (folder.parent / ".git").exists():
        return {"commit": None, "dirty": False}
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        dirty = bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": False}
    return {"commit": commit, "dirty": dirty}


def library_versions() -> dict[str, str]:
    """Return the installed version of each library that results depend on."""
    return {name: metadata.version(name) for name in LIBRARIES}


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603
