from __future__ import annotations

import numpy as np
import pytest
import torch

from affsup_cli.data.images import Augmentation, AugmentedEpochs, DeviceImages, balanced_subset
from affsup_cli.distributed.shard import WHOLE, Shard

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def images(count: int = 7, height: int = 6, width: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    # No pixel is 0, so that padding can be told from the image.
    pixels = torch.randint(1, 256, (count, height, width, 3), generator=generator, dtype=torch.uint8)
    return pixels, torch.arange(count)


def normalised(pixels: np.ndarray) -> np.ndarray:
    """[..., H, W, C] bytes -> [..., C, H, W] in float64, from the definition."""
    return np.moveaxis((pixels / 255.0 - np.array(MEAN)) / np.array(STD), -1, -3)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_batch_is_the_normalised_images_in_the_layout_asked_for(
    device: torch.device, layout: torch.memory_format
) -> None:
    pixels, labels = images()
    data = DeviceImages(pixels, labels, MEAN, STD, device, layout)
    batch, got = data.batch(torch.tensor([4, 0, 4], device=device))
    np.testing.assert_allclose(batch.cpu().numpy(), normalised(pixels.numpy()[[4, 0, 4]]), atol=2e-6)
    assert got.tolist() == [4, 0, 4]
    assert batch.dtype == torch.float32
    assert batch.is_contiguous(memory_format=layout)
    epochs = AugmentedEpochs(data, Augmentation(pad=1, flip=True), batch_size=3, seed=0)
    epochs.begin(0)
    assert epochs.batch(0)[0].is_contiguous(memory_format=layout)


def epoch(epochs: AugmentedEpochs, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    epochs.begin(number)
    batches = [epochs.batch(step) for step in range(epochs.steps)]
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def test_an_epoch_passes_every_image_once(device: torch.device) -> None:
    data = DeviceImages(*images(7), MEAN, STD, device)
    epochs = AugmentedEpochs(data, Augmentation(pad=0, flip=False), batch_size=3, seed=0)
    assert epochs.steps == 3
    x, y = epoch(epochs, 0)
    assert sorted(y.tolist()) == list(range(7))
    assert y.tolist() != list(range(7))
    torch.testing.assert_close(x, data.batch(y)[0])


def test_crops_and_mirrorings_are_windows_of_the_padded_image(device: torch.device) -> None:
    pad, height, width = 2, 6, 5
    pixels, labels = images(40, height, width)
    data = DeviceImages(pixels, labels, MEAN, STD, device)
    epochs = AugmentedEpochs(data, Augmentation(pad, flip=True), batch_size=16, seed=1)
    padded = np.pad(pixels.numpy(), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    windows: dict[tuple[int, int, bool], int] = {}
    for number in range(20):
        x, y = epoch(epochs, number)
        for image, label in zip(x.cpu().numpy(), y.tolist(), strict=True):
            found = [
                (top, left, mirrored)
                for top in range(2 * pad + 1)
                for left in range(2 * pad + 1)
                for mirrored in (False, True)
                if np.allclose(
                    image,
                    normalised(
                        # Mirrored first, then cropped (footnote 3).
                        (padded[label][:, ::-1] if mirrored else padded[label])[top : top + height, left : left + width]
                    ),
                    atol=1e-5,
                )
            ]
            assert len(found) == 1
            windows[found[0]] = windows.get(found[0], 0) + 1
    # 800 draws over 50 equally likely windows: each seen, none more than 3 times its share.
    assert len(windows) == 50
    assert max(windows.values()) < 48


def test_an_epoch_is_a_function_of_seed_and_epoch_alone() -> None:
    data = DeviceImages(*images(7), MEAN, STD, torch.device("cpu"))

    def fresh(seed: int) -> AugmentedEpochs:
        return AugmentedEpochs(data, Augmentation(1, flip=True), batch_size=3, seed=seed)

    walked = fresh(0)
    epoch(walked, 0)
    torch.rand(3)  # torch's global generator plays no part
    for got, expected in zip(epoch(walked, 1), epoch(fresh(0), 1), strict=True):
        assert torch.equal(got, expected)
    orders = {tuple(epoch(fresh(seed), number)[1].tolist()) for seed in range(4) for number in range(4)}
    assert len(orders) == 16


def test_batches_are_the_same_on_any_device(device: torch.device) -> None:
    def first(where: torch.device) -> torch.Tensor:
        return epoch(AugmentedEpochs(DeviceImages(*images(9), MEAN, STD, where), Augmentation(1, True), 4, 5), 2)[
            0
        ].cpu()

    torch.testing.assert_close(first(device), first(torch.device("cpu")))


@pytest.mark.parametrize("step", [0, 2])
def test_a_batch_can_be_had_without_those_before_it(step: int) -> None:
    data = DeviceImages(*images(7), MEAN, STD, torch.device("cpu"))
    epochs = AugmentedEpochs(data, Augmentation(1, flip=True), batch_size=3, seed=0)
    whole = epoch(epochs, 3)[0]
    epochs.begin(3)
    assert torch.equal(epochs.batch(step)[0], whole[step * 3 : step * 3 + 3])


def test_processes_share_a_batch_that_is_drawn_as_for_one() -> None:
    data = DeviceImages(*images(7), MEAN, STD, torch.device("cpu"))
    alone, *both = (
        AugmentedEpochs(data, Augmentation(2, True), 3, 5, share) for share in (WHOLE, Shard(0, 2), Shard(1, 2))
    )
    for epochs in (alone, *both):
        epochs.begin(1)
    for step, size in enumerate((3, 3)):
        parts = [epochs.batch(step) for epochs in both]
        assert [epochs.size(step) for epochs in both] == [size, size]
        for whole, *shares in zip(alone.batch(step), *parts, strict=True):
            assert torch.equal(torch.cat(shares), whole)
    # The last batch is of one image: the second process computes on it too, and counts none.
    assert both[0].size(2) == 1
    assert torch.equal(both[1].batch(2)[0], alone.batch(2)[0])


@pytest.mark.parametrize(("count", "per_class"), [(6, [2, 2, 2]), (8, [3, 3, 2]), (13, [6, 5, 2]), (15, [6, 7, 2])])
def test_a_subset_has_the_classes_in_equal_parts_and_is_always_the_same(count: int, per_class: list[int]) -> None:
    labels = np.random.default_rng(1).permutation(np.repeat([0, 1, 2], [6, 7, 2]))
    chosen = balanced_subset(labels, count)
    assert np.bincount(labels[chosen]).tolist() == per_class
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert chosen.tolist() == balanced_subset(labels, count).tolist()
    assert set(chosen) >= set(balanced_subset(labels, count - 2))
