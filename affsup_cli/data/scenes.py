"""Batches of annotated scenes on the device: threads decode and scale images in advance and pad them to one size.

The order of an epoch depends on `(seed, epoch)` only; therefore epoch and step are sufficient to resume a run.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from affsup_cli.data.epochs import epoch_generator
from affsup_cli.distributed.shard import WHOLE, Shard
from affsup_cli.runtime.threads import thread_pool
from data_prep.store import Objects

SIZE_MULTIPLE = 32  # padded sizes are multiples of it, the largest stride of the backbones
THREADS = min(4, os.cpu_count() or 1)
PREFETCH = 2 * THREADS  # batches that are prepared in advance
NO_OBJECT = -1  # padding of labels
NO_RELATION = -2  # padding of relations; -1 is the object index of unmatched proposals


class SceneSource(Protocol):
    """Images with annotations: `data_prep.store.Scenes`, or a `SinglePicture`."""

    @property
    def sizes(self) -> NDArray[np.int32]:
        """Width and height of each image, int32 `[n, 2]`."""

    def __len__(self) -> int:
        """Return the number of images."""

    def pixels(self, index: int, at_most: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """Decode an image, RGB uint8 `[H, W, 3]`; it may be reduced, to no less than `at_most` (width, height)."""

    def objects(self, index: int) -> Objects:
        """Return the annotated objects of an image."""


class SinglePicture:
    """A user's picture without annotations, as a `SceneSource` of one image.

    Args:
        image: RGB, uint8 `[H, W, 3]`.
    """

    def __init__(self, image: NDArray[np.uint8]) -> None:
        self._image = image
        self.sizes = np.array([[image.shape[1], image.shape[0]]], dtype=np.int32)

    def __len__(self) -> int:
        return 1

    def pixels(self, index: int, at_most: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """Return the picture in full size."""
        return self._image

    def objects(self, index: int) -> Objects:
        """Return no objects."""
        labels, flags = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.bool_)
        return Objects(np.zeros((0, 4), dtype=np.float32), labels, flags, flags, np.zeros((0, 2), dtype=np.int64))


@dataclass(frozen=True)
class SceneBatch:
    """Images of a batch and their annotations, in pixels of the network's input.

    Attributes:
        index: Index of each image in the split.
        images: RGB uint8 `[B, 3, H, W]`, zero-padded on the right and at the bottom.
        sizes: Height and width of each image without padding.
        scales: Scale factors from original pixels to input pixels in x and y, float32 `[B, 2]`.
        boxes: Ground-truth boxes x1, y1, x2, y2, float32 `[B, G, 4]`, padded with zeros; without crowd and difficult
            objects.
        labels: Classes of the boxes, int64 `[B, G]`, padded with -1.
        relations: Subject and object as indices into `boxes`, int64 `[B, R, 2]`, padded with -2.
    """

    index: tuple[int, ...]
    images: Tensor
    sizes: list[tuple[int, int]]
    scales: Tensor
    boxes: Tensor
    labels: Tensor
    relations: Tensor

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> SceneBatch:
        """Return a copy of the batch with `function` applied to each tensor."""
        images, *annotations = map(function, (self.images, self.scales, self.boxes, self.labels, self.relations))
        return SceneBatch(self.index, images, self.sizes, *annotations)


@dataclass(frozen=True)
class _Scene:
    """One scaled, possibly mirrored image of a batch, in host memory."""

    image: Tensor
    scale: Tensor
    boxes: Tensor
    labels: Tensor
    relations: Tensor


class SceneBatches:
    """Batches of a split of scenes on a device.

    Args:
        source: Images and annotations.
        short_side: Length in pixels to which the shorter side is scaled.
        long_side: Maximum length of the longer side in pixels; it takes precedence over `short_side`.
        device: Target device.
        cache_bytes: Size of the cache of scaled images in host memory; 0 for none.
    """

    def __init__(
        self, source: SceneSource, short_side: int, long_side: int, device: torch.device, cache_bytes: int = 0
    ) -> None:
        self._source = source
        self._device = device
        self._sizes = [_scaled_size(int(w), int(h), short_side, long_side) for w, h in source.sizes]
        self._cache_left = cache_bytes
        self._cache: dict[int, Tensor] = {}
        self._cache_lock = threading.Lock()
        self._threads = thread_pool(THREADS, "scenes")

    def __len__(self) -> int:
        return len(self._source)

    def is_landscape(self, index: int) -> bool:
        """Return whether an image is at least as wide as high; batches of one orientation need the least padding."""
        width, height = self._sizes[index]
        return width >= height

    def batches(
        self, plan: Sequence[Sequence[tuple[int, bool]]], begin: int = 0, shard: Shard = WHOLE
    ) -> Iterator[SceneBatch]:
        """Yield the batches of a plan, each a list of (image index, mirrored), starting with number `begin`.

        In a distributed run it is the shard of this process, or a dummy image (see `Shard.slice_or_dummy`), padded to
        the size of the global batch.
        """
        pending: deque[Future[SceneBatch]] = deque()
        submitted = (
            self._threads.submit(self._collate, entries[shard.slice_or_dummy(len(entries))], entries)
            for entries in islice(plan, begin, None)
        )
        pending.extend(islice(submitted, PREFETCH))
        while pending:
            ready = pending.popleft().result()
            pending.extend(islice(submitted, 1))
            yield self._to_device(ready)

    def sequential(self, batch_size: int, shard: Shard = WHOLE) -> Iterator[SceneBatch]:
        """Yield all images in order without mirroring; a batch has consecutive images of one size only.

        Images are padded to a multiple of 32 only. Therefore predictions do not depend on the other images of a batch.
        In a distributed run each process yields its shard of the batches.
        """
        plan: list[list[tuple[int, bool]]] = []
        for index in range(len(self)):
            fits = plan and len(plan[-1]) < batch_size and self._sizes[plan[-1][-1][0]] == self._sizes[index]
            if fits:
                plan[-1].append((index, False))
            else:
                plan.append([(index, False)])
        return self.batches(plan[shard.slice_of(len(plan))])

    def _load_scene(self, index: int, mirrored: bool) -> _Scene:
        image = self._scaled_image(index)
        objects = self._source.objects(index).without_ignored()
        original = torch.from_numpy(self._source.sizes[index].astype(np.float32))
        scale = torch.tensor([image.shape[2], image.shape[1]]) / original
        boxes = torch.from_numpy(objects.boxes) * scale.repeat(2)
        if mirrored:
            image = image.flip(2)
            boxes = torch.stack(
                [image.shape[2] - boxes[:, 2], boxes[:, 1], image.shape[2] - boxes[:, 0], boxes[:, 3]], 1
            )
        return _Scene(
            image,
            scale,
            boxes,
            torch.from_numpy(objects.labels),
            torch.from_numpy(objects.relations),
        )

    def _scaled_image(self, index: int) -> Tensor:
        """Return an image in its scaled size, uint8 `[3, H, W]`."""
        if index in self._cache:
            return self._cache[index]
        size = self._sizes[index]
        pixels = self._source.pixels(index, at_most=size)
        if (pixels.shape[1], pixels.shape[0]) != size:
            pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
        image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1).contiguous()
        with self._cache_lock:
            if index not in self._cache and image.nbytes <= self._cache_left:
                self._cache[index] = image
                self._cache_left -= image.nbytes
        return image

    def _padded_size(self, images: Iterable[int]) -> tuple[int, int]:
        """Return the height and width to which images of one batch are padded."""
        width, height = (max(side) for side in zip(*(self._sizes[index] for index in images), strict=True))
        return -(-height // SIZE_MULTIPLE) * SIZE_MULTIPLE, -(-width // SIZE_MULTIPLE) * SIZE_MULTIPLE

    def _collate(self, own: Sequence[tuple[int, bool]], batch: Sequence[tuple[int, bool]]) -> SceneBatch:
        """Return the batch of the images `own` in host memory, padded to the size of the global `batch`."""
        scenes = [self._load_scene(*entry) for entry in own]
        images = torch.zeros(len(scenes), 3, *self._padded_size(index for index, _ in batch), dtype=torch.uint8)
        for row, scene in enumerate(scenes):
            images[row, :, : scene.image.shape[1], : scene.image.shape[2]] = scene.image
        return SceneBatch(
            tuple(index for index, _ in own),
            images,
            [(int(scene.image.shape[1]), int(scene.image.shape[2])) for scene in scenes],
            torch.stack([scene.scale for scene in scenes]),
            pad_sequence([scene.boxes for scene in scenes], True),
            pad_sequence([scene.labels for scene in scenes], True, NO_OBJECT),
            pad_sequence([scene.relations for scene in scenes], True, NO_RELATION),
        ).map_tensors(self._pin)

    def _pin(self, value: Tensor) -> Tensor:
        return value.pin_memory() if self._device.type == "cuda" else value

    def _to_device(self, batch: SceneBatch) -> SceneBatch:
        return batch.map_tensors(lambda value: value.to(self._device, non_blocking=True))


class SceneEpochs:
    """Shuffled epochs over `SceneBatches`; an epoch depends on `(seed, epoch)` only.

    All images of a batch have one orientation, except in the batch at the boundary between both.

    Args:
        data: The split.
        mirror: Whether an epoch has each image twice, once mirrored.
        batch_size: Global batch size; the last batch of an epoch may be smaller.
        seed: Seed of the order.
        shard: The shard of each batch for this process.
    """

    def __init__(self, data: SceneBatches, mirror: bool, batch_size: int, seed: int, shard: Shard = WHOLE) -> None:
        self._data = data
        self._mirror = mirror
        self._batch_size = batch_size
        self._seed = seed
        self._shard = shard
        self._plan: list[list[tuple[int, bool]]] = []
        self._batches: Iterator[SceneBatch] = iter(())
        self._next = 0
        self.steps = -(-len(data) * (2 if mirror else 1) // batch_size)

    def begin(self, epoch: int) -> None:
        """Draw the order of images for an epoch."""
        generator = epoch_generator(self._seed, epoch)
        entries = [
            (index, mirrored)
            for mirrored in ((False, True) if self._mirror else (False,))
            for index in range(len(self._data))
        ]
        shuffled = [entries[row] for row in torch.randperm(len(entries), generator=generator).tolist()]
        ordered = sorted(
            shuffled, key=lambda entry: self._data.is_landscape(entry[0])
        )  # stable, so each orientation stays shuffled
        plan = [ordered[start : start + self._batch_size] for start in range(0, len(ordered), self._batch_size)]
        self._plan = [plan[row] for row in torch.randperm(len(plan), generator=generator).tolist()]
        self._next = -1

    def size(self, step: int) -> int:
        """Return the global size of batch `step`."""
        return len(self._plan[step])

    def batch(self, step: int) -> SceneBatch:
        """Return batch `step` of the epoch, or the shard of it for this process (see `SceneBatches.batches`).

        Consecutive steps are prepared in advance.
        """
        if step != self._next:
            self._batches = self._data.batches(self._plan, step, self._shard)
        self._next = step + 1
        return next(self._batches)


def _scaled_size(width: int, height: int, short_side: int, long_side: int) -> tuple[int, int]:
    scale = min(short_side / min(width, height), long_side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))
