"""Scene categories from a frozen relation network (sections 4.3 and 6.6, table 2)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from affsup_cli.data.epochs import epoch_generator
from affsup_cli.data.scenes import SceneBatches
from affsup_cli.distributed import collectives
from affsup_cli.distributed.shard import Shard
from affsup_cli.models.scene import SceneClassifier
from affsup_cli.recipe import Recipe, SceneRecipe, differences, in_words, trains_the_same
from affsup_cli.runs.checkpoint import explain_mismatch
from affsup_cli.runs.export import TrainedModel
from affsup_cli.runtime.devices import configure_cuda, memory_format, select_device
from affsup_cli.tasks.detection.network import build_network, checksum_of
from affsup_cli.tasks.scene.feature_cache import CachedSplit, Entry, FeatureCache
from affsup_cli.training.task import Losses
from data_prep.errors import UsageError
from data_prep.store import read_scene_manifest, read_scenes


class SceneTask:
    """A branch on a frozen relation network; L = cross entropy of the scene's category.

    Part A's features of an image never change, so each image and its mirror image pass it once, in the first epoch of
    the first run, one at a time: the result does not depend on the order. Later epochs and later runs on the same part
    A use the cached features. Each of several processes computes the features of its own shard.
    """

    def __init__(
        self, recipe: SceneRecipe, data_dir: Path, *, fresh: bool = True, network: TrainedModel | None = None
    ) -> None:
        self._recipe = recipe
        self._device = select_device(recipe.run.device)
        self._folder = data_dir / recipe.data.name
        self._manifest = read_scene_manifest(self._folder, "categories")
        self._train = read_scenes(self._folder, self._manifest, "train")
        configure_cuda(recipe.train.precision)
        self.model, self.initialised_from = build_scene_classifier(
            recipe, len(self._manifest.categories), fresh, network
        )
        self.model.to(memory_format=memory_format(recipe.run.channels_last)).to(self._device)
        self.data = self._manifest.run_record()
        images = CachedSplit(self._manifest.digest, "train", len(self._train), recipe.data.mirror)
        self._entries = images.entries()
        self._categories = torch.from_numpy(self._train.categories).to(self._device)
        self._train_features = self._feature_cache(images)
        self._shard = Shard(collectives.rank(), collectives.world_size())
        self._plan: list[list[Entry]] = []
        self.steps = -(-len(self._entries) // recipe.train.batch_size)

    def begin_epoch(self, epoch: int) -> None:
        """Draw the epoch's order."""
        generator = epoch_generator(self._recipe.seed, epoch)
        order = [self._entries[place] for place in torch.randperm(len(self._entries), generator=generator)]
        size = self._recipe.train.batch_size
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        self._sizes = [len(batch) for batch in batches]
        self._plan = [batch[self._shard.slice_or_dummy(len(batch))] for batch in batches]

    def losses(self, step: int) -> Losses:
        """Compute the losses of one batch; metrics: accuracy."""
        batch, whole = self._plan[step], self._sizes[step]
        logits = self.model(self._train_features.features(batch, list(chain.from_iterable(self._plan[step:]))))
        wanted = self._categories[[index for index, _ in batch]]
        return Losses(
            size=self._shard.size(whole),
            global_batch_size=whole,
            main={"class_loss": F.cross_entropy(logits, wanted)},
            affinity=None,
            weight=0.0,
            shared_features=logits,
            metrics={"accuracy": (logits.argmax(1) == wanted).double().mean()},
        )

    @torch.no_grad()
    def evaluate(self, split: str) -> dict[str, float]:
        """Return accuracy, and its mean over the categories, of images as they are."""
        self.model.eval()
        scenes = read_scenes(self._folder, self._manifest, split)
        shard = self._shard.slice_of(len(scenes))
        images = CachedSplit(self._manifest.digest, split, len(scenes), mirror=False)
        entries = images.entries()[shard]
        cache = self._train_features if split == "train" else self._feature_cache(images)
        size = self._recipe.train.batch_size
        predicted = [
            self.model(cache.features(entries[start : start + size], entries[start:])).argmax(1).tolist()
            for start in range(0, len(entries), size)
        ]
        found = torch.tensor([*chain.from_iterable(chain.from_iterable(collectives.all_gather_object(predicted)))])
        wanted = torch.from_numpy(scenes.categories)
        right = (found == wanted).double()
        of_each = torch.bincount(wanted, right), torch.bincount(wanted)
        occurring = of_each[1] > 0
        return {
            "accuracy": right.mean().item(),
            "accuracy_macro": (of_each[0][occurring] / of_each[1][occurring]).mean().item(),
        }

    def score(self, metrics: Mapping[str, float]) -> float:
        """Return the accuracy. The trainer does not ask for it: scene classifiers test the last epoch."""
        return metrics["accuracy"]

    def export(self, folder: Path, split: str) -> None:
        """Write nothing: reports need the metrics alone."""

    def _feature_cache(self, images: CachedSplit) -> FeatureCache:
        data = self._recipe.data
        scenes = read_scenes(self._folder, self._manifest, images.split)
        batches = SceneBatches(scenes, data.short_side, data.long_side, self._device)
        return FeatureCache(images, batches, self.model, self._recipe, self._folder.parent)


def build_scene_classifier(
    recipe: SceneRecipe, categories: int, fresh: bool = True, network: TrainedModel | None = None
) -> tuple[SceneClassifier, dict[str, Any]]:
    """Build the network on the CPU, and return its initial weights' sources (see `Task.initialised_from`).

    Args:
        recipe: of the network.
        categories: their number.
        fresh: load part A's weights; false if a state dict of the whole will be loaded.
        network: the finished run with part A's weights, where the recipe has a `prerequisite`.

    Raises:
        UsageError: that run is missing, or is of another recipe.
        AffsupError: its weights cannot be read.
    """
    wanted = recipe.prerequisite()
    from_run = fresh and wanted is not None
    if from_run and network is None:
        raise UsageError(f"{recipe.name} builds on a run of {recipe.network.label()}: name it with --pretrained")
    if wanted and network:
        _refuse_other_network(wanted, network)
    classes = len(network.classes) if from_run and network else 1
    torch.manual_seed(recipe.seed)
    part_a = build_network(recipe.network, classes, pretrained=fresh and not from_run)
    initialised_from: dict[str, Any] = {"weights": None, "network": None}
    if from_run and network:
        with explain_mismatch(network.path, network.cure):
            part_a.load_state_dict(network.state(torch.device("cpu")))
        ran_on = network.environment
        initialised_from["weights"] = ran_on.get("weights")
        initialised_from["network"] = {"run": network.name, "digest": network.digest, "data": ran_on["data"]}
    elif fresh:
        initialised_from["weights"] = checksum_of(recipe.network.model.weights)
    torch.manual_seed(recipe.seed)  # the branch's initial weights must not depend on part A
    return SceneClassifier(part_a.detector, recipe.model, categories), initialised_from


def _refuse_other_network(wanted: Recipe, network: TrainedModel) -> None:
    changed = differences(network.recipe.identity(), wanted.identity())
    if not trains_the_same(changed):
        raise UsageError(f"{network.path} is not the run that [network] describes: {in_words(changed)}")
