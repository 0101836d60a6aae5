from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import box_iou

from affsup_cli.models.detection.backbones import build_backbone
from affsup_cli.models.detection.detector import DetectorNetwork, Regions
from affsup_cli.recipe import RelnetRecipe, load_recipe

CLASSES = 4
SIZE = (64, 96)


def network(modules: int = 2, proposals: int = 12, seed: int = 0, **fields: object) -> DetectorNetwork:
    torch.manual_seed(seed)
    recipe = load_recipe("relnet")
    assert isinstance(recipe, RelnetRecipe)
    values = {
        "anchor_scales": (2.0, 4.0),
        "anchor_ratios": (0.5, 1.0),
        "proposals": proposals,
        "candidates": 60,
        "channels": 8,
        "width": 16,
        "mined": 6,
        **fields,
    }
    options = recipe.model.model_copy(update=values)
    relation = recipe.relation.model_copy(update={"modules": modules, "heads": 2, "key_dim": 4}) if modules else None
    return DetectorNetwork(build_backbone("convnet", "none", "torchvision"), CLASSES, options, relation)


def images(count: int, seed: int = 1) -> Tensor:
    return torch.randint(0, 256, (count, 3, *SIZE), generator=torch.Generator().manual_seed(seed)).float()


@pytest.fixture
def objects() -> tuple[Tensor, Tensor]:
    """Two images with three objects and one, padded."""
    boxes = torch.zeros(2, 3, 4)
    boxes[0] = torch.tensor([[4, 4, 30, 40], [40, 10, 80, 60], [50, 20, 90, 50]])
    boxes[1, 0] = torch.tensor([10, 5, 60, 60])
    return boxes, torch.tensor([[0, 3, 2], [1, -1, -1]])


def test_regions_of_one_image_do_not_change_when_another_joins_the_batch() -> None:
    model = network().eval()
    both = images(2)
    with torch.no_grad():
        together, _ = model(both, [SIZE] * 2)
        for place in range(2):
            alone, _ = model(both[place : place + 1], [SIZE])
            torch.testing.assert_close(together.boxes[place], alone.boxes[0], rtol=1e-4, atol=1e-3)
            torch.testing.assert_close(together.class_logits[place], alone.class_logits[0], rtol=1e-3, atol=1e-4)
            for graph, graph_alone in zip(together.graphs, alone.graphs, strict=True):
                torch.testing.assert_close(graph.dots[place], graph_alone.dots[0], rtol=1e-3, atol=1e-5)


def test_the_first_images_regions_depend_on_no_pixel_of_the_second() -> None:
    model = network().eval()
    batch = images(2).requires_grad_()
    regions, _ = model(batch.clone(), [SIZE] * 2)
    total = regions.class_logits[0].sum() + sum(graph.dots[0].sum() for graph in regions.graphs)
    (gradient,) = torch.autograd.grad(total, batch)
    assert gradient[0].any()
    assert not gradient[1].any()


def test_what_lies_outside_an_image_does_not_matter() -> None:
    model = network().eval()
    batch = images(2)
    other = batch.clone()
    other[0, :, 40:], other[0, :, :, 60:] = 255.0, 7.0
    with torch.no_grad():
        regions, _ = model(batch, [(40, 60), SIZE])
        same, _ = model(other, [(40, 60), SIZE])
    assert torch.equal(regions.class_logits, same.class_logits)
    assert (regions.boxes[0] <= torch.tensor([60.0, 40, 60, 40])).all()


@pytest.mark.parametrize("modules", [0, 1, 2])
def test_annotated_boxes_are_queries_that_nobody_looks_at(modules: int, objects: tuple[Tensor, Tensor]) -> None:
    model = network(modules).train()
    regions, _ = model(images(2), [SIZE] * 2, objects[0])
    assert regions.boxes.shape == (2, 12, 4)
    assert regions.class_logits.shape == (2, 12 + 3, CLASSES + 1)
    assert len(regions.graphs) == modules
    assert all(graph.dots.shape == (2, 2, 12 + 3, 12) for graph in regions.graphs)


def test_proposals_are_those_of_torchvision(objects: tuple[Tensor, Tensor]) -> None:
    model = network()
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(2, 300, 2, generator=generator) * 60
    boxes = torch.cat([corners, corners + 2 + torch.rand(2, 300, 2, generator=generator) * 40], dim=2)
    scores = torch.randn(2, 300, generator=generator)
    chosen, confidence = model.proposals.filter_proposals(boxes, scores, [SIZE] * 2, [300])
    expected, expected_confidence = RegionProposalNetwork.filter_proposals(
        model.proposals, boxes, scores, [SIZE] * 2, [300]
    )
    assert all(map(torch.equal, chosen, expected))
    assert all(map(torch.equal, confidence, expected_confidence))


