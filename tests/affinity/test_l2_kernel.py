"""The Triton kernels of L_G against the closed form in float64: in Triton's interpreter, and on a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from affsup_cli.affinity import BatchAffinityLoss, batch, closed_form
from affsup_cli.affinity.triton_support import why_not_triton


@pytest.fixture(scope="module")
def interpreted() -> list[dict[str, Any]]:
    pytest.importorskip("triton", reason="Triton is not installed")
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "tests.affinity.interpreted_kernel"]
    run = subprocess.run(
        command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_the_kernels_compute_the_closed_form(interpreted: list[dict[str, Any]]) -> None:
    compared = [case for case in interpreted if "loss" in case]
    assert len(compared) == 64 + 16 + 7
    # About a hundred times the rounding of float32: affinities of size 50 add to what their exponentials lose.
    bad = [case for case in compared if not max(case["loss"], case["mass"], case["gradient"]) < 2e-5]
    assert not bad, bad


def test_the_second_derivative_is_that_of_the_operators(interpreted: list[dict[str, Any]]) -> None:
    (case,) = [case for case in interpreted if case.get("case") == "second derivative"]
    assert case["gradient"] < 1e-4


def test_nan_in_a_feature_is_nan_in_the_loss(interpreted: list[dict[str, Any]]) -> None:
    (case,) = [case for case in interpreted if case.get("case") == "NaN"]
    assert case["not_finite"]


@pytest.mark.parametrize("softmax", ["matrix", "row"])
@pytest.mark.parametrize("nodes", [2, 100, 128, 256])
def test_loss_mass_and_gradient_are_the_same_on_any_device(device: torch.device, nodes: int, softmax: Any) -> None:
    generator = torch.Generator().manual_seed(nodes)
    features, labels = torch.randn(nodes, 64, generator=generator) / 4, torch.randint(10, (nodes,), generator=generator)
    labels[0] = labels[1]
    leaf = features.to(device).requires_grad_()
    if device.type == "cuda" and (reason := why_not_triton(device)):
        pytest.skip(f"no Triton kernels here: {reason}")
    assert batch.kernel_takes(leaf, "focal") == (device.type == "cuda")
    exact_leaf = features.double().requires_grad_()
    loss = BatchAffinityLoss(softmax=softmax)
    found, exact = loss.loss_and_mass(leaf, labels.to(device)), loss.loss_and_mass(exact_leaf, labels)
    torch.testing.assert_close(found.loss.double().cpu(), exact.loss, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.mass.double().cpu(), exact.mass, rtol=1e-4, atol=1e-6)
    (gradient,) = torch.autograd.grad(found.loss, leaf)
    (exact_gradient,) = torch.autograd.grad(exact.loss, exact_leaf)
    difference = (gradient.double().cpu() - exact_gradient).abs().max()
    assert difference <= 1e-4 * exact_gradient.abs().max()


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="this machine has no second CUDA device")
def test_the_kernels_run_on_the_gpu_of_their_features() -> None:
    found = []
    for device in ("cuda:0", "cuda:1"):
        features = torch.randn(20, 8, generator=torch.Generator().manual_seed(0)).to(device)
        found.append(BatchAffinityLoss()(features, torch.arange(20, device=device) % 3).cpu())
    assert torch.cuda.current_device() == 0
    torch.testing.assert_close(*found)


def test_without_grad_mode_no_gradient_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a gradient that nothing reads")

    monkeypatch.setattr(closed_form, "_l2_gradient", refuse)
    features, labels = torch.randn(6, 3, requires_grad=True), torch.arange(6) % 2
    with torch.no_grad():
        BatchAffinityLoss()(features, labels)
    with pytest.raises(AssertionError, match="nothing reads"):
        BatchAffinityLoss()(features, labels)
