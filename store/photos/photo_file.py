"""Open the file of a photo with Pillow: regular files of a few formats, with bounds on what comes before the pixels.

A photo may come from a stranger. Pillow bounds neither the metadata that it reads before the pixels nor the number of
reads, and it decodes dozens of formats, one of them by running another program.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, UnidentifiedImageError

from jzi.errors import PhotoError, first_line

#: Formats of photos that Pillow reads, as it names them: with HEIF, those of `jzi.store.photos.exif.SUFFIXES`.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF")

#: Brands of HEIF, in which phones write photos (ISO/IEC 23008-12); the last four bytes of `HEIF_HEAD`.
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
HEIF_HEAD = 12

#: Most bytes and reads before the pixels. Depth maps in the XMP of phones take a few megabytes, in segments of 64 kB.
HEADER_BYTES, HEADER_READS = 16 * 2**20, 4000

#: Most bytes of EXIF: what one segment of a JPEG holds. Entries of a directory may share their bytes, so that Pillow's
#: memory grows with the square of this: 90 MB at most.
EXIF_BYTES = 2**16

#: Largest file that is read whole: a WebP, and a JPEG of several scans, whose number must be counted.
WHOLE_BYTES = 64 * 2**20

#: Most scans of a JPEG, as in GDAL. Each takes time for all pixels of the photo, but only a few bytes of the file.
SCANS = 100

_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_KINDS = ((stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"), (stat.S_ISDIR, "a folder"))


def open_regular_file(path: str | Path) -> BufferedReader:
    """Open a file for reading; FIFOs, devices, sockets and folders are refused, and never waited for.

    Raises:
        OSError: there is no such file, it is not a regular file, or it cannot be opened.
        ValueError: the path contains a NUL character.
    """
    _check_regular(Path(path).stat().st_mode)  # opening a device can have effects
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        _check_regular(os.fstat(descriptor).st_mode)
        return os.fdopen(descriptor, "rb")
    except OSError:
        os.close(descriptor)
        raise


def is_heif(head: bytes) -> bool:
    """Whether a file is a photo in HEIF (HEIC), by its first `HEIF_HEAD` bytes."""
    return head[4:8] == b"ftyp" and head[8:HEIF_HEAD] in HEIF_BRANDS


def _check_regular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "a device")
        raise OSError(f"it is {kind}, not a file")


@contextmanager
def open_image(photo: str | Path | bytes | BinaryIO, name: str) -> Iterator[Image.Image]:
    """Open a photo without reading its pixels; a context manager, within which they can be loaded.

    Args:
        photo: a path, the bytes of a file, or an open file.
        name: name of the photo in error messages.

    Raises:
        PhotoError: there is no such file, it is not a regular file, not a photo of `FORMATS`, damaged, or its metadata
            exceed the bounds above; or Pillow fails in the block.
    """
    with photo_errors(name):
        if isinstance(photo, str | Path):
            with open_regular_file(photo) as file:
                yield _open(file)
        else:
            yield _open(BytesIO(photo) if isinstance(photo, bytes) else photo)


@contextmanager
def photo_errors(name: str) -> Iterator[None]:
    """Raise errors of Pillow as `PhotoError`: damaged photos make it raise errors of many types.

    Args:
        name: name of the photo in error messages.
    """
    try:
        yield
    except PhotoError:
        raise
    except FileNotFoundError as error:
        raise PhotoError(f"there is no photo {name}") from error
    except UnidentifiedImageError as error:
        raise PhotoError(
            f"{name} is not a photo in a format that is supported: convert it to JPEG, PNG, WebP or TIFF"
        ) from error
    except Image.DecompressionBombError as error:
        raise PhotoError(f"{name} is too large to open: shrink it to 178 million pixels or fewer") from error
    except OSError as error:
        raise PhotoError(f"{name} cannot be read: {error.strerror or first_line(error)}") from error
    except Exception as error:
        raise PhotoError(f"{name} cannot be read: {first_line(error)}") from error


def _open(file: BinaryIO) -> Image.Image:
    bounded = _BoundedFile(file)
    heif = is_heif(file.read(HEIF_HEAD))
    file.seek(0)
    image = _open_heif(bounded) if heif else Image.open(bounded, formats=FORMATS)
    exif = image.info.get("exif") or b""
    if len(exif) > EXIF_BYTES + 6 or len(image.info.get("Raw profile type exif") or "") > 3 * EXIF_BYTES:
        raise OSError(f"its EXIF has more than {EXIF_BYTES} bytes; remove its metadata")
    if image.format in ("JPEG", "MPO"):
        _check_scans(image, bounded)
    bounded.expect_pixels()
    return image


def _open_heif(file: _BoundedFile) -> Image.Image:
    """Open a photo in HEIF; it is upright, and so says its EXIF.

    The file is read whole. Its pixels are decoded when they are loaded, by libheif, which refuses those that are larger
    than the file's header says.
    """
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        raise OSError("HEIC photos need `pip install 'jzi[heic]'`; or convert it to JPEG") from error
    opener: Any = HeifImageFile  # untyped
    image: Image.Image = opener(file)
    if Image.MAX_IMAGE_PIXELS and image.width * image.height > 2 * Image.MAX_IMAGE_PIXELS:  # as `Image.open`
        raise Image.DecompressionBombError
    return image


def _check_scans(image: Image.Image, file: _BoundedFile) -> None:
    """Refuse a JPEG with too many scans; in most, a single one holds all components."""
    position = file.tell()  # Pillow will read the pixels from here
    start = position if image.format == "JPEG" else _first_scan(file)  # Pillow has read the header of the first scan
    components = len(image.getbands())
    file.seek(start - 8 - 2 * components)
    if file.read(2) == b"\xff\xda" and "progressive" not in image.info:
        file.seek(position)
        return
    file.seek(start)
    data = file.read()
    file.seek(position)
    scans, at = 1, 0
    while match := _MARKER.search(data, at):
        marker = data[match.start() + 1]
        if marker == 0xD9:  # end of image
            return
        scans += marker == 0xDA
        if scans > SCANS:
            raise OSError(f"it has more than {SCANS} scans; save it again as a baseline JPEG")
        at = match.end() + int.from_bytes(data[match.end() : match.end() + 2], "big")


def _first_scan(file: _BoundedFile) -> int:
    """Position after the header of the first scan: a segment is 0xFF, a marker, and a length that includes itself."""
    at = 2
    while True:
        file.seek(at)
        head = file.read(4)
        if len(head) < 4 or head[0] != 0xFF:
            raise OSError("its header is damaged")
        if head[1] == 0xFF:  # a fill byte
            at += 1
            continue
        at += 2 + int.from_bytes(head[2:], "big")
        if head[1] == 0xDA:
            return at


class _BoundError(Exception):
    """A bound is exceeded; not an OSError, which Pillow takes for the end of the file."""


class _BoundedFile:
    """A file with bounds on the bytes and the number of reads: of the header, then of the pixels."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._bytes, self._reads, self._exif = HEADER_BYTES, HEADER_READS, EXIF_BYTES
        file.seek(0, os.SEEK_END)
        self._size = file.tell()
        file.seek(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def expect_pixels(self) -> None:
        """Allow reads of the pixels; 64 bytes each on average, since a PNG of empty chunks would take minutes."""
        self._reads = HEADER_READS + self._size // 64
        self._bytes = HEADER_BYTES + 2 * self._size

    def read(self, size: int = -1) -> bytes:
        """As `BinaryIO.read`.

        Raises:
            _BoundError: a bound is exceeded.
        """
        if size is None or size < 0:  # the whole file
            if self._size > WHOLE_BYTES:
                raise _BoundError(f"it has {self._size} bytes, more than {WHOLE_BYTES}; convert it to PNG")
            return self._file.read()
        data = self._file.read(min(size, self._size))
        self._bytes -= len(data)
        self._reads -= 1
        if data.startswith(b"Exif\0\0"):  # of a JPEG, which Pillow joins to those before
            self._exif -= len(data) - 6
        if self._bytes < 0 or self._reads < 0 or self._exif < 0:
            raise _BoundError("its metadata are too large; remove them, or save it again as JPEG")
        return data

    def readline(self, size: int = -1) -> bytes:
        """As `BinaryIO.readline`, bounded as `read`."""
        self._reads -= 1
        if self._reads < 0:
            raise _BoundError("its metadata are too large; remove them, or save it again as JPEG")
        return self._file.readline(HEADER_BYTES if size < 0 else size)
