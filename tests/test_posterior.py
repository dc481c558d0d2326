"""The posterior is a probability over cells, and its most probable points contain the probability they report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pyproj import Transformer

from jzi.decode import expert as module
from jzi.decode.config import DecoderConfig
from jzi.decode.decoder import ZoomDecoder
from jzi.decode.exhaustive import SPREAD
from jzi.decode.expert import ZoomExpert
from jzi.decode.model import ZoomModel
from jzi.decode.search import zoom
from jzi.decode.tile_table import TileTable
from jzi.locate.answer.location import LocateOptions, to_locations
from jzi.locate.points.discs import most_probable_discs
from jzi.locate.posterior import Posterior, credible_radius, most_probable_cells
from jzi.store.features.map_embeddings import ENCODED, MapEmbeddings
from jzi.store.geometry.pyramid import Pyramid, geodesic_distance
from jzi.store.info import EncoderInfo
from jzi.tests.conftest import decided_decoder


@pytest.fixture
def pyramid() -> Pyramid:
    return Pyramid.around(48.2, 16.37, 320.0, grid=2, levels=4)  # 16 x 16 cells of 20 m


@pytest.fixture
def table(pyramid) -> TileTable:
    rng = np.random.default_rng(0)
    sides = [pyramid.tiles_per_side(level) for level in range(5)]
    embedding = tuple(rng.normal(size=(n, n, 16)).astype(np.float16) for n in sides[:-1])
    return TileTable(MapEmbeddings(pyramid, embedding, tuple(np.full((n, n), ENCODED, np.uint8) for n in sides)))


@pytest.fixture
def decoder() -> ZoomDecoder:
    return decided_decoder(DecoderConfig(width=16, actions=4, layers=2, heads=2))


@pytest.fixture
def query() -> torch.Tensor:
    return torch.randn(5, 16, generator=torch.Generator().manual_seed(1))


def made(pyramid: Pyramid, grids: list[np.ndarray]) -> Posterior:
    """A posterior with given probabilities of every cell."""
    row, col = (values.ravel() for values in np.indices(pyramid.shape))
    probability = np.stack([grid.ravel() for grid in grids])
    return Posterior.from_cells(pyramid, row, col, probability)


def posterior(decoder, table, query, beams=None, temperature=None) -> Posterior:
    info = EncoderInfo("none", False, "0" * 64, 16, 28, "halves")
    model = ZoomModel(decoder, table.pyramid, info, None, Path(), temperature)
    return ZoomExpert(model, table).posterior(query, LocateOptions(beams=beams))


def test_a_small_pyramid_is_searched_whole(decoder, table, query) -> None:
    found = posterior(decoder, table, query)
    np.testing.assert_allclose(found.probability.sum(1), 1, atol=1e-5)
    assert found.row.shape == (5, 256) and (found.residual < 1e-5).all()
    every = zoom(decoder, table, query, beams=256)
    expected = every.log_probability.sum(-1).exp().numpy()
    assert (np.abs(found.probability - expected).sum(1) / 2 <= SPREAD + 1e-6).all()
    np.testing.assert_allclose(found.grid(3).sum(), 1, atol=1e-5)
    row, col = found.row[3, 7], found.col[3, 7]
    assert found.grid(3)[row, col] == found.probability[3, 7]


@pytest.mark.parametrize("beams", [1, 3, 8])
def test_what_a_beam_does_not_reach_is_told(decoder, table, query, beams) -> None:
    whole, part = posterior(decoder, table, query), posterior(decoder, table, query, beams=beams)
    assert part.row.shape[1] == 4 * beams
    np.testing.assert_allclose(part.probability.sum(1) + part.residual, 1, atol=1e-5)
    assert (part.residual > 0.01).any()
    for photo in range(5):  # cells that are reached keep their probability
        there = part.grid(photo) > 0
        np.testing.assert_allclose(part.grid(photo)[there], whole.grid(photo)[there], atol=1e-6)


def test_temperature_flattens_each_step(decoder, table, query) -> None:
    plain = posterior(decoder, table, query)
    ones = posterior(decoder, table, query, temperature=torch.ones(4))
    np.testing.assert_allclose(ones.probability, plain.probability, atol=1e-7)
    hot = posterior(decoder, table, query, temperature=torch.tensor([1000.0] * 4))
    np.testing.assert_allclose(hot.probability, 1 / 256, rtol=0.05)
    first = posterior(decoder, table, query, temperature=torch.tensor([1000.0, 1, 1, 1]))
    quarter = first.grid(0).reshape(2, 8, 2, 8).sum((1, 3))
    np.testing.assert_allclose(quarter, 0.25, rtol=0.05)


def test_the_disc_is_the_one_with_the_most_probability(pyramid) -> None:
    """Compare with counting around every point of a fine grid."""
    rng = np.random.default_rng(2)
    grids = [rng.random((16, 16)) ** 8 for _ in range(4)]
    grids = [grid / grid.sum() for grid in grids]
    found = made(pyramid, grids)
    best = most_probable_discs(found, 50.0)
    fine = (np.arange(16 * 8) + 0.5) / 8 * 20.0  # 2.5 m
    x, y = np.meshgrid(pyramid.west + fine, pyramid.north - fine)
    for photo, grid in enumerate(grids):
        density = np.kron(grid, np.ones((8, 8))) / 64

        def held(px: float, py: float, density: np.ndarray = density) -> float:
            return float(density[np.hypot(x - px, y - py) <= 50].sum())

        here = held(best.x[photo, 0], best.y[photo, 0])
        assert best.probability[photo, 0] == pytest.approx(here, abs=0.01)
        points = (np.arange(16 * 4) + 0.5) * 5
        elsewhere = max(held(pyramid.west + px, pyramid.north - py) for px in points[::2] for py in points[::2])
        assert here > elsewhere - 0.01


def test_the_point_lies_between_two_equal_neighbours(pyramid) -> None:
    grid = np.full((16, 16), 1e-6)
    grid[4, 4] = grid[4, 8] = 0.4  # 80 m apart: both are within 50 m of a point between them
    grid[12, 12] = 0.2
    found = made(pyramid, [grid])
    discs = most_probable_discs(found, 50.0, count=3)
    assert discs.probability[0] == pytest.approx([0.76, 0.2, 0.04], abs=0.05)
    assert abs(discs.x[0, 0] - (pyramid.west + 6.5 * 20)) <= 10
    assert most_probable_cells(found).probability[0, 0] == 0.4


def test_no_two_candidates_lie_within_the_radius_and_none_is_counted_twice(decoder, table, query) -> None:
    found = posterior(decoder, table, query)
    discs = most_probable_discs(found, 50.0, count=5)
    assert (discs.probability.sum(1) <= 1 + 1e-6).all() and (np.diff(discs.probability, axis=1) <= 1e-9).all()
    for photo in range(5):
        apart = np.hypot(np.subtract.outer(discs.x[photo], discs.x[photo]),
                         np.subtract.outer(discs.y[photo], discs.y[photo]))  # fmt: skip
        assert (apart[~np.eye(5, dtype=bool)] > 50).all()
    row, col = (values[np.arange(5), discs.cell[:, 0]] for values in (found.row, found.col))
    x, y = table.pyramid.tile_centers(4, row, col)
    assert (abs(discs.x[:, 0] - x) < 10).all() and (abs(discs.y[:, 0] - y) < 10).all()


def test_many_photos_give_what_each_alone_gives(decoder, table, query) -> None:
    found = posterior(decoder, table, query)
    together = most_probable_discs(found, 30.0, count=3)
    for photo in range(5):
        alone = most_probable_discs(found.of(photo), 30.0, count=3)
        np.testing.assert_allclose(alone.x[0], together.x[photo])
        np.testing.assert_allclose(alone.probability[0], together.probability[photo])


def test_the_credible_radius_holds_its_share(pyramid) -> None:
    flat = np.full((16, 16), 1 / 256)
    found = made(pyramid, [flat])
    middle = np.zeros(1)
    radius = credible_radius(found, middle, middle, 0.68)[0]
    assert np.pi * radius**2 == pytest.approx(0.68 * 320**2, rel=0.03)
    part = (found.row[:, :100], found.col[:, :100], found.probability[:, :100])
    beam = Posterior(pyramid, *part, np.array([156 / 256]))
    assert np.isinf(credible_radius(beam, middle, middle, 0.68)).all()


def test_larger_pyramids_are_searched_by_a_beam() -> None:
    assert module.default_beams(Pyramid.around(48, 16, 10_000, levels=4)) == module.BEAMS
    assert module.default_beams(Pyramid.around(48, 16, 1280, levels=3)) == 256


@pytest.mark.parametrize("estimate", ["mean", "radius", "map"])
def test_answers_are_in_metres_on_the_ground_where_those_of_the_crs_are_longer(estimate) -> None:
    local = Pyramid.around(60.0, 24.9, 320.0, grid=2, levels=4)
    x, y = Transformer.from_crs("EPSG:4326", "EPSG:3857", always_xy=True).transform(24.9, 60.0)
    web = Pyramid("EPSG:3857", x - 320.0, y + 320.0, 640.0, grid=2, levels=4)  # the same area: its metres are doubled
    grid = np.random.default_rng(0).gamma(0.3, size=local.shape)
    grid /= grid.sum()
    options = LocateOptions(estimate=estimate, radius=50.0)
    expected, found = (to_locations(made(area, [grid]), options, ["a"])[0] for area in (local, web))
    assert found.confidence == pytest.approx(expected.confidence, abs=0.02)
    assert found.radius_68 == pytest.approx(expected.radius_68, rel=0.02)
    assert found.radius_95 == pytest.approx(expected.radius_95, rel=0.02)
    assert found.cell_m == pytest.approx(20.0, rel=0.01)
    apart = geodesic_distance(*([each.latitude, each.longitude][axis] for each in (found, expected) for axis in (0, 1)))
    assert apart < 3.0
    first, second = found.candidates[:2]
    assert geodesic_distance(first.latitude, first.longitude, second.latitude, second.longitude) >= 45.0
