"""The stage that compares candidates by a judge and orders them anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from jzi.locate.answer.judged import Against, Judged
from jzi.locate.answer.location import Candidate
from jzi.locate.expert import Query
from jzi.locate.posterior import Posterior, credible_radius
from jzi.rerank.ask import Asker
from jzi.rerank.config import RerankConfig
from jzi.rerank.crops import Crops
from jzi.rerank.designs.compare import Verdict, compare
from jzi.rerank.designs.plan import Plan, plan
from jzi.rerank.fuse import Weights, reorder
from jzi.rerank.photo import picture

#: Probability of the second candidate below which nothing is asked.
SECOND = 0.01


class RerankStage:
    """A `Stage` of a `Locator`.

    Args:
        asker: asks the judge, or remembers what it said; None to render the crops only, and ask nothing.
        crops: what it is shown of the map.
        config: the number of candidates, how they are compared, and when they are not.
        weights: of the front end's probabilities and of the judge's scores.
        bias: preference for A, subtracted where a pair is asked about once.
        dry_run: add up what would be asked, and ask nothing.
        note: for users, about the weights; empty if there is nothing to say.

    Attributes:
        photos: number of photos that were compared, or would be.
        skipped: number of photos about which nothing was asked, since the front end was sure, or had no second place.
        planned: what a dry run would ask.
    """

    name = "rerank"

    def __init__(
        self,
        asker: Asker | None,
        crops: Crops,
        config: RerankConfig,
        weights: Weights | None = None,
        *,
        bias: float = 0.0,
        dry_run: bool = False,
        note: str = "",
    ) -> None:
        self.asker, self.crops, self.config, self.weights = asker, crops, config, weights or Weights()
        self.bias, self.note = bias, note
        self.dry_run = dry_run
        self.photos = self.skipped = 0
        self.planned = Plan()

    def __call__(self, query: Query, posterior: Posterior, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        """Candidates in a new order, with source "rerank"; as they were if nothing was asked or the budget is spent.

        Raises:
            PhotoError: the photo cannot be read.
            ImageryError: the imagery cannot be read.
            RerankError: there is neither imagery nor a crop that is kept, or the judge cannot answer.
        """
        shown = distinct(candidates, posterior.area.cell_size, self.config.top)
        probability = np.array([candidates[each].probability for each in shown])
        useless = self.asker is not None and not self.weights.judge
        if query.photo is None or useless or not undecided(probability, self.config.gate, self.weights):
            self.skipped += 1
            return candidates
        self.photos += 1
        crops = self.crops.of([candidates[each].cell for each in shown])
        if self.asker is None:
            return candidates
        photo = picture(query.photo, self.config.photo_pixels, query.name)
        if self.dry_run:
            self.planned += plan(self.asker, photo, crops, self.config)
            return candidates
        verdict = compare(self.asker, photo, crops, self.config, self.bias, self.weights.temperature)
        if np.isnan(verdict.theta).all():
            return candidates
        return reranked(candidates, shown, verdict, self.weights, posterior)


def distinct(candidates: Sequence[Candidate], cell_m: float, top: int) -> list[int]:
    """Indices of the first candidates, without those that lie less than a cell from one before them.

    Args:
        candidates: the most probable first.
        cell_m: side of a cell.
        top: most indices.
    """
    chosen: list[int] = []
    for index, each in enumerate(candidates):
        apart = all(np.hypot(each.x - candidates[k].x, each.y - candidates[k].y) >= cell_m for k in chosen)
        if apart and len(chosen) < top:
            chosen.append(index)
    return chosen


def undecided(probability: NDArray[np.float64], gate: float, weights: Weights) -> bool:
    """Whether a judge is asked: there are two candidates, the first is not surer than `gate`, the second is possible.

    Args:
        probability: (k,) of candidates.
        gate: greatest probability of the first.
        weights: of the fusion; where the front end has no weight, every second candidate is possible.
    """
    possible = len(probability) > 1 and (probability[1] >= SECOND or not weights.prior)
    return bool(possible and probability[0] <= gate)


def reranked(
    candidates: Sequence[Candidate], shown: Sequence[int], verdict: Verdict, weights: Weights, posterior: Posterior
) -> list[Candidate]:
    """Candidates in the order of their new probabilities; those that were not compared keep their ranks.

    Args:
        candidates: of the front end, the most probable first.
        shown: indices of those that were to be compared.
        verdict: what the judge said of them.
        weights: of the front end and the judge.
        posterior: of the front end, of this photo.
    """
    before = np.array([candidates[each].probability for each in shown])
    after, order = reorder(before, verdict.theta, weights)
    judged = np.flatnonzero(~np.isnan(verdict.theta))
    factor = after[judged] / np.maximum(before[judged], np.finfo(float).tiny)
    new = reweighted(posterior, [candidates[shown[each]] for each in judged.tolist()], factor)
    changed = list(candidates)
    for each, index in enumerate(shown):
        changed[index] = replace(changed[index], judged=_judged(candidates, shown, each, verdict, new))
    for each in judged.tolist():
        index = shown[each]
        changed[index] = replace(changed[index], probability=float(after[each]), source="rerank")
    result = list(changed)
    for place, each in zip(shown, order.tolist(), strict=True):
        result[place] = changed[shown[each]]
    return result


def reweighted(posterior: Posterior, candidates: Sequence[Candidate], factor: NDArray[np.float64]) -> Posterior:
    """A photo's posterior after the probability around each of its candidates has changed.

    A cell belongs to the nearest candidate whose probability includes it. The residual stays.

    Args:
        posterior: of one photo.
        candidates: some of its candidates.
        factor: (candidate,) by which the probability around each is multiplied.
    """
    x, y = (each[0] for each in posterior.centers)
    distance = np.stack([np.hypot(x - each.x, y - each.y) for each in candidates])
    for row, each in zip(distance, candidates, strict=True):
        own = (posterior.row[0] == each.cell[0]) & (posterior.col[0] == each.cell[1])
        row[~(row <= each.radius_m if each.radius_m else own)] = np.inf
    near = distance.argmin(0)
    probability = posterior.probability[0] * np.where(np.isfinite(distance.min(0)), factor[near], 1.0)
    probability *= posterior.probability[0].sum() / max(probability.sum(), np.finfo(float).tiny)
    return replace(posterior, probability=probability[None], steps=None)


def _judged(
    candidates: Sequence[Candidate], shown: Sequence[int], which: int, verdict: Verdict, new: Posterior
) -> Judged:
    index = shown[which]
    candidate, score, sd = candidates[index], float(verdict.theta[which]), float(verdict.sd[which])
    against = []
    for each in verdict.comparisons:
        if which in (each.first, each.second):
            other, sign = (each.second, 1) if which == each.first else (each.first, -1)
            odds = sign * each.logit if np.isfinite(each.logit) else None
            against.append(Against(shown[other] + 1, odds, each.consistent))
    radii = credible_radius(new, np.array([candidate.x]), np.array([candidate.y]), 0.68, 0.95)
    return Judged(
        rank=index + 1,
        probability=candidate.probability,
        score=score if np.isfinite(score) else None,
        sd=sd if np.isfinite(sd) else None,
        against=tuple(sorted(against, key=lambda each: each.rank)),
        radius_68_m=float(radii[0, 0]),
        radius_95_m=float(radii[1, 0]),
    )
