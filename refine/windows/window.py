"""Windows: squares of a map, some tens of metres wide, in which a photo is located (arXiv 2505.07622).

Sides, offsets and pixels of a window are in metres on the ground, whatever the CRS: a metre is `scale` units of the
CRS, its meridional scale at the window's centre (2 in EPSG:3857 at 60 degrees). A window's upper edge faces grid north,
and `convergence_deg` is the azimuth of that from true north.

Positions in a window are continuous: u to the right and v downwards in pixels from its north-west corner. Pixel i
covers [i, i + 1), its centre is i + 0.5, and the index of the pixel at u is floor(u). Nothing is rounded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pyproj import CRS, Proj

from jzi.errors import ConfigError
from jzi.locate.ranges import PIXELS, Range
from jzi.store.geometry.cell_grid import Bounds, CellGrid

#: Side of a window, metres.
SIDE = Range(1, 10_000, unit="metres")

_Floats = NDArray[np.float64]


@lru_cache(maxsize=16)
def _projection(crs: str) -> Proj:
    return Proj(CRS.from_user_input(crs))


def wrap(degrees: ArrayLike, turn: float = 360.0) -> _Floats:
    """Angles in 0..turn, without `turn` itself, to which small negative ones are rounded.

    Args:
        degrees: angles.
        turn: 360 for directions, 180 for axes.
    """
    wrapped = np.asarray(degrees, float) % turn
    return np.where(wrapped < turn, wrapped, 0.0)


class _Frame:
    """What a window and an array of windows share; values of several windows have shape (window,)."""

    area: CellGrid
    x: Any
    y: Any
    side_m: float
    pixels: int

    def _check(self) -> None:
        SIDE.check("the side of a window", self.side_m)
        PIXELS.check("the pixels of a window", self.pixels)
        if not (np.isfinite(self.x).all() and np.isfinite(self.y).all()):
            raise ConfigError("a window's centre is not a finite position in the area's CRS: give one on the map")

    @cached_property
    def _center(self) -> tuple[_Floats, _Floats]:
        return self.area.unproject(self.x, self.y)

    @cached_property
    def _factors(self) -> tuple[Any, Any]:
        latitude, longitude = self._center
        factors = _projection(self.area.crs).get_factors(longitude, latitude)
        scale, convergence = (
            np.asarray(each, float) for each in (factors.meridional_scale, factors.meridian_convergence)
        )
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            raise ConfigError(
                "the CRS of the area has no scale at a window's centre: give a position where the projection is defined"
            )
        return scale, convergence

    @property
    def pixel_m(self) -> float:
        """Side of a pixel, metres."""
        return self.side_m / self.pixels

    # Offsets

    def offset_to_pixels(self, right_m: ArrayLike, up_m: ArrayLike) -> tuple[_Floats, _Floats]:
        """Offsets from the centre, metres towards grid east and grid north, to u and v."""
        u, v = np.asarray(right_m, float) / self.pixel_m, -np.asarray(up_m, float) / self.pixel_m
        return np.asarray(self.pixels / 2 + u), np.asarray(self.pixels / 2 + v)

    def pixels_to_offset(self, u: ArrayLike, v: ArrayLike) -> tuple[_Floats, _Floats]:
        """u and v to offsets from the centre, metres towards grid east and grid north."""
        right, down = np.asarray(u, float) - self.pixels / 2, np.asarray(v, float) - self.pixels / 2
        return np.asarray(right * self.pixel_m), np.asarray(-down * self.pixel_m)

    # Positions: u and v are (...) for one window and (window, ...) for several

    def pixels_to_crs(self, u: ArrayLike, v: ArrayLike) -> tuple[_Floats, _Floats]:
        """u and v to x and y in the area's CRS."""
        right, up = self.pixels_to_offset(u, v)
        x, y, scale = self._spread(right.ndim)
        return np.asarray(x + right * scale), np.asarray(y + up * scale)

    def crs_to_pixels(self, x: ArrayLike, y: ArrayLike) -> tuple[_Floats, _Floats]:
        """x and y in the area's CRS to u and v; outside of 0..`pixels` for positions outside of the window."""
        x, y = np.asarray(x, float), np.asarray(y, float)
        center_x, center_y, scale = self._spread(x.ndim)
        return self.offset_to_pixels((x - center_x) / scale, (y - center_y) / scale)

    def pixels_to_position(self, u: ArrayLike, v: ArrayLike) -> tuple[_Floats, _Floats]:
        """u and v to latitude and longitude, degrees (WGS 84)."""
        return self.area.unproject(*self.pixels_to_crs(u, v))

    def position_to_pixels(self, latitude: ArrayLike, longitude: ArrayLike) -> tuple[_Floats, _Floats]:
        """Latitude and longitude, degrees (WGS 84), to u and v."""
        return self.crs_to_pixels(*self.area.project(latitude, longitude))

    def _spread(self, dimensions: int) -> tuple[Any, Any, Any]:
        """x, y and scale, to be broadcast against arrays of some number of dimensions."""
        values = (np.asarray(each) for each in (self.x, self.y, self._factors[0]))
        x, y, scale = (each.reshape(each.shape + (1,) * (dimensions - each.ndim)) for each in values)
        return x, y, scale

    # Directions

    def true_heading(self, grid_deg: ArrayLike) -> _Floats:
        """Azimuths from grid north to azimuths from true north, degrees in 0..360."""
        return wrap(np.asarray(grid_deg, float) + self._factors[1])

    def grid_heading(self, true_deg: ArrayLike) -> _Floats:
        """Azimuths from true north to azimuths from grid north, degrees in 0..360."""
        return wrap(np.asarray(true_deg, float) - self._factors[1])


