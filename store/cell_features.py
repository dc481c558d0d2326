"""Embeddings of terminal cells in the feature cache: the database of flat retrieval."""

from __future__ import annotations

from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from jzi.errors import CacheCorruptError, CacheError, CacheMismatchError
from jzi.store.map_embeddings import ENCODED, MISSING
from jzi.store.storage import COMPRESSORS, corrupt, storage_errors

#: Side of a chunk in cells, at most: 1024 cells of 768 features in float16 make 1.6 MB.
CHUNK = 32

#: How to encode cells, for error messages.
HINT = "run `jzi index` for retrieval, or `jzi encode-map --cells` for the experts cells and levels"


class CellFeatures:
    """The group `cells` of a feature cache: `embedding` (row, col, feature) float16 and `status` (row, col).

    Args:
        group: the group of the cache.
        path: path or URL of the cache, for error messages.

    Raises:
        CacheError: the cache has no cells.
    """

    def __init__(self, group: zarr.Group, path: str) -> None:
        self.group, self.path = group, path
        if not self.there(group):
            raise CacheError(f"{path} holds no cells: {HINT}")
        self.footprint = float(group["cells"].attrs["footprint_m"])  # type: ignore[arg-type]

    @staticmethod
    def there(group: zarr.Group) -> bool:
        """Whether a cache has arrays for cells."""
        return "cells/embedding" in group

    @classmethod
    def require(cls, group: zarr.Group, path: str, side: int, width: int, footprint: float) -> CellFeatures:
        """The cells of a cache; their arrays are created if they do not exist.

        Args:
            group: the group of the cache, open for writing.
            path: path or URL of the cache.
            side: number of cells along a side of the area.
            width: number of features.
            footprint: side of a cell's reference crop, metres.

        Raises:
            CacheMismatchError: the cells of the cache have another footprint.
        """
        with storage_errors(path):
            cells = group.require_group("cells")
            stored = cells.attrs.get("footprint_m", footprint)
            if abs(float(stored) - footprint) > 1e-6:  # type: ignore[arg-type]
                raise CacheMismatchError(
                    f"the cells of {path} were encoded from crops of {stored:g} m, not {footprint:g} m: give another "
                    "cache"
                )
            if "footprint_m" not in cells.attrs:
                cells.update_attributes({"footprint_m": footprint})
            chunk = min(CHUNK, side)
            for name, shape, chunks, dtype, fill, dimensions in (
                ("status", (side, side), (chunk, chunk), "uint8", MISSING, ("row", "col")),
                ("embedding", (side, side, width), (chunk, chunk, width), "float16", np.nan, ("row", "col", "feature")),
            ):
                if f"cells/{name}" not in group:
                    group.create_array(
                        f"cells/{name}",
                        shape=shape,
                        chunks=chunks,
                        dtype=dtype,
                        fill_value=fill,
                        dimension_names=dimensions,
                        compressors=COMPRESSORS,
                    )
        return cls(group, path)

    @property
    def side(self) -> int:
        """Number of cells along a side of the area."""
        return self._array("status").shape[0]

    @property
    def chunks(self) -> list[tuple[slice, slice]]:
        """Rows and columns of every chunk."""
        size = self._array("status").chunks[0]
        starts = range(0, self.side, size)
        return [(slice(row, row + size), slice(col, col + size)) for row in starts for col in starts]

    def status(self) -> NDArray[np.uint8]:
        """(row, col) status: 0 missing, 1 encoded, 2 no imagery.

        Raises:
            CacheCorruptError: a chunk does not match its checksum.
        """
        with storage_errors(self.path, "cells/status"):
            return np.asarray(self._array("status")[:])

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
            return np.asarray(self._array("status")[chunk]), np.asarray(self._array("embedding")[chunk])

    def write(self, chunk: tuple[slice, slice], status: NDArray[np.uint8], embedding: NDArray[np.float16]) -> None:
        """Write a whole chunk: the embedding first, the status last.

        Raises:
            CacheError: the disk is full.
        """
        with storage_errors(self.path, "cells"):
            self._array("embedding")[chunk] = embedding
            self._array("status")[chunk] = status

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
            embedding = np.asarray(self._array("embedding")[:])[row, col]
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

    def _array(self, name: str) -> zarr.Array[Any]:
        array = self.group[f"cells/{name}"]
        assert isinstance(array, zarr.Array)
        return array
