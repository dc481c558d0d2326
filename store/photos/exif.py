"""Position, heading and time in the EXIF data of photos."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational

from jzi.errors import PhotoError, first_line
from jzi.store.disk.files import write_whole
from jzi.store.photos.photo_file import open_image, open_regular_file

#: File name suffixes of photos.
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".heic", ".heif", ".hif")

#: Those that folders list: photos in another format too, so that each is refused with the reason.
LISTED_SUFFIXES = (*SUFFIXES, ".avif")

#: Entries that describe the fix of a receiver, and say nothing of another position.
_OF_A_FIX = tuple(
    ExifTags.GPS[f"GPS{name}"]
    for name in (
        "AltitudeRef", "Altitude", "TimeStamp", "DateStamp", "Satellites", "Status", "MeasureMode", "DOP", "SpeedRef",
        "Speed", "TrackRef", "Track", "MapDatum", "ProcessingMethod", "AreaInformation", "Differential",
        "HPositioningError",
    )
)  # fmt: skip


@dataclass(frozen=True)
class ExifPosition:
    """Where and when a photo was taken.

    Attributes:
        latitude: degrees (WGS 84).
        longitude: degrees (WGS 84).
        heading: degrees clockwise from north; None if not recorded.
        time: as `read_time` returns it.
        device: make and model of the camera; empty if not recorded.
    """

    latitude: float
    longitude: float
    heading: float | None
    time: datetime | None = None
    device: str = ""


@dataclass(frozen=True)
class CaptureTime:
    """When a photo was taken, by the clock of the camera.

    Attributes:
        local: local time, as the clock shows it.
        offset: of the clock from UTC; None if not recorded.
        resolution_s: seconds that the clock counts in: 1 without fractions of seconds, else 0.
    """

    local: datetime
    offset: timedelta | None
    resolution_s: float

    @property
    def utc(self) -> datetime:
        """In UTC if the offset is recorded, else local time."""
        try:
            return self.local - (self.offset or timedelta())
        except OverflowError:
            return self.local


def read_position(photo: str | Path | bytes) -> ExifPosition:
    """Read the GPS position, the time and the device from the EXIF data of a photo; only the header is read.

    Args:
        photo: a path, or the bytes of a file.

    Raises:
        PhotoError: the file is not a photo, or has no usable position.
    """
    tags: Mapping[int, Any] = {}
    try:
        with open_image(photo, "it") as image:
            exif = image.getexif()
            gps = exif.get_ifd(ExifTags.IFD.GPSInfo)
            with contextlib.suppress(Exception):  # a position is enough
                tags = exif.get_ifd(ExifTags.IFD.Exif)
    except PhotoError as error:
        raise PhotoError(f"cannot be read as a photo ({error})") from error
    return _position(exif, gps, tags)


def _position(exif: Image.Exif, gps: Mapping[int, Any], tags: Mapping[int, Any]) -> ExifPosition:
    latitude = _degrees(gps.get(ExifTags.GPS.GPSLatitude), gps.get(ExifTags.GPS.GPSLatitudeRef), "NS")
    longitude = _degrees(gps.get(ExifTags.GPS.GPSLongitude), gps.get(ExifTags.GPS.GPSLongitudeRef), "EW")
    if latitude is None or longitude is None:
        raise PhotoError("no GPS position in its EXIF")
    if (latitude, longitude) == (0, 0) or abs(latitude) > 90 or abs(longitude) > 180:
        raise PhotoError(f"its EXIF has latitude {latitude}, longitude {longitude}, as cameras write without a fix")
    try:
        heading = float(gps[ExifTags.GPS.GPSImgDirection]) % 360
    except (KeyError, TypeError, ValueError, ArithmeticError):
        heading = None
    device = " ".join(str(exif.get(tag, "")).strip("\0 ") for tag in (ExifTags.Base.Make, ExifTags.Base.Model))
    return ExifPosition(latitude, longitude, heading, capture_time(tags), device.strip())


def has_position(photo: str | Path | bytes) -> bool:
    """Whether a photo has a usable GPS position in its EXIF data."""
    try:
        read_position(photo)
    except PhotoError:
        return False
    return True


def read_time(photo: Path) -> datetime | None:
    """Read the capture time of a photo from its EXIF data; None if there is none.

    It is in UTC if the offset is recorded, else in local time.

    Raises:
        PhotoError: the file is not a photo.
    """
    with open_image(photo, str(photo)) as image:
        return capture_time(image.getexif().get_ifd(ExifTags.IFD.Exif))


def read_time_and_position(photo: Path) -> tuple[CaptureTime | None, ExifPosition | None]:
    """Read the capture time and the position of a photo from its EXIF data, which is read once; None if there is none.

    Raises:
        PhotoError: the file is not a photo.
    """
    with open_image(photo, str(photo)) as image:
        exif = image.getexif()
        camera = exif.get_ifd(ExifTags.IFD.Exif)
        position = None
        with contextlib.suppress(Exception):  # a time is enough
            position = _position(exif, exif.get_ifd(ExifTags.IFD.GPSInfo), camera)
    return _clock(camera), position


def capture_time(tags: Mapping[int, Any]) -> datetime | None:
    """Time of capture in the entries of EXIF's directory of the camera; in UTC if the offset is recorded, else local.

    None if there is none.
    """
    time = _clock(tags)
    return None if time is None else time.utc


def _clock(tags: Mapping[int, Any]) -> CaptureTime | None:
    try:
        moment = datetime.strptime(str(tags[ExifTags.Base.DateTimeOriginal]).strip("\0 "), "%Y:%m:%d %H:%M:%S")
        fraction = str(tags.get(ExifTags.Base.SubsecTimeOriginal, "")).strip("\0 ")
        moment += timedelta(seconds=float(f"0.{fraction or 0}"))
    except (KeyError, ValueError, OverflowError):
        return None
    try:
        offset = datetime.strptime(str(tags[ExifTags.Base.OffsetTimeOriginal]).strip("\0 "), "%z").utcoffset()
    except (KeyError, ValueError, OverflowError):
        offset = None
    return CaptureTime(moment, offset, 0.0 if fraction else 1.0)


def write_position(
    photo: Path,
    output: Path,
    latitude: float,
    longitude: float,
    radius: float | None = None,
    heading: float | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Copy a photo and set the position in the EXIF data of the copy; other EXIF entries are kept.

    What belongs to an earlier position, its altitude, precision, time, satellites and movement, is removed.

    In a JPEG only the EXIF segment is replaced, its pixels are not re-encoded. Other formats are saved again without
    loss, except HEIC, for which there is no lossless way.

    Args:
        photo: the photo, which is not changed.
        output: path of the copy.
        latitude: degrees (WGS 84).
        longitude: degrees (WGS 84).
        radius: horizontal uncertainty, metres; None if unknown.
        heading: azimuth of the photo's centre, degrees clockwise from true north; None keeps what the photo has.
        overwrite: whether to replace a position that the photo has.

    Raises:
        PhotoError: the photo cannot be read, has a position, or is in HEIC, or `output` is the photo itself.
    """
    if output.exists() and output.samefile(photo):
        raise PhotoError(f"{output} is the photo itself: give another folder for the copies")
    if not overwrite and has_position(photo):
        raise PhotoError(f"{photo} has a position in its EXIF, which is not replaced unless that is asked for")
    with open_image(photo, str(photo)) as image:
        if image.format == "HEIF":
            raise PhotoError(f"{photo} is a HEIC photo, which cannot be saved again without loss: convert it to JPEG")
        try:
            exif = image.getexif()
            gps = exif.get_ifd(ExifTags.IFD.GPSInfo)
            for tag in _OF_A_FIX:
                gps.pop(tag, None)
            gps[ExifTags.GPS.GPSVersionID] = b"\x02\x03\x00\x00"
            for name, value, signs in (("Latitude", latitude, "NS"), ("Longitude", longitude, "EW")):
                gps[ExifTags.GPS[f"GPS{name}"]] = sexagesimal(abs(value))
                gps[ExifTags.GPS[f"GPS{name}Ref"]] = signs[value < 0]
            gps[ExifTags.GPS.GPSMapDatum] = "WGS-84"
            if radius is not None:
                gps[ExifTags.GPS.GPSHPositioningError] = IFDRational(round(radius * 100), 100)
            if heading is not None:
                gps[ExifTags.GPS.GPSImgDirection] = IFDRational(round(heading * 100) % 36_000, 100)
                gps[ExifTags.GPS.GPSImgDirectionRef] = "T"
            segment = exif.tobytes()  # bytes: Pillow treats an Exif object with only a position as empty
            if image.format in ("JPEG", "MPO"):  # MPO has more pictures after the first, at relative positions
                with open_regular_file(photo) as file:
                    data = _with_exif(file.read(), segment)
                write_whole(output, lambda file: file.write_bytes(data))
            else:
                lossless = {"lossless": True, "exact": True} if image.format == "WEBP" else {}
                write_whole(output, lambda file: image.save(file, format=image.format, exif=segment, **lossless))
        except Exception as error:  # Pillow raises errors of many types for entries that it cannot write again
            raise PhotoError(f"{photo} cannot be copied with a position: {first_line(error)}") from error


