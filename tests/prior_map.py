"""A small map for tests of priors, and outlines on it."""

from __future__ import annotations

from typing import Any

import numpy as np

from jzi.store.geometry.pyramid import Pyramid

AREA = Pyramid.around(48.2, 16.37, 320.0, grid=2, levels=4)  # 16 x 16 cells of 20 m; the centre is a corner of four


def polygon(*corners: tuple[float, float], area: Pyramid = AREA) -> dict[str, Any]:
    """A GeoJSON polygon with corners in metres east and north of the centre."""
    latitude, longitude = area.unproject(*np.array([*corners, corners[0]], float).T)
    return {"type": "Polygon", "coordinates": [np.stack([longitude, latitude], 1).tolist()]}


def rectangle(west: float, south: float, east: float, north: float, area: Pyramid = AREA) -> dict[str, Any]:
    return polygon((west, south), (east, south), (east, north), (west, north), area=area)


def position(x: float, y: float) -> tuple[float, float]:
    latitude, longitude = AREA.unproject(x, y)
    return float(latitude), float(longitude)
