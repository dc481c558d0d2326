"""Streamed search is the dense product, for all cells, masks and lists of cells, and counts like the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jzi.errors import CacheCorruptError, ConfigError
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.geometry.bands import BandGrid
from jzi.store.geometry.region import RegionInfo
from jzi.store.info import EncoderInfo
from jzi.vectors import exact
from jzi.vectors.exact import Matches, scan, similarities
from jzi.vectors.faiss_index import cell_ids
from jzi.vectors.store import VectorStore, by_chunk, read_ahead

from .vector_store import MemoryStore, clustered, dense, near


@pytest.fixture(scope="module")
def store() -> MemoryStore:
    return MemoryStore(clustered(150, 170, 24))


@pytest.fixture(scope="module")
def query(store) -> np.ndarray:
    return near(store, 9)


def assert_best(neighbors, row, col, similarity, count: int) -> None:
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
    np.testing.assert_allclose(neighbors.similarity, np.take_along_axis(similarity, order, 1), atol=1e-5)
    for number in range(len(similarity)):  # the same cells, but for ties
        found = {*zip(neighbors.row[number].tolist(), neighbors.col[number].tolist(), strict=True)}
        expected = {*zip(row[order[number]].tolist(), col[order[number]].tolist(), strict=True)}
        assert len(found) == count
        assert len(found & expected) >= count - 1


@pytest.mark.parametrize("count", [1, 7, 300])
def test_the_best_cells_are_those_of_the_dense_product(store, query, count, monkeypatch) -> None:
    monkeypatch.setattr(exact, "ENTRIES", 10_000)  # several parts of the queries
    assert_best(scan(store, query, count).neighbors, *dense(store, query), count)


def test_queries_alone_give_what_they_give_together(store, query) -> None:
    together = scan(store, torch.from_numpy(query), 20).neighbors
    for number in range(len(query)):
        alone = scan(store, query[number : number + 1] * 3.5, 20).neighbors
        np.testing.assert_allclose(alone.similarity[0], together.similarity[number], atol=1e-6)


def test_a_mask_bounds_the_cells_and_the_units_that_are_read(store, query) -> None:
    mask = np.zeros(store.shape, bool)
    mask[70:100, 3:40] = True
    store.units_read.clear()
    found = scan(store, query, 12, mask=mask)
    row, col, similarity = dense(store, query)
    kept = mask[row, col]
    assert_best(found.neighbors, row[kept], col[kept], similarity[:, kept], 12)
    assert found.cells == kept.sum()
    assert store.units_read == [(slice(64, 128), slice(0, 64))]


def test_a_list_of_cells_is_searched_and_only_its_chunks_are_read_each_once(store, query, monkeypatch) -> None:
    monkeypatch.setattr("jzi.vectors.store.GATHERED", 500)
    rng = np.random.default_rng(3)
    row, col, similarity = dense(store, query)
    kept = np.flatnonzero((row < 64) & (col >= 32) & (col < 96))
    kept = rng.permutation(kept)[:2000]
    store.chunks_read.clear()
    found = scan(store, query, 12, cells=(row[kept], col[kept]))
    assert_best(found.neighbors, row[kept], col[kept], similarity[:, kept], 12)
    assert sorted(store.chunks_read) == [(0, 1), (0, 2), (1, 1), (1, 2)]


def test_fewer_cells_than_asked_for_give_fewer_neighbors(store, query) -> None:
    row, col, _ = dense(store, query)
    found = scan(store, query, 10, cells=(row[:3], col[:3])).neighbors
    assert found.row.shape == found.similarity.shape == (len(query), 3)
    mask = np.zeros(store.shape, bool)
    nothing = scan(store, query, 10, mask=mask, temperature=0.1)
    assert nothing.neighbors.row.shape == (len(query), 0)
    assert nothing.cells == 0
    assert np.isneginf(nothing.log_sum).all()


def test_the_sum_over_all_cells_is_exact(store, query) -> None:
    similarity = dense(store, query)[2].astype(np.float64)
    for temperature in (1 / 36, 0.001, 1.0):
        expected = torch.from_numpy(similarity / temperature).logsumexp(1).numpy()
        np.testing.assert_allclose(scan(store, query, temperature=temperature).log_sum, expected, atol=1e-3)


def test_better_cells_are_counted_as_the_equivalent_rank_defines(store, query) -> None:
    row, col, similarity = dense(store, query)
    rng = np.random.default_rng(5)
    pairs, expected = [], []
    for number in range(len(query)):
        match = rng.choice(len(row), 1 + number % 3, replace=False)
        pairs += [(number, row[cell], col[cell]) for cell in match]
        others = np.delete(similarity[number], match)
        expected.append((others >= similarity[number, match].max()).sum())
    matches = Matches(*np.array(pairs)[rng.permutation(len(pairs))].T)
    better = scan(store, query, 5, matches=matches).better
    assert (abs(better - expected) <= 1).all()  # a tie of the last digit
    assert max(expected) > 1000


def test_the_best_cell_has_none_before_it_whatever_the_rounding(store) -> None:
    row, col = (index[::50] for index in np.nonzero(store.present))
    query = store.vectors[row, col].astype(np.float32)
    assert not scan(store, query, matches=Matches(np.arange(len(row)), row, col)).better.any()


def test_similarities_of_pairs_are_those_of_the_dense_product(store, query) -> None:
    row, col, similarity = dense(store, query)
    rng = np.random.default_rng(7)
    which, cell = rng.integers(len(query), size=400), rng.integers(len(row), size=400)
    found = similarities(store, query, Matches(which, row[cell], col[cell]))
    np.testing.assert_allclose(found, similarity[which, cell], atol=1e-5)


def test_unusable_queries_and_vectors_are_refused_in_one_sentence(store, query) -> None:
    with pytest.raises(ConfigError, match=r"of 24 features in memory.zarr: encode both with the same model"):
        scan(store, query[:, :20])
    with pytest.raises(ConfigError, match="not finite: encode the photo again"):
        scan(store, np.full_like(query, np.nan))
    with pytest.raises(ConfigError, match=r"temperature must be"):
        scan(store, query, temperature=0.0)
    with pytest.raises(ConfigError, match="1 of 9 queries have no cell"):
        row, col = (index[:8] for index in np.nonzero(store.present))
        scan(store, query, matches=Matches(np.arange(8), row, col))
    damaged = MemoryStore(np.ones((3, 3, 24)) / np.sqrt(24))
    damaged.vectors[1, 1, 5] = np.inf
    with pytest.raises(CacheCorruptError, match="not finite: encode its cells again"):
        scan(damaged, query)


def test_reading_ahead_keeps_the_order_and_raises_where_reading_fails() -> None:
    def numbers():
        yield from range(3)
        raise CacheCorruptError("a chunk is damaged")

    taken = []
    with pytest.raises(CacheCorruptError, match="damaged"):
        for number in read_ahead(numbers()):
            taken.append(number)
    assert taken == [0, 1, 2]


def test_parts_hold_every_cell_once_and_chunks_whole(monkeypatch) -> None:
    monkeypatch.setattr("jzi.vectors.store.GATHERED", 100)
    rng = np.random.default_rng(0)
    row, col = rng.integers(200, size=1000), rng.integers(90, size=1000)
    row[:300], col[:300] = 5, 5  # more than a part in one chunk
    parts = list(by_chunk(row, col))
    assert sorted(np.concatenate(parts).tolist()) == list(range(1000))
    chunks = [{*zip((row[part] // 32).tolist(), (col[part] // 32).tolist(), strict=True)} for part in parts]
    assert sum(map(len, chunks)) == len(set().union(*chunks))
    assert list(by_chunk(row[:0], col[:0])) == []


def test_the_cells_of_a_feature_cache_are_such_a_store(tmp_path) -> None:
    grid = BandGrid.covering(-71.1, 42.32, -71.06, 42.35, cell_m=30.0)
    vectors = clustered(*grid.shape, 24)
    vectors[np.arange(grid.shape[1]) >= grid.count[:, None]] = np.nan
    memory = MemoryStore(vectors)
    region = RegionInfo(grid, "touch", int(grid.count.sum()), "0" * 64, "test")
    cache = FeatureCache.create(tmp_path / "cells.zarr", region, EncoderInfo("test", False, "0" * 64, 24, 64, "fit"))
    for unit in cache.cells.units:
        cache.cells.write(unit, memory.status()[unit], memory.vectors[unit])
    store: VectorStore = cache.cells
    query = near(memory, 5)
    mask = np.zeros(grid.shape, bool)
    mask[10:40, 20:50] = True
    cells = np.nonzero(mask & memory.present)
    for options in ({}, {"mask": mask}, {"cells": cells}):
        found, expected = (scan(each, query, 10, **options).neighbors for each in (store, memory))
        np.testing.assert_allclose(found.similarity, expected.similarity, atol=1e-6)
    reader = cache.cells
    scan(reader, query, cells=cells)
    assert reader.reads == 4  # chunks of 32 x 32 cells
    assert len(cell_ids(reader)[0]) == memory.present.sum()
    assert cell_ids(reader)[1] == cell_ids(store)[1]
