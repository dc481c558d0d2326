"""The cells' side of the feature cache: one embedding for every terminal cell, the database of flat retrieval."""

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

#: What makes the cells.
HINT = "run `jzi index` for retrieval, or `jzi encode-map --cells` for a decoder that looks at them"


class CellFeatures:
    """The group `cells` of a feature cache: `embedding` (row, col, feature) float16 and `status` (row, col).

    Args:
        group: the cache's.
        path: of the cache.

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
        """Whether a cache has any."""
        return "cells/embedding" in group

    @classmethod
    def require(cls, group: zarr.Group, path: str, side: int, width: int, footprint: float) -> CellFeatures:
        """The cells of a cache, which are created if there are none.

        Args:
            group: the cache's, open for writing.
            path: of the cache.
            side: cells to a side.
            width: number of features.
            footprint: side of the piece of map that stands for a cell, metres.

        Raises:
            CacheMismatchError: the cells there have another footprint.
        """
        with storage_errors(path):
            cells = group.require_group("cells")
            there = cells.attrs.get("footprint_m", footprint)
            if abs(float(there) - footprint) > 1e-6:  # type: ignore[arg-type]
                raise CacheMismatchError(
                    f"the cells of {path} are pieces of map of {there:g} m, not {footprint:g} m: give another cache"
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
        """Cells to a side."""
        return self._array("status").shape[0]

    @property
    def chunks(self) -> list[tuple[slice, slice]]:
        """Rows and columns of every chunk."""
        size = self._array("status").chunks[0]
        starts = range(0, self.side, size)
        return [(slice(row, row + size), slice(col, col + size)) for row in starts for col in starts]

    def status(self) -> NDArray[np.uint8]:
        """(row, col): 0 missing, 1 encoded, 2 no imagery.

        Raises:
            CacheCorruptError: a chunk does not match its checksum.
        """
        with storage_errors(self.path, "cells/status"):
            return np.asarray(self._array("status")[:])

    def whole(self, chunk: tuple[slice, slice]) -> bool:
        """Whether a chunk is there, and readable."""
        try:
            status, embedding = self.read_chunk(chunk)
        except CacheCorruptError:
            return False
        lost = np.isnan(embedding).any(-1) & (status == ENCODED)
        return bool((status != MISSING).all() and not lost.any())

    def read_chunk(self, chunk: tuple[slice, slice]) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
        """Status and embedding of a chunk.

        Raises:
            CacheCorruptError: it does not match its checksum.
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
        """Row and column (cell,) and embedding (cell, feature) of every cell with imagery.

        Raises:
            CacheError: cells are missing.
            CacheCorruptError: a chunk is damaged or gone.
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
        """(row, col, feature), nan where there is no imagery.

        Raises:
            CacheError: as `read`.
        """
        row, col, embedding = self.read()
        grid = np.full((self.side, self.side, embedding.shape[1]), np.nan, np.float16)
        grid[row, col] = embedding
        return grid

    def _array(self, name: str) -> zarr.Array[Any]:
        array = self.group[f"cells/{name}"]
        assert isinstance(array, zarr.Array)
        return array
