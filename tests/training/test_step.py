from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from affsup_cli.affinity import tiles
from affsup_cli.recipe import load_recipe
from affsup_cli.runtime.devices import configure_determinism
from affsup_cli.tasks import build_task
from affsup_cli.tasks.minibatch import MinibatchTask
from affsup_cli.training import cuda_graph, trainer
from affsup_cli.training import task as engine_task
from affsup_cli.training.cuda_graph import Capture, CapturedCalls
from affsup_cli.training.step import TrainingStep
from affsup_cli.training.trainer import Trainer
from data_prep.errors import AffsupError
from tests.training.cpu_capture import NotCapturableError, Recording, capture_on_cpu
from tests.training.fake_cuda import CUDA, HostTouchedError, OnDevice, fake_cuda
from tests.training.test_trainer import assert_same_end, folder, recipe
from tests.training.toy import ToyTask

FORMS = ("none", "focal", "log", "l2", "smooth_l1", "bce")
OPTIONS = itertools.cycle(itertools.product(("matrix", "row"), ("float32", "bf16"), ("exclude", "keep")))
GRAPHS = [(form, *next(OPTIONS)) for _, form in itertools.product(range(2), FORMS)]


def minibatch(digits: Path, **fields: Any) -> MinibatchTask:
    overrides = {"run.device": "cpu", "train.batch_size": 16, "train.milestones": [1]}
    task = build_task(load_recipe("minibatch", overrides | fields), digits)
    assert isinstance(task, MinibatchTask)
    return task


