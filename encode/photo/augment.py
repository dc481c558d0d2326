"""Augmented views of photos and tiles, computed on the device, as in the reference and Sample4Geo.

A view is a function of the image and `DRAWS` uniform random numbers, so a seed reproduces it in any batch and on any
machine. The numbers are in main memory, where they decide which images an operation changes: to learn that from the
device, the host would have to wait for it, and where kornia checks the strengths of its operations.

    photo: JPEG compression of quality 90..100 (p 0.5); random resized crop of 70..100 % of the area at constant aspect
           ratio; colour jitter (p 0.5); grayscale (p 0.1); blur or sharpening (p 0.3); then grid or coarse dropout
           (p 0.3) of each of its squares
    tile:  the same without crop and grayscale, with smaller holes of the grid

State-wide retrieval uses another augmentation, `jitter_colors`: colour jitter alone, of every image.

Compression comes first and is applied to photos and tiles alike, as in Sample4Geo, but here after resizing. Colour
operations, filters and the JPEG codec, which models chroma subsampling and quantisation without a file, are kornia's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import permutations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from kornia.color import rgb_to_grayscale
from kornia.enhance import (
    adjust_brightness_accumulative,
    adjust_contrast_with_mean_subtraction,
    adjust_hue,
    adjust_saturation_with_gray_subtraction,
    jpeg_codec_differentiable,
    sharpness,
)
from kornia.filters import gaussian_blur2d
from numpy.typing import NDArray
from torch import Tensor

JPEG, QUALITY = 0.5, (90, 100)
CROP_SCALE = (0.7, 1.0)  # share of the photo's area
JITTER, BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.5, 0.2, 0.2, 0.2, 0.05
GRAY = 0.1
FILTER, SIGMA, SHARPNESS = 0.3, (0.2, 1.0), (1.2, 2.5)
DROPOUT = 0.3
GRID_CELLS = 10  # per side
PHOTO_HOLE, TILE_HOLE = 0.5, 0.4  # dropped fraction of a grid cell's side
HOLES, HOLE_SIDE = (10, 25), (0.1, 0.2)  # coarse dropout: number of holes, side as a fraction of the image's

#: The colour jitter of Fervers et al. 2024 in their published training code: largest change of the factors of
#: brightness, contrast and saturation, and largest shift of the hue as a fraction of the circle.
COLOR_JITTER = (0.15, 0.15, 0.15, 0.1)
#: Uniform numbers of `jitter_colors`: brightness, contrast, saturation, hue, order of the four operations.
JITTER_DRAWS = 5
_ORDERS = torch.tensor(list(permutations(range(4))))

# Indices into the uniform numbers of an image
_CROP = slice(0, 3)  # scale, x, y
_JITTER = slice(3, 8)  # apply, brightness, contrast, saturation, hue
_GRAY = 8
_FILTER = slice(9, 11)  # blur, sharpen or neither; strength
_DROPOUT = slice(11, 15)  # grid, coarse or neither; grid x, grid y, number of holes
_HOLES = slice(15, 15 + 4 * HOLES[1])  # x, y, width, height of each hole
_JPEG = slice(_HOLES.stop, _HOLES.stop + 2)  # apply, quality

#: Increment when views look different, so that a cache never mixes views of two versions.
AUGMENTATION_VERSION = 2

#: Uniform numbers per image; a photo uses `DRAWS` for the whole image and `DRAWS` for each of its squares.
DRAWS = _JPEG.stop


def view_draws(photo_sha256: str, view: int, seed: int, squares: int) -> NDArray[np.float32]:
    """Draw the uniform numbers of one view of a photo; the same arguments always give the same numbers.

    Args:
        photo_sha256: SHA-256 of the photo's file, in hexadecimal.
        view: number of the view, from 1.
        seed: of all views.
        squares: number of squares that the photo is cut into.

    Returns:
        (1 + squares, DRAWS) in 0..1; row 0 is for the whole photo.
    """
    return np.random.default_rng([seed, view, int(photo_sha256[:16], 16)]).random((1 + squares, DRAWS), np.float32)


def augment_photos(photos: Tensor, draws: Tensor) -> Tensor:
    """Augment photos, all but dropout, which `drop_parts` applies to their squares.

    Args:
        photos: (n, 3, height, width) in 0..1.
        draws: (n, DRAWS) in 0..1, in main memory.

    Returns:
        Views of the same shape.
    """
    photos = _crop(_compress(photos, draws[:, _JPEG]), draws[:, _CROP])
    photos = _jitter(photos, draws[:, _JITTER])
    gray = (draws[:, _GRAY] < GRAY).to(photos.device)[:, None, None, None]
    photos = torch.where(gray, rgb_to_grayscale(photos).expand_as(photos), photos)
    return _filter(photos, draws[:, _FILTER])


def augment_tiles(tiles: Tensor, draws: Tensor, hole: float = TILE_HOLE) -> Tensor:
    """Augment tiles, or photos that keep their place: without a crop.

    Args:
        tiles: (n, 3, rows, cols) in 0..1.
        draws: (n, DRAWS) in 0..1, in main memory.
        hole: side of the dropped squares of a grid as a fraction of a grid cell's.

    Returns:
        Views of the same shape.
    """
    tiles = _jitter(_compress(tiles, draws[:, _JPEG]), draws[:, _JITTER])
    return drop_parts(_filter(tiles, draws[:, _FILTER]), draws, hole)


def jitter_colors(images: Tensor, draws: Tensor) -> Tensor:
    """Change brightness, contrast, saturation and hue in random order, all of them in every image.

    Args:
        images: (n, 3, height, width) in 0..1, or (n, level, 3, height, width), whose levels have one common draw.
        draws: (n, JITTER_DRAWS) in 0..1, in main memory.

    Returns:
        Views of the same shape.
    """
    if images.ndim == 5:
        levels = images.shape[1]
        return jitter_colors(images.flatten(0, 1), draws.repeat_interleave(levels, 0)).unflatten(0, (-1, levels))
    order = _ORDERS[(draws[:, 4] * len(_ORDERS)).long().clamp(max=len(_ORDERS) - 1)]
    operations: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda part, amount: adjust_brightness_accumulative(part, 1 + amount),
        lambda part, amount: adjust_contrast_with_mean_subtraction(part, 1 + amount),
        lambda part, amount: adjust_saturation_with_gray_subtraction(part, 1 + amount),
        lambda part, amount: adjust_hue(part, 2 * math.pi * amount),
    ]
    for turn in range(len(operations)):
        for number, operation in enumerate(operations):
            selected = order[:, turn] == number
            index = _indices(selected, images.device)
            if len(index):
                amount = COLOR_JITTER[number] * (2 * draws[selected, number] - 1)
                images = images.index_copy(0, index, operation(images[index], amount))
    return images


def jitter_padded(images: Tensor, boxes: list[tuple[int, int, int, int]], draws: Tensor) -> Tensor:
    """`jitter_colors` of the photos in padded images; the padding, which has no contrast of its own, stays as it is.

    Args:
        images: (n, 3, height, width) in 0..1.
        boxes: first row, row after the last, first column and column after the last of each photo.
        draws: (n, JITTER_DRAWS) in 0..1, in main memory.

    Returns:
        Views of the same shape.
    """
    views = images.clone()
    for box in set(boxes):
        numbers = torch.tensor([number for number, other in enumerate(boxes) if other == box])
        index, (top, bottom, left, right) = numbers.to(images.device), box
        photos = images[index, :, top:bottom, left:right]
        views[index, :, top:bottom, left:right] = jitter_colors(photos, draws[numbers])
    return views


def drop_parts(squares: Tensor, draws: Tensor, hole: float = PHOTO_HOLE) -> Tensor:
    """Apply grid or coarse dropout to some squares; dropped pixels are black.

    Args:
        squares: (n, 3, S, S) in 0..1; of other images, the holes are those of the square around them.
        draws: (n, DRAWS) in 0..1, in main memory.
        hole: side of the grid's holes as a fraction of a grid cell's.

    Returns:
        Squares of the same shape.
    """
    rows, cols = squares.shape[-2:]
    selector, side = draws[:, _DROPOUT.start], max(rows, cols)
    grid, coarse = selector < DROPOUT / 2, (selector >= DROPOUT / 2) & (selector < DROPOUT)
    for selected, hole_mask in ((grid, partial(_grid_holes, hole=hole)), (coarse, _coarse_holes)):
        index = _indices(selected, squares.device)
        if len(index):
            visible = ~hole_mask(draws[selected].to(squares.device), side)[:, None, :rows, :cols]
            squares = squares.index_copy(0, index, squares[index] * visible)
    return squares


def _indices(selected: Tensor, device: torch.device) -> Tensor:
    """Indices, on the device, of the images that a (n,) mask in main memory selects."""
    return selected.nonzero()[:, 0].to(device)


def _compress(images: Tensor, draws: Tensor) -> Tensor:
    selected, (low, high) = draws[:, 0] < JPEG, QUALITY
    index = _indices(selected, images.device)
    if not len(index):
        return images
    quality = (low + (high - low + 1) * draws[selected, 1]).floor().clamp(max=high)  # whole numbers, equally likely
    compressed = jpeg_codec_differentiable(images[index], quality)
    return images.index_copy(0, index, compressed.clamp(0, 1))


def _crop(photos: Tensor, draws: Tensor) -> Tensor:
    (low, high), draws = CROP_SCALE, draws.to(photos.device)
    side = (low + (high - low) * draws[:, 0]).sqrt()  # of the crop, relative to the photo's
    x, y = ((2 * draws[:, axis] - 1) * (1 - side) for axis in (1, 2))  # centre; the photo spans -1..1
    zero = torch.zeros_like(side)
    window = torch.stack([torch.stack([side, zero, x], 1), torch.stack([zero, side, y], 1)], 1)
    grid = F.affine_grid(window, list(photos.shape), align_corners=False)
    return F.grid_sample(photos, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _jitter(images: Tensor, draws: Tensor) -> Tensor:
    selected = draws[:, 0] < JITTER
    index = _indices(selected, images.device)
    if not len(index):
        return images
    amount = 2 * draws[selected, 1:] - 1  # -1..1
    jittered = adjust_brightness_accumulative(images[index], 1 + BRIGHTNESS * amount[:, 0])
    jittered = adjust_contrast_with_mean_subtraction(jittered, 1 + CONTRAST * amount[:, 1])
    jittered = adjust_saturation_with_gray_subtraction(jittered, 1 + SATURATION * amount[:, 2])
    return images.index_copy(0, index, adjust_hue(jittered, 2 * math.pi * HUE * amount[:, 3]))


def _filter(images: Tensor, draws: Tensor) -> Tensor:
    selector, strength = draws.unbind(1)
    blur, sharpen = selector < FILTER / 2, (selector >= FILTER / 2) & (selector < FILTER)
    index = _indices(blur, images.device)
    if len(index):
        sigma = SIGMA[0] + (SIGMA[1] - SIGMA[0]) * strength[blur]
        images = images.index_copy(0, index, gaussian_blur2d(images[index], (5, 5), sigma[:, None].expand(-1, 2)))
    index = _indices(sharpen, images.device)
    if len(index):
        factor = SHARPNESS[0] + (SHARPNESS[1] - SHARPNESS[0]) * strength[sharpen]
        images = images.index_copy(0, index, sharpness(images[index], factor))
    return images


def _grid_holes(draws: Tensor, side: int, hole: float) -> Tensor:
    """(n, S, S) bool: one square per cell of a randomly shifted grid."""
    cell = max(2, side // GRID_CELLS)
    position = torch.arange(side, device=draws.device)
    x, y = (
        ((position + (draws[:, _DROPOUT.start + axis] * cell).floor()[:, None]) % cell) < hole * cell for axis in (1, 2)
    )
    return y[:, :, None] & x[:, None, :]


def _coarse_holes(draws: Tensor, side: int) -> Tensor:
    """(n, S, S) bool: the union of 10 to 25 rectangles."""
    count = HOLES[0] + (draws[:, _DROPOUT.stop - 1] * (HOLES[1] - HOLES[0] + 1)).floor()
    x, y, width, height = draws[:, _HOLES].unflatten(1, (4, HOLES[1])).unbind(1)  # (n, hole) each
    width, height = (HOLE_SIDE[0] + (HOLE_SIDE[1] - HOLE_SIDE[0]) * share for share in (width, height))
    position = (torch.arange(side, device=draws.device) + 0.5) / side
    used = torch.arange(HOLES[1], device=draws.device) < count[:, None]
    cols = _within(position, x * (1 - width), width)
    rows = _within(position, y * (1 - height), height) & used[:, :, None]
    return (rows.transpose(1, 2).float() @ cols.float()) > 0.5


def _within(position: Tensor, start: Tensor, extent: Tensor) -> Tensor:
    """(n, hole, S) bool."""
    return (position >= start[:, :, None]) & (position < (start + extent)[:, :, None])