def test_boxes_without_an_area_leave_zeros_after_the_proposals_of_torchvision() -> None:
    proposals = network(proposals=8).proposals
    corners = torch.arange(0, 60, 10.0).view(1, 6, 1).expand(1, 6, 2)
    boxes = torch.cat([corners, corners + 9], dim=2).clone()
    boxes[0, ::2, 2] = boxes[0, ::2, 0] + 0.5
    scores = torch.arange(6, 0, -1.0).view(1, 6)
    expected, _ = RegionProposalNetwork.filter_proposals(proposals, boxes, scores, [SIZE], [6])
    (chosen,), (confidence,) = proposals.filter_proposals(boxes, scores, [SIZE], [6])
    assert expected[0].shape == (3, 4)
    assert torch.equal(chosen[:3], expected[0])
    assert not chosen[3:].any()
    assert not confidence[3:].any()


def test_anchors_are_labelled_as_by_torchvision(objects: tuple[Tensor, Tensor]) -> None:
    proposals = network().proposals
    gt_boxes = torch.cat([objects[0], torch.zeros(1, 3, 4)])
    gt_boxes[1, 1] = torch.tensor([90, 1, 92, 3])  # far below the least overlap with every anchor
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(400, 2, generator=generator) * 70
    anchors = torch.cat([corners, corners + 4 + torch.rand(400, 2, generator=generator) * 40], dim=1)
    anchors = torch.cat([anchors, gt_boxes[0] + 1])
    targets = [{"boxes": boxes[boxes.any(dim=1)]} for boxes in gt_boxes]
    expected = RegionProposalNetwork.assign_targets_to_anchors(proposals, [anchors] * 3, targets)
    found = proposals.assign_targets_to_anchors([anchors] * 3, gt_boxes)
    for label, wanted, box, wanted_box in zip(found[0], expected[0], found[1], expected[1], strict=True):
        assert torch.equal(label, wanted)
        assert torch.equal(box[label == 1], wanted_box[label == 1])
    assert set(found[0][0].tolist()) == {-1, 0, 1}
    assert (found[0][1] == 1).sum() > 1
    assert not found[0][2].any()


def test_an_image_without_proposals_has_no_regions_and_finite_losses(objects: tuple[Tensor, Tensor]) -> None:
    model = network().train()
    model.proposals.min_size = 1e6
    regions, losses = model(images(2), [SIZE] * 2, objects[0])
    assert not regions.present.any()
    losses |= model.detection_losses(regions, *objects)
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    assert total.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    regions, _ = model(images(2), [SIZE] * 2)
    assert [len(boxes) for boxes, _ in model.detections(regions, [SIZE] * 2)] == [0, 0]


def test_images_without_objects_have_losses_of_the_background_alone() -> None:
    model = network().train()
    gt_boxes, gt_labels = torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.int64)
    regions, losses = model(images(2), [SIZE] * 2, gt_boxes)
    losses |= model.detection_losses(regions, gt_boxes, gt_labels)
    assert losses["box_loss"] == 0
    assert losses["proposal_loss"] == 0
    assert losses["class_loss"] > 0


def test_an_image_of_five_hundred_objects_trains() -> None:
    model = network().train()
    corners = torch.rand(1, 500, 2, generator=torch.Generator().manual_seed(0)) * 50
    gt_boxes = torch.cat([corners, corners + 4], dim=2)
    gt_labels = torch.arange(500).view(1, 500) % CLASSES
    regions, losses = model(images(1), [SIZE], gt_boxes)
    losses |= model.detection_losses(regions, gt_boxes, gt_labels)
    assert regions.class_logits.shape == (1, 12 + 500, CLASSES + 1)
    assert all(loss.isfinite() for loss in losses.values())


