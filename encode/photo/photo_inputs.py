"""What a caller in Python may hand over as a photo: arrays and tensors are checked and become images."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from jzi.encode.photo.photos import MAX_PIXELS, Photo
from jzi.errors import PhotoError

#: A photo in any form: a path, the bytes of a file, an open file, an image, an array (height, width, 3) or a tensor
#: (3, height, width), of uint8 or of floats from 0 to 1.
PhotoInput = str | Path | bytes | BinaryIO | Image.Image | NDArray[Any] | Tensor


def as_photo(photo: PhotoInput) -> Photo:
    """Convert arrays and tensors to images; other photos are returned as they are.

    Args:
        photo: a photo in any form.

    Raises:
        PhotoError: it is something else, or of another shape or type, or its values are out of range.
    """
    if isinstance(photo, Tensor):
        return _image(_from_tensor(photo))
    if isinstance(photo, np.ndarray):
        _check_shape(photo.shape, "an array", 2, "(height, width, 3)")
        return _image(photo)
    if isinstance(photo, io.TextIOBase):
        raise PhotoError('a photo was opened as text: open it with mode "rb"')
    if isinstance(photo, str | Path | bytes | Image.Image) or (hasattr(photo, "read") and hasattr(photo, "seek")):
        return photo
    if isinstance(photo, bytearray | memoryview):
        return bytes(photo)
    raise PhotoError(
        f"a photo cannot be of type {type(photo).__name__}: give a path, bytes, an open file, an image of Pillow, an "
        "array (height, width, 3) or a tensor (3, height, width)"
    )


def is_several(photos: Any) -> bool:
    """Whether photos were given as a list or tuple, rather than one photo."""
    return isinstance(photos, Sequence) and not isinstance(photos, str | bytes | bytearray | memoryview)


def _check_shape(shape: Sequence[int], kind: str, channels: int, axes: str) -> None:
    if len(shape) != 3 or shape[channels] != 3 or min(shape) < 1:
        what = f"{tuple(shape)!s:.60}"
        hint = "; give several photos as a list" if len(shape) == 4 else ""
        raise PhotoError(f"a photo has the shape {what}: as {kind}, it must be {axes}{hint}")
    if shape[0] * shape[1] * shape[2] > 3 * MAX_PIXELS:
        raise PhotoError(f"a photo has more than {MAX_PIXELS:,} pixels: shrink it")


def _from_tensor(photo: Tensor) -> NDArray[Any]:
    _check_shape(photo.shape, "a tensor", 0, "(3, height, width)")
    photo = photo.detach().permute(1, 2, 0)
    return (photo.float() if photo.dtype == torch.bfloat16 else photo).cpu().numpy()


def _image(pixels: NDArray[Any]) -> Image.Image:
    """An image of (height, width, 3) pixels."""
    if pixels.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(pixels))
    if not np.issubdtype(pixels.dtype, np.floating):
        raise PhotoError(f"the values of a photo are of type {pixels.dtype}: give uint8, or floats from 0 to 1")
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 1):  # nan is neither
        raise PhotoError(
            f"the floats of a photo reach from {low:g} to {high:g}: they must lie between 0 and 1; undo the "
            "normalisation of a data loader, or give uint8"
        )
    return Image.fromarray(np.rint(pixels * 255).astype(np.uint8))
