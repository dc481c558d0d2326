"""What comparing candidates changes: the first place before and after, by each method, with its cost.

Gains are paired over photos: a bootstrap interval of the difference, and McNemar's exact test of the photos that were
put right against those that were put wrong. No result can exceed the share of photos whose place is among the
candidates at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from jzi.errors import RerankError
from jzi.evaluate.calibration import calibration_error
from jzi.evaluate.intervals import Interval
from jzi.rerank.ask import Asker
from jzi.rerank.config import RerankConfig
from jzi.rerank.cost import Cost
from jzi.rerank.designs.compare import Verdict, compare
from jzi.rerank.designs.plan import Plan, plan
from jzi.rerank.fuse import LabelledScores, Weights, fit, fit_temperature, reorder
from jzi.rerank.question import Picture
from jzi.rerank.stage import undecided
from jzi.store.plain import plain


@dataclass(frozen=True, eq=False)
class RerankCase:
    """A photo and the candidates of a front end.

    Attributes:
        name: of the photo.
        photo: reads it.
        crops: reads what is shown of each candidate; None where there is no imagery.
        probability: (k,) of the candidates, descending; their sum is at most 1.
        correct: (k,) whether each is right, by each criterion, such as "within 50 m".
    """

    name: str
    photo: Callable[[], Picture]
    crops: Callable[[], Sequence[Picture | None]]
    probability: NDArray[np.float64]
    correct: dict[str, NDArray[np.bool_]]


@dataclass(frozen=True)
class TopOne:
    """The first place by one criterion.

    Attributes:
        before: share of photos whose first candidate is right in the front end's order.
        after: the same after re-ranking.
        gain: their difference, with a paired bootstrap interval.
        bound: share of photos with a right candidate at all, which `after` cannot exceed.
        fixed: number of photos that were put right.
        broken: number of photos that were put wrong.
        p: of McNemar's exact test.
    """

    before: float
    after: float
    gain: Interval
    bound: float
    fixed: int
    broken: int
    p: float

    @classmethod
    def of(cls, before: NDArray[np.bool_], after: NDArray[np.bool_], bound: float, resamples: int, seed: int) -> TopOne:
        """From (photo,) whether the first place is right before and after."""
        fixed, broken = int((after & ~before).sum()), int((before & ~after).sum())
        difference = after.astype(float) - before
        index = np.random.default_rng(seed).integers(len(before), size=(resamples, len(before)))
        return cls(
            before=float(before.mean()),
            after=float(after.mean()),
            gain=Interval.of_photos(float(difference.mean()), difference[index].mean(1), len(difference), (-1.0, 1.0)),
            bound=bound,
            fixed=fixed,
            broken=broken,
            p=mcnemar(fixed, broken),
        )


def mcnemar(fixed: int, broken: int) -> float:
    """Exact two-sided p of McNemar's test: as many or more of the changed photos in one direction, if both are alike.

    Args:
        fixed: photos that were put right.
        broken: photos that were put wrong.

    Example:
        >>> mcnemar(5, 0), mcnemar(1, 1)
        (0.0625, 1.0)
    """
    count = fixed + broken
    tail = sum(math.comb(count, number) for number in range(min(fixed, broken) + 1))
    return min(1.0, 2 * tail / 2**count)


@dataclass(frozen=True)
class MethodFigures:
    """A method over all photos.

    Attributes:
        method: its name.
        photos: number of photos.
        skipped: photos about which nothing was asked, since the front end was sure.
        unfinished: photos whose order is the front end's because the budget was spent.
        cost: calls, abstentions, tokens and seconds of all questions of the method, whenever they were asked.
        spent: what this evaluation has spent itself; the rest was known.
        top_one: by each criterion.
        consistency: share of pairs whose two orders agree; None without pairs in both orders.
        mean_bias: mean preference for the first crop of a pair, log-odds; None likewise.
        sd_bias: its standard deviation over pairs.
        auroc: probability that a pair's log-odds are greater for a right first crop than for a wrong one; None without
            pairs of which exactly one is right.
        ece_before: expected calibration error of the first candidate's probability, by the first criterion.
        ece_after: the same after re-ranking.
        weights: of the fusion.
    """

    method: str
    photos: int
    skipped: int
    unfinished: int
    cost: Cost
    spent: Cost
    top_one: dict[str, TopOne]
    consistency: float | None
    mean_bias: float | None
    sd_bias: float | None
    auroc: float | None
    ece_before: float
    ece_after: float
    weights: Weights

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values: dict[str, Any] = plain(self)
        return values


@dataclass(frozen=True, eq=False)
class Outcome:
    """A photo after one method.

    Attributes:
        case: the photo.
        verdict: what the judge said; None if nothing was asked.
        probability: (k,) of the candidates in the front end's order, after re-ranking.
        order: (k,) indices of the candidates, the first place first.
    """

    case: RerankCase
    verdict: Verdict | None
    probability: NDArray[np.float64]
    order: NDArray[np.int64]


def rerank_cases(
    cases: Sequence[RerankCase],
    asker: Asker,
    config: RerankConfig,
    weights: Weights,
    *,
    bias: float = 0.0,
    progress: bool = False,
) -> list[Outcome]:
    """Re-rank the candidates of photos by one method.

    Args:
        cases: the photos.
        asker: asks the judge.
        config: `method` and all else.
        weights: of the fusion.
        bias: preference for A, subtracted where a pair is asked about once.
        progress: whether to show a progress bar.

    Raises:
        JziError: a photo or the imagery cannot be read, or the judge cannot answer.
    """
    outcomes = []
    for case in tqdm(cases, desc=config.design, unit="photo", disable=not progress, leave=False):
        count = min(config.top, len(case.probability))
        verdict, probability, order = None, case.probability.copy(), np.arange(len(case.probability))
        if undecided(probability[:count], config.gate, weights):
            verdict = compare(asker, case.photo(), case.crops()[:count], config, bias, weights.temperature)
            probability[:count], order[:count] = reorder(probability[:count], verdict.theta, weights)
        outcomes.append(Outcome(case, verdict, probability, order))
    return outcomes


def plan_cases(cases: Sequence[RerankCase], asker: Asker, config: RerankConfig, weights: Weights) -> Plan:
    """What `rerank_cases` would ask; arguments and errors as there."""
    planned = Plan()
    for case in cases:
        if undecided(case.probability[: config.top], config.gate, weights):
            planned += plan(asker, case.photo(), case.crops()[: config.top], config)
    return planned


def evaluate_method(
    cases: Sequence[RerankCase],
    asker: Asker,
    config: RerankConfig,
    weights: Weights,
    *,
    bias: float = 0.0,
    resamples: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> MethodFigures:
    """Re-rank photos by one method, and compare with their true places; arguments as `rerank_cases`.

    Args:
        cases: at least one photo.
        asker: see above.
        config: see above.
        weights: see above.
        bias: see above.
        resamples: number of bootstrap resamples.
        seed: of the bootstrap.
        progress: see above.

    Raises:
        JziError: as `rerank_cases`.
    """
    if not cases:
        raise RerankError("there is no photo with candidates to compare")
    start = asker.cost
    outcomes = rerank_cases(cases, asker, config, weights, bias=bias, progress=progress)
    names = list(cases[0].correct)
    top_one = {}
    for name in names:
        before = np.array([bool(case.correct[name][0]) for case in cases])
        after = np.array([bool(each.case.correct[name][each.order[0]]) for each in outcomes])
        bound = float(np.mean([case.correct[name][: config.top].any() for case in cases]))
        top_one[name] = TopOne.of(before, after, bound, resamples, seed)
    verdicts = [each.verdict for each in outcomes if each.verdict is not None]
    pairs = [pair for each in verdicts for pair in each.comparisons if np.isfinite(pair.logit)]
    both = [pair for pair in pairs if pair.consistent is not None]
    biases = np.array([pair.bias for pair in both])
    main = names[0]
    right = np.array([case.correct[main][0] for case in cases])
    first = np.array([each.order[0] for each in outcomes])
    return MethodFigures(
        method=config.design if config.orders == "both" else f"{config.design}, one order",
        photos=len(cases),
        skipped=sum(each.verdict is None for each in outcomes),
        unfinished=sum(not each.complete for each in verdicts),
        cost=sum((each.cost for each in verdicts), Cost()),
        spent=asker.cost - start,
        top_one=top_one,
        consistency=float(np.mean([bool(pair.consistent) for pair in both])) if both else None,
        mean_bias=float(biases.mean()) if both else None,
        sd_bias=float(biases.std()) if both else None,
        auroc=_auroc(outcomes, main),
        ece_before=calibration_error(np.array([case.probability[0] for case in cases]), right),
        ece_after=calibration_error(
            np.array([each.probability[k] for each, k in zip(outcomes, first, strict=True)]),
            np.array([each.case.correct[main][k] for each, k in zip(outcomes, first, strict=True)]),
        ),
        weights=weights,
    )


def fit_weights(
    cases: Sequence[RerankCase], asker: Asker, config: RerankConfig, *, bias: float = 0.0, progress: bool = False
) -> Weights:
    """Weights of the front end and the judge, fitted on validation photos by the first criterion (`jzi.rerank.fuse`).

    Args:
        cases: validation photos; those without a right candidate teach nothing.
        asker: asks the judge.
        config: the method.
        bias: preference for the first crop to subtract where pairs are asked in one order.
        progress: whether to show a progress bar.

    Raises:
        JziError: as `rerank_cases`.
    """
    open_gate = replace(config, gate=1.0)
    verdicts: list[tuple[RerankCase, Verdict]] = []
    for each in rerank_cases(cases, asker, open_gate, Weights(), bias=bias, progress=progress):
        if each.verdict is not None and np.isfinite(each.verdict.theta).any():
            verdicts.append((each.case, each.verdict))
    temperature = fit_temperature(np.array(list(_right_over_wrong(verdicts))))
    rows = []
    for case, verdict in verdicts:
        correct = np.flatnonzero(next(iter(case.correct.values()))[: verdict.k])
        rows.append(
            LabelledScores(
                case.probability[: verdict.k], verdict.at(temperature).theta, int(correct[0]) if len(correct) else -1
            )
        )
    return fit(rows, temperature)


def _right_over_wrong(verdicts: Sequence[tuple[RerankCase, Verdict]]) -> Iterator[float]:
    """Log-odds of right candidates over wrong ones."""
    for case, verdict in verdicts:
        correct = next(iter(case.correct.values()))
        for pair in verdict.comparisons:
            if np.isfinite(pair.logit) and correct[pair.first] != correct[pair.second]:
                yield pair.logit if correct[pair.first] else -pair.logit


def _auroc(outcomes: Sequence[Outcome], criterion: str) -> float | None:
    odds, labels = [], []
    for each in outcomes:
        correct = each.case.correct[criterion]
        for pair in each.verdict.comparisons if each.verdict else ():
            if np.isfinite(pair.logit) and correct[pair.first] != correct[pair.second]:
                odds.append(pair.logit)
                labels.append(bool(correct[pair.first]))
    label = np.array(labels, bool)
    if not len(label) or label.all() or not label.any():
        return None
    ranks = pd.Series(odds).rank().to_numpy()
    positives = int(label.sum())
    return float((ranks[label].sum() - positives * (positives + 1) / 2) / (positives * (len(label) - positives)))
