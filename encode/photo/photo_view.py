"""What is known of a photo's view: its horizontal field of view, its heading, and whether it is a panorama.

It is read from EXIF (focal length, direction), from the GPano entries of XMP, which panoramas have, and from columns of
a photo table. The same functions serve the cache and the location of a single photo.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from PIL import ExifTags, Image

from jzi.encode.photo.declination import declination_deg
from jzi.encode.photo.photos import Photo, looks_like_panorama
from jzi.encode.prefetch import prefetch, reader_threads
from jzi.errors import PhotoError
from jzi.store.photos.exif import capture_time
from jzi.store.photos.photo_file import open_image, photo_errors

#: Horizontal fields of view of perspective photos, degrees: those of telephoto lenses to the widest that are not
#: fisheyes. The columns of wider ones would lie at infinity.
MIN_HFOV_DEG, MAX_HFOV_DEG = 2.0, 170.0

#: Width and height of the film that `FocalLengthIn35mmFilm` refers to, mm.
FILM_MM = (36.0, 24.0)

#: Share of the horizon from which a panorama counts as closed: stitching leaves out a few columns.
CLOSED = 0.98

#: Most bytes of XMP that are searched: one segment of a JPEG.
XMP_BYTES = 2**16

#: Columns that `PhotoView.to_columns` fills, and those of a photo table that `PhotoView.with_table` reads.
COLUMNS = ("hfov_deg", "panorama", "heading_deg", "heading_sd_deg")
GIVEN = ("hfov", "panorama", "heading", "heading_sd")

#: Columns of a photo table that magnetic headings are corrected with.
PLACE = ("latitude", "longitude")


@dataclass(frozen=True)
class PhotoView:
    """The view of an upright photo.

    Attributes:
        hfov_deg: horizontal field of view, degrees; 360 for a panorama, None if it is unknown.
        panorama: whether the photo shows the whole horizon, in an equirectangular projection.
        heading_deg: azimuth of the centre column, degrees clockwise from true north; None if it is unknown.
        heading_sd_deg: standard deviation of the heading, degrees; None if it is not recorded.
        magnetic: whether the heading refers to magnetic north (`from_true_north` changes that).
        year: when the photo was taken, with the fraction of the year; None if it is unknown.
    """

    hfov_deg: float | None = None
    panorama: bool = False
    heading_deg: float | None = None
    heading_sd_deg: float | None = None
    magnetic: bool = False
    year: float | None = None

    def with_table(self, row: Mapping[str, Any]) -> PhotoView:
        """The view, with what a row of a photo table says of it instead; values out of range are ignored.

        Args:
            row: may have `hfov`, `panorama`, `heading` and `heading_sd`, numbers or text.
        """
        view = self
        panorama, hfov = _flag(row.get("panorama")), _number(row.get("hfov"))
        if panorama is None and hfov is not None:
            panorama = hfov >= CLOSED * 360
        if panorama is not None:
            view = view.as_panorama() if panorama else view.as_perspective(hfov)
        heading, sd = _number(row.get("heading")), _number(row.get("heading_sd"))
        if heading is not None and (view.heading_deg is None or abs(heading % 360 - view.heading_deg) > 1e-6):
            view = view.with_heading(heading)
        if sd is not None and 0 < sd <= 180:
            view = replace(view, heading_sd_deg=sd)
        return view

    def as_panorama(self) -> PhotoView:
        """The same view of a photo that is a panorama, whatever its file says."""
        return replace(self, hfov_deg=360.0, panorama=True)

    def as_perspective(self, hfov_deg: float | None = None) -> PhotoView:
        """The same view of a photo that is no panorama.

        Args:
            hfov_deg: its field of view; that of the view by default.
        """
        own = None if self.panorama else self.hfov_deg
        inside = hfov_deg is not None and MIN_HFOV_DEG <= hfov_deg <= MAX_HFOV_DEG
        return replace(self, hfov_deg=hfov_deg if inside else own, panorama=False)

    def with_heading(self, heading_deg: float | None, sd_deg: float | None = None) -> PhotoView:
        """The same view with another heading, degrees; None leaves a value as it is."""
        view = self
        if heading_deg is not None:
            view = replace(view, heading_deg=heading_deg % 360, heading_sd_deg=None, magnetic=False)
        return view if sd_deg is None else replace(view, heading_sd_deg=sd_deg)

    def from_true_north(self, latitude: float, longitude: float) -> PhotoView:
        """The view with a magnetic heading corrected by the declination; the same if that is not known.

        Args:
            latitude: of the photo, or of somewhere in the same area.
            longitude: see above.
        """
        if self.heading_deg is None or not self.magnetic:
            return self
        declination = declination_deg(latitude, longitude, self.year)
        if declination is None:
            return self
        return replace(self, heading_deg=(self.heading_deg + declination) % 360, magnetic=False)

    def completed(self, hfov_deg: float, heading_sd_deg: float, magnetic_sd_deg: float) -> PhotoView:
        """The view with defaults for what is unknown.

        Args:
            hfov_deg: field of view.
            heading_sd_deg: standard deviation of a heading from true north.
            magnetic_sd_deg: standard deviation of a heading from magnetic north.
        """
        view = self if self.hfov_deg is not None else replace(self, hfov_deg=hfov_deg)
        known = view.heading_deg is None or view.heading_sd_deg is not None
        return view if known else replace(view, heading_sd_deg=magnetic_sd_deg if view.magnetic else heading_sd_deg)

    def to_columns(self, magnetic_sd_deg: float) -> tuple[float, float, float, float]:
        """Values of `COLUMNS`; nan where something is unknown.

        Args:
            magnetic_sd_deg: standard deviation of a heading from magnetic north, which has no column.
        """
        sd = magnetic_sd_deg if self.magnetic and self.heading_sd_deg is None else self.heading_sd_deg
        return _or_nan(self.hfov_deg), float(self.panorama), _or_nan(self.heading_deg), _or_nan(sd)

    @classmethod
    def from_columns(cls, hfov_deg: float, panorama: float, heading_deg: float, heading_sd_deg: float) -> PhotoView:
        """The view of `to_columns`; values out of range are ignored."""
        view = cls().as_panorama() if panorama == 1 else cls().as_perspective(hfov_deg)
        heading, sd = _number(heading_deg), _number(heading_sd_deg)
        heading = None if heading is None else heading % 360
        return replace(view, heading_deg=heading, heading_sd_deg=sd if sd is not None and 0 < sd <= 180 else None)


def read_view(photo: Photo, name: str = "the photo") -> PhotoView:
    """Read the view of a photo from its metadata; its pixels are not decoded.

    Args:
        photo: a path, the bytes of a file, an open file or an image.
        name: name of the photo in error messages.

    Raises:
        PhotoError: it is not a photo.
    """
    if isinstance(photo, Image.Image):
        with photo_errors(name):
            return view_of(photo)
    with open_image(photo, name) as image:
        return view_of(image)


def view_of(image: Image.Image) -> PhotoView:
    """The view that the metadata of an image report; entries that cannot be used are ignored.

    A photo is a panorama if its GPano entries say so; without those and without a focal length, if its size is that of
    one (`jzi.encode.photo.photos.looks_like_panorama`).
    """
    exif = _tags(image, None)
    width, height = image.size
    if exif.get(ExifTags.Base.Orientation) in (5, 6, 7, 8):
        width, height = height, width
    gps, camera = _tags(image, ExifTags.IFD.GPSInfo), _tags(image, ExifTags.IFD.Exif)
    pano, heading = gpano_entries(image), _number(gps.get(ExifTags.GPS.GPSImgDirection))
    magnetic = heading is not None and str(gps.get(ExifTags.GPS.GPSImgDirectionRef)).strip("\0 ").upper() == "M"
    heading = _number(pano.get("PoseHeadingDegrees")) if heading is None else heading
    year = _year(camera) if magnetic else None
    view = PhotoView(heading_deg=None if heading is None else heading % 360, magnetic=magnetic, year=year)
    focal = _number(camera.get(ExifTags.Base.FocalLengthIn35mmFilm))
    if pano.get("ProjectionType", "").lower() == "equirectangular":
        return _stitched(view, pano, width)
    if focal is not None and focal > 0:
        film = FILM_MM[0] if width >= height else FILM_MM[1]
        return view.as_perspective(math.degrees(2 * math.atan(film / (2 * focal))))
    return view.as_panorama() if looks_like_panorama(width, height) else view


def photo_view(photo: Photo, row: Mapping[str, Any], name: str = "the photo") -> PhotoView:
    """`read_view` with what a row of the photo table says; of a photo that cannot be read, only the latter.

    Headings are from true north, as far as the declination at the row's `latitude` and `longitude` is known.
    """
    try:
        view = read_view(photo, name)
    except PhotoError:
        view = PhotoView()
    view = view.with_table(row)
    latitude, longitude = _number(row.get("latitude")), _number(row.get("longitude"))
    return view if latitude is None or longitude is None else view.from_true_north(latitude, longitude)


def with_view_columns(frame: pd.DataFrame, magnetic_sd_deg: float) -> pd.DataFrame:
    """A photo table with the columns `COLUMNS`, from the photos' metadata and what the table says.

    Args:
        frame: of a `PhotoTable`.
        magnetic_sd_deg: standard deviation of headings that refer to magnetic north.
    """
    rows: list[Any] = frame[["photo", *(name for name in (*GIVEN, *PLACE) if name in frame)]].to_dict("records")
    views = prefetch(lambda row: photo_view(row["photo"], row).to_columns(magnetic_sd_deg), rows, reader_threads())
    return frame.assign(**pd.DataFrame(list(views), frame.index, list(COLUMNS), dtype=float))


def _stitched(view: PhotoView, pano: Mapping[str, str], width: int) -> PhotoView:
    """The view of a panorama, which may show a part of the horizon; GPano's width of the whole says how much."""
    whole = _number(pano.get("FullPanoWidthPixels"))
    part = _number(pano.get("CroppedAreaImageWidthPixels"))
    part = part if part is not None and part > 0 else float(width)
    share = part / whole if whole is not None and whole > 0 else 1.0
    return view.as_panorama() if share >= CLOSED else view.as_perspective(min(360 * share, MAX_HFOV_DEG))


