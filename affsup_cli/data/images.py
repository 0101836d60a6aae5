"""Image classification data sets that are stored entirely in device memory: a step needs no loader and no host copy.

50,000 CIFAR images are 150 MB of uint8. Padding, cropping and mirroring are one gather of bytes; only a batch is
converted to floats.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from affsup_cli.data.epochs import epoch_generator
from affsup_cli.distributed.shard import WHOLE, Shard
from data_prep.store import ImageManifest, read_split

SUBSET_SEED = 6400


@dataclass(frozen=True)
class Augmentation:
    """Augmentation of training images (footnote 3): random mirroring, zero padding by `pad` pixels, random crop."""

    pad: int
    flip: bool


class DeviceImages:
    """One split of a prepared data set on a device.

    Args:
        images: Images, uint8 `[n, H, W, C]`.
        labels: Class labels, int64 `[n]`.
        mean: Mean of each channel over the training split, for pixel values in 0..1.
        std: Standard deviation of each channel over the training split, for pixel values in 0..1.
        device: Device that stores images and labels.
        layout: Memory format of a batch.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        layout: torch.memory_format = torch.channels_last,
    ) -> None:
        self.images = images.to(device)
        self._padded = {0: self.images}
        self.labels = labels.to(device)
        self._layout = layout
        # Bytes to normalised floats in one multiply-add: (x / 255 - mean) / std.
        statistics = torch.tensor([mean, std], dtype=torch.float64).view(2, -1, 1, 1)
        self._scale = (1 / (255 * statistics[1])).float().to(device)
        self._shift = (-statistics[0] / statistics[1]).float().to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def padded(self, pad: int) -> Tensor:
        """Return the images with `pad` black pixels on each side, `[n, H + 2 pad, W + 2 pad, C]`; cached."""
        if pad not in self._padded:
            count, height, width, channels = self.images.shape
            padded = self.images.new_zeros(count, height + 2 * pad, width + 2 * pad, channels)
            padded[:, pad : pad + height, pad : pad + width] = self.images
            self._padded[pad] = padded
        return self._padded[pad]

    @property
    def device(self) -> torch.device:
        """The device that stores the images."""
        return self.images.device

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images `index` `[B]` without augmentation: float32 `[B, C, H, W]`, and labels int64 `[B]`."""
        return self._normalise(self.images[index]), self.labels[index]

    def _normalise(self, pixels: Tensor) -> Tensor:
        floats = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=self._layout)
        return torch.addcmul(self._shift, floats, self._scale)


def balanced_subset(labels: np.ndarray, count: int) -> np.ndarray:
    """Choose a class-balanced subset of `count` images; the choice is deterministic.

    Args:
        labels: Class labels, int64 `[n]`.
        count: Size of the subset, 0 to n. If it is no multiple of the number of classes, the first classes have one
            image more. All images of a class are used if it has too few.

    Returns:
        Indices `[count]` in ascending order. Smaller subsets are contained in larger ones.
    """
    order = np.random.default_rng(SUBSET_SEED).permutation(len(labels))
    rank = np.empty(len(labels), dtype=np.int64)  # rank of each image within its class
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank[members] = np.arange(len(members))
    return np.sort(np.lexsort((labels, rank))[:count])


class AugmentedEpochs:
    """Shuffled, augmented epochs over `DeviceImages`; an epoch depends on `(seed, epoch)` only.

    The random numbers of an epoch are drawn on the CPU at its start. Therefore its batches are identical on all
    devices, and epoch and step are sufficient to resume a run. All processes of a distributed run draw the same
    numbers, and each takes its shard of every batch.
    """

    def __init__(
        self, data: DeviceImages, augmentation: Augmentation, batch_size: int, seed: int, shard: Shard = WHOLE
    ) -> None:
        self._data = data
        self._augmentation = augmentation
        self._seed = seed
        self._shard = shard
        self.batch_size = batch_size
        self.steps = -(-len(data) // batch_size)
        self._padded = data.padded(augmentation.pad)
        _, height, width, _ = data.images.shape
        self._rows = torch.arange(height, device=data.device)
        self._columns = torch.arange(width, device=data.device)
        self._mirrored_columns = self._columns.flip(0)
        self._positions = torch.arange(batch_size, device=data.device)
        # Each epoch overwrites these tensors: a CUDA graph reads them at fixed addresses.
        self._order, self._top, self._left = torch.zeros(3, len(data), dtype=torch.int64, device=data.device)
        self._mirrored = torch.zeros(len(data), dtype=torch.bool, device=data.device)

    def begin(self, epoch: int) -> None:
        """Draw the order, crops and mirrorings of `epoch`."""
        generator = epoch_generator(self._seed, epoch)
        count, offsets = len(self._data), 2 * self._augmentation.pad + 1
        self._order.copy_(torch.randperm(count, generator=generator))
        self._top.copy_(torch.randint(offsets, (count,), generator=generator))
        self._left.copy_(torch.randint(offsets, (count,), generator=generator))
        mirrored = torch.randint(2, (count,), generator=generator).bool()
        self._mirrored.copy_(mirrored & self._augmentation.flip)

    def size(self, step: int | Tensor) -> int:
        """Return the global size of batch `step`; `batch_size` if the step is a device tensor."""
        if isinstance(step, Tensor):
            return self.batch_size
        return min(self.batch_size, len(self._data) - step * self.batch_size)

    def batch(self, step: int | Tensor) -> tuple[Tensor, Tensor]:
        """Return batch `step` of the epoch: float32 `[B, C, H, W]`, and labels int64 `[B]`.

        In a distributed run it is the shard of this process, or a dummy image (see `Shard.slice_or_dummy`).
        """
        position = self._positions[self._shard.slice_or_dummy(self.size(step))] + step * self.batch_size
        index, mirrored = self._order[position], self._mirrored[position].unsqueeze(1)
        rows = self._top[position].unsqueeze(1) + self._rows
        columns = self._left[position].unsqueeze(1) + torch.where(mirrored, self._mirrored_columns, self._columns)
        _, height, width, channels = self._padded.shape
        flat = ((index.view(-1, 1, 1) * height) + rows.unsqueeze(2)) * width + columns.unsqueeze(1)
        pixels = self._padded.view(-1, channels)[flat.view(-1)].view(*flat.shape, channels)
        return self._data._normalise(pixels), self._data.labels[index]


_Key = tuple[Path, str, str, torch.device, torch.memory_format, int]

_loaded: weakref.WeakValueDictionary[_Key, DeviceImages] = weakref.WeakValueDictionary()


def load_images(
    folder: Path,
    manifest: ImageManifest,
    split: str,
    device: torch.device,
    layout: torch.memory_format = torch.channels_last,
    count: int = 0,
) -> DeviceImages:
    """Load a split of a prepared data set onto a device.

    Within a process, users of the same content share one read-only copy.

    Args:
        folder: The prepared data set.
        manifest: Its manifest.
        split: `train`, `val` or `test`.
        device: Target device.
        layout: Memory format of a batch.
        count: Size of the `balanced_subset` to load; 0 for all images.

    Raises:
        AffsupError: The data set is damaged or does not match its manifest.
    """
    key = (folder.resolve(), manifest.digest, split, device, layout, count)
    images = _loaded.get(key)
    if images is None:
        stored = read_split(folder, manifest, split)
        subset = balanced_subset(stored.labels, count) if count else slice(None)
        images = _loaded[key] = DeviceImages(
            torch.from_numpy(stored.images[subset]),
            torch.from_numpy(stored.labels[subset]),
            manifest.channel_mean,
            manifest.channel_std,
            device,
            layout,
        )
    return images
