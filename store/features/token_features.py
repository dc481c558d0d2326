"""Patch tokens of map tiles, an optional part of the feature cache, stored one tile to a chunk."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from jzi.errors import CacheCorruptError
from jzi.store.disk.storage import storage_errors
from jzi.store.features.map_embeddings import ENCODED
from jzi.store.features.tile_features import check_key
from jzi.store.geometry.pyramid import TileKey

#: Number of tiles that are read or written in parallel.
THREADS = 8


def tokens_name(level: int) -> str:
    """Name of the array of a level."""
    return f"map/{level}/tokens"


class TokenFeatures:
    """`map/<level>/tokens` of a feature cache: (row, col, token, feature) float16, one tile to a chunk.

    There is no status array: a chunk is written whole or not at all, and a tile with imagery but no chunk lacks tokens.

    Args:
        arrays: the array of each level 0..L-1.
        path: path or URL of the cache, for error messages.
    """

    def __init__(self, arrays: Sequence[zarr.Array[Any]], path: str) -> None:
        self.path, self._arrays = path, list(arrays)

    @property
    def count(self) -> int:
        """Number of tokens of a tile."""
        return self._arrays[0].shape[2]

    @property
    def width(self) -> int:
        """Number of features."""
        return self._arrays[0].shape[3]

    def stored_bytes(self) -> int:
        """Size of the chunks on disk, bytes."""
        with storage_errors(self.path):
            return sum(array.nbytes_stored() for array in self._arrays)

    def read(self, key: TileKey) -> NDArray[np.float16]:
        """(token, feature) of one tile, nan where there is none; reads one chunk.

        Raises:
            CacheError: the pyramid has no such tile.
            CacheCorruptError: the chunk does not match its checksum.
        """
        check_key(key, [array.shape[0] for array in self._arrays], self.path)
        with storage_errors(self.path, tokens_name(key.level)):
            return np.asarray(self._arrays[key.level][key.row, key.col])

    def read_many(self, keys: Sequence[TileKey]) -> list[NDArray[np.float16]]:
        """(token, feature) of each of several tiles, read in parallel."""
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(self.read, keys))

    def write(self, keys: Sequence[TileKey], tokens: NDArray[np.float16]) -> None:
        """Write the tokens of several tiles.

        Args:
            keys: keys of the tiles.
            tokens: (tile, token, feature).

        Raises:
            CacheError: the disk is full.
        """

        def write(key: TileKey, values: NDArray[np.float16]) -> None:
            with storage_errors(self.path, tokens_name(key.level)):
                self._arrays[key.level][key.row, key.col] = values

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(write, keys, tokens))

    def lacking(self, level: int, status: NDArray[np.uint8]) -> tuple[NDArray[np.bool_], int]:
        """Find the encoded tiles of a level that lack tokens.

        Args:
            level: 0..L-1.
            status: (row, col) status of the level's embeddings.

        Returns:
            (row, col) whether a tile lacks readable tokens, and the number of those whose tokens are damaged.
        """
        lacking, damaged = np.zeros(status.shape, bool), 0
        for row in np.flatnonzero((status == ENCODED).any(1)).tolist():
            encoded = np.flatnonzero(status[row] == ENCODED).tolist()
            try:
                with storage_errors(self.path, tokens_name(level)):
                    first = np.asarray(self._arrays[level][row])[encoded, 0, 0]  # stored tokens are finite
                lacking[row, encoded] = np.isnan(first)
            except CacheCorruptError:
                for col in encoded:
                    lacking[row, col], broken = self._lacks(TileKey(level, row, col))
                    damaged += broken
        return lacking, damaged

    def _lacks(self, key: TileKey) -> tuple[bool, bool]:
        try:
            return bool(np.isnan(self.read(key)[0, 0])), False
        except CacheCorruptError:
            return True, True
