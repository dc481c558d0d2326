"""Approximate search with Faiss: a graph of the vectors, or inverted lists of their codes.

An index is a folder beside a store: index.json, which records what it was built from; index.faiss; ids.npy, the cell
(row * columns + column) of each vector of the index; sample.npy, some vectors drawn at random; vectors.npy, a copy of
all vectors, if there is to be one. Cells that codes find are ranked by their exact similarity to vectors that are read
from the copy or from the store, where each takes a chunk. An index of another state of its store is refused, and so are
files that do not match index.json or one another.
"""

from __future__ import annotations

import contextlib
import copy as copying
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jzi.errors import ConfigError, ModelError
from jzi.locate.ranges import RANKS, TEMPERATURE
from jzi.store.disk.files import file_sha256
from jzi.store.features.map_embeddings import ENCODED
from jzi.store.plain import plain
from jzi.vectors.approximate import EXACT_CELLS, SAMPLED, sampled_log_sum
from jzi.vectors.exact import Matches, Neighbors, prepare, scan, similarities
from jzi.vectors.index_files import (
    HINT,
    IDS,
    INDEX,
    INFO,
    KINDS,
    LINKS,
    SAMPLE,
    VECTORS,
    IndexInfo,
    Kind,
    bounded_reads,
    code_parts,
    faiss_errors,
    import_faiss,
    index_problem,
    load_array,
    read_info,
    save_array,
    verify_digest,
    write_index_file,
)
from jzi.vectors.store import GATHERED, VectorStore, read_with_progress

#: HNSW parameters: candidates kept while building (efConstruction) and searching (efSearch).
EF_CONSTRUCTION, EF_SEARCH = 100, 256

#: Most cells of a graph that is chosen by default: of 1024 features it then has 4.6 GB, all of it in memory.
GRAPH_CELLS = 2_000_000

#: Lists of an index of N vectors: this many times the square root of N, as Faiss's guidelines advise at least.
LISTS = 4.0

#: Vectors per list that the lists are trained on, the number above which Faiss stops warning, and their largest size in
#: memory, bytes.
TRAINED, TRAINING_BYTES = 39, 2**31

#: Lists that are searched: at least so many, and one of so many. Of 25 million vectors in 8192 lists, 64 have 89 % of
#: the neighbours, and 256 have 97 % (`benchmarks/statewide_scale.py`).
PROBES, LISTS_PER_PROBE = 64, 32

#: Candidates that are ranked exactly: at least so many, more where a copy of the vectors makes it cheap, and so many
#: times the neighbours.
CANDIDATES, CANDIDATES_OF_COPY, CANDIDATES_FOLD = 100, 400, 2


