"""Fusion of windows with the front end: equation 4, fitted weights, and ground that windows share."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jzi.locate.answer.location import LocateOptions, to_locations
from jzi.locate.posterior import Posterior
from jzi.refine.windows.fuse import PAPER, RankWeights, combine, fit, owned, rank
from jzi.refine.windows.proposals import Proposals, propose, share_ground
from jzi.refine.windows.window import Windows
from jzi.store.geometry.pyramid import Pyramid

AREA = Pyramid.around(48.2, 16.37, 2_500.0, levels=3)


def test_equation_4_by_hand() -> None:
    """Similarities 0.80, 0.78, 0.60 and greatest matches 0.30, 0.45, 0.55: the second one wins with 1.23."""
    similarity, match = np.array([0.80, 0.78, 0.60]), np.array([0.30, 0.45, 0.55])
    probability = np.array([0.5, 0.3, 0.1])
    share = rank(similarity, match, probability, PAPER)
    assert share.argmax() == 1 and (-share).argsort().tolist() == [1, 2, 0]
    weights = [math.exp(1.10), math.exp(1.23), math.exp(1.15)]
    assert share == pytest.approx([0.9 * each / sum(weights) for each in weights], abs=1e-12)


def test_fitted_weights_by_hand() -> None:
    """P = 0.5, 0.25: w1 = 1 and w2 = ln 2 / 0.2 undo a difference of 0.2 in the matches exactly."""
    probability = np.array([0.5, 0.25])
    share = rank(np.log(probability), np.array([0.1, 0.3]), probability, RankWeights(1.0, math.log(2) / 0.2))
    assert share == pytest.approx([0.375, 0.375], abs=1e-12)


def test_the_sum_and_what_lies_outside_are_kept() -> None:
    rng = np.random.default_rng(0)
    probability = rng.dirichlet(np.ones(9), 50)[:, :5]
    score = np.log(probability)
    score[0, 4], probability[0, 4] = -np.inf, 0.0
    for weights in (RankWeights(), PAPER, RankWeights(0.7, 40.0), RankWeights(0.0, 0.0), RankWeights(3.0, 900.0)):
        share = rank(score, rng.uniform(-1, 1, score.shape), probability, weights)
        assert abs(share.sum(1) - probability.sum(1)).max() < 1e-12 and (share >= 0).all()
        assert share[0, 4] == 0


def test_no_weight_on_the_match_changes_nothing() -> None:
    probability = np.random.default_rng(0).dirichlet(np.ones(9), 50)[:, :5]
    share = rank(np.log(probability), np.full((50, 5), np.nan), probability, RankWeights())
    assert abs(share - probability).max() < 1e-12


def simulate(weight: float, photos: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, matches and true candidates, drawn from the model itself with w1 = 0.8."""
    rng = np.random.default_rng(3)
    score, match = np.log(rng.dirichlet(np.ones(8), photos)[:, :5]), rng.normal(0.3, 0.1, (photos, 5))
    logit = 0.8 * score + weight * match
    share = np.exp(logit - np.logaddexp.reduce(logit, 1, keepdims=True))
    truth = (share.cumsum(1) > rng.uniform(size=(photos, 1))).argmax(1)
    truth[::10] = -1  # their cell is not among the candidates
    return score, match, truth


def test_the_weights_of_the_model_are_found() -> None:
    weights = fit(*simulate(12.0))
    assert weights.prior == pytest.approx(0.8, abs=0.2) and weights.match == pytest.approx(12, abs=3)
    assert weights.photos == 360 and weights.gain[0] > 1.64 * weights.gain[1] > 0


def test_a_match_that_says_nothing_changes_nothing() -> None:
    weights = fit(*simulate(0.0))
    assert (weights.prior, weights.match) == (1.0, 0.0)
    score, match, truth = simulate(12.0)
    assert fit(score, -match, truth).match == 0.0  # worse than nothing
    assert fit(score, match, np.full(400, -1)) == RankWeights()


def test_what_the_densities_say_of_the_windows_is_not_fitted_into_the_weights() -> None:
    """Photos whose windows differ by the density in their own ground alone: no weight explains it better."""
    score, match, truth = simulate(0.0)
    kept = np.full(score.shape, 0.01)
    kept[np.arange(len(truth)), truth] = 1.0
    weights = fit(score, match, truth, kept)
    assert (weights.prior, weights.match) == (1.0, 0.0)


