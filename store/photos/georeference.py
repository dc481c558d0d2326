"""Whether a picture says where on the map it lies, as maps and aerial images do, and photos from the ground do not."""

from __future__ import annotations

from pathlib import Path

from jzi.errors import PhotoError
from jzi.store.photos.photo_file import open_image

#: Tags of a TIFF that say where it lies: ModelPixelScale, ModelTiepoint, ModelTransformation and GeoKeyDirectory
#: (GeoTIFF 1.1, section 7).
_TAGS = (33550, 33922, 34264, 34735)

#: Suffixes of world files beside rasters.
_WORLD_FILES = (".jgw", ".jpgw", ".jpegw", ".pgw", ".pngw", ".tfw", ".tifw", ".wld")

#: First bytes of a TIFF: little- and big-endian, classic and BigTIFF.
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def is_georeferenced(picture: str | Path | bytes) -> bool:
    """Whether a picture is georeferenced: a GeoTIFF, or with a world file or GDAL's metadata beside it.

    Args:
        picture: a path, or the bytes of a file; False if it cannot be read.
    """
    if isinstance(picture, bytes):
        return picture.startswith(_TIFF) and _has_tags(picture)
    file = Path(picture)
    if any(file.with_suffix(suffix).exists() for suffix in _WORLD_FILES):
        return True
    metadata = file.with_name(f"{file.name}.aux.xml")
    if metadata.is_file() and b"<GeoTransform>" in _head(metadata):
        return True
    return file.suffix.lower() in (".tif", ".tiff") and _has_tags(file)


def _has_tags(picture: Path | bytes) -> bool:
    try:
        with open_image(picture, "it") as image:
            return any(tag in getattr(image, "tag_v2", {}) for tag in _TAGS)
    except PhotoError:
        return False


def _head(file: Path) -> bytes:
    """The first megabyte of a file; empty if it cannot be read."""
    try:
        with file.open("rb") as opened:
            return opened.read(2**20)
    except OSError:
        return b""
