"""Whether a picture says where on the map it lies, as maps and aerial images do, and photos from the ground do not."""

from __future__ import annotations

import struct
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from jzi.store.photos.photo_file import open_regular_file

#: Tags of a TIFF that say where it lies: ModelPixelScale, ModelTiepoint, ModelTransformation and GeoKeyDirectory
#: (GeoTIFF 1.1, section 7).
_TAGS = (33550, 33922, 34264, 34735)

#: Suffixes of world files beside rasters.
_WORLD_FILES = (".jgw", ".jpgw", ".jpegw", ".pgw", ".pngw", ".tfw", ".tifw", ".wld")

#: First bytes of a TIFF: little- and big-endian, classic and BigTIFF.
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

#: Tags of a TIFF that are read; TIFF and GeoTIFF define about a hundred.
_MOST_TAGS = 4096


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
    """Whether a TIFF has tags that say where it lies; Pillow opens none with pixels as a heat map has them."""
    try:
        if isinstance(picture, bytes):
            return not _tags(BytesIO(picture)).isdisjoint(_TAGS)
        with open_regular_file(picture) as file:
            return not _tags(file).isdisjoint(_TAGS)
    except (OSError, OverflowError, ValueError, struct.error):  # damaged: it has no tag that could be read
        return False


def _tags(file: BinaryIO) -> set[int]:
    """The tags of the first directory of a TIFF (TIFF 6.0, section 2; BigTIFF); none of another file."""
    head = file.read(16)
    if not head.startswith(_TIFF):
        return set()
    order, big = "<" if head.startswith(b"II") else ">", b"+" in head[:4]
    at, number, size, entry = (8, "Q", 8, 20) if big else (4, "H", 2, 12)
    file.seek(*struct.unpack_from(f"{order}{'Q' if big else 'I'}", head, at))
    (count,) = struct.unpack(f"{order}{number}", file.read(size))
    entries = file.read(entry * min(count, _MOST_TAGS))
    return {struct.unpack_from(f"{order}H", entries, start)[0] for start in range(0, len(entries) - 1, entry)}


def _head(file: Path) -> bytes:
    """The first megabyte of a file; empty if it cannot be read."""
    try:
        with file.open("rb") as opened:
            return opened.read(2**20)
    except OSError:
        return b""
