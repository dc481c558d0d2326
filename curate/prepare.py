"""Prepare photos for a data set: upright, undistorted, panoramas cropped, at a standard resolution, measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from jzi.curate.options import PrepareOptions as PrepareOptions


@dataclass(frozen=True)
class Prepared:
    """A prepared photo.

    Attributes:
        image: RGB, without metadata.
        row: the row of its source with id, heading, hfov, panorama, camera, width, height and
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
        The photo; or `options.crops` of a panorama, with ids `<id>_0`, ..., in horizontal perspective; or nothing of a
        panorama to be skipped.

    Raises:
        PhotoError: it is not a photo or damaged, its camera parameters are none of a camera, or it is a panorama of
            another projection or of a part of the horizon.
        DatasetError: OpenCV is not installed.
    """
    raise NotImplementedError


def write_prepared(folder: Path, prepared: Prepared) -> dict[str, Any]:
    """Write a prepared photo as a JPEG below a data set's folder, atomically and without metadata.

    Args:
        folder: of the data set.
        prepared: the photo.

    Returns:
        Its row with `path`, relative to the folder: `images/<2 digits>/<id>.jpg`. It depends on the id alone.

    Raises:
        OSError: it cannot be written.
    """
    raise NotImplementedError
