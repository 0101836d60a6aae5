"""The fields of an experiment: a class for each recipe, and for each of its sections.

A new task adds a recipe class to this module, and a line to `RECIPE_OF_TASK`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal, get_args, get_origin

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, field_validator, model_validator

from affsup_cli.affinity.options import AverageKind, DiagonalKind, LossForm, MatchKind, SoftmaxKind, TargetKind

RECORDING_FIELDS = frozenset({"affinity.measure", "train.test_curve"})
"""Fields that change what is recorded but not the trained model; also under `network.` for a prerequisite."""

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Valid names of recipes and run folders."""


class Section(BaseModel):
    """A table of the recipe: unknown keys are refused, types are not converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True, allow_inf_nan=False)


class ImageData(Section):
    """`[data]`: the prepared data set and its augmentation (section 6.2, footnote 3)."""

    name: str
    pad: int = Field(ge=0, description="zero padding in pixels before a random crop of the original size; 0 = no crop")
    flip: bool = Field(description="mirror each image left-right with probability 1/2")
    train_images: int = Field(0, ge=0, description="number of training images, a fixed class-balanced subset; 0 = all")


class ImageModel(Section):
    """`[model]`: the network by its name in the paper."""

    arch: str = Field(description="resnet20, resnet56, resnet110, resnet18, resnet50, resnet101 or timm:NAME")


class Affinity(Section):
    """`[affinity]`: L_G on any graph (section 3)."""

    loss: Literal["none", LossForm] = Field(description="form of L_G; none = base network")
    gamma: float = Field(description="exponent of the focal term (eq. 7): 0, or 1 and above")
    lambda_: float = Field(alias="lambda", ge=0, description="weight of L_G in the total loss (eq. 8)")
    softmax: SoftmaxKind = Field(description="softmax over the whole matrix (eq. 3) or each row (eq. 12)")
    measure: bool = Field(description="record M also if L_G is not trained on")
    row_average: bool = Field(
        False, description="softmax = row: average the loss over the rows with a target, in place of their sum (eq. 13)"
    )

    @field_validator("gamma")
    @classmethod
    def _gamma_has_a_finite_gradient(cls, gamma: float) -> float:
        if gamma != 0 and not gamma >= 1:
            raise ValueError(f"must be 0 or at least 1 (between, the gradient at M = 1 is infinite), not {gamma:g}")
        return gamma


class BatchAffinity(Affinity):
    """`[affinity]`: L_G on the similarity graph of a mini-batch (section 5)."""

    diagonal: DiagonalKind = Field(description="whether an image's affinity to itself counts")
    features: Literal["pooled", "logits"] = Field(description="the vectors of the graph's nodes")
    normalize: bool = Field(description="scale the vectors to unit length first")
    temperature: float = Field(gt=0, description="divide the affinities by this")
    across: Literal["global", "device"] = Field(
        "global",
        description="with several processes: a graph of the whole batch, or one graph for each process's shard",
    )


class RelationAffinity(Affinity):
    """`[affinity]`: L_G on the attention between the proposals of an image (section 4)."""

    target: TargetKind = Field(
        description="which pairs of proposals should attend to each other (section 4.1, 6.5, supplement E)"
    )
    first: str = Field(description="category-pair: class of the reference object, such as person; else empty")
    second: str = Field(description="category-pair: class of the other object; empty = any")
    module: int = Field(ge=1, description="which relation module's graph, 1 = the first")
    heads: Literal["mean", "each"] = Field(description="a graph of the heads' mean, or one a head; ranked: the mean")
    geometry: bool = Field(description="add the geometric term to the graph (eq. 9 has none)")
    average: AverageKind = Field(
        "with-target", description="average L_G over the images that have a target, or over all images of the batch"
    )
    match: MatchKind = Field(
        "argmax", description="a proposal's objects: the one that it overlaps most, or any; IoU above 0.5"
    )


class SceneData(Section):
    """`[data]`: the prepared data set of annotated scenes, and the image size (docs/paper-departures.md#reading-11)."""

    name: str
    short_side: int = Field(ge=16, description="pixels that the shorter side is scaled to")
    long_side: int = Field(ge=16, description="largest number of pixels of the longer side")
    mirror: bool = Field(description="train on each image and its mirror image in every epoch")

    @model_validator(mode="after")
    def _sides_are_in_order(self) -> SceneData:
        if self.long_side < self.short_side:
            raise ValueError(f"data.long_side = {self.long_side}: expected at least short_side = {self.short_side}")
        return self


class Detector(Section):
    """`[model]`: Faster R-CNN (docs/paper-departures.md#reading-11)."""

    arch: str = Field(
        description="resnet18, resnet50, resnet101, mobilenet_v3_large, efficientnet_lite0, convnet or timm:NAME"
    )
    weights: str = Field(
        description="imagenet (downloaded), a file, or none; with any, the stem and the batch norms are frozen"
    )
    pixels: Literal["torchvision", "caffe", "signed"] = Field(
        description="input of the backbone: RGB with ImageNet's mean and deviation, BGR minus a mean, or -1..1"
    )
    anchor_scales: tuple[PositiveFloat, ...] = Field(
        strict=False, min_length=1, description="anchor sides in backbone strides"
    )
    anchor_ratios: tuple[PositiveFloat, ...] = Field(strict=False, min_length=1, description="height over width")
    proposals: int = Field(ge=1, le=10_000, description="regions an image (N)")
    candidates: int = Field(ge=1, description="highest-scoring anchors, input of NMS at 0.7")
    pooling: Literal["pool", "align"] = Field(description="RoIPool or RoIAlign, 7x7")
    channels: int = Field(ge=1, description="channels of the map that regions are pooled from, after a 1x1 convolution")
    width: int = Field(ge=1, description="outputs of each fully connected layer of the head")
    initial: Literal["normal", "kaiming"] = Field(
        description="new layers' weights: N(0, 0.01), or scaled by their inputs, for networks from scratch (He et al.)"
    )
    mined: int = Field(ge=1, description="regions an image with the highest losses, on which the head is trained")


class Relation(Section):
    """`[relation]`: the modules between the head's layers (Relation Networks; docs/paper-departures.md#reading-4)."""

    modules: Literal[1, 2] = Field(description="one after each fully connected layer, or after the last alone")
    heads: int = Field(ge=1)
    key_dim: int = Field(ge=1, description="width of a head's queries and keys (d_k, eq. 9)")


class Pairs(Section):
    """`[pairs]`: Relationship Proposal Networks' scoring of pairs (docs/paper-departures.md#reading-18)."""

    hidden: int = Field(ge=1, description="width of both compatibility branches")
    sampled: int = Field(ge=2, description="pairs an image that scores are trained on, at most half of them annotated")


class SceneTest(Section):
    """`[test]`: options of evaluation (docs/paper-departures.md#reading-11 and #reading-13)."""

    detections: int = Field(ge=1, description="detections an image, over all classes, after soft-NMS")
    recall_at: tuple[PositiveInt, ...] = Field(strict=False, min_length=1, description="K of the relationship recall")
    evaluator: Literal["arrays", "pycocotools"] = Field(
        default="arrays",
        description="implementation of average precision: our own on arrays, or pycocotools (equal numbers, slower)",
    )

    @field_validator("recall_at")
    @classmethod
    def _ks_are_sorted(cls, recall_at: tuple[int, ...]) -> tuple[int, ...]:
        if list(recall_at) != sorted(set(recall_at)):
            raise ValueError("must be in ascending order")
        return recall_at


class SceneModel(Section):
    """`[model]`: the branch for scene categories on a frozen relation network, part A (section 4.3)."""

    features: Literal["scene", "rois", "attention"] = Field(
        description="input of the classifier: F_s; F_s and the maximum of F_in over the proposals; F_s and that of F_c"
    )
    pretrained: bool = Field(description="part A is a trained run of [network]; false: only its backbone is pretrained")
    channels: int = Field(ge=1, description="length of F_s: outputs of the 1x1 convolution on the backbone's last map")
    network_seed: Literal["network", "run"] = Field(
        "network", description="seed of part A: network.seed, one part A for all runs; or that of the run, one for each"
    )


class Training(Section):
    """`[train]`: schedule, optimiser and precision (section 6.2)."""

    epochs: int = Field(ge=1, le=10**6)
    batch_size: int = Field(ge=1, le=10**6, description="images a step")
    learning_rate: float = Field(gt=0)
    milestones: tuple[int, ...] = Field(
        strict=False, description="epochs after which the learning rate is divided by 10"
    )
    schedule: Literal["steps", "cosine"] = Field(
        "steps", description="steps: divided at the milestones; cosine: from learning_rate down to 0 over the epochs"
    )
    momentum: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    clip_norm: float = Field(ge=0, description="largest norm of the gradient, which is scaled down to it; 0 = off")
    precision: Literal["float32", "tf32", "bf16", "auto"] = Field(
        description="bf16 = autocast; tf32 changes CUDA only; auto = bf16 where that is fast, else float32"
    )
    select: Literal["best", "last"] = Field(description="test the best epoch on the validation split, or the last")
    test_curve: bool = Field(description="evaluate the test split after every epoch (figure 5); never used to choose")


class NetworkTraining(Training):
    """`[train]` of tasks that train a whole network."""

    compile: bool = Field(False, description="run the backbone, and a detector's head, through torch.compile")


class ClassifierTraining(NetworkTraining):
    """`[train]` of a classifier."""

    batch_size: int = Field(ge=2, le=10**6, description="images a step")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of the cross entropy's target that is spread over all classes"
    )


Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]


