"""Figures in metres of refined positions: recall within 1 to 10 m, coverage of regions, likelihood, heading."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jzi.evaluate.intervals import Interval, share_interval
from jzi.evaluate.metrics import check_bootstrap, error_intervals

#: Radii of recall, metres; published results have 1 and 10.
RADII = (1.0, 3.0, 5.0, 10.0)

#: Shares of the probability whose circles are checked.
SHARES = (0.68, 0.95)

#: Held-out photos nearer than this to a training photo are left out of figures in metres.
DUPLICATE_M = 5.0

#: Least density at a true place in the log-likelihood, per square metre.
TINY = 1e-12


@dataclass(frozen=True)
class Metres:
    """Distances from the true positions to answers.

    Attributes:
        recall: radius in metres to the share of photos whose answer lies within it.
        mean: mean distance, metres.
        median: median distance, metres.
    """

    recall: dict[float, Interval]
    mean: Interval
    median: Interval

    @classmethod
    def of(
        cls, error: NDArray[np.float64], resamples: int = 1000, seed: int = 0, effective: float | None = None
    ) -> Metres:
        """From the distances of photos, with 95 % intervals.

        Args:
            error: (photo,) metres.
            resamples: number of bootstrap resamples.
            seed: of the resamples.
            effective: number of independent photos that they count as; all by default.

        Raises:
            ConfigError: the number of resamples or the seed is out of range.
        """
        check_bootstrap(RADII, resamples, seed)
        rng = np.random.default_rng(seed)
        recall, median = error_intervals(error, RADII, resamples, rng, effective)
        means = error[rng.integers(len(error), size=(resamples, round(effective or len(error))))].mean(1)
        return cls(recall, Interval.of_photos(float(error.mean()), means, len(error)), median)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        recall = {f"recall@{radius:g}m": asdict(interval) for radius, interval in self.recall.items()}
        return {**recall, "mean_error_m": asdict(self.mean), "median_error_m": asdict(self.median)}


@dataclass(frozen=True)
class MetreFigures:
    """Accuracy and calibration of refined answers.

    Attributes:
        photos: number of photos.
        effective_photos: number of independent photos that intervals count them as (`jzi.evaluate.intervals`).
        duplicates: photos of the split left out because they were taken within 5 m of a training photo.
        not_refined: photos without a refined answer, whose answer is that of the front end.
        control: "" or what photos were replaced with, "black" or "shuffled".
        before: answers of the front end.
        unranked: refined answers without the weight of the greatest match.
        after: refined answers.
        heading_error: median error of the headings, degrees; None if none is known.
        headings: photos whose heading is known and was estimated.
        coverage: share of the probability to the share of photos within that circle around their answer.
        nll_before: mean negative log-likelihood of the true places by the front end's cells, nats per square metre.
        nll_after: the same of the refined density.
        error: (photo,) distances from the true places to the answers after, metres.
    """

    photos: int
    effective_photos: float
    duplicates: int
    not_refined: int
    control: str
    before: Metres
    unranked: Metres
    after: Metres
    heading_error: Interval | None
    headings: int
    coverage: dict[float, Interval]
    nll_before: float
    nll_after: float
    error: NDArray[np.float64] = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "photos": self.photos,
            "effective_photos": self.effective_photos,
            "duplicates": self.duplicates,
            "not_refined": self.not_refined,
            "control": self.control,
            "before": self.before.to_dict(),
            "unranked": self.unranked.to_dict(),
            "after": self.after.to_dict(),
            "heading_error_deg": self.heading_error and asdict(self.heading_error),
            "headings": self.headings,
            **{f"coverage_{100 * share:.0f}": asdict(each) for share, each in self.coverage.items()},
            "nll_before": self.nll_before,
            "nll_after": self.nll_after,
        }


def heading_difference(one_deg: NDArray[np.float64], other_deg: NDArray[np.float64]) -> NDArray[np.float64]:
    """Angle between directions, 0..180 degrees."""
    return np.asarray(abs((one_deg - other_deg + 180) % 360 - 180))


def median_heading(values: NDArray[np.float64], resamples: int = 1000, seed: int = 0) -> Interval | None:
    """Median of angles of 0 to 180 degrees with a bootstrap interval; None if there is no value."""
    if not len(values):
        return None
    rng = np.random.default_rng(seed)
    drawn = np.median(values[rng.integers(len(values), size=(resamples, len(values)))], 1)
    return Interval.of_photos(float(np.median(values)), drawn, len(values), (0.0, 180.0))


def covered(error: NDArray[np.float64], radius: NDArray[np.float64], effective: float | None = None) -> Interval:
    """Share of photos whose true position lies within a radius of their answer, with Wilson's interval.

    Args:
        error: (photo,) metres.
        radius: (photo,) metres; inf counts as covered.
        effective: number of independent photos that they count as; all by default.
    """
    return share_interval(error <= radius, effective)


def constant_error(offset_m: NDArray[np.float64], steps: int = 41) -> NDArray[np.float64]:
    """Distances to the constant guess with the least median: the same place in every window, whatever the photo.

    Args:
        offset_m: (photo, 2) places of the photos in their windows, metres from the centre.
        steps: places that are tried along a side.

    Returns:
        (photo,) metres.
    """
    low, high = offset_m.min(0), offset_m.max(0)
    grid = np.stack(np.meshgrid(*np.linspace(low, high, steps).T), -1).reshape(-1, 2)
    distance = np.hypot(*(offset_m[None] - grid[:, None]).transpose(2, 0, 1))
    return np.asarray(distance[np.median(distance, 1).argmin()])


def gain_over(
    error: NDArray[np.float64], constant: NDArray[np.float64], resamples: int = 1000, seed: int = 0
) -> Interval:
    """By how much the median error is less than that of another answer to the same photos, with a paired bootstrap.

    Args:
        error: (photo,) metres.
        constant: (photo,) metres, of the other answer.
        resamples: number of resamples.
        seed: of the resamples.
    """
    index = np.random.default_rng(seed).integers(len(error), size=(resamples, len(error)))
    drawn = np.median(constant[index], 1) - np.median(error[index], 1)
    gain = float(np.median(constant) - np.median(error))
    return Interval.of_photos(gain, drawn, len(error), (-math.inf, math.inf))
