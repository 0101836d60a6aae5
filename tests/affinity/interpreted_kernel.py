"""Runs the Triton kernels of L_G in Triton's interpreter, on the CPU: `TRITON_INTERPRET=1 python -m ...`.

The interpreter must be chosen before Triton is imported, so that this is a process of its own. Prints a JSON object for
each case: its options, and the errors against the closed form in float64.
"""

from __future__ import annotations

import itertools
import json
import sys
from typing import Any

import torch
from torch import Tensor

from affsup_cli.affinity import BatchAffinityLoss, batch


def say(result: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(result) + "\n")


def case(loss: BatchAffinityLoss, features: Tensor, labels: Tensor) -> dict[str, float]:
    (leaf, exact_leaf) = (features.clone().requires_grad_(), features.double().requires_grad_())
    found, exact = loss.loss_and_mass(leaf, labels), loss.loss_and_mass(exact_leaf, labels)
    (gradient,) = torch.autograd.grad(found.loss * 3, leaf)
    (exact_gradient,) = torch.autograd.grad(exact.loss * 3, exact_leaf)
    largest = exact_gradient.abs().max().item()
    return {
        "loss": ((found.loss - exact.loss).abs() / (1 + exact.loss.abs())).item(),
        "mass": (found.mass - exact.mass).abs().item(),
        "gradient": ((gradient - exact_gradient).abs().max() / (largest + 1e-3)).item(),
    }


def main() -> None:
    batch.kernel_takes = lambda nodes, form: nodes.dtype == torch.float32
    generator = torch.Generator().manual_seed(0)
    small = itertools.product(
        ("focal", "log", "l2", "smooth_l1"), ("matrix", "row"), ("keep", "exclude"), (None, 1), (False, True), [(7, 5)]
    )
    # One row; and more than one block of rows and of channels, each with a rest.
    other = itertools.product(
        ("focal",), ("matrix", "row"), ("keep", "exclude"), (None, 1), (False,), [(1, 3), (37, 40)]
    )
    for form, softmax, diagonal, ignored, average, (nodes, channels) in itertools.chain(small, other):
        options = {"form": form, "softmax": softmax, "diagonal": diagonal, "ignore_index": ignored}
        loss = BatchAffinityLoss(2.5, **options, row_average=average, temperature=2.0)
        features = torch.randn(nodes, channels, generator=generator) + 5
        labels = torch.randint(4, (nodes,), generator=generator)
        say({**options, "row_average": average, "nodes": nodes} | case(loss, features, labels))
    features = torch.randn(9, 4, generator=generator)
    loss = BatchAffinityLoss()
    special = {
        "one class": case(loss, features, torch.zeros(9, dtype=torch.int64)),
        "no pair": case(loss, features, torch.arange(9)),
        "all ignored": case(loss, features, torch.full((9,), -100)),
        "coinciding": case(loss, features[:1].expand(9, 4), torch.arange(9) % 2),
        "far apart": case(loss, features * 5, torch.arange(9) % 2),
        "normalized": case(BatchAffinityLoss(normalize=True), features, torch.arange(9) % 2),
        "int32 labels": case(loss, features, torch.arange(9, dtype=torch.int32) % 2),
    }
    for name, errors in special.items():
        say({"case": name} | errors)
    leaf, labels = features.clone().requires_grad_(), torch.arange(9) % 2
    (first,) = torch.autograd.grad(loss(leaf, labels), leaf, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), leaf)
    exact_leaf = features.double().requires_grad_()
    (first,) = torch.autograd.grad(loss(exact_leaf, labels), exact_leaf, create_graph=True)
    (exact,) = torch.autograd.grad(first.square().sum(), exact_leaf)
    say({"case": "second derivative", "gradient": ((second - exact).abs().max() / exact.abs().max()).item()})
    features[3, 2] = torch.nan
    found = loss.loss_and_mass(features, torch.arange(9) % 2)
    say({"case": "NaN", "not_finite": not found.loss.isfinite().item() and not found.mass.isfinite().item()})


if __name__ == "__main__":
    main()
