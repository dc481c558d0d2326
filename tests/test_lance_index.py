"""Tables of vectors in LanceDB: what they find, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from jzi.errors import ConfigError, ModelError
from jzi.tests.vector_store import MemoryStore, clustered, dense, near
from jzi.vectors import lance_index
from jzi.vectors.exact import scan
from jzi.vectors.lance_index import LanceIndex

lancedb = pytest.importorskip("lancedb")


@pytest.fixture(scope="module")
def store() -> MemoryStore:
    return MemoryStore(clustered(96, 70, 32))


@pytest.fixture(scope="module")
def built(store: MemoryStore, tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("table") / "town.lance")
    LanceIndex.build(store, uri)
    return uri


def test_a_table_finds_95_of_100_of_the_exact_best_cells_with_their_similarities(
    store: MemoryStore, built: str
) -> None:
    index, query = LanceIndex.open(store, built), near(store, 20)
    assert index.table.list_indices(), "the inverted lists are what is tested"
    found = index.search(query, 10)
    row, col, similarity = dense(store, query)
    hits = 0
    for number in range(len(query)):
        best = np.argsort(-similarity[number])[:10]
        cells = set(zip(row[best].tolist(), col[best].tolist(), strict=True))
        hits += len(cells & set(zip(found.row[number].tolist(), found.col[number].tolist(), strict=True)))
    assert hits >= 190
    exact = scan(store, query, 1).neighbors.similarity[:, 0]
    np.testing.assert_allclose(found.similarity[:, 0], exact, atol=1e-3)
    assert (np.diff(found.similarity) <= 0).all()


def test_a_search_reads_no_vector_of_the_store(store: MemoryStore, built: str) -> None:
    index = LanceIndex.open(store, built)
    store.units_read.clear()
    store.chunks_read.clear()
    found = index.search(near(store, 3), 5)
    index.log_sum(near(store, 3), 0.05, found)
    assert not store.units_read and not store.chunks_read


@pytest.mark.parametrize("exact_cells", [0, 100_000])
def test_a_restricted_table_returns_its_cells_only(
    store: MemoryStore, built: str, exact_cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lance_index, "EXACT_CELLS", exact_cells)
    mask = np.zeros(store.shape, bool)
    mask[20:60, 30:50] = True
    index = LanceIndex.open(store, built).restricted(mask)
    assert len(index) == (mask & store.present).sum()
    query = near(store, 5)
    found = index.search(query, 10)
    assert (found.row >= 0).all() and mask[found.row, found.col].all()
    exact = scan(store, query, 1, mask=mask).neighbors
    assert (found.row[:, 0] == exact.row[:, 0]).sum() >= 4


def test_the_estimated_sum_over_all_cells_is_near_the_exact_one(
    store: MemoryStore, built: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, query = LanceIndex.open(store, built), near(store, 10)
    index.sample, index.sample_keys = index.sample[::4], index.sample_keys[::4]
    estimate = index.log_sum(query, 0.1, index.search(query, 50))
    exact = scan(store, query, 1, temperature=0.1).log_sum
    np.testing.assert_allclose(estimate, exact, atol=0.15)


def test_a_small_table_is_searched_exactly(tmp_path: Path) -> None:
    store = MemoryStore(clustered(10, 12, 16))
    index, query = LanceIndex.build(store, str(tmp_path / "a.lance")), near(store, 4)
    found, exact = index.search(query, 200), scan(store, query, 200).neighbors
    assert found.row.shape[1] == store.present.sum()
    assert (found.row == exact.row[:, : found.row.shape[1]]).mean() > 0.98


def test_what_is_no_table_of_this_store_is_refused(store: MemoryStore, built: str, tmp_path: Path) -> None:
    changed = store.vectors.copy()
    changed[~store.present] = 0.1
    with pytest.raises(ModelError, match="has changed since"):
        LanceIndex.open(MemoryStore(changed), built)
    with pytest.raises(ModelError, match="another store"):
        LanceIndex.open(MemoryStore(clustered(96, 70, 16)), built)
    with pytest.raises(ModelError, match="there is no table"):
        LanceIndex.open(store, str(tmp_path / "gone.lance"))
    copy = tmp_path / "copy.lance"
    shutil.copytree(built, copy)
    shutil.rmtree(copy / "sample.lance")
    with pytest.raises(ModelError, match="not a complete table"):
        LanceIndex.open(store, str(copy))
    with pytest.raises(ConfigError, match="no vectors to index"):
        LanceIndex.build(MemoryStore(np.full((4, 4, 8), np.nan)), str(tmp_path / "empty.lance"))


def test_a_table_that_something_else_wrote_is_refused(store: MemoryStore, tmp_path: Path) -> None:
    database = lancedb.connect(str(tmp_path / "other.lance"))
    for name in ("cells", "sample"):
        database.create_table(name, [{"cell": 1, "vector": [0.5] * 32}])
    with pytest.raises(ModelError, match="was not written by jzi"):
        LanceIndex.open(store, str(tmp_path / "other.lance"))


def test_a_table_on_object_storage_is_searched_there(bucket: str) -> None:
    store = MemoryStore(clustered(20, 20, 16))
    index = LanceIndex.build(store, f"{bucket}/region.lance")
    query = near(store, 3)
    assert (index.search(query, 1).row == scan(store, query, 1).neighbors.row).all()
