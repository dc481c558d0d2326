"""Tokens of photos in the feature cache, an optional part of the group `queries`, one photo to a chunk."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
import zarr
from numpy.typing import ArrayLike, NDArray

from jzi.errors import CacheCorruptError, CacheError
from jzi.store.cache.layout import PHOTO_CHUNK
from jzi.store.disk.storage import corrupt, storage_errors
from jzi.store.features.detail_features import PROJECTION, THREADS, read_projection, write_projection
from jzi.store.features.projection import ABSENT, Projection
from jzi.store.features.token_info import PhotoTokensInfo


class PhotoTokens:
    """`queries/tokens` of a feature cache: (query, token row, token col, feature) int8, as a projection has them.

    The columns of tokens are equally wide and cover the whole photo. `tokens_status` is 1 where a photo has tokens of
    the file that its embedding was computed from.

    Args:
        arrays: tokens, tokens_status, tokens_mean, tokens_basis and tokens_scale.
        info: what the header records.
        path: path or URL of the cache, for error messages.
    """

    def __init__(self, arrays: dict[str, zarr.Array[Any]], info: PhotoTokensInfo, path: str) -> None:
        self._arrays, self.info, self.path = arrays, info, path

    @cached_property
    def projection(self) -> Projection:
        """The projection from the encoder's tokens.

        Raises:
            CacheCorruptError: its values are damaged, or not those that the header records.
        """
        return read_projection(self._projection_arrays(), self.path, "queries/tokens", self.info.projection)

    def write_projection(self, projection: Projection) -> None:
        """Write the projection that the header records, where its arrays are damaged.

        Raises:
            CacheError: the disk is full.
        """
        write_projection(self._projection_arrays(), self.path, "queries/tokens", projection)
        self.__dict__.pop("projection", None)  # of `cached_property`

    def _projection_arrays(self) -> dict[str, zarr.Array[Any]]:
        return {name: self._arrays[f"tokens_{name}"] for name in PROJECTION}

    def stored_bytes(self) -> int:
        """Size of the chunks of tokens on disk, bytes."""
        with storage_errors(self.path):
            return self._arrays["tokens"].nbytes_stored()

    def status(self) -> NDArray[np.uint8]:
        """(query,) whether each photo has tokens, 0 or 1.

        Raises:
            CacheCorruptError: a chunk does not match its checksum.
        """
        with storage_errors(self.path, "queries/tokens_status"):
            return np.asarray(self._arrays["tokens_status"][:])

    def damaged_rows(self) -> NDArray[np.int64]:
        """(row,) rows that are marked as having tokens, which are damaged or gone; reads all tokens."""
        rows = np.flatnonzero(self.status()).astype(np.int64)
        with ThreadPoolExecutor(THREADS) as pool:
            lost = list(pool.map(self._is_lost, rows.tolist()))
        return np.asarray(rows[np.array(lost, bool)])

    def _is_lost(self, row: int) -> bool:
        try:
            return bool((self._read(row) == ABSENT).any())
        except CacheCorruptError:
            return True

    def read(self, rows: ArrayLike) -> NDArray[np.int8]:
        """(row, token row, token col, feature) tokens of photos, in parallel.

        Args:
            rows: (row,) rows of the cache.

        Raises:
            CacheError: a photo has none.
            CacheCorruptError: a chunk does not match its checksum, or its file is gone.
        """
        rows = np.asarray(rows, np.int64)
        status = self.status()
        if (without := int((status[rows] == 0).sum())) > 0:
            raise CacheError(f"{self.path} lacks the tokens of {without} photos: run `jzi encode-queries --tokens`")
        result = np.empty((len(rows), self.info.rows, self.info.cols, self.info.width), np.int8)

        def read(item: tuple[int, int]) -> None:
            result[item[0]] = self._read(item[1])

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(read, enumerate(rows.tolist())))
        if len(rows) and (result[:, 0, 0, 0] == ABSENT).any():
            raise corrupt(self.path, "queries/tokens", "a chunk is gone")
        return result

    def _read(self, row: int) -> NDArray[np.int8]:
        with storage_errors(self.path, "queries/tokens"):
            return np.asarray(self._arrays["tokens"][row])

    def write(self, rows: Sequence[int] | NDArray[np.int64], tokens: Sequence[NDArray[np.int8]]) -> None:
        """Write the tokens of photos; `mark` follows.

        Args:
            rows: (row,) rows of the cache.
            tokens: (token row, token col, feature) of each.

        Raises:
            CacheError: the disk is full.
        """

        def write(row: int, values: NDArray[np.int8]) -> None:
            with storage_errors(self.path, "queries/tokens"):
                self._arrays["tokens"][row] = values

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(write, (int(row) for row in rows), tokens))

    def mark(self, rows: NDArray[np.int64], status: ArrayLike) -> None:
        """Set whether photos of one chunk of rows have tokens; no other process may write to that chunk.

        Args:
            rows: (row,) rows of the cache, all in one chunk.
            status: 0 or 1, for each or for all.
        """
        array = self._arrays["tokens_status"]
        start = int(rows[0]) // PHOTO_CHUNK * PHOTO_CHUNK
        window = slice(start, min(start + PHOTO_CHUNK, array.shape[0]))
        try:
            with storage_errors(self.path, "queries/tokens_status"):
                column = np.asarray(array[window])
        except CacheCorruptError:
            column = np.zeros(window.stop - start, np.uint8)
        changed = column.copy()
        changed[rows - start] = status
        if not np.array_equal(changed, column):
            with storage_errors(self.path, "queries/tokens_status"):
                array[window] = changed
