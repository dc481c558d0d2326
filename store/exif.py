"""What cameras write into their photos: where and which way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, UnidentifiedImageError

from jzi.errors import PhotoError


@dataclass(frozen=True)
class ExifPosition:
    """A photo's position by its EXIF: degrees (WGS 84); heading clockwise from north, None where not written."""

    latitude: float
    longitude: float
    heading: float | None


def read_position(photo: Path) -> ExifPosition:
    """The GPS position in a photo's EXIF. Reads the header only.

    Raises:
        PhotoError: the file is no photo, or has no usable position.
    """
    try:
        with Image.open(photo) as image:
            gps = image.getexif().get_ifd(ExifTags.IFD.GPSInfo)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PhotoError(f"cannot be read as a photo ({error})") from error
    latitude = _degrees(gps.get(ExifTags.GPS.GPSLatitude), gps.get(ExifTags.GPS.GPSLatitudeRef), "NS")
    longitude = _degrees(gps.get(ExifTags.GPS.GPSLongitude), gps.get(ExifTags.GPS.GPSLongitudeRef), "EW")
    if latitude is None or longitude is None:
        raise PhotoError("no GPS position in its EXIF")
    if (latitude, longitude) == (0, 0) or abs(latitude) > 90 or abs(longitude) > 180:
        raise PhotoError(f"its EXIF says latitude {latitude}, longitude {longitude}, as cameras without a fix write")
    try:
        heading = float(gps[ExifTags.GPS.GPSImgDirection]) % 360
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        heading = None
    return ExifPosition(latitude, longitude, heading)


def _degrees(value: Any, reference: Any, signs: str) -> float | None:
    """Degrees, minutes, seconds as EXIF has them to signed degrees; None for what is no angle."""
    try:
        degrees = sum(float(part) / 60**power for power, part in enumerate(value))
        sign = -1 if str(reference).strip("\0 ").upper() == signs[1] else 1
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return sign * degrees if degrees == degrees else None  # a rational 0/0 is nan
