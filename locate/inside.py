"""The probability that a photo was taken in the area at all.

A posterior says where in the area a photo was taken, given that it was taken there; its sum is 1 for any picture. What
distinguishes photos from elsewhere is how well the best places fit: an expert's evidence. A logistic regression of the
experts' evidence is fitted on validation photos, against the same photos with the places around them hidden: to the
experts, these were taken in a place that the area does not contain. Pictures that are no photos of streets at all are
recognized by their distance from the training photos (`jzi.locate.novelty`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jzi.locate.expert import Expert
from jzi.locate.joint.fusion_weights import maximise
from jzi.locate.novelty import Novelty
from jzi.store.model_config import InsideConfig

#: Metres around a validation photo that are hidden from the experts. With 100, the probability agrees with the share of
#: photos from the area among photos of towns that the experts have never seen (`python -m benchmarks.outside`). Places
#: that look alike lie beside one another: with more of them hidden, the fit is too sure of itself.
HIDDEN_M = 100.0

#: Fewest validation photos that a detector is fitted on: about ten for each of its parameters.
MIN_PHOTOS = 50

#: Greatest log-odds of one photo, of either sign: no fit on thousands of photos supports more.
MAX_LOG_ODDS = 12.0


#: Log-odds of `jzi.locate.novelty` below which a picture gets a note, and the note. Fewer than 1 % of the photos from
#: the area have them.
UNLIKE_LOG_ODDS = -2.3
UNLIKE = (
    "the picture is unlike the photos that the model was trained on: it shows no street, or its camera, season or "
    "light is new"
)


@dataclass(frozen=True)
class Hidden:
    """Places to hide from the experts, other ones for each photo.

    Attributes:
        x: (photo,) in the area's CRS, metres.
        y: (photo,) metres.
        radius_m: places within it are hidden, metres of that CRS.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    radius_m: float = HIDDEN_M

    def of(self, photos: slice) -> Hidden:
        """The same for some of the photos."""
        return Hidden(self.x[photos], self.y[photos], self.radius_m)

    def covers(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
        """(photo, place) whether each place is hidden.

        Args:
            x: (place,) or (photo, place), metres.
            y: the same, metres.
        """
        return (x - self.x[:, None]) ** 2 + (y - self.y[:, None]) ** 2 < self.radius_m**2


@runtime_checkable
class Evidence(Protocol):
    """An expert that can say how well a photo fits its area."""

    def evidence(self, query: Tensor, hidden: Hidden | None = None) -> NDArray[np.float64]:
        """(photo,) how well the best places fit, on a scale of the expert's own; greater is better.

        Args:
            query: (photo, feature) embeddings.
            hidden: places to leave out, as if the area did not contain them.
        """
        ...


@dataclass(frozen=True)
class InsideDetector:
    """Computes the probability that photos were taken in the area.

    Args:
        experts: the experts that the weights name, by their names.
        weights: the fitted regression.
        novelty: how unlike the training photos a picture is; None if that was not measured.
    """

    experts: Mapping[str, Evidence]
    weights: InsideConfig
    novelty: Novelty | None = None

    def log_odds(self, query: Tensor) -> NDArray[np.float64]:
        """(photo,) log-odds of having been taken in the area, if one of two photos was.

        Args:
            query: (photo, feature) embeddings.
        """
        total = np.full(len(query), self.weights.bias)
        for name, weight in self.weights.weights.items():
            if weight:
                total += weight * self.experts[name].evidence(query)
        total = total.clip(-MAX_LOG_ODDS, MAX_LOG_ODDS)
        return total if self.novelty is None else total + self.novelty.log_odds(query)

    def notes(self, query: Tensor) -> list[tuple[str, ...]]:
        """(photo,) a note on each picture that is unlike the training photos.

        Args:
            query: (photo, feature) embeddings.
        """
        odds = np.zeros(len(query)) if self.novelty is None else self.novelty.log_odds(query)
        return [(UNLIKE,) if each < UNLIKE_LOG_ODDS else () for each in odds]


def probability_inside(log_odds: NDArray[np.float64], elsewhere: float) -> NDArray[np.float64]:
    """(photo,) the probability that photos were taken in the area.

    Args:
        log_odds: (photo,) of `InsideDetector.log_odds`.
        elsewhere: share of photos from elsewhere before a photo is seen, 0..1; with 0 the probability is 1.
    """
    odds = np.exp(log_odds) * (1 - elsewhere)
    return odds / (odds + elsewhere)


def fit_inside(
    experts: Sequence[Expert], query: Tensor, hidden: Hidden, elsewhere: Sequence[Tensor] = ()
) -> dict[str, InsideConfig]:
    """Fit a regression for each subset of the experts that have evidence.

    Args:
        experts: experts of the same area.
        query: (photo, feature) embeddings of validation photos.
        hidden: their positions, around which places are hidden.
        elsewhere: (photo, feature) embeddings of photos of other areas, as further photos from elsewhere.

    Returns:
        The regressions by the names of the subset's experts, joined by "+" in alphabetical order; none if there are
        fewer than `MIN_PHOTOS` photos.
    """
    able = {each.name: each for each in sorted(experts, key=lambda each: each.name) if isinstance(each, Evidence)}
    if len(query) < MIN_PHOTOS or not able:
        return {}
    inside = {name: each.evidence(query) for name, each in able.items()}
    others = [other for other in elsewhere if len(other)]
    outside = {
        name: np.concatenate([each.evidence(query, hidden), *(each.evidence(other) for other in others)])
        for name, each in able.items()
    }
    subsets = (names for count in range(1, len(able) + 1) for names in combinations(able, count))
    return {
        "+".join(names): _regress(names, np.stack([inside[name] for name in names]),
                                  np.stack([outside[name] for name in names]))
        for names in subsets
    }  # fmt: skip


def auroc(higher: NDArray[np.float64], lower: NDArray[np.float64]) -> float:
    """Share of pairs in which a value of the first exceeds one of the second; ties count half.

    Args:
        higher: (n,) values.
        lower: (m,) values.
    """
    ordered = np.sort(lower)
    below, not_above = np.searchsorted(ordered, higher, "left"), np.searchsorted(ordered, higher, "right")
    return float((below + not_above).mean() / (2 * len(lower)))


def _regress(names: Sequence[str], inside: NDArray[np.float64], outside: NDArray[np.float64]) -> InsideConfig:
    """Fit non-negative weights to (expert, photo) evidence of photos of the area and of others."""
    center, scale = inside.mean(1), inside.std(1) + 1e-9
    evidence = torch.from_numpy((np.concatenate([inside, outside], 1) - center[:, None]) / scale[:, None])
    constant = torch.ones(1, evidence.shape[1], dtype=torch.float64)
    rows = torch.cat([evidence, constant, -constant])  # the weights of `maximise` are 0 or more, the bias is either
    is_inside = torch.arange(evidence.shape[1]) < inside.shape[1]
    features = torch.stack([torch.zeros_like(rows), rows], -1)  # (weight, photo, elsewhere or here)
    base = torch.zeros(evidence.shape[1], 2, dtype=torch.float64)
    base[:, 1] = float(np.log(inside.shape[1] / outside.shape[1]))  # the log-odds are those of even numbers
    *weights, plus, minus = maximise(features, base, torch.where(is_inside, rows, 0.0)).tolist()
    factors = np.array(weights) / scale
    bias = plus - minus - float(factors @ center)
    return InsideConfig(
        weights=dict(zip(names, factors.tolist(), strict=True)),
        bias=bias,
        auroc=auroc(factors @ inside, factors @ outside),
        photos=inside.shape[1],
    )
