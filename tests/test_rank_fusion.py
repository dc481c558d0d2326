"""Fusion of windows with the front end: fitted weights, and ground that windows share."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from jzi.locate.answer.location import LocateOptions, to_locations
from jzi.locate.posterior import Posterior
from jzi.refine.outputs import RefinerOutput
from jzi.refine.windows.answer import pixel_features
from jzi.refine.windows.fuse import UNCHANGED, PixelFeatures, WindowWeights, combine, fit, own_ground, owned
from jzi.refine.windows.proposals import Proposals, propose, share_ground
from jzi.refine.windows.window import Windows
from jzi.store.geometry.pyramid import Pyramid

AREA = Pyramid.around(48.2, 16.37, 2_500.0, levels=3)


# The weights


def features_of(prior: np.ndarray, density: np.ndarray, match: np.ndarray) -> PixelFeatures:
    return PixelFeatures(np.log(prior), np.log(density), match, prior > 0)


def simulate(density: float, match: float, photos: int = 300) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """True pixels and pooled pixels of photos with three windows, drawn from the model itself with a prior of 0.8."""
    rng, truth, pooled = np.random.default_rng(3), [], []
    for _ in range(photos):
        features = features_of(
            np.repeat(np.repeat(rng.dirichlet(np.ones(12)).reshape(3, 2, 2), 4, 1), 4, 2),
            rng.dirichlet(np.full(64, 0.3), 3).clip(1e-4).reshape(3, 8, 8),
            rng.normal(0.3, 0.1, 3),
        )
        drawn = combine(features, 1.0, WindowWeights(0.8, density, match))
        truth.append(features.at(*np.unravel_index(rng.choice(drawn.size, p=drawn.ravel()), drawn.shape)))
        pooled.append(features.pooled())
    return truth, pooled


def test_the_weights_of_the_model_are_found() -> None:
    fitted = fit(*simulate(0.7, 12.0))
    assert fitted.weights.prior == pytest.approx(0.8, abs=0.15)
    assert fitted.weights.density == pytest.approx(0.7, abs=0.1)
    assert fitted.weights.match == pytest.approx(12, abs=3)
    assert fitted.photos == 300 and fitted.gain[0] > 1.64 * fitted.gain[1] > 0


def test_a_refiner_that_says_nothing_changes_nothing() -> None:
    assert fit(*simulate(0.0, 0.0)).weights == UNCHANGED
    truth, pooled = simulate(0.7, 12.0)
    assert fit(truth[:1], pooled[:1]).weights == UNCHANGED  # too few photos to say
    for each in (*truth, *pooled):
        each[1:3] *= -1  # worse than nothing
    assert fit(truth, pooled).weights == UNCHANGED


def test_a_part_that_says_nothing_has_no_weight() -> None:
    weights = fit(*simulate(0.7, 0.0)).weights
    assert weights.density == pytest.approx(0.7, abs=0.1) and weights.match == 0
    weights = fit(*simulate(0.0, 12.0)).weights
    assert weights.match == pytest.approx(12, abs=3) and weights.density == 0


def test_pooled_pixels_have_the_likelihood_of_all() -> None:
    """A density of 128 x 128 pixels over 4 cells is pooled to few entries; the sum over them is the same to 5 %."""
    rng = np.random.default_rng(0)
    density = np.exp(rng.normal(0, 2, (1, 128, 128)))
    prior = np.repeat(np.repeat(np.array([[[0.4, 0.3], [0.2, 0.1]]]), 64, 1), 64, 2)
    pooled = features_of(prior, density, np.array([0.5])).pooled()
    assert pooled.shape[1] < 400 and np.exp(pooled[3]).sum() == pytest.approx(128 * 128)
    for weights in ((1.0, 1.0, 3.0), (0.5, 2.0, 0.0), (1.0, 0.0, 0.0)):
        whole = (prior ** weights[0] * density ** weights[1]).sum() * math.exp(0.5 * weights[2])
        assert np.exp(np.array(weights) @ pooled[:3] + pooled[3]).sum() == pytest.approx(whole, rel=0.05)


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


def of_windows(windows: Windows, prior: np.ndarray, density: np.ndarray, mask: np.ndarray | None = None):
    """Features of windows whose cells all have one prior."""
    own = own_ground(windows, np.ones(density.shape, bool) if mask is None else mask)
    even = np.ones(density.shape) * prior[:, None, None]
    with np.errstate(divide="ignore"):
        return PixelFeatures(np.log(even), np.log(density), np.zeros(len(windows)), own)


def test_windows_put_together_keep_their_sum_and_count_nothing_twice() -> None:
    windows = windows_at((20, 30), (20, 31), (50, 50))
    density = np.random.default_rng(0).dirichlet(np.ones(80 * 80), 3).reshape(3, 80, 80)
    features = of_windows(windows, np.array([0.4, 0.3, 0.1]), density)
    for weights in (WindowWeights(), UNCHANGED, WindowWeights(0.0, 0.0, 0.0), WindowWeights(3.0, 900.0, 900.0)):
        result = combine(features, 0.8, weights)
        assert abs(result.sum() - 0.8) < 1e-12 and (result >= 0).all() and (result[~features.own] == 0).all()
    product = np.exp(0.5 * features.log_prior + 2 * features.log_density)[features.own]
    ratio = combine(features, 0.8, WindowWeights(0.5, 2.0, 7.0))[features.own] / product
    assert np.ptp(ratio) < 1e-9 * ratio.max()  # all windows are normalised together


def test_a_density_on_the_ground_of_another_window_counts_for_that() -> None:
    """Both windows see the photo at the same place, which the second one owns: the first one's share goes to it."""
    windows = windows_at((20, 30), (20, 31))
    density = np.full((2, 80, 80), 1e-9)
    density[0, 40, 79], density[1, 40, 40] = 1.0, 1.0
    result = combine(of_windows(windows, np.array([0.5, 0.2]), density), 0.7, WindowWeights())
    assert result[1, 40, 40] == pytest.approx(0.7, abs=1e-4)
    density[0], density[1] = 1e-9, 1e-9
    density[0, 40, 79], density[1, 40, 0] = 1.0, 1.0  # each in the ground of the other
    result = combine(of_windows(windows, np.array([0.5, 0.2]), density), 0.7, WindowWeights())
    assert result.sum() == pytest.approx(0.7) and result.max() < 0.001


