"""Fusion of the windows of a photo's candidates with the front end that proposed them.

The logarithm of a pixel's probability is a sum of three, each times its weight: of the logarithm of the front end's
probability of the pixel's ground, of that of the refiner's density in the window that owns the ground, and of the
greatest match of level 0 in that window. All windows of a photo are normalised together, to the probability that the
front end gives to their ground; the rest is left as it is. Ground in several windows belongs to the nearest one.

The weights are fitted on validation photos. With those of `UNCHANGED` the probabilities are the front end's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jzi.locate.joint.fusion_weights import maximise
from jzi.locate.joint.gain import is_clear, mean_and_error
from jzi.refine.windows.window import Windows

_Floats = NDArray[np.float64]

#: Pixels are pooled for the fit whose log-probabilities fall into the same bins, nats wide. The variance within a bin,
#: 0.005, is what the logarithm of a sum is off by.
BIN = 0.25

#: Greatest weight: where the refiner is right about every photo of the fit, the likelihood has no maximum.
GREATEST = 1000.0


#: Fewest photos that weights are fitted on: fewer have no standard error.
MIN_PHOTOS = 2


class WindowWeights(NamedTuple):
    """Weights of the three logarithms.

    Attributes:
        prior: of the front end's probability.
        density: of the refiner's density in a window; 0 if it was no gain on validation photos.
        match: of the greatest match in a window; likewise.
    """

    prior: float = 1.0
    density: float = 1.0
    match: float = 0.0

    @property
    def refines(self) -> bool:
        """Whether the refiner counts at all."""
        return self.density > 0 or self.match > 0


#: The front end's probabilities.
UNCHANGED = WindowWeights(1.0, 0.0, 0.0)


@dataclass(frozen=True)
class FittedWeights:
    """Weights fitted on validation photos.

    Attributes:
        weights: `UNCHANGED` without a clear gain.
        gain: increase of the log-likelihood per photo by the refiner, and its standard error.
        photos: number of validation photos that were taken in one of their windows.
        median_m: median error of the answers without and with the refiner, metres; None if it has no clear gain.
    """

    weights: WindowWeights = UNCHANGED
    gain: tuple[float, float] = (0.0, 0.0)
    photos: int = 0
    median_m: tuple[float, float] | None = None

    def measured(self, before: float, after: float) -> FittedWeights:
        """With the median errors; without weights if the refiner's is the larger one."""
        weights = self.weights if after <= before else UNCHANGED
        return replace(self, weights=weights, median_m=(before, after))


@dataclass(frozen=True, eq=False)
class PixelFeatures:
    """What the pixels of the windows of a photo are weighed by.

    Attributes:
        log_prior: (t, P, P) the front end's; -inf where it excludes the photo.
        log_density: (t, P, P) the refiner's, of each window alone, of which a share is spread evenly, so that it
            excludes no pixel with imagery; -inf without imagery.
        match: (t,) greatest match of level 0.
        own: (t, P, P) whether the window owns the pixel, and the photo may have been taken there.
    """

    log_prior: _Floats
    log_density: _Floats
    match: _Floats
    own: NDArray[np.bool_]

    def at(self, window: int, row: int, col: int) -> _Floats:
        """(3,) the logarithms of a pixel."""
        index = window, row, col
        return np.array([self.log_prior[index], self.log_density[index], self.match[window]])

    def pooled(self) -> _Floats:
        """(4, entry) means of the three logarithms over pixels with about the same, and the log of their number."""
        window, row, col = np.nonzero(self.own)
        prior, density = self.log_prior[window, row, col], self.log_density[window, row, col]
        if not len(window):
            return np.empty((4, 0))
        bins = [window]
        for values in (prior, density):
            bins.append(np.floor((values - values.min()) / BIN).astype(np.int64))
        key = np.ravel_multi_index(bins, [int(each.max()) + 1 for each in bins])
        _, entry, count = np.unique(key, return_inverse=True, return_counts=True)
        means = [np.bincount(entry, each) / count for each in (prior, density, self.match[window])]
        return np.stack([*means, np.log(count)])


def owned(windows: Windows) -> NDArray[np.bool_]:
    """(window, row, col) whether the window is the nearest one, by its centre, of those that contain the pixel."""
    count, side = len(windows), windows.pixels
    centres = np.arange(side) + 0.5
    u, v = np.meshgrid(centres, centres)
    result = np.ones((count, side, side), bool)
    reach = windows.side_m * windows.scale
    for one in range(count):
        x, y = windows[one].pixels_to_crs(u, v)
        distance = np.hypot(x - windows.x[one], y - windows.y[one])
        for other in range(count):
            dx, dy = abs(x - windows.x[other]), abs(y - windows.y[other])
            apart = max(abs(windows.x[one] - windows.x[other]), abs(windows.y[one] - windows.y[other]))
            if other == one or apart >= (reach[one] + reach[other]) / 2:
                continue
            to_other = np.hypot(dx, dy)
            nearer = to_other < distance if other > one else to_other <= distance
            result[one] &= ~(nearer & (np.maximum(dx, dy) <= reach[other] / 2))
    return result


