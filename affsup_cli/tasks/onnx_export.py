"""Trained models as ONNX, compared with PyTorch before they are handed out. Needs the extra `onnx`."""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from affsup_cli.recipe import DetectionRecipe, MinibatchRecipe
from affsup_cli.runs.export import TrainedModel
from affsup_cli.tasks.classifier_prediction import ClassifierPredictor
from affsup_cli.tasks.detection.network import DetectionModel
from affsup_cli.tasks.detection.prediction import DetectionPredictor
from data_prep.errors import AffsupError, UsageError

SUFFIX = ".onnx"
TOLERANCE = 1e-3
"""Largest difference to PyTorch: of a classifier relative to its largest output, of a detector in probability."""
BOX_TOLERANCE = 0.1
"""Largest difference of a side of a box, in pixels."""
LEAST_MATCHED = 0.99
"""Share of a detector's proposals that must be found again. Rounding may swap two at the end of their ranking."""

_METADATA_KEY = "affsup"
_OPSET = 20
_BATCHES = (1, 5)  # sizes that a classifier is compared on; another than both is exported


@dataclass(frozen=True)
class OnnxModel:
    """An exported model.

    Attributes:
        content: of the file.
        parity: a sentence on the difference to PyTorch.
    """

    content: bytes
    parity: str


def export_onnx(trained: TrainedModel, size: tuple[int, int] | None = None) -> OnnxModel:
    """Export the network in float32 and compare it with PyTorch on a CPU.

    A classifier maps `images` `[N, C, H, W]`, N of any size, to `features` `[N, width]` and `logits` `[N, classes]`. A
    detector maps one image of a fixed size, `images` `[1, 3, H, W]` (RGB, 0..255), to its proposals: `boxes` `[P, 4]`
    as x1, y1, x2, y2 in pixels of the image, `probabilities` `[P, classes]` without the background, and `present`
    `[P]`, false for padding. Non-maximum suppression is left to the caller.

    Args:
        trained: a classifier or detector.
        size: width and height of a detector's image; None for the longest and the shortest side of its recipe.

    Raises:
        UsageError: the task has no such export, or `size` is not for it.
        AffsupError: a library is missing, the network cannot be exported, or differs too much from PyTorch.
    """
    _require_onnx()
    recipe = trained.recipe
    if isinstance(recipe, MinibatchRecipe):
        if size is not None:
            raise UsageError("--size is for detectors: a classifier takes images of the size that it was trained on")
        return _export_classifier(trained, recipe)
    if isinstance(recipe, DetectionRecipe):
        return _export_detector(trained, recipe, size)
    raise UsageError(
        f"{trained.name} is a run of '{recipe.task}': --format onnx takes classifiers and detectors. A scene "
        "classifier joins two networks, of which only part A, the detector, can be exported"
    )


def is_onnx_export(path: Path) -> bool:
    """Return whether a file was written by `affsup export --format onnx`."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return any(entry.key == _METADATA_KEY for entry in onnx.load(path).metadata_props)
    except (OSError, DecodeError):
        return False


def _require_onnx() -> None:
    try:
        for name in ("onnx", "onnxruntime", "onnxscript"):  # torch's exporter needs the last
            importlib.import_module(name)
    except ImportError as error:
        raise AffsupError(
            f"--format onnx needs {error.name}, which is not installed: `pip install 'affsup[onnx]'`"
        ) from None


def _export_classifier(trained: TrainedModel, recipe: MinibatchRecipe) -> OnnxModel:
    model = ClassifierPredictor(trained, recipe, "cpu").model
    shape = trained.environment["data"]["preprocessing"]["image_shape"]
    content = _convert(trained, model, torch.zeros(2, *shape), ["features", "logits"], dynamic=True)
    random = torch.Generator().manual_seed(0)
    largest = 0.0
    for count in _BATCHES:
        images = torch.randn(count, *shape, generator=random)
        for ours, theirs in zip(_outputs(model, images), _run(content, images), strict=True):
            largest = max(largest, float(np.abs(ours - theirs).max() / np.abs(ours).max()))
    parity = f"largest difference to PyTorch {largest:.1e} of the largest output (at most {TOLERANCE:g})"
    if not largest <= TOLERANCE:
        raise AffsupError(f"{trained.name} as ONNX is not the network: {parity}. It is not written")
    return OnnxModel(content, parity)


class _Detector(nn.Module):
    """A detector of one image that fills its input."""

    def __init__(self, network: DetectionModel, height: int, width: int) -> None:
        super().__init__()
        self._detector = network.detector
        self._sizes = [(height, width)]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes `[P, 4]`, probabilities `[P, C]` and presence `[P]` for `[1, 3, H, W]`."""
        regions, _ = self._detector.regions(self._detector.backbone(images), images, self._sizes)
        boxes, probabilities = self._detector.refined(regions, self._sizes)
        return boxes[0], probabilities[0], regions.present[0]