def test_missing_candidates_do_not_count() -> None:
    score, match, truth = simulate(12.0)
    longer = np.pad(score, ((0, 0), (0, 3)), constant_values=-np.inf), np.pad(match, ((0, 0), (0, 3)))
    fitted = fit(*longer, truth)
    assert fitted.match == pytest.approx(fit(score, match, truth).match, rel=1e-6)


# Overlapping windows


def windows_at(*cells: tuple[int, int]) -> Windows:
    row, col = np.array(cells).T
    return Windows.around_cells(AREA, row, col, 80.0, 80)


def test_no_ground_has_two_owners_and_none_is_lost() -> None:
    windows = windows_at((20, 30), (20, 31), (21, 30), (21, 32), (50, 50))
    own = owned(windows)
    centres = np.arange(80) + 0.5
    x, y = windows.pixels_to_crs(*(np.stack([each] * 5) for each in np.meshgrid(centres, centres)))
    rng = np.random.default_rng(0)
    bounds = windows.bounds
    for px, py in rng.uniform(bounds[:, :2].min(0), bounds[:, 2:].max(0), (4000, 2)):
        u, v = windows.crs_to_pixels(np.full(5, px), np.full(5, py))
        inside = (u >= 0) & (u < 80) & (v >= 0) & (v < 80)
        if not inside.any():
            continue
        distance = np.hypot(px - windows.x, py - windows.y)
        first = np.flatnonzero(inside)[distance[inside].argsort()[:2]]
        if len(first) > 1 and abs(distance[first[1]] - distance[first[0]]) < 2:
            continue  # on a seam, a pixel may be on either side
        owners = [index for index in np.flatnonzero(inside) if own[index, int(v[index]), int(u[index])]]
        assert owners == [first[0]]
    assert own[4].all() and not own[0].all()
    area = own.sum()  # 1 m pixels: the union of the squares, by inclusion and exclusion on a fine grid
    grid = np.stack(np.meshgrid(np.arange(x.min(), x.max(), 0.5), np.arange(y.min(), y.max(), 0.5)), -1).reshape(-1, 2)
    near = grid[np.hypot(*(grid - [windows.x[0], windows.y[0]]).T) < 200]
    covered = (abs(near[:, None] - np.stack([windows.x, windows.y], 1)).max(2) <= 40)[:, :4].any(1).sum() / 4
    assert area - 80 * 80 == pytest.approx(covered, rel=0.02)


def test_windows_put_together_keep_their_sum_and_count_nothing_twice() -> None:
    windows = windows_at((20, 30), (20, 31), (50, 50))
    density = np.random.default_rng(0).dirichlet(np.ones(80 * 80), 3).reshape(3, 80, 80)
    probability, share = np.array([0.4, 0.3, 0.1]), np.array([0.2, 0.5, 0.1])
    own = owned(windows)
    result = combine(density, np.ones((3, 80, 80), bool), windows, probability, share)
    assert abs(1 - result.sum() - 0.2) < 1e-12 and (result[~own] == 0).all()
    ratio = result[own] / (density * share[:, None, None])[own]
    assert np.ptp(ratio) < 1e-9 * ratio.max()  # all windows are normalised together
    apart = windows_at((20, 30), (20, 40), (50, 50))
    result = combine(density, np.ones((3, 80, 80), bool), apart, probability, share)
    assert abs(result.sum((1, 2)) - share).max() < 1e-12


def test_a_density_on_the_ground_of_another_window_counts_for_that() -> None:
    """Both windows see the photo at the same place, which the second one owns: the first one's share goes to it."""
    windows = windows_at((20, 30), (20, 31))
    density = np.full((2, 80, 80), 1e-9)
    density[0, 40, 79], density[1, 40, 40] = 1.0, 1.0
    density /= density.sum((1, 2), keepdims=True)
    result = combine(density, np.ones((2, 80, 80), bool), windows, np.array([0.5, 0.2]), np.array([0.5, 0.2]))
    assert result[1, 40, 40] == pytest.approx(0.7, abs=1e-4)
    density[0], density[1] = 0.0, 0.0
    density[0, 40, 79], density[1, 40, 0] = 1.0, 1.0  # each in the ground of the other
    result = combine(density, np.ones((2, 80, 80), bool), windows, np.array([0.5, 0.2]), np.array([0.5, 0.2]))
    assert result.sum() == pytest.approx(0.7) and result.max() < 0.001


