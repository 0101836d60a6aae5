"""Disk cache of the frozen relation network's features of a split, shared by all runs with the same key.

A cache file is `<data>/.features/<hash>.safetensors`. It holds one float32 tensor, `features` `[n, D]`: the features
of the images in the order of their split, then those of their mirror images where these are used. One metadata entry,
`affsup`, holds JSON: `cache_key`, whose SHA-256 is the file's name, and `sha256`, the checksum of the features.
Cache files may be deleted at any time.
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
from data_prep.errors import AffsupError, AffsupWarning

FOLDER = ".features"
FORMAT = 3  # raise this when the computation or the file format changes
LIBRARIES = ("affsup", "pillow", "torch", "torchvision")
_TENSOR = "features"
_ENTRY = "affsup"

Entry = tuple[int, bool]
"""An image of a split, and whether it is mirrored."""


@dataclass(frozen=True)
class CachedSplit:
    """The images of a split.

    Attributes:
        data: the digest of the data set.
        split: the name of the split.
        count: the number of images.
        mirror: whether mirror images are included.
    """

    data: str
    split: str
    count: int
    mirror: bool

    def entries(self) -> list[Entry]:
        """Return all images; mirror images come last."""
        return [(index, mirrored) for mirrored in (False, True)[: 1 + self.mirror] for index in range(self.count)]


class FeatureCache:
    """Features of the images of a split: read from the cache file, or computed when first asked for.

    A process that has computed all of them writes the cache file. Of several processes each computes the features of
    its own shards; they read the cache file and write none.

    Args:
        images: the images of the split.
        batches: their pixels.
        model: holds the frozen network, whose weights must be loaded before the first call of `features`.
        recipe: the recipe of the run.
        data_dir: the folder of the prepared data sets.
    """

    def __init__(
        self, images: CachedSplit, batches: SceneBatches, model: SceneClassifier, recipe: SceneRecipe, data_dir: Path
    ) -> None:
        self._images = images
        self._entries = images.entries()
        self._batches = batches
        self._model = model
        self._recipe = recipe
        self._folder = data_dir / FOLDER
        self._loading: Iterator[tuple[Entry, SceneBatch]] = iter(())

    def features(self, wanted: Sequence[Entry], upcoming: Sequence[Entry]) -> Tensor:
        """Return the features of the images `wanted`, float32 `[B, D]`.

        Args:
            wanted: the images.
            upcoming: all images of later calls, `wanted` first: their pixels are loaded ahead.
        """
        missing = [entry for entry in wanted if entry not in self._features]
        for entry in missing:
            self._features[entry] = compute_features(self._model, self._next(entry, upcoming), self._recipe)
        if missing and len(self._features) == len(self._entries) and collectives.world_size() == 1:
            self._cache_file.write(torch.stack([self._features[entry] for entry in self._entries]))
        return torch.stack([self._features[entry] for entry in wanted])

    @cached_property
    def _cache_file(self) -> CacheFile:
        return CacheFile(self._folder, cache_key(self._images, self._model, self._recipe))

    @cached_property
    def _features(self) -> dict[Entry, Tensor]:
        cached = self._cache_file.read()
        if cached is None:
            return {}
        return dict(zip(self._entries, cached.to(_device_of(self._model)), strict=True))

    def _next(self, entry: Entry, upcoming: Sequence[Entry]) -> SceneBatch:
        loaded, batch = next(self._loading, (None, None))
        if loaded != entry:
            missing = [each for each in upcoming if each not in self._features]
            self._loading = zip(missing, self._batches.batches([[each] for each in missing]), strict=True)
            loaded, batch = next(self._loading)
        if batch is None or loaded != entry:
            raise ValueError(f"image {entry} is not the first of the upcoming images")
        return batch


class CacheFile:
    """One cache file, which need not exist.

    Args:
        folder: the folder of all cache files; need not exist.
        cache_key: everything that determines the content, JSON-serialisable.
    """

    def __init__(self, folder: Path, cache_key: Mapping[str, Any]) -> None:
        self._cache_key = dict(cache_key)
        name = hashlib.sha256(json.dumps(self._cache_key, sort_keys=True).encode()).hexdigest()
        self.path = folder / f"{name}.safetensors"

    def read(self) -> Tensor | None:
        """Return the features `[n, D]`; None if there is no file.

        A damaged file is not used, and a warning says so.
        """
        try:
            with safe_open(self.path, framework="np") as file:  # "pt" opens it twice: it may be replaced in between
                record = json.loads((file.metadata() or {})[_ENTRY])
                features = torch.from_numpy(file.get_tensor(_TENSOR))
            if record == self._record(features):
                return features
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError):
            pass
        warnings.warn(
            f"{self.path} is damaged or was written by another program: the features are computed again",
            AffsupWarning,
            stacklevel=2,
        )
        return None

    def write(self, features: Tensor) -> None:
        """Write the features `[n, D]`; if that fails, a warning says so, and the run continues."""
        features = features.cpu()
        content = save({_TENSOR: features}, metadata={_ENTRY: json.dumps(self._record(features))})
        try:
            self.path.parent.mkdir(exist_ok=True)
            with atomic_file(self.path, "later runs are faster") as temporary:
                temporary.write_bytes(content)
        except (AffsupError, OSError) as error:
            warnings.warn(f"the features are not cached for other runs: {error}", AffsupWarning, stacklevel=2)

    def _record(self, features: Tensor) -> dict[str, Any]:
        return {"cache_key": self._cache_key, "sha256": hashlib.sha256(features.numpy().data).hexdigest()}


def cache_key(images: CachedSplit, model: SceneClassifier, recipe: SceneRecipe) -> dict[str, Any]:
    """Return everything that determines the features to the last bit, JSON-serialisable.

    Device and library versions are included: a run on one GPU never takes numbers of another.
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


def compute_features(model: SceneClassifier, batch: SceneBatch, recipe: SceneRecipe) -> Tensor:
    """Return the features of a batch of one image, float32 `[D]`, in the recipe's precision and memory format."""
    pixels = batch.images.to(torch.float32, memory_format=memory_format(recipe.run.channels_last))
    with autocast(pixels.device, recipe.train.precision):
        return model.part_a_features(pixels, batch.sizes[0])


def _device_of(model: SceneClassifier) -> torch.device:
    return next(model.parameters()).device
