"""Decode uploaded photos, with a bound on the pixels that are decoded at the same time."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from jzi.encode.photo_reader import PANORAMA
from jzi.encode.photos import looks_like_panorama, open_photo, resize_photo
from jzi.errors import JziError, PhotoError
from jzi.export.page import PHOTO
from jzi.serve.limits import FORMATS


@dataclass(frozen=True)
class DecodedPhoto:
    """What the service keeps of a decoded photo.

    Attributes:
        pixels: (height, width, 3) uint8 at the encoder's size.
        preview: the photo at the page's size.
        notes: remarks for the user.
    """

    pixels: NDArray[np.uint8]
    preview: Image.Image
    notes: tuple[str, ...]


class PhotoDecoder:
    """Decodes photos in several threads.

    Args:
        shape: height and width of the encoder's photos, pixels.
        resampling: how photos are resized (`Encoder.resampling`).
        max_pixels: pixels of the largest photo, and of all that are decoded at the same time.
    """

    def __init__(self, shape: tuple[int, int], resampling: str, max_pixels: int) -> None:
        (self.height, self.width), self.resampling = shape, resampling
        self.max_pixels = max_pixels
        Image.init()
        self.formats = tuple(name for name in FORMATS if name in Image.OPEN)  # Pillow may be built without AVIF
        self._free, self._changed = max_pixels, threading.Condition()

    def decode(self, data: bytes, name: str) -> DecodedPhoto:
        """Decode a photo; waits until its pixels are within the bound.

        Args:
            data: bytes of the file.
            name: name of the photo in errors.

        Raises:
            PhotoError: it is not a photo in one of `FORMATS`, is damaged or has too many pixels.
        """
        try:
            image = Image.open(io.BytesIO(data), formats=self.formats)
            with self._reserve(image.width * image.height):
                photo = open_photo(image, name, max_pixels=self.max_pixels)
                pixels = resize_photo(photo, self.width, self.height, self.resampling)
                notes = (PANORAMA,) if looks_like_panorama(photo) else ()
                photo.thumbnail((PHOTO, PHOTO))
                return DecodedPhoto(pixels, photo, notes)
        except UnidentifiedImageError as error:
            raise PhotoError(
                f"{name} is not a photo in a format that the service reads: send one of {', '.join(self.formats)}"
            ) from error
        except Image.DecompressionBombError as error:
            raise PhotoError(f"{name} is too large: shrink it to {self.max_pixels:,} pixels or fewer") from error
        except JziError:
            raise
        except Exception as error:  # Pillow's readers raise many kinds of errors for damaged files
            raise PhotoError(f"{name} cannot be read ({type(error).__name__}): it is damaged, send it again") from error

    @contextmanager
    def _reserve(self, pixels: int) -> Iterator[None]:
        pixels = min(pixels, self.max_pixels)  # a larger photo is refused by `open_photo`
        with self._changed:
            self._changed.wait_for(lambda: self._free >= pixels)
            self._free -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._free += pixels
                self._changed.notify_all()
