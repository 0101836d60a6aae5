"""NMS that stops when it has enough, against torchvision's of all candidates; the same boxes.

    python benchmarks/nms.py

Candidates are anchors of an image of 600 x 1000 (stride 16, sides 64 to 512, ratios 0.5, 1, 2), moved a little, with
scores that fall with the distance from a few objects, as an RPN's do, or drawn at random.
"""

from __future__ import annotations

import argparse

import torch
from record import record
from torch import Tensor
from torchvision.ops import box_iou, nms
from turns import compare

from affsup_cli.models.detection.nms import first_nms
from affsup_cli.runtime.devices import resolve_device

HEIGHT, WIDTH, STRIDE, IOU = 600, 1000, 16, 0.7


def candidates(count: int, scored: str) -> tuple[Tensor, Tensor]:
    """Return the `count` best boxes and their scores."""
    y, x = torch.meshgrid(torch.arange(0, HEIGHT, STRIDE), torch.arange(0, WIDTH, STRIDE), indexing="ij")
    centres = torch.stack([x, y], dim=-1).view(-1, 1, 2) + STRIDE / 2
    sizes = torch.tensor(
        [[side * ratio**-0.5, side * ratio**0.5] for side in (64, 128, 256, 512) for ratio in (0.5, 1, 2)]
    )
    moved = centres + torch.randn(len(centres), len(sizes), 2) * sizes * 0.1
    scaled = sizes * torch.randn(len(centres), len(sizes), 2).mul(0.1).exp()
    boxes = torch.cat([moved - scaled / 2, moved + scaled / 2], dim=-1).view(-1, 4)
    boxes = boxes.clamp(min=0).minimum(torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT]))
    scores = torch.randn(len(boxes))
    if scored == "objects":
        scores += 6 * box_iou(boxes, boxes[torch.randperm(len(boxes))[:6]]).amax(dim=1)
    best, order = scores.topk(count)
    return boxes[order], best


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    torch.manual_seed(0)
    rows = []
    for count, keep in ((6000, 300), (12000, 2000), (6000, 32)):
        for scored in ("objects", "random"):
            boxes, scores = (tensor.to(device) for tensor in candidates(count, scored))

            def reference(boxes: Tensor = boxes, scores: Tensor = scores, keep: int = keep) -> Tensor:
                kept: Tensor = nms(boxes, scores, IOU)
                return kept[:keep]

            def ours(boxes: Tensor = boxes, scores: Tensor = scores, keep: int = keep) -> Tensor:
                return first_nms(boxes, scores, IOU, keep)

            torch.testing.assert_close(ours(), reference())
            measured = compare(reference, ours, device, arguments.rounds)
            rows.append({"candidates": count, "keep": keep, "scores": scored, "kept": len(ours()), **measured})
    record("nms", rows, device)


if __name__ == "__main__":
    main()
