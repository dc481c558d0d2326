"""Figures with 95 % intervals: Wilson's of shares, bootstrap intervals of others.

Photos of one drive or of one street are located well or badly together, so many of them show less than as many photos
from anywhere. Intervals count as many photos as there would be if they were independent (`effective_photos`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jzi.store.geometry.space import bucket, in_space

#: Photos from which figures other than shares have an interval: the range of n values holds the true median with a
#: probability of 1 - 2^(1-n), which is 95 % from 6 on, and resamples of fewer lie in that range.
FEWEST = 6

#: Side of the blocks within which photos may be alike, metres, and random positions of the blocks.
BLOCK_M, POSITIONS = 200.0, 64

#: Greatest share of the pairs of photos in one block that is corrected for: with more, nothing lies far apart.
GREATEST_SHARE = 0.9


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, resampled: NDArray[Any]) -> Interval:
        """From a figure and the (resample,) figures of resamples."""
        low, high = np.percentile(resampled, (2.5, 97.5))
        return cls(value, float(low), float(high))

    @classmethod
    def of_photos(
        cls,
        value: float,
        resampled: NDArray[Any],
        photos: int,
        bounds: tuple[float, float] = (0.0, math.inf),
    ) -> Interval:
        """From a figure of some photos and the (resample,) figures of resamples; `bounds` for fewer than `FEWEST`.

        A single photo would have an empty interval, as all resamples of it are equal.
        """
        return cls(value, *bounds) if photos < FEWEST else cls.of(value, resampled)


def effective_photos(latitude: NDArray[np.float64], longitude: NDArray[np.float64], error: NDArray[Any]) -> float:
    """The number of independent photos that would show as much as these, of which neighbours may be alike.

    It is the variance that independent photos would have over that of the share of errors up to the median, times their
    number. The variance is that of the sums over blocks of the map, a mean over random positions of the blocks: pairs
    of photos count less the farther they are apart, and not at all beyond the side of a block. Sources: Conley, "GMM
    estimation with cross sectional dependence", 1999; for its use in Wilson's interval, Korn and Graubard, "Confidence
    intervals for proportions with small expected number of positive counts estimated from survey data", 1998.

    Args:
        latitude: (photo,) degrees (WGS 84).
        longitude: (photo,) degrees.
        error: (photo,) of any unit; only whether it is more than the median matters.

    Returns:
        1 to the number of photos; that number where all errors are equal.
    """
    low = error <= np.median(error)
    count, variance = len(low), float(low.mean() * (1 - low.mean()))
    if variance == 0:
        return float(count)
    position, rng = in_space(latitude, longitude), np.random.default_rng(0)
    sums = pairs = 0.0
    for corner in rng.uniform(0, BLOCK_M, (POSITIONS, 3)):
        cube = np.floor((position + corner) / BLOCK_M).astype(np.int64)
        _, block = np.unique(bucket(cube), return_inverse=True)
        sums += float(np.square(np.bincount(block, low - low.mean())).sum()) / POSITIONS
        pairs += float(np.square(np.bincount(block)).sum() - count) / POSITIONS
    share = min(pairs / (count * (count - 1)), GREATEST_SHARE)  # these sum to less because all sum to zero
    return count / min(max(1.0, sums / (count * variance) / (1 - share)), count)


def share_interval(hit: NDArray[np.bool_], effective: float | None = None) -> Interval:
    """The share of hits with Wilson's score interval, which a single photo or a share of 0 does not make empty.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", 1927.

    Args:
        hit: (photo,) at least one.
        effective: number of independent photos that they count as; all by default.

    Example:
        >>> share_interval(np.array([True]))
        Interval(value=1.0, low=0.206549, high=1.0)
    """
    count, value, z = effective or len(hit), float(hit.mean()), 1.959964
    scale = 1 + z**2 / count
    middle = (value + z**2 / (2 * count)) / scale
    half = z / scale * math.sqrt(value * (1 - value) / count + z**2 / (4 * count**2))
    return Interval(value, round(max(0.0, middle - half), 6), round(min(1.0, middle + half), 6))


def median_interval(
    values: NDArray[np.float64], resamples: int, rng: np.random.Generator, effective: float | None = None
) -> Interval:
    """The median of positive values with its bootstrap interval; 0 to infinity for fewer than `FEWEST` values.

    Args:
        values: (photo,) at least one.
        resamples: number of resamples.
        rng: source of the resamples.
        effective: number of independent photos that the values count as, and size of a resample; all by default.
    """
    size = round(effective or len(values))
    medians = [np.median(values[rng.integers(len(values), size=size)]) for _ in range(resamples)]
    return Interval.of_photos(float(np.median(values)), np.array(medians), len(values))
