"""Scene categories on top of a detector that stays as it is (section 4.3; figure 2, parts A and C)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from affsup_cli.models.detection.detector import DetectorNetwork
from affsup_cli.recipe import SceneModel


class SceneClassifier(nn.Module):
    """Part A, frozen, and the branch that classifies what part A says of an image.

    Part A never leaves evaluation mode, whatever `train` asks for, and has no gradient: what it says of an image is
    always the same. Of its layers only those are kept that `options.features` needs.

    Args:
        detector: part A, a relation network.
        options: what is classified, the recipe's `[model]`: "scene" F_s alone, "rois" F_s and the maximum of F_in over
            the proposals, "attention" F_s and the maximum of F_c, the last relation module's output, over them.
        categories: how many.
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
        # A 1x1 convolution and the average over all places are both linear, so they may change places: the average of
        # the map is described once an image and convolved ever after.
        self.scene = nn.Linear(self._map_channels, options.channels)
        self.classifier = nn.Linear(options.channels + (0 if options.features == "scene" else width), categories)

    def train(self, mode: bool = True) -> SceneClassifier:
        """Set the branch to training or evaluation; part A stays in evaluation."""
        super().train(mode)
        self.part_a.eval()
        return self

    @torch.no_grad()
    def describe(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """Return what part A says of one image: the mean of the backbone's last map, then the maximum over proposals.

        Args:
            images: RGB `[1, 3, H, W]`, 0..255, padded; what lies outside `size` is overwritten.
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
        found = regions.entered if self._features == "rois" else regions.context
        if found is None:
            raise ValueError("features = 'attention' needs a network with relation modules")
        of_proposals = found[0][regions.present[0]].float()
        largest = of_proposals.amax(dim=0) if len(of_proposals) else of_proposals.new_zeros(found.shape[-1])
        return torch.cat([mean, largest])

    def forward(self, described: Tensor) -> Tensor:
        """Return category logits `[B, categories]` of images that were described, `[B, D]`."""
        mean, largest = described[:, : self._map_channels], described[:, self._map_channels :]
        logits: Tensor = self.classifier(torch.cat([self.scene(mean), largest], dim=1))
        return logits
