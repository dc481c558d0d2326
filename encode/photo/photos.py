"""Open street photos with Pillow, upright and in RGB, and resize them for the encoder."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from jzi.encode.photo.photo_memory import decoding_bytes, photo_budget
from jzi.errors import ConfigError, PhotoError
from jzi.store.photos.photo_file import open_image, photo_errors

#: A photo: a path, the bytes of a file, an open file or an image.
Photo = str | Path | bytes | BinaryIO | Image.Image

#: Default limit on the pixels of a photo: above any camera's resolution. Pillow refuses more than 178 956 970.
MAX_PIXELS = 180_000_000

#: Longest side of a photo, pixels: that of JPEG. A picture of one column takes Pillow many times as long as others.
MAX_SIDE = 65_535

#: JPEGs with more pixels are decoded at 1/2, 1/4 or 1/8 of their size where that is at least twice the size of the
#: result. Cameras and most phones are below (full-frame sensors have 61 megapixels), so that their embeddings do not
#: depend on it; panoramas and 108-megapixel photos take a fraction of the time and memory.
DRAFT_PIXELS = 64_000_000

#: Side of the squares that are converted to RGB one at a time, pixels.
_SIDE = 1024

#: How photos are resized: Pillow's antialiased bicubic, its antialiased bilinear, or OpenCV's INTER_LINEAR_EXACT, which
#: published checkpoints were trained with and which does not antialias.
RESAMPLINGS = ("antialias", "bilinear", "reference")

#: Note on photos that look like panoramas, which should perhaps be cropped first.
PANORAMA = "the photo looks like a 360° panorama (2:1): its cell is searched for as if it were an ordinary photo"

#: Note on pictures that show nothing: at least this share of the pixels is within so many levels of the median colour.
#: Of 14 real photos none has more than 15 % there; JPEG changes a blank picture by 2.
UNIFORM = "the picture is nearly uniform: what it shows says little about where it was taken"
UNIFORM_SHARE, UNIFORM_LEVELS = 0.95, 6

#: Note on pictures without edges, such as gradients: fewer than this share of the pixels differ by more than so many
#: levels from the one to the right or below. Of 14 real photos none has fewer than 16 %, at 84 to 384 px of height.
SMOOTH = "the picture has hardly any edges: what it shows says little about where it was taken"
EDGE_SHARE, EDGE_LEVELS = 0.01, 6

#: Notes that say that a picture shows nothing.
FEATURELESS = (UNIFORM, SMOOTH)

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_photo(photo: Photo, name: str = "", *, max_pixels: int | None = None) -> Image.Image:
    """Open a photo as 8-bit RGB, rotated by its EXIF orientation.

    The memory of photos that are decoded at the same time is bounded by `jzi.encode.photo.photo_memory.photo_budget`.

    Args:
        photo: a path, the bytes of a file, an open file or an image.
        name: name of the photo in error messages; its path or "the photo" by default.
        max_pixels: maximum number of pixels; `MAX_PIXELS` by default.

    Returns:
        The image. Transparent pixels are white.

    Raises:
        PhotoError: there is no such file, it is not a regular file, not a photo or damaged, or it has too many pixels
            or too long a side.
    """
    with _decoded(photo, name, max_pixels) as (image, _):
        return image


def read_photo(
    photo: Photo,
    width: int,
    height: int,
    resampling: str = "antialias",
    name: str = "",
    *,
    fit: bool = False,
    max_pixels: int | None = None,
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Open a photo and resize it, as `open_photo` and `resize_photo`, within the memory budget.

    JPEGs above `DRAFT_PIXELS` are decoded at a fraction of their size, except for "reference", which is exact.

    Args:
        photo: a path, the bytes of a file, an open file or an image.
        width: pixels.
        height: pixels.
        resampling: one of `RESAMPLINGS`.
        name: name of the photo in error messages; its path or "the photo" by default.
        fit: whether to keep the aspect ratio, on black.
        max_pixels: maximum number of pixels; `MAX_PIXELS` by default.

    Returns:
        (height, width, 3) uint8, and the width and height of the upright photo in pixels.

    Raises:
        PhotoError: as `open_photo`.
        ConfigError: resampling is "reference", and OpenCV is not installed.
    """
    least_size = (2 * width, 2 * height) if resampling != "reference" else None
    with _decoded(photo, name, max_pixels, least_size, to_array=resampling == "reference") as (image, size):
        return resize_photo(image, width, height, resampling, fit=fit), size


