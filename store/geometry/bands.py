"""Cells of equal size in bands along parallels, for a state or a country (Fervers et al. 2024, section 3.1).

The earth is a sphere of radius R = 6 378 137 m, with the latitudes and longitudes of WGS 84 unchanged. Band i has its
centre on latitude i * l / R, l being the side of a cell, and is divided from longitude 0 into cells whose width is l on
the parallel through their centres; cell j has its centre on longitude j * l / (R cos latitude). So the cells of all
regions are the same, (i, j) identifies a cell on earth, and no cell is more than two millimetres off a square of side l
on the sphere. (The ellipsoid differs from the sphere by up to 0.7 %, 20 cm for cells of 30 m.)

A `BandGrid` is the part of them between two parallels and two meridians. All functions are vectorised.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jzi.errors import BandsError
from jzi.store.geometry.cell_grid import Bounds, Projected

#: Radius of the sphere, metres.
RADIUS = 6_378_137.0

#: Largest latitude, degrees; bands beyond it have too few cells for their parallels to be about as long.
MAX_LATITUDE = 85.06

#: Smallest and largest side of a cell, metres. A key has 25 bits for a band and 26 for a cell in it, enough for 1 m.
MIN_CELL, MAX_CELL = 1.0, 100_000.0

#: Most cells of a grid, inside and outside of a region: a country of the size of Germany, in cells of 30 m.
MAX_CELLS = 2**31

_BAND_OFFSET, _CELL_BITS, _CELL_OFFSET = 2**24, 26, 2**25


@dataclass(frozen=True)
class BandGrid(Projected):
    """The cells between two parallels and two meridians, rows from north to south, columns from west to east.

    Row r is band `top` - r. Its columns are its cells from the one that contains the west edge to the one that contains
    the east edge, so rows have different lengths and columns of neighbouring rows are aligned at the west edge only.

    x and y are metres in an azimuthal equidistant projection of the sphere around the centre of the grid. Distances in
    x and y are then off by less than d^2 / 6 R^2 at a distance d from the centre: 0.1 % at 500 km.

    Args:
        cell_m: l, the side of a cell, metres.
        top: number i of the northernmost band.
        rows: number of bands.
        west: west edge, degrees, -180 or more and less than 180.
        east: east edge, degrees, more than `west`; more than 180 for a grid across the antimeridian.

    Raises:
        BandsError: a number is out of range.

    Example:
        >>> grid = BandGrid.covering(-71.17, 42.31, -71.04, 42.40, cell_m=30.0)
        >>> row, col = grid.cells_at(42.36, -71.06)
        >>> latitude, longitude = grid.positions(row, col)
        >>> float(haversine(42.36, -71.06, latitude, longitude)[0].round(1))
        6.4
    """

    cell_m: float
    top: int
    rows: int
    west: float
    east: float

    def __post_init__(self) -> None:
        if not MIN_CELL <= self.cell_m <= MAX_CELL:
            raise BandsError(
                f"the side of a cell is {self.cell_m:g} m: it must lie between {MIN_CELL:g} and {MAX_CELL:g} m"
            )
        if not (-180 <= self.west < 180 and self.west < self.east <= self.west + 360):
            raise BandsError(
                f"the grid reaches from longitude {self.west:g} to {self.east:g}: west must lie between -180 and 180 "
                "degrees, and east at most 360 degrees further east"
            )
        limit = math.floor(math.radians(MAX_LATITUDE) * RADIUS / self.cell_m) + 1
        if not (1 <= self.rows <= 2 * limit + 1 and -limit <= self.top - self.rows + 1 and self.top <= limit):
            raise BandsError(
                f"the grid has {self.rows} bands of {self.cell_m:g} m below band {self.top}, which is not between "
                f"latitudes -{MAX_LATITUDE} and {MAX_LATITUDE}: give a region between them"
            )
        cells = int(self.rows * (math.radians(self.east - self.west) * RADIUS / self.cell_m + 2))
        if cells > MAX_CELLS:
            raise BandsError(
                f"the grid has up to {cells:,} cells of {self.cell_m:g} m, more than {MAX_CELLS:,}: give a smaller "
                "region or larger cells"
            )

    @classmethod
    def covering(cls, west: float, south: float, east: float, north: float, cell_m: float = 30.0) -> BandGrid:
        """The cells that touch a rectangle of latitude and longitude, degrees; west and east as in the constructor.

        Raises:
            BandsError: the rectangle is empty or reaches beyond 85.06 degrees, or has too many cells.
        """
        if not -MAX_LATITUDE <= south <= north <= MAX_LATITUDE:
            raise BandsError(
                f"the region reaches from latitude {south:g} to {north:g}: it must lie between -{MAX_LATITUDE} and "
                f"{MAX_LATITUDE} degrees"
            )
        if not MIN_CELL <= cell_m <= MAX_CELL:
            raise BandsError(f"the side of a cell is {cell_m:g} m: it must lie between {MIN_CELL:g} and {MAX_CELL:g} m")
        top, bottom = (int(band_at(latitude, cell_m)) for latitude in (north, south))
        return cls(cell_m, top, top - bottom + 1, west, east)

    # Sizes

    @property
    def cell_size(self) -> float:
        """Side of a cell, metres."""
        return self.cell_m

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, and columns of the longest row."""
        return self.rows, int(self.count.max())

    @cached_property
    def bands(self) -> NDArray[np.int64]:
        """(row,) number i of each row's band."""
        return self.top - np.arange(self.rows)

    @cached_property
    def step(self) -> NDArray[np.float64]:
        """(row,) width of a cell, radians of longitude."""
        return step_of(self.bands, self.cell_m)

    @cached_property
    def first(self) -> NDArray[np.int64]:
        """(row,) number j of the cell in column 0."""
        return np.floor(math.radians(self.west) / self.step + 0.5).astype(np.int64)

    @cached_property
    def _seam(self) -> NDArray[np.int64]:
        """(row,) largest number j of a cell, J; the next cell to the east is -J."""
        return last_of(self.step)

    @cached_property
    def count(self) -> NDArray[np.int64]:
        """(row,) number of cells."""
        across = self.east > 180
        east = math.radians(self.east - 360 if across else self.east)
        last = np.ceil(east / self.step + 0.5).astype(np.int64) - 1  # west of the east edge begins its last cell
        if not across:
            return np.minimum(last, self._seam) - self.first + 1
        return self._seam - self.first + 1 + np.minimum(last, self.first - 1) + self._seam + 1

    # Projection

    @property
    def center(self) -> tuple[float, float]:
        """Latitude and longitude of the centre, degrees."""
        middle = (self.bands[0] + self.bands[-1]) / 2
        return math.degrees(middle * self.cell_m / RADIUS), float(wrap_degrees((self.west + self.east) / 2))

    @property
    def crs(self) -> str:
        """Projected CRS of x and y, metres."""
        latitude, longitude = self.center
        return f"+proj=aeqd +lat_0={latitude:.9g} +lon_0={longitude:.9g} +R={RADIUS:.0f} +units=m +no_defs +type=crs"

    @cached_property
    def bounds(self) -> Bounds:
        """Rectangle in the CRS that contains the grid, metres."""
        half = self.cell_m / 2 / RADIUS
        north, south = (
            np.degrees(self.bands[row] * self.cell_m / RADIUS + sign * half) for row, sign in ((0, 1), (-1, -1))
        )
        share = np.linspace(0, 1, 65)
        margin = np.degrees(self.step.max())
        longitude = self.west - margin + share * (self.east - self.west + 2 * margin)
        latitude = south + share * (north - south)
        x, y = self.project(
            np.concatenate([np.full(65, north), np.full(65, south), latitude, latitude]),
            np.concatenate([longitude, longitude, np.full(65, longitude[0]), np.full(65, longitude[-1])]),
        )
        return Bounds(float(x.min()), float(y.min()), float(x.max()), float(y.max()))

    # Cells

    def cells_at(self, latitude: ArrayLike, longitude: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row (n,) and column (n,) of the cell that contains each position (degrees, WGS 84); -1 outside the grid."""
        latitude, longitude = np.broadcast_arrays(
            np.atleast_1d(np.asarray(latitude, float)), np.atleast_1d(np.asarray(longitude, float))
        )
        known = np.isfinite(latitude) & np.isfinite(longitude) & (abs(latitude) <= 90)
        row = self.top - band_at(np.where(known, latitude, 0.0), self.cell_m)
        known &= (row >= 0) & (row < self.rows)
        row = np.where(known, row, 0)
        radians = np.radians(wrap_degrees(np.where(known, longitude, 0.0)))
        col = self._columns(row, np.floor(radians / self.step[row] + 0.5).astype(np.int64))
        known &= col >= 0
        return np.where(known, row, -1), np.where(known, col, -1)

    def _columns(self, row: NDArray[np.int64], cell: NDArray[np.int64]) -> NDArray[np.int64]:
        """Columns of the cells with numbers j of rows; -1 outside."""
        west, seam = cell - self.first[row], self._seam[row]
        col = np.where(west >= 0, west, cell + 2 * seam + 1 - self.first[row])
        return np.where((col >= 0) & (col < self.count[row]), col, -1)

    def runs(
        self, row: NDArray[np.int64], start: NDArray[np.int64], stop: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The part in this grid of runs of cells.

        Args:
            row: (run,) rows.
            start: (run,) number j of the first cell of each run.
            stop: (run,) number j of its last cell; runs do not cross the antimeridian.

        Returns:
            Row, first column and the column after the last, (run,) each; columns are the same if nothing is left.
        """
        seam, first, count = self._seam[row], self.first[row], self.count[row]
        parts = []
        for low, shift in ((first, first), (-seam, first - 2 * seam - 1)):  # west, and east of the antimeridian
            cols = [np.clip(cell - shift, np.maximum(low - shift, 0), count) for cell in
                    (np.maximum(start, low), np.minimum(stop, seam) + 1)]  # fmt: skip
            parts.append((row, cols[0], np.maximum(*cols)))
        joined = [np.concatenate(each) for each in zip(*parts, strict=True)]
        return joined[0], joined[1], joined[2]

    def cell_numbers(self, row: ArrayLike, col: ArrayLike) -> NDArray[np.int64]:
        """Number j of cells in their band."""
        row = np.asarray(row)
        cell = self.first[row] + np.asarray(col)
        seam = self._seam[row]
        return np.asarray(np.where(cell > seam, cell - 2 * seam - 1, cell), np.int64)

    def positions(self, row: ArrayLike, col: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Latitude and longitude of cell centres, degrees (WGS 84)."""
        row = np.asarray(row)
        latitude = np.degrees(self.bands[row] * self.cell_m / RADIUS)
        # The antimeridian cuts the last cell on either side of it, perhaps through its centre
        radians = np.clip(self.cell_numbers(row, col) * self.step[row], -np.pi, np.nextafter(np.pi, 0))
        return np.broadcast_to(latitude, radians.shape), np.degrees(radians)

    def cell_centers(self, row: ArrayLike, col: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """x and y of cell centres, metres."""
        return self.project(*self.positions(row, col))

    def within(
        self, latitude: ArrayLike, longitude: ArrayLike, radius: float
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The cells whose centre lies within a distance of each of several positions, on the sphere.

        Args:
            latitude: (n,) degrees.
            longitude: (n,) degrees.
            radius: metres.

        Returns:
            Index of the position, row and column of each pair of a position and a cell, (pair,) each.
        """
        phi, lam = np.radians(np.atleast_1d(latitude)), np.radians(wrap_degrees(np.atleast_1d(longitude)))
        low, high = (np.floor((phi * RADIUS + sign * radius) / self.cell_m + 0.5).astype(np.int64) for sign in (-1, 1))
        position, row = _expand(np.arange(len(phi)), self.top - high, self.top - low)
        kept = (row >= 0) & (row < self.rows)
        position, row = position[kept], row[kept]
        center = self.bands[row] * self.cell_m / RADIUS
        chord = np.sin(radius / 2 / RADIUS) ** 2 - np.sin((phi[position] - center) / 2) ** 2
        kept = chord >= 0
        position, row, chord, center = position[kept], row[kept], chord[kept], center[kept]
        half = 2 * np.arcsin(np.sqrt(np.minimum(1.0, chord / (np.cos(phi[position]) * np.cos(center)))))
        found = []
        for turn in (0.0, -2 * np.pi, 2 * np.pi):  # the other turns are for cells beyond the antimeridian
            west, east, seam = lam[position] + turn - half, lam[position] + turn + half, self._seam[row]
            start, stop = np.ceil(west / self.step[row]), np.floor(east / self.step[row])
            # Centres of cells that the antimeridian cuts through there lie on it, as in `positions`
            start = np.where(west <= -np.pi, -seam, np.where(west > np.pi, seam + 1, start)).astype(np.int64)
            stop = np.where(east >= np.pi, seam, np.where(east < -np.pi, -seam - 1, stop)).astype(np.int64)
            pair, cell = _expand(np.arange(len(row)), start, stop)
            col = self._columns(row[pair], cell)
            found.append(np.stack([position[pair], row[pair], col])[:, col >= 0])
        pairs = np.unique(np.concatenate(found, 1), axis=1)
        return pairs[0], pairs[1], pairs[2]

    # Keys

    def ids(self, row: ArrayLike, col: ArrayLike) -> NDArray[np.int64]:
        """Keys of cells, the same in every grid of this cell size: 51 bits, exact in float64 and JSON."""
        row = np.asarray(row)
        bands = self.bands[row] + _BAND_OFFSET
        return np.asarray((bands << _CELL_BITS) | (self.cell_numbers(row, col) + _CELL_OFFSET), np.int64)

    def rows_of(self, ids: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and columns of keys; -1 outside the grid."""
        ids = np.asarray(ids, np.int64)
        row = self.top - ((ids >> _CELL_BITS) - _BAND_OFFSET)
        inside = (row >= 0) & (row < self.rows)
        col = self._columns(np.where(inside, row, 0), (ids & (2**_CELL_BITS - 1)) - _CELL_OFFSET)
        inside &= col >= 0
        return np.where(inside, row, -1), np.where(inside, col, -1)


def band_at(latitude: ArrayLike, cell_m: float) -> NDArray[np.int64]:
    """Number i of the band that contains each latitude, degrees."""
    return np.asarray(np.floor(np.radians(latitude) * RADIUS / cell_m + 0.5), np.int64)


def step_of(bands: ArrayLike, cell_m: float) -> NDArray[np.float64]:
    """Width of the cells of bands, radians of longitude."""
    return np.asarray(cell_m / (RADIUS * np.cos(np.asarray(bands) * cell_m / RADIUS)))


def last_of(step: ArrayLike) -> NDArray[np.int64]:
    """Largest number j of a cell of bands whose cells have a width in radians."""
    return np.asarray(np.ceil(np.pi / np.asarray(step) - 0.5), np.int64)


def wrap_degrees(longitude: ArrayLike) -> NDArray[np.float64]:
    """Longitudes from -180 to below 180 degrees."""
    longitude = np.asarray(longitude, float)
    return np.where((longitude >= -180) & (longitude < 180), longitude, (longitude + 180) % 360 - 180)


def haversine(
    latitude: ArrayLike, longitude: ArrayLike, to_latitude: ArrayLike, to_longitude: ArrayLike
) -> NDArray[np.float64]:
    """Distance in metres on the sphere between positions in degrees, elementwise."""
    phi, to_phi = np.radians(latitude), np.radians(to_latitude)
    turn = np.radians(np.asarray(to_longitude, float) - longitude)
    a = np.sin((to_phi - phi) / 2) ** 2 + np.cos(phi) * np.cos(to_phi) * np.sin(turn / 2) ** 2
    return np.asarray(2 * RADIUS * np.arctan2(np.sqrt(a), np.sqrt(np.maximum(0.0, 1 - a))))


def move(
    latitude: ArrayLike, longitude: ArrayLike, metres: ArrayLike, bearing: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positions at a distance from others on the sphere.

    Args:
        latitude: degrees.
        longitude: degrees.
        metres: distance.
        bearing: direction at the start, degrees clockwise from north.

    Returns:
        Latitude and longitude, degrees.
    """
    phi, lam, angle, turn = (
        np.asarray(each, float)
        for each in (np.radians(latitude), np.radians(longitude), np.asarray(metres) / RADIUS, np.radians(bearing))
    )
    sine = np.sin(phi) * np.cos(angle) + np.cos(phi) * np.sin(angle) * np.cos(turn)
    to_phi = np.arcsin(np.clip(sine, -1.0, 1.0))
    to_lam = lam + np.arctan2(np.sin(turn) * np.sin(angle) * np.cos(phi), np.cos(angle) - np.sin(phi) * np.sin(to_phi))
    return np.degrees(to_phi), wrap_degrees(np.degrees(to_lam))


def _expand(
    index: NDArray[np.int64], start: NDArray[np.int64], stop: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each index with every number from its start to its stop, both included, as two flat arrays."""
    length = np.maximum(stop - start + 1, 0)
    total = np.repeat(np.cumsum(length) - length, length)
    return np.repeat(index, length), np.arange(length.sum()) - total + np.repeat(start, length)
