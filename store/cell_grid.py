"""Interface of a geometry of cells, which posteriors, fusion, evaluation and export use."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray


class CellGrid(Protocol):
    """Cells of equal size in rows from north to south and columns from west to east.

    `jzi.store.pyramid.Pyramid` implements it. A cell is identified by its row and column.
    """

    @property
    def crs(self) -> str:
        """Projected CRS of x and y, metres."""
        ...

    @property
    def cell_size(self) -> float:
        """Side of a cell, metres."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of cells."""
        ...

    def cells_at(self, latitude: ArrayLike, longitude: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row (n,) and column (n,) of the cell that contains each position (degrees, WGS 84); -1 outside the area."""
        ...

    def cell_centers(self, row: ArrayLike, col: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """x and y of cell centres, metres."""
        ...

    def unproject(self, x: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """x, y metres to latitude, longitude in degrees (WGS 84)."""
        ...


def longer_side(grid: CellGrid) -> float:
    """Return the longer side of the area of a grid, metres."""
    return max(grid.shape) * grid.cell_size
