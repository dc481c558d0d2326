"""Scores from comparisons, and what the made judge gives with each design."""

from __future__ import annotations

import numpy as np
import pytest

from jzi.benchmarks.rerank import fused, make, play
from jzi.rerank.designs.aggregate import (
    PRIOR,
    Scores,
    answers,
    bradley_terry,
    consistent,
    debiased,
    least_squares,
    position_bias,
    prp_wins,
    round_robin_mean,
    scores,
    top_probability,
)
from jzi.rerank.designs.single import LIMIT, list_scores, pair_logit, point_score
from jzi.rerank.question import Reading


def logistic(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def logits_of(quality: np.ndarray, bias: float = 0.0) -> np.ndarray:
    logits = quality[:, None] - quality + bias
    np.fill_diagonal(logits, np.nan)
    return logits


def complete(k: int) -> np.ndarray:
    return 2 * (1 - np.eye(k))


@pytest.mark.parametrize("bias", [0.0, 2.0, 10.0])
def test_a_preference_for_a_position_cancels(bias: float) -> None:
    quality = np.array([0.3, 2.0, -1.0, 0.31, 1.2])
    logits, off = logits_of(quality, bias), ~np.eye(5, dtype=bool)
    np.testing.assert_allclose(debiased(logits)[off], logits_of(quality)[off], atol=1e-9)
    np.testing.assert_allclose(position_bias(logits)[off], bias, atol=1e-9)
    theta = scores(debiased(logits), answers(logits), "pairs").theta
    np.testing.assert_allclose(theta, quality - quality.mean(), atol=1e-9)


def test_averaging_probabilities_would_not_remove_the_preference() -> None:
    forward, backward = 2.0 + 10, -2.0 + 10
    share = (logistic(np.array(forward)) + 1 - logistic(np.array(backward))) / 2
    assert np.log(share / (1 - share)) < 0.01
    np.testing.assert_allclose(debiased(np.array([[np.nan, forward], [backward, np.nan]]))[0, 1], 2.0)


def test_both_orders_are_consistent_if_they_prefer_the_same_candidate() -> None:
    logits = np.array([[np.nan, 1.0, 3.0], [-0.5, np.nan, np.nan], [1.0, 2.0, np.nan]])
    agree = consistent(logits)
    assert agree[0, 1] == agree[1, 0] == 1 and agree[0, 2] == agree[2, 0] == 0
    assert np.isnan(agree[1, 2]) and np.isnan(agree[0, 0])


def test_bradley_terry_recovers_theta_from_ten_thousand_comparisons() -> None:
    theta = np.array([1.5, 0.5, 0.0, -0.5, -1.5])
    rng, k = np.random.default_rng(0), 5
    wins = np.zeros((k, k))
    for i in range(k):
        for j in range(i + 1, k):
            wins[i, j] = rng.binomial(1000, logistic(theta[i] - theta[j]))
            wins[j, i] = 1000 - wins[i, j]
    share = np.where(np.eye(k) == 1, 0.5, wins / 1000)
    result = bradley_terry(np.log(share / (1 - share)), 1000 * (1 - np.eye(k)))
    np.testing.assert_allclose(result.theta, theta, atol=0.1)
    assert (np.abs(result.theta - theta) < 4 * result.sd).all() and result.sd.max() < 0.1


def test_the_standard_deviation_is_that_of_repeated_comparisons() -> None:
    rng, k, count, repeats = np.random.default_rng(1), 4, 200, 500
    theta = np.array([0.6, 0.1, -0.2, -0.5])
    wins = np.zeros((repeats, k, k))
    for i in range(k):
        for j in range(i + 1, k):
            wins[:, i, j] = rng.binomial(count, logistic(theta[i] - theta[j]), repeats)
            wins[:, j, i] = count - wins[:, i, j]
    share = np.where(np.eye(k) == 1, 0.5, np.clip(wins / count, 1e-3, 1 - 1e-3))
    result = bradley_terry(np.log(share / (1 - share)), np.broadcast_to(count * (1 - np.eye(k)), share.shape))
    np.testing.assert_allclose(result.theta.std(0), result.sd.mean(0), rtol=0.15)


def test_bradley_terry_is_at_the_maximum_of_its_posterior() -> None:
    rng = np.random.default_rng(2)
    for k in (2, 3, 10, 50):
        log_odds = rng.normal(0, 8, (k, k))
        log_odds = log_odds - log_odds.T
        weight = np.triu(rng.integers(0, 3, (k, k)), 1).astype(float)
        weight += weight.T
        theta = bradley_terry(log_odds, weight).theta
        slope = (weight * (logistic(log_odds) - logistic(theta[:, None] - theta))).sum(1) - PRIOR * theta
        assert np.abs(slope).max() < 1e-9 and abs(theta.sum()) < 1e-8


def test_a_candidate_that_wins_all_has_a_finite_score() -> None:
    logits = logits_of(np.array([LIMIT, 0.0, 0.0]))
    result = bradley_terry(debiased(logits), complete(3))
    assert np.isfinite(result.theta).all() and np.isfinite(result.sd).all() and result.theta.argmax() == 0


def test_both_rules_give_the_same_order_on_complete_consistent_data() -> None:
    rng = np.random.default_rng(3)
    for k in (2, 5, 10):
        log_odds = debiased(logits_of(rng.normal(0, 2, k)))
        order = np.argsort(round_robin_mean(log_odds))
        assert (np.argsort(bradley_terry(log_odds, complete(k)).theta) == order).all()
        assert (np.argsort(least_squares(log_odds, complete(k)).theta) == order).all()


def test_a_round_robin_with_an_abstention_is_scored_by_bradley_terry() -> None:
    logits = logits_of(np.array([0.5, 0.0, -0.5]))
    logits[0, 1] = logits[1, 0] = np.nan
    result = scores(debiased(logits), answers(logits), "pairs")
    np.testing.assert_array_equal(result.theta, bradley_terry(debiased(logits), answers(logits)).theta)
    assert result.theta[0] > result.theta[1] > result.theta[2]


def test_an_abstention_is_no_information() -> None:
    logits = np.full((3, 3), np.nan)
    logits[0, 1], logits[1, 0] = 1.0, -1.0
    result = bradley_terry(debiased(logits), answers(logits))
    assert result.theta[2] == pytest.approx(0) and result.sd[2] > result.sd[0]


def test_a_pair_that_was_answered_once_counts_half_and_without_the_bias() -> None:
    logits = np.full((2, 2), np.nan)
    logits[1, 0] = 0.5
    assert debiased(logits, bias=2.0)[0, 1] == 1.5 and answers(logits)[0, 1] == 1
    both = np.array([[np.nan, 1.5], [-1.5, np.nan]])
    once = scores(debiased(logits, 2.0), answers(logits), "sliding")
    twice = scores(debiased(both), answers(both), "sliding")
    assert 0 < once.theta[0] < twice.theta[0] and once.sd[0] > twice.sd[0]


def test_a_temperature_divides_log_odds() -> None:
    log_odds = debiased(logits_of(np.array([1.0, 0.0, -1.0])))
    for design in ("pairs", "sliding"):
        expected = scores(log_odds / 4, complete(3), design).theta
        np.testing.assert_array_equal(scores(log_odds, complete(3), design, 4.0).theta, expected)


def test_wins_are_one_if_consistent_and_half_otherwise() -> None:
    logits = np.array([[np.nan, 2.0, 1.0], [-1.0, np.nan, np.nan], [1.0, np.nan, np.nan]])
    assert prp_wins(logits).tolist() == [1.5, 0.5, 1.0]


def test_probabilities_of_being_the_first_follow_the_scores() -> None:
    alike = top_probability(Scores(np.zeros(4), np.eye(4)))
    assert alike.sum() == pytest.approx(1) and np.abs(alike - 0.25).max() < 0.04
    two = top_probability(Scores(np.array([1.0, 0.0]), np.eye(2)))
    assert two[0] == pytest.approx(0.760, abs=0.03)  # of a normal variable above -1 / sqrt(2)
    assert top_probability(Scores(np.array([9.0, 0.0, 0.0]), np.eye(3)))[0] > 0.99


def test_log_odds_of_a_pair_are_bounded_and_missing_for_an_abstention() -> None:
    assert pair_logit(Reading((-1.0, -3.0))) == 2.0
    assert pair_logit(Reading((-1.0, -np.inf))) == LIMIT and pair_logit(Reading((-np.inf, -1.0))) == -LIMIT
    assert np.isnan(pair_logit(Reading((-np.inf, -np.inf), mass=0.0)))
    assert np.isnan(pair_logit(Reading((-0.7, -0.7), abstained=True)))


def test_scores_of_single_candidates_follow_their_kind() -> None:
    labels = np.full(11, -np.inf)
    labels[[6, 8]] = np.log([0.3, 0.1])
    assert point_score("yesno", Reading((-0.5, -2.0))) == 1.5
    assert point_score("score", Reading(tuple(labels))) == pytest.approx(6.5)
    assert point_score("words", Reading((-np.inf, -np.inf, -np.inf, -40.0, -40.0))) == pytest.approx(3.5)
    assert point_score("describe", Reading((-0.25,))) == -0.25
    for kind, count in (("yesno", 2), ("score", 11), ("words", 5), ("describe", 1)):
        assert np.isnan(point_score(kind, Reading((-1.0,) * count, abstained=True)))


def test_a_preference_for_a_letter_cancels_over_all_rotations_of_a_list() -> None:
    quality, letters = np.array([0.0, 2.0, -1.0, 0.5]), np.array([3.0, 0.0, 1.0, -2.0])
    readings = [Reading(tuple(np.roll(quality, -rotation) + letters)) for rotation in range(4)]
    theta, sd = list_scores(readings)
    np.testing.assert_allclose(theta, quality - quality.mean(), atol=1e-9)
    assert (sd > 0).all() and np.isnan(list_scores(readings[:1])[1]).all()


def test_rotations_without_an_answer_are_left_out() -> None:
    given, missing = Reading((0.0, -1.0, -np.inf)), Reading((0.0, 0.0, 0.0), abstained=True)
    np.testing.assert_array_equal(list_scores([given, missing])[0], list_scores([given])[0])
    assert np.isfinite(list_scores([given])[0]).all() and np.isnan(list_scores([missing])[0]).all()


@pytest.mark.parametrize(
    ("k", "point", "robin", "wins", "half"), [(5, 0.34, 0.84, 0.81, 0.86), (10, 0.22, 0.85, None, 0.88)]
)
def test_pointwise_judgments_lower_top_1_and_pairs_raise_it(
    k: int, point: float, robin: float, wins: float | None, half: float
) -> None:
    made = make(20_000, k, noise=1.5, bias=0.0, seed=0)
    before = (made.truth == 0).mean()
    theta = round_robin_mean(debiased(made.logits))
    assert made.top1(made.points) == pytest.approx(point, abs=0.02) and made.top1(made.points) < before - 0.2
    assert made.top1(theta) == pytest.approx(robin, abs=0.02) and made.top1(theta) > before + 0.2
    assert made.top1(fused(made, theta)) == pytest.approx(half, abs=0.02)
    if wins is not None:
        assert made.top1(prp_wins(made.logits)) == pytest.approx(wins, abs=0.02)


@pytest.mark.parametrize(("k", "orders", "bias", "expected"), [
    (5, "both", 0.0, 0.80), (5, "both", 2.0, 0.80), (10, "both", 0.0, 0.79), (5, "one", 0.0, 0.73),
])  # fmt: skip
def test_sliding_has_the_figures_of_the_made_judge(k: int, orders: str, bias: float, expected: float) -> None:
    made = make(5000, k, noise=1.5, bias=bias, seed=0)
    logits = play(made, "sliding", orders)
    theta = scores(debiased(logits), answers(logits), "sliding").theta
    assert made.top1(theta) == pytest.approx(expected, abs=0.02)


def test_in_one_order_a_bias_costs_less_if_a_is_the_front_ends_and_nothing_if_it_is_subtracted() -> None:
    made = make(5000, 5, noise=1.5, bias=2.0, seed=0)

    def top1(made, bias=0.0):
        logits = play(made, "sliding", "one", bias)
        return made.top1(scores(debiased(logits, bias), answers(logits), "sliding").theta)

    assert top1(made.first_is_a()) == pytest.approx(0.70, abs=0.02)
    assert top1(made, bias=2.0) == pytest.approx(0.73, abs=0.02)
    assert top1(made) < 0.65


@pytest.mark.parametrize(("bias", "expected"), [(0.0, 0.65), (2.0, 0.32)])
def test_consistency_has_the_figures_of_the_made_judge(bias: float, expected: float) -> None:
    made = make(20_000, 5, noise=1.5, bias=bias, seed=0)
    upper = np.triu_indices(5, 1)
    assert consistent(made.logits)[:, upper[0], upper[1]].mean() == pytest.approx(expected, abs=0.02)