class Execution(Section):
    """`[run]`: device and execution. Not part of a run's identity: a resumed run may change these."""

    device: str = Field(description="auto, cpu, cuda or cuda:N")
    checkpoint_seconds: float = Field(gt=0, description="longest time between two checkpoints")
    tensorboard: bool = Field(False, description='the older form of trackers = ["tensorboard"]')
    trackers: tuple[Tracker, ...] = Field(
        (), strict=False, description="where each epoch's numbers go as well, such as tensorboard,wandb"
    )
    graph: Literal["auto", "off"] = Field(
        "auto", description="auto: on CUDA, where all steps are alike, capture one as a CUDA graph and replay it"
    )
    deterministic: bool = Field(
        False, description="use deterministic kernels only: two runs on one kind of GPU are bit-identical, and slower"
    )
    channels_last: bool = Field(
        True, description="memory format of images and weights: channels last (NHWC); false: channels first (NCHW)"
    )

    @field_validator("trackers", mode="before")
    @classmethod
    def _names_after_commas(cls, trackers: Any) -> Any:
        if not isinstance(trackers, str):
            return trackers
        return [name.strip() for name in trackers.split(",") if name.strip()]


class DetectionExecution(Execution):
    """`[run]` of the detectors."""

    cache_gb: float = Field(2.0, ge=0, description="memory in GiB for decoded and scaled images, a process; 0 = none")


