"""Tokens of tiles at a high resolution in the feature cache, an optional group, from which refiners read windows."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from jzi.errors import CacheCorruptError
from jzi.store.cache.shards import write_whole
from jzi.store.disk.storage import corrupt, storage_errors
from jzi.store.features.map_embeddings import ENCODED, MISSING
from jzi.store.features.projection import ABSENT, Projection
from jzi.store.features.token_info import DetailInfo

#: Names of the arrays of a projection.
PROJECTION = ("mean", "basis", "scale")

#: Number of tiles that are read or written in parallel.
THREADS = 8

Unit = tuple[slice, slice]


class DetailFeatures:
    """The group `detail` of a feature cache: tokens of the tiles of level L-1 as 8-bit features of a projection.

    `tokens` is (row, col, token row, token col, feature) int8, one tile to a chunk; a token without imagery has the
    value `ABSENT` in every feature. `status` is (row, col), a chunk of which is written after the tokens of its tiles.
    On a map with shards, the tokens of the tiles of a chunk of the status are one.
    Token (i, j) of a tile is made of the square of `patch` pixels whose north-west corner is i * patch pixels below and
    j * patch pixels right of the tile's, so that the tokens of all tiles are one grid.

    Args:
        arrays: status, tokens, mean, basis and scale.
        info: what the header records.
        path: path or URL of the cache, for error messages.
    """

    def __init__(self, arrays: dict[str, zarr.Array[Any]], info: DetailInfo, path: str) -> None:
        self._arrays, self.info, self.path = arrays, info, path

    @property
    def side(self) -> int:
        """Number of tokens along a side of a tile."""
        return self.info.side

    @property
    def width(self) -> int:
        """Number of features."""
        return self.info.width

    @cached_property
    def projection(self) -> Projection:
        """The projection from the producer's tokens.

        Raises:
            CacheCorruptError: its values are damaged, or not those that the header records.
        """
        return read_projection(self._arrays, self.path, "detail", self.info.projection)

    def write_projection(self, projection: Projection) -> None:
        """Write the projection that the header records, where its arrays are damaged.

        Raises:
            CacheError: the disk is full.
        """
        write_projection(self._arrays, self.path, "detail", projection)
        self.__dict__.pop("projection", None)  # of `cached_property`

    def stored_bytes(self) -> int:
        """Size of the chunks of tokens on disk, bytes."""
        with storage_errors(self.path):
            return self._arrays["tokens"].nbytes_stored()

    def status(self) -> NDArray[np.uint8]:
        """(row, col) status of the tiles: 0 missing, 1 encoded, 2 no imagery.

        Raises:
            CacheCorruptError: a chunk does not match its checksum.
        """
        with storage_errors(self.path, "detail/status"):
            return np.asarray(self._arrays["status"][:])

    @property
    def units(self) -> list[Unit]:
        """Rows and columns of the squares of tiles that are written at once."""
        (rows, cols), (height, width) = self._arrays["status"].shape, self._arrays["status"].chunks
        return [
            (slice(row, row + height), slice(col, col + width))
            for row in range(0, rows, height)
            for col in range(0, cols, width)
        ]

    def readable_status(self) -> tuple[NDArray[np.uint8], int]:
        """`status` with 0 (missing) for tiles that cannot be read, and their number; reads every chunk."""
        status, damaged = np.full(self._arrays["status"].shape, MISSING, np.uint8), 0
        for unit in self.units:
            try:
                with storage_errors(self.path, "detail/status"):
                    status[unit] = np.asarray(self._arrays["status"][unit])
            except CacheCorruptError:
                damaged += status[unit].size
        tiles = [(int(row), int(col)) for row, col in np.argwhere(status == ENCODED)]
        with ThreadPoolExecutor(THREADS) as pool:
            for tile, lost in zip(tiles, pool.map(self._is_lost, tiles), strict=True):
                if lost:
                    status[tile] = MISSING
                    damaged += 1
        return status, damaged

    def _is_lost(self, tile: tuple[int, int]) -> bool:
        try:
            return bool((self._read(*tile) == ABSENT).all())  # an encoded tile has imagery somewhere
        except CacheCorruptError:
            return True

    def read(self, row: int, col: int) -> NDArray[np.int8]:
        """(token row, token col, feature) of one tile that was encoded; reads one chunk.

        Raises:
            CacheCorruptError: the chunk does not match its checksum, or its file is gone.
        """
        tokens = self._read(row, col)
        if (tokens[..., 0] == ABSENT).all():
            raise corrupt(self.path, "detail/tokens", f"the chunk of row {row}, column {col} is gone")
        return tokens

    def _read(self, row: int, col: int) -> NDArray[np.int8]:
        with storage_errors(self.path, "detail/tokens"):
            return np.asarray(self._arrays["tokens"][row, col])

    def read_many(self, tiles: Sequence[tuple[int, int]]) -> list[NDArray[np.int8]]:
        """`read` of several tiles, in parallel."""
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(lambda tile: self.read(*tile), tiles))

    def write(self, tiles: Sequence[tuple[int, int]], tokens: Sequence[NDArray[np.int8]]) -> None:
        """Write the tokens of several tiles; their status is written with `write_status`, afterwards.

        A shard is read and written whole, so the tiles of a unit are best written at once.

        Args:
            tiles: rows and columns.
            tokens: (token row, token col, feature) of each.

        Raises:
            CacheError: the disk is full.
        """

        if self._arrays["tokens"].shards is not None:
            self._write_shards(dict(zip(tiles, tokens, strict=True)))
            return

        def write(tile: tuple[int, int], values: NDArray[np.int8]) -> None:
            with storage_errors(self.path, "detail/tokens"):
                self._arrays["tokens"][tile[0], tile[1]] = values

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(write, tiles, tokens))

    def _write_shards(self, tokens: dict[tuple[int, int], NDArray[np.int8]]) -> None:
        array = self._arrays["tokens"]
        side, shape = self._arrays["status"].chunks[0], array.chunks[2:]
        for top, left in {(row // side * side, col // side * side) for row, col in tokens}:
            block = np.full((side, side, *shape), ABSENT, np.int8)
            for row, col in np.ndindex(side, side):
                tile = (top + row, left + col)
                if tile in tokens:
                    block[row, col] = tokens[tile]
                else:
                    with suppress(CacheCorruptError):
                        block[row, col] = self._read(*tile)
            with storage_errors(self.path, "detail/tokens"):
                write_whole(array, (slice(top, top + side), slice(left, left + side)), block)

    def write_status(self, unit: Unit, status: NDArray[np.uint8]) -> None:
        """Write the status of a unit, after its tokens.

        Raises:
            CacheError: the disk is full.
        """
        with storage_errors(self.path, "detail/status"):
            self._arrays["status"][unit] = status


def read_projection(arrays: dict[str, zarr.Array[Any]], path: str, group: str, digest: str) -> Projection:
    """Read a projection from arrays with the names of `PROJECTION`, and compare it with its digest.

    Raises:
        CacheCorruptError: its values are damaged, or not those of the digest.
    """
    values = []
    for name in PROJECTION:
        with storage_errors(path, f"{group}/{name}"):
            values.append(np.asarray(arrays[name][:]))
    projection = Projection(*values)
    if projection.digest != digest:
        raise corrupt(path, f"{group}/{PROJECTION[1]}", "the projection is not the one that the header records")
    return projection


def write_projection(arrays: dict[str, zarr.Array[Any]], path: str, group: str, projection: Projection) -> None:
    """Write a projection to arrays with the names of `PROJECTION`.

    Raises:
        CacheError: the disk is full.
    """
    for name in PROJECTION:
        with storage_errors(path, f"{group}/{name}"):
            arrays[name][:] = getattr(projection, name)
