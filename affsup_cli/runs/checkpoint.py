"""Checkpoints: written atomically and in the background, checked when read, and read without executing code in them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from affsup_cli.runs.digest import DigestError, add_archive_digest, check_archive
from affsup_cli.runs.folder import RESUME, atomic_file
from affsup_cli.runtime.threads import thread_pool
from data_prep.errors import AffsupError, unreadable

NEW_RUN = "move the run's folder away and run the command again to start a new run"
"""What to do when the weights of a run are lost."""

_ONE_KEY = re.compile(r'(?:Missing|Unexpected) key\(s\) in state_dict: "[^"]*"')


def save_checkpoint(path: Path, state: dict[str, Any], previous: Path | None = None) -> None:
    """Write tensors and plain values to `path` atomically, with a digest.

    After a kill or on a full disk the file that was there before remains.

    Args:
        path: the file to write.
        state: the content.
        previous: receives the file that was at `path` before, in the same folder.

    Raises:
        AffsupError: the disk is full.
    """
    with atomic_file(path, RESUME, previous) as temporary:
        with temporary.open("wb") as file:  # torch's own file reports a full disk without an error number
            torch.save(state, file)
        add_archive_digest(temporary)


class BackgroundSaver:
    """Saves copies of checkpoints in a background thread, one after the other in the order of the calls.

    A context manager that waits at its end until all is written. After a write that failed, no later one is done.

    Args:
        device: the device of the tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._thread = thread_pool(1, "checkpoint")
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

    def save(
        self,
        path: Path,
        state: dict[str, Any],
        check: Callable[[dict[str, Any]], None] = lambda _: None,
        previous: Path | None = None,
    ) -> None:
        """Copy `state` on its device, and save the copy to `path` in the background unless `check` of it raises."""
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
                save_checkpoint(path, copied, previous)

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


def load_checkpoint(path: Path, device: torch.device, cure: str = NEW_RUN) -> dict[str, Any]:
    """Read a file of `save_checkpoint`, its tensors onto `device`; on a CPU they are memory-mapped.

    Args:
        path: the file.
        device: the device of the tensors.
        cure: what the user should do about a damaged file.

    Raises:
        AffsupError: the file is missing, damaged or not a checkpoint.
    """
    try:
        check_archive(path)
        state = torch.load(path, map_location=device, weights_only=True, mmap=True)
    except FileNotFoundError:
        raise AffsupError(f"{path} is missing: the run has finished no epoch yet; --resume continues it") from None
    except OSError as error:
        raise AffsupError(unreadable(path, error)) from error
    except DigestError as error:
        raise AffsupError(f"{path} is damaged ({error}): {cure}") from error
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # torch raises errors of many kinds: zip, pickle, key and runtime errors
        raise AffsupError(f"{path} is not a readable checkpoint ({type(error).__name__}): {cure}") from error
    if not isinstance(state, dict):
        raise AffsupError(f"{path} holds a {type(state).__name__}, expected a checkpoint: {cure}")
    return state


def load_weights(path: Path, device: torch.device, cure: str = NEW_RUN) -> dict[str, Tensor]:
    """Read the state dict of the model in a checkpoint onto `device`.

    Args:
        path: the file.
        device: the device of the tensors.
        cure: what the user should do about a damaged file.

    Raises:
        AffsupError: see `load_checkpoint`; or there is no model, or `check_weights` refuses it.
    """
    weights = load_checkpoint(path, device, cure).get("model")
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise AffsupError(f"{path} holds no model: {cure}")
    check_weights(path, weights, cure)
    return weights


def check_weights(path: Path, weights: Mapping[str, Tensor], cure: str = NEW_RUN) -> None:
    """Check that all weights are dense numbers.

    Args:
        path: the file that they were read from, for the message.
        weights: a state dict.
        cure: what the user should do.

    Raises:
        AffsupError: a tensor is sparse, has no data, or holds NaN or infinity.
    """
    for name, value in weights.items():
        if value.is_meta or value.layout != torch.strided or value.is_quantized:
            kind = "has no data (device meta)" if value.is_meta else f"is {value.layout}".replace("torch.", "")
            raise AffsupError(f"{path}: the weights '{name}' {kind}, expected a dense tensor: {cure}")
        if not bool(value.isfinite().all()):
            raise AffsupError(f"{path}: the weights '{name}' are not finite, as of a run that diverged: {cure}")


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
