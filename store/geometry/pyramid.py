"""The geometry of the zoom: a square area, recursively divided into g x g tiles (Just Zoom In, section 3.1).

Level l has (g^l)^2 tiles. Row 0 is north, column 0 is west; a tile's key is (level, row, col). An action is
row_in_parent * g + col_in_parent. A path is L actions and ends in a terminal cell, a tile of level L.
All functions are vectorised over arrays: a million positions are converted to paths in less than a second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pyproj import CRS, Geod
from pyproj.exceptions import CRSError

from jzi.errors import PyramidError, first_line
from jzi.store.geometry.cell_grid import Bounds, CellGrid, Projected, off_earth

WGS84 = Geod(ellps="WGS84")

#: Largest number of cells along a side: 320 km with cells of 20 m. The status of its cells takes 268 MB, a byte each.
MAX_SIDE = 16384

#: Largest coordinate and side of an area, metres: more than the circumference of the earth.
MAX_METRES = 1e8


class TileKey(NamedTuple):
    """Key of a tile in the pyramid. Row 0 is north, column 0 is west."""

    level: int
    row: int
    col: int


@dataclass(frozen=True)
class Pyramid(Projected):
    """A square area in a metric projected CRS, divided into tiles.

    Args:
        crs: any definition that pyproj reads; projected, in metres.
        west: west edge of the area, metres.
        north: north edge of the area, metres.
        size: side of the area, metres.
        grid: g; a tile has g x g children.
        levels: L; levels 0..L-1 are encoded, level L consists of the terminal cells.

    Raises:
        PyramidError: the CRS is unknown or not metric, or a number is out of range.
    """

    crs: str
    west: float
    north: float
    size: float
    grid: int = 4
    levels: int = 4

    def __post_init__(self) -> None:
        try:
            crs = CRS.from_user_input(self.crs)
        except CRSError as error:
            raise PyramidError(
                f"pyramid.crs {self.crs!r:.200} is not a CRS that PROJ knows: {first_line(error)}"
            ) from error
        units = {axis.unit_conversion_factor for axis in crs.axis_info}
        if not crs.is_projected or units != {1.0}:
            raise PyramidError(f"pyramid.crs must be a projected CRS in metres, but {crs.name!r} is not")
        if not (abs(self.west) <= MAX_METRES and abs(self.north) <= MAX_METRES and 1 <= self.size <= MAX_METRES):
            raise PyramidError(
                f"pyramid.west, north and size are {self.west}, {self.north} and {self.size}: they must lie between "
                f"-{MAX_METRES:g} and {MAX_METRES:g} metres, and size must be at least 1"
            )
        if not 2 <= self.grid <= 16:
            raise PyramidError(f"pyramid.grid must lie between 2 and 16, not {self.grid}")
        if not 1 <= self.levels <= 12 or self.grid**self.levels > MAX_SIDE:
            raise PyramidError(
                f"pyramid.levels is {self.levels} and grid {self.grid}: levels must lie between 1 and 12, with at most "
                f"{MAX_SIDE} cells to a side (grid^levels)"
            )

    @classmethod
    def around(
        cls, latitude: float, longitude: float, size: float, *, grid: int = 4, levels: int | None = None
    ) -> Pyramid:
        """Create a square centred on a position, in an azimuthal equidistant CRS (WGS 84) centred there too.

        Args:
            latitude: degrees (WGS 84).
            longitude: degrees (WGS 84).
            size: side, metres.
            grid: g; a tile has g x g children.
            levels: L; by default the fewest whose cells are at most 40 m, as in the paper.

        Raises:
            PyramidError: the position is not on earth, or a number is out of range.
        """
        if wrong := off_earth(latitude, longitude):
            raise PyramidError(wrong)
        crs = f"+proj=aeqd +lat_0={latitude:.9g} +lon_0={longitude:.9g} +datum=WGS84 +units=m +no_defs +type=crs"
        if levels is None:
            levels = levels_for(size, grid)
        return cls(crs=crs, west=-size / 2, north=size / 2, size=size, grid=grid, levels=levels)

    # Sizes

    @property
    def actions(self) -> int:
        """Number of children of a tile: g*g."""
        return self.grid**2

    @property
    def cell_size(self) -> float:
        """Side of a terminal cell, metres."""
        return self.footprint(self.levels)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of terminal cells."""
        return (self.tiles_per_side(self.levels),) * 2

    def tiles_per_side(self, level: int) -> int:
        """Number of tiles along a side of a level: g^level."""
        side: int = self.grid**level
        return side

    def footprint(self, level: int) -> float:
        """Side of a tile of a level, metres."""
        return self.size / self.tiles_per_side(level)

    @property
    def tile_count(self) -> int:
        """Number of tiles of levels 0..L-1 (4369 for g = 4, L = 4)."""
        return sum(self.tiles_per_side(level) ** 2 for level in range(self.levels))

    @property
    def cell_count(self) -> int:
        """Number of terminal cells, with imagery or without (65 536 for g = 4, L = 4)."""
        return self.tiles_per_side(self.levels) ** 2

    @property
    def bounds(self) -> Bounds:
        """Rectangle of the area in the CRS, metres."""
        return Bounds(self.west, self.north - self.size, self.west + self.size, self.north)

    # Positions

    def cells_at(self, latitude: ArrayLike, longitude: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row (n,) and column (n,) of the terminal cell that contains each position; -1 outside the area."""
        x, y = self.project(np.atleast_1d(latitude), np.atleast_1d(longitude))
        side = self.tiles_per_side(self.levels)
        col = np.floor((x - self.west) / self.cell_size)
        row = np.floor((self.north - y) / self.cell_size)
        inside = (row >= 0) & (row < side) & (col >= 0) & (col < side)  # False for inf and nan too
        return np.where(inside, row, -1).astype(np.int64), np.where(inside, col, -1).astype(np.int64)

    def within(
        self, latitude: ArrayLike, longitude: ArrayLike, radius: float
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The terminal cells whose centre lies within a distance of each of several positions, in the CRS.

        Args:
            latitude: (n,) degrees.
            longitude: (n,) degrees.
            radius: metres.

        Returns:
            Index of the position, row and column of each pair of a position and a cell, (pair,) each.
        """
        x, y = self.project(np.atleast_1d(latitude), np.atleast_1d(longitude))
        side, reach = self.tiles_per_side(self.levels), math.ceil(radius / self.cell_size) + 1
        offset = np.arange(-reach, reach + 1)
        near = np.isfinite(x) & np.isfinite(y) & (abs(x) < 2 * MAX_METRES) & (abs(y) < 2 * MAX_METRES)
        position = np.flatnonzero(near)
        col = np.floor((x[near] - self.west) / self.cell_size).astype(np.int64)[:, None, None] + offset
        row = np.floor((self.north - y[near]) / self.cell_size).astype(np.int64)[:, None, None] + offset[:, None]
        position, row, col = (each.ravel() for each in np.broadcast_arrays(position[:, None, None], row, col))
        center = self.cell_centers(row, col)
        kept = (row >= 0) & (row < side) & (col >= 0) & (col < side)
        kept &= np.hypot(center[0] - x[position], center[1] - y[position]) <= radius
        return position[kept], row[kept], col[kept]

    def paths(self, latitude: ArrayLike, longitude: ArrayLike) -> NDArray[np.int64]:
        """The zoom sequence of each position.

        Returns:
            (n, L) actions in 0..g*g-1; rows of -1 for positions outside the area.
        """
        row, col = self.cells_at(latitude, longitude)
        return np.where(row[:, None] >= 0, self.cell_to_path(np.maximum(row, 0), np.maximum(col, 0)), -1)

    # Keys and paths

    def cell_to_path(self, row: ArrayLike, col: ArrayLike) -> NDArray[np.int64]:
        """Convert (n,) rows and columns of level L to (n, L) actions."""
        row, col = np.asarray(row, np.int64), np.asarray(col, np.int64)
        scale = self.grid ** np.arange(self.levels - 1, -1, -1)  # cells per tile side of level 1..L
        return row[..., None] // scale % self.grid * self.grid + col[..., None] // scale % self.grid

    def path_to_tile(self, path: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Convert (..., k) actions to the row and column (...,) of the tile of level k."""
        path = np.asarray(path, np.int64)
        scale = self.grid ** np.arange(path.shape[-1] - 1, -1, -1)
        return (path // self.grid * scale).sum(-1), (path % self.grid * scale).sum(-1)

    def input_tiles(self, path: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and columns (..., L) of the tiles of levels 0..L-1 along paths of (..., L) actions."""
        path = np.asarray(path, np.int64)
        keys = [self.path_to_tile(path[..., :level]) for level in range(self.levels)]
        return np.stack([row for row, _ in keys], -1), np.stack([col for _, col in keys], -1)

    def keys(self, path: ArrayLike) -> list[TileKey]:
        """The L + 1 keys along one path, from the whole area to the terminal cell."""
        path = np.asarray(path, np.int64)
        return [TileKey(level, *map(int, self.path_to_tile(path[:level]))) for level in range(len(path) + 1)]

    def children(self, key: TileKey) -> list[TileKey]:
        """The g*g children of a tile, in the order of the actions."""
        level, row, col = key
        g = self.grid
        return [TileKey(level + 1, row * g + action // g, col * g + action % g) for action in range(g * g)]

    # Tiles

    def tile_bounds(self, key: TileKey) -> Bounds:
        """Rectangle of a tile in the CRS, metres."""
        level, row, col = key
        side = self.footprint(level)
        west, north = self.west + col * side, self.north - row * side
        return Bounds(west, north - side, west + side, north)

    def tile_centers(
        self, level: int, row: ArrayLike, col: ArrayLike
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """x, y of tile centres in the CRS, metres."""
        side = self.footprint(level)
        return self.west + (np.asarray(col) + 0.5) * side, self.north - (np.asarray(row) + 0.5) * side

    def cell_centers(self, row: ArrayLike, col: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """x, y of the centres of terminal cells in the CRS, metres."""
        return self.tile_centers(self.levels, row, col)

    def tile_positions(
        self, level: int, row: ArrayLike, col: ArrayLike
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Latitude, longitude of tile centres, degrees (WGS 84)."""
        return self.unproject(*self.tile_centers(level, row, col))


def levels_for(size: float, grid: int = 4, cell: float = 40.0) -> int:
    """Smallest number of levels whose cells are at most `cell` metres: 4 for the paper's 10 km, 3 for 1.3 km.

    Raises:
        PyramidError: the size or the grid is out of range.
    """
    if not (1 <= size <= MAX_METRES and 2 <= grid <= 16):
        raise PyramidError(
            f"pyramid.size is {size} and grid {grid}: they must lie between 1 and {MAX_METRES:g} metres, and 2 and 16"
        )
    levels = 1
    while size / grid**levels > cell:
        levels += 1
    return levels


def geodesic_distance(
    latitude: ArrayLike, longitude: ArrayLike, to_latitude: ArrayLike, to_longitude: ArrayLike
) -> NDArray[np.float64]:
    """Distance in metres on the WGS 84 ellipsoid between positions in degrees, elementwise."""
    positions = (longitude, latitude, to_longitude, to_latitude)
    x1, y1, x2, y2 = np.broadcast_arrays(*(np.asarray(each, float) for each in positions))
    return np.asarray(WGS84.inv(x1, y1, x2, y2)[2])


#: Published areas. The zoom sequences of the Just Zoom In data set were computed on a sphere of radius 6 378 137 m.
PRESETS: dict[str, Pyramid] = {
    "just-zoom-in-dc": Pyramid(
        crs="+proj=aeqd +lat_0=38.8936 +lon_0=-77.0116 +R=6378137 +units=m +no_defs +type=crs",
        west=-3000.0,
        north=5000.0,
        size=10000.0,
        grid=4,
        levels=4,
    )
}


def preset(name: str) -> Pyramid:
    """Return a published pyramid by its name.

    Raises:
        PyramidError: there is no such preset.
    """
    if name not in PRESETS:
        raise PyramidError(f"there is no preset {name!r}: the presets are {', '.join(PRESETS)}")
    return PRESETS[name]


def as_pyramid(area: CellGrid) -> Pyramid:
    """Return the area if it is a pyramid; code that draws tiles or zooms needs one.

    Raises:
        PyramidError: the area has another geometry.
    """
    if not isinstance(area, Pyramid):
        raise PyramidError(f"drawing tiles needs a square pyramid, but the area is a {type(area).__name__}")
    return area
