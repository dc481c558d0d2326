"""Embeddings of terminal cells in the feature cache: the database of flat retrieval."""

from __future__ import annotations

from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from jzi.errors import CacheCorruptError, CacheError
from jzi.store.map_embeddings import ENCODED, MISSING
from jzi.store.storage import corrupt, storage_errors

#: How to encode cells, for error messages.
HINT = "run `jzi index` for retrieval, or `jzi encode-map --cells` for the experts cells and levels"


class CellFeatures:
    """The group `cells` of a feature cache: `embedding` (row, col, feature) float16 and `status` (row, col).

    Args:
        status: the array of the status.
        embedding: the array of the embeddings.
        path: path or URL of the cache, for error messages.
        footprint: side of a cell's reference crop, metres.
    """

    def __init__(self, status: zarr.Array[Any], embedding: zarr.Array[Any], path: str, footprint: float) -> None:
        self._status, self._embedding = status, embedding
        self.path, self.footprint = path, footprint

    @property
    def side(self) -> int:
        """Number of cells along a side of the area."""
        return self._status.shape[0]

    @property
    def chunks(self) -> list[tuple[slice, slice]]:
        """Rows and columns of every chunk."""
        size = self._status.chunks[0]
        starts = range(0, self.side, size)
        return [(slice(row, row + size), slice(col, col + size)) for row in starts for col in starts]

    def status(self) -> NDArray[np.uint8]:
        """(row, col) status: 0 missing, 1 encoded, 2 no imagery.

        Raises:
            CacheCorruptError: a chunk does not match its checksum.
        """
        with storage_errors(self.path, "cells/status"):
            return np.asarray(self._status[:])

    def whole(self, chunk: tuple[slice, slice]) -> bool:
        """Whether every cell of a chunk has been encoded and can be read."""
        try:
            status, embedding = self.read_chunk(chunk)
        except CacheCorruptError:
            return False
        lost = np.isnan(embedding).any(-1) & (status == ENCODED)
        return bool((status != MISSING).all() and not lost.any())

    def read_chunk(self, chunk: tuple[slice, slice]) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
        """(row, col) status and (row, col, feature) embedding of a chunk.

        Raises:
            CacheCorruptError: the chunk does not match its checksum.
        """
        with storage_errors(self.path, "cells"):
            return np.asarray(self._status[chunk]), np.asarray(self._embedding[chunk])

    def write(self, chunk: tuple[slice, slice], status: NDArray[np.uint8], embedding: NDArray[np.float16]) -> None:
        """Write a whole chunk: the embedding first, the status last.

        Raises:
            CacheError: the disk is full.
        """
        with storage_errors(self.path, "cells"):
            self._embedding[chunk] = embedding
            self._status[chunk] = status

    def read(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float16]]:
        """Row (cell,), column (cell,) and embedding (cell, feature) of every cell with imagery.

        Raises:
            CacheError: cells are missing.
            CacheCorruptError: a chunk does not match its checksum, or its file is gone.
        """
        status = self.status()
        if missing := int((status == MISSING).sum()):
            raise CacheError(f"{self.path} lacks {missing} of {status.size} cells: {HINT}")
        row, col = np.nonzero(status == ENCODED)
        with storage_errors(self.path, "cells/embedding"):
            embedding = np.asarray(self._embedding[:])[row, col]
        if np.isnan(embedding).any():
            raise corrupt(self.path, "cells/embedding", "a chunk is gone")
        return row, col, embedding

    def grid(self) -> NDArray[np.float16]:
        """(row, col, feature) embeddings, nan where there is no imagery.

        Raises:
            CacheError: cells are missing, or a chunk is damaged.
        """
        row, col, embedding = self.read()
        grid = np.full((self.side, self.side, embedding.shape[1]), np.nan, np.float16)
        grid[row, col] = embedding
        return grid
