"""Local metric frames: from metres east, north and up of a place to positions, and from axes to headings."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pyproj import Transformer

#: Steepest view with a heading, degrees from the horizontal: a camera that looks down has none.
MAX_TILT_DEG = 70.0


def topocentric_positions(
    latitude: float, longitude: float, altitude: float, offset: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Convert metres in a topocentric frame to positions, exactly (WGS 84).

    Args:
        latitude: of the frame's origin, degrees.
        longitude: degrees.
        altitude: above the ellipsoid, metres.
        offset: (n, 3) metres east, north and up of the origin.

    Returns:
        (n,) latitudes and (n,) longitudes, degrees; not finite where an offset is not.
    """
    east, north, up = np.asarray(offset, float).reshape(-1, 3).T
    pipeline = Transformer.from_pipeline(
        "+proj=pipeline +step +inv +proj=topocentric +ellps=WGS84 "
        f"+lat_0={latitude!r} +lon_0={longitude!r} +h_0={altitude!r} "
        "+step +inv +proj=cart +ellps=WGS84 +step +proj=unitconvert +xy_in=rad +xy_out=deg"
    )
    to_longitude, to_latitude, _ = pipeline.transform(east, north, up)
    return np.asarray(to_latitude, float), np.asarray(to_longitude, float)


def headings(direction: ArrayLike) -> NDArray[np.float64]:
    """(n,) headings of directions, degrees clockwise from north; NaN for those beyond `MAX_TILT_DEG`.

    Args:
        direction: (n, 3) east, north and up, of any length.
    """
    east, north, up = np.asarray(direction, float).reshape(-1, 3).T
    level = np.hypot(east, north)
    steep = ~(np.abs(up) <= level * np.tan(np.radians(MAX_TILT_DEG))) | (level == 0)
    return np.where(steep, np.nan, np.degrees(np.arctan2(east, north)) % 360)


def rotation_matrices(vector: ArrayLike) -> NDArray[np.float64]:
    """(n, 3, 3) rotations about axes, by angles that are the axes' lengths in radians (Rodrigues).

    Args:
        vector: (n, 3) axes.
    """
    vector = np.asarray(vector, float).reshape(-1, 3)
    angle = np.linalg.norm(vector, axis=1)
    x, y, z = (vector / np.where(angle > 0, angle, 1.0)[:, None]).T
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(-1, 3, 3)
    sin, cos = np.sin(angle)[:, None, None], np.cos(angle)[:, None, None]
    return np.eye(3) + sin * cross + (1 - cos) * (cross @ cross)


def quaternion_matrices(quaternion: ArrayLike) -> NDArray[np.float64]:
    """(n, 3, 3) rotations of quaternions; NaN for those of length 0.

    Args:
        quaternion: (n, 4) x, y, z, w, of any length.
    """
    quaternion = np.asarray(quaternion, float).reshape(-1, 4)
    length = np.linalg.norm(quaternion, axis=1, keepdims=True)
    x, y, z, w = (quaternion / np.where(length > 0, length, np.nan)).T
    rows = (
        1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
        2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
        2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y),
    )  # fmt: skip
    return np.stack(rows, -1).reshape(-1, 3, 3)
