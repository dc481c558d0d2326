"""Ranges of the numbers that a user gives, the same for the command line, the service and Python.

Imports nothing but the standard library and constants, so that `jzi --help` starts fast.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

from jzi.errors import ConfigError
from jzi.store.info import MAX_IMAGE_SIZE


@dataclass(frozen=True)
class Range:
    """A range of finite numbers.

    Attributes:
        low: smallest value, or the bound that values exceed if `above`.
        high: greatest value.
        above: whether `low` itself is excluded.
        whole: whether only whole numbers are allowed.
        unit: name of the unit; empty for a number without.

    Example:
        >>> Range(0, 100, above=True).check("radius", 50.0)
        >>> str(Range(1, 8, whole=True))
        'a whole number from 1 to 8'
    """

    low: float
    high: float
    above: bool = False
    whole: bool = False
    unit: str = ""

    def __str__(self) -> str:
        number = f"a {'whole ' if self.whole else ''}number{f' of {self.unit}' if self.unit else ''}"
        low, high = (f"{value:,.15g}".replace(",", " ") for value in (self.low, self.high))
        return f"{number} {f'greater than {low} and at most' if self.above else f'from {low} to'} {high}"

    def __contains__(self, value: Any) -> bool:
        if isinstance(value, bool):
            return False
        try:
            number = operator.index(value) if self.whole else float(value)
        except (TypeError, ValueError, OverflowError):
            return False
        return (self.low < number if self.above else self.low <= number) and number <= self.high

    def check(self, name: str, *values: Any) -> None:
        """Raise an error unless all values lie in the range.

        Args:
            name: name of the values in the error.
            values: numbers of any type.

        Raises:
            ConfigError: a value is outside, not finite or no number.
        """
        for value in values:
            if isinstance(value, str) or value not in self:
                raise ConfigError(f"{name} must be {self}, not {value!s:.40}")


#: Distances in metres; no two places on the Earth are further apart than half of its circumference.
DISTANCE = Range(0, 20_037_508, above=True, unit="metres")

#: Side of a region's cells, metres (`jzi.store.geometry.bands`).
CELL = Range(1, 100_000, unit="metres")

#: Number of candidates of a photo.
CANDIDATES = Range(1, 1000, whole=True)

#: Tiles of each level that a beam search expands.
BEAMS = Range(1, 4096, whole=True)

#: Headings, and their standard deviations, degrees.
HEADING, HEADING_SD = Range(-360, 360, unit="degrees"), Range(0, 180, above=True, unit="degrees")

#: Confidences and shares.
SHARE = Range(0, 1)

#: Default share of photos from elsewhere, a choice: at one in five, photos of the demo's town keep nine tenths of their
#: confidence, those of other towns little more than half (medians; `python -m benchmarks.outside`).
ELSEWHERE = 0.2

#: Top speed of a drive, km/h: that of light aircraft.
SPEED_KMH = Range(0, 1000, above=True, unit="km/h")

#: Seconds between two photos of a drive, and since the first: 100 years.
SECONDS = Range(0, 3_155_760_000, unit="seconds")

#: Photos per forward pass.
BATCH = Range(1, 65_536, whole=True)

#: Resamples of a bootstrap.
RESAMPLES = Range(1, 1_000_000, whole=True)

#: Seeds of random numbers.
MAX_SEED = 2**31 - 1
SEED = Range(0, MAX_SEED, whole=True)

#: Sides of images in pixels.
PIXELS = Range(1, MAX_IMAGE_SIZE, whole=True, unit="pixels")

#: Number of cells, tiles or photos to rank.
RANKS = Range(1, 2**26, whole=True)

#: Photos of a report of single photos: it has about 0.1 MB for each, and browsers hold all of them.
CASES = Range(1, 500, whole=True)

#: Divisors of similarities in a softmax.
TEMPERATURE = Range(1e-6, 1e6)

#: Sides of a cell's reference crop, in cells.
CONTEXT = Range(1, 64)

#: Latitudes and longitudes in degrees.
LATITUDE, LONGITUDE = Range(-90, 90), Range(-180, 180)