def test_what_has_no_imagery_gets_nothing() -> None:
    windows = windows_at((20, 30), (20, 31), (50, 50))
    mask = np.ones((3, 80, 80), bool)
    mask[1], mask[0, :, :70] = False, False
    density = np.random.default_rng(0).dirichlet(np.ones(80 * 80), 3).reshape(3, 80, 80) * mask
    result = combine(of_windows(windows, np.array([0.4, 0.2, 0.1]), density, mask), 0.5, WindowWeights())
    assert (result[~mask] == 0).all() and result.sum() == pytest.approx(0.5) and result[0].sum() > 0
    assert combine(of_windows(windows, np.ones(3), density, np.zeros_like(mask)), 0.5, WindowWeights()).sum() == 0


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


def test_without_a_weight_of_the_refiner_the_pixels_have_the_probability_of_their_cells() -> None:
    cells = {(20, 30): 0.4, (20, 31): 0.2, (21, 31): 0.1, (50, 50): 0.1}
    proposals = proposals_of(cells, (20, 30), (20, 31))
    logits = torch.from_numpy(np.random.default_rng(0).normal(0, 3, (2, 80, 80)))
    levels = (torch.zeros(2, 1, 8, 8),)
    output = RefinerOutput(logits, levels, torch.ones(2, 80, 80) > 0, torch.zeros(2, 1))
    features, ground = pixel_features(output, proposals, 1.0)
    probability = combine(features, float(ground.probability.sum()), UNCHANGED)
    centre = AREA.cell_centers(np.array([20, 20, 21]), np.array([30, 31, 31]))
    pixel = (80 / 80 / AREA.cell_size) ** 2
    for x, y, expected in zip(*centre, (0.4, 0.2, 0.1), strict=True):
        u, v = (each.astype(int) for each in proposals.windows.crs_to_pixels(np.full(2, x), np.full(2, y)))
        at = [probability[t, v[t], u[t]] for t in range(2) if 0 <= u[t] < 80 and 0 <= v[t] < 80]
        assert sum(at) == pytest.approx(expected * pixel, rel=0.05)
    assert probability.sum() + ground.cell_probability.sum() == pytest.approx(0.8, abs=1e-12)


def test_candidates_in_one_cell_have_one_window() -> None:
    posterior = Posterior.from_cells(AREA, np.array([20, 40]), np.array([30, 10]), np.array([0.6, 0.3]))
    (location,) = to_locations(posterior, LocateOptions(top=3, radius=5.0), ["a.jpg"])
    proposals = propose([*location.candidates, *location.candidates], posterior, 80.0, 64, 5)
    assert len(proposals) == len({each.cell for each in location.candidates})
    assert proposals.windows.pixels == 64 and len(propose(location.candidates, posterior, 80.0, 64, 1)) == 1
    np.testing.assert_allclose(proposals.windows.x, AREA.cell_centers(*proposals.cells.T)[0])
