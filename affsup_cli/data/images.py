"""An image classification data set that lives whole on the device: no loader, no copy from the host in a step.

50,000 CIFAR images are 150 MB of uint8. Pad, crop and mirror are one gather of bytes; only a batch is ever floats.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from affsup_cli.data.epochs import epoch_generator
from affsup_cli.data.share import ALONE, Share
from data_prep.format import Manifest, read_split


@dataclass(frozen=True)
class Augmentation:
    """What is done to training images (footnote 3): mirroring, zero padding by `pad` pixels and a random crop."""

    pad: int
    flip: bool


class DeviceImages:
    """One split of a prepared data set on a device.

    Args:
        images: uint8 `[n, H, W, C]`.
        labels: int64 `[n]`.
        mean: per-channel mean of the training split, in 0..1.
        std: per-channel standard deviation of the training split, in 0..1.
        device: where all of it goes.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, mean: Sequence[float], std: Sequence[float], device: torch.device
    ) -> None:
        self.images = images.to(device)
        self.labels = labels.to(device)
        # One multiply-add from bytes to normalised floats: x / 255 - mean over std.
        self._scale = (1 / (255 * torch.tensor(std, dtype=torch.float64))).float().to(device)
        self._shift = (
            (-torch.tensor(mean, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64)).float().to(device)
        )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.images.device

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return images `index` `[B]` as they are: float32 `[B, C, H, W]` in channels_last memory, and labels `[B]`."""
        return self._floats(self.images[index]), self.labels[index]

    def batches(self, order: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield `batch` of `size` images at a time, in `order`."""
        for start in range(0, len(order), size):
            yield self.batch(order[start : start + size])

    def _floats(self, pixels: Tensor) -> Tensor:
        return torch.addcmul(self._shift, pixels.float(), self._scale).permute(0, 3, 1, 2)


class AugmentedEpochs:
    """Shuffled, augmented passes over a `DeviceImages`, each a function of `(seed, epoch)` alone.

    All of an epoch's random numbers are drawn when it begins, on the CPU, so that its batches are the same on any
    device and a resumed run needs to know no more than its epoch and step. Several processes draw the same and take
    their share of each batch.
    """

    def __init__(
        self, data: DeviceImages, augmentation: Augmentation, batch_size: int, seed: int, share: Share = ALONE
    ) -> None:
        self._data = data
        self._augmentation = augmentation
        self._seed = seed
        self._share = share
        self.batch_size = batch_size
        self.steps = -(-len(data) // batch_size)
        pad = augmentation.pad
        count, height, width, channels = data.images.shape
        padded = data.images
        if pad:
            padded = data.images.new_zeros(count, height + 2 * pad, width + 2 * pad, channels)
            padded[:, pad : pad + height, pad : pad + width] = data.images
        self._pixels = padded.view(-1, channels)
        self._image_stride, self._row_stride = padded.stride(0) // channels, padded.stride(1) // channels
        self._rows = torch.arange(height, device=data.device)
        self._columns = torch.arange(width, device=data.device)
        self._order = self._top = self._left = torch.empty(0, dtype=torch.int64)
        self._mirrored = torch.empty(0, dtype=torch.bool)

    def begin(self, epoch: int) -> None:
        """Draw the order, crops and mirrorings of `epoch`."""
        generator = epoch_generator(self._seed, epoch)
        count, device = len(self._data), self._data.device
        offsets = 2 * self._augmentation.pad + 1
        self._order = torch.randperm(count, generator=generator).to(device)
        self._top = torch.randint(offsets, (count,), generator=generator).to(device)
        self._left = torch.randint(offsets, (count,), generator=generator).to(device)
        mirrored = torch.randint(2, (count,), generator=generator).bool()
        self._mirrored = (mirrored & self._augmentation.flip).to(device)

    def size(self, step: int) -> int:
        """Return how many images batch `step` has, those of all processes."""
        return min(self.batch_size, len(self._data) - step * self.batch_size)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return batch `step` of the epoch: float32 `[B, C, H, W]` in channels_last memory, and labels `[B]`.

        Of several processes each gets its share, or a stand-in (see `Share.stand_in`).
        """
        share, first = self._share.stand_in(self.size(step)), step * self.batch_size
        part = slice(first + share.start, first + share.stop)
        index = self._order[part]
        rows = self._top[part, None] + self._rows
        columns = torch.where(self._mirrored[part, None], self._columns.flip(0), self._columns) + self._left[part, None]
        where = (
            (index * self._image_stride)[:, None, None] + (rows * self._row_stride)[:, :, None] + columns[:, None, :]
        )
        pixels = self._pixels[where.view(-1)].view(*where.shape, -1)
        return self._data._floats(pixels), self._data.labels[index]


def load_images(folder: Path, manifest: Manifest, split: str, device: torch.device) -> DeviceImages:
    """Load one split ("train", "val" or "test") of the prepared data set in `folder` onto `device`."""
    stored = read_split(folder, manifest, split)
    return DeviceImages(
        torch.from_numpy(stored.images),
        torch.from_numpy(stored.labels),
        manifest.channel_mean,
        manifest.channel_std,
        device,
    )