class Recipe(Section):
    """The sections of every recipe. Each task adds its own in a class below."""

    CELL_FIELDS: ClassVar[frozenset[str]] = frozenset()
    """Fields of this class alone (dotted keys) that `defines_cell`."""

    name: str = Field(pattern=NAME, max_length=100)
    task: str
    seed: int = Field(ge=0, lt=2**63)
    train: Training
    run: Execution

    @classmethod
    def defines_cell(cls, field: str) -> bool:
        """Return whether runs that differ in `field` (a dotted key) can never stand in the same cell of a table."""
        return field in ("task", "data.name") or field.startswith("affinity.") or field in cls.CELL_FIELDS

    def prerequisite(self) -> Recipe | None:
        """Return the recipe of the run that must be finished before this one can begin, if there is one."""
        return None

    def label(self) -> str:
        """Return the first part of its runs' names: recipe, data set, network and form of L_G, if any."""
        fields = self.flat()
        loss = fields.get("affinity.loss")
        form = [] if loss is None else ["base" if loss == "none" else loss]
        return "-".join([self.name, fields["data.name"], fields["model.arch"].replace(":", "-"), *form])

    def flat(self) -> dict[str, Any]:
        """Return the fields under dotted keys, as `--set` takes them: `{"affinity.gamma": 4.0, ...}`."""
        return dict(flatten(self.model_dump(mode="json", by_alias=True)))

    def identity(self) -> dict[str, Any]:
        """Return `flat()` without the fields of `[run]`: two runs of equal identity are the same experiment."""
        return {key: value for key, value in self.flat().items() if "run" not in key.split(".")[:-1]}

    def digest(self) -> str:
        """Return the SHA-256 of `identity()`."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()

    def to_toml(self) -> str:
        """Return the resolved recipe as TOML; `read_recipe` gives it back unchanged."""
        return tomli_w.dumps(self.model_dump(mode="json", by_alias=True))


class MinibatchRecipe(Recipe):
    """Affinity supervision of image classification (section 5)."""

    CELL_FIELDS = frozenset({"model.arch", "data.train_images", "train.schedule", "train.label_smoothing"})

    task: Literal["minibatch"]
    data: ImageData
    model: ImageModel
    affinity: BatchAffinity
    train: ClassifierTraining


class SceneSetRecipe(Recipe):
    """Fields of all recipes on sets of scenes."""

    data: SceneData

    @model_validator(mode="after")
    def _last_epoch_is_tested(self) -> SceneSetRecipe:
        if self.train.select == "best":
            raise ValueError(
                "train.select = 'best' is for image classifiers; all others test the last epoch: expected 'last'"
            )
        return self


class DetectionRecipe(SceneSetRecipe):
    """Fields of the three detection recipes."""

    model: Detector
    train: NetworkTraining
    test: SceneTest
    run: DetectionExecution


class FrcnnRecipe(DetectionRecipe):
    """Object detection without relations: Faster R-CNN, the base network of tables 1 and 5."""

    task: Literal["frcnn"]


class RelnetRecipe(DetectionRecipe):
    """Object detection with attention between proposals (Relation Networks), which L_G can supervise (section 4)."""

    task: Literal["relnet"]
    relation: Relation
    affinity: RelationAffinity

    @classmethod
    def defines_cell(cls, field: str) -> bool:
        """As for every recipe, except lambda: no table varies it, and networks of other sizes need other values."""
        return field != "affinity.lambda" and super().defines_cell(field)

    @model_validator(mode="after")
    def _affinity_fits(self) -> RelnetRecipe:
        affinity = self.affinity
        if affinity.module > self.relation.modules:
            raise ValueError(f"affinity.module = {affinity.module}, but relation.modules = {self.relation.modules}")
        if (affinity.target == "category-pair") != bool(affinity.first) or (affinity.second and not affinity.first):
            raise ValueError(
                f"affinity.target = '{affinity.target}' with affinity.first = '{affinity.first}' and affinity.second = "
                f"'{affinity.second}': name the reference's class in first for category-pair, and for no other target"
            )
        if self.model.width % self.relation.heads:
            raise ValueError(
                f"relation.heads = {self.relation.heads}: expected a divisor of model.width = {self.model.width}"
            )
        return self


class RelpnRecipe(DetectionRecipe):
    """Relationship Proposal Networks, the compared system of figure 4: pairs scored by two learned branches."""

    task: Literal["relpn"]
    pairs: Pairs


class SceneRecipe(SceneSetRecipe):
    """Scene categories from a frozen relation network trained on objects (section 4.3, table 2)."""

    CELL_FIELDS = frozenset({"model.features", "model.pretrained", "model.network_seed"})

    task: Literal["scene"]
    model: SceneModel
    network: RelnetRecipe

    @classmethod
    def defines_cell(cls, field: str) -> bool:
        """As for every recipe; the data and the supervision of part A define a cell, too."""
        return super().defines_cell(field) or (
            field.startswith("network.") and RelnetRecipe.defines_cell(field.removeprefix("network."))
        )

    def prerequisite(self) -> Recipe | None:
        """Return part A's recipe, unless it is not trained."""
        if not self.model.pretrained:
            return None
        return self.network.model_copy(update={"seed": self.seed}) if self.separate_network_per_seed else self.network

    @property
    def separate_network_per_seed(self) -> bool:
        """Whether runs of different seeds build on different part A's."""
        return self.model.pretrained and self.model.network_seed == "run"

    def label(self) -> str:
        """As for every recipe, with the input of the classifier and the label of part A without its data set."""
        network = self.network
        form = "base" if network.affinity.loss == "none" else network.affinity.loss
        words = [self.name, self.data.name, self.model.features, network.model.arch.replace(":", "-")]
        return "-".join([*words, form if self.model.pretrained else "untrained"])

    @model_validator(mode="after")
    def _features_fit(self) -> SceneRecipe:
        if not self.model.pretrained and self.model.features != "scene":
            raise ValueError(
                f"model.features = '{self.model.features}' with model.pretrained = false: an untrained part A has no "
                "meaningful proposals; expected 'scene'"
            )
        return self


