"""An image classification data set that lives whole on the device: no loader, no copy from the host in a step.

50,000 CIFAR images are 150 MB of uint8. Pad, crop and mirror are one gather of bytes; only a batch is ever floats.
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
        layout: how a batch lies in memory.
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
        # One multiply-add from bytes to normalised floats: x / 255 - mean over std.
        of_channels = torch.tensor([mean, std], dtype=torch.float64).view(2, -1, 1, 1)
        self._scale = (1 / (255 * of_channels[1])).float().to(device)
        self._shift = (-of_channels[0] / of_channels[1]).float().to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def padded(self, pad: int) -> Tensor:
        """Return the images with `pad` black pixels on each side, `[n, H + 2 pad, W + 2 pad, C]`; made once."""
        if pad not in self._padded:
            count, height, width, channels = self.images.shape
            wide = self.images.new_zeros(count, height + 2 * pad, width + 2 * pad, channels)
            wide[:, pad : pad + height, pad : pad + width] = self.images
            self._padded[pad] = wide
        return self._padded[pad]

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.images.device

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return images `index` `[B]` as they are: float32 `[B, C, H, W]` in the data's layout, and labels `[B]`."""
        return self._floats(self.images[index]), self.labels[index]

    def _floats(self, pixels: Tensor) -> Tensor:
        floats = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=self._layout)
        return torch.addcmul(self._shift, floats, self._scale)


def balanced_subset(labels: np.ndarray, count: int) -> np.ndarray:
    """Choose `count` images with the classes in equal parts, always the same ones.

    Args:
        labels: class ids `[n]`.
        count: 0 <= count <= n. Where it is no multiple of the number of classes, the first classes have one more; a
            class with too few images gives all it has.

    Returns:
        Indices `[count]` in rising order. A smaller subset is part of every larger one.
    """
    order = np.random.default_rng(SUBSET_SEED).permutation(len(labels))
    rank = np.empty(len(labels), dtype=np.int64)  # of an image among those of its class
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank[members] = np.arange(len(members))
    return np.sort(np.lexsort((labels, rank))[:count])


class AugmentedEpochs:
    """Shuffled, augmented passes over a `DeviceImages`, each a function of `(seed, epoch)` alone.

    All of an epoch's random numbers are drawn when it begins, on the CPU, so that its batches are the same on any
    device and a resumed run needs to know no more than its epoch and step. Several processes draw the same and take
    their shard of each batch.
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
        self._places = torch.arange(batch_size, device=data.device)
        # Each epoch's numbers take the place of the last one's in the same memory.
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
        """Return how many images batch `step` has, those of all processes; one known to the device alone is full."""
        if isinstance(step, Tensor):
            return self.batch_size
        return min(self.batch_size, len(self._data) - step * self.batch_size)

    def batch(self, step: int | Tensor) -> tuple[Tensor, Tensor]:
        """Return batch `step` of the epoch: float32 `[B, C, H, W]` in the data's layout, and labels `[B]`.

        Each of several processes gets its shard, or a dummy image (see `Shard.slice_or_dummy`).
        """
        part = self._places[self._shard.slice_or_dummy(self.size(step))] + step * self.batch_size
        index, mirrored = self._order[part], self._mirrored[part].unsqueeze(1)
        rows = self._top[part].unsqueeze(1) + self._rows
        columns = self._left[part].unsqueeze(1) + torch.where(mirrored, self._mirrored_columns, self._columns)
        _, height, width, channels = self._padded.shape
        where = ((index.view(-1, 1, 1) * height) + rows.unsqueeze(2)) * width + columns.unsqueeze(1)
        pixels = self._padded.view(-1, channels)[where.view(-1)].view(*where.shape, channels)
        return self._data._floats(pixels), self._data.labels[index]


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
    """Load one split ("train", "val" or "test") of the prepared data set in `folder` onto `device`.

    Where it is in use already, in this process and with the same content, that is returned: nobody changes it.

    Args:
        folder: of the data set.
        manifest: its manifest.
        split: which split.
        device: where to.
        layout: of a batch in memory.
        count: load the `balanced_subset` of so many images; 0 = all.
    """
    key = (folder.resolve(), manifest.digest, split, device, layout, count)
    images = _loaded.get(key)
    if images is None:
        stored = read_split(folder, manifest, split)
        part = balanced_subset(stored.labels, count) if count else slice(None)
        images = _loaded[key] = DeviceImages(
            torch.from_numpy(stored.images[part]),
            torch.from_numpy(stored.labels[part]),
            manifest.channel_mean,
            manifest.channel_std,
            device,
            layout,
        )
    return images
