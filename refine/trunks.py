"""Small networks from pixels to tokens, trained with the refiner; the map's tokens can be computed tile by tile."""

from __future__ import annotations

from torch import Tensor, nn

from jzi.refine.config import TrunkConfig


class AerialTrunk(nn.Module):
    """Tokens of map images.

    Args:
        config: its architecture; `config.stride`, `config.receptive_field` and `config.margin` say what a token sees.
    """

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, pixels: Tensor, margin: int = 0) -> Tensor:
        """Tokens of images.

        Args:
            pixels: (n, 3, S, S) normalised as ImageNet's, north up; S is a multiple of the stride.
            margin: pixels of the border, a multiple of the stride, whose tokens are left out. With `config.margin`, a
                tile's tokens are those of the whole map.

        Returns:
            (n, s, s, F), s = (S - 2 margin) / stride.
        """
        raise NotImplementedError


class PhotoTrunk(nn.Module):
    """Tokens of photos.

    Args:
        config: its architecture.
    """

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, pixels: Tensor, ring: Tensor | None = None) -> Tensor:
        """Tokens of photos.

        Args:
            pixels: (n, 3, H, W) normalised as ImageNet's; H and W are multiples of the stride.
            ring: (n,) bool, which photos are padded circularly; none by default.

        Returns:
            (n, H / stride, W / stride, F).
        """
        raise NotImplementedError
