"""Fusion of a judge's scores with the front end's probabilities.

Among the candidates that were compared, p_i is proportional to exp(a log P_i + b theta_i), and their sum is kept: the
probability of everything else is left as it is. The weights a, b >= 0 have the greatest likelihood of the true
candidates of validation photos (conditional logit), and b is 0 unless it is a clear gain there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

_Floats = NDArray[np.float64]
_Weight = Annotated[float, Field(ge=0, le=1e6)]
_Gain = Annotated[float, Field(ge=-1e6, le=1e6)]

#: Fewest photos that weights are fitted on.
LEAST_PHOTOS = 100

#: Bounds of the temperature of log-odds.
TEMPERATURES = (0.1, 20.0)

#: Weight of the squares of a and b, so that a judge without any error has finite weights.
_RIDGE = 1e-3

_TOLERANCE, _STEPS, _RESAMPLES = 1e-10, 500, 1000


@dataclass(frozen=True)
class Weights:
    """Weights of the front end and of the judge.

    Attributes:
        temperature: divisor of the log-odds of pairs, see `fit_temperature`.
        prior: a, of the logarithm of the front end's probability.
        judge: b, of theta; 0 if it was no clear gain on validation photos.
        gain: what the judge adds to the log-likelihood per photo, and its 95 % bootstrap interval.
        photos: number of validation photos that the weights were fitted on.
        calibrated: whether they were fitted; if not, they are a guess.
    """

    temperature: Annotated[float, Field(ge=TEMPERATURES[0], le=TEMPERATURES[1])] = 1.0
    prior: _Weight = 1.0
    judge: _Weight = 0.5
    gain: tuple[_Gain, _Gain, _Gain] = (0.0, 0.0, 0.0)
    photos: Annotated[int, Field(ge=0, le=10**9)] = 0
    calibrated: bool = False


#: The judge's order alone.
PURE = Weights(prior=0.0, judge=1.0)


@dataclass(frozen=True, eq=False)
class LabelledScores:
    """A validation photo.

    Attributes:
        probability: (k,) the front end's probabilities of the candidates.
        theta: (k,) the judge's scores; nan of candidates that it was not shown.
        truth: index of the candidate where the photo was taken; -1 for none.
    """

    probability: _Floats
    theta: _Floats
    truth: int


def fuse(probability: _Floats, theta: _Floats, rest: float, weights: Weights) -> _Floats:
    """(k,) fused probabilities, with the sum 1 - rest.

    A candidate that was not shown to the judge keeps its probability; the others share theirs anew.

    Args:
        probability: (k,) the front end's probabilities of the candidates, up to a factor.
        theta: (k,) the judge's scores; nan of candidates that were not shown.
        rest: probability of everything but the candidates.
        weights: the weights.
    """
    total = probability.sum()
    result = np.asarray(probability * ((1 - rest) / total) if total > 0 else np.zeros(len(probability)), np.float64)
    shown = ~np.isnan(theta) & (result > 0)
    if not shown.any():
        return result
    logit = weights.prior * np.log(result[shown]) + weights.judge * theta[shown]
    share = np.exp(logit - logit.max())
    result[shown] = result[shown].sum() * share / share.sum()
    return result


def reorder(probability: _Floats, theta: _Floats, weights: Weights) -> tuple[_Floats, NDArray[np.int64]]:
    """Fused probabilities of candidates, with the same sum, and the candidates in their order.

    Args:
        probability: (k,) the front end's probabilities.
        theta: (k,) the judge's scores; nan of candidates that were not shown, which keep probability and rank.
        weights: the weights.

    Returns:
        (k,) probabilities, in the front end's order, and (k,) indices of candidates, the first place first.
    """
    fused = fuse(probability, theta, 1 - probability.sum(), weights)
    judged, order = np.flatnonzero(~np.isnan(theta)), np.arange(len(theta))
    order[judged] = judged[np.argsort(-fused[judged], kind="stable")]
    return fused, order


def fit(rows: Iterable[LabelledScores], temperature: float = 1.0, seed: int = 0) -> Weights:
    """The weights with the greatest likelihood of the true candidates; those of `Weights()` from too few photos.

    The judge's weight is 0, and the front end's 1, unless the bootstrap interval of the gain in log-likelihood lies
    above 0: the gain over the front end as it is, and over the front end with the best weight of its own.

    Args:
        rows: validation photos; those whose true candidate the judge was not shown are left out.
        temperature: the one that the scores were computed with.
        seed: of the bootstrap.
    """
    usable = [row for row in map(_shown, rows) if row]
    if len(usable) < LEAST_PHOTOS:
        return Weights(photos=len(usable))
    features = np.zeros((2, len(usable), max(len(row.theta) for row in usable)))
    valid = np.zeros(features.shape[1:], bool)
    for number, row in enumerate(usable):
        features[:, number, : len(row.theta)] = np.log(row.probability), row.theta
        valid[number, : len(row.theta)] = True
    truth = np.array([row.truth for row in usable])

    both, alone = _fit_positive(features, valid, truth), _maximise(features[:1], valid, truth)
    fused = _likelihood(both, features, valid, truth)
    rng = np.random.default_rng(seed)
    unchanged = _likelihood(np.array([1.0, 0.0]), features, valid, truth)
    rescaled = _likelihood(alone, features[:1], valid, truth)
    gain = min((_interval(fused - each, rng) for each in (unchanged, rescaled)), key=lambda each: each[1])
    weights = Weights(temperature, 1.0, 0.0, gain, len(usable), calibrated=True)
    if gain[1] <= 0:
        return weights
    return replace(weights, prior=float(both[0]), judge=float(both[1]))


def fit_temperature(log_odds: _Floats) -> float:
    """The divisor T with the greatest likelihood of preferring the true candidate, s(d / T); within `TEMPERATURES`.

    Args:
        log_odds: (comparison,) debiased log-odds d of true candidates over others, of validation photos; 1 for none.
    """
    if not len(log_odds):
        return 1.0
    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    for _ in range(60):  # bisection in 1 / T, in which the likelihood is concave
        middle = (low + high) / 2
        slope = (log_odds * 0.5 * (1 - np.tanh(middle * log_odds / 2))).sum()
        low, high = (middle, high) if slope > 0 else (low, middle)
    return float(np.clip(2 / (low + high), *TEMPERATURES))


def _shown(row: LabelledScores) -> LabelledScores | None:
    """The candidates among which the probability is shared anew; None if the true one is not among several."""
    shown = ~np.isnan(row.theta) & (row.probability > 0)
    if row.truth < 0 or not shown[row.truth] or shown.sum() < 2:
        return None
    return LabelledScores(row.probability[shown], row.theta[shown], int(shown[: row.truth].sum()))


def _likelihood(weights: _Floats, features: _Floats, valid: NDArray[np.bool_], truth: NDArray[np.int64]) -> _Floats:
    """(photo,) log-probability of the true candidate."""
    probability = _choice(weights, features, valid)
    return np.log(np.maximum(probability[np.arange(len(truth)), truth], 1e-300))


def _choice(weights: _Floats, features: _Floats, valid: NDArray[np.bool_]) -> _Floats:
    """(photo, candidate) probabilities of the conditional logit."""
    logit = np.where(valid, np.tensordot(weights, features, 1), -np.inf)
    share = np.exp(logit - logit.max(-1, keepdims=True))
    return share / share.sum(-1, keepdims=True)


def _fit_positive(features: _Floats, valid: NDArray[np.bool_], truth: NDArray[np.int64]) -> _Floats:
    """The weights >= 0 with the greatest likelihood: the best of those with each set of weights at 0."""
    best = np.zeros(2)
    for used in ([0], [1], [0, 1]):
        weights = np.zeros(2)
        weights[used] = _maximise(features[used], valid, truth)
        if (weights >= 0).all() and _total(weights, features, valid, truth) > _total(best, features, valid, truth):
            best = weights
    return best


def _total(weights: _Floats, features: _Floats, valid: NDArray[np.bool_], truth: NDArray[np.int64]) -> float:
    return float(_likelihood(weights, features, valid, truth).sum() - _RIDGE / 2 * weights @ weights)


def _maximise(features: _Floats, valid: NDArray[np.bool_], truth: NDArray[np.int64]) -> _Floats:
    """Weights of any sign with the greatest likelihood, by Newton's method with damped steps as in `bradley_terry`."""
    weights = np.zeros(len(features))
    chosen = features[:, np.arange(len(truth)), truth]
    for _ in range(_STEPS):
        probability = _choice(weights, features, valid)
        mean = (features * probability).sum(-1)
        centred = (features - mean[..., None]) * np.sqrt(probability)
        hessian = np.einsum("fpc,gpc->fg", centred, centred) + _RIDGE * np.eye(len(features))
        step = np.linalg.solve(hessian, (chosen - mean).sum(-1) - _RIDGE * weights)
        change = np.tensordot(step, features, 1)
        spread = np.where(valid, change, -np.inf).max(-1) - np.where(valid, change, np.inf).min(-1)
        length = max(float(spread.max()), 1e-300)
        weights = weights + step * np.log1p(length) / length
        if length < _TOLERANCE:
            break
    return weights


def _interval(gain: _Floats, rng: np.random.Generator) -> tuple[float, float, float]:
    means = [gain[rng.integers(len(gain), size=len(gain))].mean() for _ in range(_RESAMPLES)]
    low, high = np.percentile(means, (2.5, 97.5))
    return float(gain.mean()), float(low), float(high)
