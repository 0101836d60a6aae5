"""What several processes tell each other, through NCCL: by a single rank, since each needs a GPU of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from affsup_cli.distributed import collectives


@pytest.fixture
def rank_zero(device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process group of this process alone, in which collectives do take place."""
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    gpu = torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else None
    dist.init_process_group(backend, init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1, device_id=gpu)
    collectives.set_timeout(device, collectives.GPU_COLLECTIVE_TIMEOUT)
    monkeypatch.setattr(collectives, "world_size", lambda: 2)  # alone, nothing would be sent
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
@pytest.mark.usefixtures("rank_zero")
def test_sums_and_rows_keep_type_and_values(device: torch.device, kind: torch.dtype) -> None:
    values = torch.arange(6, device=device).to(kind).view(2, 3)
    assert torch.equal(collectives.all_reduce_sum(values), values)
    rows = collectives.all_gather_rows(values, [2])
    assert rows.dtype == kind
    assert torch.equal(rows, values)
    assert collectives.all_reduce_max(3.0, -1.0) == [3.0, -1.0]


@pytest.mark.usefixtures("rank_zero")
def test_objects_arrive_while_the_device_has_a_backend_of_its_own(device: torch.device) -> None:
    sent = {"rows": torch.arange(3), "name": str(device)}
    assert collectives.broadcast_from_rank0(lambda: sent) is sent
    for received in (collectives.all_gather_object(sent)[0], collectives.gather_object(sent)[0]):
        assert received["name"] == str(device)
        assert torch.equal(received["rows"], sent["rows"])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.usefixtures("rank_zero")
def test_a_model_of_any_layout_is_shared_and_its_gradients_summed(
    device: torch.device, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(device).to(memory_format=layout)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    same = collectives.ModelReplica(model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    model(torch.randn(2, 3, 8, 8, device=device)).square().sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    same.all_reduce_gradients(1.0)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient)
