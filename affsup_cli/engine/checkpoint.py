"""Checkpoints: written in one step, read without running anything that is in them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from affsup_cli.engine.run_folder import atomic_file
from affsup_cli.errors import AffsupError

_WHAT_NOW = "begin the run anew with another --name"


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values to `path`; a kill or a full disk leaves the previous file.

    Raises:
        AffsupError: the disk is full.
    """
    with atomic_file(path) as temporary:
        torch.save(state, temporary)


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, its tensors onto `device`.

    Raises:
        AffsupError: the file is missing, damaged or not a checkpoint.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise AffsupError(f"{path} is missing: the run has finished no epoch yet; --resume continues it") from None
    except Exception as error:  # torch raises whatever the damage leads to: zip, pickle, key and runtime errors
        raise AffsupError(f"{path} is not a readable checkpoint ({type(error).__name__}): {_WHAT_NOW}") from error
    if not isinstance(state, dict):
        raise AffsupError(f"{path} holds a {type(state).__name__}, expected a checkpoint: {_WHAT_NOW}")
    return state


@contextlib.contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Turn what fails when a checkpoint's content is put to use into one message about `path`.

    Raises:
        AffsupError: something is missing in it, or is of another shape.
    """
    try:
        yield
    except (KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        first = str(error).splitlines()[0]
        raise AffsupError(f"{path} is not of this run ({type(error).__name__}: {first}): {_WHAT_NOW}") from error


def random_state() -> dict[str, Any]:
    """Return the state of torch's global generators, of the CPU and of every CUDA device."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def set_random_state(state: dict[str, Any]) -> None:
    """Restore `random_state`, as far as this machine has the same devices."""
    torch.set_rng_state(state["cpu"].cpu())
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([generator.cpu() for generator in state["cuda"]])
