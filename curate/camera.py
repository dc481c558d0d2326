"""Cameras with lens distortion, as OpenSfM and Mapillary describe them, and photos without it.

Image coordinates are in units of the longer side, from the centre of the picture to the right and down. Rays are x / z
and y / z, z along the optical axis. The models are those of OpenCV (`projectPoints`, `fisheye`) with OpenSfM's units.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from jzi.curate.quality import import_opencv
from jzi.errors import PhotoError

#: Kinds of cameras that are undistorted.
KINDS = ("perspective", "fisheye", "brown")

#: Field of view of the longer side of an undistorted photo, degrees, at most: there, the picture is stretched by
#: 1 / cos^2 (55 degrees), three times, as against its centre.
MAX_FOV_DEG = 110.0

#: Focal lengths of cameras, in units of the longer side: fields of view of 0.6 degrees and more. Coefficients of
#: distortion are single digits.
FOCAL, COEFFICIENT = (0.1, 100.0), 100.0

#: Numbers of parameters by kind.
_LENGTHS = {"perspective": (3, 4, 5), "fisheye": (3, 4, 5), "brown": (3, 6, 9)}

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Camera:
    """A camera with lens distortion.

    Attributes:
        kind: of `KINDS`.
        focal: horizontal and vertical focal length.
        centre: principal point.
        radial: k1, k2, ...
        tangential: p1 and p2 of "brown".
    """

    kind: str
    focal: tuple[float, float]
    centre: tuple[float, float] = (0.0, 0.0)
    radial: tuple[float, ...] = ()
    tangential: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def read(cls, kind: Any, parameters: Any) -> Self | None:
        """The camera of a row; None if it is not known.

        Args:
            kind: of `KINDS`; others have no parameters.
            parameters: numbers, or a text of them, as `jzi.curate.prepare.prepare` has them; None, nan or empty if they
                are not known.

        Raises:
            PhotoError: they are none of such a camera.
        """
        name = str(kind).strip().lower()
        if name not in KINDS or parameters is None or (isinstance(parameters, float) and math.isnan(parameters)):
            return None
        values = _numbers(parameters)
        if not values:
            return None
        if len(values) not in _LENGTHS[name] or not all(map(math.isfinite, values)):
            raise _invalid(name, parameters)
        if len(values) == 9:
            focal, centre, others = (values[0], values[1]), (values[2], values[3]), values[4:]
        else:
            focal, centre, others = (values[0], values[0]), (0.0, 0.0), values[1:]
        tangential = (0.0, 0.0)
        if name == "brown" and len(others) == 5:
            others, tangential = [others[0], others[1], others[4]], (others[2], others[3])
        small = all(abs(each) <= COEFFICIENT for each in (*others, *tangential))
        if not (all(FOCAL[0] <= each <= FOCAL[1] for each in focal) and small and max(map(abs, centre)) < 0.5):
            raise _invalid(name, parameters)
        return cls(name, focal, centre, tuple(others), tangential)

    @property
    def distorted(self) -> bool:
        """Whether a photo differs from that of a pinhole camera with its axis in the centre."""
        plain = self.kind != "fisheye" and not any((*self.radial, *self.tangential, *self.centre))
        return not (plain and self.focal[0] == self.focal[1])

    def project(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Image coordinates of rays, which must lie within `reach`.

        Args:
            x: of any shape.
            y: of the same shape.
        """
        radius_2 = x * x + y * y
        if self.kind == "fisheye":
            radius = np.sqrt(radius_2)
            angle = np.arctan(radius)
            factor = np.where(radius > 1e-9, angle / np.maximum(radius, 1e-9), 1.0) * self._series(angle * angle)
        else:
            factor = self._series(radius_2)
        p1, p2 = self.tangential
        u = x * factor + 2 * p1 * x * y + p2 * (radius_2 + 2 * x * x)
        v = y * factor + 2 * p2 * x * y + p1 * (radius_2 + 2 * y * y)
        return self.focal[0] * u + self.centre[0], self.focal[1] * v + self.centre[1]

    @cached_property
    def reach(self) -> float:
        """Tangent of the angle to the axis up to which the distortion is one to one; beyond it, the model folds."""
        angle = np.radians(np.linspace(0, 85, 851))  # 1 / 10 degree is a pixel or so
        argument = angle if self.kind == "fisheye" else np.tan(angle)
        falls = np.flatnonzero(np.diff(argument * self._series(argument * argument)) <= 0)
        return float(np.tan(angle[falls[0] if falls.size else -1]))

    def hfov_deg(self, width: int, height: int) -> float:
        """Horizontal field of view of the distorted photo, at most 170 degrees.

        Args:
            width: pixels.
            height: pixels.
        """
        tangent = np.tan(np.radians(np.linspace(0, 85, 851)))
        tangent = tangent[tangent <= self.reach]
        sides = [self.project(sign * tangent, 0 * tangent)[0] * sign for sign in (1, -1)]
        edge = width / (2 * max(width, height))
        return sum(math.degrees(math.atan(np.interp(edge, np.maximum.accumulate(side), tangent))) for side in sides)

    def pinhole(self, width: int, height: int) -> float:
        """Focal length of the pinhole camera of the same shape with the widest view that the photo fills.

        Args:
            width: pixels.
            height: pixels.

        Returns:
            In units of the longer side.

        Raises:
            PhotoError: there is none.
        """
        longer = max(width, height)
        right, down = width / longer / 2, height / longer / 2
        along = np.linspace(-1, 1, 65)
        edge_x = np.concatenate([along, along, np.full(65, -1.0), np.full(65, 1.0)]) * right
        edge_y = np.concatenate([np.full(65, -1.0), np.full(65, 1.0), along, along]) * down

        def fits(tangent: float) -> bool:
            x, y = 2 * tangent * edge_x, 2 * tangent * edge_y
            u, v = self.project(x, y)
            inside = np.all(np.abs(u) <= right) and np.all(np.abs(v) <= down)
            return bool(np.hypot(x, y).max() <= self.reach and inside)

        low, high = math.tan(math.radians(0.1)), math.tan(math.radians(MAX_FOV_DEG / 2))
        if not fits(low):
            raise PhotoError("its camera_parameters leave no picture without distortion: remove them")
        if fits(high):
            return 1 / (2 * high)
        for _ in range(40):  # to 1e-12
            middle = (low + high) / 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return 1 / (2 * low)

    def _series(self, squared: Array) -> Array:
        """1 + k1 s + k2 s^2 + ..."""
        total = np.zeros_like(squared)
        for coefficient in reversed(self.radial):
            total = (total + coefficient) * squared
        return 1 + total


