"""Read the tokens of windows from a feature cache: bilinear on each window's grid, without opening an image."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jzi.errors import CacheError, ConfigError
from jzi.refine.windows.window import Windows
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.features.detail_features import THREADS
from jzi.store.features.map_embeddings import ENCODED, MISSING
from jzi.store.features.projection import ABSENT
from jzi.store.geometry.pyramid import TileKey
from jzi.store.plain import plain

#: Share of a point's bilinear weights that must lie on tokens with imagery; other points are masked.
LEAST_WEIGHT = 0.5

#: Bytes of tiles that are kept in memory by default: those of the windows of some batches.
MEMORY = 2**28

#: Most tiles that a window may touch; one of 80 m touches 4 of the paper's.
MAX_TILES = 256

#: Windows whose tiles are in memory at once.
BATCH = 64

#: Sides of the patches of the families that jzi knows, pixels.
PATCHES = (14, 16, 32, 8)

_Values = NDArray[Any]  # int8 of `detail`, float16 of patch tokens


class WindowTokens:
    """Tokens of the map of a cache, sampled on the grids of windows; opens no image.

    They are those of the group `detail` if the cache has it, else the patch tokens of the tiles of level L-1.

    Args:
        cache: the cache of a pyramid.
        memory: bytes of tiles that are kept for other windows.

    Attributes:
        width: number of features.

    Raises:
        CacheError: the cache has neither, or it is not that of a pyramid.
    """

    def __init__(self, cache: FeatureCache, memory: int = MEMORY) -> None:
        self.path, self.pyramid = cache.path, cache.pyramid
        level = self.pyramid.levels - 1
        self._read: Callable[[int, int], _Values]
        if cache.has_detail:
            detail = cache.detail
            self.side, self.width, pixels, patch = detail.side, detail.width, detail.info.pixels, detail.info.patch
            self._scale, self._read, self._hint = detail.projection.scale, detail.read, "jzi encode-map --detail"
            self._status = detail.status()
        elif cache.has_tokens:
            tokens, pixels = cache.patch_tokens, cache.encoder.image_size
            self.side, self.width = round(tokens.count**0.5), tokens.width
            patch = _patch(pixels, self.side, self.path)
            self._scale, self._hint = np.ones(self.width, np.float32), "jzi encode-map --tokens"
            self._read = lambda row, col: tokens.read(TileKey(level, row, col)).reshape(self.side, self.side, -1)
            self._status = cache.tiles.status(level)
        else:
            raise CacheError(f"{cache.path} holds no tokens for a refiner: run `jzi encode-map --detail`")
        tiles = self.pyramid.tiles_per_side(level)
        # Of a tile of 384 pixels, patches of 14 see 378: a token does not lie at (j + 0.5) / 27 of its tile
        inside = (np.arange(self.side) + 0.5) * patch / pixels
        #: (token,) distance of the centres of all tokens of a row or column from the area's edge, units of the CRS.
        self.centres = ((np.arange(tiles)[:, None] + inside) * self.pyramid.footprint(level)).ravel()
        self._kept: OrderedDict[tuple[int, int], _Values] = OrderedDict()
        self._lock = Lock()
        self._capacity = max(4, memory // (self.side**2 * self.width * (1 if cache.has_detail else 2)))

    def read(self, windows: Windows, side: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Sample the tokens of windows.

        Args:
            windows: windows of the cache's area; their number of pixels does not matter.
            side: points along a side of a window's grid; point (i, j) is at (j + 0.5, i + 0.5) of `side`.

        Returns:
            (window, side, side, feature) float32, 0 where masked, and (window, side, side) whether there is imagery.

        Raises:
            CacheError: a tile has not been encoded.
            CacheCorruptError: a chunk does not match its checksum.
            ConfigError: a window touches too many tiles.
        """
        tokens = np.zeros((len(windows), side, side, self.width), np.float32)
        mask = np.zeros((len(windows), side, side), bool)
        plans = [self._plan(bounds, side) for bounds in windows.bounds]
        for start in range(0, len(plans), BATCH):
            part = plans[start : start + BATCH]
            tiles = self._load({tile for plan in part for tile in plan.tiles(self.side)})
            for index, plan in enumerate(part, start):
                own = {tile: tiles[tile] for tile in plan.tiles(self.side)}
                tokens[index], mask[index] = self._sample(plan, own)
        return tokens, mask

    # One window

    def _plan(self, bounds: NDArray[np.float64], side: int) -> _Plan:
        west, south, east, north = bounds
        steps = (np.arange(side) + 0.5) / side
        x = west + steps * (east - west) - self.pyramid.west
        y = self.pyramid.north - (north - steps * (north - south))
        plan = _Plan(*self._between(y), *self._between(x))
        if (count := len(plan.tiles(self.side))) > MAX_TILES:
            raise ConfigError(
                f"a window of {east - west:.0f} units of the CRS touches {count} tiles, more than {MAX_TILES}: set "
                "refine.window_m to less"
            )
        return plan

    def _between(self, position: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[np.bool_]]:
        """(point, 2) the tokens before and after, (point, 2) their weights, and (point,) whether it is in the area."""
        after = np.clip(np.searchsorted(self.centres, position), 1, max(1, len(self.centres) - 1))
        pair = np.stack([after - 1, np.minimum(after, len(self.centres) - 1)], 1)
        before, behind = self.centres[pair].T
        gap = np.where(behind > before, behind - before, 1.0)
        share = np.clip((position - before) / gap, 0, 1)  # beyond the outermost centres, the nearest token
        inside = (position >= 0) & (position < self.pyramid.size)
        return pair, np.stack([1 - share, share], 1), inside

    def _sample(self, plan: _Plan, tiles: dict[tuple[int, int], _Values | None]) -> tuple[_Values, NDArray[np.bool_]]:
        side, width = len(plan.row_inside), self.width
        if not (plan.row_inside.any() and plan.col_inside.any()):
            return np.zeros((side, side, width), np.float32), np.zeros((side, side), bool)
        rows, cols = plan.rows[plan.row_inside], plan.cols[plan.col_inside]
        top, left = int(rows.min()), int(cols.min())
        height, breadth = int(rows.max()) - top + 1, int(cols.max()) - left + 1
        values, valid = np.zeros((height, breadth, width), np.float32), np.zeros((height, breadth), bool)
        for (row, col), tokens in tiles.items():
            inside = self._overlap(row, top, height), self._overlap(col, left, breadth)
            if tokens is None or None in inside:
                continue
            (into_row, from_row), (into_col, from_col) = inside  # type: ignore[misc]
            part = tokens[from_row, from_col]
            present = (part[..., 0] != ABSENT) if part.dtype == np.int8 else ~np.isnan(part[..., 0])
            values[into_row, into_col] = np.where(present[..., None], part.astype(np.float32) * self._scale, 0)
            valid[into_row, into_col] = present
        near_row, near_col = np.clip(plan.rows - top, 0, height - 1), np.clip(plan.cols - left, 0, breadth - 1)
        result, weight = np.zeros((side, side, width), np.float32), np.zeros((side, side), np.float32)
        for i in (0, 1):
            for j in (0, 1):
                at = np.ix_(near_row[:, i], near_col[:, j])
                share = np.outer(plan.row_weights[:, i], plan.col_weights[:, j]) * valid[at]
                result += values[at] * share[..., None].astype(np.float32)
                weight += share.astype(np.float32)
        mask = (weight >= LEAST_WEIGHT) & plan.row_inside[:, None] & plan.col_inside
        return np.where(mask[..., None], result / np.maximum(weight, LEAST_WEIGHT)[..., None], 0), mask

    def _overlap(self, tile: int, start: int, length: int) -> tuple[slice, slice] | None:
        """Which tokens from `start` on lie in a tile, along one axis: their places in the block and in the tile."""
        first, last = max(start, tile * self.side), min(start + length, (tile + 1) * self.side)
        if first >= last:
            return None
        return slice(first - start, last - start), slice(first - tile * self.side, last - tile * self.side)

    # Tiles

    def _load(self, wanted: set[tuple[int, int]]) -> dict[tuple[int, int], _Values | None]:
        """The tokens of tiles, of which those that were not used for longest make place; None without imagery."""
        status = {tile: int(self._status[tile]) for tile in sorted(wanted)}
        if lacking := [tile for tile, value in status.items() if value == MISSING]:
            raise CacheError(
                f"{self.path} lacks the tokens of {len(lacking)} tiles, such as row {lacking[0][0]}, column "
                f"{lacking[0][1]}: run `{self._hint}`"
            )
        encoded = [tile for tile, value in status.items() if value == ENCODED]
        with self._lock:
            found = {tile: self._kept[tile] for tile in encoded if tile in self._kept}
        rest = [tile for tile in encoded if tile not in found]
        if rest:
            with ThreadPoolExecutor(min(THREADS, len(rest))) as pool:
                found |= zip(rest, pool.map(lambda tile: self._read(*tile), rest), strict=True)
        with self._lock:
            for tile in encoded:
                self._kept[tile] = found[tile]
                self._kept.move_to_end(tile)
            while len(self._kept) > self._capacity:
                self._kept.popitem(last=False)
        return {tile: found.get(tile) for tile in status}