def _tags(image: Image.Image, directory: int | None) -> Mapping[int, Any]:
    """The entries of EXIF or of one of its directories; none if Pillow cannot read them."""
    try:
        exif = image.getexif()
        return exif if directory is None else exif.get_ifd(directory)
    except Exception:  # damaged metadata make Pillow raise errors of many types
        return {}


def gpano_entries(image: Image.Image) -> dict[str, str]:
    """Entries of GPano in the XMP of an image, as attributes or elements; text is searched, no XML is parsed."""
    packet = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    if isinstance(packet, str):
        packet = packet[:XMP_BYTES].encode(errors="replace")
    if not isinstance(packet, bytes):
        return {}
    text = packet[:XMP_BYTES].decode("utf-8", "replace")
    return {match[1]: (match[2] or match[3] or "").strip() for match in _GPANO.finditer(text)}


_GPANO = re.compile(r"""(?<!/)GPano:(\w{1,40})(?:\s{0,8}=\s{0,8}["']([^"'<>]{0,60})["']|>([^<>]{0,60})<)""")


def _year(camera: Mapping[int, Any]) -> float | None:
    """When a photo was taken, as a year with its fraction."""
    time = capture_time(camera)
    return None if time is None else time.year + (time.timetuple().tm_yday - 1) / 365.25


def _number(value: Any) -> float | None:
    """A finite number; None if it is none. EXIF has rationals, text and tuples of one."""
    try:
        number = float(value[0] if isinstance(value, tuple) and len(value) == 1 else value)
    except (TypeError, ValueError, ArithmeticError):
        return None
    return number if math.isfinite(number) else None


def _flag(value: Any) -> bool | None:
    text = str(value).strip().lower()
    return {"1": True, "1.0": True, "true": True, "yes": True, "0": False, "0.0": False, "false": False,
            "no": False}.get(text)  # fmt: skip


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
