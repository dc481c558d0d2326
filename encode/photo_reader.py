"""Reads photos ahead in threads, in order, at the encoder's size; one that cannot be read is reported, not raised."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jzi.encode.photos import looks_like_panorama, open_photo, resize_photo
from jzi.encode.prefetch import prefetch, reader_threads
from jzi.errors import PhotoError

#: What a photo may come as: a path, a file's bytes, an open file or an image.
Photo = str | Path | bytes | BinaryIO | Image.Image

#: Note on a photo that was read, and perhaps should not have been treated like others.
PANORAMA = "looks like a 360° panorama (2:1); treated as an ordinary photo"


class PhotoStamp(NamedTuple):
    """What identifies the bytes of a photo's file.

    Attributes:
        sha256: of the bytes, in hexadecimal; empty where the file cannot be read.
        size: bytes; -1 where the file cannot be read.
        mtime_ns: modification time; -1 likewise.
    """

    sha256: str = ""
    size: int = -1
    mtime_ns: int = -1


NO_STAMP = PhotoStamp()


@dataclass(frozen=True)
class ReadPhoto:
    """A photo that was read, or why it cannot be.

    Attributes:
        name: of the photo, as `photo_name`.
        pixels: (height, width, 3) uint8; None where it cannot be read.
        error: why it cannot be read.
        notes: on how it was treated.
        stamp: of its file, where the reader was asked for it.
    """

    name: str
    pixels: NDArray[np.uint8] | None
    error: str = ""
    notes: tuple[str, ...] = ()
    stamp: PhotoStamp = NO_STAMP


def photo_name(photo: Photo) -> str:
    """The path of a photo, that of the file that an image was opened from, or else "photo"."""
    return str(photo) if isinstance(photo, str | Path) else str(getattr(photo, "filename", "") or "photo")


class PhotoReader:
    """Reads photos at one size.

    Args:
        shape: height and width, pixels (`Encoder.photo_shape`).
        stamps: whether to stamp the files, which then are read as a whole; photos are paths then.
        keep: how many photos to keep decoded, for those that are read again and again; photos are paths then.
        subject: what errors call a photo; its name by default.
    """

    def __init__(self, shape: tuple[int, int], *, stamps: bool = False, keep: int = 0, subject: str = "") -> None:
        self.height, self.width = shape
        self.stamps, self.keep, self.subject = stamps, keep, subject
        self._kept: dict[str, ReadPhoto] = {}

    def read(self, photos: Iterable[Photo], ahead: int | None = None) -> Iterator[ReadPhoto]:
        """Read photos in their order.

        Args:
            photos: in any of the forms of `Photo`.
            ahead: how many are read before they are asked for; by default twice the threads.
        """
        return prefetch(self.read_one, photos, reader_threads(), ahead)

    def batches(self, photos: Iterable[Photo], size: int, ahead: int | None = None) -> Iterator[list[ReadPhoto]]:
        """The same, `size` at a time; two batches are read ahead by default."""
        read = self.read(photos, ahead or 2 * size)
        while batch := list(islice(read, size)):
            yield batch

    def read_one(self, photo: Photo) -> ReadPhoto:
        """Read one photo in the caller's thread."""
        name = photo_name(photo)
        if name in self._kept:
            return self._kept[name]
        subject, stamp = self.subject or name, NO_STAMP
        try:
            if self.stamps and isinstance(photo, str | Path):
                photo, stamp = _stamped(Path(photo), subject)
            image = open_photo(photo, subject)
        except PhotoError as error:
            return ReadPhoto(name, None, str(error), stamp=stamp)
        notes = (PANORAMA,) if looks_like_panorama(image) else ()
        read = ReadPhoto(name, resize_photo(image, self.width, self.height), notes=notes, stamp=stamp)
        if len(self._kept) < self.keep:
            self._kept[name] = read
        return read


def _stamped(path: Path, subject: str) -> tuple[bytes, PhotoStamp]:
    try:
        stat, data = path.stat(), path.read_bytes()
    except OSError as error:
        raise PhotoError(f"{subject} cannot be read: {error.strerror}") from error
    return data, PhotoStamp(hashlib.sha256(data).hexdigest(), stat.st_size, stat.st_mtime_ns)
