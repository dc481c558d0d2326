"""Bound the memory of all photos that are decoded at the same time, whatever the number of threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import psutil
from PIL import Image

#: Least and largest memory of photos in flight, bytes; between them an eighth of the machine's memory.
LEAST, MOST = 2 * 2**30, 8 * 2**30

#: Bytes per pixel that a decoder needs beside the picture; measured by `python -m benchmarks.photo_memory`. WebP: the
#: canvas, the previous one and a copy. TIFF: a strip or tile with 8 bytes per pixel. HEIF: planes
#: and colours of 10 bits, 12.4 bytes for 12 megapixels in 4:4:4 (pillow-heif 1.8.1).
#: A progressive JPEG needs two bytes per component, which `decoding_bytes` adds.
_DECODER = {"WEBP": 13, "TIFF": 10, "PNG": 1, "HEIF": 14}

#: Bytes per pixel of a picture in Pillow, and as an array, with the temporary copy of `np.asarray`.
_PICTURE, _ARRAY = 4, 6


class MemoryBudget:
    """An amount of memory that threads reserve parts of; they wait in order of arrival until there is enough left.

    Args:
        total: the amount, in bytes or in pixels.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._used = 0
        self._turn = threading.Lock()  # a large reservation is not overtaken by small ones
        self._freed = threading.Condition()

    @contextmanager
    def reserve(self, amount: int) -> Iterator[None]:
        """Hold a part of the budget; a thread must not hold two.

        Args:
            amount: bytes or pixels, at most `total`.
        """
        with self._turn, self._freed:
            self._freed.wait_for(lambda: self._used + amount <= self.total)
            self._used += amount
        try:
            yield
        finally:
            with self._freed:
                self._used -= amount
                self._freed.notify_all()


@lru_cache(maxsize=1)
def photo_budget() -> MemoryBudget:
    """Return the budget of this process, which all readers of photos share."""
    return MemoryBudget(min(MOST, max(LEAST, psutil.virtual_memory().total // 8)))


def decoding_bytes(image: Image.Image, full_pixels: int, *, to_array: bool) -> int:
    """Return the most memory that decoding a photo and converting it to RGB needs, in bytes.

    Args:
        image: the photo, before it is decoded, at the size that it is decoded to.
        full_pixels: number of pixels in the file.
        to_array: whether the whole picture is converted to an array.
    """
    decoder = _DECODER.get(image.format or "", 0) * full_pixels
    if image.format in ("JPEG", "MPO"):
        decoder = 2 * len(image.getbands()) * full_pixels
    pixels = image.width * image.height
    held = decoder if image.format in ("WEBP", "HEIF") else 0  # until the file is closed
    return max(decoder + _PICTURE * pixels, held + _PICTURE * pixels + (_ARRAY if to_array else _PICTURE) * pixels)
