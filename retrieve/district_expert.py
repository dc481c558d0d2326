"""State-wide retrieval in the probable tiles of another expert, such as a zoom's; no other cells are read."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from jzi.errors import ConfigError
from jzi.locate.expert import Expert
from jzi.locate.location import LocateOptions
from jzi.locate.posterior import Posterior
from jzi.locate.prior import PriorExpert
from jzi.retrieve.bands_expert import BandsExpert
from jzi.store.cell_grid import CellGrid
from jzi.store.info import EncoderInfo

#: Points that are looked up at once.
_POINTS = 2**20


class DistrictExpert:
    """Retrieval where another expert finds a photo probable; see `BandsExpert.posterior_within`.

    The other expert is restricted to its tiles in the region: a photo is known to be of the region, of which its square
    may contain only a part.

    Args:
        cells: retrieval among the cells of the region.
        tiles: an expert on a map that overlaps the region, such as a zoom.

    Raises:
        ConfigError: no tile with imagery lies in the region.
    """

    name = "retrieval"
    rules_out = False

    def __init__(self, cells: BandsExpert, tiles: Expert) -> None:
        inside = tiles_of(tiles.area, cells.area, cells.cell_mask)
        if not (inside & tiles.cell_mask).any():
            raise ConfigError("the map of the zoom model does not overlap the cells to search: give another model")
        self.cells, self.tiles = cells, tiles
        self._coarse = PriorExpert(tiles, inside.astype(np.float32))

    @property
    def area(self) -> CellGrid:
        """The grid of the region's cells."""
        return self.cells.area

    @property
    def encoder(self) -> EncoderInfo:
        """The encoder of retrieval; photos are also embedded with that of the tiles."""
        return self.cells.encoder

    @property
    def cell_mask(self) -> NDArray[np.bool_]:
        """(row, col) the cells of the region with imagery."""
        return self.cells.cell_mask

    def posterior(self, query: Tensor, options: LocateOptions) -> Posterior:
        """The posterior over the cells of each photo's district; the probability of other tiles is the residual.

        Args:
            query: (photo, feature) embeddings by the encoder of the tiles, followed by those by that of retrieval.
            options: `beams` is for the expert on the tiles; for the estimate "greedy", the most probable cell.
        """
        width = self.cells.store.width
        coarse = self._coarse.posterior(query[:, :-width], LocateOptions(beams=options.beams))
        posterior = self.cells.posterior_within(query[:, -width:], coarse)
        return posterior.top(1) if options.estimate == "greedy" else posterior

    def restricted(self, cell_mask: NDArray[np.bool_]) -> DistrictExpert:
        """The same for some of the cells, and the tiles that contain them; see `BandsExpert.restricted`.

        Args:
            cell_mask: (row, col) the cells.

        Raises:
            ConfigError: no tile with imagery contains any.
        """
        return DistrictExpert(self.cells.restricted(cell_mask), self.tiles)

    def uncalibrated(self) -> DistrictExpert | None:
        """The same with uncalibrated retrieval."""
        cells = self.cells.uncalibrated()
        return None if cells is None else DistrictExpert(cells, self.tiles)


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
