"""The spread of a fused posterior: moves to neighbouring cells, and the fit of their probability."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import jzi.locate.joint.fusion as fusion
import jzi.locate.joint.spread as spread_module
from jzi.locate.joint.fusion import FusedExpert, combine
from jzi.locate.joint.fusion_weights import fit_weights
from jzi.locate.joint.gain import MIN_PHOTOS
from jzi.locate.joint.spread import GREATEST, fit_spread, neighbours
from jzi.locate.posterior import Posterior
from jzi.tests.test_fusion import AREA, CELLS, FixedExpert, from_grid, half_nodata, random_posterior

ROWS, COLS = AREA.shape


def moved(probability: np.ndarray, mask: np.ndarray, spread: float) -> np.ndarray:
    """(row, col) probabilities after the moves, cell by cell."""
    result = np.zeros_like(probability)
    for (row, col), value in np.ndenumerate(probability):
        for down, across in np.ndindex(3, 3):
            share = (spread if down != 1 else 1 - 2 * spread) * (spread if across != 1 else 1 - 2 * spread)
            target = row + down - 1, col + across - 1
            inside = 0 <= target[0] < ROWS and 0 <= target[1] < COLS and mask[target]
            result[target if inside else (row, col)] += share * value
    return result


def ragged() -> np.ndarray:
    """Imagery with a hole, and without most of a corner."""
    mask = half_nodata()
    mask[4:6, 3] = mask[0, :9] = False
    return mask


@pytest.mark.parametrize("spread", [0.05, GREATEST])
def test_every_cell_gives_its_share_to_the_neighbours_with_imagery(spread: float) -> None:
    mask, rng = ragged(), np.random.default_rng(3)
    posterior = random_posterior(rng, 4, CELLS, mask, 2.0)
    fused = combine([FixedExpert(posterior, mask)], [posterior], [0.8], spread)
    plain = combine([FixedExpert(posterior, mask)], [posterior], [0.8])
    for photo in range(4):
        np.testing.assert_allclose(fused.grid(photo), moved(plain.grid(photo), mask, spread), atol=1e-12)
    np.testing.assert_allclose(fused.probability.sum(1), 1.0)
    assert (np.diff(fused.probability, axis=1) <= 0).all()  # the most probable first


def test_where_few_cells_are_reached_their_neighbours_are_reached_too() -> None:
    mask, rng = ragged(), np.random.default_rng(4)
    posteriors = [random_posterior(rng, 5, count, mask, 2.5) for count in (6, 11)]
    experts = [FixedExpert(each, mask) for each in posteriors]
    plain, fused = combine(experts, posteriors, [0.7, 0.6]), combine(experts, posteriors, [0.7, 0.6], 0.1)
    for photo in range(5):
        before = plain.grid(photo)
        reached = before > 0
        other = plain.residual[photo] / (mask & ~reached).sum()
        expected = moved(before, mask, 0.1)
        found = fused.grid(photo)
        near = found > 0
        assert (near == (expected > 0)).all() and near.sum() > reached.sum()
        np.testing.assert_allclose(found[near], expected[near] + np.where(reached, 0, other)[near], atol=1e-12)
        assert fused.residual[photo] == pytest.approx(1 - found.sum(), abs=1e-9)


def test_only_the_most_probable_cells_of_a_large_map_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all cells, given as candidates, the same is found as on a small map, for as many as are moved."""
    mask, rng = ragged(), np.random.default_rng(5)
    posterior = random_posterior(rng, 3, CELLS, mask, 2.0)
    experts = [FixedExpert(posterior, mask)]
    dense = combine(experts, [posterior], [1.0], 0.07)
    monkeypatch.setattr(fusion, "MAX_CELLS", int(mask.sum()))  # fewer than the map has, so that it counts as large
    sparse = combine(experts, [posterior], [1.0], 0.07)
    for photo in range(3):
        np.testing.assert_allclose(sparse.grid(photo), dense.grid(photo), atol=1e-12)
    monkeypatch.setattr(spread_module, "MOVED", 1)
    single = combine(experts, [posterior], [1.0], 0.07)
    plain = combine(experts, [posterior], [1.0])
    for photo in range(3):
        changed = np.argwhere(~np.isclose(single.grid(photo), plain.grid(photo), rtol=0, atol=1e-15))
        assert 1 < len(changed) <= 9 and np.ptp(changed, axis=0).max() <= 2