def own_ground(windows: Windows, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(window, row, col) pixels of a mask that the window owns; windows without any pixel in the mask own nothing.

    Args:
        windows: the windows.
        mask: (window, row, col) where the photo may have been taken.
    """
    own, used = np.zeros_like(mask), np.flatnonzero(mask.any((1, 2)))
    if len(used):
        own[used] = owned(windows.select(used)) & mask[used]
    return own


def combine(features: PixelFeatures, probability: float, weights: WindowWeights) -> _Floats:
    """(t, P, P) probabilities of pixels, normalised together, so that no ground counts twice.

    Args:
        features: of the pixels.
        probability: the front end's, of the ground of all windows, which the result sums to; 0 if they own none.
        weights: the weights.
    """
    result = np.zeros(features.own.shape)
    if not features.own.any():
        return result
    window = np.nonzero(features.own)[0]
    logarithms = features.log_prior[features.own], features.log_density[features.own], features.match[window]
    logit = sum(weight * each for weight, each in zip(weights, logarithms, strict=True) if weight)
    share = np.exp(logit - np.max(logit)) * np.ones(len(window))  # without any weight, all pixels are alike
    result[features.own] = probability * share / share.sum()
    return result


def fit(truth: Sequence[_Floats], pooled: Sequence[_Floats]) -> FittedWeights:
    """The weights with the greatest likelihood of the true pixels (conditional logit), 0 or more.

    Does no harm, as the fusion of experts (`jzi.locate.joint.fusion_weights.FusionFit`): a part of the refiner whose
    gain is not clear (`jzi.locate.joint.gain`) gets no weight, and without any the front end stays as it is.

    Args:
        truth: (photo,) of `PixelFeatures.at` of the true pixels, of photos that were taken in their windows.
        pooled: (photo,) of `PixelFeatures.pooled`.
    """
    photos = len(truth)
    if photos < MIN_PHOTOS:
        return FittedWeights(photos=photos)
    entries = max(each.shape[1] for each in pooled)
    features, base = torch.zeros(3, photos, entries, dtype=torch.float64), torch.full((photos, entries), -torch.inf)
    base = base.double()
    for photo, each in enumerate(pooled):
        features[:, photo, : each.shape[1]] = torch.from_numpy(each[:3])
        base[photo, : each.shape[1]] = torch.from_numpy(each[3])
    values = torch.from_numpy(np.stack(truth, 1))  # (3, photo)

    def likelihood(weights: Tensor) -> Tensor:
        logit = torch.einsum("e,epc->pc", weights, features) + base
        return weights @ values - logit.logsumexp(-1)

    def fitted(parts: Sequence[int]) -> Tensor:
        used = list(parts)
        weights = torch.zeros(3, dtype=torch.float64)
        weights[used] = maximise(features[used], base, values[used]).clamp(max=GREATEST)
        return weights

    used, gain = _clear_parts(lambda parts: likelihood(fitted(parts)))
    weights = fitted(used)
    over_front_end = likelihood(weights) - likelihood(torch.tensor(UNCHANGED, dtype=torch.float64))
    if used == [0] or not is_clear(*mean_and_error(over_front_end)):
        return FittedWeights(UNCHANGED, gain, photos)
    return FittedWeights(WindowWeights(*weights.tolist()), gain, photos)


def _clear_parts(likelihood: Callable[[Sequence[int]], Tensor]) -> tuple[list[int], tuple[float, float]]:
    """The parts with a clear gain, of which 0 is the front end, and the gain of those of the refiner together."""
    used = [0, 1, 2]
    gain = mean_and_error(likelihood(used) - likelihood([0]))
    while len(used) > 1:
        gains = {
            part: mean_and_error(likelihood(used) - likelihood([each for each in used if each != part]))
            for part in used[1:]
        }
        unclear = {part: mean for part, (mean, error) in gains.items() if not is_clear(mean, error)}
        if not unclear:
            break
        used.remove(min(unclear, key=unclear.__getitem__))
        if len(used) > 1:
            gain = mean_and_error(likelihood(used) - likelihood([0]))
    return used, gain