@dataclass(frozen=True)
class Window(_Frame):
    """A square of a map around a point, grid north up.

    Args:
        area: the map; x and y are in its CRS.
        x: of the centre.
        y: of the centre.
        side_m: side, metres on the ground.
        pixels: pixels along a side.

    Raises:
        ConfigError: a number is out of range, or the point is outside of the projection.

    Example:
        >>> from jzi.store.geometry.mercator import MercatorGrid
        >>> grid = MercatorGrid.covering(24.9, 59.99, 25.1, 60.01)
        >>> x, y = grid.project(60.0, 25.0)
        >>> bounds = Window(grid, float(x), float(y), 80.0, 384).bounds
        >>> round(bounds.east - bounds.west, 6)
        160.0
    """

    area: CellGrid
    x: float
    y: float
    side_m: float
    pixels: int

    def __post_init__(self) -> None:
        self._check()

    @property
    def latitude(self) -> float:
        """Of the centre, degrees (WGS 84)."""
        return float(self._center[0])

    @property
    def longitude(self) -> float:
        """Of the centre, degrees."""
        return float(self._center[1])

    @property
    def scale(self) -> float:
        """Units of the CRS in a metre on the ground."""
        return float(self._factors[0])

    @property
    def convergence_deg(self) -> float:
        """Azimuth of grid north from true north at the centre, degrees clockwise."""
        return float(self._factors[1])

    @property
    def bounds(self) -> Bounds:
        """The square in the area's CRS."""
        half = self.side_m * self.scale / 2
        return Bounds(self.x - half, self.y - half, self.x + half, self.y + half)

    def with_pixels(self, pixels: int) -> Window:
        """The same square divided into another number of pixels."""
        return replace(self, pixels=pixels)


@dataclass(frozen=True, eq=False)
class Windows(_Frame):
    """Several windows of one map, of the same size.

    Args:
        area: the map; x and y are in its CRS.
        x: (window,) of the centres.
        y: (window,) of the centres.
        side_m: side, metres on the ground.
        pixels: pixels along a side.

    Raises:
        ConfigError: as for `Window`.
    """

    area: CellGrid
    x: _Floats
    y: _Floats
    side_m: float
    pixels: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "x", np.atleast_1d(np.asarray(self.x, float)))
        object.__setattr__(self, "y", np.atleast_1d(np.asarray(self.y, float)))
        self._check()

    @classmethod
    def around_cells(cls, area: CellGrid, row: ArrayLike, col: ArrayLike, side_m: float, pixels: int) -> Windows:
        """Windows around the centres of cells.

        Args:
            area: the map.
            row: (window,) rows of the cells.
            col: (window,) columns.
            side_m: side, metres on the ground.
            pixels: pixels along a side.
        """
        x, y = area.cell_centers(np.atleast_1d(row), np.atleast_1d(col))
        return cls(area, x, y, side_m, pixels)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Window:
        return Window(self.area, float(self.x[index]), float(self.y[index]), self.side_m, self.pixels)

    def select(self, index: NDArray[np.int64]) -> Windows:
        """Some of the windows, given by their indices."""
        return replace(self, x=self.x[index], y=self.y[index])

    @property
    def positions(self) -> tuple[_Floats, _Floats]:
        """(window,) latitude and longitude of the centres, degrees (WGS 84)."""
        return self._center

    @property
    def scale(self) -> _Floats:
        """(window,) units of the CRS in a metre on the ground."""
        return np.asarray(self._factors[0])

    @property
    def convergence_deg(self) -> _Floats:
        """(window,) azimuth of grid north from true north at the centres, degrees clockwise."""
        return np.asarray(self._factors[1])

    @property
    def bounds(self) -> _Floats:
        """(window, 4) west, south, east and north in the area's CRS."""
        half = self.side_m * self.scale / 2
        return np.stack([self.x - half, self.y - half, self.x + half, self.y + half], 1)

    def with_pixels(self, pixels: int) -> Windows:
        """The same squares divided into another number of pixels."""
        return replace(self, pixels=pixels)
