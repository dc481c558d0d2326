"""The panel of a picture that shows an answer to metres."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jzi.export.fine_grid import fine_shares
from jzi.locate.fix import Fix
from jzi.locate.fix_shapes import ellipse, wedge, wedge_length
from jzi.locate.location import Location
from jzi.store.cell_grid import Bounds

#: Least and greatest distance, metres, from the answer to the panel's edge.
NEAR_M, FAR_M = 20.0, 60.0

ANSWER, HEADING = "#ff2d78", "#2979ff"


def fix_bounds(fix: Fix, location: Location) -> Bounds:
    """A square around an answer, in the area's CRS, that shows its ellipses and headings.

    Args:
        fix: the answer.
        location: the location that it belongs to.
    """
    half = min(FAR_M, max(NEAR_M, 1.3 * wedge_length(fix)))
    north = _to_crs(location, np.array([[fix.latitude + half / 111_320, fix.longitude]]))[0]
    half = math.hypot(north[0] - fix.x, north[1] - fix.y)  # in units of the CRS
    return Bounds(fix.x - half, fix.y - half, fix.x + half, fix.y + half)


def draw_fix(axis: Any, fix: Fix, location: Location, bounds: Bounds) -> None:
    """Draw probabilities, ellipses, headings and modes on a panel that shows a part of the map.

    Args:
        axis: matplotlib's axes.
        fix: the answer.
        location: the location that it belongs to.
        bounds: the part of the map, in the area's CRS.
    """
    from matplotlib import colormaps
    from matplotlib.patches import Polygon

    for relative, window in fine_shares(location):
        colours = colormaps["inferno"](0.25 + 0.75 * relative)
        colours[..., 3] = np.minimum(0.75, relative) * (relative > 0.06)
        axis.imshow(colours, extent=(window.west, window.east, window.south, window.north), interpolation="nearest")
    for direction in fix.directions:
        corners = _to_crs(location, wedge(fix, direction))
        axis.add_patch(Polygon(corners, facecolor=HEADING, alpha=0.45, linewidth=0))
        axis.add_patch(Polygon(corners, fill=False, edgecolor="white", linewidth=0.8))
    for share in (0.95, 0.68):
        axis.add_patch(Polygon(_to_crs(location, ellipse(fix, share)), fill=False, edgecolor=ANSWER, linewidth=1.8))
    for mode in fix.modes:
        axis.plot(*_to_crs(location, np.array([[mode.latitude, mode.longitude]]))[0], marker=".", color="#ffb300")
    axis.plot(fix.x, fix.y, marker="+", markersize=10, color=ANSWER, markeredgewidth=2)
    axis.set_xlim(bounds.west, bounds.east)
    axis.set_ylim(bounds.south, bounds.north)
    headings = ", ".join(f"{each.heading_deg % 360:.0f}° ± {each.sd_deg:.0f}°" for each in fix.directions[:2])
    major, minor = fix.semi_axes(0.68)
    axis.set_title(f"68 % ellipse {major:.1f} × {minor:.1f} m\nheading {headings or 'unknown'}")


def _to_crs(location: Location, positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 2) x and y in the area's CRS of (n, 2) latitudes and longitudes."""
    return np.stack(location.posterior.area.project(positions[:, 0], positions[:, 1]), 1)
