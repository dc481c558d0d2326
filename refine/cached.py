"""A refiner that works on tokens of a cache: it opens no image, and trains on a CPU."""

from __future__ import annotations

from torch import Tensor, nn

from jzi.refine.config import CachedRefinerConfig
from jzi.refine.outputs import AerialFeatures, GroundFeatures, PhotoInput, RefinerOutput


class CachedRefiner(nn.Module):
    """A refiner of tokens, with random weights; its decoder has no skip connections.

    Args:
        config: its architecture.
    """

    def __init__(self, config: CachedRefinerConfig) -> None:
        super().__init__()
        self.config = config

    def ground(self, photos: PhotoInput) -> GroundFeatures:
        """Features of photos, from (n, H', W', F) `tokens`, or from `pixels` if the refiner has trunks."""
        raise NotImplementedError

    def aerial(self, tokens: Tensor) -> AerialFeatures:
        """Features of windows, from (n, side, side, F) tokens, north up."""
        raise NotImplementedError

    def match(self, ground: GroundFeatures, aerial: AerialFeatures, mask: Tensor | None = None) -> RefinerOutput:
        """Density of each photo over its window.

        Args:
            ground: of n photos.
            aerial: of n windows.
            mask: (n, side, side) bool, which tokens have imagery; all by default.
        """
        raise NotImplementedError

    def match_level0(self, ground: GroundFeatures, aerial: AerialFeatures) -> Tensor:
        """(n, m, R, L, L) cosines of level 0 of n photos with each of m windows, for L_R and re-ranking."""
        raise NotImplementedError
