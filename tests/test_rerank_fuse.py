"""Fusion with the front end, its weights, and rerank.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jzi.errors import RerankError
from jzi.rerank.config import RerankConfig
from jzi.rerank.fuse import LEAST_PHOTOS, PURE, TEMPERATURES, LabelledScores, Weights, fit, fit_temperature, fuse
from jzi.rerank.weights_file import FILE, FORMAT, WeightsFile, read_weights, shown_as, write_weights

UNCHANGED = Weights(judge=0.0)


def photos(count: int, prior: float, judge: float, seed: int, k: int = 5) -> list[LabelledScores]:
    """Photos whose true candidate is drawn by a conditional logit of these weights."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        probability, theta = rng.dirichlet(np.ones(k)) * rng.uniform(0.3, 1), rng.normal(0, 1.5, k)
        logit = prior * np.log(probability) + judge * theta
        share = np.exp(logit - logit.max())
        rows.append(LabelledScores(probability, theta, int(rng.choice(k, p=share / share.sum()))))
    return rows


def test_the_probability_outside_of_the_candidates_is_untouched() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        probability = rng.dirichlet(np.ones(6))
        rest, theta = probability[5], rng.normal(0, 40, 5)
        weights = Weights(prior=rng.uniform(0, 3), judge=rng.uniform(0, 3))
        result = fuse(probability[:5], theta, rest, weights)
        assert abs(result.sum() + rest - 1) < 1e-9 and (result >= 0).all()


def test_fusion_multiplies_powers_of_the_two() -> None:
    probability, theta = np.array([0.5, 0.3]), np.array([-1.0, 0.5])
    expected = probability**2 * np.exp(0.5 * theta)
    result = fuse(probability, theta, 0.2, Weights(prior=2.0, judge=0.5))
    np.testing.assert_allclose(result, 0.8 * expected / expected.sum())


def test_a_candidate_that_was_not_shown_is_left_alone() -> None:
    probability, theta = np.array([0.3, 0.25, 0.2, 0.05]), np.array([0.0, np.nan, 5.0, 1.0])
    result = fuse(probability, theta, 0.2, Weights())
    assert result[1] == pytest.approx(0.25, abs=1e-12) and result.sum() == pytest.approx(0.8, abs=1e-12)
    assert result[2] > probability[2]


def test_without_scores_or_weight_of_the_judge_nothing_changes() -> None:
    probability = np.array([0.4, 0.3, 0.0, 0.1])
    np.testing.assert_allclose(fuse(probability, np.full(4, np.nan), 0.2, Weights()), probability, atol=1e-12)
    np.testing.assert_allclose(fuse(probability, np.arange(4.0), 0.2, UNCHANGED), probability, atol=1e-12)


def test_the_judge_alone_gives_its_own_order() -> None:
    theta = np.array([0.0, 2.0, -1.0, 1.0])
    result = fuse(np.array([0.7, 0.1, 0.1, 0.05]), theta, 0.05, PURE)
    assert (np.argsort(result) == np.argsort(theta)).all()


@pytest.mark.parametrize(("prior", "judge"), [(1.0, 0.7), (0.5, 1.2), (1.6, 0.4)])
def test_fitted_weights_are_those_that_made_the_data(prior: float, judge: float) -> None:
    weights = fit(photos(4000, prior, judge, seed=1))
    assert weights.prior == pytest.approx(prior, abs=0.1) and weights.judge == pytest.approx(judge, abs=0.1)
    assert weights.calibrated and weights.photos == 4000 and weights.gain[0] > weights.gain[1] > 0


def test_a_random_judge_gets_no_weight() -> None:
    for seed in range(20):
        weights = fit(photos(150, 1.0, 0.0, seed))
        assert (weights.prior, weights.judge, weights.calibrated) == (1.0, 0.0, True)
        row = photos(1, 1.0, 0.0, seed)[0]
        rest = 1 - row.probability.sum()
        np.testing.assert_allclose(fuse(row.probability, row.theta, rest, weights), row.probability, atol=1e-9)


def test_a_front_end_that_is_badly_calibrated_gives_a_random_judge_no_weight() -> None:
    for seed in range(10):
        assert fit(photos(300, 0.4, 0.0, seed)).judge == 0


def test_a_judge_that_is_always_wrong_gets_no_weight() -> None:
    weights = fit(photos(500, 1.0, -1.0, seed=2))
    assert (weights.prior, weights.judge) == (1.0, 0.0)


def test_a_judge_without_any_error_has_a_finite_weight() -> None:
    rows = [replace(row, theta=5.0 * np.eye(5)[row.truth]) for row in photos(200, 1.0, 0.0, seed=3)]
    weights = fit(rows)
    assert 0 < weights.judge < 100 and np.isfinite(weights.prior)


def test_too_few_photos_leave_the_weights_uncalibrated() -> None:
    rows = photos(LEAST_PHOTOS - 1, 1.0, 1.0, seed=4)
    assert fit(rows) == Weights(photos=LEAST_PHOTOS - 1) and not Weights().calibrated
    assert (Weights().prior, Weights().judge) == (1.0, 0.5)
    assert fit([*rows, *photos(1, 1.0, 1.0, seed=5)]).calibrated


def test_photos_whose_true_candidate_was_not_shown_are_left_out() -> None:
    rows = photos(200, 1.0, 1.0, seed=6)
    hidden = [replace(row, theta=np.where(np.arange(5) == row.truth, np.nan, row.theta)) for row in rows]
    elsewhere = [replace(row, truth=-1) for row in rows]
    impossible = [replace(row, probability=np.where(np.arange(5) == row.truth, 0.0, row.probability)) for row in rows]
    alone = [replace(row, theta=np.where(np.arange(5) == row.truth, row.theta, np.nan)) for row in rows]
    assert fit([*rows, *hidden, *elsewhere, *impossible, *alone]) == fit(rows)


