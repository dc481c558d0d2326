"""From the map's features and a photo's descriptors to a density over the window, coarse to fine (UnifyGeo; CCVPE)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from jzi.refine.networks.matching import roll_cosines
from jzi.refine.outputs import GroundFeatures, RefinerOutput, pool_mask, roll_scores


class DoubleConv(nn.Sequential):
    """Two 3 x 3 convolutions with ReLU between them.

    Args:
        channels: channels of the input.
        width: channels of the output.
        dropout: probability of dropout of channels of the input.
    """

    def __init__(self, channels: int, width: int, dropout: float) -> None:
        first, second = nn.Conv2d(channels, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        super().__init__(nn.Dropout2d(dropout), first, nn.ReLU(), second)


class Decoder(nn.Module):
    """Four levels of matching, each at twice the resolution of the one before.

    Args:
        channels: channels C of the levels, coarse to fine.
        skips: channels of the feature maps that the second to the fourth level read besides; 0 for none.
        head: network from the last level's features and cosine, C + 1 channels, to the logits.
        rolls: number R of headings.
        temperature: divisor of cosines by which a prior of headings is weighted against them.
        dropout: probability of dropout of channels between levels.
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        skips: tuple[int, ...],
        head: nn.Module,
        rolls: int,
        temperature: float,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.rolls, self.temperature = rolls, temperature
        self.norms = nn.ModuleList(nn.LayerNorm(each) for each in channels)
        pairs = list(pairwise(channels))
        self.ups = nn.ModuleList(nn.ConvTranspose2d(coarse + 1, fine, 2, 2) for coarse, fine in pairs)
        self.convolutions = nn.ModuleList(
            DoubleConv(fine + skip, fine, dropout) for (_, fine), skip in zip(pairs, skips, strict=True)
        )
        self.head = head

    def forward(self, ground: GroundFeatures, maps: tuple[Tensor, ...], mask: Tensor) -> RefinerOutput:
        """Compute the density of each photo over its window.

        Args:
            ground: of n photos.
            maps: (n, C, L, L) of the first level, and of each further one if it has a skip connection.
            mask: (n, P, P) bool, whether a pixel has imagery.
        """
        features, levels = maps[0], []
        for level, norm in enumerate(self.norms):
            if level:
                features = self.ups[level - 1](features)
                if level < len(maps):
                    features = torch.cat([features, maps[level]], 1)
                features = self.convolutions[level - 1](features)
            aerial = _normalise(features, norm)  # (n, L, L, C)
            covered = pool_mask(mask, features.shape[-1])
            cosines = roll_cosines(ground.descriptors[level], ground.window, aerial, self.rolls)
            cosines = cosines.masked_fill(~covered[:, None], 0.0)
            levels.append(cosines)
            best = roll_scores(cosines, ground.log_heading, self.temperature)
            unit = functional.normalize(aerial, dim=3)
            features = torch.cat([best.masked_fill(~covered, 0.0)[..., None], unit], 3).permute(0, 3, 1, 2)
        logits = self.head(features).squeeze(1).float().masked_fill(~mask, float("-inf"))
        return RefinerOutput(logits, tuple(levels), mask, ground.log_heading, self.temperature)

    def match_level0(self, ground: GroundFeatures, features: Tensor) -> Tensor:
        """(n, m, R, L, L) cosines of n photos with each place of (m, C, L, L) maps of the first level, not masked."""
        aerial = _normalise(features, self.norms[0])
        return roll_cosines(ground.descriptors[0], ground.window, aerial, self.rolls, cross=True)


def _normalise(features: Tensor, norm: nn.Module) -> Tensor:
    """Layer norm over channels, in float32; they come last, which convolutions on a CPU are 1.5 times as fast with."""
    with torch.autocast(features.device.type, enabled=False):
        return norm(features.float().permute(0, 2, 3, 1))
