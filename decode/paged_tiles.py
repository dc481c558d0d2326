"""What `TileTable` indexes of a map that is not in memory: embeddings and masks of tiles, read where they are needed.

Both are indexed by tensors of tile indices, as the tensors of a map in memory are, and give the same values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jzi.store.features.map_pages import PagedMap

#: Tiles whose masks are looked up at once.
BLOCK = 4096


@dataclass(frozen=True)
class TileIndex:
    """The map, and where its tiles are among the indices of a table.

    Attributes:
        features: the map.
        offsets: index of the first tile of each level.
        device: device of the tensors that are returned.
    """

    features: PagedMap
    offsets: list[int]
    device: torch.device

    def __len__(self) -> int:
        return self.features.pyramid.tile_count

    def look_up(
        self,
        index: Tensor | slice | int,
        width: int,
        dtype: Any,
        read: Callable[[int, NDArray[np.int64], NDArray[np.int64]], NDArray[Any]],
    ) -> Tensor:
        """(..., width) values of tiles.

        Args:
            index: (...) indices of tiles.
            width: number of values of a tile.
            dtype: type of the values.
            read: from a level, rows and columns of its tiles to (n, width) values.
        """
        tile = torch.arange(len(self))[index] if isinstance(index, slice | int) else index
        flat = tile.reshape(-1).cpu().numpy()
        values = np.empty((len(flat), width), dtype)
        levels = np.searchsorted(self.offsets, flat, "right") - 1
        for level in np.unique(levels).tolist():
            inside = np.flatnonzero(levels == level)
            side = self.features.pyramid.tiles_per_side(level)
            distinct, place = np.unique(flat[inside] - self.offsets[level], return_inverse=True)
            values[inside] = read(level, *np.divmod(distinct, side))[place]
        return torch.from_numpy(values).to(self.device).view(*tile.shape, width)


class PagedTiles:
    """(tile, feature) embeddings; zeros where there is no imagery."""

    def __init__(self, index: TileIndex) -> None:
        self._index = index
        self.shape = torch.Size((len(index), index.features.width))

    @property
    def device(self) -> torch.device:
        """Device of the tensors that are returned."""
        return self._index.device

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Tensor | slice | int) -> Tensor:
        features = self._index.features
        return self._index.look_up(index, self.shape[1], features.dtype, features.tiles)


class PagedMask:
    """(tile, action) bool, the children with imagery, or those of them that contain certain cells.

    Args:
        index: the map.
        within: (row, col) of each level 1..L, whether a tile contains such a cell; None for all.
    """

    def __init__(self, index: TileIndex, within: list[NDArray[np.bool_]] | None = None) -> None:
        self._index, self._within = index, within
        self.shape = torch.Size((len(index), index.features.pyramid.actions))

    def to(self, device: torch.device) -> PagedMask:
        """The same mask with tensors on another device."""
        return PagedMask(TileIndex(self._index.features, self._index.offsets, device), self._within)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Tensor | slice | int | tuple[Tensor, Tensor]) -> Tensor:
        if isinstance(index, tuple):
            tile, action = index
            return self[tile].gather(-1, action[..., None])[..., 0]
        return self._index.look_up(index, self.shape[1], bool, self._read)

    def _read(self, level: int, row: NDArray[np.int64], col: NDArray[np.int64]) -> NDArray[np.bool_]:
        mask = self._index.features.child_mask(level, row, col)
        if self._within is not None:
            rows, cols = self._index.features.children(row, col)
            mask &= self._within[level][rows, cols]
        return mask

    def restricted(self, cell_mask: NDArray[np.bool_]) -> PagedMask:
        """The same mask, but only of tiles that contain certain cells.

        Args:
            cell_mask: (row, col) the cells.
        """
        grids, g = [np.asarray(cell_mask)], self._index.features.pyramid.grid
        for _ in range(self._index.features.pyramid.levels - 1):
            side = len(grids[0]) // g
            grids.insert(0, np.asarray(grids[0].reshape(side, g, side, g).any((1, 3))))
        if self._within is not None:
            grids = [one & other for one, other in zip(grids, self._within, strict=True)]
        return PagedMask(self._index, grids)

    def last_tiles(self, limit: int) -> int:
        """Number of tiles of the last level with a child; of more than a limit, some number above it."""
        features = self._index.features
        last, count = features.pyramid.levels - 1, 0
        within = None if self._within is None or not last else self._within[last - 1]
        side = features.pyramid.tiles_per_side(last)
        tiles = np.arange(side * side) if within is None else np.flatnonzero(within)
        for start in range(0, len(tiles), BLOCK):
            count += int(self._read(last, *np.divmod(tiles[start : start + BLOCK], side)).any(1).sum())
            if count > limit:
                break
        return count

    def cell_mask(self) -> NDArray[np.bool_]:
        """(row, col) the cells with imagery, read where they are asked for, or those of a restricted search."""
        mask = self._index.features.cell_mask
        if self._within is None:
            return cast("NDArray[np.bool_]", mask)
        return mask & self._within[-1]
