"""Probability is neither lost nor counted twice: in a posterior, along a zoom's steps, and in the points drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from jzi.decode.config import DecoderConfig
from jzi.decode.decoder import ZoomDecoder
from jzi.decode.expert import ZoomExpert, default_beams
from jzi.decode.model import ZoomModel
from jzi.decode.tile_table import TileTable
from jzi.locate.answer.location import LocateOptions, to_locations
from jzi.locate.points.discs import most_probable_discs
from jzi.locate.posterior import Posterior, credible_radius, most_probable_cells
from jzi.store.features.map_embeddings import ENCODED, NODATA, MapEmbeddings
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.info import EncoderInfo

WIDTH = 8
SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def posteriors(draw: st.DrawFn) -> Posterior:
    """Of up to three photos, of some of the cells of a pyramid of at most 16 x 16, with or without a residual."""
    grid = draw(st.integers(2, 4))
    pyramid = Pyramid.around(48.2, 16.37, draw(st.floats(20, 5000)), grid=grid, levels=draw(st.integers(1, 2)))
    side = pyramid.tiles_per_side(pyramid.levels)
    photos, cells = draw(st.integers(1, 3)), draw(st.integers(1, side * side))
    rng = np.random.default_rng(draw(SEEDS))
    cell = np.stack([rng.permutation(side * side)[:cells] for _ in range(photos)])
    weight = rng.random((photos, cells)) ** draw(st.integers(1, 20))  # flat, or a few peaks
    reached = draw(st.sampled_from([0.0, 0.3, 0.999, 1.0]))
    return Posterior.from_cells(pyramid, cell // side, cell % side, reached * weight / weight.sum(1, keepdims=True))


@st.composite
def experts(draw: st.DrawFn) -> ZoomExpert:
    """A random decoder on a random map, parts of which have no imagery."""
    pyramid = Pyramid.around(48.2, 16.37, 640.0, grid=draw(st.integers(2, 3)), levels=draw(st.integers(1, 3)))
    seed = draw(SEEDS)
    rng = np.random.default_rng(seed)
    sides = [pyramid.tiles_per_side(level) for level in range(pyramid.levels + 1)]
    imagery = rng.random((sides[-1], sides[-1])) < draw(st.sampled_from([0.1, 0.6, 1.0]))
    imagery[tuple(rng.integers(0, sides[-1], 2))] = True  # one cell at least
    covered = [imagery.reshape(side, sides[-1] // side, side, -1).any((1, 3)) for side in sides]
    status = tuple(np.where(each, ENCODED, NODATA).astype(np.uint8) for each in covered)
    embedding = tuple(rng.normal(size=(side, side, WIDTH)).astype(np.float16) for side in sides[:-1])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = DecoderConfig(width=WIDTH, actions=pyramid.actions, layers=1, heads=2)
        decoder = ZoomDecoder(config).eval().requires_grad_(False)
        temperature = torch.rand(pyramid.levels) + 0.5
    for parameter in decoder.parameters():
        parameter.mul_(8)  # or all steps would be close to uniform
    info = EncoderInfo("random", False, "e" * 64, width=WIDTH, image_size=28, layout="halves")
    model = ZoomModel(decoder, pyramid, info, None, Path(), temperature)
    return ZoomExpert(model, TileTable(MapEmbeddings(pyramid, embedding, status)))


def photos(seed: int) -> torch.Tensor:
    """(3, feature) embeddings."""
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(3, WIDTH)).astype(np.float32))


def sums(posterior: Posterior) -> NDArray[np.float64]:
    return np.array([posterior.grid(photo).sum() for photo in range(len(posterior))])


# Posteriors


@given(posteriors())
def test_cells_and_residual_sum_to_one(posterior: Posterior) -> None:
    np.testing.assert_allclose(posterior.probability.sum(1) + posterior.residual, 1, atol=1e-9)
    np.testing.assert_allclose(sums(posterior), posterior.probability.sum(1), atol=1e-9)  # no cell comes twice
    assert (posterior.probability >= 0).all()
    assert (posterior.residual >= 0).all()
    assert (np.diff(posterior.probability, axis=1) <= 0).all()


@given(posteriors())
def test_the_steps_of_a_candidate_multiply_to_the_probability_of_its_cell(posterior: Posterior) -> None:
    locations = to_locations(posterior, LocateOptions("map", radius=1e-3), [""] * len(posterior))
    for photo, location in enumerate(locations):
        for candidate in location.candidates:
            np.testing.assert_allclose(np.prod(candidate.step_probabilities), candidate.probability, atol=1e-9)
            assert posterior.grid(photo)[candidate.cell] == candidate.probability
            assert location.pyramid.path_to_tile(candidate.path) == candidate.cell


# The zoom


@given(experts(), SEEDS)
def test_exhaustive_search_gives_every_cell_with_imagery_and_no_other_a_probability(
    expert: ZoomExpert, seed: int
) -> None:
    posterior = expert.posterior(photos(seed), LocateOptions())
    np.testing.assert_allclose(sums(posterior), 1, atol=1e-5)
    assert (posterior.residual < 1e-5).all()
    for photo in range(len(posterior)):
        assert np.array_equal(posterior.grid(photo) > 0, expert.cell_mask)


@given(experts(), SEEDS, st.integers(1, 12))
def test_a_beam_reports_what_it_leaves_out_and_its_cells_keep_their_probabilities(
    expert: ZoomExpert, seed: int, beams: int
) -> None:
    every = expert.posterior(photos(seed), LocateOptions(beams=default_beams(expert.area)))
    some = expert.posterior(photos(seed), LocateOptions(beams=beams))
    np.testing.assert_allclose(sums(some) + some.residual, 1, atol=1e-5)
    for photo in range(len(some)):
        grid = some.grid(photo)
        np.testing.assert_allclose(
            grid[grid > 0], every.grid(photo)[grid > 0], atol=4e-6
        )  # float32, in batches of other shapes


@given(experts(), SEEDS, st.sampled_from(["map", "greedy"]))
def test_the_steps_of_a_zoom_multiply_to_the_probability_of_its_cell(
    expert: ZoomExpert, seed: int, estimate: str
) -> None:
    options = LocateOptions(estimate, radius=1e-3)
    for location in to_locations(expert.posterior(photos(seed), options), options, ["a", "b", "c"]):
        for candidate in location.candidates:
            np.testing.assert_allclose(np.prod(candidate.step_probabilities), candidate.probability, atol=1e-6)
            assert expert.cell_mask[candidate.cell]


# Points


@given(posteriors(), st.floats(1, 500), st.integers(1, 8))
def test_discs_keep_apart_and_hold_no_probability_twice(posterior: Posterior, radius: float, count: int) -> None:
    cell_m = posterior.area.cell_size
    radius = min(
        max(radius, cell_m / 10), 6 * cell_m, max(posterior.area.shape) * cell_m
    )  # a cell is 8 x 8 samples, of which smaller discs hold none
    discs = most_probable_discs(posterior, radius, count)
    assert discs.x.shape == (len(posterior), count)
    assert (discs.probability >= 0).all()
    assert (np.diff(discs.probability, axis=1) <= 1e-9).all()
    assert (discs.probability.sum(1) + posterior.residual <= 1 + 1e-9).all()
    for photo in range(len(posterior)):
        some = discs.probability[photo] > 0
        assert some[0] == (posterior.residual[photo] < 1)
        x, y = discs.x[photo, some], discs.y[photo, some]
        distance = np.hypot(x[:, None] - x, y[:, None] - y)
        assert (distance[~np.eye(len(x), dtype=bool)] > radius).all()


@given(posteriors(), st.floats(0, 200), st.integers(1, 8))
def test_cells_keep_apart_and_come_in_order(posterior: Posterior, apart: float, count: int) -> None:
    points = most_probable_cells(posterior, count, apart)
    np.testing.assert_allclose(points.probability[:, 0], posterior.probability.max(1))
    assert (np.diff(points.probability, axis=1) <= 0).all()
    assert (points.probability.sum(1) + posterior.residual <= 1 + 1e-9).all()
    for photo in range(len(posterior)):
        some = points.probability[photo] > 0
        x, y = points.x[photo, some], points.y[photo, some]
        distance = np.hypot(x[:, None] - x, y[:, None] - y)
        assert (distance[~np.eye(len(x), dtype=bool)] > apart).all()


@given(posteriors())
def test_a_larger_share_needs_no_smaller_radius(posterior: Posterior) -> None:
    points = most_probable_cells(posterior)
    radii = credible_radius(posterior, points.x[:, 0], points.y[:, 0], 0.1, 0.5, 0.9)
    assert (radii >= 0).all()
    assert (radii[:-1] <= radii[1:]).all()
    assert np.array_equal(np.isinf(radii[2]), posterior.probability.sum(1) < 0.9 - 1e-9)