def hard_losses(regions: Regions, gt_boxes: Tensor, gt_labels: Tensor, mined: int) -> tuple[float, float]:
    """Class and box loss by definition, region by region: the hardest of an image, divided by how many are mined."""
    of_classes = of_boxes = 0.0
    for image in range(len(regions.boxes)):
        objects = [(gt_boxes[image, k], int(gt_labels[image, k])) for k in range(3) if gt_labels[image, k] >= 0]
        queries = [*regions.boxes[image][regions.present[image]], *(box for box, _ in objects)]
        rows = [*range(int(regions.present[image].sum())), *range(12, 12 + len(objects))]
        found = []
        for box, row in zip(queries, rows, strict=True):
            overlaps = [float(box_iou(box[None], other[None])) for other, _ in objects]
            best = int(np.argmax(overlaps))
            label, distance = 0, 0.0
            if overlaps[best] > 0.5:
                label = objects[best][1] + 1
                (x1, y1, x2, y2), (a1, b1, a2, b2) = box.double().tolist(), objects[best][0].double().tolist()
                w, h = x2 - x1, y2 - y1
                wanted = [
                    10 * ((a1 + a2) / 2 - (x1 + x2) / 2) / w,
                    10 * ((b1 + b2) / 2 - (y1 + y2) / 2) / h,
                    5 * np.log((a2 - a1) / w),
                    5 * np.log((b2 - b1) / h),
                ]
                gaps = np.abs(np.array(wanted) - regions.box_deltas[image, row].detach().double().numpy())
                distance = float(np.where(gaps < 1, gaps**2 / 2, gaps - 0.5).sum())
            logits = regions.class_logits[image, row].detach().double().numpy()
            found.append((float(np.log(np.exp(logits).sum()) - logits[label]), distance))
        hardest = sorted(found, key=lambda pair: -sum(pair))[:mined]
        of_classes += np.mean([surprise for surprise, _ in hardest])
        of_boxes += sum(distance for _, distance in hardest) / mined
    return of_classes / len(regions.boxes), of_boxes / len(regions.boxes)


@pytest.mark.parametrize("mined", [3, 6, 50])
def test_the_losses_are_those_of_the_hardest_regions(mined: int, objects: tuple[Tensor, Tensor]) -> None:
    model = network(mined=mined).train()
    regions, _ = model(images(2), [SIZE] * 2, objects[0])
    losses = model.detection_losses(regions, *objects)
    of_classes, of_boxes = hard_losses(regions, *objects, mined)
    assert losses["class_loss"].item() == pytest.approx(of_classes, rel=1e-4)
    assert losses["box_loss"].item() == pytest.approx(of_boxes, rel=1e-4)
    assert of_boxes > 0


def test_detections_are_proposals_moved_by_their_deltas_and_kept_inside() -> None:
    model = network().eval()
    boxes = torch.tensor([[[10.0, 10, 30, 50], [80, 40, 96, 64]]])
    deltas = torch.tensor([[[1.0, 0, 5 * np.log(2), 0], [30.0, 0, 0, 0]]])
    logits = torch.zeros(1, 2, CLASSES + 1)
    regions = Regions(boxes, torch.tensor([[True, True]]), boxes, boxes, boxes, None, logits, deltas, ())
    ((refined, probabilities),) = model.detections(regions, [SIZE])
    # The centre moves by a tenth of the width, the width doubles; the second leaves the image on the right.
    assert refined[0].tolist() == pytest.approx([22 - 20, 10, 22 + 20, 50])
    assert refined[1].tolist() == pytest.approx([96, 40, 96, 64])
    assert probabilities.shape == (2, CLASSES)
    assert probabilities[0].tolist() == pytest.approx([1 / (CLASSES + 1)] * CLASSES)


def test_proposals_are_exact_under_autocast(objects: tuple[Tensor, Tensor]) -> None:
    model = network().train()
    with torch.autocast("cpu", torch.bfloat16):
        regions, _ = model(images(2), [SIZE] * 2, objects[0])
    assert regions.boxes.dtype == regions.class_logits.dtype == torch.float32
    assert (regions.boxes != regions.boxes.bfloat16().float()).any()


def test_no_gradient_reaches_the_places_of_proposals(objects: tuple[Tensor, Tensor]) -> None:
    model = network().train()
    regions, _ = model(images(2), [SIZE] * 2, objects[0])
    total = sum(graph.dots.sum() for graph in regions.graphs) + regions.class_logits.sum()
    total.backward()
    assert all(parameter.grad is None for parameter in model.proposals.parameters())
    assert all(
        p.grad is not None and p.grad.any() for p in model.backbone.parameters() if p.requires_grad and p.dim() > 1
    )


@pytest.mark.parametrize("pooling", ["align", "pool"])
def test_both_poolings_train(pooling: str, objects: tuple[Tensor, Tensor]) -> None:
    model = network(pooling=pooling).train()
    regions, losses = model(images(2), [SIZE] * 2, objects[0])
    torch.stack([*losses.values(), *model.detection_losses(regions, *objects).values()]).sum().backward()
    gradient = model.reduce.weight.grad
    assert gradient is not None
    assert gradient.any()