def test_nothing_moves_to_a_cell_that_an_expert_rules_out() -> None:
    mask, rng = np.ones(AREA.shape, bool), np.random.default_rng(6)
    posterior = random_posterior(rng, 2, CELLS, mask, 2.0)
    half = Posterior.from_cells(AREA, *np.divmod(np.arange(128), COLS), np.full((2, 128), 1 / 128))
    experts = [FixedExpert(posterior), FixedExpert(half, rules_out=True)]
    fused = combine(experts, [posterior, half], [1.0, 1.0], 0.2)
    assert all(fused.grid(photo)[8:].sum() == 0 for photo in range(2))


def test_the_uncalibrated_fusion_is_not_spread_and_a_restricted_one_is() -> None:
    mask, rng = np.ones(AREA.shape, bool), np.random.default_rng(7)
    posterior = random_posterior(rng, 1, CELLS, mask, 2.0)
    fused = FusedExpert([FixedExpert(posterior)], [0.9], 0.1)
    uncalibrated = fused.uncalibrated()
    assert uncalibrated is not None and uncalibrated.spread == 0.0
    assert fused.restricted(half_nodata()).spread == 0.1


def drawn(spread: float, photos: int = 800, seed: int = 0) -> tuple[Posterior, np.ndarray, np.ndarray]:
    """A posterior, and true cells drawn from it after the moves."""
    rng, mask = np.random.default_rng(seed), ragged()
    posterior = random_posterior(rng, photos, CELLS, mask, 3.0)
    key = np.empty(photos, np.int64)
    for photo in range(photos):
        probability = moved(posterior.grid(photo), mask, spread).ravel()
        key[photo] = rng.choice(CELLS, p=probability / probability.sum())
    return posterior, mask, key


@pytest.mark.parametrize("spread", [0.06, 0.2])
def test_the_spread_that_the_true_cells_were_drawn_with_is_recovered(spread: float) -> None:
    posterior, mask, key = drawn(spread)
    with np.errstate(divide="ignore"):
        log = torch.from_numpy(np.log(np.stack([posterior.grid(photo).ravel() for photo in range(len(posterior))])))
    truth = log.gather(1, torch.from_numpy(neighbours(key, mask)))
    factor, found = fit_spread(log, torch.zeros_like(log), truth)
    assert (factor, found) == pytest.approx((1.0, spread), abs=0.03)
    factor, _ = fit_spread(log / 1.3, torch.zeros_like(log), truth / 1.3)  # half of the way back, as a ratio
    assert factor == pytest.approx(1.3**0.5, abs=0.03)


def test_the_fitted_spread_is_the_most_likely_one_and_makes_photos_more_likely() -> None:
    posterior, mask, key = drawn(0.1, 300)
    fitted = fit_weights(["a"], [posterior], mask, key)
    row, col = np.divmod(key, COLS)

    def likelihood(weight: float, spread: float) -> float:
        fused = combine([FixedExpert(posterior, mask)], [posterior], [weight], spread)
        return float(np.log(fused.at(row, col)).mean())

    best = likelihood(fitted.weights["a"], fitted.spread)
    for factor in (0.95, 1.05):
        assert likelihood(fitted.weights["a"], factor * fitted.spread) < best


def test_without_a_clear_gain_nothing_is_spread() -> None:
    posterior, mask, key = drawn(0.0, 400, seed=2)
    fitted = fit_weights(["a"], [posterior], mask, key)
    assert fitted.spread == 0.0 and fitted.weights["a"] == pytest.approx(1.0, abs=0.15)
    few = MIN_PHOTOS - 1
    posterior, mask, key = drawn(0.25, few)
    assert fit_weights(["a"], [posterior], mask, key).spread == 0.0


def test_neighbours_without_imagery_are_the_cell_itself() -> None:
    mask = np.array([[True, False], [True, True]])
    assert neighbours(np.array([2]), mask).tolist() == [[2, 0, 2, 2, 2, 3, 2, 2, 2]]


def test_a_certain_expert_gives_finite_probabilities() -> None:
    grid = np.zeros((2, CELLS))
    grid[:, 17] = 1.0
    posterior = from_grid(grid, 1)
    fused = combine([FixedExpert(posterior)], [posterior], [30.0], 0.1)
    assert np.isfinite(fused.probability).all() and torch.tensor(fused.probability).sum(1).allclose(
        torch.ones(2, dtype=torch.float64) - torch.tensor(fused.residual)
    )
