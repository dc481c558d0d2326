"""Regions that are not in a GeoJSON file: boxes in degrees, and the squares that the zoom searches."""

from __future__ import annotations

import numpy as np

from jzi.errors import ConfigError
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.geometry.region import Region

#: Points along each side of a square, which is curved in longitude and latitude.
_POINTS = 16


def box_region(west: float, south: float, east: float, north: float) -> Region:
    """The region of a box; one whose west is greater than its east crosses the antimeridian.

    Args:
        west: longitude, degrees.
        south: latitude, degrees.
        east: longitude.
        north: latitude.

    Raises:
        ConfigError: it has no area.
    """
    if south >= north or west == east:
        raise ConfigError(
            f"the box {west:g} {south:g} {east:g} {north:g} has no area: give west, south, east and north in degrees"
        )
    spans = [(west, east)] if west < east else [(west, 180.0), (-180.0, east)]
    polygons = [
        {"type": "Polygon", "coordinates": [[(w, south), (e, south), (e, north), (w, north), (w, south)]]}
        for w, e in spans
        if w < e
    ]
    return Region.of(polygons, f"the box {west:g} {south:g} {east:g} {north:g}")


def outline(pyramid: Pyramid, name: str) -> Region:
    """The region that a pyramid covers.

    Args:
        pyramid: the pyramid.
        name: where it comes from, for messages.
    """
    west, south, east, north = pyramid.bounds
    step = np.linspace(0, 1, _POINTS, endpoint=False)
    corners = np.array([(west, south), (east, south), (east, north), (west, north)])
    sides = [start + step[:, None] * (end - start) for start, end in zip(corners, np.roll(corners, -1, 0), strict=True)]
    latitude, longitude = pyramid.unproject(*np.concatenate(sides).T)
    ring = np.stack([longitude, latitude], 1)
    return Region.of([{"type": "Polygon", "coordinates": [[*ring.tolist(), ring[0].tolist()]]}], name)