def _export_detector(trained: TrainedModel, recipe: DetectionRecipe, size: tuple[int, int] | None) -> OnnxModel:
    width, height = size or (recipe.data.long_side, recipe.data.short_side)
    model = _Detector(DetectionPredictor(trained, "cpu").model, height, width).eval()
    images = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)) * 255
    content = _convert(trained, model, images, ["boxes", "probabilities", "present"], dynamic=False)
    matched, boxes, probabilities = _compare_proposals(_outputs(model, images), _run(content, images))
    parity = (
        f"{matched:.1%} of the proposals are PyTorch's (at least {LEAST_MATCHED:.0%}), up to {boxes:.1e} pixels "
        f"(at most {BOX_TOLERANCE:g}) and {probabilities:.1e} in probability (at most {TOLERANCE:g})"
    )
    if matched < LEAST_MATCHED:
        raise AffsupError(f"{trained.name} as ONNX is not the network: {parity}. It is not written")
    return OnnxModel(content, parity)


def _compare_proposals(ours: Sequence[NDArray[Any]], theirs: Sequence[NDArray[Any]]) -> tuple[float, float, float]:
    """Return the share of our proposals that are among theirs, and the largest differences of boxes and probabilities.

    Each is compared with the nearest of theirs, since rounding may change their order.
    """
    (boxes, shares), (other_boxes, other_shares) = ([part[each[2]] for part in each[:2]] for each in (ours, theirs))
    if not (len(boxes) and len(other_boxes)):
        return float(len(boxes) == len(other_boxes)), 0.0, 0.0
    of_box = np.abs(boxes[:, None] - other_boxes).max(axis=2)
    of_share = np.abs(shares[:, None] - other_shares).max(axis=2)
    nearest = np.maximum(of_box / BOX_TOLERANCE, of_share / TOLERANCE).argmin(axis=1)
    rows = np.arange(len(boxes))
    box, share = of_box[rows, nearest], of_share[rows, nearest]
    same = (box <= BOX_TOLERANCE) & (share <= TOLERANCE)
    return float(same.mean()), float(box[same].max(initial=0)), float(share[same].max(initial=0))


def _convert(trained: TrainedModel, model: nn.Module, images: Tensor, outputs: list[str], *, dynamic: bool) -> bytes:
    """Return the ONNX file of a model on `images`; `dynamic`: on any number of them."""
    batch = ({0: torch.export.Dim("batch", min=1)},) if dynamic else None
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of the exporter about its own parts
            program = torch.onnx.export(
                model,
                (images,),
                input_names=["images"],
                output_names=outputs,
                dynamic_shapes=batch,
                opset_version=_OPSET,
                custom_translation_table={torch.ops.torchvision.roi_pool.default: _max_roi_pool},
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise AffsupError(f"torch cannot export {trained.name} to ONNX: {reason}") from error
    assert program is not None  # noqa: S101  (with dynamo)
    proto = program.model_proto
    record = {
        "name": trained.name,
        "recipe": trained.recipe.to_toml(),
        "classes": trained.classes,
        "preprocessing": trained.environment["data"].get("preprocessing"),
    }
    proto.metadata_props.add(key=_METADATA_KEY, value=json.dumps(record))
    content: bytes = proto.SerializeToString()
    return content


def _max_roi_pool(features: Any, rois: Any, spatial_scale: float, pooled_height: int, pooled_width: int) -> Any:
    """RoIPool as ONNX's operator, which torch's exporter does not know; the indices of the maxima are not needed."""
    from onnxscript import opset18

    pooled = opset18.MaxRoiPool(features, rois, pooled_shape=[pooled_height, pooled_width], spatial_scale=spatial_scale)
    return pooled, opset18.Constant(value_int=0)


@torch.no_grad()
def _outputs(model: nn.Module, images: Tensor) -> list[NDArray[Any]]:
    return [output.numpy() for output in model(images.clone())]


def _run(content: bytes, images: Tensor) -> list[NDArray[Any]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    found: list[NDArray[Any]] = session.run(None, {"images": images.numpy()})
    return found
