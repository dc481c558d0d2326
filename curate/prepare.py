"""Prepare photos for a data set: upright, undistorted, panoramas cropped, at a standard resolution, measured."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jzi.curate.camera import Camera, undistort
from jzi.curate.folder import IMAGES
from jzi.curate.options import PrepareOptions as PrepareOptions
from jzi.curate.panorama import Coverage, crop_panorama
from jzi.curate.quality import measure
from jzi.encode.photo.photo_view import PhotoView, gpano_entries, photo_view
from jzi.encode.photo.photos import open_photo
from jzi.errors import PhotoError
from jzi.store.disk.files import write_whole
from jzi.store.photos.exif import SUFFIXES
from jzi.store.photos.photo_file import open_image

#: Increases when the same photo is prepared in another way.
VERSION = 1

#: Quality of JPEGs: above it, files grow by half for no difference that a person sees.
JPEG_QUALITY = 92

#: Width of kept panoramas over `PrepareOptions.size`: as fine as a photo of 90 degrees.
PANORAMA_FACTOR = 4

#: Cameras of panoramas, as services name them.
SPHERICAL = ("spherical", "equirectangular")

#: Most characters of an id in the name of a file.
_NAME = 80


@dataclass(frozen=True)
class Prepared:
    """A prepared photo.

    Attributes:
        image: RGB, without metadata.
        row: the row of its source with id, heading, hfov, panorama, camera, camera_parameters, width, height and
            `jzi.curate.quality.QUALITY_COLUMNS` of the image.
    """

    image: Image.Image
    row: dict[str, Any]


def prepare(content: bytes | Path, row: Mapping[str, Any], options: PrepareOptions) -> list[Prepared]:
    """Prepare a photo. It depends on the content, the row, and the options alone. Thread-safe.

    Args:
        content: the file's bytes, or its path.
        row: id; optionally heading, hfov (degrees), panorama, camera and camera_parameters. What they lack is read from
            EXIF and GPano. camera_parameters are those of OpenSfM and Mapillary, with the focal length in units of the
            longer side: (focal, k1, k2) of "perspective" and "fisheye", which may have k3 and k4, (focal, k1, k2, p1,
            p2, k3) or (focal_x, focal_y, c_x, c_y, k1, k2, p1, p2, k3) of "brown"; None, nan or empty if unknown.
        options: size, panoramas, undistortion.

    Returns:
        The photo; or `options.crops` of a panorama, with ids `<id>_0`, ..., level, evenly around a random direction; or
        nothing of a panorama to be skipped. A kept panorama is `PANORAMA_FACTOR` times as wide as `options.size`.

    Raises:
        PhotoError: it is not a photo or damaged, its camera parameters are none of a camera, or it is a panorama of
            another projection or of a part of the horizon.
        DatasetError: OpenCV is not installed.
    """
    name = str(row["id"])
    view, gpano = _view(content, row, name)
    if gpano or view.panorama:
        if options.panoramas == "skip":
            return []
        image = _plain(open_photo(content, name))
        return list(_panorama(image, row, view, Coverage.read(*image.size, gpano), options))
    camera = Camera.read(row.get("camera"), row.get("camera_parameters"))
    image = open_photo(content, name)
    values: dict[str, Any] = {"hfov": view.hfov_deg, "camera": row.get("camera") or ""}
    if camera is None:
        image = _plain(_resized(image, options.size))
    elif options.undistort and camera.distorted:
        image = _resized(image, None if options.size is None else 2 * options.size)  # remap does not average
        pixels, focal = undistort(np.asarray(image), camera)
        image = _resized(Image.fromarray(pixels), options.size)
        values = {"hfov": _hfov(focal, *image.size), "camera": "perspective", "camera_parameters": [focal, 0.0, 0.0]}
    else:
        values["hfov"] = camera.hfov_deg(*image.size)
        image = _plain(_resized(image, options.size))
    return [_prepared(image, row, heading=view.heading_deg, panorama=False, **values)]


def write_prepared(folder: Path, prepared: Prepared) -> dict[str, Any]:
    """Write a prepared photo as a JPEG below a data set's folder, atomically and without metadata.

    Args:
        folder: of the data set.
        prepared: the photo.

    Returns:
        Its row with `path`, relative to the folder, as `image_path` gives it.

    Raises:
        OSError: it cannot be written.
    """
    path = image_path(str(prepared.row["id"]))
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, lambda part: prepared.image.save(part, format="JPEG", quality=JPEG_QUALITY))
    return {**prepared.row, "path": path}


def image_path(photo: str) -> str:
    """The path of a photo below the data set's folder, `images/<2 digits>/<id>.jpg`; it depends on the id alone.

    An id that is no name of a file on every system has other characters replaced, and a part of its SHA-256 added.
    """
    digest = hashlib.sha256(photo.encode("utf-8", "surrogateescape")).hexdigest()
    name = photo
    if not re.fullmatch(rf"[a-z0-9][a-z0-9_-]{{0,{_NAME - 1}}}", photo):
        stem = photo[: -len(suffix)] if (suffix := _suffix(photo)) else photo
        name = f"{re.sub(r'[^A-Za-z0-9_-]+', '-', stem)[:_NAME].strip('-')}-{digest[:12]}".lstrip("-")
    return f"{IMAGES}/{digest[:2]}/{name}.jpg"


def _suffix(name: str) -> str:
    return next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), "")


def _view(content: bytes | Path, row: Mapping[str, Any], name: str) -> tuple[PhotoView, dict[str, str]]:
    """What is known of the view, and the GPano entries of a panorama."""
    spherical = str(row.get("camera") or "").strip().lower() in SPHERICAL
    given = {**row, "panorama": True} if spherical else row
    view = photo_view(content, given, name)
    with open_image(content, name) as image:
        gpano = gpano_entries(image)
    # a part of a panorama has a field of view, but is not in perspective, unless the table says that it is
    stitched = gpano.get("ProjectionType", "").lower() == "equirectangular"
    denied = str(row.get("panorama")).strip().lower() in _DENIED
    return view, gpano if view.panorama or (stitched and not denied) else {}


_DENIED = ("0", "0.0", "false", "no")


def _panorama(
    image: Image.Image, row: Mapping[str, Any], view: PhotoView, coverage: Coverage, options: PrepareOptions
) -> Iterator[Prepared]:
    heading = view.heading_deg
    if options.panoramas == "keep":
        kept = _resized(image, None if options.size is None else PANORAMA_FACTOR * options.size)
        yield _prepared(kept, row, heading=heading, hfov=360.0, panorama=True, camera="spherical")
        return
    widest = min(options.hfov_max_deg, coverage.widest_deg())
    if widest < options.hfov_min_deg:
        raise PhotoError(
            f"it is a panorama from {coverage.bottom_deg:.0f} to {coverage.top_deg:.0f} degrees of elevation, too few "
            f"for crops of {options.hfov_min_deg:g} degrees"
        )
    seed = hashlib.sha256(f"{options.seed}:{row['id']}".encode("utf-8", "surrogateescape")).digest()
    random = np.random.default_rng(int.from_bytes(seed[:8], "big"))
    start = random.uniform(0, 360)
    for number in range(options.crops):
        yaw = (start + 360 * number / options.crops) % 360
        hfov = random.uniform(options.hfov_min_deg, widest)
        crop = crop_panorama(image, yaw, hfov, options.size, coverage)
        yield _prepared(
            crop,
            row,
            id=f"{row['id']}_{number}",
            heading=None if heading is None else (heading + yaw) % 360,
            hfov=hfov,
            panorama=False,
            camera="perspective",
            camera_parameters=[_focal(hfov, *crop.size), 0.0, 0.0],
        )


def _prepared(image: Image.Image, row: Mapping[str, Any], **values: Any) -> Prepared:
    for name in ("heading", "hfov"):
        values[name] = math.nan if values[name] is None else round(float(values[name]), 6)
    size = {"width": image.width, "height": image.height}
    return Prepared(image, {**row, **values, **size, **measure(image).to_columns()})


def _resized(image: Image.Image, longest: int | None) -> Image.Image:
    scale = 1.0 if longest is None else longest / max(image.size)
    if scale >= 1:
        return image
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)


def _plain(image: Image.Image) -> Image.Image:
    """The same pixels without the metadata that Pillow would write into a copy."""
    image.info.clear()
    return image


def _hfov(focal: float, width: int, height: int) -> float:
    return 2 * math.degrees(math.atan(width / (2 * focal * max(width, height))))


def _focal(hfov_deg: float, width: int, height: int) -> float:
    return width / (2 * math.tan(math.radians(hfov_deg) / 2) * max(width, height))
