"""Interface of a geometry of cells, which posteriors, fusion, evaluation and export use."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pyproj import Transformer


class Bounds(NamedTuple):
    """A rectangle in a projected CRS, metres."""

    west: float
    south: float
    east: float
    north: float


class Projected:
    """A grid whose x and y are those of its CRS, as PROJ projects them."""

    if TYPE_CHECKING:

        @property
        def crs(self) -> str:
            """Projected CRS of x and y, metres."""

    @cached_property
    def _from_wgs84(self) -> Transformer:
        return Transformer.from_crs("EPSG:4326", self.crs, always_xy=True)

    def project(self, latitude: ArrayLike, longitude: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Convert degrees (WGS 84) to x, y metres in the CRS; inf where the projection is not defined."""
        x, y = self._from_wgs84.transform(np.asarray(longitude, float), np.asarray(latitude, float))
        return np.asarray(x), np.asarray(y)

    def unproject(self, x: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Convert x, y metres in the CRS to latitude, longitude in degrees (WGS 84)."""
        longitude, latitude = self._from_wgs84.transform(
            np.asarray(x, float), np.asarray(y, float), direction="INVERSE"
        )
        return np.asarray(latitude), np.asarray(longitude)


class CellGrid(Protocol):
    """Cells of equal size in rows from north to south and columns from west to east.

    `jzi.store.geometry.pyramid.Pyramid` and `jzi.store.geometry.bands.BandGrid` implement it. A cell is identified by
    its row and column. Rows need not be equally long: positions in the columns beyond the end of a row are in no cell.
    """

    def __hash__(self) -> int: ...

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
        """Rows, and columns of the longest row."""
        ...

    @property
    def bounds(self) -> Bounds:
        """Rectangle in the CRS that contains all cells, metres."""
        ...

    def cells_at(self, latitude: ArrayLike, longitude: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row (n,) and column (n,) of the cell that contains each position (degrees, WGS 84); -1 outside the area."""
        ...

    def cell_centers(self, row: ArrayLike, col: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """x and y of cell centres, metres."""
        ...

    def within(
        self, latitude: ArrayLike, longitude: ArrayLike, radius: float
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The cells whose centre lies within `radius` metres of positions: position's index, row, column (pair,)."""
        ...

    def project(self, latitude: ArrayLike, longitude: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Latitude, longitude in degrees (WGS 84) to x, y metres; inf where the projection is not defined."""
        ...

    def unproject(self, x: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """x, y metres to latitude, longitude in degrees (WGS 84)."""
        ...


def off_earth(latitude: float, longitude: float) -> str:
    """A sentence if a position is not on earth, which asks for the latitude first if it is with its numbers swapped.

    Args:
        latitude: degrees (WGS 84).
        longitude: degrees (WGS 84).

    Returns:
        The sentence, or nothing if the position is on earth.
    """
    if abs(latitude) <= 90 and abs(longitude) <= 180:
        return ""
    swapped = abs(longitude) <= 90 and abs(latitude) <= 180
    hint = f"; {longitude:g} {latitude:g} is one: give the latitude first" if swapped else ": give latitude, longitude"
    return f"{latitude:g} {longitude:g} is no position on earth{hint}"


def swap_hint(grid: CellGrid, latitude: float, longitude: float) -> str:
    """The end of a message that a position is outside of an area, if it is inside with its numbers swapped.

    Args:
        grid: the area.
        latitude: of the position, degrees.
        longitude: of the position, degrees.

    Returns:
        The hint, or nothing if they are not swapped.
    """
    inside = abs(longitude) <= 90 and grid.cells_at(longitude, latitude)[0][0] >= 0
    return f"; {longitude:g} {latitude:g} is inside: give the latitude first" if inside else ""


def longer_side(grid: CellGrid) -> float:
    """Return the longer side of the area of a grid, metres."""
    return max(grid.shape) * grid.cell_size
