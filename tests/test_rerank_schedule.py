"""Designs: how many questions, which of them together, and who wins."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest

from jzi.rerank.config import RerankConfig
from jzi.rerank.designs.aggregate import answers, debiased, scores
from jzi.rerank.designs.schedule import PAIR_DESIGNS, method_calls, rounds

SIZES = (2, 3, 5, 10)
CALLS = {
    ("pairs", "both"): (2, 6, 20, 90),
    ("pairs", "one"): (1, 3, 10, 45),
    ("sliding", "both"): (2, 4, 8, 18),
    ("sliding", "one"): (1, 2, 4, 9),
    ("knockout", "both"): (2, 4, 8, 18),
    ("knockout", "one"): (1, 2, 4, 9),
    ("swiss", "both"): (2, 4, 12, 40),
    ("swiss", "one"): (1, 2, 6, 20),
}
Batches = list[list[tuple[int, int]]]


def play(
    design: str, k: int, orders: str, answer: Callable[[int, int], float], **options: object
) -> tuple[Batches, np.ndarray]:
    """The batches that are asked, and the (k, k) logits."""
    batches, logits = [], np.full((k, k), np.nan)
    running, known = rounds(design, k, orders, **options), None
    while True:
        try:
            batches.append(running.send(known))
        except StopIteration:
            return batches, logits
        known = {pair: answer(*pair) for pair in batches[-1]}
        for pair, logit in known.items():
            logits[pair] = logit


def theta_of(logits: np.ndarray, design: str, bias: float = 0.0) -> np.ndarray:
    return scores(debiased(logits, bias), answers(logits), design).theta


def perfect(truth: int) -> Callable[[int, int], float]:
    return lambda first, second: 6.0 * ((first == truth) - (second == truth))


def random(seed: int) -> Callable[[int, int], float]:
    rng = np.random.default_rng(seed)
    return lambda first, second: float(rng.normal())


def config(design: str, orders: str = "both", questions: int = 20) -> RerankConfig:
    return RerankConfig(method=design, orders=orders, questions=questions)


@pytest.mark.parametrize(("design", "orders"), CALLS)
def test_a_design_asks_exactly_the_number_of_its_table(design: str, orders: str) -> None:
    for k, expected in zip(SIZES, CALLS[design, orders], strict=True):
        for seed in range(20):
            batches, logits = play(design, k, orders, random(seed))
            assert sum(map(len, batches)) == np.isfinite(logits).sum() == expected
        assert method_calls(config(design, orders), k) == (expected, True)


@pytest.mark.parametrize("k", range(2, 27))
def test_the_number_of_questions_is_known_for_any_number_of_candidates(k: int) -> None:
    for design in PAIR_DESIGNS:
        most, exact = method_calls(config(design), k)
        batches, _ = play(design, k, "both", random(k))
        asked = sum(map(len, batches))
        assert asked == most if exact else asked <= most


def test_single_candidates_are_never_compared() -> None:
    for design in (*PAIR_DESIGNS, "yesno", "list"):
        assert method_calls(config(design), 1) == method_calls(config(design), 0) == (0, True)
    assert play("pairs", 1, "both", random(0))[0] == []


def test_candidates_shown_alone_or_together_are_asked_once_or_once_per_rotation() -> None:
    assert method_calls(config("yesno"), 5) == method_calls(config("list"), 5) == (5, True)
    assert method_calls(config("list", "one"), 5) == (1, True)


def test_sorting_sorts_within_its_cap() -> None:
    asked = []
    for quality in permutations(range(5)):
        batches, logits = play("sorting", 5, "both", lambda a, b, q=quality: float(q[a] - q[b]))
        asked.append(sum(map(len, batches)))
        assert (np.argsort(-theta_of(logits, "sorting")) == np.argsort(-np.array(quality))).all()
    assert max(asked) == method_calls(config("sorting"), 5)[0] == 16
    assert method_calls(config("sorting"), 10) == (50, False)


@pytest.mark.parametrize("orders", ["both", "one"])
@pytest.mark.parametrize("questions", [1, 2, 7, 20, 200])
def test_the_adaptive_design_keeps_to_its_number_of_questions(orders: str, questions: int) -> None:
    for k in SIZES:
        batches, _ = play("adaptive", k, orders, random(k), questions=questions)
        assert sum(map(len, batches)) <= method_calls(config("adaptive", orders, questions), k)[0] <= questions


def test_the_adaptive_design_stops_when_the_first_is_clear() -> None:
    clear, _ = play("adaptive", 10, "both", perfect(7), questions=90)
    unclear, _ = play("adaptive", 10, "both", lambda first, second: 0.0, questions=90)
    assert sum(map(len, clear)) < 40 and sum(map(len, unclear)) == 90


@pytest.mark.parametrize("orders", ["both", "one"])
@pytest.mark.parametrize("design", PAIR_DESIGNS)
def test_a_perfect_judge_puts_the_truth_first(design: str, orders: str) -> None:
    for k in SIZES:
        for truth in range(k):
            _, logits = play(design, k, orders, perfect(truth), questions=40)
            theta = theta_of(logits, design)
            assert (np.delete(theta, truth) < theta[truth]).all()


@pytest.mark.parametrize("design", PAIR_DESIGNS)
def test_cyclic_answers_come_to_an_end_without_a_repeated_question(design: str) -> None:
    for k in SIZES:
        batches, logits = play(design, k, "both", lambda a, b, k=k: 4.0 if (b - a) % k <= k // 2 else -4.0)
        asked = [pair for batch in batches for pair in batch]
        assert len(asked) == len(set(asked)) and np.isfinite(theta_of(logits, design)).all()


@pytest.mark.parametrize("answer", [4.0, np.nan])
@pytest.mark.parametrize("design", PAIR_DESIGNS)
def test_a_judge_that_always_says_a_or_nothing_scores_all_alike(design: str, answer: float) -> None:
    for k in SIZES:
        _, logits = play(design, k, "both", lambda first, second: answer)
        assert np.abs(theta_of(logits, design)).max() < 1e-12


@pytest.mark.parametrize("answer", [4.0, np.nan])
def test_ties_and_abstentions_count_for_the_front_ends_order(answer: float) -> None:
    batches, _ = play("sliding", 4, "both", lambda first, second: answer)
    assert [batch[0] for batch in batches] == [(2, 3), (1, 2), (0, 1)]
    batches, _ = play("knockout", 4, "both", lambda first, second: answer)
    assert [pair for pair in batches[1] if pair[0] < pair[1]] == [(0, 1)]


@pytest.mark.parametrize("design", ["knockout", "swiss"])
def test_a_round_is_asked_at_once_and_shows_no_candidate_in_two_pairs(design: str) -> None:
    for k in SIZES:
        batches, _ = play(design, k, "both", random(k))
        assert len(batches) == (k - 1).bit_length()
        for batch in batches:
            shown = [candidate for first, second in batch if first < second for candidate in (first, second)]
            assert len(shown) == len(set(shown)) and {pair[::-1] for pair in batch} == set(batch)


def test_a_knock_out_spares_the_front_ends_first_and_seeds_each_round_by_rank() -> None:
    def games(k: int, answer: Callable[[int, int], float]) -> list[list[tuple[int, int]]]:
        return [[pair for pair in batch if pair[0] < pair[1]] for batch in play("knockout", k, "both", answer)[0]]

    assert games(5, perfect(0)) == [[(3, 4)], [(0, 3), (1, 2)], [(0, 1)]]
    assert games(6, perfect(5)) == [[(2, 5), (3, 4)], [(0, 5), (1, 3)], [(1, 5)]]
    assert games(4, lambda first, second: float(first - second)) == [[(0, 3), (1, 2)], [(2, 3)]]
    assert games(8, perfect(7))[1] == [(1, 7), (2, 3)]


def test_independent_questions_of_a_sort_are_asked_at_once() -> None:
    batches, _ = play("sorting", 8, "both", random(0))
    assert len(batches[0]) == 8 and len(batches) < sum(map(len, batches)) / 2 - 3


def test_no_two_meet_twice_in_a_swiss_tournament_and_each_rests_at_most_once() -> None:
    for k in range(2, 27):
        batches, _ = play("swiss", k, "one", random(k))
        met = [frozenset(pair) for batch in batches for pair in batch]
        assert len(met) == len(set(met)) and all(len(batch) == k // 2 for batch in batches)
        games = np.bincount([each for pair in met for each in pair], minlength=k)
        assert games.min() >= len(batches) - k % 2


def test_one_order_shows_each_candidate_as_a_about_equally_often() -> None:
    names = [f"crop {number}" for number in range(26)]
    batch = next(rounds("pairs", 26, "one", names))
    assert 0.4 < np.mean([first < second for first, second in batch]) < 0.6


def test_which_candidate_is_a_depends_on_the_crops_and_not_on_the_rank() -> None:
    names = [f"crop {number}" for number in range(10)]
    shown = [(names[one], names[other]) for one, other in next(rounds("pairs", 10, "one", names))]
    reverse = names[::-1]
    again = [(reverse[one], reverse[other]) for one, other in next(rounds("pairs", 10, "one", reverse))]
    assert set(shown) == set(again)


@pytest.mark.parametrize("design", PAIR_DESIGNS)
def test_a_known_bias_is_subtracted_where_pairs_are_asked_about_once(design: str) -> None:
    quality = np.random.default_rng(1).normal(size=10)
    fair, fair_logits = play(design, 10, "one", lambda a, b: quality[a] - quality[b])
    biased, logits = play(design, 10, "one", lambda a, b: quality[a] - quality[b] + 5, bias=5.0)
    assert fair == biased
    np.testing.assert_allclose(theta_of(logits, design, 5.0), theta_of(fair_logits, design), atol=1e-9)
