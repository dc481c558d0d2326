"""The panel of a picture that shows an answer to metres."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jzi.export.fine_grid import fine_shares
from jzi.export.marks import Marks
from jzi.export.posterior_picture import coloured
from jzi.locate.answer.fix import Fix
from jzi.locate.answer.fix_shapes import ellipse, wedge, wedge_length
from jzi.locate.answer.location import Location
from jzi.store.geometry.cell_grid import Bounds

#: Least and greatest distance, metres, from the answer to the panel's edge.
NEAR_M, FAR_M = 20.0, 60.0

#: Opacity of the probabilities of metres, so that the ground below is seen: an answer to metres is checked against it.
SEEN = 0.7


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


def draw_fix(axis: Any, fix: Fix, location: Location, bounds: Bounds, marks: Marks) -> None:
    """Draw probabilities, ellipses, headings and modes on a panel that shows a part of the map.

    Args:
        axis: matplotlib's axes.
        fix: the answer.
        location: the location that it belongs to.
        bounds: the part of the map, in the area's CRS.
        marks: draws marks, and collects them for the legend.
    """
    for relative, window in fine_shares(location):
        colours = coloured(relative**2, 1.0)
        colours[..., 3] *= SEEN
        axis.imshow(colours, extent=(window.west, window.east, window.south, window.north), interpolation="nearest")
    axis.set_xlim(bounds.west, bounds.east)
    axis.set_ylim(bounds.south, bounds.north)
    for direction in fix.directions:
        marks.wedge(axis, _to_crs(location, wedge(fix, direction)))
    for share in (0.68, 0.95):
        marks.ellipse(axis, _to_crs(location, ellipse(fix, share)), share)
    modes = [_to_crs(location, np.array([[mode.latitude, mode.longitude]]))[0] for mode in fix.modes]
    marks.modes(axis, [(x, y) for x, y in modes if bounds.west < x < bounds.east and bounds.south < y < bounds.north])
    marks.answer(axis, fix.x, fix.y)


def _to_crs(location: Location, positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 2) x and y in the area's CRS of (n, 2) latitudes and longitudes."""
    return np.stack(location.posterior.area.project(positions[:, 0], positions[:, 1]), 1)
