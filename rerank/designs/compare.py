"""Compare the candidates of a photo with a judge."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from jzi.rerank.config import RerankConfig
from jzi.rerank.cost import Cost
from jzi.rerank.designs.aggregate import consistent, debiased, position_bias, scores
from jzi.rerank.designs.schedule import PAIR_DESIGNS, Pair, rounds
from jzi.rerank.designs.single import list_scores, pair_logit, point_score
from jzi.rerank.question import Kind, Picture, Question, Reading
from jzi.store.plain import plain

_Floats = NDArray[np.float64]

#: Pairs of equal crops that the preference for A is measured on.
CONTENT_FREE_PAIRS = 32


class Asks(Protocol):
    """What is needed of `jzi.rerank.ask.Asker`."""

    def ask(self, questions: Sequence[Question]) -> list[Reading | None]:
        """Answers in the order of the questions; None where the budget is spent."""
        ...


@dataclass(frozen=True)
class Comparison:
    """What a judge answered about two candidates.

    Attributes:
        first: index of a candidate.
        second: index of another, after the first.
        logit: log-odds of the first over the second, without the preference for a position; nan if not answered.
        bias: log-odds by which A was preferred to B; nan unless both orders were answered.
        consistent: whether both orders prefer the same candidate; None unless both were answered.
        answers: number of answers, 0 to 2.
    """

    first: int
    second: int
    logit: float
    bias: float
    consistent: bool | None
    answers: int


@dataclass(frozen=True, eq=False)
class Verdict:
    """A judge's scores of the candidates of a photo.

    Attributes:
        method: how they were compared.
        k: number of candidates, in the front end's order.
        theta: (k,) scores; nan of candidates that were not shown. All are nan if the verdict is not complete, or if
            nothing was answered: the front end's order is kept.
        sd: (k,) their standard deviations; nan where unknown.
        comparisons: the pairs that were asked about.
        calls: number of questions.
        complete: whether the budget sufficed.
        cost: what these questions have cost, whenever they were asked.
    """

    method: str
    k: int
    theta: _Floats
    sd: _Floats
    comparisons: tuple[Comparison, ...] = ()
    calls: int = 0
    complete: bool = True
    cost: Cost = field(default_factory=Cost)

    @property
    def mean_bias(self) -> float:
        """Mean log-odds by which A was preferred; nan if no pair was answered in both orders."""
        known = [each.bias for each in self.comparisons if each.consistent is not None]
        return float(np.mean(known)) if known else float("nan")

    @property
    def consistency(self) -> float:
        """Share of pairs, answered in both orders, in which both prefer the same candidate; nan if there is none."""
        known = [each.consistent for each in self.comparisons if each.consistent is not None]
        return float(np.mean(known)) if known else float("nan")

    def at(self, temperature: float) -> Verdict:
        """The same answers with another temperature of the log-odds of pairs; unchanged for the other methods."""
        if not self.comparisons or np.isnan(self.theta).all():
            return self
        shown = np.flatnonzero(~np.isnan(self.theta))
        theta, sd = _pair_scores(self.comparisons, shown, self.k, self.method, temperature)
        return replace(self, theta=theta, sd=sd)

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold; nan is None."""
        summary = {"mean_bias": self.mean_bias, "consistency": self.consistency}
        return cast("dict[str, Any]", plain(self) | plain(summary))


def compare(
    asker: Asks,
    photo: Picture,
    crops: Sequence[Picture | None],
    config: RerankConfig,
    bias: float = 0.0,
    temperature: float = 1.0,
) -> Verdict:
    """Ask a judge about the candidates of a photo.

    Args:
        asker: asks the judge.
        photo: the photo.
        crops: (k,) of the candidates, in the front end's order; None where there is no imagery.
        config: settings.
        bias: preference for A that is subtracted where a pair is answered once.
        temperature: divisor of the log-odds of pairs.

    Raises:
        RerankError: the judge cannot answer.
    """
    shown = np.array([index for index, crop in enumerate(crops) if crop is not None], np.int64)
    unknown = np.full(len(crops), np.nan)
    verdict = Verdict(config.design, len(crops), unknown, unknown)
    if len(shown) < 2:
        return verdict
    pictures = [crop for crop in crops if crop is not None]
    if config.design in PAIR_DESIGNS:
        return _compare_pairs(asker, photo, pictures, config, bias, temperature, shown, verdict)
    questions = list(first_questions(photo, crops, config))
    readings = asker.ask(questions)
    known = [reading for reading in readings if reading is not None]
    verdict = replace(verdict, calls=len(known), complete=len(known) == len(questions), cost=Cost.of(known))
    if not verdict.complete:
        return verdict
    if config.design == "list":
        order = _shuffled(photo, len(pictures))
        theta, sd = (np.empty(len(pictures)) for _ in range(2))
        theta[order], sd[order] = list_scores(known)
    else:
        theta = np.array([point_score(cast(Kind, config.design), reading) for reading in known])
        sd = np.full(len(theta), np.nan)
    return replace(verdict, theta=_spread(theta, shown, len(crops)), sd=_spread(sd, shown, len(crops)))


