"""Fusion of the windows of a photo's candidates with the front end that proposed them.

The probability of a candidate, pi_t, is proportional to exp(w1 s_t + w2 m_t): s_t is the front end's score (the
logarithm of its probability, or a similarity), m_t the greatest match of level 0 in the candidate's window. The
candidates share the probability that the front end gives to the ground of their windows; the rest is left as it is.

Ground in several windows belongs to the nearest one. The probability of a pixel is that of its window's candidate times
the window's density there; all of them are normalised together, so that a window whose density lies in another's
ground loses weight. Where windows do not overlap, a candidate's probability is pi_t.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jzi.locate.joint.fusion import CLEAR, maximise
from jzi.refine.windows.window import Windows

_Floats = NDArray[np.float64]

#: Least share of a window's density in its own ground, so that no likelihood is 0.
LEAST_KEPT = 1e-6


@dataclass(frozen=True)
class RankWeights:
    """Weights of the two scores of a candidate.

    Attributes:
        prior: w1, of the front end's score.
        match: w2, of the greatest match in the window; 0 if it was no gain on validation photos.
        gain: increase of the log-likelihood per photo over the unchanged probabilities, and its standard error.
        photos: number of validation photos that were taken in one of their windows.
    """

    prior: float = 1.0
    match: float = 0.0
    gain: tuple[float, float] = (0.0, 0.0)
    photos: int = 0


#: Equation 4 of the paper: the similarity of retrieval plus the greatest match, in the order of which candidates rank.
PAPER = RankWeights(1.0, 1.0)


def rank(score: _Floats, match: _Floats, probability: _Floats, weights: RankWeights) -> _Floats:
    """(..., candidate) probabilities pi_t; their sum is that of `probability`.

    Args:
        score: (..., candidate) the front end's score s_t; -inf for no candidate.
        match: (..., candidate) greatest match of level 0; ignored if the weight is 0.
        probability: (..., candidate) the front end's probability of the ground of the candidates' windows.
        weights: the weights.
    """
    logit = _times(weights.prior, score) + _times(weights.match, match)
    logit = np.where(np.isneginf(score), -np.inf, logit)
    greatest = logit.max(-1, keepdims=True)
    share = np.exp(logit - np.where(np.isfinite(greatest), greatest, 0.0))
    total = share.sum(-1, keepdims=True)
    return np.asarray(probability.sum(-1, keepdims=True) * share / np.where(total > 0, total, 1.0))


def _times(weight: float, values: _Floats) -> _Floats:
    return weight * values if weight else np.zeros(np.shape(values))


def fit(score: _Floats, match: _Floats, truth: NDArray[np.int64], kept: _Floats | None = None) -> RankWeights:
    """The weights with the greatest likelihood of the true candidates (conditional logit); (1, 0) without clear gain.

    A gain is clear if it exceeds zero by `CLEAR` standard errors over the photos, as in `jzi.locate.joint.fusion`.

    Args:
        score: (photo, candidate) as for `rank`.
        match: (photo, candidate) as for `rank`.
        truth: (photo,) index of the candidate in whose ground the photo was taken; -1 leaves the photo out.
        kept: (photo, candidate) share of each window's density that lies in its own ground; all of it by default.
    """
    photo = np.flatnonzero(truth >= 0)
    photo = photo[np.isfinite(score[photo, truth[photo]])]
    if len(photo) < 2:
        return RankWeights(photos=len(photo))
    valid = np.isfinite(score[photo])
    features = torch.from_numpy(np.where(valid, np.stack([score[photo], match[photo]]), 0.0))  # (2, photo, candidate)
    offset = np.zeros(valid.shape) if kept is None else np.log(np.maximum(kept[photo], LEAST_KEPT))
    base = torch.from_numpy(np.where(valid, offset, -np.inf))
    photos, at = torch.arange(len(photo)), torch.from_numpy(truth[photo])

    def likelihood(weights: Tensor) -> Tensor:
        logit = torch.einsum("e,epc->pc", weights, features) + base
        return (logit - logit.logsumexp(-1, keepdim=True))[photos, at]

    both = maximise(features, base, features[:, photos, at])
    alone = torch.zeros_like(both)
    alone[:1] = maximise(features[:1], base, features[:1, photos, at])
    unchanged = torch.tensor([1.0, 0.0], dtype=both.dtype)
    gains = [likelihood(both) - likelihood(each) for each in (alone, unchanged)]
    means = [(float(gain.mean()), float(gain.std() / len(photo) ** 0.5)) for gain in gains]
    clear = all(mean > CLEAR * error for mean, error in means)
    prior, weight = (float(each) for each in (both if clear else unchanged))
    return RankWeights(prior, weight, means[0], len(photo))


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


def combine(
    density: _Floats, mask: NDArray[np.bool_], windows: Windows, probability: _Floats, share: _Floats
) -> _Floats:
    """(window, row, col) probabilities of pixels, normalised together, so that no ground counts twice.

    Args:
        density: (window, row, col) with sum 1 in each window that has imagery.
        mask: (window, row, col) where the photo may have been taken: where there is imagery.
        windows: the windows.
        probability: (window,) the front end's probability of the ground of the windows; the result has the same sum.
        share: (window,) probabilities pi_t.
    """
    own = np.zeros_like(mask)
    used = np.flatnonzero(mask.any((1, 2)))
    own[used] = owned(windows.select(used)) & mask[used] if len(used) else False
    result = density * own * share[:, None, None]
    if not result.sum() > 0:  # every density lies in the ground of others
        result = own * share[:, None, None] * 1.0
    total = result.sum()
    return np.asarray(result * (probability.sum() / total) if total > 0 else np.zeros_like(density))
