"""Pictures that are unlike the training photos: their distance, what it does to the odds, and the file of a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import jzi.locate.novelty as novelty_module
from jzi.errors import ModelError
from jzi.locate.inside import MAX_LOG_ODDS, UNLIKE, InsideDetector
from jzi.locate.novelty import MIN_PHOTOS, SHRINKAGE, Novelty
from jzi.store.model_config import InsideConfig
from jzi.store.model_folder import NOVELTY
from jzi.tests.test_experts import ENCODER, WIDTH

SPREAD = torch.linspace(0.2, 3.0, WIDTH)


def photos(count: int, seed: int) -> torch.Tensor:
    """Embeddings that differ more in some features than in others, around a mean that is not 0."""
    return 1.5 + SPREAD * torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def fitted() -> Novelty:
    found = Novelty.fit(photos(2000, 0), photos(400, 1))
    assert found is not None
    return found


def test_the_distance_is_that_of_mahalanobis_with_a_shrunken_covariance(fitted: Novelty) -> None:
    training, query = photos(2000, 0).double().numpy(), photos(7, 2).double().numpy()
    covariance = np.cov(training.T)
    covariance += SHRINKAGE * np.trace(covariance) / WIDTH * np.eye(WIDTH)
    offset = query - training.mean(0)
    expected = np.einsum("ij,jk,ik->i", offset, np.linalg.inv(covariance), offset)
    np.testing.assert_allclose(np.exp(fitted.log_distance(torch.from_numpy(query))), expected, rtol=1e-6)


def test_with_few_directions_the_others_count_with_their_mean_variance(monkeypatch) -> None:
    monkeypatch.setattr(novelty_module, "DIRECTIONS", 3)
    few = Novelty.fit(photos(2000, 0), photos(400, 1))
    assert few is not None and few.directions.shape == (3, WIDTH) and few.variance.shape == (4,)
    along = few.directions[-1] * few.variance[-2].sqrt()  # one deviation in the direction of the greatest variance
    across = torch.zeros(WIDTH)
    across[0] = few.variance[-1].sqrt()  # the feature that varies least lies in the other directions
    for offset in (along, across):
        assert np.exp(few.log_distance((few.mean + offset)[None]))[0] == pytest.approx(1.0, rel=0.05)


def test_photos_like_the_training_photos_keep_their_odds_and_others_lose_them(fitted: Novelty) -> None:
    like = fitted.log_odds(photos(2000, 3))
    assert (like <= 0).all() and np.median(like) == 0.0 and like.mean() > -0.4
    share = (fitted.log_distance(photos(2000, 3)) > fitted.config.center + 2 * fitted.config.scale).mean()
    assert share == pytest.approx(0.023, abs=0.015)  # the logarithm of the distance is about normal
    other = fitted.log_odds(photos(50, 4) + 30.0)
    least = 1 / (fitted.config.photos + 1)  # no more than as many validation photos can show
    assert other == pytest.approx(np.full(50, np.log(-np.e * least * np.log(least))))


def test_distance_adds_to_the_evidence_and_is_noted(fitted: Novelty) -> None:
    class Sure:
        name = "sure"

        def evidence(self, query: torch.Tensor, hidden: object = None) -> np.ndarray:
            return np.full(len(query), 100.0)

    weights = InsideConfig({"sure": 1.0}, 0.0, 0.9, 400)
    query = torch.cat([fitted.mean[None].float(), fitted.mean[None].float() + 30.0])
    detector = InsideDetector({"sure": Sure()}, weights, fitted)
    assert detector.log_odds(query) == pytest.approx([MAX_LOG_ODDS, MAX_LOG_ODDS + fitted.log_odds(query)[1]])
    assert detector.notes(query) == [(), (UNLIKE,)]
    assert replace(detector, novelty=None).notes(query) == [(), ()]


def test_few_photos_measure_nothing() -> None:
    assert Novelty.fit(photos(MIN_PHOTOS - 1, 0), photos(100, 1)) is None
    assert Novelty.fit(photos(100, 0), photos(MIN_PHOTOS - 1, 1)) is None
    alike = Novelty.fit(torch.ones(60, WIDTH), torch.ones(60, WIDTH))  # nothing varies
    assert alike is not None and np.isfinite(alike.log_odds(photos(3, 2))).all()


def test_the_file_keeps_the_distances_and_a_damaged_one_is_refused(fitted: Novelty, tmp_path: Path) -> None:
    path = tmp_path / NOVELTY
    fitted.save(path)
    loaded = Novelty.load(path, fitted.config, ENCODER)
    np.testing.assert_allclose(loaded.log_distance(photos(5, 6)), fitted.log_distance(photos(5, 6)), rtol=1e-5)
    with pytest.raises(ModelError, match="shape"):
        Novelty.load(path, fitted.config, replace(ENCODER, width=2 * WIDTH))
    replace(fitted, variance=-fitted.variance).save(path)
    with pytest.raises(ModelError, match="variances that are not positive"):
        Novelty.load(path, fitted.config, ENCODER)
    replace(fitted, mean=fitted.mean * torch.nan).save(path)
    with pytest.raises(ModelError, match="not finite"):
        Novelty.load(path, fitted.config, ENCODER)
