"""Data-parallel training by several processes: the process group and its collectives.

The processes are started by `affsup train --gpus`, by torchrun or by anything else that sets RANK, WORLD_SIZE,
LOCAL_RANK, MASTER_ADDR and MASTER_PORT. With a single process every function here works without a process group.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from affsup_cli.affinity import gather
from affsup_cli.runtime.devices import describe_gpus, gpus
from affsup_cli.runtime.stop import Stopped
from data_prep.errors import AffsupError, UsageError

T = TypeVar("T")

BUCKET_BYTES = 25 * 2**20  # of gradients in one all-reduce
RENDEZVOUS_TIMEOUT = datetime.timedelta(minutes=10)  # until all processes have started
COLLECTIVE_TIMEOUT = datetime.timedelta(hours=2)  # others wait this long for one that prepares data or evaluates
GPU_COLLECTIVE_TIMEOUT = datetime.timedelta(minutes=10)  # within a step, where processes are seconds apart
_EFFECT = "the last checkpoint is in the run folder, and the same command with --resume continues from there"


def rank() -> int:
    """Return the rank of this process; rank 0 writes files and prints."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return gather.world_size()


@contextlib.contextmanager
def init_distributed(device: str) -> Iterator[None]:
    """Initialise the process group that the environment describes, and destroy it at the end.

    On CUDA each process has the GPU of its LOCAL_RANK. The first process that fails prints why; the others, which then
    lose the connection to it, exit without a message.

    Args:
        device: the recipe's `run.device`: cpu, or auto or cuda for a GPU each.

    Raises:
        UsageError: `device` names one GPU, there are fewer GPUs than processes, or the environment is not as torchrun
            sets it.
        AffsupError: the rendezvous failed, or another process has ended.
    """
    size, this = _environment_number("WORLD_SIZE", 1), _environment_number("RANK", 0)
    if size == 1:
        yield
        return
    if this >= size:
        raise UsageError(
            f"RANK = {this} and WORLD_SIZE = {size} in the environment: expected a RANK below WORLD_SIZE, as "
            "torchrun sets them"
        )
    with _start_errors("the processes cannot find each other at {address}"):
        try:
            store, *_ = next(iter(rendezvous("env://", timeout=RENDEZVOUS_TIMEOUT)))
        except ValueError as error:
            raise UsageError(
                f"WORLD_SIZE is set as for several processes, but {error}: use --gpus or torchrun, or unset it"
            ) from error
    store.set_timeout(COLLECTIVE_TIMEOUT)
    try:
        gpu = _set_gpu(device)
        with _start_errors("the processes at {address} cannot form a group"):
            dist.init_process_group(
                "gloo" if gpu is None else "cpu:gloo,cuda:nccl",
                store=store,
                rank=this,
                world_size=size,
                timeout=COLLECTIVE_TIMEOUT,
                device_id=gpu,
            )
        if gpu is not None:
            set_timeout(gpu, GPU_COLLECTIVE_TIMEOUT)
        yield
    except AffsupError as error:
        if isinstance(error, Stopped) and dist.is_initialized():  # all processes stop at the same step
            dist.destroy_process_group()
        if not _first_to_fail(store):
            raise SystemExit(error.exit_code) from error
        raise
    except KeyboardInterrupt as error:
        if this:
            raise SystemExit(1) from error
        raise
    else:  # after a failure this might wait for a process that has ended
        dist.destroy_process_group()


def set_timeout(device: torch.device, timeout: datetime.timedelta) -> None:
    """Let collectives on `device` fail after `timeout` without an answer; those on other devices keep theirs.

    NCCL does not notice that the process of another machine is lost.
    """
    cast(dist.ProcessGroup, dist.group.WORLD)._get_backend(device)._set_default_timeout(timeout)


def _set_gpu(device: str) -> torch.device | None:
    """Select the GPU of this process and return it; None on the CPU."""
    if device == "cpu" or (device == "auto" and not gpus()):
        return None
    if device not in ("auto", "cuda"):
        raise UsageError(f"run.device = '{device}': each of several processes takes a GPU of its own; expected cuda")
    local = _environment_number("LOCAL_RANK", 0)
    if local >= gpus():
        raise UsageError(f"process {local + 1} of this machine has no GPU: it has {describe_gpus()}")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def _environment_number(variable: str, default: int) -> int:
    text = os.environ.get(variable, str(default))
    if not text.isdecimal():
        raise UsageError(f"{variable} = {text!r} in the environment: expected a number, as torchrun sets it")
    return int(text)


