"""Augmented views of photos and tiles, on the device (the reference's augmentation, which is Sample4Geo's).

What happens to an image is a function of `DRAWS` uniform numbers, so that a view can be made again from a seed in any
batch and on any machine.

    photo: a random resized crop of 70..100 % of it, its aspect kept; colour jitter (p 0.5); gray (p 0.1); blur or
           sharpening (p 0.3); then grid or coarse dropout (p 0.3) of each of its squares
    tile:  the same without crop and gray

Colour operations and filters are kornia's.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from kornia.color import rgb_to_grayscale
from kornia.enhance import (
    adjust_brightness_accumulative,
    adjust_contrast_with_mean_subtraction,
    adjust_hue,
    adjust_saturation_with_gray_subtraction,
    sharpness,
)
from kornia.filters import gaussian_blur2d
from numpy.typing import NDArray
from torch import Tensor

CROP_SCALE = (0.7, 1.0)  # share of the photo's area
JITTER, BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.5, 0.2, 0.2, 0.2, 0.05
GRAY = 0.1
FILTER, SIGMA, SHARPNESS = 0.3, (0.2, 1.0), (1.2, 2.5)
DROPOUT = 0.3
GRID_CELLS, GRID_HOLE = 10, 0.4  # cells to a side; the share of a cell's side that is dropped
HOLES, HOLE_SIDE = (10, 25), (0.1, 0.2)  # of coarse dropout: how many, and their sides as a share of the image's

# Which of an image's uniform numbers decides what
_CROP = slice(0, 3)  # scale, x, y
_JITTER = slice(3, 8)  # whether, brightness, contrast, saturation, hue
_GRAY = 8
_FILTER = slice(9, 11)  # whether and which, how strong
_DROPOUT = slice(11, 15)  # whether and which, grid x, grid y, how many holes
_HOLES = slice(15, 15 + 4 * HOLES[1])  # x, y, width, height of each

#: Changes with what a view looks like, so that views of several makes are never mixed.
AUGMENTATION_VERSION = 1

#: Uniform numbers to an image; a photo has `DRAWS` for itself and `DRAWS` for each of its squares.
DRAWS = _HOLES.stop


def view_draws(photo_sha256: str, view: int, seed: int, squares: int) -> NDArray[np.float32]:
    """(1 + squares, DRAWS) of a view of a photo: the same whenever and wherever it is made."""
    return np.random.default_rng([seed, view, int(photo_sha256[:16], 16)]).random((1 + squares, DRAWS), np.float32)


def augment_photos(photos: Tensor, draws: Tensor) -> Tensor:
    """Views of photos, before they are cut into squares and those go through `drop_parts`.

    Args:
        photos: (n, 3, height, width) 0..1.
        draws: (n, DRAWS) in 0..1.

    Returns:
        the same shape.
    """
    photos = _crop(photos, draws[:, _CROP])
    photos = _jitter(photos, draws[:, _JITTER])
    gray = (draws[:, _GRAY] < GRAY)[:, None, None, None]
    photos = torch.where(gray, rgb_to_grayscale(photos).expand_as(photos), photos)
    return _filter(photos, draws[:, _FILTER])


def augment_tiles(tiles: Tensor, draws: Tensor) -> Tensor:
    """Views of tiles, of the same shape.

    Args:
        tiles: (n, 3, S, S) 0..1.
        draws: (n, DRAWS) in 0..1.
    """
    return drop_parts(_filter(_jitter(tiles, draws[:, _JITTER]), draws[:, _FILTER]), draws)


def drop_parts(squares: Tensor, draws: Tensor) -> Tensor:
    """Grid dropout of some (n, 3, S, S) squares and coarse dropout of others; what is dropped is black."""
    which, side = draws[:, _DROPOUT.start], squares.shape[-1]
    for chosen, hole in ((which < DROPOUT / 2, _grid_holes), ((which >= DROPOUT / 2) & (which < DROPOUT), _holes)):
        index = chosen.nonzero()[:, 0]
        if len(index):
            kept = ~hole(draws[index], side)[:, None]
            squares = squares.index_copy(0, index, squares[index] * kept)
    return squares


def _crop(photos: Tensor, draws: Tensor) -> Tensor:
    low, high = CROP_SCALE
    side = (low + (high - low) * draws[:, 0]).sqrt()  # of the crop, over the photo's
    x, y = ((2 * draws[:, axis] - 1) * (1 - side) for axis in (1, 2))  # its centre, the photo being -1..1
    zero = torch.zeros_like(side)
    window = torch.stack([torch.stack([side, zero, x], 1), torch.stack([zero, side, y], 1)], 1)
    grid = F.affine_grid(window, list(photos.shape), align_corners=False)
    return F.grid_sample(photos, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _jitter(images: Tensor, draws: Tensor) -> Tensor:
    index = (draws[:, 0] < JITTER).nonzero()[:, 0]
    if not len(index):
        return images
    sign = 2 * draws[index, 1:] - 1  # -1..1
    changed = adjust_brightness_accumulative(images[index], 1 + BRIGHTNESS * sign[:, 0])
    changed = adjust_contrast_with_mean_subtraction(changed, 1 + CONTRAST * sign[:, 1])
    changed = adjust_saturation_with_gray_subtraction(changed, 1 + SATURATION * sign[:, 2])
    return images.index_copy(0, index, adjust_hue(changed, 2 * math.pi * HUE * sign[:, 3]))


def _filter(images: Tensor, draws: Tensor) -> Tensor:
    which, strength = draws.unbind(1)
    blurred = (which < FILTER / 2).nonzero()[:, 0]
    if len(blurred):
        sigma = SIGMA[0] + (SIGMA[1] - SIGMA[0]) * strength[blurred]
        soft = gaussian_blur2d(images[blurred], (5, 5), sigma[:, None].expand(-1, 2))
        images = images.index_copy(0, blurred, soft)
    sharpened = ((which >= FILTER / 2) & (which < FILTER)).nonzero()[:, 0]
    if len(sharpened):
        factor = SHARPNESS[0] + (SHARPNESS[1] - SHARPNESS[0]) * strength[sharpened]
        images = images.index_copy(0, sharpened, sharpness(images[sharpened], factor))
    return images


def _grid_holes(draws: Tensor, side: int) -> Tensor:
    """(n, S, S) bool: the same corner of every cell of a grid that is shifted at random."""
    cell = max(2, side // GRID_CELLS)
    position = torch.arange(side, device=draws.device)
    x, y = (
        ((position + (draws[:, _DROPOUT.start + axis] * cell).floor()[:, None]) % cell) < GRID_HOLE * cell
        for axis in (1, 2)
    )
    return y[:, :, None] & x[:, None, :]


def _holes(draws: Tensor, side: int) -> Tensor:
    """(n, S, S) bool: 10 to 25 rectangles."""
    count = HOLES[0] + (draws[:, _DROPOUT.stop - 1] * (HOLES[1] - HOLES[0] + 1)).floor()
    x, y, width, height = draws[:, _HOLES].unflatten(1, (4, HOLES[1])).unbind(1)  # (n, hole) each
    width, height = (HOLE_SIDE[0] + (HOLE_SIDE[1] - HOLE_SIDE[0]) * share for share in (width, height))
    position = (torch.arange(side, device=draws.device) + 0.5) / side
    there = torch.arange(HOLES[1], device=draws.device) < count[:, None]
    cols = _within(position, x * (1 - width), width)
    rows = _within(position, y * (1 - height), height) & there[:, :, None]
    return (rows.transpose(1, 2).float() @ cols.float()) > 0.5


def _within(position: Tensor, start: Tensor, extent: Tensor) -> Tensor:
    """(n, hole, S) bool."""
    return (position >= start[:, :, None]) & (position < (start + extent)[:, :, None])
