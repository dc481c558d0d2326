"""From comparisons of pairs to scores of candidates.

`logits[i, j]` is the log-odds of the answer A where i is shown as A and j as B; nan where that was not asked, or not
answered. All functions take leading dimensions, such as a photo's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float64]

#: Weight lambda of the prior of Bradley-Terry's theta, a normal distribution: keeps those finite that win all.
PRIOR = 0.1

#: Of a standard logistic variable.
_LOGISTIC_VARIANCE = np.pi**2 / 3

#: Newton's method ends after a step of less than this, or this many steps: about 10 are needed.
_TOLERANCE, _STEPS = 1e-12, 200

#: Draws that the probability of being the first is counted from: a standard error of 0.5 % at 95 %.
_DRAWS = 2000


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of k candidates.

    Attributes:
        theta: (..., k) scores in log-odds, with mean 0.
        covariance: (..., k, k) of theta around its mean, from the inverse of the Hessian.
    """

    theta: _Floats
    covariance: _Floats

    @property
    def sd(self) -> _Floats:
        """(..., k) standard deviation of theta."""
        return np.sqrt(np.maximum(np.diagonal(self.covariance, axis1=-2, axis2=-1), 0.0))


def difference(forward: Any, backward: Any, bias: float = 0.0) -> Any:
    """Log-odds of the one over the other, from its logit as A and the other's; nan if neither was answered.

    Half of the difference of the logits: a preference for a position, which is added to both, cancels. Averaging
    probabilities would not remove it. Where one was answered, the bias is subtracted from that.
    """
    both = (forward - backward) / 2
    return np.where(~np.isnan(both), both, np.where(np.isnan(forward), bias - backward, forward - bias))


def debiased(logits: _Floats, bias: float = 0.0) -> _Floats:
    """(..., k, k) log-odds d_ij of i over j, antisymmetric; nan where the two were not compared, and for i = j."""
    return np.asarray(difference(logits, np.swapaxes(logits, -1, -2), bias))


def position_bias(logits: _Floats) -> _Floats:
    """(..., k, k) log-odds by which the answer A is preferred in a pair; nan where not both orders were answered."""
    return (logits + np.swapaxes(logits, -1, -2)) / 2


def consistent(logits: _Floats) -> _Floats:
    """(..., k, k) 1 if both orders prefer the same candidate, 0 if not; nan where not both orders were answered."""
    backward = np.swapaxes(logits, -1, -2)
    return np.where(np.isnan(logits + backward), np.nan, np.sign(logits) == -np.sign(backward))


def scores(log_odds: _Floats, weight: _Floats, design: str, temperature: float = 1.0) -> Scores:
    """Scores by the design's rule: the closed form for a complete round robin, else Bradley-Terry.

    Args:
        log_odds: (..., k, k) debiased log-odds.
        weight: (..., k, k) number of answers about each pair.
        design: one of `jzi.rerank.designs.schedule.PAIR_DESIGNS`.
        temperature: divisor of log-odds.
    """
    if design == "pairs" and not np.isnan(_without_diagonal(log_odds)).any():
        return round_robin(log_odds / temperature, weight)
    return bradley_terry(log_odds / temperature, weight)


def answers(logits: _Floats) -> _Floats:
    """(..., k, k) number of answers about each pair, 0 to 2."""
    answered = (~np.isnan(logits)).astype(np.float64)
    return answered + np.swapaxes(answered, -1, -2)


def round_robin(log_odds: _Floats, weight: _Floats) -> Scores:
    """Least squares for a complete round robin: theta_i = mean_j d_ij, with d_ii = 0.

    The covariance is that of Bradley-Terry at this theta.
    """
    theta = round_robin_mean(log_odds)
    return Scores(theta, _covariance(theta, _without_diagonal(weight)))


def round_robin_mean(log_odds: _Floats) -> _Floats:
    """(..., k) theta of `round_robin`."""
    return _without_diagonal(log_odds).mean(-1)


