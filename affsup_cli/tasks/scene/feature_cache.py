"""What part A says of the images of a split: found once, and kept on disk for all runs to which it is the same.

A kept file is `<data>/.described/<hash>.safetensors`. It holds one float32 tensor, `described` `[n, D]`, the images in
the order of their split and, where they are passed too, their mirror images after them; and one metadata entry,
`affsup`, that holds JSON: `basis`, all that decides the numbers to the last bit, whose SHA-256 is the file's name, and
`sha256`, that of the numbers themselves. Kept files may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from affsup_cli.data.scenes import SceneBatch, SceneBatches
from affsup_cli.distributed import collectives
from affsup_cli.models.scene import SceneClassifier
from affsup_cli.recipe import SceneRecipe
from affsup_cli.runs.export import weights_digest
from affsup_cli.runs.folder import atomic_file
from affsup_cli.runtime.devices import autocast, device_name, memory_format, resolve_precision
from data_prep.errors import AffsupError

FOLDER = ".described"
FORMAT = 2  # to be raised when the same images and weights come to other numbers, or to another file
LIBRARIES = ("affsup", "pillow", "torch", "torchvision")
_TENSOR = "described"
_ENTRY = "affsup"

Entry = tuple[int, bool]
"""An image of a split, and whether it is mirrored."""


@dataclass(frozen=True)
class Images:
    """The images of a split that may be described.

    Attributes:
        data: the digest of their data set.
        split: of it.
        count: how many there are.
        mirror: their mirror images belong to them.
    """

    data: str
    split: str
    count: int
    mirror: bool

    def entries(self) -> list[Entry]:
        """Return all of them; mirror images come last."""
        return [(index, mirrored) for mirrored in (False, True)[: 1 + self.mirror] for index in range(self.count)]


class Descriptions:
    """What part A says of some images, each found when first asked for, or read where a run before this has kept it.

    A process that has found all of them keeps them. Of several processes each finds what is in its own shares: they
    read what is there, and keep nothing.

    Args:
        images: which.
        batches: their pixels.
        model: holds part A; must have its weights before the first call of `of`, and keep them.
        recipe: of the run.
        data_dir: where the data sets are prepared.
    """

    def __init__(
        self, images: Images, batches: SceneBatches, model: SceneClassifier, recipe: SceneRecipe, data_dir: Path
    ) -> None:
        self._images = images
        self._entries = images.entries()
        self._batches = batches
        self._model = model
        self._recipe = recipe
        self._folder = data_dir / FOLDER
        self._coming: Iterator[tuple[Entry, SceneBatch]] = iter(())

    def of(self, wanted: Sequence[Entry], coming: Sequence[Entry]) -> Tensor:
        """Return the descriptions of some images, float32 `[B, D]`.

        Args:
            wanted: which.
            coming: all that will be asked for, `wanted` first: their pictures are made ahead.
        """
        missing = [entry for entry in wanted if entry not in self._found]
        for entry in missing:
            self._found[entry] = describe(self._model, self._next(entry, coming), self._recipe)
        if missing and len(self._found) == len(self._entries) and collectives.world_size() == 1:
            self._kept.write(torch.stack([self._found[entry] for entry in self._entries]))
        return torch.stack([self._found[entry] for entry in wanted])

    @cached_property
    def _kept(self) -> KeptFile:
        return KeptFile(self._folder, basis(self._images, self._model, self._recipe))

    @cached_property
    def _found(self) -> dict[Entry, Tensor]:
        kept = self._kept.read()
        if kept is None:
            return {}
        return dict(zip(self._entries, kept.to(_device_of(self._model)), strict=True))

    def _next(self, entry: Entry, coming: Sequence[Entry]) -> SceneBatch:
        announced, batch = next(self._coming, (None, None))
        if announced != entry:
            missing = [each for each in coming if each not in self._found]
            self._coming = zip(missing, self._batches.batches([[each] for each in missing]), strict=True)
            announced, batch = next(self._coming)
        if batch is None or announced != entry:
            raise ValueError(f"image {entry} is asked for, but not the first of those to come")
        return batch


class KeptFile:
    """One kept file, there or not.

    Args:
        folder: of all kept files; need not exist.
        basis: all that its content follows from, as JSON has it.
    """

    def __init__(self, folder: Path, basis: Mapping[str, Any]) -> None:
        self._basis = dict(basis)
        name = hashlib.sha256(json.dumps(self._basis, sort_keys=True).encode()).hexdigest()
        self.path = folder / f"{name}.safetensors"

    def read(self) -> Tensor | None:
        """Return the descriptions `[n, D]`; None where they are not kept.

        A file that is not, to the last bit, what was written is not used, with a warning.
        """
        try:
            with safe_open(self.path, framework="np") as file:  # "pt" opens it twice: it may be replaced in between
                said = json.loads((file.metadata() or {})[_ENTRY])
                described = torch.from_numpy(file.get_tensor(_TENSOR))
            if said == self._record(described):
                return described
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError):
            pass
        warnings.warn(
            f"{self.path} is damaged or another program's, and is not used: its images are described anew",
            stacklevel=2,
        )
        return None

    def write(self, described: Tensor) -> None:
        """Keep the descriptions `[n, D]`. Where that cannot be, a warning says so: no run needs it."""
        described = described.cpu()
        content = save({_TENSOR: described}, metadata={_ENTRY: json.dumps(self._record(described))})
        try:
            self.path.parent.mkdir(exist_ok=True)
            with atomic_file(self.path, "later runs are faster") as temporary:
                temporary.write_bytes(content)
        except (AffsupError, OSError) as error:
            warnings.warn(f"what part A says of the images is not kept for other runs: {error}", stacklevel=2)

    def _record(self, described: Tensor) -> dict[str, Any]:
        return {"basis": self._basis, "sha256": hashlib.sha256(described.numpy().data).hexdigest()}


def basis(images: Images, model: SceneClassifier, recipe: SceneRecipe) -> dict[str, Any]:
    """Return all that decides what part A says of images, as JSON has it.

    Device and versions are among it: a run that is said to have run on one GPU takes no numbers from another.
    """
    device = _device_of(model)
    return {
        "format": FORMAT,
        "data": images.data,
        "split": images.split,
        "mirror": images.mirror,
        "short_side": recipe.data.short_side,
        "long_side": recipe.data.long_side,
        "features": recipe.model.features,
        "network": recipe.network.identity(),
        "weights": weights_digest(model.part_a.state_dict()),
        "precision": resolve_precision(recipe.train.precision, _device_of(model)),
        "channels_last": recipe.run.channels_last,
        "device": device.type,
        "device_name": device_name(device),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "versions": {name: metadata.version(name) for name in LIBRARIES},
    }


def describe(model: SceneClassifier, batch: SceneBatch, recipe: SceneRecipe) -> Tensor:
    """Return what part A says of a batch of one image, float32 `[D]`, in the recipe's arithmetic and memory format."""
    pixels = batch.images.to(torch.float32, memory_format=memory_format(recipe.run.channels_last))
    with autocast(pixels.device, recipe.train.precision):
        return model.describe(pixels, batch.sizes[0])


def _device_of(model: SceneClassifier) -> torch.device:
    return next(model.parameters()).device