@contextlib.contextmanager
def _start_errors(problem: str) -> Iterator[None]:
    """Turn a failed start into a message, `problem` with its address; Ctrl-C and SIGTERM end this process at once."""
    # Python's signal handlers do not run while torch waits in C++.
    previous = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except RuntimeError as error:
        address = ":".join(os.environ[variable] for variable in ("MASTER_ADDR", "MASTER_PORT"))
        raise AffsupError(f"{problem.format(address=address)}: {_first_line(error)}") from error
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _first_to_fail(store: Any) -> bool:
    try:
        return bool(store.add("failures", 1) == 1)
    except RuntimeError:  # the store ended with the process that hosted it
        return True


@contextlib.contextmanager
def _collective_errors() -> Iterator[None]:
    """Turn torch's errors of a collective into a message for the user."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except dist.DistBackendError as error:  # NCCL puts the cause last
        said = " ".join(str(error).split())
        raise AffsupError(
            f"communication between the processes failed: {said}. If another process of this run has ended: {_EFFECT}"
        ) from error
    except RuntimeError as error:
        reason = _first_line(error).partition(". ")[0]  # gloo appends advice
        raise AffsupError(
            f"another process of this run has ended, or cannot be reached ({reason}): {_EFFECT}"
        ) from error


def _first_line(error: RuntimeError) -> str:
    return str(error).partition("\n")[0]


def all_reduce_sum(values: Tensor) -> Tensor:
    """Return the sum over processes, bit-identical on all of them."""
    if world_size() == 1:
        return values
    summed = values.clone()
    with _collective_errors():
        dist.all_reduce(summed)
    return summed


def all_reduce_max(*values: float) -> list[float]:
    """Return the maximum of each number over processes."""
    if world_size() == 1:
        return list(values)
    largest = torch.tensor(values, dtype=torch.float64)  # on the CPU, where gloo takes it without waiting for a GPU
    with _collective_errors():
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return largest.tolist()


def all_gather_object(value: T) -> list[T]:
    """Return the `value` of each process, by rank, on all of them; it must be picklable and on the CPU."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    with _collective_errors():
        dist.all_gather_object(values, value)
    return values


def gather_object(value: T) -> list[T]:
    """Return the `value` of each process, by rank, on rank 0; an empty list on the others."""
    if world_size() == 1:
        return [value]
    values: list[Any] | None = None if rank() else [None] * world_size()
    with _collective_errors():
        dist.gather_object(value, values)
    return values or []


def broadcast_from_rank0(function: Callable[[], T]) -> T:
    """Call `function` on rank 0 alone; return its result on all processes."""
    answer = [None if rank() else function()]
    if world_size() > 1:
        with _collective_errors():
            dist.broadcast_object_list(answer)
    return cast(T, answer[0])


def all_gather_rows(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the rows of all processes, `[sum(sizes), ...]`, by rank.

    Every process must compute the same function of them. The backward pass gives each process the gradient of its own
    rows alone, so that the sum of the gradients over processes is that of one process with all rows.

    Args:
        rows: of this process, `[sizes[rank], ...]`.
        sizes: the number of rows of each process.
    """
    if world_size() == 1:
        return rows
    with _collective_errors():
        return gather.gather_rows(rows, sizes)


class ModelReplica:
    """A model that is kept identical on all processes: broadcast at the start, with summed gradients at each step.

    Args:
        model: on the device that it is trained on; all processes receive the weights of rank 0.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._norms = [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
        broadcast_model(model)

    def all_reduce_gradients(self, weight: float) -> None:
        """Sum the gradients over processes, and average the running statistics of batch norms in training mode.

        Args:
            weight: of this process's statistics in the average: its fraction of the step's images, 0..1.
        """
        if world_size() == 1:
            return
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        statistics = [
            buffer
            for part in self._norms
            if part.training
            for buffer in (part.running_mean, part.running_var)
            if buffer is not None
        ]
        for buffer in statistics:
            buffer.mul_(weight)
        buckets = list(_buckets([*gradients, *statistics]))
        with torch.no_grad():
            flat = [torch.cat([value.reshape(-1) for value in bucket]) for bucket in buckets]
            with _collective_errors():
                for work in [dist.all_reduce(values, async_op=True) for values in flat]:
                    work.wait()
            for values, bucket in zip(flat, buckets, strict=True):
                parts = torch.split(values, [value.numel() for value in bucket])
                for value, part in zip(bucket, parts, strict=True):
                    value.copy_(part.view_as(value))


def broadcast_model(model: nn.Module) -> None:
    """Copy the weights and buffers of rank 0 to all processes."""
    if world_size() == 1:
        return
    with _collective_errors(), torch.no_grad():
        for value in model.state_dict().values():
            dense = value.contiguous()
            dist.broadcast(dense, 0)
            value.copy_(dense)


def _buckets(values: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Divide tensors, in their order, into buckets of one type for an all-reduce each."""
    bucket: list[Tensor] = []
    size = 0
    for value in values:
        if bucket and (size >= BUCKET_BYTES or value.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(value)
        size += value.numel() * value.element_size()
    if bucket:
        yield bucket
