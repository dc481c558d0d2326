"""Pseudo-random numbers as hashes of positions: the same in every window of a city."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

WRAP = 8192  # metres: coordinates modulo this are exact to a millimetre in float32


@dataclass(frozen=True)
class Area:
    """A rectangle in a metric CRS, in whole metres."""

    west: int
    south: int
    width: int
    height: int

    @property
    def east(self) -> int:
        """East edge."""
        return self.west + self.width

    @property
    def north(self) -> int:
        """North edge."""
        return self.south + self.height

    def grown(self, metres: int) -> Area:
        """Return the area extended by `metres` on every side."""
        return Area(self.west - metres, self.south - metres, self.width + 2 * metres, self.height + 2 * metres)

    def within(self, other: Area) -> Area:
        """Return the intersection of two areas; its width or height is not positive if they are disjoint."""
        west, south = max(self.west, other.west), max(self.south, other.south)
        return Area(west, south, min(self.east, other.east) - west, min(self.north, other.north) - south)

    def centres(self, per_metre: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the eastings and northings of the pixels' centres, at `per_metre` pixels per metre."""
        x = self.west + (np.arange(self.width * per_metre) + 0.5) / per_metre
        y = self.north - (np.arange(self.height * per_metre) + 0.5) / per_metre
        return x, y


def hashed(salt: int, *keys: np.ndarray) -> np.ndarray:
    """Return uint32 hashes of integers; the keys broadcast (MurmurHash3 without its tail)."""
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
    """Return hashes of integers as float32 in [0, 1)."""
    return (hashed(salt, *keys) >> np.uint32(8)).astype(np.float32) / 2**24


def pick(salt: int, count: int, *keys: np.ndarray) -> np.ndarray:
    """Return hashes of integers as int64 in [0, count)."""
    return (hashed(salt, *keys) % np.uint32(count)).astype(np.int64)


def waves(area: Area, per_metre: int, period: float, salt: int) -> np.ndarray:
    """Return smooth value noise in [0, 1] with a grid of `period` metres, (rows, cols) float32."""
    x, y = area.centres(per_metre)
    (left, right_share), (low, up_share) = _lattice(x, period), _lattice(y, period)
    columns = np.arange(left.min(), left.max() + 2)
    rows = np.arange(low.min(), low.max() + 2)
    corner = uniform(salt, columns[None, :], rows[:, None])
    low, left = low - rows[0], left - columns[0]
    lines = corner[low] + (corner[low + 1] - corner[low]) * up_share[:, None]
    return lines[:, left] + (lines[:, left + 1] - lines[:, left]) * right_share


def waves_at(x: np.ndarray, y: np.ndarray, period: float, salt: int) -> np.ndarray:
    """Return the noise of `waves` at points."""
    (left, right_share), (low, up_share) = _lattice(x, period), _lattice(y, period)
    upper, lower = (
        uniform(salt, left, row) * (1 - right_share) + uniform(salt, left + 1, row) * right_share
        for row in (low + 1, low)
    )
    return lower + (upper - lower) * up_share


def _lattice(position: np.ndarray, period: float) -> tuple[np.ndarray, np.ndarray]:
    scaled = np.asarray(position) / period
    cell = np.floor(scaled)
    share = (scaled - cell).astype(np.float32)
    return cell.astype(np.int64), share * share * (3 - 2 * share)


def quarter(x: np.ndarray, y: np.ndarray, side: float, salt: int) -> np.ndarray:
    """Return the int64 number of each point's quarter; quarters are Voronoi cells about `side` metres wide."""
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
