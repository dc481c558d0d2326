"""UnifyGeo: retrieval and metres by one network for photos and one for the map (arXiv 2505.07622).

It differs from the paper where `UnifyGeoConfig` says so, and then only: circular padding and unknown headings are of
CCVPE (Xia et al. 2023), whose form the decoder has. The paper gives no code; the sum of the parameters is its figure.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from jzi.errors import ConfigError
from jzi.refine.azimuth import sector_sampling
from jzi.refine.config import STRIDE, UnifyGeoConfig
from jzi.refine.networks.aggregate import AttentionGem, Mean
from jzi.refine.networks.backbone import ConvNextBranch
from jzi.refine.networks.decoder import Decoder
from jzi.refine.networks.matching import GroundDescriptors
from jzi.refine.outputs import AerialFeatures, GroundFeatures, PhotoInput, RefinerOutput

#: Channels of the two deconvolutions after the last level, from its resolution to pixels.
_HEAD = (32, 16)


class UnifyGeo(nn.Module):
    """UnifyGeo, with random weights; `load_pretrained` takes those of a ConvNeXt.

    Args:
        config: its architecture.
    """

    def __init__(self, config: UnifyGeoConfig) -> None:
        super().__init__()
        self.config = config
        channels, width = config.channels, config.widths[-1]
        self.ground_branch, self.aerial_branch = ConvNextBranch(config), ConvNextBranch(config)
        self.ground_aggregator, self.aerial_aggregator = (
            AttentionGem(width) if config.aggregator == "attention-gem" else Mean() for _ in range(2)
        )
        self.descriptors = GroundDescriptors(width, config.rows, channels, config.bins, tied=config.circular)
        self.decoder = Decoder(channels, channels[1:], _head(channels[-1]), config.rolls, config.temperature)

    def load_pretrained(self, name: str | Path) -> None:
        """Take the weights of a ConvNeXt for both branches (`ConvNextBranch.load_pretrained`).

        Raises:
            EncoderError: the model cannot be loaded, is no ConvNeXt, or has other widths or fewer blocks.
        """
        for branch in (self.ground_branch, self.aerial_branch):
            branch.load_pretrained(name)

    def ground(self, photos: PhotoInput) -> GroundFeatures:
        """Features of photos.

        Args:
            photos: with `pixels`, whose width is a multiple of 32.

        Raises:
            ConfigError: the photos have another height than `config.ground_height`, or no pixels.
        """
        features = self.ground_branch(self._ground_pixels(photos), self._ring(photos))
        fine = features.maps[0]
        sampling, window = sector_sampling(
            photos.hfov_deg, photos.panorama, photos.fill, fine.shape[3], self.config.bins
        )
        descriptors = self.descriptors(fine, sampling, window)
        return GroundFeatures(descriptors, window, photos.log_heading, self.ground_aggregator(features.semantic))

    def aerial(self, pixels: Tensor) -> AerialFeatures:
        """Features of windows.

        Args:
            pixels: (n, 3, S, S) normalised as ImageNet's, north up; S is a multiple of 32.

        Raises:
            ConfigError: S is no multiple of 32.
        """
        features = self.aerial_branch(_windows(pixels))
        return AerialFeatures(features.maps, self.aerial_aggregator(features.semantic))

    def match(self, ground: GroundFeatures, aerial: AerialFeatures, mask: Tensor | None = None) -> RefinerOutput:
        """Density of each photo over its window.

        Args:
            ground: of n photos.
            aerial: of n windows.
            mask: (n, P, P) bool, which pixels have imagery; all by default.
        """
        if mask is None:
            count, side = len(aerial.maps[0]), aerial.maps[0].shape[-1] * STRIDE
            mask = torch.ones(count, side, side, dtype=torch.bool, device=aerial.maps[0].device)
        return self.decoder(ground, aerial.maps, mask)

    def match_level0(self, ground: GroundFeatures, aerial: AerialFeatures) -> Tensor:
        """Cosines of level 0 of photos with windows, for L_R and for re-ranking.

        Args:
            ground: of n photos.
            aerial: of m windows.

        Returns:
            (n, m, R, L, L), not masked (`jzi.refine.outputs.level0_max` takes a mask).
        """
        return self.decoder.match_level0(ground, aerial.maps[0])

    def embed_ground(self, photos: PhotoInput) -> Tensor:
        """(n, C) embeddings of photos, of unit length; `ground` computes them too."""
        semantic = self.ground_branch.semantic(self._ground_pixels(photos), self._ring(photos))
        return self.ground_aggregator(semantic)

    def embed_aerial(self, pixels: Tensor) -> Tensor:
        """(n, C) embeddings of (n, 3, S, S) windows, of unit length; `aerial` computes them too."""
        return self.aerial_aggregator(self.aerial_branch.semantic(_windows(pixels)))

    def _ring(self, photos: PhotoInput) -> Tensor | None:
        return photos.ring if self.config.circular else None

    def _ground_pixels(self, photos: PhotoInput) -> Tensor:
        shape = None if photos.pixels is None else tuple(photos.pixels.shape[2:])
        if photos.pixels is None or shape is None or shape[0] != self.config.ground_height or shape[1] % STRIDE:
            raise ConfigError(
                f"UnifyGeo reads photos of {self.config.ground_height} rows of a multiple of {STRIDE} pixels, not of "
                f"{shape}: resize them, or set refine.ground_height and train anew"
            )
        return photos.pixels


def _windows(pixels: Tensor) -> Tensor:
    if pixels.shape[2] != pixels.shape[3] or pixels.shape[3] % STRIDE:
        raise ConfigError(
            f"UnifyGeo reads square windows of a multiple of {STRIDE} pixels, not of {tuple(pixels.shape[2:])}: "
            "render them so"
        )
    return pixels


def _head(channels: int) -> nn.Sequential:
    first, second = _HEAD
    return nn.Sequential(
        nn.ConvTranspose2d(channels + 1, first, 2, 2),
        nn.ConvTranspose2d(first, second, 2, 2),
        nn.Conv2d(second, second, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(second, 1, 3, padding=1),
    )