def sexagesimal(degrees: float) -> tuple[IFDRational, IFDRational, IFDRational]:
    """Convert degrees to EXIF's degrees, minutes and seconds, with seconds to 1e-5 (0.3 mm on the ground)."""
    minutes, seconds = divmod(round(degrees * 3600 * 100_000), 60 * 100_000)
    return IFDRational(minutes // 60, 1), IFDRational(minutes % 60, 1), IFDRational(seconds, 100_000)


def _with_exif(jpeg: bytes, exif: bytes) -> bytes:
    """Replace the EXIF segment of a JPEG. A segment is 0xFF, a marker, and a length that includes itself."""
    others, at = [], 2
    while jpeg[at] == 0xFF and jpeg[at + 1] != 0xDA:  # start of scan
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if not (jpeg[at + 1] == 0xE1 and jpeg[at + 4 : at + 10] == b"Exif\0\0"):
            others.append(jpeg[at:end])
        at = end
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    first = others[:1] if others and others[0][1] == 0xE0 else []  # JFIF must come first
    return b"".join([jpeg[:2], *first, segment, *others[len(first) :], jpeg[at:]])


def _degrees(value: Any, reference: Any, signs: str) -> float | None:
    """Convert EXIF's degrees, minutes and seconds to signed degrees; None if they are not an angle."""
    try:
        degrees = sum(float(part) / 60**power for power, part in enumerate(value[:3]))
        sign = -1 if str(reference).strip("\0 ").upper() == signs[1] else 1
    except (TypeError, ValueError, ArithmeticError):
        return None
    return sign * degrees if degrees == degrees else None  # a rational 0/0 is nan
