"""State-wide retrieval is the softmax over all cells, and in districts reads no more than their chunks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jzi.errors import ConfigError, ModelError
from jzi.locate.answer.location import LocateOptions
from jzi.locate.expert import CellRanks, Restrictable
from jzi.locate.posterior import Posterior
from jzi.retrieve import bands_expert
from jzi.retrieve.bands_expert import BandsExpert
from jzi.store.geometry.bands import BandGrid
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.info import EncoderInfo
from jzi.vectors.district import districts
from jzi.vectors.faiss_index import VectorIndex

from .vector_store import MemoryStore, clustered, dense, near

OPTIONS = LocateOptions()
TEMPERATURE = 1 / 36


@pytest.fixture(scope="module")
def area() -> BandGrid:
    return BandGrid.covering(-71.1, 42.32, -71.04, 42.36, cell_m=30.0)


@pytest.fixture(scope="module")
def store(area) -> MemoryStore:
    vectors = clustered(*area.shape, 32)
    vectors[np.arange(area.shape[1]) >= area.count[:, None]] = np.nan
    return MemoryStore(vectors)


@pytest.fixture
def expert(area, store) -> BandsExpert:
    return BandsExpert(area, store, EncoderInfo.__new__(EncoderInfo), TEMPERATURE)


@pytest.fixture(scope="module")
def query(store) -> torch.Tensor:
    return torch.from_numpy(near(store, 6))


def softmax(store, query, kept=None):
    row, col, similarity = dense(store, query.numpy())
    kept = np.ones(len(row), bool) if kept is None else kept[row, col]
    logits = torch.from_numpy(similarity[:, kept] / TEMPERATURE).double()
    return row[kept], col[kept], logits.softmax(1).numpy()


def test_probabilities_are_the_softmax_over_all_cells_with_the_rest_as_residual(expert, store, query) -> None:
    posterior = expert.posterior(query, OPTIONS)
    row, col, expected = softmax(store, query)
    assert posterior.row.shape == (6, bands_expert.CELLS)
    for number in range(6):
        grid = np.zeros(store.shape)
        grid[row, col] = expected[number]
        found = grid[posterior.row[number], posterior.col[number]]
        np.testing.assert_allclose(posterior.probability[number], found, rtol=2e-3, atol=1e-9)
    np.testing.assert_allclose(posterior.residual, 1 - posterior.probability.sum(1), atol=2e-6)
    greedy = expert.posterior(query, LocateOptions(estimate="greedy"))
    assert (greedy.row == posterior.row[:, :1]).all()
    np.testing.assert_allclose(greedy.probability, posterior.probability[:, :1], rtol=1e-5)


def test_the_residual_is_that_of_few_cells(expert, store, query, monkeypatch) -> None:
    monkeypatch.setattr(bands_expert, "CELLS", 5)
    posterior = expert.posterior(query, OPTIONS)
    expected = -np.sort(-softmax(store, query)[2], axis=1)
    np.testing.assert_allclose(posterior.probability, expected[:, :5], rtol=2e-3)
    np.testing.assert_allclose(posterior.residual, expected[:, 5:].sum(1), rtol=2e-3, atol=1e-4)


def test_a_restricted_expert_reads_and_returns_its_cells_only(expert, store, query) -> None:
    mask = np.zeros(store.shape, bool)
    mask[10:40, 70:120] = True
    store.units_read.clear()
    posterior = expert.restricted(mask).posterior(query, OPTIONS)
    assert len(store.units_read) == 1
    assert mask[posterior.row, posterior.col][posterior.probability > 0].all()
    np.testing.assert_allclose(posterior.probability[:, 0], softmax(store, query, mask)[2].max(1), rtol=2e-3)
    nowhere = expert.restricted(np.zeros(store.shape, bool)).posterior(query, OPTIONS)
    assert not nowhere.probability.any() and not nowhere.residual.any()


def test_ranks_count_the_cells_before_the_true_one(expert, store, query) -> None:
    row, col, similarity = dense(store, query.numpy())
    true = np.array([similarity[number].argsort()[-1 - number * 3] for number in range(6)])
    ranks = expert.cell_ranks(query, row[true], col[true], 10)
    assert ranks.tolist() == [0, 3, 6, 9, 10, 10]
    outside = np.nonzero(~store.present)
    assert expert.cell_ranks(query[:1], outside[0][:1], outside[1][:1], 10).tolist() == [10]


def test_it_can_be_restricted_and_ranks_cells(expert) -> None:
    assert isinstance(expert, Restrictable)
    assert isinstance(expert, CellRanks)


def test_without_its_temperature_the_cells_are_the_same_and_less_certain(expert, query) -> None:
    before, after = (each.posterior(query, OPTIONS) for each in (expert, expert.uncalibrated()))
    assert (before.row[:, :3] == after.row[:, :3]).all()
    assert (after.probability[:, 0] < before.probability[:, 0]).all()


def test_an_index_gives_nearly_the_same_probabilities(expert, store, query, tmp_path) -> None:
    exact = expert.posterior(query, OPTIONS)
    expert.index = VectorIndex.build(store, tmp_path, "ivf-rabitq")
    found = expert.posterior(query, OPTIONS)
    assert (found.row[:, 0] == exact.row[:, 0]).all()
    np.testing.assert_allclose(found.probability[:, 0], exact.probability[:, 0], rtol=0.05)
    mask = np.zeros(store.shape, bool)
    mask[10:40, 70:120] = True
    inside = expert.restricted(mask).posterior(query, OPTIONS)
    assert mask[inside.row, inside.col][inside.probability > 0].all()
    assert expert.cell_ranks(query, exact.row[:, 0], exact.col[:, 0], 5).tolist() == [0] * 6


def test_a_district_is_the_dilated_probable_tiles_and_only_its_chunks_are_read(expert, store, query) -> None:
    tiles = Pyramid.around(42.34, -71.07, 6000.0, grid=4, levels=2)  # 16 x 16 tiles of 375 m
    area = expert.area
    row, col = np.array([[5, 5, 6, 15], [8, 2, 3, 3]]), np.array([[6, 7, 7, 15], [8, 3, 3, 4]])
    coarse = Posterior(tiles, row, col, np.array([[0.6, 0.3, 0.095, 0.005], [1.0, 0, 0, 0]]), np.zeros(2))
    first, second = districts(coarse, area, kept=0.99)
    assert (first.tiles, second.tiles) == (3, 1)
    assert first.probability == pytest.approx(0.995)
    every_row, every_col = np.nonzero(np.arange(area.shape[1]) < area.count[:, None])
    x, y = tiles.project(*area.positions(every_row, every_col))
    to_x, to_y = tiles.cell_centers(row[1, :1], col[1, :1])
    inside = np.maximum(abs(x - to_x), abs(y - to_y)) <= 375 / 2 + 50
    assert (second.row.tolist(), second.col.tolist()) == (every_row[inside].tolist(), every_col[inside].tolist())
    assert 230 < len(second.row) < 270  # of 30 m in 475 m
    assert districts(coarse, area, tiles=2)[0].probability == pytest.approx(0.9)

    store.chunks_read.clear()
    posterior = expert.posterior_within(query[:2], coarse)
    chunks = [{*zip((each.row // 32).tolist(), (each.col // 32).tolist(), strict=True)} for each in (first, second)]
    assert len(store.chunks_read) <= sum(map(len, chunks)) < 20
    assert set(store.chunks_read) <= chunks[0] | chunks[1]
    np.testing.assert_allclose(posterior.residual, [0.005, 0.0], atol=1e-5)
    np.testing.assert_allclose(posterior.probability.sum(1), [0.995, 1.0], atol=1e-5)
    kept = np.zeros(store.shape, bool)
    kept[second.row, second.col] = True
    np.testing.assert_allclose(posterior.probability[1].max(), softmax(store, query[1:2], kept)[2].max(), rtol=2e-3)


def test_what_does_not_fit_is_refused_in_one_sentence(area, store, expert, query) -> None:
    with pytest.raises(ModelError, match="it is of another region"):
        BandsExpert(area, MemoryStore(store.vectors[:64]), expert.encoder, TEMPERATURE)
    with pytest.raises(ModelError, match="has no encoded cells: run `jzi index`"):
        BandsExpert(area, MemoryStore(np.full_like(store.vectors, np.nan)), expert.encoder, TEMPERATURE)
    with pytest.raises(ConfigError, match="temperature must be"):
        BandsExpert(area, store, expert.encoder, 0.0)
    cell = np.zeros((1, 1), np.int64)
    one = Posterior(area, cell, cell, np.ones((1, 1)), np.zeros(1))
    with pytest.raises(ConfigError, match="a posterior of 1 photos cannot bound the search for 6"):
        expert.posterior_within(query, one)
