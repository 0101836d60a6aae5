"""The DETR example: what it supervises, by loops; and that L_G raises M on scenes that it was not trained on."""

from __future__ import annotations

import importlib
import itertools
from pathlib import Path
from types import ModuleType

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("query_attention")


def scenes(example: ModuleType) -> tuple[object, list[list[tuple[int, int]]], list[list[int]]]:
    """Two scenes of three and of two objects, padded; their relations and labels as lists."""
    relations, labels = [[(0, 2), (2, 1)], [(1, 0)]], [[4, 1, 4], [0, 3]]
    boxes = torch.tensor(
        [
            [[0.1, 0.1, 0.3, 0.4], [0.5, 0.5, 0.9, 0.8], [0.6, 0.1, 0.8, 0.3]],
            [[0.2, 0.2, 0.5, 0.5], [0.4, 0.6, 0.7, 0.9], [0.0, 0.0, 0.0, 0.0]],
        ]
    )
    padded = example.Scenes(
        torch.zeros(2, 3, 32, 32),
        boxes,
        torch.tensor([[4, 1, 4], [0, 3, -1]]),
        torch.tensor([[[0, 2], [2, 1]], [[1, 0], [-2, -2]]]),
    )
    return padded, relations, labels


def found(example: ModuleType, queries: int) -> object:
    """Random classes and boxes of two images."""
    generator = torch.Generator().manual_seed(3)
    logits, boxes = (torch.rand(2, queries, width, generator=generator) for width in (9, 4))
    return example.Found(4 * logits, 0.1 + 0.5 * boxes, torch.randn(2, queries, queries, generator=generator))


def overlap(a: list[float], b: list[float]) -> float:
    """Generalised intersection over union of two boxes by its definition."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return common / union - (hull - union) / hull


def test_the_match_is_the_cheapest_of_all_pairings(example: ModuleType) -> None:
    truth, _, labels = scenes(example)
    finding = found(example, queries=5)
    match = example.hungarian_match(finding, truth)
    corners, chances = finding.corners().tolist(), finding.logits.softmax(-1).tolist()
    for image, classes in enumerate(labels):

        def cost(query: int, thing: int, image: int = image, classes: list[int] = classes) -> float:
            x1, y1, x2, y2 = real = truth.boxes[image, thing].tolist()
            centred = [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
            distance = sum(abs(a - b) for a, b in zip(finding.boxes[image, query].tolist(), centred, strict=True))
            chance = chances[image][query][classes[thing]]
            return 5 * distance - 2 * overlap(corners[image][query], real) - chance

        pairings = itertools.permutations(range(5), len(classes))
        cheapest = min(pairings, key=lambda queries: sum(cost(query, thing) for thing, query in enumerate(queries)))
        expected = [cheapest.index(query) if query in cheapest else -1 for query in range(5)]
        assert match[image].tolist() == expected


@pytest.mark.parametrize("kind", ["relationship", "different-category"])
def test_the_target_holds_the_queries_of_related_objects_and_no_padding(example: ModuleType, kind: str) -> None:
    truth, relations, labels = scenes(example)
    match = torch.tensor([[-1, 2, 0, -1, 1], [1, -1, -1, 0, -1]])
    target = example.query_target(kind, match, truth)
    for image in range(2):
        for a, b in itertools.product(range(5), repeat=2):
            first, second = match[image, a].item(), match[image, b].item()
            if first < 0 or second < 0:
                expected = False
            elif kind == "relationship":
                expected = (first, second) in relations[image]
            else:
                expected = labels[image][first] != labels[image][second]
            assert target[image, a, b].item() == expected, (image, a, b)


def test_padding_and_queries_without_an_object_add_nothing_to_the_boxes_loss(example: ModuleType) -> None:
    truth, _, labels = scenes(example)
    finding = found(example, queries=5)
    match = example.hungarian_match(finding, truth)
    terms, of_classes, weights = [], 0.0, 0.0
    for image, query in itertools.product(range(2), range(5)):
        thing = match[image, query].item()
        label, weight = (labels[image][thing], 1.0) if thing >= 0 else (8, 0.1)
        of_classes -= weight * finding.logits[image, query].log_softmax(-1)[label].item()
        weights += weight
        if thing >= 0:
            x1, y1, x2, y2 = real = truth.boxes[image, thing].tolist()
            centred = torch.tensor([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])
            distance = (finding.boxes[image, query] - centred).abs().sum().item()
            terms.append(5 * distance + 2 * (1 - overlap(finding.corners()[image, query].tolist(), real)))
    expected = of_classes / weights + sum(terms) / len(terms)
    assert example.detection_loss(finding, truth, match).item() == pytest.approx(expected, rel=1e-5)


def test_mirrored_boxes_are_where_the_mirrored_objects_are(example: ModuleType) -> None:
    truth, _, _ = scenes(example)
    images = torch.zeros(2, 3, 10, 10)
    images[0, :, 1:4, 1:3] = 1  # the first object
    mirrored = truth._replace(images=images).mirrored(torch.tensor([True, False]))
    torch.testing.assert_close(mirrored.boxes[0, 0], torch.tensor([0.7, 0.1, 0.9, 0.4]))
    assert mirrored.images[0, 0].nonzero().amin(0).tolist() == [1, 7]
    assert mirrored.images[0, 0].nonzero().amax(0).tolist() == [3, 8]
    assert torch.equal(mirrored.boxes[1], truth.boxes[1])


def test_supervision_raises_the_mass_on_test_images_from_one_initial_model(example: ModuleType, shapes: Path) -> None:
    for steps in (60, 120, 240):  # how soon depends on the last bits of a processor's kernels: at 60, 1.48 or more
        results = example.main(shapes, steps=steps, weight=3.0, kind="different-category", images=16)
        if results["with L_G"]["M"] > 1.3 * results["without"]["M"]:
            break
    assert results["with L_G"]["M"] > 1.3 * results["without"]["M"]
    untrained = example.main(shapes, steps=1, weight=0.0, images=4)
    assert untrained["with L_G"] == untrained["without"]
