from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from affsup_cli.models.detection.relation import RelationModule, geometry_embedding
from tests.models.detection import relation_oracle

HEADS, WIDTH, KEYS, QUERIES = 4, 16, 5, 7


def random_boxes(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    corner, size = torch.rand(2, *shape, 2, dtype=dtype)
    return torch.cat([corner * 200, corner * 200 + size * 90 + 2], dim=-1)


def random_module(dtype: torch.dtype = torch.float64) -> RelationModule:
    module = RelationModule(WIDTH, HEADS, key_dim=3).to(dtype)
    for parameter in module.parameters():  # as far from the initial 0.01 as training takes them
        nn.init.normal_(parameter, std=0.4)
    return module


def relate(module: RelationModule, features: Tensor, boxes: Tensor, present: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    result: tuple[Tensor, Tensor, Tensor] = module(
        features, geometry_embedding(boxes, boxes[:, : present.shape[1]]), present
    )
    return result


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("dim", "wavelength"), [(64, 1000.0), (16, 50.0)])
def test_the_embedding_is_that_of_the_released_code(dim: int, wavelength: float) -> None:
    boxes = random_boxes(QUERIES)
    boxes[3] = boxes[0]  # no offset at all
    boxes[4, 2:] = boxes[4, :2]  # no area
    expected = [
        [relation_oracle.embedding(query, key, dim, wavelength) for key in boxes[:KEYS].numpy()]
        for query in boxes.numpy()
    ]
    embedding = geometry_embedding(boxes, boxes[:KEYS], dim, wavelength)
    np.testing.assert_allclose(embedding.numpy(), np.array(expected), atol=1e-10)


def test_the_embedding_of_float32_boxes_stays_near_that_of_float64() -> None:
    boxes = random_boxes(2, 50) * 3
    exact = geometry_embedding(boxes, boxes)
    # The shortest wavelength turns a relative error of float32 in an offset into a hundred times that angle.
    torch.testing.assert_close(geometry_embedding(boxes.float(), boxes.float()).double(), exact, atol=5e-2, rtol=0)


def test_the_embedding_takes_leading_dimensions() -> None:
    boxes, keys = random_boxes(3, QUERIES), random_boxes(3, KEYS)
    torch.testing.assert_close(geometry_embedding(boxes, keys)[2], geometry_embedding(boxes[2], keys[2]))


def test_an_embedding_that_cannot_be_split_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 8, found 20"):
        geometry_embedding(random_boxes(2), random_boxes(2), 20)


def test_context_dots_and_geometry_are_those_of_the_equations() -> None:
    module, features, boxes = random_module(), torch.randn(1, QUERIES, WIDTH).double(), random_boxes(1, QUERIES)
    layers = {
        name: relation_oracle.Layer(layer.weight.detach().numpy(), layer.bias.detach().numpy())
        for name, layer in module.named_children()
    }
    expected = relation_oracle.relation(features[0].numpy(), boxes[0].numpy(), KEYS, HEADS, **layers)
    found = relate(module, features, boxes, torch.ones(1, KEYS, dtype=torch.bool))
    assert (expected[2] == np.log(1e-6)).any(), "some geometric weights must be cut off"
    for tensor, array in zip(found, expected, strict=True):
        np.testing.assert_allclose(tensor[0].detach().numpy(), array, atol=1e-9)


def test_an_image_is_related_alone_as_in_a_batch_with_padding() -> None:
    module, boxes, features = random_module(), random_boxes(2, QUERIES), torch.randn(2, QUERIES, WIDTH).double()
    present = torch.tensor([[True] * KEYS, [True, True, True, False, False]])
    context, dots, geometry = relate(module, features, boxes, present)
    first = relate(module, features[:1], boxes[:1], present[:1])
    torch.testing.assert_close((context[:1], dots[:1], geometry[:1]), first)
    # The second image has three proposals as keys; what pads them to five is cut away here.
    rows = [0, 1, 2, 5, 6]
    second = relate(module, features[1:, rows], boxes[1:, rows], present[1:, :3])
    torch.testing.assert_close((context[1:, rows], dots[1:, :, rows, :3], geometry[1:, :, rows, :3]), second)


def test_reordering_the_keys_reorders_and_changes_nothing_else() -> None:
    module, boxes, features = random_module(), random_boxes(1, KEYS), torch.randn(1, KEYS, WIDTH).double()
    present = torch.tensor([[True, False, True, True, True]])
    order = torch.randperm(KEYS)
    context, dots, geometry = relate(module, features, boxes, present)
    moved = relate(module, features[:, order], boxes[:, order], present[:, order])
    expected = (context[:, order], dots[:, :, order][..., order], geometry[:, :, order][..., order])
    torch.testing.assert_close(moved, expected)


def test_an_image_without_keys_gets_no_context_and_sound_gradients() -> None:
    module, boxes = random_module(), random_boxes(2, QUERIES)
    features = torch.randn(2, QUERIES, WIDTH).double().requires_grad_()
    present = torch.tensor([[True] * KEYS, [False] * KEYS])
    context, _, _ = relate(module, features, boxes, present)
    context.square().sum().backward()
    assert (context[1] == 0).all()
    assert context[0].abs().min() > 0
    assert features.grad is not None
    assert features.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_a_batch_without_any_key_gets_no_context() -> None:
    features = torch.randn(2, QUERIES, WIDTH).double()
    context, dots, _ = relate(random_module(), features, random_boxes(2, QUERIES), torch.ones(2, 0, dtype=torch.bool))
    assert (context == 0).all()
    assert dots.shape == (2, HEADS, QUERIES, 0)


def test_gradients_are_finite_where_all_boxes_are_one() -> None:
    module = random_module(torch.float32)
    boxes = torch.tensor([10.0, 10.0, 50.0, 40.0]).expand(1, QUERIES, 4)
    features = torch.randn(1, QUERIES, WIDTH, requires_grad=True)
    context, dots, geometry = relate(module, features, boxes, torch.ones(1, KEYS, dtype=torch.bool))
    (context.sum() + dots.sum() + geometry.sum()).backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_gradients_are_those_of_finite_differences() -> None:
    module, boxes = random_module(), random_boxes(1, 4)
    present = torch.tensor([[True, True, False]])
    parameters = dict(module.named_parameters())

    def outputs(features: Tensor, *values: Tensor) -> Tensor:
        arguments = (features, geometry_embedding(boxes, boxes[:, :3]), present)
        context, dots, geometry = torch.func.functional_call(
            module, dict(zip(parameters, values, strict=True)), arguments
        )
        return torch.cat([part.flatten() for part in (context, dots, geometry)])

    features = torch.randn(1, 4, WIDTH).double().requires_grad_()
    assert torch.autograd.gradcheck(outputs, (features, *parameters.values()), fast_mode=True)


def test_under_autocast_dots_and_geometry_are_float32_and_context_is_close() -> None:
    module, boxes, features = (
        random_module(torch.float32),
        random_boxes(1, 7, dtype=torch.float32),
        torch.randn(1, 7, WIDTH),
    )
    present = torch.ones(1, KEYS, dtype=torch.bool)
    exact = relate(module, features, boxes, present)
    with torch.autocast("cpu", torch.bfloat16):
        context, dots, geometry = relate(module, features, boxes, present)
    assert context.dtype == torch.bfloat16
    assert dots.dtype == geometry.dtype == torch.float32
    torch.testing.assert_close(geometry, exact[2])
    torch.testing.assert_close(context.float(), exact[0], atol=0.1, rtol=0.05)
    assert dots.unique().numel() == dots.numel(), "products rounded to bfloat16 would tie"


def test_new_layers_are_normal_with_a_hundredth_and_without_bias() -> None:
    module = RelationModule()
    assert module.query.weight.shape == module.key.weight.shape == module.value.weight.shape == (1024, 1024)
    assert module.geometry.weight.shape == (16, 64)
    for layer in module.children():
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.1)
        assert (layer.bias == 0).all()


def test_features_that_heads_cannot_share_are_refused() -> None:
    with pytest.raises(ValueError, match="100 features cannot be split among 16 heads"):
        RelationModule(100, 16)
