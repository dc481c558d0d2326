"""The sharpness of a fused posterior: a power of each photo's product by its effective number of cells, and its fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import jzi.locate.joint.sharpness as sharpness_module
from jzi.locate.joint.fusion import FLOOR, FusedExpert, Stacked, combine
from jzi.locate.joint.fusion_weights import fit_weights
from jzi.locate.joint.gain import MIN_PHOTOS
from jzi.locate.joint.sharpness import UNIFORM, Sharpness, fit_sharpness, product_size
from jzi.locate.posterior import Posterior
from jzi.tests.test_fusion import AREA, CELLS, FixedExpert, half_nodata

EVERY = np.ones(AREA.shape, bool)
STRONG = Sharpness(0.3, -1.5)


def posteriors_of(photos: int, seed: int = 0, cells: int = CELLS) -> np.ndarray:
    """(photo, cell) probabilities, of some photos in a few cells and of others in most."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(photos, cells)) * rng.uniform(0.3, 4.0, (photos, 1))
    return np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))


def raised(probability: np.ndarray, sharpness: Sharpness) -> np.ndarray:
    """Each row raised to its power, and normalised."""
    size = -np.log((probability**2).sum(1)) - np.log(probability.shape[1])
    power = np.exp(sharpness.slope * (sharpness.center - size))
    result = probability ** power[:, None]
    return result / result.sum(1, keepdims=True)


def posterior_of(probability: np.ndarray) -> Posterior:
    return Posterior.from_cells(AREA, *np.divmod(np.arange(CELLS), AREA.shape[1]), probability)


def drawn(probability: np.ndarray, seed: int = 1) -> np.ndarray:
    """(photo,) cells, drawn from the probabilities of each photo."""
    rng = np.random.default_rng(seed)
    return np.array([rng.choice(len(row), p=row / row.sum()) for row in probability])


def test_the_product_of_each_photo_is_raised_to_its_power() -> None:
    probability = posteriors_of(30)
    posterior = posterior_of(probability)
    fused = combine([FixedExpert(posterior)], [posterior], [1.0], sharpness=STRONG)
    floored = (1 - FLOOR) * probability + FLOOR / CELLS
    for photo, expected in enumerate(raised(floored, STRONG)):
        np.testing.assert_allclose(fused.grid(photo).ravel(), expected, rtol=1e-9)
    plain = combine([FixedExpert(posterior)], [posterior], [1.0])
    change = fused.probability.max(1) / plain.probability.max(1)
    assert change.min() < 0.95 and change.max() > 1.02  # what fits many places gets less sure, what fits one surer


def test_cells_that_no_expert_reached_are_raised_too() -> None:
    """On the union of the reached cells the answer is that on all of them."""
    probability = posteriors_of(5, seed=2)
    others = probability < np.sort(probability, 1)[:, -40:-39]
    for row, other in zip(probability, others, strict=True):  # evenly spread, as a residual is
        row[other] = row[other].mean()
    posterior = posterior_of(probability)
    parts = [posterior, posterior.top(40)]
    stacks = [Stacked.of([each], EVERY, [FLOOR], every_cell=number == 0) for number, each in enumerate(parts)]
    whole, union = (each.posterior(AREA, [0.8], sharpness=STRONG) for each in stacks)
    for photo in range(5):
        reached = union.grid(photo) > 0
        assert reached.sum() == 40
        np.testing.assert_allclose(union.grid(photo)[reached], whole.grid(photo)[reached], rtol=1e-9)
    np.testing.assert_allclose(union.probability.sum(1) + union.residual, 1.0)


def test_a_restricted_fusion_keeps_its_sharpness_and_the_uncalibrated_one_has_none() -> None:
    fused = FusedExpert([FixedExpert(posterior_of(posteriors_of(1)))], [0.9], sharpness=STRONG)
    uncalibrated = fused.uncalibrated()
    assert uncalibrated is not None and uncalibrated.sharpness == UNIFORM
    assert fused.restricted(half_nodata()).sharpness == STRONG


def test_the_size_of_a_product_is_the_share_of_the_cells_that_it_is_in() -> None:
    log = torch.full((1, 8), -torch.inf, dtype=torch.float64)
    log[0, :4] = np.log(0.25)
    assert product_size(log, torch.zeros_like(log), 8).exp().tolist() == pytest.approx([0.5])
    entry = torch.tensor([[np.log(0.25)]], dtype=torch.float64)  # one entry for four cells
    assert product_size(entry, torch.full_like(entry, np.log(4)), 8).exp().tolist() == pytest.approx([0.5])


@pytest.mark.parametrize(("single", "groups"), [(CELLS, 1), (64, 32)])
def test_the_sharpness_that_the_true_cells_were_drawn_with_is_recovered(monkeypatch, single, groups) -> None:
    monkeypatch.setattr(sharpness_module, "SINGLE", single)
    monkeypatch.setattr(sharpness_module, "GROUPS", groups)
    probability, true = posteriors_of(4000, seed=3), Sharpness(0.25, -1.2)
    key = drawn(raised(probability, true))
    log = torch.from_numpy(np.log(probability))
    truth = log.gather(1, torch.from_numpy(key)[:, None]).repeat(1, 9)
    found = fit_sharpness(log, torch.zeros_like(log), truth, 0.0, CELLS)
    assert found.slope == pytest.approx(0.25, abs=0.04) and found.center == pytest.approx(-1.2, abs=0.15)


def test_without_a_clear_gain_products_stay_as_they_are() -> None:
    probability = posteriors_of(400, seed=4)
    fitted = fit_weights(["a"], [posterior_of(probability)], EVERY, drawn(probability))
    assert fitted.sharpness == UNIFORM and fitted.weights["a"] == pytest.approx(1.0, abs=0.1)
    probability = posteriors_of(MIN_PHOTOS - 1)
    few = fit_weights(["a"], [posterior_of(probability)], EVERY, drawn(raised(probability, STRONG)))
    assert few.sharpness == UNIFORM


def test_a_fitted_sharpness_makes_other_photos_more_likely() -> None:
    probability = posteriors_of(3000, seed=5)
    key = drawn(raised(probability, STRONG))
    half = slice(0, 1500), slice(1500, 3000)
    fitted = fit_weights(["a"], [posterior_of(probability[half[0]])], EVERY, key[half[0]])
    posterior = posterior_of(probability[half[1]])
    row, col = np.divmod(key[half[1]], AREA.shape[1])
    plain, sharp = (
        combine([FixedExpert(posterior)], [posterior], [fitted.weights["a"]], fitted.spread, sharpness=each)
        for each in (UNIFORM, fitted.sharpness)
    )
    assert fitted.sharpness.slope > 0.1
    assert np.log(sharp.at(row, col)).mean() > np.log(plain.at(row, col)).mean() + 0.01


def test_a_photo_unlike_the_others_gets_no_extreme_power() -> None:
    extremes = STRONG.power(torch.tensor([-1e3, 1e3], dtype=torch.float64))
    assert extremes.tolist() == pytest.approx([4.0, 0.25])