def undistort(pixels: NDArray[np.uint8], camera: Camera) -> tuple[NDArray[np.uint8], float]:
    """The photo of a pinhole camera of the same shape, with the widest view that the photo fills.

    Args:
        pixels: (height, width, 3), of `camera`.
        camera: with distortion.

    Returns:
        Pixels of the same shape, and the focal length in units of the longer side.

    Raises:
        PhotoError: the parameters leave no picture.
        DatasetError: OpenCV is not installed.
    """
    cv2 = import_opencv()
    height, width = pixels.shape[:2]
    longer, focal = max(width, height), camera.pinhole(width, height)
    x = (np.arange(width) + 0.5 - width / 2) / (focal * longer)
    y = (np.arange(height) + 0.5 - height / 2) / (focal * longer)
    u, v = camera.project(*np.meshgrid(x, y))
    column, row = (u * longer + width / 2 - 0.5).astype(np.float32), (v * longer + height / 2 - 0.5).astype(np.float32)
    return cv2.remap(pixels, column, row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), focal


def _numbers(parameters: Any) -> list[float]:
    if isinstance(parameters, str):
        parameters = [each for each in re.split(r"[\s,;]+", parameters[:1000].strip(" []()")) if each]
    try:
        if not isinstance(parameters, Iterable):
            raise TypeError
        return [float(each) for each, _ in zip(parameters, range(32), strict=False)]
    except (TypeError, ValueError) as error:
        raise _invalid("any", parameters) from error


def _invalid(kind: str, parameters: Any) -> PhotoError:
    return PhotoError(f"its camera_parameters {str(parameters)[:100]!r} are not those of a {kind} camera")
