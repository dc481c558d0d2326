"""Read photos in threads, in order, at the encoder's size; errors are returned with the photos, not raised."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jzi.encode.photo.photos import Photo as Photo
from jzi.encode.photo.photos import import_opencv, photo_notes, read_photo
from jzi.encode.prefetch import prefetch, reader_threads
from jzi.errors import PhotoError
from jzi.store.photos.photo_file import open_regular_file


class PhotoStamp(NamedTuple):
    """Checksum, size and modification time of a photo's file.

    Attributes:
        sha256: SHA-256 in hexadecimal; empty if the file cannot be read.
        size: size in bytes; -1 if the file cannot be read.
        mtime_ns: modification time in nanoseconds; -1 if the file cannot be read.
    """

    sha256: str = ""
    size: int = -1
    mtime_ns: int = -1


NO_STAMP = PhotoStamp()


@dataclass(frozen=True)
class ReadPhoto:
    """A photo as returned by `PhotoReader`, or the error.

    Attributes:
        name: as from `photo_name`.
        pixels: (height, width, 3) uint8; None if the photo cannot be read.
        error: why the photo cannot be read; empty if it can.
        notes: remarks for the user, of `jzi.encode.photo.photos.photo_notes`.
        stamp: checksum of the file if the reader has `stamps`, else `NO_STAMP`.
    """

    name: str
    pixels: NDArray[np.uint8] | None
    error: str = ""
    notes: tuple[str, ...] = ()
    stamp: PhotoStamp = NO_STAMP


def photo_name(photo: Photo) -> str:
    """Return the path of a photo, or of the file that an image was opened from, or else "photo"."""
    if isinstance(photo, str | Path):
        return str(photo)
    name = getattr(photo, "filename", "") or getattr(photo, "name", "")  # of an image; of an open file
    return name if isinstance(name, str) and name else "photo"


class PhotoReader:
    """Reader of photos at one size.

    Args:
        shape: height and width, pixels (`Encoder.photo_shape`).
        resampling: how photos are resized (`Encoder.resampling`).
        fit: whether photos keep their aspect ratio (`Encoder.fit`).
        stamps: whether to return the checksum of each file; photos must be paths.
        keep: number of decoded photos to keep in memory for repeated reading; photos must be paths.
        subject: name of a photo in error messages; `photo_name` by default.

    Raises:
        ConfigError: resampling is "reference", and OpenCV is not installed.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        resampling: str = "antialias",
        *,
        fit: bool = False,
        stamps: bool = False,
        keep: int = 0,
        subject: str = "",
    ) -> None:
        if resampling == "reference":
            import_opencv()
        self.height, self.width = shape
        self.resampling, self.fit = resampling, fit
        self.stamps, self.keep, self.subject = stamps, keep, subject
        self._kept: dict[str, ReadPhoto] = {}

    def read(self, photos: Iterable[Photo | PhotoError], ahead: int | None = None) -> Iterator[ReadPhoto]:
        """Read photos in order.

        Args:
            photos: the photos.
            ahead: number of photos to read ahead; twice the number of threads by default.
        """
        return prefetch(self.read_one, photos, reader_threads(), ahead)

    def batches(
        self, photos: Iterable[Photo | PhotoError], size: int, ahead: int | None = None
    ) -> Iterator[list[ReadPhoto]]:
        """Read photos in batches.

        Args:
            photos: the photos.
            size: photos per batch; the last batch may be smaller.
            ahead: number of photos to read ahead; two batches by default.
        """
        reader = self.read(photos, ahead or 2 * size)
        while batch := list(islice(reader, size)):
            yield batch

    def read_one(self, photo: Photo | PhotoError) -> ReadPhoto:
        """Read one photo in the calling thread; an error is returned as that of a photo that cannot be read."""
        if isinstance(photo, PhotoError):
            return ReadPhoto("photo", None, str(photo))
        name = photo_name(photo)
        if name in self._kept:
            return self._kept[name]
        subject, stamp = self.subject or name, NO_STAMP
        try:
            with contextlib.ExitStack() as stack:
                if self.stamps and isinstance(photo, str | Path):
                    photo, stamp = stack.enter_context(_stamped(Path(photo), subject))
                pixels, size = read_photo(photo, self.width, self.height, self.resampling, subject, fit=self.fit)
        except PhotoError as error:
            return ReadPhoto(name, None, str(error), stamp=stamp)
        read = ReadPhoto(name, pixels, notes=photo_notes(pixels, *size), stamp=stamp)
        if len(self._kept) < self.keep:
            self._kept[name] = read
        return read


@contextlib.contextmanager
def _stamped(path: Path, subject: str) -> Iterator[tuple[BinaryIO, PhotoStamp]]:
    """The open file and its stamp; the pixels are decoded from the same file, even if another takes its name."""
    try:
        file = open_regular_file(path)
    except (OSError, ValueError) as error:
        raise PhotoError(f"{subject} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    with file:
        try:
            status = os.fstat(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise PhotoError(f"{subject} cannot be read: {error.strerror}") from error
        yield file, PhotoStamp(digest, status.st_size, status.st_mtime_ns)
