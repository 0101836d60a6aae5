"""Several processes that train one model together: who they are, and what they tell each other.

They are started by `affsup train --gpus`, by torchrun or by anything else that sets RANK, WORLD_SIZE, LOCAL_RANK,
MASTER_ADDR and MASTER_PORT. Every function here does nothing, or answers for one process, where there is only one.
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

from affsup_cli.engine.devices import gpus, gpus_in_words
from affsup_cli.engine.stop import Stopped
from data_prep.errors import AffsupError, UsageError

T = TypeVar("T")

BUCKET_BYTES = 25 * 2**20  # of gradients summed at once
FINDING = datetime.timedelta(minutes=10)  # until all processes have started
PATIENCE = datetime.timedelta(hours=2)  # for a process that prepares data or evaluates while the others wait
_EFFECT = "what was saved last is in the run folder, and the same call with --resume goes on from there"


def rank() -> int:
    """Return which of the processes this is: 0 writes and speaks."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """Return how many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextlib.contextmanager
def joined(device: str) -> Iterator[None]:
    """Be one of the processes that the environment speaks of; on CUDA each with the GPU of its LOCAL_RANK.

    The first process that fails says why; the others, which then miss it, leave without a word.

    Args:
        device: the recipe's `run.device`: cpu, or auto or cuda for a GPU each.

    Raises:
        UsageError: `device` names one GPU, there are fewer GPUs than processes, or the environment is not as torchrun
            sets it.
        AffsupError: the processes do not find each other, or another one has ended.
    """
    processes, this = _number("WORLD_SIZE", 1), _number("RANK", 0)
    if processes == 1:
        yield
        return
    if this >= processes:
        raise UsageError(
            f"RANK = {this} and WORLD_SIZE = {processes} in the environment: expected a RANK below WORLD_SIZE, as "
            "torchrun sets them"
        )
    with _finding_each_other():
        try:
            store, *_ = next(iter(rendezvous("env://", timeout=FINDING)))
        except ValueError as error:
            raise UsageError(
                f"WORLD_SIZE is set as for several processes, but {error}: use --gpus or torchrun, or unset it"
            ) from error
    store.set_timeout(PATIENCE)
    try:
        backend = "cpu:gloo,cuda:nccl" if _take_gpu(device) else "gloo"
        with _finding_each_other():
            dist.init_process_group(backend, store=store, rank=this, world_size=processes, timeout=PATIENCE)
        yield
    except AffsupError as error:
        if isinstance(error, Stopped) and dist.is_initialized():  # all have met to stop: nobody is missing
            dist.destroy_process_group()
        if not _first_to_fail(store):
            raise SystemExit(error.exit_code) from error
        raise
    except KeyboardInterrupt as error:
        if this:
            raise SystemExit(1) from error
        raise
    else:  # after a failure it might wait for a process that is gone
        dist.destroy_process_group()


def _take_gpu(device: str) -> bool:
    if device == "cpu" or (device == "auto" and not gpus()):
        return False
    if device not in ("auto", "cuda"):
        raise UsageError(f"run.device = '{device}': each of several processes takes a GPU of its own; expected cuda")
    local = _number("LOCAL_RANK", 0)
    if local >= gpus():
        raise UsageError(f"process {local + 1} of this machine has no GPU: it has {gpus_in_words()}")
    torch.cuda.set_device(local)
    return True


def _number(variable: str, otherwise: int) -> int:
    text = os.environ.get(variable, str(otherwise))
    if not text.isdecimal():
        raise UsageError(f"{variable} = {text!r} in the environment: expected a number, as torchrun sets it")
    return int(text)


@contextlib.contextmanager
def _finding_each_other() -> Iterator[None]:
    """Say where the processes were to meet, if they did not; meanwhile Ctrl-C and SIGTERM end this one at once."""
    # Python's own handlers would not run before torch has stopped waiting.
    previous = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except RuntimeError as error:
        place = ":".join(os.environ[variable] for variable in ("MASTER_ADDR", "MASTER_PORT"))
        raise AffsupError(f"the processes cannot find each other at {place}: {_first_line(error)}") from error
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _first_to_fail(store: Any) -> bool:
    try:
        return bool(store.add("failures", 1) == 1)
    except RuntimeError:  # it went with the process that kept it
        return True


