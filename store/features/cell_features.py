"""Embeddings of cells in the feature cache: the database of retrieval, for a square area or a region of bands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from jzi.errors import CacheCorruptError, CacheError
from jzi.store.cache.shards import write_whole
from jzi.store.disk.storage import corrupt, storage_errors
from jzi.store.features.map_embeddings import ENCODED, MISSING

#: How to encode cells, for error messages.
HINT = "run `jzi index` for retrieval, or `jzi encode-map --cells` for the experts cells and levels"

#: Status of a cell that does not belong to the region, in the units that have been written.
OUTSIDE = 3

Unit = tuple[slice, slice]


class CellFeatures:
    """The group `cells` of a feature cache: `embedding` (row, col, feature) float16 and `status` (row, col).

    It is written by whole units: chunks, or shards of several chunks in a region of millions of cells. A unit without
    any cell of the region is never written.

    Args:
        status: the array of the status.
        embedding: the array of the embeddings.
        path: path or URL of the cache, for error messages.
        footprint: side of a cell's reference crop, metres; 0 for cells with several levels of detail.
        cells: number of cells of the region; None if every cell of the array belongs to it.

    Attributes:
        reads: number of chunks of embeddings that were read.
    """

    def __init__(
        self,
        status: zarr.Array[Any],
        embedding: zarr.Array[Any],
        path: str,
        footprint: float = 0.0,
        cells: int | None = None,
    ) -> None:
        self._status, self._embedding = status, embedding
        self.path, self.footprint = path, footprint
        self.cells = status.shape[0] * status.shape[1] if cells is None else cells
        self.reads = 0

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, cols = self._status.shape
        return rows, cols

    @property
    def width(self) -> int:
        """Number of features."""
        return int(self._embedding.shape[2])

    @property
    def units(self) -> list[Unit]:
        """Rows and columns of what is written at once."""
        rows, cols = self.shape
        height, width = self._status.chunks
        return [
            (slice(row, min(row + height, rows)), slice(col, min(col + width, cols)))
            for row in range(0, rows, height)
            for col in range(0, cols, width)
        ]

    def status(self) -> NDArray[np.uint8]:
        """(row, col) status: 0 missing or never written, 1 encoded, 2 no imagery, 3 outside of the region.

        Raises:
            CacheCorruptError: a chunk does not match its checksum.
        """
        return self.read_status((slice(None), slice(None)))

    def read_status(self, unit: Unit) -> NDArray[np.uint8]:
        """(row, col) status of a unit."""
        with storage_errors(self.path, "cells/status"):
            return np.asarray(self._status[unit])

    def missing(self, status: NDArray[np.uint8] | None = None) -> int:
        """Number of cells that are neither encoded nor known to have no imagery.

        Args:
            status: what `status` has returned, if at hand.
        """
        status = self.status() if status is None else status
        return self.cells - int(((status != MISSING) & (status != OUTSIDE)).sum())

    def whole(self, unit: Unit) -> bool:
        """Whether every cell of a unit has been encoded and can be read."""
        try:
            status, embedding = self.read_unit(unit)
        except CacheCorruptError:
            return False
        lost = ~np.isfinite(embedding).all(-1) & (status == ENCODED)
        return bool((status != MISSING).all() and not lost.any())

    def read_unit(self, unit: Unit) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
        """(row, col) status and (row, col, feature) embedding of a unit.

        Raises:
            CacheCorruptError: a chunk of it does not match its checksum.
        """
        with storage_errors(self.path, "cells"):
            return np.asarray(self._status[unit]), np.asarray(self._embedding[unit])

    def write(self, unit: Unit, status: NDArray[np.uint8], embedding: NDArray[np.float16]) -> None:
        """Write a whole unit: the embedding first, the status last.

        Raises:
            CacheError: the disk is full.
        """
        with storage_errors(self.path, "cells"):
            write_whole(self._embedding, unit, embedding)
            self._status[unit] = status

    def blocks(
        self, mask: NDArray[np.bool_] | None = None
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float16]]]:
        """Row (cell,), column (cell,) and embedding (cell, feature) of encoded cells, a unit at a time.

        The order is that of `units`, row-major in each of them. Of units without any such cell only the status is read.

        Args:
            mask: (row, col) the cells to read; all by default.

        Raises:
            CacheCorruptError: a chunk does not match its checksum, or its file is gone.
        """
        for unit in self.units:
            if mask is not None and not mask[unit].any():
                continue
            wanted = self.read_status(unit) == ENCODED
            if mask is not None:
                wanted &= mask[unit]
            row, col = np.nonzero(wanted)
            if not len(row):
                continue
            row, col = row + unit[0].start, col + unit[1].start
            if mask is not None:
                yield row, col, self.gather(row, col)
                continue
            with storage_errors(self.path, "cells/embedding"):
                embedding = np.asarray(self._embedding[unit])[wanted]
            self.reads += self._chunks_of(row, col)[1].max(initial=-1) + 1
            yield row, col, self._checked(embedding)

    def gather(self, row: NDArray[np.int64], col: NDArray[np.int64]) -> NDArray[np.float16]:
        """(cell, feature) embeddings of cells in any order; reads each chunk once, and nothing but their chunks.

        Args:
            row: (cell,) rows.
            col: (cell,) columns.

        Raises:
            CacheError: one of them has no embedding.
            CacheCorruptError: a chunk does not match its checksum, or its file is gone.
        """
        result = np.empty((len(row), self.width), np.float16)
        corners, chunk = self._chunks_of(row, col)
        order = np.argsort(chunk, kind="stable")
        for cells in np.split(order, np.flatnonzero(np.diff(chunk[order])) + 1) if len(order) else []:
            top, left = corners[chunk[cells[0]]]
            down, right = row[cells] - top, col[cells] - left
            with storage_errors(self.path, "cells/embedding"):
                window = self._embedding[top : top + down.max() + 1, left : left + right.max() + 1]
            result[cells] = np.asarray(window)[down, right]
            self.reads += 1
        return self._checked(result)

    def _chunks_of(self, row: NDArray[np.int64], col: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(chunk, 2) corners of the chunks that contain cells, and (cell,) which of them contains each."""
        height, width = self._embedding.chunks[:2]
        corners = np.stack([row // height * height, col // width * width], 1)
        distinct, index = np.unique(corners, axis=0, return_inverse=True)
        return distinct, index.reshape(-1)

    def _checked(self, embedding: NDArray[np.float16]) -> NDArray[np.float16]:
        if not np.isfinite(embedding).all():
            raise corrupt(self.path, "cells/embedding", "a chunk is gone, or a cell was never encoded or is not finite")
        return embedding

    def read(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float16]]:
        """Row (cell,), column (cell,) and embedding (cell, feature) of every cell with imagery, in row-major order.

        Everything is in memory at once: for areas of a city. `blocks` reads a state.

        Raises:
            CacheError: cells are missing.
            CacheCorruptError: a chunk does not match its checksum, or its file is gone.
        """
        status = self.status()
        if missing := self.missing(status):
            raise CacheError(f"{self.path} lacks {missing} of {self.cells} cells: {HINT}")
        row, col = np.nonzero(status == ENCODED)
        with storage_errors(self.path, "cells/embedding"):
            embedding = np.asarray(self._embedding[:])[row, col]
        return row, col, self._checked(embedding)

    def grid(self) -> NDArray[np.float16]:
        """(row, col, feature) embeddings, nan where there is no imagery.

        Raises:
            CacheError: cells are missing, or a chunk is damaged.
        """
        row, col, embedding = self.read()
        grid = np.full((*self.shape, embedding.shape[1]), np.nan, np.float16)
        grid[row, col] = embedding
        return grid
