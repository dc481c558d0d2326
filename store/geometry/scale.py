"""Metres on the ground in areas whose CRS has longer ones, such as EPSG:3857.

Windows of a refiner have a scale of their own, the meridional one that pyproj gives with the convergence at each centre
(`jzi.refine.windows.window`).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jzi.store.geometry.bands import BandGrid
from jzi.store.geometry.cell_grid import Bounds, CellGrid
from jzi.store.geometry.pyramid import geodesic_distance

#: Difference of the scale from 1 below which metres of a CRS are those of the ground: UTM and national grids differ by
#: up to 0.1 %.
NEGLIGIBLE = 0.005


def metres_per_unit(
    area: CellGrid, x: ArrayLike, y: ArrayLike, reach: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Metres on the ground for each unit of an area's CRS at positions, from west to east and from south to north.

    Args:
        area: the grid of the cells.
        x: (n,) of the positions, units of the CRS.
        y: (n,) of the positions.
        reach: units to each side over which lengths are measured.

    Returns:
        (n,) and (n,); nan or inf where the projection is not defined.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)

    def along(right: float, up: float) -> NDArray[np.float64]:
        start, end = (area.unproject(x + sign * right, y + sign * up) for sign in (-1, 1))
        return geodesic_distance(*start, *end) / (2 * reach)

    return along(reach, 0.0), along(0.0, reach)


@lru_cache(maxsize=16)
def units_per_metre(area: CellGrid) -> float:
    """Units of an area's CRS to a metre on the ground, at its middle: 2 in EPSG:3857 at 60 degrees.

    Exactly 1 in bands, and where projection preserves lengths to `NEGLIGIBLE` or is not defined in the middle.

    Args:
        area: the grid of the cells.
    """
    if isinstance(area, BandGrid):
        return 1.0
    bounds = area.bounds
    middle = (bounds.west + bounds.east) / 2, (bounds.south + bounds.north) / 2
    across, along = (float(each) for each in metres_per_unit(area, *middle, area.cell_size / 2))
    ground = math.sqrt(across * along)
    if not (math.isfinite(ground) and ground > 0):
        return 1.0
    return 1 / ground if abs(1 / ground - 1) > NEGLIGIBLE else 1.0


def ground_metres(area: CellGrid, bounds: Bounds) -> float:
    """Metres on the ground for each unit of the area's CRS, from west to east through the middle of a rectangle.

    A unit of a CRS is a metre where its projection preserves lengths, and 0.6 m in Web Mercator at 53 degrees north.

    Args:
        area: the grid of the cells.
        bounds: the rectangle, in the area's CRS.
    """
    middle = (bounds.west + bounds.east) / 2, (bounds.south + bounds.north) / 2
    return float(metres_per_unit(area, *middle, (bounds.east - bounds.west) / 4)[0])


def largest_scale(area: CellGrid, latitude: ArrayLike, longitude: ArrayLike) -> float:
    """Most units of an area's CRS to a metre on the ground, in any direction, at positions.

    Args:
        area: the grid of the cells.
        latitude: (n,) degrees (WGS 84); 1 is returned if there are none, and in bands, which measure on the sphere.
        longitude: (n,) degrees.
    """
    if isinstance(area, BandGrid):
        return 1.0
    x, y = area.project(latitude, longitude)
    defined = np.isfinite(x) & np.isfinite(y)
    metres = np.concatenate(metres_per_unit(area, x[defined], y[defined], 50.0))
    metres = metres[np.isfinite(metres) & (metres > 0)]
    return float(1 / metres.min()) if metres.size else 1.0