@dataclass(frozen=True)
class _Plan:
    """Where the points of a window lie between tokens: (point, 2) indices and weights, (point,) inside of the area."""

    rows: NDArray[np.int64]
    row_weights: NDArray[Any]
    row_inside: NDArray[np.bool_]
    cols: NDArray[np.int64]
    col_weights: NDArray[Any]
    col_inside: NDArray[np.bool_]

    def tiles(self, side: int) -> set[tuple[int, int]]:
        """Rows and columns of the tiles that are read."""
        rows = np.unique(self.rows[self.row_inside] // side).tolist()
        cols = np.unique(self.cols[self.col_inside] // side).tolist()
        return {(row, col) for row in rows for col in cols}


def _patch(pixels: int, side: int, path: str) -> int:
    """Side of the patches of which `side` fit into a tile."""
    fitting = [patch for patch in PATCHES if pixels // patch == side]
    if len(fitting) != 1:
        raise CacheError(
            f"{path} has {side} x {side} patch tokens of tiles of {pixels} pixels, which are of no known patch size: "
            "run `jzi encode-map --detail`"
        )
    return fitting[0]


def tokens_fingerprint(cache: FeatureCache) -> str:
    """Digest of how a cache's tokens of tiles and of photos were made, which a refiner that reads them depends on."""
    detail, photos = cache.header.detail if cache.has_detail else None, cache.queries.header().photo_tokens
    tiles = plain(detail) if detail else {"encoder": cache.encoder.fingerprint, "tokens": cache.header.tokens}
    return hashlib.sha256(json.dumps([tiles, plain(photos)], sort_keys=True).encode()).hexdigest()
