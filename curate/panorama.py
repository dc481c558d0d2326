"""Equirectangular panoramas: where in the sphere they lie, and perspective crops of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from PIL import Image

from jzi.curate.quality import import_opencv
from jzi.encode.photo.photo_view import CLOSED
from jzi.errors import PhotoError

#: Height over width of crops: that of most cameras.
ASPECT = 3 / 4

#: How far from 2:1 a panorama without GPano may be: stitching leaves out a few rows or columns.
SHAPE_TOLERANCE = 0.02


@dataclass(frozen=True)
class Coverage:
    """What a panorama that shows the whole horizon shows above and below it.

    Attributes:
        top_deg: elevation of its upper edge, degrees.
        bottom_deg: of its lower edge.
    """

    top_deg: float = 90.0
    bottom_deg: float = -90.0

    @classmethod
    def read(cls, width: int, height: int, gpano: Mapping[str, str]) -> Self:
        """The coverage of a panorama by its GPano entries, or by its shape.

        Args:
            width: pixels.
            height: pixels.
            gpano: entries; empty if there are none.

        Raises:
            PhotoError: it shows a part of the horizon, or is not equirectangular.
        """
        projection = gpano.get("ProjectionType", "equirectangular")
        if projection.lower() != "equirectangular":
            raise PhotoError(f"it is a panorama in the projection {projection[:40]!r}: save it as equirectangular")
        names = ("FullPanoWidthPixels", "FullPanoHeightPixels", "CroppedAreaImageWidthPixels",
                 "CroppedAreaImageHeightPixels", "CroppedAreaTopPixels")  # fmt: skip
        full_width, full_height, part_width, part_height, top = (_number(gpano.get(name)) for name in names)
        share = part_width / full_width if full_width and part_width else 1.0
        if share < CLOSED:
            raise PhotoError(
                f"it is a panorama of {360 * share:.0f} degrees of the horizon: give its whole, or leave it out"
            )
        if full_height and part_height and top is not None and top >= 0 and top + part_height <= full_height:
            return cls(90 - 180 * top / full_height, 90 - 180 * (top + part_height) / full_height)
        if abs(width / (2 * height) - 1) > SHAPE_TOLERANCE:
            raise PhotoError(f"it is a panorama of {width} x {height} pixels, not 2:1, without GPano entries")
        return cls()

    def widest_deg(self) -> float:
        """The widest horizontal field of view of a crop that it fills, degrees."""
        rise = math.tan(math.radians(max(0.0, min(self.top_deg, -self.bottom_deg, 89.0))))
        return 2 * math.degrees(math.atan(rise / ASPECT))


def crop_panorama(
    panorama: Image.Image, yaw_deg: float, hfov_deg: float, width: int | None, coverage: Coverage | None = None
) -> Image.Image:
    """A perspective photo, level, in a direction of a panorama.

    Args:
        panorama: equirectangular, of the whole horizon, RGB; its centre column is the direction 0.
        yaw_deg: direction of the centre of the crop, clockwise, degrees.
        hfov_deg: horizontal field of view, degrees.
        width: pixels, at most; the panorama's own resolution in the centre of the crop bounds it too.
        coverage: of the panorama; the whole sphere by default.

    Raises:
        DatasetError: OpenCV is not installed.
    """
    cv2 = import_opencv()
    coverage = coverage or Coverage()
    tangent = math.tan(math.radians(hfov_deg) / 2)
    own = max(1, round(panorama.width * tangent / math.pi))
    width = own if width is None else max(1, min(width, own))
    height, focal = max(1, round(width * ASPECT)), width / 2 / tangent
    # twice the crop's resolution, so that linear interpolation does not alias
    wanted = min(panorama.width, math.ceil(2 * 2 * math.pi * focal))
    if wanted < panorama.width:
        size = (wanted, max(1, round(panorama.height * wanted / panorama.width)))
        panorama = panorama.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    x = (np.arange(width) + 0.5 - width / 2) / focal
    y = ((np.arange(height) + 0.5 - height / 2) / focal)[:, None]
    azimuth = np.degrees(np.arctan(x)) + yaw_deg  # (column,)
    elevation = -np.degrees(np.arctan2(y, np.hypot(x, 1)))  # (row, column)
    column = (azimuth / 360 + 0.5) % 1 * panorama.width - 0.5
    row = (coverage.top_deg - elevation) / (coverage.top_deg - coverage.bottom_deg) * panorama.height - 0.5
    pixels = np.asarray(panorama)
    pixels = np.concatenate([pixels, pixels[:, :2]], 1)  # the seam, for interpolation
    column = np.where(column < 0, column + panorama.width, column)
    columns = np.broadcast_to(column.astype(np.float32), elevation.shape)
    crop = cv2.remap(pixels, np.ascontiguousarray(columns), row.astype(np.float32), cv2.INTER_LINEAR,
                     borderMode=cv2.BORDER_REPLICATE)  # fmt: skip
    return Image.fromarray(crop)


def _number(text: Any) -> float | None:
    try:
        number = float(text)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number >= 0 else None
