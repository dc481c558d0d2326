"""Figures with 95 % bootstrap intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, resampled: NDArray[Any]) -> Interval:
        """From a figure and the (resample,) figures of resamples."""
        low, high = np.percentile(resampled, (2.5, 97.5))
        return cls(value, float(low), float(high))


def share_interval(hit: NDArray[np.bool_], resamples: int, rng: np.random.Generator) -> Interval:
    """The share of hits; resampling hits and misses draws their number from a binomial distribution."""
    return Interval.of(float(hit.mean()), rng.binomial(len(hit), hit.mean(), resamples) / len(hit))