@contextlib.contextmanager
def _decoded(
    photo: Photo,
    name: str,
    max_pixels: int | None,
    least_size: tuple[int, int] | None = None,
    to_array: bool = False,
) -> Iterator[tuple[Image.Image, tuple[int, int]]]:
    """The photo, upright and in RGB, and its size in the file, upright; its memory is reserved within the block."""
    name = name or (str(photo) if isinstance(photo, str | Path) else "the photo")
    opened = contextlib.nullcontext(photo) if isinstance(photo, Image.Image) else open_image(photo, name)
    with contextlib.ExitStack() as stack:
        stack.enter_context(photo_errors(name))
        image = stack.enter_context(opened)
        _check_size(image, name, max_pixels or MAX_PIXELS)
        pixels, drafted = image.width * image.height, None
        if least_size and image.format in ("JPEG", "MPO") and pixels > DRAFT_PIXELS:
            rotated = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            drafted = image.size[::-1] if rotated else image.size
            image.draft(image.mode, least_size[::-1] if rotated else least_size)
        budget, amount = photo_budget(), decoding_bytes(image, pixels, to_array=to_array)
        if amount > budget.total:
            raise PhotoError(f"{name} has {pixels:,} pixels, too many for a {image.format}: convert it to JPEG or PNG")
        stack.enter_context(budget.reserve(amount))
        image.load()
        method = _TRANSPOSE.get(image.getexif().get(ExifTags.Base.Orientation, 1))
        if method is not None:
            image = image.transpose(method)
        image = _to_rgb(image)
        yield image, drafted or image.size


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise PhotoError(f"{name} has {image.width} x {image.height} pixels: shrink it to {max_pixels:,} or fewer")
    if max(image.size) > MAX_SIDE:
        raise PhotoError(f"{name} has {image.width} x {image.height} pixels: shrink it to {MAX_SIDE:,} to a side")
    tags = getattr(image, "tag_v2", {})
    tile = int(tags.get(322, 0)) * int(tags.get(323, 0))  # width and height of the tiles of a TIFF
    if tile > max(image.width * image.height, 2**24):
        raise PhotoError(f"{name} has {image.width} x {image.height} pixels in tiles of {tile}: save it again")


def resize_photo(
    image: Image.Image, width: int, height: int, resampling: str = "antialias", *, fit: bool = False
) -> NDArray[np.uint8]:
    """Resize the whole photo, without keeping its aspect ratio, as in the reference.

    With `fit`, its aspect ratio is kept: it is scaled up or down to fit into the size, centred, on black, as in Fervers
    et al. 2024, section S2. Portrait photos are not turned.

    Args:
        image: an RGB image.
        width: pixels.
        height: pixels.
        resampling: one of `RESAMPLINGS`.
        fit: whether to keep the aspect ratio.

    Returns:
        (height, width, 3) uint8.

    Raises:
        ConfigError: resampling is "reference", and OpenCV is not installed.
    """
    if fit:
        inner_width, inner_height = fit_size(*image.size, width, height)
        padded = np.zeros((height, width, 3), np.uint8)
        top, left = (height - inner_height) // 2, (width - inner_width) // 2
        inner = resize_photo(image, inner_width, inner_height, resampling)
        padded[top : top + inner_height, left : left + inner_width] = inner
        return padded
    if resampling == "reference":
        cv2 = import_opencv()
        return cv2.resize(np.asarray(image), (width, height), interpolation=cv2.INTER_LINEAR_EXACT)
    bilinear = resampling == "bilinear"
    return np.asarray(
        image.resize((width, height), Image.Resampling.BILINEAR if bilinear else Image.Resampling.BICUBIC)
    )


