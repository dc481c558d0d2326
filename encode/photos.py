"""Open street photos with Pillow, upright and in RGB, and resize them for the encoder."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from jzi.errors import ConfigError, PhotoError

#: Default limit on the pixels of a photo: above any camera's resolution, 540 MB as RGB.
MAX_PIXELS = 180_000_000

#: How photos are resized: Pillow's antialiased bicubic, or OpenCV's INTER_LINEAR_EXACT, which published checkpoints
#: were trained with and which does not antialias.
RESAMPLINGS = ("antialias", "reference")


def open_photo(
    photo: str | Path | bytes | BinaryIO | Image.Image, name: str = "", *, max_pixels: int | None = None
) -> Image.Image:
    """Open a photo as 8-bit RGB, rotated by its EXIF orientation.

    Args:
        photo: a path, the bytes of a file, an open file or an image.
        name: name of the photo in error messages; its path or "the photo" by default.
        max_pixels: maximum number of pixels; `MAX_PIXELS` by default.

    Returns:
        The image. Transparent pixels are white.

    Raises:
        PhotoError: there is no such file, it is not a photo or damaged, or it has too many pixels.
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
        raise PhotoError(f"{name} is too large to open: shrink it to {max_pixels:,} pixels or fewer") from error
    except UnidentifiedImageError as error:
        raise PhotoError(
            f"{name} is not a photo in a format that Pillow supports: convert it to JPEG or PNG"
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # raised by Pillow for truncated or damaged files
        raise PhotoError(f"{name} cannot be read: {error}") from error


def resize_photo(image: Image.Image, width: int, height: int, resampling: str = "antialias") -> NDArray[np.uint8]:
    """Resize the whole photo, without keeping its aspect ratio, as in the reference.

    Args:
        image: an RGB image.
        width: pixels.
        height: pixels.
        resampling: one of `RESAMPLINGS`.

    Returns:
        (height, width, 3) uint8.

    Raises:
        ConfigError: resampling is "reference", and OpenCV is not installed.
    """
    if resampling == "reference":
        cv2 = import_opencv()
        return cv2.resize(np.asarray(image), (width, height), interpolation=cv2.INTER_LINEAR_EXACT)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def import_opencv() -> Any:
    """Import OpenCV, an optional dependency.

    Raises:
        ConfigError: OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise ConfigError(
            "encoder.resampling = 'reference' resizes photos with OpenCV, which is not installed: pip install "
            "'jzi[reference]'"
        ) from error
    return cv2


def looks_like_panorama(image: Image.Image) -> bool:
    """Return whether a photo has the size of a 360 x 180 degree equirectangular panorama."""
    return image.width == 2 * image.height and image.width >= 2000


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in (
        "I;16",
        "I;16B",
        "I;16L",
        "I;16N",
        "I",
        "F",
    ):  # more than 8 bits: stretched from minimum to maximum
        values = np.asarray(image, np.float32)
        low, high = float(values.min()), float(values.max())
        return Image.fromarray(((values - low) * (255 / max(high - low, 1e-9))).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        background = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(background, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")
