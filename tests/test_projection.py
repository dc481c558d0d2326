"""A zoom's tiles and the cells of retrieval are multiplied on the cells, and weights are fitted on photos."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jzi.errors import ConfigError
from jzi.locate.answer.location import LocateOptions
from jzi.locate.joint.projected_expert import ProjectedExpert
from jzi.locate.joint.projection import NAMES, ProjectedFusion, Projection
from jzi.locate.posterior import Posterior
from jzi.locate.priors.prior import PriorExpert
from jzi.store.geometry.bands import BandGrid
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.info import EncoderInfo

GRID = BandGrid.covering(-71.10, 42.35, -71.06, 42.37, 30.0)
TILES = Pyramid.around(42.36, -71.08, 4000.0, grid=4, levels=2)  # 16 x 16 tiles of 250 m, a part of them outside
MASK = (np.arange(GRID.shape[1]) < GRID.count[:, None]) & (np.random.default_rng(7).random(GRID.shape) < 0.9)


@pytest.fixture(scope="module")
def projection() -> Projection:
    return Projection(TILES, GRID, MASK)


def photos(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, Posterior, Posterior]:
    """True cells, and what two experts think: one knows the cell among 400, the other the tile among 40."""
    rng = np.random.default_rng(seed)
    row, col = np.nonzero(MASK)
    truth = rng.integers(0, len(row), count)
    tile_row, tile_col = TILES.cells_at(*GRID.positions(row, col))
    cells, tiles = [], []
    for true in truth:
        reached = np.unique(np.append(rng.integers(0, len(row), 400), true if rng.random() < 0.9 else 0))
        logit = rng.normal(size=len(reached)) * 2 + 5 * (reached == true)
        weight = np.exp(logit)
        cells.append(Posterior.from_cells(GRID, row[reached], col[reached], 0.97 * weight / weight.sum()))
        every = np.unique(np.append(rng.integers(0, 256, 40), tile_row[true] * 16 + tile_col[true]))
        logit = rng.normal(size=len(every)) + 3 * (every == tile_row[true] * 16 + tile_col[true])
        weight = np.exp(logit)
        tiles.append(Posterior.from_cells(TILES, every // 16, every % 16, 0.95 * weight / weight.sum()))
    return row[truth], col[truth], Posterior.concatenate(cells), Posterior.concatenate(tiles)


def test_every_cell_lies_in_one_tile(projection: Projection) -> None:
    row, col = np.nonzero(MASK)
    tile = projection.tile_of(row, col)
    assert (tile >= 0).all()
    counts = np.bincount(tile, minlength=256)
    assert (projection.counts(np.arange(256)) == counts).all() and counts.sum() == projection.count
    index, cell_row, cell_col = projection.cells_of(np.array([120, 7]))
    assert len(index) == counts[120] + counts[7] > 50
    assert (projection.tile_of(cell_row, cell_col) == np.array([120, 7])[index]).all()


def test_a_tile_shares_its_probability_evenly_among_its_cells(projection: Projection) -> None:
    rest = Posterior.from_cells(TILES, np.array([7, 8, 0]), np.array([7, 3, 0]), np.array([0.6, 0.2, 0.1]))
    assert projection.counts(np.array([0]))[0] == 0  # outside of the region: its probability is no cell's
    found = projection.project(rest)
    grid = found.grid()
    row, col = np.nonzero(MASK)
    tile = projection.tile_of(row, col)
    for number, probability in ((7 * 16 + 7, 0.6), (8 * 16 + 3, 0.2)):
        here = grid[row[tile == number], col[tile == number]]
        assert here.sum() == pytest.approx(probability / 0.9) and np.ptp(here) < 1e-15
    assert found.residual[0] == pytest.approx(0.1 / 0.9)
    assert projection.project(rest, limit=5).residual[0] == pytest.approx(1)


def test_the_product_is_that_of_arrays_of_all_cells(projection: Projection) -> None:
    row, col, cells, tiles = photos(6, 0)
    fusion, weights = ProjectedFusion.of(projection, cells, tiles), torch.tensor([0.8, 0.5], dtype=torch.float64)
    found, likelihood = fusion.posterior(weights), fusion.log_likelihood(weights, row, col)
    floor = 1e-4
    for photo in range(6):
        retrieved, zoomed = cells.of(photo).grid(), projection.project(tiles.of(photo), 10**6)
        retrieved[MASK & (retrieved == 0)] = cells.residual[photo] / (MASK & (retrieved == 0)).sum()
        grid = zoomed.grid()
        grid[MASK & (grid == 0)] = zoomed.residual[0] / max(1, (MASK & (grid == 0)).sum())
        product = ((1 - floor) * retrieved + floor / MASK.sum()) ** 0.8 * (
            (1 - floor) * grid + floor / MASK.sum()
        ) ** 0.5
        product = np.where(MASK, product, 0.0)
        product /= product.sum()
        reached = found.of(photo).grid() > 0
        np.testing.assert_allclose(found.of(photo).grid()[reached], product[reached], rtol=1e-8)
        assert found.residual[photo] == pytest.approx(product[~reached].sum())
        assert float(likelihood[photo]) == pytest.approx(np.log(product[row[photo], col[photo]]))


def test_the_fitted_fusion_is_no_less_likely_than_either_expert_alone(projection: Projection) -> None:
    row, col, cells, tiles = photos(150, 1)
    fusion = ProjectedFusion.of(projection, cells, tiles)
    fitted = fusion.fit(row, col)
    weights = torch.tensor([fitted.weights[name] for name in NAMES], dtype=torch.float64)
    best = fusion.log_likelihood(weights, row, col).mean()
    others = ProjectedFusion.of(projection, *photos(150, 2)[2:])
    held_out = photos(150, 2)[:2]
    for scale in (0.3, 0.6, 1.0, 1.5):
        for alone in ([scale, 0.0], [0.0, scale]):
            single = torch.tensor(alone, dtype=torch.float64)
            assert fusion.log_likelihood(single, row, col).mean() <= best + 1e-6
            assert others.log_likelihood(single, *held_out).mean() < others.log_likelihood(weights, *held_out).mean()
    assert (weights > 0.1).all() and fitted.photos == 150
    assert all(mean > 2 * error > 0 for mean, error in fitted.gains.values())


def test_weights_of_a_single_photo_are_bounded(projection: Projection) -> None:
    for seed in range(6):
        row, col, cells, tiles = photos(1, seed)
        weights = ProjectedFusion.of(projection, cells, tiles).fit(row, col).weights
        assert all(0 <= weight < 2 for weight in weights.values()), weights


def test_an_expert_that_knows_nothing_gets_no_weight(projection: Projection) -> None:
    row, col, cells, _ = photos(150, 3)
    _, _, _, tiles = photos(150, 4)  # of other photos
    weights = ProjectedFusion.of(projection, cells, tiles).fit(row, col).weights
    assert weights["cells"] > 0.5 and weights["zoom"] == 0


class Known:
    """An expert whose posterior is known."""

    name, rules_out = "known", False
    encoder = EncoderInfo("none", False, "0" * 64, 2, 14, "fit")

    def __init__(self, posterior: Posterior, cell_mask: np.ndarray) -> None:
        self.area, self.cell_mask, self.known = posterior.area, cell_mask, posterior

    def posterior(self, query: torch.Tensor, options: LocateOptions) -> Posterior:
        return self.known

    def uncalibrated(self) -> None:
        return None


def test_a_prior_outside_of_the_zooms_map_leaves_the_answer_to_retrieval() -> None:
    square = Pyramid.around(42.354, -71.094, 800.0, grid=4, levels=2)
    every = np.ones(square.shape, bool)
    zoom = Known(Posterior.from_cells(square, np.array([3, 9]), np.array([4, 8]), np.array([0.6, 0.4])), every)
    row, col = np.nonzero(MASK)
    outside = np.flatnonzero(Projection(square, GRID, MASK).tile_of(row, col) < 0)
    inside = np.setdiff1d(np.arange(len(row)), outside)
    chosen = np.concatenate([outside[:40], inside[:40]])
    weight = np.random.default_rng(3).random(len(chosen))
    cells = Known(Posterior.from_cells(GRID, row[chosen], col[chosen], weight / weight.sum()), MASK)
    prior = np.zeros(GRID.shape)
    prior[row[outside[:400]], col[outside[:400]]] = 1.0
    query = torch.zeros(1, 4)

    fused = PriorExpert(ProjectedExpert(cells, zoom, (0.5, 1.0)), prior).posterior(query, LocateOptions())
    expected = np.zeros(GRID.shape)
    expected[row[outside[:40]], col[outside[:40]]] = np.sqrt(weight[:40])
    found = np.zeros(GRID.shape)
    np.add.at(found, (fused.row[0], fused.col[0]), fused.probability[0])
    reached = expected > 0
    np.testing.assert_allclose(found[reached] / found[reached].sum(), expected[reached] / expected.sum(), rtol=0.02)
    with pytest.raises(ConfigError, match="gives the retriever no weight"):
        PriorExpert(ProjectedExpert(cells, zoom, (0.0, 1.0)), prior)
