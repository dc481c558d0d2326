"""Decode uploaded photos, with a bound on the pixels that are decoded at the same time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jzi.encode.photo.photo_memory import MemoryBudget
from jzi.encode.photo.photos import open_photo, photo_notes, read_photo, resize_photo
from jzi.export.page_data import PHOTO
from jzi.store.photos.photo_file import open_image


@dataclass(frozen=True)
class DecodedPhoto:
    """What the service keeps of a decoded photo.

    Attributes:
        pixels: (height, width, 3) uint8 at the encoder's size.
        preview: the photo at the page's size; None if it is not asked for.
        notes: remarks for the user.
    """

    pixels: NDArray[np.uint8]
    preview: Image.Image | None
    notes: tuple[str, ...]


class PhotoDecoder:
    """Decodes photos in several threads.

    Args:
        shape: height and width of the encoder's photos, pixels.
        resampling: how photos are resized (`Encoder.resampling`).
        max_pixels: pixels of the largest photo, and of all that are decoded at the same time.
        fit: whether photos keep their aspect ratio (`Encoder.fit`).
    """

    def __init__(self, shape: tuple[int, int], resampling: str, max_pixels: int, *, fit: bool = False) -> None:
        (self.height, self.width), self.resampling, self.fit = shape, resampling, fit
        self.max_pixels = max_pixels
        self._pixels = MemoryBudget(max_pixels)

    def decode(self, data: bytes, name: str, *, preview: bool) -> DecodedPhoto:
        """Decode a photo; waits until its pixels are within the bound.

        Args:
            data: bytes of the file.
            name: name of the photo in errors.
            preview: whether to return a preview. Without one, large JPEGs are decoded at a fraction of their size.

        Raises:
            PhotoError: as `jzi.encode.photo.photos.open_photo`.
        """
        with open_image(data, name) as image:
            size = min(image.width * image.height, self.max_pixels)  # a larger photo is refused by `open_photo`
            with self._pixels.reserve(size):
                if not preview:
                    size_px = self.width, self.height
                    pixels, shape = read_photo(
                        image, *size_px, self.resampling, name, fit=self.fit, max_pixels=self.max_pixels
                    )
                    return DecodedPhoto(pixels, None, photo_notes(pixels, *shape))
                photo = open_photo(image, name, max_pixels=self.max_pixels)
                pixels = resize_photo(photo, self.width, self.height, self.resampling, fit=self.fit)
                notes = photo_notes(pixels, *photo.size)
                photo.thumbnail((PHOTO, PHOTO))
                return DecodedPhoto(pixels, photo, notes)
