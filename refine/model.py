"""UnifyGeo: retrieval and metres by one network for photos and one for the map (arXiv 2505.07622)."""

from __future__ import annotations

from torch import Tensor, nn

from jzi.refine.config import UnifyGeoConfig
from jzi.refine.outputs import AerialFeatures, GroundFeatures, PhotoInput, RefinerOutput


class UnifyGeo(nn.Module):
    """UnifyGeo, with random weights.

    Args:
        config: its architecture.
    """

    def __init__(self, config: UnifyGeoConfig) -> None:
        super().__init__()
        self.config = config

    def ground(self, photos: PhotoInput) -> GroundFeatures:
        """Features of photos, from (n, 3, H, W) `pixels`."""
        raise NotImplementedError

    def aerial(self, pixels: Tensor) -> AerialFeatures:
        """Features of (n, 3, S, S) windows, north up."""
        raise NotImplementedError

    def match(self, ground: GroundFeatures, aerial: AerialFeatures, mask: Tensor | None = None) -> RefinerOutput:
        """Density of each photo over its window.

        Args:
            ground: of n photos.
            aerial: of n windows.
            mask: (n, P, P) bool, which pixels have imagery; all by default.
        """
        raise NotImplementedError

    def match_level0(self, ground: GroundFeatures, aerial: AerialFeatures) -> Tensor:
        """(n, m, R, L, L) cosines of level 0 of n photos with each of m windows, for L_R and re-ranking."""
        raise NotImplementedError

    def embed_ground(self, photos: PhotoInput) -> Tensor:
        """(n, C) embeddings of photos, of unit length."""
        raise NotImplementedError

    def embed_aerial(self, pixels: Tensor) -> Tensor:
        """(n, C) embeddings of (n, 3, S, S) windows, of unit length."""
        raise NotImplementedError
