"""A scale bar on a panel of a picture: metres on the ground, in round lengths."""

from __future__ import annotations

import math
from typing import Any

from jzi.store.geometry.cell_grid import Bounds, CellGrid
from jzi.store.geometry.lengths import length_text, round_length
from jzi.store.geometry.pyramid import geodesic_distance

#: Longest bar, as a share of the panel's width.
LONGEST = 0.4


def ground_metres(area: CellGrid, bounds: Bounds) -> float:
    """Metres on the ground for each unit of the area's CRS, from west to east through the middle of a rectangle.

    A unit of a CRS is a metre where its projection preserves lengths, and 0.6 m in Web Mercator at 53 degrees north.

    Args:
        area: the grid of the cells.
        bounds: the rectangle, in the area's CRS.
    """
    x, y = (bounds.west + bounds.east) / 2, (bounds.south + bounds.north) / 2
    half = (bounds.east - bounds.west) / 4
    start, end = (area.unproject(x + side * half, y) for side in (-1, 1))
    return float(geodesic_distance(*start, *end)) / (2 * half)


def draw_scale_bar(axis: Any, area: CellGrid, bounds: Bounds) -> None:
    """Draw a bar of a round length in the lower left corner of a panel.

    Nothing is drawn where the projection is not defined.

    Args:
        axis: matplotlib's axes, whose limits are `bounds`.
        area: the grid of the cells.
        bounds: the part of the map that the panel shows, in the area's CRS.
    """
    from matplotlib.patheffects import withStroke

    width, height = bounds.east - bounds.west, bounds.north - bounds.south
    scale = ground_metres(area, bounds)
    if not (math.isfinite(scale) and scale > 0):
        return
    metres = round_length(LONGEST * width * scale)
    x, y = bounds.west + 0.045 * width, bounds.south + 0.05 * height
    ends = [x, x + metres / scale]
    axis.plot(ends, [y, y], color="black", linewidth=4.5, solid_capstyle="butt", zorder=9)
    axis.plot(ends, [y, y], color="white", linewidth=2.2, solid_capstyle="butt", zorder=10)
    text = axis.text(sum(ends) / 2, y + 0.02 * height, length_text(metres), color="white", fontsize=7.5, ha="center",
                     va="bottom", zorder=10)  # fmt: skip
    text.set_path_effects([withStroke(linewidth=2, foreground="black")])
