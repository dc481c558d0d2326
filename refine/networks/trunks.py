"""Small networks from pixels to tokens, trained with the refiner; the map's tokens can be computed tile by tile."""

from __future__ import annotations

from torch import Tensor, nn

from jzi.errors import ConfigError
from jzi.refine.config import TrunkConfig
from jzi.refine.networks.backbone import ChannelNorm, ConvNextStage, ConvNextStem


class Trunk(nn.Module):
    """Stages of a small ConvNeXt, and a projection to tokens.

    Args:
        config: its architecture.
    """

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        self.embeddings = ConvNextStem(widths[0])
        self.stages = nn.ModuleList(
            ConvNextStage(widths[index - 1] if index else None, width, depth, config.layer_scale, config.kernel)
            for index, (width, depth) in enumerate(zip(widths, config.depths, strict=True))
        )
        self.out = nn.Sequential(ChannelNorm(widths[-1]), nn.Conv2d(widths[-1], config.features, 1))

    def _tokens(self, pixels: Tensor, ring: Tensor | None, margin: int) -> Tensor:
        stride, (height, width) = self.config.stride, pixels.shape[2:]
        if height % stride or width % stride or margin % stride or 2 * margin >= min(height, width):
            raise ConfigError(
                f"tokens are made of {stride} x {stride} pixels, which do not fill {width} x {height} pixels with a "
                f"margin of {margin}: give multiples of {stride}"
            )
        features = self.embeddings(pixels)
        for stage in self.stages:
            features = stage(features, ring)
        crop = margin // stride
        inner = features[:, :, crop : features.shape[2] - crop, crop : features.shape[3] - crop]
        return self.out(inner).permute(0, 2, 3, 1)


class AerialTrunk(Trunk):
    """Tokens of map images.

    Args:
        config: its architecture; `config.stride`, `config.receptive_field` and `config.margin` say what a token sees.
    """

    def forward(self, pixels: Tensor, margin: int = 0) -> Tensor:
        """Tokens of images.

        Args:
            pixels: (n, 3, S, S) normalised as ImageNet's, north up; S is a multiple of the stride.
            margin: pixels of the border, a multiple of the stride, whose tokens are left out. With `config.margin`, a
                tile's tokens are those of the whole map.

        Returns:
            (n, s, s, F), s = (S - 2 margin) / stride.

        Raises:
            ConfigError: the sides or the margin are no multiple of the stride, or nothing is left.
        """
        return self._tokens(pixels, None, margin)


class PhotoTrunk(Trunk):
    """Tokens of photos.

    Args:
        config: its architecture.
    """

    def forward(self, pixels: Tensor, ring: Tensor | None = None) -> Tensor:
        """Tokens of photos.

        Args:
            pixels: (n, 3, H, W) normalised as ImageNet's; H and W are multiples of the stride.
            ring: (n,) bool, which photos are padded circularly; none by default.

        Returns:
            (n, H / stride, W / stride, F).

        Raises:
            ConfigError: a side is no multiple of the stride.
        """
        return self._tokens(pixels, ring, 0)
