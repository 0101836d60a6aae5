"""Checkpoints: written in one step and in the background, read without running anything that is in them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from affsup_cli.engine.run_folder import RESUME, atomic_file
from data_prep.errors import AffsupError

ANEW = "begin the run anew with another --name"
"""What to do when something that a run keeps is damaged."""

_ONE_KEY = re.compile(r'(?:Missing|Unexpected) key\(s\) in state_dict: "[^"]*"')


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values to `path`; a kill or a full disk leaves the previous file.

    Raises:
        AffsupError: the disk is full.
    """
    with atomic_file(path, RESUME) as temporary:
        torch.save(state, temporary)


class BackgroundSaver:
    """Saves checkpoints from a copy while training goes on, one after the other in the order in which they were given.

    To be entered; it is left when all is written. A write that failed takes those behind it with it.

    Args:
        device: where what is saved is.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writes: list[Future[None]] = []
        # Streams are taken in turns from a pool a priority: of another one than training's it is none that trains.
        on_gpu = device.type == "cuda"
        self._stream = torch.cuda.Stream(device, priority=-1) if on_gpu else None  # type: ignore[no-untyped-call]

    def __enter__(self) -> BackgroundSaver:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        self._thread.shutdown()
        if kind is None:
            self.wait()

    def save(self, path: Path, state: dict[str, Any], check: Callable[[dict[str, Any]], None] = lambda _: None) -> None:
        """Copy `state` where it is and have it written to `path`, if `check` of the copy raises nothing."""
        copied = copied_state(state)
        copy_made = torch.cuda.current_stream(self._device).record_event() if self._stream else None
        before = self._writes[-1] if self._writes else None

        def write() -> None:
            if before:
                before.result()
            with torch.cuda.stream(self._stream):  # training's kernels need not wait for these
                if self._stream and copy_made:
                    self._stream.wait_event(copy_made)
                check(copied)
                save_checkpoint(path, copied)

        self._writes.append(self._thread.submit(write))

    def wait(self) -> None:
        """Wait until everything given is on the disk.

        Raises:
            AffsupError: something could not be written, as `save_checkpoint` says it, or as `check` does.
        """
        for written in self._writes:
            written.result()
        del self._writes[:-1]


def copied_state(state: Any) -> Any:
    """Return dictionaries, lists and tuples with every tensor in them copied, where it is."""
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, dict):
        return {key: copied_state(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(copied_state(value) for value in state)
    return state


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, its tensors onto `device`; on a CPU they are read when they are looked at.

    Raises:
        AffsupError: the file is missing, damaged or not a checkpoint.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True, mmap=True)
    except FileNotFoundError:
        raise AffsupError(f"{path} is missing: the run has finished no epoch yet; --resume continues it") from None
    except Exception as error:  # torch raises whatever the damage leads to: zip, pickle, key and runtime errors
        raise AffsupError(f"{path} is not a readable checkpoint ({type(error).__name__}): {ANEW}") from error
    if not isinstance(state, dict):
        raise AffsupError(f"{path} holds a {type(state).__name__}, expected a checkpoint: {ANEW}")
    return state


@contextlib.contextmanager
def fitting(path: Path, cure: str = ANEW) -> Iterator[None]:
    """Turn what fails when a checkpoint's content is put to use into one message about `path`.

    Args:
        path: the file.
        cure: what to do then.

    Raises:
        AffsupError: something is missing in it, or is of another shape.
    """
    try:
        yield
    except (KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise AffsupError(
            f"{path} is not of this run ({type(error).__name__}: {_first_fault(error)}): {cure}"
        ) from error


def _first_fault(error: Exception) -> str:
    """Return what an error says first; of torch's list of faults in a state dict the first, with its one key."""
    lines = [line.strip() for line in str(error).splitlines()] or [""]
    if len(lines) == 1 or not lines[0].endswith(":"):
        return lines[0]
    key = _ONE_KEY.match(lines[1])
    return key[0] if key else lines[1].rstrip(".")


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the state of torch's global generators: of the CPU, and of `device` if that is another."""
    on_gpu = device.type == "cuda"
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state(device) if on_gpu else None}


def set_random_state(state: dict[str, Any], device: torch.device) -> bool:
    """Restore `random_state`; returns whether all that is drawn from for `device` was there."""
    torch.set_rng_state(state["cpu"].cpu())
    if device.type != "cuda":
        return True
    if state["cuda"] is None:
        return False
    torch.cuda.set_rng_state(state["cuda"].cpu(), device)
    return True
