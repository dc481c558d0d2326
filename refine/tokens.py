"""Read the tokens of windows from a feature cache: bilinear on each window's grid, without opening an image."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from jzi.errors import CacheError
from jzi.refine.window import Windows
from jzi.store.cache import FeatureCache
from jzi.store.map_embeddings import ENCODED, MISSING
from jzi.store.projection import ABSENT

#: Share of a point's bilinear weights that must be on tokens with imagery, or it is masked.
LEAST_WEIGHT = 0.5

#: Bytes of tiles that are kept in memory by default: those of the windows of a few batches.
MEMORY = 2**28

#: Most tiles of a window: a window of 80 m reads 4 of the paper's tiles.
MAX_TILES = 256

_Tokens = NDArray[np.int8] | NDArray[np.float16]


class WindowTokens:
    """Tokens of the map of a cache, sampled on the grids of windows.

    They are those of `detail` if the cache has them, else the patch tokens of the tiles of level L-1.

    Args:
        cache: the cache of a pyramid.
        memory: bytes of tiles that are kept for other windows.

    Raises:
        CacheError: the cache has neither, or is not the cache of a pyramid.
    """

    def __init__(self, cache: FeatureCache, memory: int = MEMORY) -> None:
        self.path, self.pyramid = cache.path, cache.pyramid
        pyramid, level = self.pyramid, self.pyramid.levels - 1
        footprint, n = pyramid.footprint(level), pyramid.tiles_per_side(level)
        self._read: Callable[[int, int], _Tokens]
        if cache.has_detail:
            detail = cache.detail
            projection = detail.projection
            self.side, self.width, pixels, patch = detail.side, detail.width, detail.info.pixels, detail.info.patch
            self.status, self._read, self._to_float = detail.status(), detail.read, projection.to_float
            self._command = "jzi encode-map --detail"
        elif cache.has_tokens:
            self.side, self.width = _square(cache.patch_tokens.count), cache.patch_tokens.width
            pixels, patch = cache.encoder.image_size, cache.encoder.image_size // self.side
            self.status, self._read = cache.status(level), _whole_tokens(cache, self.side)
            self._to_float = _as_float32
            self._command = "jzi encode-map --tokens"
        else:
            raise CacheError(f"{cache.path} holds no tokens for a refiner: run `jzi encode-map --detail`")
        # Pixels beyond the last whole patch of a tile are in no token: (j + 0.5) / side would be off by up to 3 metres
        inside = (np.arange(self.side) + 0.5) * patch / pixels * footprint
        #: (token,) distance of the centres of all tokens from the west and the north edge of the area, CRS units.
        self.centres = (np.arange(n)[:, None] * footprint + inside).ravel()
        self._tiles: OrderedDict[tuple[int, int], _Tokens | None] = OrderedDict()
        self._capacity = max(4, memory // (self.side**2 * self.width))