def test_what_has_no_imagery_gets_nothing() -> None:
    windows = windows_at((20, 30), (20, 31), (50, 50))
    mask = np.ones((3, 80, 80), bool)
    mask[1], mask[0, :, :70] = False, False
    density = np.random.default_rng(0).dirichlet(np.ones(80 * 80), 3).reshape(3, 80, 80) * mask
    result = combine(density, mask, windows, np.array([0.4, 0.0, 0.1]), np.array([0.4, 0.0, 0.1]))
    assert (result[~mask] == 0).all() and result.sum() == pytest.approx(0.5) and result[0].sum() > 0
    assert combine(density, np.zeros_like(mask), windows, np.zeros(3), np.zeros(3)).sum() == 0


# The front end's probability of the ground of windows


def proposals_of(cells: dict[tuple[int, int], float], *windows: tuple[int, int]) -> Proposals:
    row, col = np.array(list(cells)).T
    posterior = Posterior.from_cells(AREA, row, col, np.array(list(cells.values())))
    return Proposals(windows_at(*windows), np.array(windows), posterior)


def test_a_window_has_the_probability_of_the_cells_that_it_covers() -> None:
    """A window of 80 m covers its cell of 39 m, 52 % of the cells beside it, and 27 % of those at its corners."""
    proposals = proposals_of({(20, 30): 0.4, (20, 31): 0.2, (21, 31): 0.1, (50, 50): 0.1}, (20, 30))
    ground = share_ground(proposals, np.ones((1, 80, 80), bool))
    beside = (40 - AREA.cell_size / 2) / AREA.cell_size
    expected = 0.4 + 0.2 * beside + 0.1 * beside**2
    assert ground.probability == pytest.approx([expected], abs=0.01)
    assert ground.probability.sum() + ground.cell_probability.sum() == pytest.approx(0.8, abs=1e-12)
    assert len(ground.cell_probability) == 3  # its own cell is covered completely
    alone = share_ground(proposals_of({(20, 30): 0.4}, (20, 30)), np.ones((1, 80, 80), bool))
    assert alone.probability == pytest.approx([0.4], abs=1e-12) and not len(alone.cell_probability)


def test_neighbouring_windows_share_the_probability_of_the_cells_between_them() -> None:
    proposals = proposals_of({(20, 30): 0.4, (20, 31): 0.3}, (20, 30), (20, 31))
    ground = share_ground(proposals, np.ones((2, 80, 80), bool))
    assert ground.probability == pytest.approx([0.4, 0.3], abs=1e-9)
    assert proposals.owner(*(float(each) for each in AREA.cell_centers(20, 31))) == 1
    assert proposals.owner(*(float(each) for each in AREA.cell_centers(40, 31))) == -1
    half = np.ones((2, 80, 80), bool)
    half[0] = False
    ground = share_ground(proposals, half)
    assert ground.probability[0] == 0 and 0.3 < ground.probability[1] < 0.7


def test_cells_that_a_prior_excludes_stay_excluded() -> None:
    proposals = proposals_of({(20, 30): 0.7, (20, 31): 0.3}, (20, 30))
    mask = share_ground(proposals, np.ones((1, 80, 80), bool)).mask[0]
    assert mask[40, 40] and mask[40, 75] and not mask[40, 3] and not mask[3, 40]
    searched = proposals_of({(20, 30): 0.6, (20, 31): 0.3}, (20, 30))  # 10 % lie in cells that were not reached
    assert share_ground(searched, np.ones((1, 80, 80), bool)).mask.all()


def test_candidates_in_one_cell_have_one_window() -> None:
    posterior = Posterior.from_cells(AREA, np.array([20, 40]), np.array([30, 10]), np.array([0.6, 0.3]))
    (location,) = to_locations(posterior, LocateOptions(top=3, radius=5.0), ["a.jpg"])
    proposals = propose([*location.candidates, *location.candidates], posterior, 80.0, 64, 5)
    assert len(proposals) == len({each.cell for each in location.candidates})
    assert proposals.windows.pixels == 64 and len(propose(location.candidates, posterior, 80.0, 64, 1)) == 1
    np.testing.assert_allclose(proposals.windows.x, AREA.cell_centers(*proposals.cells.T)[0])
