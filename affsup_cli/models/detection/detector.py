"""Faster R-CNN with or without relation modules in its head, as Relation Networks build it.

Choices and departures: docs/paper-departures.md#reading-11.

Backbone -> region proposals -> pooled features -> two fully connected layers, in a relation network with a relation
module after each -> class scores and one box a region. All parts are torchvision's, except the relation modules, the
choice of proposals and the mining of hard regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, encode_boxes
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import box_iou, clip_boxes_to_image, roi_pool

from affsup_cli.affinity import match_proposals
from affsup_cli.affinity.precision import without_autocast
from affsup_cli.models.detection.backbone import Backbone
from affsup_cli.models.detection.nms import first_nms, padded_nms
from affsup_cli.models.detection.relation import INITIAL_STD, RelationModule, geometry_embedding
from affsup_cli.models.detection.roi_align import roi_align
from affsup_cli.recipe import Detector, Relation

POOLED_SIZE = 7
NMS_IOU = 0.7
RPN_IOU = (0.7, 0.3)  # an anchor is positive above the first, negative below the second
RPN_SAMPLED = 256  # anchors an image, at most half of them positive
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # deviations 0.1, 0.1, 0.2, 0.2 of the regression targets
MATCH_IOU = 0.5


class Graph(NamedTuple):
    """Attention logits of a relation module, `[B, heads, Q, N]`: scaled dot products (eq. 9) and geometric logits."""

    dots: Tensor
    geometry: Tensor


@dataclass(frozen=True)
class Regions:
    """The regions of B images with their features and predictions.

    Attributes:
        boxes: the N proposals of each image, float32 `[B, N, 4]` in pixels of its input, padded with zeros.
        present: bool `[B, N]`, false for padding, which comes last.
        pooled: RoI features of the queries (proposals, in training the annotated boxes after them),
            `[B, Q, channels * 7 * 7]`, the input of the head.
        first_features: output of the head's first layer, input of the first relation module (F_in), `[B, Q, width]`.
        features: output of the head's last layer, `[B, Q, width]`.
        context: output of the last relation module (F_out, eq. 10), `[B, Q, width]`; None without modules.
        class_logits: `[B, Q, C + 1]`; class 0 is the background.
        box_deltas: `[B, Q, 4]`, one box a region whatever its class.
        graphs: of the relation modules, in order.
    """

    boxes: Tensor
    present: Tensor
    pooled: Tensor
    first_features: Tensor
    features: Tensor
    context: Tensor | None
    class_logits: Tensor
    box_deltas: Tensor
    graphs: tuple[Graph, ...]

    @property
    def pairs(self) -> Tensor:
        """Whether both proposals of a pair are real, not padding: bool `[B, N, N]`."""
        return self.present.unsqueeze(1) & self.present.unsqueeze(2)


class ProposalNetwork(RegionProposalNetwork):  # type: ignore[misc]
    """torchvision's region proposal network on one map, with NMS that stops at the wanted number.

    The only synchronisations with a GPU are torchvision's: NMS, the sampler of anchors and the losses (results of
    data-dependent length), and the constants of the box coder.
    """

    def filter_proposals(
        self,
        proposals: Tensor,
        objectness: Tensor,
        image_shapes: Sequence[tuple[int, int]],
        num_anchors_per_level: Sequence[int],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Choose each image's proposals by descending objectness (overrides torchvision's).

        If an image has too few, zeros with confidence 0 may follow.
        """
        chosen, scores = [], []
        candidates = min(self.pre_nms_top_n(), proposals.shape[1])
        best, order = objectness.detach().reshape(len(proposals), -1).topk(candidates)
        for boxes, confidence, rows, shape in zip(proposals, best, order, image_shapes, strict=True):
            inside = clip_boxes_to_image(boxes[rows], shape)
            # NMS never suppresses boxes without an area: they are sorted last.
            solid = ((inside[:, 2:] - inside[:, :2]) >= self.min_size).all(dim=1)
            confidence = confidence.masked_fill(~solid, -torch.inf)
            if torch.compiler.is_exporting():
                kept, real = padded_nms(inside, confidence, self.nms_thresh, self.post_nms_top_n())
                solid = solid.index_select(0, kept) & real
            else:
                kept = first_nms(inside, confidence, self.nms_thresh, self.post_nms_top_n())
                solid = solid[kept]
            chosen.append(inside[kept].masked_fill(~solid.unsqueeze(1), 0))
            scores.append(confidence[kept].sigmoid())
        return chosen, scores

    def assign_targets_to_anchors(self, anchors: list[Tensor], targets: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Label all images' anchors at once (overrides torchvision's loop over images).

        Args:
            anchors: `[A, 4]` of each image, all equal.
            targets: the annotated boxes `[B, G, 4]`, padded with zeros.

        Returns:
            For each image, the labels `[A]` (1 object, 0 background, -1 ignored) and the target boxes `[A, 4]` of the
            anchors with label 1.
        """
        targets = F.pad(targets, (0, 0, 0, 1))  # so that there is at least one box
        real = _real(targets).unsqueeze(-1)
        overlap = box_iou(targets.flatten(0, 1), anchors[0]).view(*targets.shape[:2], -1).masked_fill(~real, -1)
        best, match = overlap.max(dim=1)
        nearest = (real & (overlap == overlap.amax(dim=2, keepdim=True))).any(dim=1)
        low, high = self.proposal_matcher.low_threshold, self.proposal_matcher.high_threshold
        positive = nearest | (best >= high)
        labels = positive.float().masked_fill(~positive & (best >= low), -1)
        return list(labels), list(targets.gather(1, match.unsqueeze(-1).expand(-1, -1, 4)))


class HeadOutput(NamedTuple):
    """The features of a head, each `[B, Q, width]`, and its modules' graphs; see `Regions`."""

    first_features: Tensor
    features: Tensor
    context: Tensor | None
    graphs: tuple[Graph, ...]


