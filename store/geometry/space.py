"""Positions in space, and cubes of space that hold them, of which neither 180 degrees east nor a pole is an edge."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jzi.store.geometry.pyramid import WGS84

#: A number of cubes along an axis above that of the earth.
_SIDE = 2**21


def in_space(latitude: NDArray[np.float64], longitude: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 3) metres from the centre of the earth, on the WGS 84 ellipsoid, of positions in degrees."""
    east, north = np.radians(longitude), np.radians(latitude)
    curvature = WGS84.a / np.sqrt(1 - WGS84.es * np.sin(north) ** 2)
    axis = curvature * np.cos(north)
    return np.stack([axis * np.cos(east), axis * np.sin(east), (1 - WGS84.es) * curvature * np.sin(north)], -1)


def bucket(cube: NDArray[np.int64]) -> NDArray[np.int64]:
    """One number for each cube.

    Args:
        cube: (..., 3) positions in space over the side of the cubes, rounded down.
    """
    return np.asarray((cube[..., 0] * _SIDE + cube[..., 1]) * _SIDE + cube[..., 2])
