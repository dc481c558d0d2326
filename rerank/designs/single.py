"""Scores of candidates that are shown one at a time, or all at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from jzi.rerank.question import Kind, Reading

_Floats = NDArray[np.float64]

#: Limit of log-odds and log-probabilities: a label with probability 0 must not outweigh all else.
LIMIT = 100.0


def pair_logit(reading: Reading) -> float:
    """Log-odds of A over B; nan for an abstention."""
    return _log_odds(reading)


def point_score(kind: Kind, reading: Reading) -> float:
    """Score of a single candidate; nan for an abstention.

    "yesno": the log-odds of Yes. "score" and "words": the mean over the numbers, or the phrases' places, by their
    probabilities among the labels. "describe": what the reading gives.
    """
    if kind == "yesno":
        return _log_odds(reading)
    if reading.abstained:
        return np.nan
    if kind == "describe":
        return float(np.clip(reading.log_probabilities[0], -LIMIT, LIMIT))
    log_shares = _log_shares(reading)
    return float(np.arange(len(log_shares)) @ np.exp(log_shares))


def list_scores(readings: Sequence[Reading]) -> tuple[_Floats, _Floats]:
    """Scores of k candidates that were shown at once, and their standard errors; nan without any answer.

    Args:
        readings: of rotations: in number r, candidate i had the letter (i - r) mod k. A preference for a letter, which
            is added to its log-probability, cancels in the mean over all k rotations.
    """
    k = len(readings[0].log_probabilities)
    answers = [np.roll(_log_shares(each), number) for number, each in enumerate(readings) if not each.abstained]
    if not answers:
        return np.full(k, np.nan), np.full(k, np.nan)
    centred = np.stack(answers) - np.mean(answers, axis=1, keepdims=True)  # (rotation, candidate)
    count = len(centred)
    spread = centred.std(0, ddof=1) / np.sqrt(count) if count > 1 else np.full(k, np.nan)
    return centred.mean(0), spread


def _log_odds(reading: Reading) -> float:
    one, other = reading.log_probabilities
    if reading.abstained or not np.isfinite(max(one, other)):
        return np.nan
    return float(np.clip(one - other, -LIMIT, LIMIT))


def _log_shares(reading: Reading) -> _Floats:
    """Logarithms of the shares of the labels in their mass, at least -LIMIT."""
    values = np.array(reading.log_probabilities, np.float64)
    greatest = values.max()
    if not np.isfinite(greatest):
        return np.full(len(values), -np.log(len(values)))
    values = values - greatest
    return np.maximum(values - np.log(np.exp(values).sum()), -LIMIT)
