"""Indexes find what exact search finds, respect selections, and are refused if stale, damaged or hostile."""

from __future__ import annotations

import json
import shutil
from typing import Any

import faiss
import numpy as np
import pytest

from jzi.errors import ConfigError, ModelError
from jzi.store.disk.files import file_sha256
from jzi.vectors import faiss_index
from jzi.vectors.exact import scan
from jzi.vectors.faiss_index import VectorIndex, resolve_kind
from jzi.vectors.index_files import INDEX, INFO, KINDS, VECTORS, code_bytes

from .vector_store import MemoryStore, clustered, near


@pytest.fixture(scope="module")
def store() -> MemoryStore:
    return MemoryStore(clustered(100, 120, 64))


@pytest.fixture(scope="module")
def built(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("indexes")
    return {kind: VectorIndex.build(store, folder / kind, kind) for kind in KINDS}


def recall(found, exact) -> float:
    pairs = [
        {*zip(each.row[number].tolist(), each.col[number].tolist(), strict=True)} for each in (found, exact)
        for number in range(len(found.row))
    ]  # fmt: skip
    size = len(found.row)
    return float(np.mean([len(pairs[number] & pairs[size + number]) / 10 for number in range(size)]))


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_finds_95_of_100_of_the_exact_best_cells_with_their_similarities(store, built, kind) -> None:
    query = near(store, 50)
    exact = scan(store, query, 10).neighbors
    found = built[kind].search(query, 10)
    assert recall(found, exact) >= 0.95
    again = VectorIndex.open(store, built[kind].folder).search(query, 10)
    assert (again.row == found.row).all()
    np.testing.assert_allclose(found.similarity[:, 0], exact.similarity[:, 0], atol=1e-5)
    assert built[kind].disk_bytes > built[kind].info.cells * code_bytes("ivf-pq", 64)
    assert built[kind].memory_bytes > 0


def test_with_a_copy_of_the_vectors_the_store_is_not_read(store, built, tmp_path, capsys) -> None:
    query = near(store, 20)
    copied = VectorIndex.build(store, tmp_path, "ivf-rabitq", copy=True)
    shown = capsys.readouterr().err
    assert all(f"{label}: 100%" in shown for label in ("sample", "index"))  # a state takes hours
    store.chunks_read.clear()
    found = copied.search(query, 10)
    assert not store.chunks_read
    expected = built["ivf-rabitq"].search(query, 10)
    assert store.chunks_read
    assert (found.row == expected.row).all() and (found.col == expected.col).all()
    assert copied.disk_bytes > built["ivf-rabitq"].disk_bytes + 2 * 64 * len(copied)
    damaged = np.load(tmp_path / VECTORS)
    np.save(tmp_path / VECTORS, damaged * np.inf)
    with pytest.raises(ModelError, match=r"vectors.npy has vectors that are not finite"):
        VectorIndex.open(store, tmp_path).search(query)
    np.save(tmp_path / VECTORS, damaged[1:])
    with pytest.raises(ModelError, match=r"vectors.npy does not contain an array of"):
        VectorIndex.open(store, tmp_path)
    (tmp_path / VECTORS).write_bytes((tmp_path / VECTORS).read_bytes().replace(b"}", b"(", 1))
    with pytest.raises(ModelError, match=r"vectors.npy cannot be read"):
        VectorIndex.open(store, tmp_path)
    VectorIndex.build(store, tmp_path, "hnsw", copy=True)  # has them in its graph
    assert not (tmp_path / VECTORS).exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("few", [True, False])
def test_a_restricted_index_returns_its_cells_only(store, built, kind, few, monkeypatch) -> None:
    if not few:
        monkeypatch.setattr(faiss_index, "EXACT_CELLS", 0)
    mask = np.random.default_rng(0).random(store.shape) < 0.3
    query = near(store, 30)
    found = built[kind].restricted(mask).search(query, 10)
    assert mask[found.row, found.col].all()
    assert (found.row >= 0).all()
    assert recall(found, scan(store, query, 10, mask=mask).neighbors) >= (1.0 if few else 0.95)
    lower = built[kind].restricted(mask).restricted(np.arange(100)[:, None] >= np.full(store.shape, 50))
    assert (lower.search(query, 10).row >= 50).all()


def test_the_estimated_sum_over_all_cells_is_near_the_exact_one(store, built, monkeypatch) -> None:
    query = near(store, 40)
    exact = scan(store, query, temperature=0.1).log_sum
    index = built["ivf-rabitq"]
    neighbors = index.search(query, 200)
    np.testing.assert_allclose(index.log_sum(query, 0.1, neighbors), exact, atol=1e-3)  # all cells are in the sample
    index = VectorIndex.open(store, index.folder)
    index.sample, index.sample_ids = index.sample[::4], index.sample_ids[::4]
    errors = index.log_sum(query, 0.1, neighbors) - exact
    assert abs(errors).max() < 0.2
    assert abs(errors.mean()) < 0.03


def test_the_choice_of_an_index_follows_from_the_number_of_cells() -> None:
    assert resolve_kind("auto", 2_000_000) == "hnsw"
    assert resolve_kind("auto", 2_000_001) == "ivf-rabitq"
    assert resolve_kind("ivf-pq", 5) == "ivf-pq"


def test_codes_of_1024_features_take_an_eighth_of_a_byte_each(built) -> None:
    assert code_bytes("ivf-pq", 1024) == 128
    assert code_bytes("ivf-rabitq", 1024) == 136
    for kind in ("ivf-pq", "ivf-rabitq"):
        assert faiss.extract_index_ivf(built[kind].index).code_size == code_bytes(kind, 64)


@pytest.mark.parametrize("change", ["vector", "more", "fewer"])
def test_an_index_older_than_its_store_is_refused(store, built, change) -> None:
    vectors = store.vectors.copy()
    row, col = np.nonzero(store.present)
    if change == "vector":
        vectors[store.present] = vectors[store.present][::-1]
    elif change == "more":
        vectors[~store.present] = vectors[row[0], col[0]]
    else:
        vectors[row[77], col[77]] = np.nan
    with pytest.raises(ModelError, match=r"memory\.zarr has changed since .* was built: build the index again"):
        VectorIndex.open(MemoryStore(vectors), built["ivf-pq"].folder)
    with pytest.raises(ModelError, match="is the index of another store"):
        VectorIndex.open(MemoryStore(vectors[:64]), built["ivf-pq"].folder)


def test_unusable_requests_are_refused_in_one_sentence(store, tmp_path) -> None:
    with pytest.raises(ModelError, match="there is no index in"):
        VectorIndex.open(store, tmp_path)
    with pytest.raises(ConfigError, match="no index of kind 'flat': choose one of hnsw"):
        VectorIndex.build(store, tmp_path, "flat")
    with pytest.raises(ConfigError, match="cannot have 20000000 lists"):
        VectorIndex.build(store, tmp_path, "ivf-pq", lists=20_000_000)
    with pytest.raises(ConfigError, match="has no vectors to index"):
        VectorIndex.build(MemoryStore(np.full((3, 3, 8), np.nan)), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def copied(built, tmp_path):
    """Copies the index of a kind, and signs changed files as who wrote them would."""

    def copy(kind: str):
        folder = shutil.copytree(built[kind].folder, tmp_path / kind)

        def sign() -> None:
            info = json.loads((folder / INFO).read_text())
            info["files"] = {name: file_sha256(folder / name) for name in info["files"]}
            (folder / INFO).write_text(json.dumps(info))

        return folder, sign

    return copy


@pytest.mark.parametrize("name", ["index.faiss", "ids.npy", "sample.npy"])
def test_a_changed_file_is_refused(store, copied, name) -> None:
    folder, _ = copied("ivf-pq")
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(ModelError, match=rf"{name} does not match its SHA-256"):
        VectorIndex.open(store, folder)
    (folder / name).unlink()
    with pytest.raises(ModelError, match=rf"{name} cannot be read"):
        VectorIndex.open(store, folder)


@pytest.mark.parametrize(
    ("entry", "value"),
    [("cells", -1), ("cells", "9"), ("kind", "flat"), ("lists", 1e3), ("format", 2), ("store", "x"), ("new", 1)],
)
def test_hostile_entries_are_refused(store, copied, entry, value) -> None:
    folder, _ = copied("ivf-pq")
    info = json.loads((folder / INFO).read_text())
    (folder / INFO).write_text(json.dumps({**info, entry: value}))
    with pytest.raises(ModelError, match=r"index.json (has an invalid|cannot be read)"):
        VectorIndex.open(store, folder)


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff" * 9, b"[" * 100_000])
def test_what_is_no_index_json_is_refused(store, tmp_path, text) -> None:
    (tmp_path / INFO).write_bytes(text)
    with pytest.raises(ModelError, match=r"index.json (has an invalid|cannot be read)"):
        VectorIndex.open(store, tmp_path)


def test_a_signed_index_of_another_kind_or_size_is_refused(store, built, copied) -> None:
    for kind, other in (("ivf-pq", "ivf-rabitq"), ("ivf-rabitq", "ivf-pq"), ("hnsw", "ivf-pq")):
        folder, sign = copied(kind)
        shutil.copyfile(built[other].folder / INDEX, folder / INDEX)
        sign()
        with pytest.raises(ModelError, match=r"is an index of another kind|bytes, which"):
            VectorIndex.open(store, folder)
        small = faiss.index_factory(64, "Flat")
        small.add(np.zeros((10, 64), np.float32))
        faiss.write_index(small, str(folder / INDEX))
        sign()
        with pytest.raises(ModelError, match=r"index.faiss has \d+ bytes, which"):
            VectorIndex.open(store, folder)
        shutil.rmtree(folder)


def test_links_out_of_a_graph_are_refused(store, copied) -> None:
    folder, sign = copied("hnsw")
    graph: Any = faiss.read_index(str(folder / INDEX))
    links = faiss.rev_swig_ptr(graph.hnsw.neighbors.data(), graph.hnsw.neighbors.size())
    links[5] = 10**9
    faiss.write_index(graph, str(folder / INDEX))
    sign()
    with pytest.raises(ModelError, match=r"links to vectors that do not exist|cannot be read"):
        VectorIndex.open(store, folder)


@pytest.mark.parametrize("kind", ["ivf-pq", "ivf-rabitq"])
def test_numbers_of_no_cell_are_refused_when_they_are_found(store, copied, kind) -> None:
    folder, sign = copied(kind)
    index = faiss.read_index(str(folder / INDEX))
    lists = faiss.extract_index_ivf(index).invlists
    for number in range(lists.nlist):
        size = lists.list_size(number)
        faiss.rev_swig_ptr(lists.get_ids(number), size)[:] = 10**12
    faiss.write_index(index, str(folder / INDEX))
    sign()
    with pytest.raises(ModelError, match="vectors of no cell"):
        VectorIndex.open(store, folder).search(near(store, 3))
