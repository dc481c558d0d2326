"""Distributions of headings: over the rolls of a photo's descriptor, with their mean, deviation and peaks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from jzi.locate.answer.fix import HeadingPeak
from jzi.refine.outputs import RefinerOutput
from jzi.refine.windows.window import wrap

_Floats = NDArray[np.float64]

#: Least share of the probability of a peak, and the share of the lower one of two peaks below which the distribution
#: must fall between them.
LEAST_PEAK, VALLEY = 0.1, 0.5

#: Windows whose maps of all rolls are normalised at once.
BATCH = 16


@dataclass(frozen=True)
class Heading:
    """A distribution of headings, azimuths in degrees clockwise from the same north as its bins.

    Attributes:
        mean_deg: mean of the most probable peak; of the whole distribution if it has one peak.
        sd_deg: circular standard deviation of the whole distribution, at most 180.
        peaks: of the distribution, apart from each other, the most probable first.
    """

    mean_deg: float
    sd_deg: float
    peaks: tuple[HeadingPeak, ...]


def to_headings(output: RefinerOutput, density: _Floats, temperature: float) -> _Floats:
    """(n, R) probabilities of rolls: sum_x D(x) softmax_r(M_r(x) / T_h), with M of the finest level.

    Args:
        output: of a refiner, with its log prior of the rolls.
        density: (n, P, P) probabilities of pixels, with sum 1, such as those of windows put together
            (`jzi.refine.windows.fuse.combine`); nan results where the sum is 0.
        temperature: T_h.
    """
    parts = []
    matches = output.levels[-1]
    pooled = torch.from_numpy(pool_sums(density, matches.shape[-1]))
    for part in torch.arange(len(matches)).split(BATCH):
        prior = output.log_heading[part].detach().double().cpu()[..., None, None]
        scores = matches[part].detach().double().cpu() / temperature + prior
        parts.append((scores.softmax(1) * pooled[part, None]).sum((-1, -2)))
    probability = torch.cat(parts).numpy() if parts else np.empty((0, matches.shape[1]))
    with np.errstate(invalid="ignore"):
        return np.asarray(probability / probability.sum(1, keepdims=True))


def pool_sums(density: _Floats, side: int) -> _Floats:
    """(n, side, side) sums of (n, P, P) probabilities over the pixels whose centres lie in each cell."""
    pixels = density.shape[-1]
    first = np.ceil(np.arange(side) * pixels / side - 0.5).astype(int)
    if pixels < side or len(np.unique(first)) < side:
        raise ValueError(f"{pixels} pixels cannot be divided among {side} cells")
    return np.asarray(np.add.reduceat(np.add.reduceat(density, first, axis=-2), first, axis=-1))


def summarize(probability: _Floats) -> Heading:
    """Mean, deviation and peaks of a distribution over bins of equal width; bin r is centred on 360 r / R degrees.

    Args:
        probability: (R,) with sum 1.
    """
    bins = np.arange(len(probability)) * 360 / len(probability)
    mean, sd = _mean_and_sd(bins, probability)
    peaks = _peaks(bins, probability)
    return Heading(peaks[0].heading_deg if len(peaks) > 1 else mean, sd, peaks)


def _mean_and_sd(bins: _Floats, weight: _Floats) -> tuple[float, float]:
    """Mean direction, 0..360 degrees, and circular standard deviation: at least that within a bin, at most 180."""
    angle, total = np.radians(bins), weight.sum()
    east, north = weight @ np.sin(angle) / total, weight @ np.cos(angle) / total
    length = min(1.0, max(1e-9, math.hypot(east, north)))
    least = 360 / len(bins) / math.sqrt(12)
    sd = min(180.0, max(least, math.degrees(math.sqrt(-2 * math.log(length)))))
    return float(wrap(math.degrees(math.atan2(east, north)))), sd


def _peaks(bins: _Floats, probability: _Floats) -> tuple[HeadingPeak, ...]:
    """Peaks of a smoothed distribution, apart from each other, with the probability of the bins nearest to them."""
    smooth = (np.roll(probability, 1) + 2 * probability + np.roll(probability, -1)) / 4
    index: list[int] = np.flatnonzero((smooth >= np.roll(smooth, 1)) & (smooth > np.roll(smooth, -1))).tolist()
    while len(index) > 1:
        unclear = [
            pair
            for pair in zip(index, index[1:] + index[:1], strict=True)
            if _lowest_between(smooth, *pair) > VALLEY * min(smooth[pair[0]], smooth[pair[1]])
        ]
        if not unclear:
            break
        lowest = min(unclear, key=lambda pair: min(smooth[pair[0]], smooth[pair[1]]))
        index.remove(min(lowest, key=lambda each: smooth[each]))
    if not index:  # uniform
        return (HeadingPeak(*_mean_and_sd(bins, probability), 1.0),)
    count = len(bins)
    distance = abs((np.arange(count)[:, None] - np.array(index) + count // 2) % count - count // 2)
    owner = distance.argmin(1)
    found = []
    for peak in range(len(index)):
        weight = np.where(owner == peak, probability, 0.0)
        if weight.sum() > 0:
            found.append(HeadingPeak(*_mean_and_sd(bins, weight), float(weight.sum())))
    found.sort(key=lambda each: -each.probability)
    return tuple(each for rank, each in enumerate(found) if rank == 0 or each.probability >= LEAST_PEAK)


def _lowest_between(values: _Floats, start: int, stop: int) -> float:
    """Least value of a circle between two of its bins, from `start` upwards."""
    count = len(values)
    between = np.arange(start, start + (stop - start) % count + (count if start == stop else 0) + 1) % count
    return float(values[between].min())
