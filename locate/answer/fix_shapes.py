"""The shapes of a fix on the ground: ellipse, direction and wedge, as latitudes and longitudes."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from jzi.locate.answer.fix import Fix, HeadingPeak
from jzi.store.geometry.pyramid import WGS84

#: Vertices of an ellipse, and degrees between the vertices of a wedge's arc.
CORNERS, ARC_DEG = 64, 3.0

#: Shortest wedge, metres, and its length in semi-major axes of 95 %, so that it leaves the ellipse.
WEDGE_M, WEDGE_AXES = 14.0, 1.6


def ellipse(fix: Fix, share: float) -> NDArray[np.float64]:
    """(corner, 2) latitudes and longitudes of the ellipse of a share, counter-clockwise.

    Args:
        fix: the fix.
        share: share of the probability near the point, 0..1.
    """
    major, minor = fix.semi_axes(share)
    angle = -np.linspace(0, 2 * math.pi, CORNERS, endpoint=False)
    along, across = major * np.cos(angle), minor * np.sin(angle)
    return _around(fix, fix.axis_deg + np.degrees(np.arctan2(across, along)), np.hypot(along, across))


def wedge(fix: Fix, direction: HeadingPeak) -> NDArray[np.float64]:
    """(corner, 2) latitudes and longitudes of a sector of one standard deviation to either side, counter-clockwise.

    Args:
        fix: the fix, where the sector's tip is.
        direction: one of its directions.
    """
    turns = max(2, math.ceil(2 * direction.sd_deg / ARC_DEG))
    azimuth = direction.heading_deg + np.linspace(direction.sd_deg, -direction.sd_deg, turns + 1)
    arc = _around(fix, azimuth, np.full(len(azimuth), wedge_length(fix)))
    return np.concatenate([[[fix.latitude, fix.longitude]], arc])


def heading_line(fix: Fix, direction: HeadingPeak) -> NDArray[np.float64]:
    """(2, 2) latitude and longitude of the point, and of another in the direction.

    Args:
        fix: the fix.
        direction: one of its directions.
    """
    end = _around(fix, np.array([direction.heading_deg]), np.array([wedge_length(fix)]))
    return np.concatenate([[[fix.latitude, fix.longitude]], end])


def wedge_length(fix: Fix) -> float:
    """Length of the wedges of a fix, metres."""
    return max(WEDGE_M, WEDGE_AXES * fix.semi_axes(0.95)[0])


def _around(fix: Fix, azimuth: NDArray[np.float64], metres: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 2) latitudes and longitudes of points at azimuths, degrees, and distances from a fix."""
    ones = np.ones(len(azimuth))
    longitude, latitude, _ = WGS84.fwd(fix.longitude * ones, fix.latitude * ones, azimuth, metres)
    return np.stack([latitude, longitude], 1)