RECIPE_OF_TASK: dict[str, type[Recipe]] = {
    "minibatch": MinibatchRecipe,
    "frcnn": FrcnnRecipe,
    "relnet": RelnetRecipe,
    "relpn": RelpnRecipe,
    "scene": SceneRecipe,
}


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the keys of two flat recipes whose values differ, with both values."""
    keys = [*first, *(key for key in second if key not in first)]
    return {key: (first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)}


def trains_the_same(changed: Iterable[str], observing: frozenset[str] = RECORDING_FIELDS) -> bool:
    """Return whether runs that differ only in the fields `changed` (dotted keys) give the same model."""
    return all(field.removeprefix("network.") in observing for field in changed)


def in_words(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """Describe `differences` between a stored and a requested recipe."""
    return "; ".join(f"{key} is {stored!r} there, {asked!r} here" for key, (stored, asked) in changed.items())


def field_help(kind: type[Recipe]) -> dict[str, str]:
    """Return each field's dotted key with its choices and description ('' if it has none)."""
    return dict(field_descriptions(kind))


def field_descriptions(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield each field's dotted key, and its choices and description."""
    for name, field in section.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from field_descriptions(field.annotation, f"{key}.")
        else:
            choices = (
                " | ".join(map(str, get_args(field.annotation))) if get_origin(field.annotation) is Literal else ""
            )
            yield key, "; ".join(filter(None, (choices, field.description)))


def flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested tables under dotted keys."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
