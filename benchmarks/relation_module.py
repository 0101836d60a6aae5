"""The relation module with values mapped per head before they are averaged, against the release's literal form.

    python benchmarks/relation_module.py

Two images of 330 queries and 300 keys, 1024 features, 16 heads; results and gradients are compared too. "module" is one
module alone, "head" two modules with E_G, which the literal form computes for each.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from record import record
from torch import Tensor
from turns import compare

from affsup_cli.models.detection.relation import RelationModule, geometry_embedding
from affsup_cli.runtime.devices import resolve_device

IMAGES, QUERIES, KEYS, FEATURES = 2, 330, 300, 1024


def literal(module: RelationModule, features: Tensor, embedding: Tensor) -> Tensor:
    """Return the context as the release computes it: raw features averaged per head, then a grouped 1x1 convolution."""
    keys = features[:, :KEYS]
    queries, looked_at = (
        mapped.view(IMAGES, -1, module.heads, FEATURES // module.heads).transpose(1, 2)
        for mapped in (module.query(features), module.key(keys))
    )
    dots = queries @ looked_at.mT / queries.shape[-1] ** 0.5
    geometry = module.geometry(embedding).relu().clamp(min=1e-6).log().permute(0, 3, 1, 2)
    averaged = (dots + geometry).softmax(dim=-1) @ keys.unsqueeze(1)
    stacked = averaged.transpose(1, 2).reshape(IMAGES * QUERIES, module.heads * FEATURES, 1, 1)
    weight = module.value.weight[:, :, None, None]
    return F.conv2d(stacked, weight, module.value.bias, groups=module.heads).view(IMAGES, QUERIES, FEATURES)


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    torch.manual_seed(0)
    first, second = RelationModule().to(device), RelationModule().to(device)
    features = torch.randn(IMAGES, QUERIES, FEATURES, device=device, requires_grad=True)
    corner, size = torch.rand(2, IMAGES, QUERIES, 2, device=device) * 400
    boxes = torch.cat([corner, corner + size + 10], dim=-1)
    present = torch.ones(IMAGES, KEYS, dtype=torch.bool, device=device)

    def embed() -> Tensor:
        return geometry_embedding(boxes, boxes[:, :KEYS])

    shared = embed()

    def module_ours() -> Tensor:
        context: Tensor = first(features, shared, present)[0]
        return context

    def module_literal() -> Tensor:
        return literal(first, features, shared)

    def head_ours() -> Tensor:
        embedding = embed()
        related = features + first(features, embedding, present)[0]
        context: Tensor = second(related, embedding, present)[0]
        return context

    def head_literal() -> Tensor:
        related = features + literal(first, features, embed())
        return literal(second, related, embed())

    def step(forward: Callable[[], Tensor]) -> tuple[Tensor, ...]:
        inputs = [p for p in (features, *first.parameters(), *second.parameters()) if p.requires_grad]
        context = forward()
        return context, *torch.autograd.grad(context.square().sum(), inputs, allow_unused=True, materialize_grads=True)

    rows = []
    for what, reference, ours in (("module", module_literal, module_ours), ("head", head_literal, head_ours)):
        torch.testing.assert_close(step(ours), step(reference), rtol=1e-3, atol=1e-3)
        measured = compare(lambda: step(reference), lambda: step(ours), device, arguments.rounds)  # noqa: B023
        rows.append({"what": what, "passes": "forward + backward", **measured})
        with torch.no_grad():
            rows.append({"what": what, "passes": "forward", **compare(reference, ours, device, arguments.rounds)})
    record("relation_module", rows, device)


if __name__ == "__main__":
    main()
