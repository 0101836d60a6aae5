"""Annotated scenes as batches on the device: decoded and scaled ahead by a few threads, padded to one size.

An epoch's order is a function of `(seed, epoch)` alone, so that a resumed run needs to know no more than its step.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
from data_prep.store import Objects

SIZE_MULTIPLE = 32  # of padded images: every backbone's maps then cover them
THREADS = min(4, os.cpu_count() or 1)
AHEAD = 2 * THREADS  # batches being made while one is used
NO_OBJECT = -1  # pads labels
NO_RELATION = -2  # pads relations: -1 would be the object of unmatched proposals


class SceneSource(Protocol):
    """What batches are made from: `data_prep.store.Scenes`, or a person's own pictures."""

    @property
    def sizes(self) -> NDArray[np.int32]:
        """Width and height of each image, `[n, 2]`."""

    def __len__(self) -> int:
        """Count the images."""

    def pixels(self, index: int, at_most: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """Decode an image, RGB `[H, W, 3]`, perhaps smaller, but no smaller than `at_most` (width, height)."""

    def objects(self, index: int) -> Objects:
        """Return what is annotated in an image."""


@dataclass(frozen=True)
class SceneBatch:
    """Images of a batch and what is annotated in them, at the scale of the network's input.

    Attributes:
        index: which images of the split, one a scene.
        images: uint8 `[B, 3, H, W]`, RGB, zeros beyond each image's own size.
        sizes: (height, width) of each image within them.
        scales: what original pixels were multiplied by, float32 `[B, 2]` in x and y.
        boxes: objects to be found, float32 `[B, G, 4]` as x1, y1, x2, y2, padded with zeros. Crowds and difficult
            objects are none.
        labels: their classes, int64 `[B, G]`, padded with -1.
        relations: (subject, object), indices into `boxes`, int64 `[B, R, 2]`, padded with -2.
    """

    index: tuple[int, ...]
    images: Tensor
    sizes: list[tuple[int, int]]
    scales: Tensor
    boxes: Tensor
    labels: Tensor
    relations: Tensor

    def mapped(self, function: Callable[[Tensor], Tensor]) -> SceneBatch:
        """Return the batch with `function` of each of its tensors in the tensor's place."""
        images, *annotated = map(function, (self.images, self.scales, self.boxes, self.labels, self.relations))
        return SceneBatch(self.index, images, self.sizes, *annotated)


@dataclass(frozen=True)
class _Scene:
    """One image of a batch, scaled and perhaps mirrored, on the host."""

    image: Tensor
    scale: Tensor
    boxes: Tensor
    labels: Tensor
    relations: Tensor


class SceneBatches:
    """A split of scenes as batches on a device.

    Args:
        source: the images and their annotations.
        short_side: pixels that the shorter side is scaled to.
        long_side: pixels that the longer side has at most, which may leave the shorter one shorter.
        device: where the batches go.
        cache_bytes: scaled images are kept in memory, as many as fit into this; for what is passed many times.
    """

    def __init__(
        self, source: SceneSource, short_side: int, long_side: int, device: torch.device, cache_bytes: int = 0
    ) -> None:
        self._source = source
        self._device = device
        self._sizes = [_scaled_size(int(w), int(h), short_side, long_side) for w, h in source.sizes]
        self._room = cache_bytes
        self._images: dict[int, Tensor] = {}
        self._keeping = threading.Lock()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="scenes")

    def __len__(self) -> int:
        return len(self._source)

    def wide(self, index: int) -> bool:
        """Say whether an image is wider than high: batches of one orientation pad least."""
        width, height = self._sizes[index]
        return width >= height

    def batches(
        self, plan: Sequence[Sequence[tuple[int, bool]]], begin: int = 0, shard: Shard = WHOLE
    ) -> Iterator[SceneBatch]:
        """Yield the batches of a plan, each a list of (image, mirrored), from the one at `begin` on.

        Each of several processes gets its shard, or a dummy (see `Shard.slice_or_dummy`), padded as the whole batch is.
        """
        making: deque[Future[SceneBatch]] = deque()
        coming = (
            self._threads.submit(self._made, entries[shard.slice_or_dummy(len(entries))], entries)
            for entries in islice(plan, begin, None)
        )
        making.extend(islice(coming, AHEAD))
        while making:
            ready = making.popleft().result()
            making.extend(islice(coming, 1))
            yield self._on_device(ready)

    def in_order(self, most: int, shard: Shard = WHOLE) -> Iterator[SceneBatch]:
        """Yield all images as they are, up to `most` at a time, but only neighbours of one size together.

        Each of several processes gets its shard of these batches.

        Nothing is padded but to a multiple of 32: what a network says of an image does not depend on its neighbours.
        """
        plan: list[list[tuple[int, bool]]] = []
        for index in range(len(self)):
            joins = plan and len(plan[-1]) < most and self._sizes[plan[-1][-1][0]] == self._sizes[index]
            if joins:
                plan[-1].append((index, False))
            else:
                plan.append([(index, False)])
        return self.batches(plan[shard.slice_of(len(plan))])

    def _scene(self, index: int, mirrored: bool) -> _Scene:
        image = self._image(index)
        objects = self._source.objects(index).taking_part()
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

    def _image(self, index: int) -> Tensor:
        """An image in its scaled size, uint8 `[3, H, W]`."""
        if index in self._images:
            return self._images[index]
        size = self._sizes[index]
        pixels = self._source.pixels(index, at_most=size)
        if (pixels.shape[1], pixels.shape[0]) != size:
            pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
        image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1).contiguous()
        with self._keeping:
            if index not in self._images and image.nbytes <= self._room:
                self._images[index] = image
                self._room -= image.nbytes
        return image

    def _canvas(self, images: Iterable[int]) -> tuple[int, int]:
        """Height and width that some images are padded to together."""
        width, height = (max(side) for side in zip(*(self._sizes[index] for index in images), strict=True))
        return -(-height // SIZE_MULTIPLE) * SIZE_MULTIPLE, -(-width // SIZE_MULTIPLE) * SIZE_MULTIPLE

    def _made(self, own: Sequence[tuple[int, bool]], whole: Sequence[tuple[int, bool]]) -> SceneBatch:
        """Make the batch of `own` on the host, padded as that of `whole` is."""
        scenes = [self._scene(*entry) for entry in own]
        images = torch.zeros(len(scenes), 3, *self._canvas(index for index, _ in whole), dtype=torch.uint8)
        for place, scene in enumerate(scenes):
            images[place, :, : scene.image.shape[1], : scene.image.shape[2]] = scene.image
        return SceneBatch(
            tuple(index for index, _ in own),
            images,
            [(int(scene.image.shape[1]), int(scene.image.shape[2])) for scene in scenes],
            torch.stack([scene.scale for scene in scenes]),
            pad_sequence([scene.boxes for scene in scenes], True),
            pad_sequence([scene.labels for scene in scenes], True, NO_OBJECT),
            pad_sequence([scene.relations for scene in scenes], True, NO_RELATION),
        ).mapped(self._pinned)

    def _pinned(self, value: Tensor) -> Tensor:
        return value.pin_memory() if self._device.type == "cuda" else value

    def _on_device(self, batch: SceneBatch) -> SceneBatch:
        return batch.mapped(lambda value: value.to(self._device, non_blocking=True))


class SceneEpochs:
    """Shuffled passes over `SceneBatches`, each a function of `(seed, epoch)` alone.

    A batch holds images of one orientation, wide or high, as far as they come out even.

    Args:
        data: the split.
        mirror: an epoch passes each image and its mirror image, as two images.
        batch_size: images a step; the last step of an epoch may have fewer.
        seed: of the order.
        shard: the part of each batch that this process has.
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
        """Draw the order of `epoch`."""
        generator = epoch_generator(self._seed, epoch)
        entries = [
            (index, mirrored)
            for mirrored in ((False, True) if self._mirror else (False,))
            for index in range(len(self._data))
        ]
        shuffled = [entries[place] for place in torch.randperm(len(entries), generator=generator).tolist()]
        ordered = sorted(shuffled, key=lambda entry: self._data.wide(entry[0]))  # stable: shuffled within each
        plan = [ordered[start : start + self._batch_size] for start in range(0, len(ordered), self._batch_size)]
        self._plan = [plan[place] for place in torch.randperm(len(plan), generator=generator).tolist()]
        self._next = -1

    def size(self, step: int) -> int:
        """Return how many images batch `step` has, those of all processes."""
        return len(self._plan[step])

    def batch(self, step: int) -> SceneBatch:
        """Return batch `step` of the epoch, of several processes this one's shard (see `SceneBatches.batches`).

        Asked for in order, it has been made in advance.
        """
        if step != self._next:
            self._batches = self._data.batches(self._plan, step, self._shard)
        self._next = step + 1
        return next(self._batches)


def _scaled_size(width: int, height: int, short_side: int, long_side: int) -> tuple[int, int]:
    scale = min(short_side / min(width, height), long_side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))
