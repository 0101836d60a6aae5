"""Scene categories on top of a frozen detector (section 4.3; figure 2, parts A and C)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from affsup_cli.models.detection.detector import DetectorNetwork
from affsup_cli.recipe import SceneModel


class SceneClassifier(nn.Module):
    """Part A, frozen, and the branch that classifies its features of an image.

    Part A stays in evaluation mode, also after `train()`, and has no gradient: its features of an image never change.
    Layers that `options.features` does not need are removed.

    Args:
        detector: part A, a relation network.
        options: the recipe's `[model]`. Its `features` are the input of the classifier: "scene", F_s; "rois", F_s and
            the maximum of F_in over the proposals; "attention", F_s and that of F_c, the last module's output.
        categories: their number.
    """

    def __init__(self, detector: DetectorNetwork, options: SceneModel, categories: int) -> None:
        super().__init__()
        self._features = options.features
        width = detector.head.classifier.in_features
        unused = (
            ("proposals", "reduce", "head") if options.features == "scene" else ("head.classifier", "head.regressor")
        )
        for layer in unused:
            detector.set_submodule(layer, nn.Identity())
        self.part_a = detector.requires_grad_(False).eval()
        self._map_channels = detector.backbone.channels[1]
        # A 1x1 convolution and the average over positions are linear and commute: the average of the map is computed
        # once for each image, and this layer is the convolution.
        self.scene = nn.Linear(self._map_channels, options.channels)
        self.classifier = nn.Linear(options.channels + (0 if options.features == "scene" else width), categories)

    def train(self, mode: bool = True) -> SceneClassifier:
        """Set the branch to training or evaluation; part A stays in evaluation."""
        super().train(mode)
        self.part_a.eval()
        return self

    @torch.no_grad()
    def part_a_features(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """Return part A's features of one image: the mean of the backbone's last map, then the maximum over proposals.

        Args:
            images: RGB `[1, 3, H, W]`, 0..255, padded; pixels outside `size` are overwritten.
            size: (height, width) of the image within them.

        Returns:
            float32 `[D]`; the maximum over no proposals is 0.
        """
        maps = self.part_a.maps(images, [size])
        height, width = (-(-side // self.part_a.backbone.stride) for side in size)
        mean = maps[1][0, :, :height, :width].float().mean(dim=(1, 2))
        if self._features == "scene":
            return mean
        regions, _ = self.part_a.regions(maps, images, [size])
        of_regions = regions.first_features if self._features == "rois" else regions.context
        if of_regions is None:
            raise ValueError("features = 'attention' needs a network with relation modules")
        of_proposals = of_regions[0][regions.present[0]].float()
        largest = of_proposals.amax(dim=0) if len(of_proposals) else of_proposals.new_zeros(of_regions.shape[-1])
        return torch.cat([mean, largest])

    def forward(self, features: Tensor) -> Tensor:
        """Return category logits `[B, categories]` of part A's features `[B, D]`."""
        mean, largest = features[:, : self._map_channels], features[:, self._map_channels :]
        logits: Tensor = self.classifier(torch.cat([self.scene(mean), largest], dim=1))
        return logits
