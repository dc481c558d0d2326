"""Metres on the ground in areas whose CRS has longer ones, such as EPSG:3857."""

from __future__ import annotations

import math
from functools import lru_cache

from jzi.store.geometry.bands import BandGrid
from jzi.store.geometry.cell_grid import CellGrid
from jzi.store.geometry.pyramid import geodesic_distance

#: Difference of the scale from 1 below which metres of a CRS are those of the ground: UTM and national grids differ by
#: up to 0.1 %.
NEGLIGIBLE = 0.005


@lru_cache(maxsize=16)
def units_per_metre(area: CellGrid) -> float:
    """Units of an area's CRS to a metre on the ground, at its middle: 2 in EPSG:3857 at 60 degrees.

    Exactly 1 in bands, and where projection preserves lengths to `NEGLIGIBLE` or is not defined in the middle.

    Args:
        area: the grid of the cells.
    """
    if isinstance(area, BandGrid):
        return 1.0
    half, bounds = area.cell_size / 2, area.bounds
    x, y = (bounds.west + bounds.east) / 2, (bounds.south + bounds.north) / 2
    west, east, south, north = (
        area.unproject(x + right * half, y + up * half) for right, up in ((-1, 0), (1, 0), (0, -1), (0, 1))
    )
    across, along = (float(geodesic_distance(*start, *end)) for start, end in ((west, east), (south, north)))
    ground = math.sqrt(across * along)
    if not (math.isfinite(ground) and ground > 0):
        return 1.0
    scale = 2 * half / ground
    return scale if abs(scale - 1) > NEGLIGIBLE else 1.0