class DetectorHead(nn.Module):
    """Two fully connected layers on pooled features, each followed by a relation module: FC, module, FC, module.

    A single module follows the second layer. A module's context is added before the ReLU.
    """

    def __init__(self, classes: int, channels: int, width: int, relation: Relation | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(channels * POOLED_SIZE**2, width), nn.Linear(width, width)])
        modules = relation.modules if relation else 0
        self.relations = nn.ModuleList(
            RelationModule(width, relation.heads, relation.key_dim) for _ in range(modules) if relation
        )
        self.classifier = nn.Linear(width, classes + 1)
        self.regressor = nn.Linear(width, 4)
        for parameter in chain(*(part.parameters() for part in (self.layers, self.classifier, self.regressor))):
            _initialise(parameter)

    def forward(self, pooled: Tensor, boxes: Tensor, present: Tensor) -> HeadOutput:
        """Compute the features of pooled queries `[B, Q, channels * 7 * 7]`; the keys are the first N."""
        embedding = geometry_embedding(boxes, boxes[:, : present.shape[1]]) if len(self.relations) else None
        graphs = []
        context = None
        features = first_features = self.layers[0](pooled)
        for place, layer in enumerate(self.layers):
            if place:
                features = layer(features)
            module = place - len(self.layers) + len(self.relations)
            if embedding is not None and module >= 0:
                context, dots, geometry = self.relations[module](features, embedding, present)
                features = features + context
                graphs.append(Graph(dots, geometry))
            features = features.relu()
        return HeadOutput(first_features, features, context, tuple(graphs))


