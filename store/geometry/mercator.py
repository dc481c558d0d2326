"""Cells of equal size in Web Mercator, the baseline of Fervers et al. 2024 (table 3): on the ground, they shrink with
the cosine of the latitude.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jzi.errors import BandsError
from jzi.store.geometry.bands import MAX_CELLS, MAX_LATITUDE, RADIUS, haversine, wrap_degrees
from jzi.store.geometry.cell_grid import Bounds


@dataclass(frozen=True)
class MercatorGrid:
    """A rectangle of cells in EPSG:3857, rows from north to south, columns from west to east.

    x and y are metres of the CRS, which are longer than metres on the ground: by 1 / cos(latitude).

    Args:
        cell_m: side of a cell, metres of the CRS; at latitude 42.4, a cell of 30 m is 22.2 m wide on the ground.
        west: west edge, metres of the CRS.
        south: south edge, metres of the CRS.
        rows: number of rows.
        cols: number of columns.

    Raises:
        BandsError: a number is out of range.
    """

    cell_m: float
    west: float
    south: float
    rows: int
    cols: int

    def __post_init__(self) -> None:
        if not (1 <= self.cell_m <= 100_000 and self.rows >= 1 and self.cols >= 1):
            raise BandsError(
                f"the grid has {self.rows} x {self.cols} cells of {self.cell_m:g} m: give at least one cell of 1 to "
                "100 000 m"
            )
        if self.rows * self.cols > MAX_CELLS:
            raise BandsError(
                f"the grid has {self.rows * self.cols:,} cells of {self.cell_m:g} m, more than {MAX_CELLS:,}: give a "
                "smaller region or larger cells"
            )

    @classmethod
    def covering(cls, west: float, south: float, east: float, north: float, cell_m: float = 30.0) -> MercatorGrid:
        """The cells from the south-west corner of a rectangle of degrees on; east is more than 180 across 180 degrees.

        Raises:
            BandsError: the rectangle is empty or reaches beyond 85.06 degrees, or has too many cells.
        """
        if not (-MAX_LATITUDE <= south <= north <= MAX_LATITUDE and -180 <= west < 180 and west < east <= west + 360):
            raise BandsError(
                f"the region reaches from {south:g} to {north:g} degrees north and {west:g} to {east:g} degrees east: "
                f"give a rectangle between latitudes -{MAX_LATITUDE} and {MAX_LATITUDE}"
            )
        low, high = (float(each) for each in _northing([south, north]))
        x, width = RADIUS * math.radians(west), RADIUS * math.radians(east - west)
        return cls(cell_m, x, low, max(1, math.ceil((high - low) / cell_m)), max(1, math.ceil(width / cell_m)))

    @property
    def crs(self) -> str:
        """CRS of x and y."""
        return "EPSG:3857"

    @property
    def cell_size(self) -> float:
        """Side of a cell, metres of the CRS."""
        return self.cell_m

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of cells."""
        return self.rows, self.cols

    @property
    def north(self) -> float:
        """North edge, metres of the CRS."""
        return self.south + self.rows * self.cell_m

    @property
    def bounds(self) -> Bounds:
        """Rectangle of the cells, metres of the CRS."""
        return Bounds(self.west, self.south, self.west + self.cols * self.cell_m, self.north)

    def project(self, latitude: ArrayLike, longitude: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Convert degrees (WGS 84) to x, y; x is less than 360 degrees east of the west edge."""
        turn = (np.asarray(longitude, float) - math.degrees(self.west / RADIUS)) % 360
        return np.asarray(self.west + RADIUS * np.radians(turn)), _northing(latitude)

    def unproject(self, x: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Convert x, y to latitude, longitude in degrees (WGS 84)."""
        latitude = np.degrees(np.arctan(np.sinh(np.asarray(y, float) / RADIUS)))
        return latitude, wrap_degrees(np.degrees(np.asarray(x, float) / RADIUS))

    def cells_at(self, latitude: ArrayLike, longitude: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row (n,) and column (n,) of the cell that contains each position (degrees, WGS 84); -1 outside the grid."""
        latitude, longitude = (np.atleast_1d(np.asarray(each, float)) for each in (latitude, longitude))
        known = np.isfinite(latitude) & np.isfinite(longitude) & (abs(latitude) < 89)
        x, y = self.project(np.where(known, latitude, 0.0), np.where(known, longitude, 0.0))
        row, col = np.floor((self.north - y) / self.cell_m), np.floor((x - self.west) / self.cell_m)
        inside = known & (row >= 0) & (row < self.rows) & (col >= 0) & (col < self.cols)
        return np.where(inside, row, -1).astype(np.int64), np.where(inside, col, -1).astype(np.int64)

    def cell_centers(self, row: ArrayLike, col: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """x and y of cell centres, metres of the CRS."""
        x = self.west + (np.asarray(col) + 0.5) * self.cell_m
        return x, self.north - (np.asarray(row) + 0.5) * self.cell_m

    def positions(self, row: ArrayLike, col: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Latitude and longitude of cell centres, degrees (WGS 84)."""
        return self.unproject(*self.cell_centers(row, col))

    def within(
        self, latitude: ArrayLike, longitude: ArrayLike, radius: float
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The cells whose centre lies within a distance of each of several positions, on the sphere.

        Args:
            latitude: (n,) degrees.
            longitude: (n,) degrees.
            radius: metres on the ground.

        Returns:
            Index of the position, row and column of each pair of a position and a cell, (pair,) each.
        """
        latitude, longitude = (np.atleast_1d(np.asarray(each, float)) for each in (latitude, longitude))
        x, y = self.project(latitude, longitude)
        # Metres of the CRS are longest at the end of the circle that is nearer to a pole
        furthest = np.minimum(np.radians(abs(latitude)) + radius / RADIUS, math.radians(89))
        reach = math.ceil(radius / float(np.cos(furthest).min(initial=1.0)) / self.cell_m) + 1
        offset = np.arange(-reach, reach + 1)
        row = np.floor((self.north - y) / self.cell_m).astype(np.int64)[:, None, None] + offset[:, None]
        col = np.floor((x - self.west) / self.cell_m).astype(np.int64)[:, None, None] + offset
        turn = round(2 * math.pi * RADIUS / self.cell_m)
        col = np.where(col >= turn - reach, col - turn, col)  # a position just west of the west edge
        shape = np.broadcast_shapes(row.shape, col.shape)
        row, col = np.broadcast_to(row, shape), np.broadcast_to(col, shape)
        to_latitude, to_longitude = self.positions(row, col)
        near = haversine(latitude[:, None, None], longitude[:, None, None], to_latitude, to_longitude) <= radius
        near &= (row >= 0) & (row < self.rows) & (col >= 0) & (col < self.cols)
        return np.nonzero(near)[0], row[near], col[near]


def _northing(latitude: ArrayLike) -> NDArray[np.float64]:
    """y of EPSG:3857, metres."""
    return np.asarray(RADIUS * np.arcsinh(np.tan(np.radians(np.asarray(latitude, float)))))