def some_steps(task: MinibatchTask, capture: Capture[Any] | None) -> tuple[dict[str, float], list[int]]:
    """Steps of epochs with different learning rates, the short last one among them; where they are, counted here."""
    if capture is None:
        task.static_steps = 0
    steps = TrainingStep(task, task._recipe.train, capture)
    sizes = []
    for epoch in (0, 1):
        task.begin_epoch(epoch)
        task.model.train()
        steps.begin(epoch, 0)
        sizes += [steps.run(step, measure_gradient_share=step > 1) for step in range(4)]
    task.begin_epoch(2)
    steps.begin(2, task.steps - 2)
    sizes += [steps.run(step) for step in (task.steps - 2, task.steps - 1)]
    steps.loss_check.check()
    return steps.averages.read(), sizes


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Capture work at its second call."""
    monkeypatch.setattr(cuda_graph, "WARM_UP_CALLS", 1)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(("form", "softmax", "precision", "diagonal"), GRAPHS)
def test_a_repeated_step_is_the_step_itself(
    digits: Path, form: str, softmax: str, precision: str, diagonal: str
) -> None:
    graph = {"affinity.loss": form, "affinity.softmax": softmax, "affinity.diagonal": diagonal}
    tasks = [minibatch(digits, **graph, **{"train.precision": precision, "train.clip_norm": 5.0}) for _ in range(2)]
    (plain, sizes), (repeated, repeated_sizes) = some_steps(tasks[0], None), some_steps(tasks[1], capture_on_cpu)
    assert repeated == plain
    assert repeated_sizes == sizes == [16] * 9 + [tasks[0]._epochs.size(tasks[0].steps - 1)]
    for one, other in zip(tasks[0].model.state_dict().values(), tasks[1].model.state_dict().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("before", [True, False])
def test_momentum_goes_on_in_another_layout_of_the_weights(digits: Path, before: bool) -> None:
    there, other = (minibatch(digits, **{"run.channels_last": layout}) for layout in (before, not before))
    first, second = (TrainingStep(task, task._recipe.train) for task in (there, other))
    there.begin_epoch(0)
    first.begin(0, 0)
    for step in range(2):
        first.run(step)
    other.model.load_state_dict(there.model.state_dict())
    second.load_state_dict(first.state_dict())
    other.begin_epoch(0)
    second.begin(0, 2)
    for steps in (first, second):
        steps.run(2)
    for mine, expected in zip(other.model.parameters(), there.model.parameters(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("fields", [{}, {"train.precision": "bf16", "affinity.features": "logits"}])
def test_a_repeated_evaluation_is_the_evaluation_itself(digits: Path, fields: dict[str, Any]) -> None:
    plain, repeated = (minibatch(digits, **fields) for _ in range(2))
    captured_work = []

    def capturing(work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        captured_work.append(work)
        return capture_on_cpu(work)

    for task, capture in ((plain, None), (repeated, capturing)):
        some_steps(task, capture)
    before = len(captured_work)
    for split in ("val", "test", "val"):
        for task in (plain, repeated):
            with torch.no_grad():
                task.model.head.weight.mul_(0.5).add_(torch.arange(10).unsqueeze(1) / 1000)
        assert repeated.evaluate(split) == plain.evaluate(split)
    assert len(captured_work) - before == 2


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("fields", [{"affinity.features": "logits", "affinity.normalize": True}, {"train.momentum": 0}])
def test_other_fields_leave_it_repeatable(digits: Path, fields: dict[str, Any]) -> None:
    tasks = [minibatch(digits, **fields) for _ in range(2)]
    assert some_steps(tasks[0], None) == some_steps(tasks[1], capture_on_cpu)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("softmax", ["matrix", "row"])
def test_a_graph_in_tiles_is_repeatable(digits: Path, softmax: str) -> None:
    tasks = [minibatch(digits, **{"affinity.softmax": softmax}) for _ in range(2)]
    for task in tasks:
        task._affinity.tile = 8
    assert some_steps(tasks[0], None) == some_steps(tasks[1], capture_on_cpu)


@pytest.mark.usefixtures("soon")
def test_a_loss_that_is_not_finite_is_found_in_the_repetition_that_it_was_in(digits: Path) -> None:
    task = minibatch(digits)
    steps = TrainingStep(task, task._recipe.train, capture_on_cpu)
    task.begin_epoch(0)
    steps.begin(0, 0)
    for step in range(7):
        if step == 4:
            task.model.head.bias.data.fill_(float("nan"))
        steps.run(step)
    with pytest.raises(AffsupError, match="epoch 1, step 5: loss = nan"):
        steps.loss_check.check()


@pytest.mark.usefixtures("soon")
def test_a_run_of_repeated_steps_ends_as_any_other(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = recipe(train__epochs=2, train__batch_size=160, train__milestones=[1], run__device="cpu")
    plain, repeated = folder(tmp_path / "plain"), folder(tmp_path / "replayed")
    Trainer(build_task(wanted, digits), wanted, plain).run()
    taken = []
    monkeypatch.setattr(trainer, "graph_capture", lambda *_: lambda work: (taken.append(1), capture_on_cpu(work))[1])
    Trainer(build_task(wanted, digits), wanted, repeated).run()
    assert len(taken) == 3  # a step with and without the gradient share, an evaluation
    assert_same_end(plain, repeated)


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x.sum().item(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x + torch.tensor([1.0, 2.0]),
        lambda x: torch.nn.functional.dropout(x),
        lambda x: torch.rand_like(x),
        lambda x: x.normal_(),
        lambda x: x.index_put_((x > 0,), x.new_zeros(())),
    ],
)
def test_what_no_graph_can_hold_is_refused_here_too(work: Callable[[torch.Tensor], Any]) -> None:
    with pytest.raises(NotCapturableError), Recording():
        work(torch.ones(2))


@pytest.mark.parametrize(("form", "softmax", "precision", "diagonal"), GRAPHS[3:9])
def test_nothing_of_a_step_or_an_evaluation_on_cuda_is_on_the_host(
    digits: Path, monkeypatch: pytest.MonkeyPatch, form: str, softmax: str, precision: str, diagonal: str
) -> None:
    graph = {"affinity.loss": form, "affinity.softmax": softmax, "affinity.diagonal": diagonal}
    with fake_cuda(monkeypatch):
        task = minibatch(digits, **graph, **{"train.precision": precision, "train.clip_norm": 5.0})
        steps = TrainingStep(task, task._recipe.train)
        task.begin_epoch(0)
        steps.begin(0, 0)
        for warm_up in (0, 1):
            steps.run(warm_up, measure_gradient_share=True)
        with OnDevice():
            steps.run(2)
            steps.run(3, measure_gradient_share=True)
            task._evaluate_batch(task._evaluations["test"], 16)


def test_nothing_of_what_processes_make_of_a_step_on_cuda_is_on_the_host(
    digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_cuda(monkeypatch):
        task = minibatch(digits)
        task.begin_epoch(0)
        losses = task.losses(0)
        losses = dataclasses.replace(losses, global_batch_size=losses.size)
        monkeypatch.setattr(engine_task, "world_size", lambda: 2)
        monkeypatch.setattr(engine_task, "all_reduce_sum", lambda value: value)
        with OnDevice():
            whole, part = engine_task.all_reduce_losses(losses)
            part.total()
        assert whole.size == 16


@pytest.mark.parametrize("softmax", ["matrix", "row"])
def test_nothing_of_the_tiles_on_cuda_is_on_the_host(softmax: str) -> None:
    with FakeTensorMode(), torch.device(CUDA):
        queries, labels = torch.randn(40, 6), torch.zeros(40, dtype=torch.int64)
        weight = torch.ones(40)
        with OnDevice():
            if softmax == "matrix":
                tiles._matrix_pass._init_fn(queries, queries, True, "zero", labels, 8, True)
            else:
                _, packed, total = tiles._row_pass._init_fn(queries, queries, "zero", labels, 8)
                tiles._row_gradient._init_fn(weight, packed, total, queries, queries, "zero", labels, 8)


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x + torch.ones(2, device="cpu"),
        lambda x: x.new_tensor([1.0, 2.0]),
        lambda x: float(x.sum()),
    ],
)
def test_what_touches_the_host_is_refused(work: Callable[[torch.Tensor], Any]) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        there = torch.ones(2, device=CUDA)
        with pytest.raises((HostTouchedError, DataDependentOutputException)), OnDevice():
            work(there)


def test_work_is_captured_by_its_name_after_the_warm_up() -> None:
    heard: list[str] = []

    def note(work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        heard.append("captured")
        return lambda: heard.append("replayed"), work()

    repeated = CapturedCalls(note)
    for _ in range(cuda_graph.WARM_UP_CALLS + 2):
        assert repeated("a", lambda: heard.append("a") or 7) == 7
    assert heard == ["a"] * cuda_graph.WARM_UP_CALLS + ["captured", "a", "replayed", "replayed"]
    repeated("b", lambda: heard.append("b"))
    assert heard[-1] == "b"


def test_without_a_capture_every_call_is_eager() -> None:
    repeated = CapturedCalls(None)
    assert [repeated("a", lambda value=value: value) for value in range(9)] == list(range(9))


def test_a_task_that_does_not_promise_static_steps_is_never_captured() -> None:
    task = ToyTask()
    steps = TrainingStep(task, recipe().train, lambda _: pytest.fail("captured"))
    task.begin_epoch(0)
    steps.begin(0, 0)
    assert [steps.run(step) for step in [0, 1, 2, 3] * 2] == [8] * 8


def gpu_run(digits: Path, path: Path, **fields: Any) -> list[dict[str, Any]]:
    base = {"run.device": "cuda", "train.epochs": 2, "train.milestones": [1], "train.batch_size": 64}
    base["run.checkpoint_seconds"] = 0.001  # saving while steps are captured
    wanted = load_recipe("minibatch", base | fields)
    run = folder(path)
    configure_determinism(True)  # two runs that differ in the last bits are far apart after two epochs
    try:
        Trainer(build_task(wanted, digits), wanted, run).run()
    finally:
        configure_determinism(False)
    return run.metrics()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
@pytest.mark.parametrize(
    "fields",
    [
        *({"affinity.loss": form} for form in FORMS),
        {"affinity.softmax": "row", "affinity.diagonal": "keep"},
        {"train.precision": "bf16", "train.clip_norm": 5.0},
        {"train.compile": True},
    ],
)
def test_on_a_gpu_a_graph_is_captured_and_trains_as_plain_steps_do(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    plain = gpu_run(digits, tmp_path / "plain", **{"run.graph": "off"}, **fields)
    taken = []
    call = cuda_graph.CudaGraphCapture.__call__
    monkeypatch.setattr(
        cuda_graph.CudaGraphCapture, "__call__", lambda self, work: (taken.append(1), call(self, work))[1]
    )
    repeated = gpu_run(digits, tmp_path / "repeated", **fields)
    assert taken
    for mine, wanted in zip(repeated, plain, strict=True):
        assert mine.keys() == wanted.keys()
        for name in wanted.keys() - {"images_per_second", "seconds"}:
            assert mine[name] == pytest.approx(wanted[name], rel=1e-3, abs=1e-3), name
