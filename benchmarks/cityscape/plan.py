"""Derive the plan of a city from its heights: connected buildings, and the width and direction of streets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from .chance import Area

LEAST_BUILDING = 2.0  # metres; lower objects are fences, cars or noise
MOST_OPEN = 64  # metres: largest measured distance to a building
WIDEST_BUILDING = 128  # metres; a block may contain only a part of a wider one
CELL = 512  # metres: cells into which wider buildings are split
WIDTHS = (2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 10, 12, 14, 17, 20, 24, 30)
#: Metres around a point within which heights affect it.
REACH = MOST_OPEN + WIDTHS[-1] + WIDEST_BUILDING


@dataclass(frozen=True)
class Buildings:
    """The b buildings of an area; number 0 is the open ground.

    Attributes:
        label: (rows, cols) int32, number of each pixel's building.
        x: (b,) easting of the building's middle, metres.
        y: (b,) northing of the building's middle, metres.
        height: (b,) mean height, metres.
        area: (b,) ground area, square metres.
    """

    label: np.ndarray
    x: np.ndarray
    y: np.ndarray
    height: np.ndarray
    area: np.ndarray


@dataclass(frozen=True)
class Ground:
    """Open ground at 1 m a pixel; every raster is (rows, cols) float32.

    Attributes:
        away: metres to the nearest building, at most `MOST_OPEN`; 0 inside buildings.
        half: half the width of the street or square around a point: the largest of `WIDTHS` that is the radius of a
            disc which contains the point and fits between the buildings; 0 if none fits.
        along_deg: direction of the street in [0, 180) degrees clockwise from north.
        ridge: gradient of `away`: about 1 beside the middle of a street, at most 0.5 in it.
    """

    away: np.ndarray
    half: np.ndarray
    along_deg: np.ndarray
    ridge: np.ndarray


def find_buildings(height: np.ndarray, area: Area, per_metre: int, step: float) -> Buildings:
    """Label connected pixels whose heights differ by less than `step` metres between neighbours."""
    built = height >= LEAST_BUILDING
    run, first = _runs(height, built, step)
    if not len(first):
        ground = np.zeros(1)
        return Buildings(np.zeros(height.shape, np.int32), ground, ground, ground, ground)
    joined = built[1:] & built[:-1] & (np.abs(height[1:] - height[:-1]) < step)
    pairs = np.unique(run[:-1][joined].astype(np.int64) * len(first) + run[1:][joined])
    root = _union(len(first), *np.divmod(pairs, len(first)))
    _, label = np.unique(root, return_inverse=True)

    pixel = np.where(built, label[run], -1)  # (rows, cols)
    row, col = np.divmod(first, height.shape[1])
    pixels = np.bincount(run[built], minlength=len(first))
    count = int(label.max()) + 1
    box = np.array([[height.size], [-1], [height.size], [-1]]).repeat(count, 1)
    for side, value in enumerate((row, row, col, col + pixels - 1)):
        (np.maximum if side % 2 else np.minimum).at(box[side], label, value)
    wide = np.maximum(box[1] - box[0], box[3] - box[2]) >= WIDEST_BUILDING * per_metre
    middle_x = area.west + (box[2] + box[3] + 1) / 2 / per_metre
    middle_y = area.north - (box[0] + box[1] + 1) / 2 / per_metre
    ground = np.bincount(label, pixels, count) / per_metre**2
    mean = np.bincount(pixel[built], height[built], count) / np.bincount(pixel[built], minlength=count)

    # Wide buildings are split by cell and by spans of 4 m of height, which do not depend on the visible part.
    parts = np.flatnonzero(built.ravel() & wide[pixel].ravel())
    down, right = np.divmod(parts, height.shape[1])
    cell_x = (area.west + right // per_metre) // CELL
    cell_y = (area.north - 1 - down // per_metre) // CELL
    span = np.round(height.flat[parts] / 4).astype(np.int64)
    names, number = np.unique(np.stack([cell_x, cell_y, span]), axis=1, return_inverse=True)
    pixel.flat[parts] = count + number.ravel()
    cell = (names[:2] + 0.5) * CELL
    return Buildings(
        label=(pixel + 1).astype(np.int32),
        x=np.concatenate([[0], middle_x, cell[0]]),
        y=np.concatenate([[0], middle_y, cell[1]]),
        height=np.concatenate([[0], mean, names[2] * 4.0]),
        area=np.concatenate([[0], ground, np.full(names.shape[1], float(WIDEST_BUILDING**2))]),
    )


def _runs(height: np.ndarray, built: np.ndarray, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of each pixel's run of level pixels in its row, and the flat indices of the runs' starts."""
    starts = built.copy()
    starts[:, 1:] &= ~(built[:, :-1] & (np.abs(height[:, 1:] - height[:, :-1]) < step))
    run = np.cumsum(starts.ravel(), dtype=np.int32).reshape(built.shape) - 1
    return run, np.flatnonzero(starts)


def _union(count: int, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the smallest number connected to each of `count` numbers by the pairs (union-find)."""
    root = np.arange(count)
    while True:
        low, high = np.minimum(root[one], root[other]), np.maximum(root[one], root[other])
        apart = low != high
        if not apart.any():
            return root
        np.minimum.at(root, high[apart], low[apart])
        while (root[root] != root).any():
            root = root[root]


def survey(height: np.ndarray, per_metre: int) -> Ground:
    """Measure the open ground from heights at `per_metre` pixels per metre."""
    rows, cols = (side // per_metre for side in height.shape)
    built = (height >= LEAST_BUILDING).reshape(rows, per_metre, cols, per_metre).any((1, 3))
    away = np.sqrt(squared_distance(built, MOST_OPEN).astype(np.float32))
    half = np.zeros_like(away)
    for width in WIDTHS:
        reached = (
            squared_distance(away >= width, int(width) + 1) <= width**2
        )  # + 1: farther pixels have the largest distance
        half[reached & ~built] = width
    north, east = np.gradient(away)
    north = -north

    def blurred(raster: np.ndarray, side: int) -> np.ndarray:
        padded = functional.pad(torch.from_numpy(raster)[None, None], [side // 2] * 4, mode="replicate")
        return functional.avg_pool2d(padded, side, stride=1)[0, 0].numpy()

    # The direction in which the distance changes most lies across the street (a structure tensor).
    nn, ee, ne = (blurred(product, 11) for product in (north * north, east * east, north * east))
    across = np.degrees(0.5 * np.arctan2(2 * ne, nn - ee))  # clockwise from north
    ridge = blurred(np.hypot(blurred(north, 3), blurred(east, 3)), 3)
    return Ground(away, half, ((across + 90) % 180).astype(np.float32), ridge)


def squared_distance(mask: np.ndarray, most: int) -> np.ndarray:
    """Return the squared distance in pixels to the nearest pixel of a mask, (rows, cols) int16, at most most^2."""
    rows = np.arange(mask.shape[0], dtype=np.int32)[:, None]
    above = rows - np.maximum.accumulate(np.where(mask, rows, -most), axis=0)
    below = np.minimum.accumulate(np.where(mask, rows, mask.shape[0] + most)[::-1], axis=0)[::-1] - rows
    straight = np.minimum(np.minimum(above, below), most).astype(np.int16) ** 2
    nearest = straight.copy()
    for right in range(1, most + 1):
        np.minimum(nearest[:, right:], straight[:, :-right] + np.int16(right**2), out=nearest[:, right:])
        np.minimum(nearest[:, :-right], straight[:, right:] + np.int16(right**2), out=nearest[:, :-right])
    return np.minimum(nearest, np.int16(most**2), out=nearest)
