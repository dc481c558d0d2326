"""Embeddings of map tiles in the feature cache, level by level, read by tile and written by whole chunks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from jzi.errors import CacheCorruptError, CacheError
from jzi.store.cache import layout
from jzi.store.cache.shards import write_whole
from jzi.store.disk.storage import require_finite, storage_errors
from jzi.store.features.map_embeddings import ENCODED, MISSING, MapEmbeddings
from jzi.store.geometry.pyramid import Pyramid, TileKey


def check_key(key: TileKey, sides: Sequence[int], path: str) -> None:
    """Refuse the key of a tile that a cache does not have.

    Args:
        key: the key.
        sides: tiles along a side of each level.
        path: path or URL of the cache, for the error message.

    Raises:
        CacheError: there is no such tile.
    """
    level, row, col = key
    n = sides[level] if 0 <= level < len(sides) else 0
    if not (0 <= row < n and 0 <= col < n):
        raise CacheError(
            f"{path} has no tile (level {level}, row {row}, col {col}): its last level is {len(sides) - 1}"
        )


class TileFeatures:
    """`map/<level>/embedding` (row, col, feature) float16 and `map/<level>/status` (row, col) of a feature cache.

    They are written by whole chunks, or by shards of chunks on large maps, the embedding before its status.

    Args:
        pyramid: geometry of the area.
        width: number of features.
        shard: side in tiles of a shard of the last level; None if there are no shards.
        path: path or URL of the cache, for error messages.
        array: returns an array of the cache by its name.
        check_lock: raises an error if this process may not write.
    """

    def __init__(
        self,
        pyramid: Pyramid,
        width: int,
        shard: int | None,
        path: str,
        array: Callable[[str], zarr.Array[Any]],
        check_lock: Callable[[], None],
    ) -> None:
        self.pyramid, self.width, self.shard, self.path = pyramid, width, shard, path
        self._array, self._check_lock = array, check_lock

    @property
    def block_level(self) -> int:
        """The level from which on no chunk or shard spans two subtrees.

        Processes that write the subtrees of different tiles of this level share no chunk and need no lock.
        """
        return layout.block_level(self.pyramid, self.shard)

    def chunk_side(self, level: int) -> int:
        """Side in tiles of what is written at once, a chunk or a shard of chunks.

        The extent of one tile of `block_level`; above that level at most 16.
        """
        return layout.chunk_side(self.pyramid, level, self.shard)

    def status(self, level: int) -> NDArray[np.uint8]:
        """(row, col) status of a level 0..L: 0 missing, 1 encoded (at level L: has imagery), 2 no imagery."""
        with storage_errors(self.path, f"map/{level}/status"):
            return np.asarray(self._array(f"map/{level}/status")[:])

    def level(self, level: int) -> NDArray[np.float16]:
        """(row, col, feature) embeddings of a level 0..L-1; nan where there is none.

        Raises:
            CacheCorruptError: a chunk does not match its checksum.
        """
        with storage_errors(self.path, f"map/{level}/embedding"):
            return np.asarray(self._array(f"map/{level}/embedding")[:])

    def embedding(self, key: TileKey) -> NDArray[np.float16]:
        """(feature,) embedding of one tile, nan where there is none; reads one chunk.

        Raises:
            CacheError: the pyramid has no such tile.
        """
        check_key(key, [self.pyramid.tiles_per_side(level) for level in range(self.pyramid.levels)], self.path)
        level, row, col = key
        with storage_errors(self.path, f"map/{level}/embedding"):
            return np.asarray(self._array(f"map/{level}/embedding")[row, col])

    def children(self, key: TileKey) -> NDArray[np.float16]:
        """(g*g, feature) embeddings of the children of a tile of level 0..L-2, in the order of the actions."""
        level, row, col = key
        g = self.pyramid.grid
        with storage_errors(self.path, f"map/{level + 1}/embedding"):
            array = self._array(f"map/{level + 1}/embedding")
            block = np.asarray(array[row * g : (row + 1) * g, col * g : (col + 1) * g])
        return block.reshape(g * g, -1)

    def read(self) -> MapEmbeddings:
        """Read all levels: 6.7 MB for the paper's pyramid (768 features).

        Raises:
            CacheError: tiles are missing.
            CacheCorruptError: a chunk does not match its checksum, or its file is gone.
        """
        levels = range(self.pyramid.levels)
        status = [self.status(level) for level in range(self.pyramid.levels + 1)]
        missing = sum(int((status[level] == MISSING).sum()) for level in levels)
        if missing:
            raise CacheError(f"{self.path} lacks {missing} of {self.pyramid.tile_count} tiles: run `jzi encode-map`")
        embedding = [self.level(level) for level in levels]
        for level in levels:
            require_finite(self.path, f"map/{level}/embedding", embedding[level][status[level] == ENCODED])
        return MapEmbeddings(self.pyramid, tuple(embedding), tuple(status))

    def write_chunk(
        self, level: int, row: int, col: int, status: NDArray[np.uint8], embedding: NDArray[Any] | None
    ) -> None:
        """Write the whole chunk or shard whose north-west tile is (row, col): the embedding first, the status last.

        Args:
            level: 0..L.
            row: a multiple of `chunk_side(level)`.
            col: a multiple of `chunk_side(level)`.
            status: (side, side).
            embedding: (side, side, feature); None at level L.

        Raises:
            CacheError: row, col or shape is not that of a whole chunk, or the disk is full.
        """
        side = self.chunk_side(level)
        if row % side or col % side or status.shape != (side, side):
            raise CacheError(
                f"level {level} is written in whole chunks of {side} x {side} tiles, not {status.shape} at {row}, {col}"
            )
        self._check_lock()
        window = slice(row, row + side), slice(col, col + side)
        with storage_errors(self.path, f"map/{level}"):
            if embedding is not None:
                write_whole(self._array(f"map/{level}/embedding"), window, embedding.astype(np.float16, copy=False))
            self._array(f"map/{level}/status")[window] = status

    def readable_status(self, level: int) -> tuple[NDArray[np.uint8], int]:
        """(row, col) `status`, with 0 (missing) for tiles that cannot be read, and their number."""
        n, side = self.pyramid.tiles_per_side(level), self.chunk_side(level)
        if self.shard is None:  # else it may not fit into memory
            with contextlib.suppress(CacheCorruptError):
                return self._readable_status(level, slice(0, n), slice(0, n))
        status, damaged = np.full((n, n), MISSING, np.uint8), 0
        for row in range(0, n, side):
            for col in range(0, n, side):
                window = slice(row, row + side), slice(col, col + side)
                status[window], lost = self._readable_parts(level, *window)
                damaged += lost
        return status, damaged

    def _readable_parts(self, level: int, rows: slice, cols: slice) -> tuple[NDArray[np.uint8], int]:
        """`_readable_status` of a chunk or shard; of a shard that is damaged, of its chunks that are not."""
        with contextlib.suppress(CacheCorruptError):
            return self._readable_status(level, rows, cols)
        side = rows.stop - rows.start
        status, damaged, chunk = np.full((side, side), MISSING, np.uint8), 0, side
        if level < self.pyramid.levels:
            chunk = self._array(f"map/{level}/embedding").chunks[0]
        if chunk == side:
            return status, side**2
        for row in range(0, side, chunk):
            for col in range(0, side, chunk):
                part = slice(row, row + chunk), slice(col, col + chunk)
                window = (slice(start.start + each.start, start.start + each.stop)
                          for start, each in zip((rows, cols), part, strict=True))  # fmt: skip
                try:
                    status[part], lost = self._readable_status(level, *window)
                except CacheCorruptError:
                    lost = chunk**2
                damaged += lost
        return status, damaged

    def _readable_status(self, level: int, rows: slice, cols: slice) -> tuple[NDArray[np.uint8], int]:
        with storage_errors(self.path, f"map/{level}"):
            status = np.asarray(self._array(f"map/{level}/status")[rows, cols])
            if level == self.pyramid.levels or not (status == ENCODED).any():
                return status, 0
            lost = ~np.isfinite(np.asarray(self._array(f"map/{level}/embedding")[rows, cols])).all(-1)
        lost &= status == ENCODED
        return np.where(lost, MISSING, status), int(lost.sum())

    def read_chunk(self, level: int, row: int, col: int) -> tuple[NDArray[np.uint8], NDArray[np.float16] | None]:
        """(side, side) status and (side, side, feature) embedding of the chunk or shard that starts at (row, col).

        The embedding is None at level L. Tiles that cannot be read have status 0 (missing) and nan.
        """
        side = self.chunk_side(level)
        window = slice(row, row + side), slice(col, col + side)
        status, _ = self._readable_parts(level, *window)
        if level == self.pyramid.levels:
            return status, None
        embedding = np.full((side, side, self.width), np.nan, np.float16)
        if not (status == ENCODED).any():
            return status, embedding
        array = self._array(f"map/{level}/embedding")
        with contextlib.suppress(CacheCorruptError), storage_errors(self.path, f"map/{level}/embedding"):
            return status, np.asarray(array[window])
        chunk = array.chunks[0]
        for down in range(0, side, chunk):  # the readable chunks of a damaged shard
            for right in range(0, side, chunk):
                part = slice(down, down + chunk), slice(right, right + chunk)
                if (status[part] == ENCODED).any():
                    embedding[part] = array[row + down : row + down + chunk, col + right : col + right + chunk]
        return status, embedding
