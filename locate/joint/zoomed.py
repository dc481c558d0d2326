"""What experts on the cells of a region have in common that another expert, such as a zoom, helps on larger cells."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from jzi.errors import ConfigError
from jzi.locate.expert import Expert
from jzi.store.geometry.cell_grid import CellGrid
from jzi.store.info import EncoderInfo

#: Points that are looked up at once.
_POINTS = 2**20

#: The error of two maps that have nothing in common.
NO_OVERLAP = "the map of the zoom model does not overlap the cells to search: give another model"


class ZoomedExpert:
    """An expert on cells, and one on the tiles of a map that overlaps them; photos are embedded by both encoders.

    Args:
        cells: an expert on the cells of a region.
        tiles: an expert on the larger cells of another map.

    Attributes:
        inside: (row, col) the tiles with imagery that some of the cells overlap.

    Raises:
        ConfigError: there is no such tile.
    """

    rules_out = False

    def __init__(self, cells: Expert, tiles: Expert) -> None:
        self.cells, self.tiles = cells, tiles
        self.inside = tiles_of(tiles.area, cells.area, cells.cell_mask) & tiles.cell_mask
        if not self.inside.any():
            raise ConfigError(NO_OVERLAP)

    @property
    def area(self) -> CellGrid:
        """The grid of the region's cells."""
        return self.cells.area

    @property
    def encoder(self) -> EncoderInfo:
        """The encoder of the expert on cells; photos are also embedded with that of the tiles."""
        return self.cells.encoder

    @property
    def cell_mask(self) -> NDArray[np.bool_]:
        """(row, col) the cells of the region with imagery."""
        return self.cells.cell_mask

    def split(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """(photo, feature) embeddings by the encoder of the tiles, and by that of the cells, which follow them."""
        width = self.encoder.width
        return query[:, :-width], query[:, -width:]


def tiles_of(tiles: CellGrid, cells: CellGrid, cell_mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(row, col) the tiles that some of the cells overlap, whichever of the two are larger.

    Cells are looked up at points of each tile that are at most half a cell apart.

    Args:
        tiles: the grid of the tiles.
        cells: the grid of the cells.
        cell_mask: (row, col) the cells.
    """
    rows, cols = tiles.shape
    each = max(1, math.ceil(2 * tiles.cell_size / cells.cell_size))  # points along a side of a tile
    offset = ((np.arange(each) + 0.5) / each - 0.5) * tiles.cell_size
    inside = np.zeros(tiles.shape, bool)
    strip = max(1, _POINTS // (cols * each**2))
    for start in range(0, rows, strip):
        row, col = np.mgrid[start : min(start + strip, rows), :cols]
        x, y = tiles.cell_centers(row, col)
        points = np.broadcast_arrays(x[..., None, None] + offset[:, None], y[..., None, None] + offset)
        found_row, found_col = cells.cells_at(*tiles.unproject(*(point.ravel() for point in points)))
        found = (found_row >= 0) & cell_mask[found_row, found_col]
        inside[start : start + strip] = found.reshape(*row.shape, -1).any(-1)
    return inside
