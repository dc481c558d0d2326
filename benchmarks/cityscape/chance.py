"""Chance that belongs to a place: numbers that look random, and are the same whatever window is asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

WRAP = 8192  # metres after which `Area.axes` begin again, so that float32 is exact to a millimetre


@dataclass(frozen=True)
class Area:
    """A rectangle in a metric CRS, on whole metres."""

    west: int
    south: int
    width: int
    height: int

    @property
    def east(self) -> int:
        """Its east edge."""
        return self.west + self.width

    @property
    def north(self) -> int:
        """Its north edge."""
        return self.south + self.height

    def grown(self, metres: int) -> Area:
        """The area with so much more on every side."""
        return Area(self.west - metres, self.south - metres, self.width + 2 * metres, self.height + 2 * metres)

    def within(self, other: Area) -> Area:
        """What the two share; its width or height is not positive where they share nothing."""
        west, south = max(self.west, other.west), max(self.south, other.south)
        return Area(west, south, min(self.east, other.east) - west, min(self.north, other.north) - south)

    def centres(self, per_metre: int) -> tuple[np.ndarray, np.ndarray]:
        """Eastings of the columns' centres and northings of the rows', of pixels of 1 / `per_metre` metres."""
        x = self.west + (np.arange(self.width * per_metre) + 0.5) / per_metre
        y = self.north - (np.arange(self.height * per_metre) + 0.5) / per_metre
        return x, y


def hashed(salt: int, *keys: np.ndarray) -> np.ndarray:
    """Whole numbers below 2^32 from whole numbers, uint32; the keys broadcast (MurmurHash3 without its tail)."""
    mixed = np.uint32((salt * 0x9E3779B1) & 0xFFFFFFFF)
    with np.errstate(over="ignore"):
        for key in keys:
            k = np.asarray(key).astype(np.int64).astype(np.uint32) * np.uint32(0xCC9E2D51)
            mixed = mixed ^ (((k << np.uint32(15)) | (k >> np.uint32(17))) * np.uint32(0x1B873593))
            mixed = ((mixed << np.uint32(13)) | (mixed >> np.uint32(19))) * np.uint32(5) + np.uint32(0xE6546B64)
        mixed = (mixed ^ (mixed >> np.uint32(16))) * np.uint32(0x85EBCA6B)
        mixed = (mixed ^ (mixed >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return mixed ^ (mixed >> np.uint32(16))


def uniform(salt: int, *keys: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1) from whole numbers, float32."""
    return (hashed(salt, *keys) >> np.uint32(8)).astype(np.float32) / 2**24


def pick(salt: int, count: int, *keys: np.ndarray) -> np.ndarray:
    """Whole numbers below `count` from whole numbers."""
    return (hashed(salt, *keys) % np.uint32(count)).astype(np.int64)


def waves(area: Area, per_metre: int, period: float, salt: int) -> np.ndarray:
    """Value noise in [0, 1], (rows, cols) float32: smooth, with hills some `period` metres wide."""
    x, y = area.centres(per_metre)
    (left, right_share), (low, up_share) = _lattice(x, period), _lattice(y, period)
    columns = np.arange(left.min(), left.max() + 2)
    rows = np.arange(low.min(), low.max() + 2)
    corner = uniform(salt, columns[None, :], rows[:, None])
    low, left = low - rows[0], left - columns[0]
    lines = corner[low] + (corner[low + 1] - corner[low]) * up_share[:, None]
    return lines[:, left] + (lines[:, left + 1] - lines[:, left]) * right_share


def waves_at(x: np.ndarray, y: np.ndarray, period: float, salt: int) -> np.ndarray:
    """The same noise at points."""
    (left, right_share), (low, up_share) = _lattice(x, period), _lattice(y, period)
    upper, lower = (
        uniform(salt, left, row) * (1 - right_share) + uniform(salt, left + 1, row) * right_share
        for row in (low + 1, low)
    )
    return lower + (upper - lower) * up_share


def _lattice(place: np.ndarray, period: float) -> tuple[np.ndarray, np.ndarray]:
    scaled = np.asarray(place) / period
    cell = np.floor(scaled)
    share = (scaled - cell).astype(np.float32)
    return cell.astype(np.int64), share * share * (3 - 2 * share)


def quarter(x: np.ndarray, y: np.ndarray, side: float, salt: int) -> np.ndarray:
    """The number of the quarter that points lie in, int64: Voronoi cells some `side` metres wide."""
    column, row = np.floor(x / side).astype(np.int64), np.floor(y / side).astype(np.int64)
    nearest = np.full(np.broadcast(column, row).shape, np.inf)
    number = np.zeros(nearest.shape, np.int64)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            c, r = column + right, row + down
            away = np.hypot(
                (c + uniform(salt, c, r, np.int64(0))) * side - x, (r + uniform(salt, c, r, np.int64(1))) * side - y
            )
            closer = away < nearest
            nearest = np.where(closer, away, nearest)
            number = np.where(closer, hashed(salt + 1, c, r).astype(np.int64), number)
    return number