def test_candidates_that_were_not_shown_are_no_alternatives() -> None:
    rows = photos(200, 1.0, 1.0, seed=7)
    longer = [
        LabelledScores(np.append(0.1, row.probability), np.append(np.nan, row.theta), row.truth + 1) for row in rows
    ]
    assert fit(longer) == fit(rows)


def test_the_temperature_is_that_of_the_log_odds() -> None:
    rng = np.random.default_rng(8)
    log_odds = rng.normal(0, 4, 20_000)
    true = np.where(rng.uniform(size=20_000) < 1 / (1 + np.exp(-log_odds / 2.5)), log_odds, -log_odds)
    assert fit_temperature(true) == pytest.approx(2.5, abs=0.15)
    assert fit_temperature(np.array([1.0, 2.0])) == TEMPERATURES[0]
    assert fit_temperature(np.array([-1.0, -2.0])) == TEMPERATURES[1]


@pytest.fixture
def recorded() -> WeightsFile:
    weights = Weights(1.5, 0.9, 0.6, (0.2, 0.1, 0.3), 250, calibrated=True)
    return WeightsFile(
        judge="abc", prompts="1", method="pairs", orders="both", front="zoom", pictures="p", weights=weights, bias=-0.5
    )


def test_weights_are_the_same_after_reading(recorded: WeightsFile, tmp_path: Path) -> None:
    write_weights(tmp_path / FILE, recorded)
    assert read_weights(tmp_path / FILE) == recorded
    assert json.loads((tmp_path / FILE).read_text())["jzi_rerank"] == FORMAT


def test_fitted_weights_can_be_written_and_read(recorded: WeightsFile, tmp_path: Path) -> None:
    for rows in ([], photos(150, 1.0, 0.0, 9), photos(150, 1.0, 1.0, 9)):
        written = replace(recorded, weights=fit(rows))
        write_weights(tmp_path / FILE, written)
        assert read_weights(tmp_path / FILE) == written


def test_weights_belong_to_a_judge_its_texts_a_method_and_a_front_end(recorded: WeightsFile) -> None:
    assert recorded.mismatch(replace(recorded, weights=Weights(), bias=0.0)) == ""
    for change, name in (
        ({"judge": "other"}, "judge"),
        ({"prompts": "2"}, "version of the texts"),
        ({"method": "sliding"}, "method"),
        ({"orders": "one"}, "choice of orders"),
        ({"front": "cells"}, "front end"),
        ({"pictures": "q"}, "size of pictures"),
    ):
        assert recorded.mismatch(replace(recorded, **change)) == name
    assert recorded.same_bias(replace(recorded, method="sliding", front="cells"))
    assert not recorded.same_bias(replace(recorded, judge="other"))
    assert shown_as(RerankConfig()) != shown_as(RerankConfig(outline=False))


def damage(change: Callable[[dict[str, Any]], Any]) -> Callable[[str], str]:
    def apply(text: str) -> str:
        entries = json.loads(text)
        change(entries)
        return json.dumps(entries)

    return apply


HOSTILE = {
    "no JSON": lambda text: text[:-5],
    "no UTF-8": lambda text: "\ud800",
    "nested": lambda text: "[" * 60_000,
    "a list": lambda text: "[]",
    "a number": lambda text: "1",
    "another file": lambda text: "{}",
    "too long": lambda text: text + " " * 2**16,
    "format": damage(lambda entries: entries.update(jzi_rerank=FORMAT + 1)),
    "missing": damage(lambda entries: entries.pop("weights")),
    "unknown": damage(lambda entries: entries.update(extra=1)),
    "unknown within": damage(lambda entries: entries["weights"].update(extra=1)),
    "negative": damage(lambda entries: entries["weights"].update(judge=-0.1)),
    "nan": damage(lambda entries: entries["weights"].update(prior=float("nan"))),
    "infinite": damage(lambda entries: entries["weights"].update(judge=float("inf"))),
    "huge": damage(lambda entries: entries["weights"].update(judge=1e9)),
    "zero": damage(lambda entries: entries["weights"].update(temperature=0.0)),
    "text": damage(lambda entries: entries["weights"].update(prior="1")),
    "bias": damage(lambda entries: entries.update(bias=float("nan"))),
    "long": damage(lambda entries: entries.update(judge="x" * 1000)),
    "orders": damage(lambda entries: entries.update(orders="some")),
    "whole": damage(lambda entries: entries.update(weights=[1, 2])),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_damaged_file_is_refused_in_one_sentence(name: str, recorded: WeightsFile, tmp_path: Path) -> None:
    path = tmp_path / FILE
    write_weights(path, recorded)
    path.write_text(HOSTILE[name](path.read_text()), errors="surrogatepass")
    with pytest.raises(RerankError, match=r"rerank\.json .*jzi rerank calibrate`$") as refusal:
        read_weights(path)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 600


def test_a_missing_file_is_told_from_a_damaged_one_and_an_unwritable_folder_is_reported(
    recorded: WeightsFile, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError):
        read_weights(tmp_path / FILE)
    (tmp_path / "file").touch()
    with pytest.raises(RerankError, match="cannot be written"):
        write_weights(tmp_path / "file" / FILE, recorded)
    with pytest.raises(RerankError, match="cannot be read"):
        read_weights(tmp_path)
