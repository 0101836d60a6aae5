"""Checkpoints: written atomically and in the background, read without executing any code in them."""

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

from affsup_cli.runs.folder import RESUME, atomic_file
from data_prep.errors import AffsupError

NEW_RUN = "begin a new run with another --name"
"""What to do when a file of a run is lost."""

_ONE_KEY = re.compile(r'(?:Missing|Unexpected) key\(s\) in state_dict: "[^"]*"')


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values to `path` atomically: after a kill or on a full disk the previous file remains.

    Raises:
        AffsupError: the disk is full.
    """
    with atomic_file(path, RESUME) as temporary:
        torch.save(state, temporary)


class BackgroundSaver:
    """Saves copies of checkpoints in a background thread, one after the other in the order of the calls.

    A context manager that waits at its end until all is written. After a write that failed, no later one is done.

    Args:
        device: the device of the tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writes: list[Future[None]] = []
        # PyTorch reuses streams from one pool per priority: of another priority, this is not a stream that trains.
        on_gpu = device.type == "cuda"
        self._stream = torch.cuda.Stream(device, priority=-1) if on_gpu else None  # type: ignore[no-untyped-call]

    def __enter__(self) -> BackgroundSaver:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        self._thread.shutdown()
        if kind is None:
            self.wait()

    def save(self, path: Path, state: dict[str, Any], check: Callable[[dict[str, Any]], None] = lambda _: None) -> None:
        """Copy `state` on its device, and write the copy to `path` in the background unless `check` of it raises."""
        copied = clone_state(state)
        copy_made = torch.cuda.current_stream(self._device).record_event() if self._stream else None
        before = self._writes[-1] if self._writes else None

        def write() -> None:
            if before:
                before.result()
            with torch.cuda.stream(self._stream):  # the kernels of training do not wait for these
                if self._stream and copy_made:
                    self._stream.wait_event(copy_made)
                check(copied)
                save_checkpoint(path, copied)

        self._writes.append(self._thread.submit(write))

    def wait(self) -> None:
        """Wait until everything is on the disk.

        Raises:
            AffsupError: a write failed (see `save_checkpoint`), or `check` raised it.
        """
        for written in self._writes:
            written.result()
        del self._writes[:-1]


def clone_state(state: Any) -> Any:
    """Return a copy of nested dictionaries, lists and tuples, with each tensor copied on its device."""
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, dict):
        return {key: clone_state(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(clone_state(value) for value in state)
    return state


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a file of `save_checkpoint`, its tensors onto `device`; on a CPU they are memory-mapped.

    Raises:
        AffsupError: the file is missing, damaged or not a checkpoint.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True, mmap=True)
    except FileNotFoundError:
        raise AffsupError(f"{path} is missing: the run has finished no epoch yet; --resume continues it") from None
    except Exception as error:  # torch raises errors of many kinds: zip, pickle, key and runtime errors
        raise AffsupError(f"{path} is not a readable checkpoint ({type(error).__name__}): {NEW_RUN}") from error
    if not isinstance(state, dict):
        raise AffsupError(f"{path} holds a {type(state).__name__}, expected a checkpoint: {NEW_RUN}")
    return state


@contextlib.contextmanager
def explain_mismatch(path: Path, cure: str = NEW_RUN) -> Iterator[None]:
    """Turn an error in using the content of a checkpoint into one message about `path`.

    Args:
        path: the file.
        cure: what the user should do.

    Raises:
        AffsupError: an entry is missing or has another shape.
    """
    try:
        yield
    except (KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise AffsupError(
            f"{path} is not of this run ({type(error).__name__}: {_first_fault(error)}): {cure}"
        ) from error


def _first_fault(error: Exception) -> str:
    """Return the first line of an error; of torch's list of mismatched keys the first one."""
    lines = [line.strip() for line in str(error).splitlines()] or [""]
    if len(lines) == 1 or not lines[0].endswith(":"):
        return lines[0]
    key = _ONE_KEY.match(lines[1])
    return key[0] if key else lines[1].rstrip(".")


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the state of torch's global random generators: of the CPU, and of `device` if it is a GPU."""
    on_gpu = device.type == "cuda"
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state(device) if on_gpu else None}


def set_random_state(state: dict[str, Any], device: torch.device) -> bool:
    """Restore `random_state`; returns whether it had the state of the generator of `device`."""
    torch.set_rng_state(state["cpu"].cpu())
    if device.type != "cuda":
        return True
    if state["cuda"] is None:
        return False
    torch.cuda.set_rng_state(state["cuda"].cpu(), device)
    return True
