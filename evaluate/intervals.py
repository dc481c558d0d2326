"""Figures with 95 % intervals: Wilson's of shares, bootstrap intervals of others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Photos from which figures other than shares have an interval: the range of n values holds the true median with a
#: probability of 1 - 2^(1-n), which is 95 % from 6 on, and resamples of fewer lie in that range.
FEWEST = 6


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


def share_interval(hit: NDArray[np.bool_]) -> Interval:
    """The share of hits with Wilson's score interval, which a single photo or a share of 0 does not make empty.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", 1927.

    Args:
        hit: (photo,) at least one.

    Example:
        >>> share_interval(np.array([True]))
        Interval(value=1.0, low=0.206549, high=1.0)
    """
    count, value, z = len(hit), float(hit.mean()), 1.959964
    scale = 1 + z**2 / count
    middle = (value + z**2 / (2 * count)) / scale
    half = z / scale * math.sqrt(value * (1 - value) / count + z**2 / (4 * count**2))
    return Interval(value, round(max(0.0, middle - half), 6), round(min(1.0, middle + half), 6))


def median_interval(values: NDArray[np.float64], resamples: int, rng: np.random.Generator) -> Interval:
    """The median of positive values with its bootstrap interval; 0 to infinity for fewer than `FEWEST` values."""
    medians = [np.median(values[rng.integers(len(values), size=len(values))]) for _ in range(resamples)]
    return Interval.of_photos(float(np.median(values)), np.array(medians), len(values))