@contextlib.contextmanager
def _others_needed() -> Iterator[None]:
    """Say in words what torch says of a process that is gone."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except dist.DistBackendError as error:  # NCCL says the cause last
        said = " ".join(str(error).split())
        raise AffsupError(
            f"the processes cannot talk to each other: {said}. If another process of this run has ended: {_EFFECT}"
        ) from error
    except RuntimeError as error:
        reason = _first_line(error).partition(". ")[0]  # gloo's line goes on with advice
        raise AffsupError(
            f"another process of this run has ended, or cannot be reached ({reason}): {_EFFECT}"
        ) from error


def _first_line(error: RuntimeError) -> str:
    return str(error).partition("\n")[0]


def total(values: Tensor) -> Tensor:
    """Return the sum over processes, on each the same bits."""
    if count() == 1:
        return values
    summed = values.clone()
    with _others_needed():
        dist.all_reduce(summed)
    return summed


def highest(*values: float) -> list[float]:
    """Return the largest of each number over processes."""
    if count() == 1:
        return list(values)
    largest = torch.tensor(values, dtype=torch.float64)  # on the CPU, where gloo takes it without waiting for a GPU
    with _others_needed():
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return largest.tolist()


def gathered(value: T) -> list[T]:
    """Return what each process gave, in their order, on all of them. Anything that pickle takes, on the CPU."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    with _others_needed():
        dist.all_gather_object(values, value)
    return values


def collected(value: T) -> list[T]:
    """Return what each process gave, in their order, on the first one; nothing on the others."""
    if count() == 1:
        return [value]
    values: list[Any] | None = None if rank() else [None] * count()
    with _others_needed():
        dist.gather_object(value, values)
    return values or []


def first_decides(decide: Callable[[], T]) -> T:
    """Return what `decide` returns on the first process, where alone it is called, on all of them."""
    answer = [None if rank() else decide()]
    if count() > 1:
        with _others_needed():
            dist.broadcast_object_list(answer)
    return cast(T, answer[0])


def rows_of_all(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the rows of all processes, `[sum(sizes), ...]`, in their order.

    Every process is to compute the same of them: each then differentiates that for its own rows alone, and the sum of
    all processes' gradients is that of one process with all rows.

    Args:
        rows: this process's, `[sizes[rank], ...]`.
        sizes: how many each process has.
    """
    if count() == 1:
        return rows
    gathered_rows: Tensor = _RowsOfAll.apply(rows, sizes)
    return gathered_rows


class _RowsOfAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        first = sum(sizes[: rank()])
        ctx.own = slice(first, first + len(rows))
        most = max(sizes)
        padded = rows.new_zeros(most, *rows.shape[1:])
        padded[: len(rows)] = rows
        everyones = [torch.empty_like(padded) for _ in sizes]
        with _others_needed():
            dist.all_gather(everyones, padded)
        return torch.cat([part[:size] for part, size in zip(everyones, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0][ctx.own], None


class SameModel:
    """Keeps a model the same on all processes: its start, and what each step makes of it.

    Args:
        model: on the device it is trained on; the first process's becomes that of all.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._norms = [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
        share_model(model)

    def sum_gradients(self, share: float) -> None:
        """Sum the gradients over processes, and average the running statistics of batch norms in training.

        Args:
            share: this process's part of the step's images, 0..1; what its statistics count.
        """
        if count() == 1:
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
            buffer.mul_(share)
        buckets = list(_buckets([*gradients, *statistics]))
        with torch.no_grad():
            flat = [torch.cat([value.reshape(-1) for value in bucket]) for bucket in buckets]
            with _others_needed():
                for work in [dist.all_reduce(values, async_op=True) for values in flat]:
                    work.wait()
            for values, bucket in zip(flat, buckets, strict=True):
                parts = torch.split(values, [value.numel() for value in bucket])
                for value, part in zip(bucket, parts, strict=True):
                    value.copy_(part.view_as(value))


def share_model(model: nn.Module) -> None:
    """Give all processes the first one's weights."""
    if count() == 1:
        return
    with _others_needed(), torch.no_grad():
        for value in model.state_dict().values():
            dense = value.contiguous()
            dist.broadcast(dense, 0)
            value.copy_(dense)


def _buckets(values: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Divide tensors, in their order, into parts of one type that are summed at once."""
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