def first_questions(photo: Picture, crops: Sequence[Picture | None], config: RerankConfig) -> Iterator[Question]:
    """The questions about a photo that do not depend on answers: all of them, or a design's first ones.

    Args:
        photo: the photo.
        crops: (k,) of the candidates; None where there is no imagery.
        config: settings.
    """
    pictures = [crop for crop in crops if crop is not None]
    k = len(pictures)
    if k < 2:
        return
    if config.design in PAIR_DESIGNS:
        for one, other in next(_rounds(pictures, config, 0.0)):
            yield Question("pair", photo, (pictures[one], pictures[other]))
    elif config.design == "list":
        order = _shuffled(photo, k)
        for rotation in range(k if config.orders == "both" else 1):
            yield Question("list", photo, tuple(pictures[each] for each in np.roll(order, -rotation)))
    else:
        for picture in pictures:
            yield Question(cast(Kind, config.design), photo, (picture,))


def content_free_bias(asker: Asks, pairs: Iterable[tuple[Picture, Picture]]) -> float:
    """Preference for A, log-odds: the mean over questions whose two crops are the same; 0 without any answer.

    Args:
        asker: asks the judge.
        pairs: photos and crops, about `CONTENT_FREE_PAIRS` of them.
    """
    readings = [asker.ask([Question("pair", photo, (crop, crop))])[0] for photo, crop in pairs]
    logits = np.array([pair_logit(reading) for reading in readings if reading is not None])
    return float(logits[~np.isnan(logits)].mean()) if (~np.isnan(logits)).any() else 0.0


def _compare_pairs(
    asker: Asks,
    photo: Picture,
    pictures: Sequence[Picture],
    config: RerankConfig,
    bias: float,
    temperature: float,
    shown: NDArray[np.int64],
    verdict: Verdict,
) -> Verdict:
    k = len(pictures)
    logits: dict[Pair, float] = {}
    used: list[Reading] = []
    design = _rounds(pictures, config, bias)
    answers: dict[Pair, float] | None = None
    complete = True
    while complete:
        try:
            pairs = design.send(answers)
        except StopIteration:
            break
        questions = [Question("pair", photo, (pictures[one], pictures[other])) for one, other in pairs]
        readings = asker.ask(questions)
        used += [each for each in readings if each is not None]
        answers = {pair: pair_logit(each) for pair, each in zip(pairs, readings, strict=True) if each is not None}
        logits |= answers
        complete = len(answers) == len(pairs)
    matrix = np.full((k, k), np.nan)
    for pair, logit in logits.items():
        matrix[pair] = logit
    asked = sorted({(min(pair), max(pair)) for pair in logits})
    comparisons = tuple(_comparison(matrix, pair, shown, bias) for pair in asked)
    cost = Cost.of(used)
    verdict = replace(verdict, comparisons=comparisons, calls=len(logits), complete=complete, cost=cost)
    if not complete or not any(each.answers for each in comparisons):
        return verdict
    theta, sd = _pair_scores(comparisons, shown, verdict.k, config.design, temperature)
    return replace(verdict, theta=theta, sd=sd)


def _rounds(pictures: Sequence[Picture], config: RerankConfig, bias: float) -> Any:
    names = [picture.digest for picture in pictures]
    return rounds(config.design, len(pictures), config.orders, names, questions=config.questions, bias=bias)


def _comparison(logits: _Floats, pair: Pair, shown: NDArray[np.int64], bias: float) -> Comparison:
    agree = float(consistent(logits)[pair])
    return Comparison(
        int(shown[pair[0]]),
        int(shown[pair[1]]),
        float(debiased(logits, bias)[pair]),
        float(position_bias(logits)[pair]),
        None if np.isnan(agree) else bool(agree),
        int(np.isfinite([logits[pair], logits[pair[::-1]]]).sum()),
    )


def _pair_scores(
    comparisons: Sequence[Comparison], shown: NDArray[np.int64], k: int, design: str, temperature: float
) -> tuple[_Floats, _Floats]:
    """(k,) theta and sd from comparisons of the candidates that were shown."""
    log_odds, weight = np.full((k, k), np.nan), np.zeros((k, k))
    for each in comparisons:
        log_odds[each.first, each.second], log_odds[each.second, each.first] = each.logit, -each.logit
        weight[each.first, each.second] = weight[each.second, each.first] = each.answers
    used = np.ix_(shown, shown)
    result = scores(log_odds[used], weight[used], design, temperature)
    return _spread(result.theta, shown, k), _spread(result.sd, shown, k)


def _spread(values: _Floats, shown: NDArray[np.int64], k: int) -> _Floats:
    """(k,) values of the candidates that were shown; nan of the others."""
    result = np.full(k, np.nan)
    result[shown] = values
    return result


def _shuffled(photo: Picture, k: int) -> NDArray[np.int64]:
    """Order in which a list shows the candidates: not the front end's, and the same whenever it is asked again."""
    return np.random.default_rng(int(photo.digest[:16], 16)).permutation(k)