def bradley_terry(log_odds: _Floats, weight: _Floats) -> Scores:
    """The theta with the greatest posterior probability under the model of Bradley and Terry.

    Maximises sum_(i < j) w_ij [p_ij log s(theta_i - theta_j) + (1 - p_ij) log s(theta_j - theta_i)]
    - lambda / 2 sum theta_i^2 with p_ij = s(d_ij), s: the logistic function. Newton's method with damped steps, which
    converges from anywhere: the objective is strictly concave and generalised self-concordant (Bach, "Self-concordant
    analysis for logistic regression", 2010).

    Args:
        log_odds: (..., k, k) d_ij, antisymmetric; ignored where the weight is 0.
        weight: (..., k, k) number of answers, symmetric.
    """
    known = ~np.isnan(log_odds)
    weight = _without_diagonal(np.where(known, weight, 0.0))
    wins = weight * _logistic(np.where(known, log_odds, 0.0))
    theta = np.zeros(log_odds.shape[:-1])
    for _ in range(_STEPS):
        probability = _logistic(theta[..., :, None] - theta[..., None, :])
        gradient = (wins - weight * probability).sum(-1) - PRIOR * theta
        step = np.linalg.solve(_hessian(theta, weight), gradient[..., None])[..., 0]
        length = np.maximum(np.ptp(step, axis=-1, keepdims=True), 1e-300)
        theta = theta + step * np.log1p(length) / length
        if length.max(initial=0.0) < _TOLERANCE:
            break
    return Scores(theta, _covariance(theta, weight))


def least_squares(log_odds: _Floats, weight: _Floats) -> Scores:
    """Theta if each log-odds is a measurement of theta_i - theta_j, with the noise of a logistic variable per answer.

    Unlike under Bradley-Terry, an answer with large log-odds is as precise as another, so that few of them can settle
    which candidate is the first. The same prior.

    Args:
        log_odds: (..., k, k) d_ij, antisymmetric; ignored where the weight is 0.
        weight: (..., k, k) number of answers, symmetric.
    """
    k = log_odds.shape[-1]
    known = ~np.isnan(log_odds)
    information = _without_diagonal(np.where(known, weight, 0.0)) / _LOGISTIC_VARIANCE
    precision = np.eye(k) * (information.sum(-1)[..., None] + PRIOR) - information
    total = (information * np.where(known, log_odds, 0.0)).sum(-1)
    return Scores(np.linalg.solve(precision, total[..., None])[..., 0], _centred_inverse(precision))


def prp_wins(logits: _Floats) -> _Floats:
    """(..., k) wins: 1 where both orders prefer the candidate, 1/2 each where they do not agree or one is missing.

    As in pairwise ranking prompting (arXiv 2306.17563); pairs that were not asked give each half a point too.
    """
    log_odds = debiased(logits)
    won = np.where(consistent(logits) == 1, (np.sign(log_odds) + 1) / 2, 0.5)
    return _without_diagonal(won).sum(-1)


def top_probability(known: Scores) -> _Floats:
    """(k,) probability of having the greatest theta, approximately.

    The share of `_DRAWS` draws, always the same ones, from a normal distribution with the mean theta and its covariance
    (Laplace's approximation).
    """
    variance, vectors = np.linalg.eigh(known.covariance)
    k = len(variance)
    draws = np.random.default_rng(0).standard_normal((_DRAWS, k)) * np.sqrt(np.maximum(variance, 0.0)) @ vectors.T
    return np.bincount((known.theta + draws).argmax(1), minlength=k) / _DRAWS


def _logistic(values: _Floats) -> _Floats:
    return 0.5 * (1 + np.tanh(values / 2))


def _without_diagonal(values: _Floats) -> _Floats:
    return np.where(np.eye(values.shape[-1], dtype=bool), 0.0, values)


def _hessian(theta: _Floats, weight: _Floats) -> _Floats:
    """Of the negative objective."""
    probability = _logistic(theta[..., :, None] - theta[..., None, :])
    information = weight * probability * (1 - probability)
    identity = np.eye(theta.shape[-1])
    return identity * (information.sum(-1)[..., None] + PRIOR) - information


def _covariance(theta: _Floats, weight: _Floats) -> _Floats:
    return _centred_inverse(_hessian(theta, weight))


def _centred_inverse(precision: _Floats) -> _Floats:
    """Without what is common to all candidates: only differences matter, and the prior alone determines the mean."""
    return np.asarray(np.linalg.inv(precision) - 1 / (PRIOR * precision.shape[-1]))
