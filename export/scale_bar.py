"""A scale bar on a panel of a picture: metres on the ground, in round lengths."""

from __future__ import annotations

import math
from typing import Any

from jzi.store.geometry.cell_grid import Bounds, CellGrid
from jzi.store.geometry.lengths import length_text, round_length
from jzi.store.geometry.scale import ground_metres

#: Longest bar, as a share of the panel's width.
LONGEST = 0.4


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
