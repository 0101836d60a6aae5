"""NVIDIA's Multi-Process Service (MPS): with it, kernels of several processes run at the same time on one GPU."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from affsup_cli.sweeps.slots import Slot

CONTROL = "nvidia-cuda-mps-control"
PIPE_DIRECTORY = "CUDA_MPS_PIPE_DIRECTORY"
"""Set where a daemon runs already, such as one that a cluster's administrator started."""
TIMEOUT_SECONDS = 60.0


@contextlib.contextmanager
def mps_on_shared_gpus(slots: Sequence[Slot], report: Callable[[str], None]) -> Iterator[list[Slot]]:
    """Run an MPS daemon while slots share a GPU, and stop it at the end, also after an exception.

    The processes are time-sliced without `nvidia-cuda-mps-control` on the PATH, if the daemon does not start, and if a
    process cannot use a GPU through it, as in some containers.

    Args:
        slots: where the processes of a sweep will run.
        report: is given one line that says whether MPS is used; not called where no slots share a GPU.

    Yields:
        The slots, whose environment connects a process to the daemon if it runs.
    """
    shared = {device for device, count in Counter(slot.device for slot in slots).items() if count > 1}
    if not any(device.startswith("cuda") for device in shared):
        yield list(slots)
        return
    if PIPE_DIRECTORY in os.environ:
        report(f"the processes on a GPU share it through the MPS daemon of {PIPE_DIRECTORY}")
        yield list(slots)
        return
    if shutil.which(CONTROL) is None:
        report(f"the processes on a GPU take turns: {CONTROL} is not on the PATH")
        yield list(slots)
        return
    with tempfile.TemporaryDirectory(prefix="affsup-mps-", ignore_cleanup_errors=True) as folder:
        variables = {PIPE_DIRECTORY: f"{folder}/pipe", "CUDA_MPS_LOG_DIRECTORY": f"{folder}/log"}
        for path in variables.values():
            Path(path).mkdir()
        failure = _control(variables, "-d")
        if failure:
            report(f"the processes on a GPU take turns: NVIDIA's MPS did not start ({failure})")
            yield list(slots)
            return
        connected = [replace(slot, environment={**slot.environment, **variables, **_client(slot)}) for slot in slots]
        with contextlib.ExitStack() as at_end:
            at_end.callback(_quit, variables, report)
            failure = why_no_gpu(next(slot for slot in connected if slot.device.startswith("cuda")))
            if failure:
                report(f"the processes on a GPU take turns: through NVIDIA's MPS none can use it ({failure})")
                at_end.close()  # its server may hold the GPU
                yield list(slots)
            else:
                report("the processes on a GPU share it through NVIDIA's MPS")
                yield connected


def _quit(variables: dict[str, str], report: Callable[[str], None]) -> None:
    failure = _control(variables, commands="quit\n")
    if failure:
        report(f"NVIDIA's MPS did not stop ({failure})")


def _client(slot: Slot) -> dict[str, str]:
    """Return the variable that names the GPU of a slot to a client of MPS.

    The daemon applies the CUDA_VISIBLE_DEVICES of this process, and numbers what remains from 0 for its clients.
    """
    return {"CUDA_VISIBLE_DEVICES": slot.device.removeprefix("cuda:")} if slot.device.startswith("cuda:") else {}


def why_no_gpu(slot: Slot) -> str:
    """Return why a process in `slot` cannot use its GPU, empty if it can."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", "import torch; torch.ones(1, device='cuda').item()"],
            env={**os.environ, **slot.environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.returncode == 0 else _error_line(done.stderr) or f"exit code {done.returncode}"


def _error_line(traceback: str) -> str:
    """Return the line that names the exception; errors of CUDA have advice below it."""
    return next((line for line in reversed(traceback.splitlines()) if re.match(r"\S*(Error|Exception)\b", line)), "")


def _control(variables: dict[str, str], *arguments: str, commands: str = "") -> str:
    """Call nvidia-cuda-mps-control; returns why it failed, empty if it did not."""
    try:
        # The daemon keeps its standard output open: into a file, so that nothing waits for its end.
        with tempfile.TemporaryFile("w+") as output:
            done = subprocess.run(  # noqa: S603
                [CONTROL, *arguments],
                env={**os.environ, **variables},
                input=commands,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                timeout=TIMEOUT_SECONDS,
                start_new_session=True,
            )
            output.seek(0)
            lines = output.read().strip().splitlines()
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.returncode == 0 else (lines[-1] if lines else f"exit code {done.returncode}")
