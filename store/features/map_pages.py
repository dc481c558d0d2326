"""The embeddings of a map that is larger than memory, read where they are needed.

A `PagedMap` holds what `MapEmbeddings` holds, but reads it from the map.safetensors of a model folder, which is mapped
into memory, or from the chunks of a feature cache, of which the last used are kept. Values are the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from jzi.errors import CacheError, ModelError
from jzi.store.features.map_embeddings import ENCODED, MISSING, NODATA, map_tensors
from jzi.store.features.paged_grids import ChunkedGrid, Grid, mapped_tensors, shares
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.model_config import HINT

if TYPE_CHECKING:
    from jzi.store.cache.feature_cache import FeatureCache

#: Bytes of a strip of rows, where a level is read from end to end.
STRIP_BYTES = 2**24

#: Rows of the status of tiles that are read at once: 2 MB of 8192 tiles.
STRIP_ROWS = 256


class PagedMap:
    """Embeddings of the tiles of a pyramid, read where they are needed.

    Args:
        pyramid: geometry of the area.
        width: number of features.
        embedding: (row, col, feature) float16 of each level 0..L-1.
        status: (row, col) uint8 of each level 0..L: 1 encoded, 2 no imagery.
        damaged: the error of a tile that is missing, given its level, row, column and status.
        limit: bytes of it that may be in memory.
    """

    def __init__(
        self,
        pyramid: Pyramid,
        width: int,
        embedding: tuple[Grid, ...],
        status: tuple[Grid, ...],
        damaged: Callable[[int, int, int, int], Exception],
        limit: int,
    ) -> None:
        self.limit = limit
        self.pyramid, self.width, self.embedding, self.status = pyramid, width, embedding, status
        self._damaged = damaged
        g = pyramid.grid
        self._down, self._right = np.divmod(np.arange(g * g), g)
        self._count: int | None = None

    @classmethod
    def of_cache(cls, cache: FeatureCache, limit: int) -> PagedMap:
        """The map of a cache; that it is complete shows when tiles are read.

        Args:
            cache: the cache.
            limit: bytes of the chunks in memory.

        Raises:
            CacheError: the cache is of a region.
        """
        pyramid, levels = cache.pyramid, cache.levels
        names = [f"map/{level}/embedding" for level in range(levels)]
        names += [f"map/{level}/status" for level in range(levels + 1)]
        arrays = [cache.array(name) for name in names]
        limits = dict(zip(names, shares([array.nbytes for array in arrays], limit), strict=True))
        grids = [ChunkedGrid(array, limits[name], cache.path, name) for array, name in zip(arrays, names, strict=True)]

        def damaged(level: int, row: int, col: int, status: int) -> Exception:
            if status == MISSING:
                return CacheError(f"{cache.path} lacks tiles, such as level {level}, row {row}, column {col}: run "
                                  "`jzi encode-map`")  # fmt: skip
            from jzi.store.disk.storage import corrupt  # loads zarr

            return corrupt(cache.path, f"map/{level}/embedding", "a chunk is gone")

        return cls(pyramid, cache.encoder.width, tuple(grids[:levels]), tuple(grids[levels:]), damaged, limit)

    @classmethod
    def of_file(cls, path: Path, pyramid: Pyramid, width: int, limit: int) -> PagedMap:
        """The map of a model folder, map.safetensors, which is verified already.

        Args:
            path: the file.
            pyramid: geometry of the area.
            width: number of features.
            limit: bytes of the file that may be resident.

        Raises:
            ModelError: the file has tensors of other shapes or types.
        """
        map_tensors(path, pyramid, width)
        names = [f"embedding.{level}" for level in range(pyramid.levels)]
        names += [f"status.{level}" for level in range(pyramid.levels + 1)]
        grids = mapped_tensors(path, names, limit)

        def damaged(level: int, row: int, col: int, status: int) -> Exception:
            return ModelError(
                f"{path} has values of level {level}, row {row}, column {col} that are not finite: {HINT}"
            )

        return cls(pyramid, width, tuple(grids[: pyramid.levels]), tuple(grids[pyramid.levels :]), damaged, limit)

    def save(self, path: Path) -> None:
        """Write the file that `MapEmbeddings.save` writes, without its cells, a strip at a time.

        Raises:
            JziError: a tile is missing or damaged.
        """
        sides = [self.pyramid.tiles_per_side(level) for level in range(self.pyramid.levels + 1)]
        shapes = {f"embedding.{level}": ("F16", [side, side, self.width]) for level, side in enumerate(sides[:-1])}
        shapes.update({f"status.{level}": ("U8", [side, side]) for level, side in enumerate(sides)})
        entries: dict[str, Any] = {}
        end = 0
        for name, (kind, shape) in shapes.items():
            start, end = end, end + math.prod(shape) * (2 if kind == "F16" else 1)
            entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
        header = json.dumps(entries).encode()
        header += b" " * (-len(header) % 8)  # the format aligns the tensors
        with path.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            first = 8 + len(header)
            file.truncate(first + end)
            for level in range(len(sides)):
                at = {name: first + entries[f"{name}.{level}"]["data_offsets"][0]
                      for name in ("status", "embedding") if f"{name}.{level}" in entries}  # fmt: skip
                for status, values in self.strips(level):
                    for name, strip in (("status", status), ("embedding", values)):
                        if strip is not None:
                            file.seek(at[name])
                            at[name] += file.write(strip.astype(np.uint8 if name == "status" else np.float16).tobytes())

    def tiles(self, level: int, row: NDArray[np.int64], col: NDArray[np.int64]) -> NDArray[np.float16]:
        """(n, feature) embeddings of tiles of one level; zeros where there is no imagery.

        Args:
            level: 0..L-1.
            row: (n,) rows.
            col: (n,) columns.

        Raises:
            JziError: a tile is missing or damaged.
        """
        values = self.embedding[level].gather(row, col)
        bad = np.flatnonzero(~np.isfinite(values).all(1))
        if len(bad):
            status = self.status[level].gather(row[bad], col[bad])
            if (lost := bad[status != NODATA]).size:
                at = int(lost[0])
                raise self._damaged(level, int(row[at]), int(col[at]), int(status[status != NODATA][0]))
            values[bad] = 0
        return values

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the embeddings, float16."""
        return self.embedding[0].dtype

    def children(self, row: NDArray[np.int64], col: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and columns (n, action) of the children of tiles."""
        g = self.pyramid.grid
        return row[:, None] * g + self._down, col[:, None] * g + self._right

    def child_mask(self, level: int, row: NDArray[np.int64], col: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(n, action) whether each child of tiles of one level has imagery; arguments as of `tiles`."""
        rows, cols = self.children(row, col)
        status: NDArray[np.uint8] = self.status[level + 1].gather(rows.ravel(), cols.ravel())
        return np.asarray(status.reshape(rows.shape) != NODATA)

    def strips(self, level: int) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.float16] | None]]:
        """(row, col) status and (row, col, feature) embedding of a level, from north to south; None at level L.

        Raises:
            JziError: a tile is missing or damaged.
        """
        side, cells = self.pyramid.tiles_per_side(level), level == self.pyramid.levels
        height = max(1, STRIP_BYTES // (side * (1 if cells else 2 * self.width)))
        for start in range(0, side, height):
            stop = min(side, start + height)
            status = self.status[level].rows(start, stop)
            if cells:
                yield status, None
                continue
            values = self.embedding[level].rows(start, stop)
            lost = (status == MISSING) | ((status == ENCODED) & ~np.isfinite(values[..., 0]))
            if lost.any():
                row, col = (int(each[0]) for each in np.nonzero(lost))
                raise self._damaged(level, start + row, col, int(status[row, col]))
            yield status, values

    def encoded_count(self) -> int:
        """Number of tiles with imagery; reads the status of all."""
        sides = [self.pyramid.tiles_per_side(level) for level in range(self.pyramid.levels)]
        return sum(
            int((self.status[level].rows(start, min(start + STRIP_ROWS, side)) == ENCODED).sum())
            for level, side in enumerate(sides)
            for start in range(0, side, STRIP_ROWS)
        )

    @property
    def cell_mask(self) -> CellMask:
        """Whether each cell has imagery."""
        return CellMask(self)


class CellMask:
    """(row, col) bool, whether each cell of a map has imagery, read where it is asked for.

    It serves where an array is expected that is indexed by rows and columns of cells, sliced by rows, or counted, and
    becomes an array, a byte for each cell, where arithmetic asks for one.
    """

    dtype = np.dtype(bool)
    ndim = 2

    def __init__(self, features: PagedMap) -> None:
        self._features, self.shape = features, features.pyramid.shape
        self._status = features.status[-1]

    @property
    def size(self) -> int:
        """Number of cells."""
        return self.shape[0] * self.shape[1]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> NDArray[np.bool_]:
        if isinstance(index, slice):
            start, stop, step = index.indices(self.shape[0])
            return np.asarray(self._status.rows(start, max(start, stop)) != NODATA)[::step]
        if isinstance(index, tuple) and len(index) == 2 and not any(isinstance(each, slice) for each in index):
            row, col = np.broadcast_arrays(*(np.asarray(each, np.int64) for each in index))
            row, col = (np.where(each < 0, each + n, each) for each, n in zip((row, col), self.shape, strict=True))
            return np.asarray(self._status.gather(row.ravel(), col.ravel()) != NODATA).reshape(row.shape)
        mask: NDArray[np.bool_] = np.asarray(self)[index]
        return mask

    def sum(self) -> int:
        """Number of cells with imagery, counted once."""
        if self._features._count is None:
            strips = self._features.strips(self._features.pyramid.levels)
            self._features._count = sum(int((status != NODATA).sum()) for status, _ in strips)
        return self._features._count

    def any(self) -> bool:
        """Whether a cell has imagery."""
        return self.sum() > 0

    def ravel(self) -> NDArray[np.bool_]:
        """All cells, as an array."""
        return np.asarray(self).ravel()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.bool_]:
        mask = np.empty(self.shape, bool)
        start = 0
        for status, _ in self._features.strips(self._features.pyramid.levels):
            mask[start : start + len(status)] = status != NODATA
            start += len(status)
        return mask if dtype is None else mask.astype(dtype)

    def __and__(self, other: Any) -> NDArray[np.bool_]:
        both: NDArray[np.bool_] = np.asarray(self) & np.asarray(other)
        return both

    def __invert__(self) -> NDArray[np.bool_]:
        others: NDArray[np.bool_] = ~np.asarray(self)
        return others


def map_bytes(pyramid: Pyramid, width: int, *, cells: bool = False) -> int:
    """Bytes of a map in memory: two for each feature of a tile, and of a cell if they are read, and the masks."""
    side = pyramid.tiles_per_side(pyramid.levels)
    return 2 * width * pyramid.tile_count + 2 * side**2 + (2 * width * side**2 if cells else 0)
