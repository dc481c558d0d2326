"""Temperatures calibrate probabilities, and the calibration error measures the rest."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from jzi.decode import temperature as module
from jzi.decode.temperature import fit_temperature
from jzi.evaluate.calibration import Answers, Calibration, calibration_error, error_by_chance, reliability


def test_the_error_is_the_mean_gap_of_confidence_and_truth() -> None:
    confidence = np.repeat([0.25, 0.95], 100)
    right = np.concatenate([np.arange(100) < 45, np.arange(100) < 85])
    assert calibration_error(confidence, right) == pytest.approx((0.20 + 0.10) / 2)
    assert [each.photos for each in reliability(confidence, right)] == [100, 100]
    assert calibration_error(np.ones(10), np.ones(10, bool)) == 0


def test_exact_confidences_of_few_photos_are_off_by_chance_as_repeated_draws_show() -> None:
    rng = np.random.default_rng(1)
    confidence = rng.beta(2, 0.6, 400)
    drawn = [calibration_error(confidence, rng.random(400) < confidence) for _ in range(300)]
    found = error_by_chance(confidence)
    assert found.value == pytest.approx(np.mean(drawn), rel=0.05)
    assert [found.low, found.high] == pytest.approx(np.percentile(drawn, (2.5, 97.5)), rel=0.12)
    assert error_by_chance(np.repeat(confidence, 100)).value == pytest.approx(found.value / 10, rel=0.05)
    assert error_by_chance(np.ones(10)).high == 0


@pytest.mark.parametrize("true", [0.5, 1.0, 2.0])
def test_the_temperature_that_made_the_answers_is_found(monkeypatch, true) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, 3, 16, generator=generator) * 2
    logits[:, :, 15] = module.MASKED_LOGIT  # no imagery there
    wanted = torch.tensor([true, 1.0, 3.0])
    probability = (logits / wanted[:, None]).softmax(-1)
    actions = torch.multinomial(probability.flatten(0, 1), 1, generator=generator).view(4000, 3)
    monkeypatch.setattr(module, "_logits", lambda *_: logits)

    assert fit_temperature(None, None, SimpleNamespace(actions=actions)) == pytest.approx(wanted.tolist(), rel=0.08)


def test_the_most_confident_are_answered_first() -> None:
    error = np.array([10.0, 200, 10, 10, 200, 200, 10, 200, 10, 200])
    confidence = np.array([0.9, 0.1, 0.8, 0.7, 0.2, 0.6, 0.5, 0.3, 0.95, 0.4])
    answers = Answers(error, confidence)
    found = Calibration(10, 50.0, {"mean": answers}, answers, 0.0)
    assert found.covering(1.0) == (0.1, 0.5)
    assert found.covering(0.4) == (0.7, 1.0)
    assert found.abstaining(0.6) == (0.5, pytest.approx(0.8))
    assert found.abstaining(0.99)[0] == 0
    assert found.recall("mean", 50.0) == 0.5


def test_estimates_that_agree_within_50_m_are_told_apart_within_20_m_and_by_their_median() -> None:
    near, far = (Answers(np.full(8, error), np.full(8, 0.5)) for error in (10.0, 45.0))
    found = Calibration(8, 50.0, {"mean": near, "radius": far}, None, 0.0).estimates([40.0, 50.0])
    assert list(found["mean"].recall) == [20, 40, 50, 100]
    assert [found[name].recall[50].value for name in ("mean", "radius")] == [1, 1]
    assert [found[name].recall[20].value for name in ("mean", "radius")] == [1, 0]
    assert [found[name].median_error.value for name in ("mean", "radius")] == [10, 45]