def fit_size(photo_width: int, photo_height: int, width: int, height: int) -> tuple[int, int]:
    """Return width and height of a photo that is scaled to fit into a size, rounded down, at least one pixel each.

    Example:
        >>> fit_size(4032, 3024, 640, 480), fit_size(1080, 1920, 640, 480)
        ((640, 480), (270, 480))
    """
    if photo_width * height >= photo_height * width:
        return width, max(1, photo_height * width // photo_width)
    return max(1, photo_width * height // photo_height), height


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


def photo_notes(pixels: NDArray[np.uint8], width: int, height: int) -> tuple[str, ...]:
    """Remarks for the user on a photo that may not be what it should be.

    Args:
        pixels: (row, col, 3) at the encoder's size.
        width: of the photo itself, pixels.
        height: pixels.
    """
    notes = (PANORAMA,) if looks_like_panorama(width, height) else ()
    near = np.ones(pixels.shape[:2], bool)
    for band in range(3):
        values = pixels[..., band]
        counts = np.bincount(values.ravel(), minlength=256)
        middle = np.searchsorted(counts.cumsum(), [(values.size + 1) // 2, values.size // 2 + 1]).mean()  # the median
        near &= (abs(np.arange(256) - middle) <= UNIFORM_LEVELS)[values]
    if near.mean() >= UNIFORM_SHARE:
        return (*notes, UNIFORM)
    return (*notes, SMOOTH) if _share_of_edges(pixels) < EDGE_SHARE else notes


def _share_of_edges(pixels: NDArray[np.uint8]) -> float:
    """Share of the pixels of (row, col, 3) that differ from the one to the right or the one below."""
    levels = pixels.astype(np.int16)
    right, below = abs(np.diff(levels, axis=1))[:-1], abs(np.diff(levels, axis=0))[:, :-1]
    edges = np.maximum(right, below).max(2) > EDGE_LEVELS
    return float(edges.mean()) if edges.size else 1.0


def looks_like_panorama(width: int, height: int) -> bool:
    """Return whether a photo of this size in pixels may be a 360 x 180 degree equirectangular panorama."""
    return width == 2 * height and width >= 2000


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert to 8-bit RGB on white, in squares: the photo and the result are all the memory that it needs."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    convert: Callable[[Image.Image], Image.Image] = _flattened
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N", "I", "F"):  # more than 8 bits: stretched
        convert = _stretch(image)
    elif not ("A" in image.getbands() or "transparency" in image.info):
        return image.convert("RGB")
    result = Image.new("RGB", image.size)
    for box in _squares(image):
        result.paste(convert(image.crop(box)), box[:2])
    return result


def _squares(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    for top in range(0, image.height, _SIDE):
        for left in range(0, image.width, _SIDE):
            yield left, top, min(image.width, left + _SIDE), min(image.height, top + _SIDE)


def _flattened(image: Image.Image) -> Image.Image:
    background = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(background, image.convert("RGBA")).convert("RGB")


def _stretch(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """How to stretch the values of a gray image from minimum to maximum."""
    low, high = math.inf, -math.inf
    for box in _squares(image):
        values = np.asarray(image.crop(box), np.float32)
        finite = values[np.isfinite(values)]
        low, high = min(low, float(finite.min(initial=np.inf))), max(high, float(finite.max(initial=-np.inf)))
    if low > high:  # there is no finite value
        low = high = 0.0

    def convert(square: Image.Image) -> Image.Image:
        values = np.nan_to_num(np.asarray(square, np.float32), nan=low, posinf=high, neginf=low)
        with np.errstate(over="ignore"):
            scaled = (values - low) * (255 / max(high - low, 1e-9))
        return Image.fromarray(np.clip(scaled, 0, 255).astype(np.uint8)).convert("RGB")

    return convert
