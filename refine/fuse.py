"""Fusion of the windows of a photo's candidates with the front end that proposed them.

The probability of a candidate, pi_t, is proportional to exp(w1 s_t + w2 m_t): s_t is the front end's score (the
logarithm of the cell's probability, or a similarity), m_t the greatest match of level 0 in the candidate's window.
The candidates share the probability that their cells had; what the front end assigns to other cells is left as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jzi.refine.window import Windows

_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RankWeights:
    """Weights of the two scores of a candidate.

    Attributes:
        prior: w1, of the front end's score.
        match: w2, of the greatest match in the window; 0 if it was no gain on validation photos.
        gain: increase of the log-likelihood per photo over the unchanged probabilities, and its standard error.
        photos: number of validation photos with their cell among the candidates.
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
        match: (..., candidate) greatest match of level 0.
        probability: (..., candidate) the front end's probability of the candidates' cells.
        weights: the weights.
    """
    raise NotImplementedError


def fit(score: _Floats, match: _Floats, truth: NDArray[np.int64]) -> RankWeights:
    """The weights with the greatest likelihood of the true candidates (conditional logit); (1, 0) without clear gain.

    Args:
        score: (photo, candidate) as for `rank`.
        match: (photo, candidate) as for `rank`.
        truth: (photo,) index of the candidate whose cell the photo was taken in; -1 leaves the photo out.
    """
    raise NotImplementedError


def owned(windows: Windows) -> NDArray[np.bool_]:
    """(window, row, col) whether the window is the nearest one, by its centre, of those that contain the pixel."""
    raise NotImplementedError


def combine(density: _Floats, windows: Windows, share: _Floats) -> _Floats:
    """(window, row, col) probabilities of pixels: each window's density in what it owns, with a share as its sum.

    Args:
        density: (window, row, col) with sum 1 in each window; a window of zeros has no coverage.
        windows: the windows of one photo.
        share: (window,) probabilities pi_t.
    """
    raise NotImplementedError