class VectorIndex:
    """An index of the vectors of a store.

    Args:
        store: the store, for exact similarities.
        folder: folder of the index.
        info: what index.json records.
        index: the Faiss index.
        ids: (vector,) row * columns + column of each vector's cell.
        sample: (sampled, feature) float16 vectors drawn at random.
        sample_ids: (sampled,) their numbers in the index.
        vectors: (vector, feature) copy of the vectors; None to read them from the store.
    """

    def __init__(
        self,
        store: VectorStore,
        folder: Path,
        info: IndexInfo,
        index: Any,
        ids: NDArray[np.int64],
        sample: NDArray[np.float16],
        sample_ids: NDArray[np.int64],
        vectors: NDArray[np.float16] | None = None,
    ) -> None:
        self.store, self.folder, self.info, self.index, self.ids = store, folder, info, index, ids
        self.sample, self.sample_ids, self.vectors = sample, sample_ids, vectors
        self.allowed: NDArray[np.bool_] | None = None  # (vector,) of a restricted index

    @classmethod
    def build(
        cls,
        store: VectorStore,
        folder: Path,
        kind: Kind | Literal["auto"] = "auto",
        *,
        lists: int | None = None,
        copy: bool = False,
    ) -> VectorIndex:
        """Build an index of all vectors of a store and write it. The store is read twice.

        Args:
            store: the store.
            folder: folder of the index, which is created; an index in it is replaced.
            kind: kind of index; "auto" is a graph up to `GRAPH_CELLS` vectors, beyond "ivf-rabitq".
            lists: number of inverted lists; by default `LISTS` times the root of the number of vectors.
            copy: whether to copy the vectors, two bytes for each feature, so that candidates of inverted lists are
                ranked without reading a chunk of the store for nearly each; a graph has them already.

        Raises:
            ConfigError: Faiss is not installed, the store is empty, or the kind or the number of lists cannot be used.
            ModelError: the folder cannot be written.
        """
        faiss = import_faiss()
        ids, digest = cell_ids(store)
        if not len(ids):
            raise ConfigError(f"{store.path} has no vectors to index: encode its cells first")
        kind = resolve_kind(kind, len(ids))
        if kind not in KINDS:
            raise ConfigError(f"there is no index of kind {kind!r:.40}: choose one of {', '.join(KINDS)}, or auto")
        if kind == "hnsw":
            lists = 0
        else:
            most = max(1, min(len(ids), TRAINING_BYTES // (4 * store.width)) // TRAINED)
            lists = min(most, max(1, round(LISTS * len(ids) ** 0.5))) if lists is None else lists
            if not 1 <= lists <= len(ids):
                raise ConfigError(f"an index of {len(ids)} vectors cannot have {lists} lists: leave the number out")
        info = IndexInfo(kind, len(ids), store.width, store.shape, digest, lists, copy and kind != "hnsw", {})
        sample_ids, sample, training = _draw(store, info)
        index = _new_index(faiss, info)
        # A graph needs no training, but its coding into float16 is marked as trained by it
        index.train(training)
        del training
        folder.mkdir(parents=True, exist_ok=True)
        (folder / INFO).unlink(missing_ok=True)
        if info.copied:
            write_index_file(folder / VECTORS, lambda path: _add(store, index, info, path))
        else:
            (folder / VECTORS).unlink(missing_ok=True)
            _add(store, index, info)
        write_index_file(folder / INDEX, lambda path: faiss.write_index(index, str(path)))
        write_index_file(folder / IDS, lambda path: save_array(path, ids))
        # The numbers of the sampled vectors stand behind their features, as four float16 of the same bits
        stored = np.concatenate([sample, sample_ids[:, None].view(np.float16)], 1)
        write_index_file(folder / SAMPLE, lambda path: save_array(path, stored))
        info = replace(info, files={name: file_sha256(folder / name) for name in (INDEX, IDS, SAMPLE)})
        text = json.dumps(plain(info), indent=2)
        write_index_file(folder / INFO, lambda path: path.write_text(text + "\n"))
        return cls.open(store, folder)

    @classmethod
    def open(cls, store: VectorStore, folder: Path) -> VectorIndex:
        """Open the index of a store; inverted lists and ids stay on disk and are mapped into memory.

        Raises:
            ConfigError: Faiss is not installed.
            ModelError: there is no index, it is damaged, or the store has changed since it was built.
        """
        faiss = import_faiss()
        info = read_info(folder)
        if (info.width, info.shape) != (store.width, tuple(store.shape)):
            raise ModelError(f"{folder} is the index of another store than {store.path}: {HINT}")
        expected, digest = cell_ids(store)
        if info.store != digest or info.cells != len(expected):
            raise ModelError(f"{store.path} has changed since {folder} was built: {HINT}")
        for name in (INDEX, IDS, SAMPLE):
            verify_digest(folder / name, info)
        least, most = info.file_bytes
        size = (folder / INDEX).stat().st_size
        if not least <= size <= most:
            raise ModelError(
                f"{folder / INDEX} has {size} bytes, which {info.cells} vectors of {info.width} features do not take: "
                f"{HINT}"
            )
        ids = load_array(folder / IDS, (info.cells,), np.int64)
        if not np.array_equal(ids, expected):
            raise ModelError(f"{folder / IDS} does not list the cells of {store.path}: {HINT}")
        stored = load_array(folder / SAMPLE, (min(SAMPLED, info.cells), info.width + 4), np.float16)
        sample_ids = np.ascontiguousarray(stored[:, info.width :]).view(np.int64)[:, 0]
        sample = np.ascontiguousarray(stored[:, : info.width])
        if not (np.isfinite(sample).all() and ((sample_ids >= 0) & (sample_ids < info.cells)).all()):
            raise ModelError(f"{folder / SAMPLE} does not contain vectors of the index: {HINT}")
        vectors = load_array(folder / VECTORS, (info.cells, info.width), np.float16) if info.copied else None
        with bounded_reads(faiss, 4 * size), faiss_errors(f"{folder / INDEX} cannot be read"):
            # Tables that are computed ahead serve distances, not similarities
            flags = faiss.IO_FLAG_MMAP | faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE if info.lists else 0
            index = faiss.read_index(str(folder / INDEX), flags)
        if problem := index_problem(faiss, index, info):
            raise ModelError(f"{folder / INDEX} {problem}: {HINT}")
        return cls(store, folder, info, index, ids, sample, sample_ids, vectors)

    def __len__(self) -> int:
        return len(self.ids) if self.allowed is None else int(self.allowed.sum())

    @property
    def disk_bytes(self) -> int:
        """Bytes of the folder's files."""
        names = (INFO, INDEX, IDS, SAMPLE, *([VECTORS] if self.info.copied else []))
        return sum((self.folder / name).stat().st_size for name in names)

    @property
    def memory_bytes(self) -> int:
        """Bytes that stay in memory: a graph as a whole, otherwise the centroids of the lists; and the sample."""
        graph = (self.folder / INDEX).stat().st_size if self.info.kind == "hnsw" else 0
        return graph + 4 * self.info.width * self.info.lists + self.sample.nbytes

    def restricted(self, mask: NDArray[np.bool_]) -> VectorIndex:
        """The same index for some of the cells.

        Args:
            mask: (row, col) the cells.
        """
        chosen = mask.ravel()[self.ids]
        index = copying.copy(self)
        index.allowed = chosen if self.allowed is None else chosen & self.allowed
        return index

    def search(
        self,
        query: Tensor | NDArray[Any],
        count: int = 10,
        *,
        probes: int | None = None,
        candidates: int | None = None,
    ) -> Neighbors:
        """The most similar cells that the index finds, ranked by exact similarity.

        Up to `EXACT_CELLS` cells of a restricted index are all compared instead.

        Args:
            query: (query, feature); need not be normalised.
            count: number of cells; fewer if fewer are found.
            probes: number of inverted lists to search, by default one of `LISTS_PER_PROBE` and at least `PROBES`; more
                where a restricted index has few of their vectors.
            candidates: number of cells to rank exactly, by default twice `count` and at least `CANDIDATES`, or
                `CANDIDATES_OF_COPY` of an index with a copy of the vectors; a graph has exact similarities already.

        Raises:
            ConfigError: a number is out of range, or the query has another width.
            ModelError: the index is damaged.
        """
        RANKS.check("count", count)
        probes = max(PROBES, self.info.lists // LISTS_PER_PROBE) if probes is None else probes
        RANKS.check("probes", probes)
        if self.allowed is not None and len(self) <= EXACT_CELLS:
            row, col = self._cells(np.flatnonzero(self.allowed))
            return scan(self.store, query, count, cells=(row, col)).neighbors
        queries = prepare(self.store, query, "cpu")
        graph = self.info.kind == "hnsw"
        least = CANDIDATES if self.vectors is None else CANDIDATES_OF_COPY
        wanted = count if graph else max(count, candidates or max(least, CANDIDATES_FOLD * count))
        with faiss_errors(f"{self.folder / INDEX} cannot be searched"):
            similarity, number = self.index.search(
                queries.numpy(), min(wanted, len(self)), params=self._parameters(probes, wanted)
            )
        if number.max(initial=-1) >= len(self.ids) or number.min(initial=0) < -1:
            raise ModelError(f"{self.folder / INDEX} has vectors of no cell: {HINT}")
        if not graph:
            found = np.nonzero(number >= 0)
            similarity = np.full(number.shape, -np.inf, np.float32)
            similarity[found] = self._similarities(queries, found[0], number[found])
        similarity = np.where(number < 0, -np.inf, similarity)
        order = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
        number, similarity = (np.take_along_axis(each, order, 1) for each in (number, similarity))
        row, col = self._cells(np.maximum(number, 0))
        return Neighbors(np.where(number < 0, -1, row), np.where(number < 0, -1, col), similarity.astype(np.float32))

    def log_sum(self, query: Tensor | NDArray[Any], temperature: float, neighbors: Neighbors) -> NDArray[np.float64]:
        """See `ApproximateIndex.log_sum`."""
        TEMPERATURE.check("temperature", temperature)
        queries = prepare(self.store, query, "cpu")
        chosen = np.ones(len(self.sample_ids), bool) if self.allowed is None else self.allowed[self.sample_ids]
        logits = (queries @ torch.from_numpy(self.sample[chosen]).float().T).double().numpy() / temperature
        keys, cols = self.ids[self.sample_ids[chosen]], self.store.shape[1]
        return sampled_log_sum(logits, keys, neighbors, temperature=temperature, cells=len(self), cols=cols)

    def _similarities(
        self, queries: Tensor, query: NDArray[np.int64], number: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """(pair,) exact similarities of queries and vectors."""
        if self.vectors is None:
            return similarities(self.store, queries, Matches(query, *self._cells(number)))
        result = np.empty(len(query), np.float32)
        for start in range(0, len(query), GATHERED):
            part = slice(start, start + GATHERED)
            vectors = torch.from_numpy(self.vectors[number[part]]).float()
            result[part] = (queries[torch.from_numpy(query[part])] * vectors).sum(1).numpy()
        if not np.isfinite(result).all():
            raise ModelError(f"{self.folder / VECTORS} has vectors that are not finite: {HINT}")
        return result

    def _cells(self, number: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        row, col = np.divmod(self.ids[number], self.store.shape[1])
        return row, col

    def _parameters(self, probes: int, wanted: int) -> Any:
        faiss, selector = import_faiss(), None
        if self.allowed is not None:
            selector = faiss.IDSelectorBitmap(np.packbits(self.allowed, bitorder="little"))
            probes = probes * min(16, -(-len(self.ids) // max(1, len(self))))
        if self.info.kind == "hnsw":
            return faiss.SearchParametersHNSW(sel=selector, efSearch=max(EF_SEARCH, wanted))
        probes = min(probes, self.info.lists)
        if self.info.kind == "ivf-pq":
            return faiss.IVFPQSearchParameters(sel=selector, nprobe=probes)
        return faiss.SearchParametersPreTransform(
            index_params=faiss.IVFRaBitQSearchParameters(sel=selector, nprobe=probes)
        )


def resolve_kind(kind: Kind | Literal["auto"], cells: int) -> Kind:
    """The kind of index of a number of cells that "auto" stands for."""
    if kind != "auto":
        return kind
    return "hnsw" if cells <= GRAPH_CELLS else "ivf-rabitq"


def cell_ids(store: VectorStore) -> tuple[NDArray[np.int64], str]:
    """Row * columns + column (vector,) of the cells in the order of `blocks`, and the fingerprint of the vectors.

    The fingerprint is of which cells have vectors and of eight of the vectors, so that it reads no more of them.
    """
    encoded, cols = store.status() == ENCODED, store.shape[1]
    parts = []
    for rows, columns in store.units:
        row, col = np.nonzero(encoded[rows, columns])
        parts.append((row + rows.start) * cols + col + columns.start)
    ids = np.concatenate(parts) if parts else np.empty(0, np.int64)
    digest = hashlib.sha256(repr((tuple(store.shape), store.width)).encode())
    digest.update(np.packbits(encoded).tobytes())
    if len(ids):
        probed = ids[np.linspace(0, len(ids) - 1, 8).astype(np.int64)]
        digest.update(store.gather(*np.divmod(probed, cols)).tobytes())
    return ids, digest.hexdigest()


def _new_index(faiss: Any, info: IndexInfo) -> Any:
    if info.kind == "hnsw":
        index = faiss.IndexHNSWSQ(info.width, faiss.ScalarQuantizer.QT_fp16, LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = EF_CONSTRUCTION
        return index
    coding = f"PQ{code_parts(info.width)}np" if info.kind == "ivf-pq" else "RaBitQ"  # np: codes in no particular order
    # RaBitQ's codes presume that the vectors were rotated at random
    rotation = "" if info.kind == "ivf-pq" else f"RR{info.width},"
    index = faiss.index_factory(info.width, f"{rotation}IVF{info.lists},{coding}", faiss.METRIC_INNER_PRODUCT)
    lists = faiss.downcast_index(faiss.extract_index_ivf(index))
    lists.cp.min_points_per_centroid = 1  # no warnings of small areas
    if info.kind == "ivf-pq":
        lists.pq.cp.min_points_per_centroid = 1
    return index


def _add(store: VectorStore, index: Any, info: IndexInfo, path: Path | None = None) -> None:
    """Add all vectors to an index, and write them to a file if one is given."""
    with contextlib.ExitStack() as stack:
        file = None if path is None else stack.enter_context(path.open("wb"))
        if file is not None:
            entries = {"descr": "<f2", "fortran_order": False, "shape": (info.cells, info.width)}
            np.lib.format.write_array_header_1_0(file, entries)
        for block in read_with_progress(store, info.cells, "index"):
            index.add(np.ascontiguousarray(block.vectors, np.float32))
            if file is not None:
                file.write(np.ascontiguousarray(block.vectors, "<f2").tobytes())


def _draw(store: VectorStore, info: IndexInfo) -> tuple[NDArray[np.int64], NDArray[np.float16], NDArray[np.float32]]:
    """Numbers and vectors of the sample, and vectors to train on, in one pass; the same at every call."""
    rng = np.random.default_rng(0)
    sampled = np.sort(rng.choice(info.cells, min(SAMPLED, info.cells), replace=False))
    trained = 0 if info.kind == "hnsw" else max(TRAINED * info.lists, TRAINED * 256)
    trained = min(info.cells, trained, max(TRAINED, TRAINING_BYTES // (4 * info.width)))
    chosen = np.sort(rng.choice(info.cells, trained, replace=False))
    sample = np.empty((len(sampled), info.width), np.float16)
    training = np.empty((len(chosen), info.width), np.float32)
    start = 0
    for block in read_with_progress(store, info.cells, "sample"):
        stop = start + len(block.row)
        for numbers, target in ((sampled, sample), (chosen, training)):
            low, high = numbers.searchsorted([start, stop])
            target[low:high] = block.vectors[numbers[low:high] - start]
        start = stop
    return sampled, sample, training
