"""Street photos through Pillow: upright, RGB, whole, and of the size that the encoder takes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from jzi.errors import PhotoError

#: More pixels than any camera makes, fewer than would fill the memory (540 MB as RGB).
MAX_PIXELS = 180_000_000


def open_photo(
    photo: str | Path | bytes | BinaryIO | Image.Image, name: str = "", *, max_pixels: int | None = None
) -> Image.Image:
    """A photo as it is to be looked at: turned by its EXIF orientation, 8-bit RGB.

    Args:
        photo: a path, a file's bytes, an open file or an image.
        name: what to call it in errors.
        max_pixels: the most that it may have; MAX_PIXELS by default.

    Raises:
        PhotoError: it is no photo, is truncated, or has too many pixels.
    """
    name = name or (str(photo) if isinstance(photo, str | Path) else "the photo")
    max_pixels = max_pixels or MAX_PIXELS
    try:
        if isinstance(photo, Image.Image):
            image = photo
        else:
            image = Image.open(io.BytesIO(photo) if isinstance(photo, bytes) else photo)
        if image.width * image.height > max_pixels:
            raise PhotoError(f"{name} has {image.width} x {image.height} pixels: shrink it to {max_pixels:,} or fewer")
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError as error:
        raise PhotoError(f"there is no photo {name}") from error
    except Image.DecompressionBombError as error:
        raise PhotoError(f"{name} is too large to be opened: shrink it to {max_pixels:,} pixels or fewer") from error
    except UnidentifiedImageError as error:
        raise PhotoError(f"{name} is not a photo in a format that Pillow knows") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # Pillow's words for truncated and broken files
        raise PhotoError(f"{name} cannot be read: {error}") from error


def resize_photo(image: Image.Image, width: int, height: int) -> NDArray[np.uint8]:
    """(height, width, 3) of the whole photo, antialiased, its aspect not kept (the reference's protocol)."""
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def looks_like_panorama(image: Image.Image) -> bool:
    """Whether a photo has the shape and size of a panorama all round (equirectangular, 360 by 180 degrees)."""
    return image.width == 2 * image.height and image.width >= 2000


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N", "I", "F"):  # deep gray: by its own range, as viewers do
        values = np.asarray(image, np.float32)
        low, high = float(values.min()), float(values.max())
        return Image.fromarray(((values - low) * (255 / max(high - low, 1e-9))).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        on_white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(on_white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")
