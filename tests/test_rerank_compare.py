"""A photo's candidates, compared by scripted judges with every method."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import pytest

from jzi.rerank.ask import Asker
from jzi.rerank.config import Method, RerankConfig
from jzi.rerank.cost import Budget
from jzi.rerank.designs.compare import CONTENT_FREE_PAIRS, Verdict, compare, content_free_bias, first_questions
from jzi.rerank.designs.schedule import PAIR_DESIGNS, method_calls
from jzi.rerank.fuse import Weights, fuse
from jzi.rerank.judges.scripted import ScriptedJudge
from jzi.rerank.question import Picture, Question, Reading

METHODS = [method for method in get_args(Method) if method != "auto"]


def picture(number: int) -> Picture:
    return Picture(np.full((2, 2, 3), number, np.uint8))


PHOTO, CROPS = picture(255), [picture(number) for number in range(10)]


def asker(truth: int = 3, budget: Budget | None = None, **script: Any) -> Asker:
    """Of a judge that knows the true crop, by default without noise."""
    script = {"noise": 0.0, "absolute_noise": 0.0, **script}
    judge = ScriptedJudge({PHOTO.digest: CROPS[truth].digest}, **script)
    return Asker(judge, None, RerankConfig(), budget)


def run(method: str, crops: Sequence[Picture | None], asks: Any, orders: str = "both", **options: Any) -> Verdict:
    return compare(asks, PHOTO, crops, RerankConfig(method=method, orders=orders), **options)


@pytest.mark.parametrize("orders", ["both", "one"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_puts_the_true_candidate_first(method: str, orders: str) -> None:
    for k, truth in ((2, 1), (5, 4), (10, 3)):
        verdict = run(method, CROPS[:k], asker(truth, gap=6.0), orders)
        assert (np.delete(verdict.theta, truth) < verdict.theta[truth]).all()
        assert verdict.complete and verdict.k == k and verdict.method == method


@pytest.mark.parametrize("orders", ["both", "one"])
@pytest.mark.parametrize("method", METHODS)
def test_the_calls_are_those_that_were_announced(method: str, orders: str) -> None:
    for k in (2, 3, 5, 10):
        asks = asker(1)
        verdict = run(method, CROPS[:k], asks, orders)
        expected, exact = method_calls(RerankConfig(method=method, orders=orders), k)
        assert verdict.calls == asks.cost.asked
        assert verdict.calls == expected if exact else verdict.calls <= expected


@pytest.mark.parametrize("method", METHODS)
def test_questions_of_a_dry_run_are_the_first_that_are_asked(method: str) -> None:
    class Recorder:
        def __init__(self) -> None:
            self.asks, self.batches = asker(), []

        def ask(self, questions: Sequence[Question]) -> list[Reading | None]:
            self.batches.append([(each.kind, *(crop.digest for crop in each.crops)) for each in questions])
            return self.asks.ask(questions)

    recorder, crops = Recorder(), [CROPS[0], None, *CROPS[1:5]]
    run(method, crops, recorder)
    announced = first_questions(PHOTO, crops, RerankConfig(method=method))
    assert [(each.kind, *(crop.digest for crop in each.crops)) for each in announced] == recorder.batches[0]


@pytest.mark.parametrize("method", METHODS)
def test_a_candidate_without_imagery_is_not_shown(method: str) -> None:
    crops = [CROPS[0], None, CROPS[1], CROPS[2], None]
    verdict = run(method, crops, asker(2))
    assert np.isnan(verdict.theta).tolist() == [False, True, False, False, True]
    assert verdict.theta[3] == np.nanmax(verdict.theta)
    assert verdict.calls <= method_calls(RerankConfig(method=method), 3)[0]
    assert all(crops[each.first] and crops[each.second] and each.first < each.second for each in verdict.comparisons)


@pytest.mark.parametrize("method", METHODS)
def test_less_than_two_candidates_are_not_compared(method: str) -> None:
    for crops in ([], [None, None], [None, CROPS[0]]):
        asks = asker()
        verdict = run(method, crops, asks)
        assert verdict.complete and verdict.calls == asks.cost.asked == 0 and np.isnan(verdict.theta).all()
        assert list(first_questions(PHOTO, crops, RerankConfig(method=method))) == []


@pytest.mark.parametrize("method", METHODS)
def test_a_budget_that_ends_within_a_photo_keeps_the_front_ends_answer(method: str) -> None:
    verdict = run(method, CROPS[:5], asker(budget=Budget(calls=3)))
    assert not verdict.complete and verdict.calls == 3
    assert np.isnan(verdict.theta).all() and len(verdict.theta) == 5
    probability = np.full(5, 0.2)
    np.testing.assert_allclose(fuse(probability, verdict.theta, 0.0, Weights()), probability, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_a_judge_that_never_answers_leaves_no_scores(method: str) -> None:
    verdict = run(method, CROPS[:5], asker(kind="silent"))
    assert verdict.complete and verdict.calls > 0 and np.isnan(verdict.theta).all()
    assert np.isnan(verdict.mean_bias) and np.isnan(verdict.consistency)


@pytest.mark.parametrize("kind", ["cyclic", "always-first"])
@pytest.mark.parametrize("method", METHODS)
def test_a_useless_judge_without_weight_leaves_the_front_ends_order(method: str, kind: str) -> None:
    verdict = run(method, CROPS, asker(kind=kind))
    probability = np.linspace(0.15, 0.02, 10)
    fused = fuse(probability, verdict.theta, 1 - probability.sum(), Weights(judge=0.0))
    np.testing.assert_allclose(fused, probability, atol=1e-9)
    assert (np.argsort(-fused) == np.arange(10)).all()


@pytest.mark.parametrize("method", [*PAIR_DESIGNS, "list"])
def test_a_judge_that_always_answers_a_scores_all_alike(method: str) -> None:
    verdict = run(method, CROPS[:5], asker(kind="always-first"))
    assert np.ptp(verdict.theta) < 1e-9


def test_bias_and_consistency_are_reported() -> None:
    fair, biased = (run("pairs", CROPS[:5], asker(gap=1.0, bias=bias)) for bias in (0.0, 2.0))
    assert fair.mean_bias == pytest.approx(0) and biased.mean_bias == pytest.approx(2)
    np.testing.assert_allclose(fair.theta, biased.theta, atol=1e-9)
    assert biased.consistency == 0 and not any(each.consistent for each in biased.comparisons)
    true_pairs = [each for each in fair.comparisons if 3 in (each.first, each.second)]
    assert len(true_pairs) == 4 and all(each.consistent and each.answers == 2 for each in true_pairs)
    assert all(each.logit == pytest.approx(1.0 if each.first == 3 else -1.0) for each in true_pairs)


@pytest.mark.parametrize("method", PAIR_DESIGNS)
def test_a_bias_measured_without_content_is_subtracted_in_one_order(method: str) -> None:
    fair, asks = run(method, CROPS[:5], asker(), "one"), asker(bias=3.0)
    bias = content_free_bias(asks, [(PHOTO, crop) for crop in CROPS])
    assert bias == pytest.approx(3) and CONTENT_FREE_PAIRS == 32
    verdict = run(method, CROPS[:5], asks, "one", bias=bias)
    np.testing.assert_allclose(verdict.theta, fair.theta, atol=1e-9)
    assert np.isnan(verdict.mean_bias) and all(each.answers == 1 for each in verdict.comparisons)


def test_a_bias_is_zero_if_nothing_was_answered() -> None:
    assert content_free_bias(asker(kind="silent"), [(PHOTO, CROPS[0])]) == 0
    assert content_free_bias(asker(budget=Budget(calls=0)), [(PHOTO, CROPS[0])]) == 0


@pytest.mark.parametrize("method", PAIR_DESIGNS)
def test_the_same_answers_can_be_scored_with_another_temperature(method: str) -> None:
    crops = [CROPS[0], None, *CROPS[1:5]]
    warm = run(method, crops, asker(noise=1.5), temperature=2.0)
    again = run(method, crops, asker(noise=1.5)).at(2.0)
    if method != "adaptive":
        np.testing.assert_allclose(warm.theta, again.theta)
    assert np.nanmax(np.abs(again.theta)) < np.nanmax(np.abs(again.at(1.0).theta))
    np.testing.assert_array_equal(np.isnan(again.theta), np.isnan(warm.theta))


def test_a_list_is_not_shown_in_the_front_ends_order() -> None:
    places = np.zeros((5, 5), int)
    for number in range(200):
        photo = Picture(np.full((1, 1, 3), number, np.uint8) + np.arange(3, dtype=np.uint8))
        config = RerankConfig(method="list", orders="one")
        (question,) = first_questions(photo, CROPS[:5], config)
        for letter, crop in enumerate(question.crops):
            places[CROPS.index(crop), letter] += 1
    assert places.min() > 15  # of 40 expected


def test_a_verdict_can_be_written_as_json() -> None:
    verdict = run("pairs", [CROPS[0], None, CROPS[1]], asker(1), "one")
    entries = json.loads(json.dumps(verdict.to_dict(), allow_nan=False))
    assert entries["theta"][1] is None and entries["consistency"] is None
    (comparison,) = entries["comparisons"]
    assert (comparison["first"], comparison["second"], comparison["bias"]) == (0, 2, None)