class DetectorNetwork(nn.Module):
    """A detector for C classes.

    Args:
        backbone: computes two maps at the same stride, for the proposals and for the regions' features.
        classes: number of classes C without the background.
        options: its sizes, the recipe's `[model]`.
        relation: its relation modules, the recipe's `[relation]`; None for a plain Faster R-CNN.
    """

    _box_weights: Tensor
    _dummy_box: Tensor
    """A valid box, in place of absent ones."""

    def __init__(self, backbone: Backbone, classes: int, options: Detector, relation: Relation | None = None) -> None:
        super().__init__()
        self._options = options
        self.backbone = backbone
        sides = tuple(scale * backbone.stride for scale in options.anchor_scales)
        anchors = AnchorGenerator((sides,), (options.anchor_ratios,))
        map_channels, head_channels = backbone.channels
        self.proposals = ProposalNetwork(
            anchors,
            RPNHead(map_channels, anchors.num_anchors_per_location()[0]),
            *RPN_IOU,
            RPN_SAMPLED,
            0.5,
            dict.fromkeys(("training", "testing"), options.candidates),
            dict.fromkeys(("training", "testing"), options.proposals),
            NMS_IOU,
        )
        self.proposals.min_size = 1.0
        self.reduce = nn.Conv2d(head_channels, options.channels, 1)
        for parameter in self.reduce.parameters():
            _initialise(parameter)
        self.head = DetectorHead(classes, options.channels, options.width, relation)
        if options.initial == "kaiming":
            for layer in (self.reduce, *self.head.layers):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        self._coder = BoxCoder(BOX_WEIGHTS)
        # Buffers: a constant created in a step would be copied to the device, which synchronises.
        self.register_buffer("_box_weights", torch.tensor(BOX_WEIGHTS), persistent=False)
        self.register_buffer("_dummy_box", torch.tensor([0.0, 0.0, 1.0, 1.0]), persistent=False)

    def forward(
        self, images: Tensor, sizes: list[tuple[int, int]], gt_boxes: Tensor | None = None
    ) -> tuple[Regions, dict[str, Tensor]]:
        """Find regions and compute their features.

        Args:
            images: RGB `[B, 3, H, W]`, 0..255, padded; pixels outside `sizes` are overwritten.
            sizes: (height, width) of each image within them.
            gt_boxes: in training the annotated boxes `[B, G, 4]`, padded with zeros. They are added as
                queries without being keys.

        Returns:
            The regions, and in training the losses of the proposals.
        """
        return self.regions(self.maps(images, sizes), images, sizes, gt_boxes)

    def maps(self, images: Tensor, sizes: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Return the backbone's maps of padded images, the proposals' and the head's; see `Backbone.forward`."""
        for place, (height, width) in enumerate(sizes):
            # The mean's colour is normalised to 0, like the padding of the first convolution.
            images[place, :, height:] = self.backbone.mean
            images[place, :, :, width:] = self.backbone.mean
        maps: tuple[Tensor, Tensor] = self.backbone(images)
        return maps

    def regions(
        self,
        maps: tuple[Tensor, Tensor],
        images: Tensor,
        sizes: list[tuple[int, int]],
        gt_boxes: Tensor | None = None,
    ) -> tuple[Regions, dict[str, Tensor]]:
        """As `forward`, from the `maps` of the images."""
        map_of_proposals, map_of_head = maps
        with without_autocast(map_of_proposals):  # bfloat16 coordinates would be rounded to several pixels
            boxes, losses = self.proposals(ImageList(images, sizes), {"0": map_of_proposals.float()}, gt_boxes)
        padded, present = self._padded(boxes)
        queries = padded if gt_boxes is None else torch.cat([padded, gt_boxes], dim=1)
        pooled = self._pool(self.reduce(map_of_head).relu(), queries)
        output = self.head(pooled, queries, present)
        logits = self.head.classifier(output.features).float()
        deltas = self.head.regressor(output.features).float()
        named = (
            {"objectness_loss": losses["loss_objectness"], "proposal_loss": losses["loss_rpn_box_reg"]}
            if losses
            else {}
        )
        regions = Regions(
            padded,
            present,
            pooled,
            output.first_features,
            output.features,
            output.context,
            logits,
            deltas,
            output.graphs,
        )
        return regions, named

    def detection_losses(self, regions: Regions, gt_boxes: Tensor, gt_labels: Tensor) -> dict[str, Tensor]:
        """Return the class and box losses of the `mined` hardest regions of each image, averaged over the images.

        Online hard example mining: the regions with the largest sum of both losses are trained on.
        Cross-entropy, the mean over the hard regions, and smooth L1 on the boxes of those among them that overlap an
        object by more than 0.5, summed and divided by `mined`.

        Args:
            regions: from `forward` with the same boxes.
            gt_boxes: `[B, G, 4]`, padded with zeros.
            gt_labels: 0-based classes `[B, G]`.
        """
        queries = torch.cat([regions.boxes, gt_boxes], dim=1)
        valid = torch.cat([regions.present, _real(gt_boxes)], dim=1)
        match = match_proposals(queries, gt_boxes, MATCH_IOU)
        matched = match >= 0
        # The zero in front is read by regions without an object.
        padded_labels = torch.cat(
            [
                torch.zeros_like(gt_labels[:, :1]) if gt_labels.shape[1] else gt_labels.new_zeros(len(gt_labels), 1),
                gt_labels + 1,
            ],
            dim=1,
        )
        expected = padded_labels.gather(1, match + 1)
        of_classes = F.cross_entropy(regions.class_logits.flatten(0, 1), expected.flatten(), reduction="none").view_as(
            expected
        )
        of_boxes = self._box_loss(regions.box_deltas, queries, gt_boxes, match)
        hardness = (of_classes + of_boxes).detach().masked_fill(~valid, -1)
        mined = min(self._options.mined, hardness.shape[1])
        hard = torch.zeros_like(valid).scatter(1, hardness.topk(mined, dim=1).indices, True) & valid
        kept = hard.sum(dim=1).clamp(min=1)
        return {
            "class_loss": ((of_classes * hard).sum(dim=1) / kept).mean(),
            "box_loss": (of_boxes * (hard & matched)).sum(dim=1).mean() / self._options.mined,
        }

    def detections(self, regions: Regions, sizes: list[tuple[int, int]]) -> list[tuple[Tensor, Tensor]]:
        """Return each image's refined boxes `[n, 4]`, in pixels of its input, and class probabilities `[n, C]`."""
        refined, probabilities = self.refined(regions, sizes)
        counts = regions.present.sum(dim=1).tolist()
        return [
            (boxes[:count], shares[:count]) for boxes, shares, count in zip(refined, probabilities, counts, strict=True)
        ]

    def refined(self, regions: Regions, sizes: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Return all proposals' refined boxes `[B, N, 4]`, in pixels of the input, and class probabilities `[B, N, C]`.

        Those of padding are undefined.
        """
        count = regions.boxes.shape[1]
        deltas = regions.box_deltas[:, :count].flatten(0, 1)
        moved = self._coder.decode_single(deltas, regions.boxes.flatten(0, 1)).view_as(regions.boxes)
        refined = torch.stack([clip_boxes_to_image(boxes, size) for boxes, size in zip(moved, sizes, strict=True)])
        return refined, regions.class_logits[:, :count].softmax(dim=2)[:, :, 1:]

    def _padded(self, boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Pad the proposals of each image to N: `[B, N, 4]`, and which are present."""
        filled = [F.pad(of_image, (0, 0, 0, self._options.proposals - len(of_image))) for of_image in boxes]
        padded = torch.stack(filled)
        return padded, _real(padded)

    def _pool(self, features: Tensor, boxes: Tensor) -> Tensor:
        rows = list(boxes)
        scale = 1 / self.backbone.stride
        if self._options.pooling == "align":
            pooled = roi_align(features, rows, POOLED_SIZE, scale)
        else:
            pooled = roi_pool(features, rows, POOLED_SIZE, scale)
        return torch.as_tensor(pooled).reshape(*boxes.shape[:2], -1)

    def _box_loss(self, deltas: Tensor, queries: Tensor, gt_boxes: Tensor, match: Tensor) -> Tensor:
        """Smooth L1 of each region `[B, Q]`; 0 for regions without an object."""
        matched = (match >= 0).unsqueeze(-1)
        # A region without an object encodes a dummy box, and has its own prediction as target.
        anchored = torch.where(matched, queries, self._dummy_box)
        objects = F.pad(gt_boxes, (0, 0, 1, 0)).gather(1, (match + 1).unsqueeze(-1).expand(-1, -1, 4))
        objects = torch.where(matched, objects, self._dummy_box)
        expected = encode_boxes(objects.flatten(0, 1), anchored.flatten(0, 1), self._box_weights).view_as(deltas)
        expected = torch.where(matched, expected, deltas.detach())
        return F.smooth_l1_loss(deltas, expected, reduction="none", beta=1.0).sum(dim=-1)


def _initialise(parameter: Tensor) -> None:
    """Weights from N(0, 0.01), biases 0 (docs/paper-departures.md#reading-4)."""
    if parameter.dim() > 1:
        nn.init.normal_(parameter, std=INITIAL_STD)
    else:
        nn.init.zeros_(parameter)


def _real(boxes: Tensor) -> Tensor:
    """Return which boxes `[..., 4]` are not padding."""
    return (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)
