"""RoIAlign as two matrix products a region, against torchvision's kernel: which maps each is quicker on.

    python benchmarks/roi_align.py

Two images; `LARGEST_SEPARABLE_MAP` of affsup_cli/models/detection/roi_align.py is read off here. Values and gradients
are compared too.
"""

from __future__ import annotations

import argparse

import torch
from record import record
from torch import Tensor
from torchvision.ops import roi_align
from turns import compare

from affsup_cli.models.detection.roi_align import separable_roi_align

IMAGES, SIZE, SCALE, SAMPLING = 2, 7, 1 / 16, 2


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    rows = []
    for height, width in ((8, 8), (16, 16), (20, 32), (28, 28), (38, 63)):
        for channels, regions in ((96, 64), (256, 300)):
            features = torch.randn(IMAGES, channels, height, width, requires_grad=True)
            corner, size = torch.rand(2, IMAGES, regions, 2) * torch.tensor([width, height]) / SCALE / 2
            boxes = list(torch.cat([corner, corner + size], dim=-1))
            weights = torch.randn(IMAGES * regions, channels, SIZE, SIZE)

            def reference(features: Tensor = features, boxes: list[Tensor] = boxes) -> Tensor:
                pooled: Tensor = roi_align(features, boxes, SIZE, SCALE, SAMPLING, aligned=True)
                return pooled

            def ours(features: Tensor = features, boxes: list[Tensor] = boxes) -> Tensor:
                images = zip(features, boxes, strict=True)
                return torch.cat([separable_roi_align(*image, SIZE, SCALE, SAMPLING) for image in images])

            def gradient(pooled: Tensor, features: Tensor = features, weights: Tensor = weights) -> Tensor:
                return torch.autograd.grad(pooled, features, weights)[0]

            torch.testing.assert_close(ours(), reference(), rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(gradient(ours()), gradient(reference()), rtol=1e-3, atol=1e-2)
            size_of_case = {"height": height, "width": width, "channels": channels, "regions": regions}
            cpu = torch.device("cpu")
            with torch.no_grad():
                rows.append({**size_of_case, "passes": "forward", **compare(reference, ours, cpu, arguments.rounds)})
            both = compare(
                lambda: gradient(reference()),
                lambda: gradient(ours()),
                cpu,
                arguments.rounds,
            )
            rows.append({**size_of_case, "passes": "forward + backward", **both})
    record("roi_align", rows, torch.device("cpu"))


if __name__ == "__main__":
    main()
