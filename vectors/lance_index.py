"""Approximate search with LanceDB, in a table that may lie on object storage.

A table is a folder, NAME.lance, or a URL such as s3://bucket/NAME.lance. It holds a row per cell, with the vector in
float16 and inverted lists of product quantizer codes, of which a search reads only parts. What the codes find is ranked
by exact similarity inside of LanceDB, so that no vector of the store is read. A second table has some vectors drawn at
random, for sums over all cells. A table of another state of its store is refused.
"""

from __future__ import annotations

import contextlib
import copy as copying
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from torch import Tensor

from jzi.errors import ConfigError, ModelError, first_line
from jzi.locate.ranges import RANKS, TEMPERATURE
from jzi.store.disk.storage import is_url
from jzi.store.plain import plain
from jzi.store.setting_checks import first_invalid
from jzi.vectors.approximate import EXACT_CELLS, SAMPLED, sampled_log_sum
from jzi.vectors.exact import Neighbors, prepare, scan
from jzi.vectors.faiss_index import cell_ids
from jzi.vectors.index_files import HINT, code_parts
from jzi.vectors.store import VectorStore, read_with_progress

#: Suffix of the folder of a table.
SUFFIX = ".lance"

#: The tables, and their columns: row * columns + column of a cell, and its vector.
CELLS, SAMPLE, CELL, VECTOR = "cells", "sample", "cell", "vector"

#: Vectors from which on there are inverted lists; fewer are compared one by one, which is as fast.
INDEXED = 4096

#: Iterations of k-means, as in Faiss, and vectors per centroid that it sees, a few more than Faiss asks for. LanceDB's
#: defaults, 50 and 256, had not finished with 100 000 vectors of 256 features after five minutes of a core.
ITERATIONS, TRAINED = 10, 64

#: Lists that are searched, and candidates that are ranked exactly: at least so many, and so many times the neighbours.
PROBES, CANDIDATES, CANDIDATES_FOLD = 64, 200, 4

#: A restricted search asks for so many times the neighbours, and again for more if too few of them are allowed.
FOLD, MOST_FOUND = 8, 10_000

_ENTRY = b"jzi"


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class TableInfo:
    """What the schema of a table records.

    Attributes:
        cells: number of vectors.
        width: number of features.
        shape: rows and columns of the store.
        store: fingerprint of the store's vectors (`jzi.vectors.faiss_index.cell_ids`).
        format: version of the tables.
    """

    cells: Annotated[int, Field(ge=1, le=2**33)]
    width: Annotated[int, Field(ge=1, le=65_536)]
    shape: tuple[int, int]
    store: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    format: Literal[1] = 1


class LanceIndex:
    """A LanceDB table of the vectors of a store.

    Args:
        store: the store, for selections of few cells.
        uri: path or URL of the table.
        info: what its schema records.
        table: the LanceDB table of the cells.
        encoded: (row, col) the cells that have a vector.
        sample: (sampled, feature) float16 vectors drawn at random.
        sample_keys: (sampled,) row * columns + column of their cells.
    """

    def __init__(
        self,
        store: VectorStore,
        uri: str,
        info: TableInfo,
        table: Any,
        encoded: NDArray[np.bool_],
        sample: NDArray[np.float16],
        sample_keys: NDArray[np.int64],
    ) -> None:
        self.store, self.uri, self.info, self.table = store, uri, info, table
        self.sample, self.sample_keys = sample, sample_keys
        self.allowed, self.whole = encoded, True

    @classmethod
    def build(cls, store: VectorStore, uri: str) -> LanceIndex:
        """Write the vectors of a store to a table and index them; a table that exists is replaced.

        Raises:
            ConfigError: LanceDB is not installed, or the store is empty.
            ModelError: the table cannot be written.
        """
        lance = import_lance()
        ids, digest = cell_ids(store)
        if not len(ids):
            raise ConfigError(f"{store.path} has no vectors to index: encode its cells first")
        info = TableInfo(len(ids), store.width, (int(store.shape[0]), int(store.shape[1])), digest)
        chosen = np.sort(np.random.default_rng(0).choice(len(ids), min(SAMPLED, len(ids)), replace=False))
        sample: list[pa.RecordBatch] = []

        def batches() -> Iterator[pa.RecordBatch]:
            start = 0
            for block in read_with_progress(store, info.cells, "table"):
                cells = block.row * info.shape[1] + block.col
                low, high = chosen.searchsorted([start, start + len(cells)])
                picked = chosen[low:high] - start
                sample.append(_batch(cells[picked], block.vectors[picked], schema))
                start += len(cells)
                yield _batch(cells, block.vectors, schema)

        schema = _schema(info)
        with lance_errors(f"{uri} cannot be written"):
            database = _connect(lance, uri)
            tables = database.list_tables().tables
            # The sample is written last: a table without one is not complete
            if SAMPLE in tables:
                database.drop_table(SAMPLE)
            mode = "overwrite" if CELLS in tables else "create"  # to overwrite none is warned about
            reader = pa.RecordBatchReader.from_batches(schema, batches())
            table = database.create_table(CELLS, reader, mode=mode)
            if len(ids) >= INDEXED:
                codes = lance.index.IvfPq(
                    distance_type="dot",
                    num_sub_vectors=code_parts(info.width),
                    max_iterations=ITERATIONS,
                    sample_rate=TRAINED,
                )
                table.create_index(VECTOR, config=codes)
            database.create_table(SAMPLE, pa.Table.from_batches(sample, schema))
        return cls.open(store, uri)

    @classmethod
    def open(cls, store: VectorStore, uri: str) -> LanceIndex:
        """Open the table of a store.

        Raises:
            ConfigError: LanceDB is not installed.
            ModelError: there is no complete table, it is damaged, or the store has changed since it was written.
        """
        lance = import_lance()
        with lance_errors(f"{uri} cannot be read"):
            if not is_url(uri) and not Path(uri).is_dir():
                raise ModelError(f"there is no table {uri}: build it, or search without one")
            database = _connect(lance, uri)
            if not {CELLS, SAMPLE} <= set(database.list_tables().tables):
                raise ModelError(f"{uri} is not a complete table of vectors: {HINT}")
            table, others = database.open_table(CELLS), database.open_table(SAMPLE)
            info, sampled = _info(table, uri), others.count_rows()
            if sampled != min(SAMPLED, info.cells) or table.count_rows() != info.cells:
                raise ModelError(f"{uri} has another number of vectors than its schema records: {HINT}")
            columns = _columns(others.to_arrow(), uri, info)
        ids, digest = cell_ids(store)
        if (info.width, info.shape) != (store.width, tuple(store.shape)):
            raise ModelError(f"{uri} is the table of another store than {store.path}: {HINT}")
        if info.store != digest or info.cells != len(ids):
            raise ModelError(f"{store.path} has changed since {uri} was written: {HINT}")
        encoded = np.zeros(store.shape, bool)
        encoded.ravel()[ids] = True
        index = cls(store, uri, info, table, encoded, columns[1], columns[0])
        index._check(columns[0])
        return index

    def __len__(self) -> int:
        return int(self.allowed.sum())

    def restricted(self, mask: NDArray[np.bool_]) -> LanceIndex:
        """See `ApproximateIndex.restricted`."""
        index = copying.copy(self)
        index.allowed, index.whole = self.allowed & mask, False
        return index

    def search(self, query: Tensor | NDArray[Any], count: int = 10, *, probes: int = PROBES) -> Neighbors:
        """The most similar cells that the table finds, ranked by exact similarity.

        Up to `EXACT_CELLS` cells of a restricted index are all compared instead.

        Args:
            query: (query, feature); need not be normalised.
            count: number of cells; fewer if fewer are found.
            probes: number of inverted lists to search.

        Raises:
            ConfigError: a number is out of range, or the query has another width.
            ModelError: the table is damaged or cannot be reached.
        """
        RANKS.check("count", count)
        RANKS.check("probes", probes)
        size = len(self)
        if not self.whole and size <= EXACT_CELLS:
            row, col = np.nonzero(self.allowed)
            return scan(self.store, query, count, cells=(row, col)).neighbors
        queries = prepare(self.store, query, "cpu").numpy()
        count = min(count, size)
        row, col = np.full((2, len(queries), count), -1, np.int64)
        similarity = np.full((len(queries), count), -np.inf, np.float32)
        where = None
        if not self.whole:  # the rows of the selection; its columns are chosen among what is found
            rows = np.flatnonzero(self.allowed.any(1)) * self.info.shape[1]
            where = f"{CELL} >= {rows[0]} AND {CELL} < {rows[-1] + self.info.shape[1]}"
        for number, vector in enumerate(queries):
            cells, similar = self._nearest(vector, count, probes, where)
            row[number, : len(cells)], col[number, : len(cells)] = np.divmod(cells, self.info.shape[1])
            similarity[number, : len(cells)] = similar
        return Neighbors(row, col, similarity)

    def log_sum(self, query: Tensor | NDArray[Any], temperature: float, neighbors: Neighbors) -> NDArray[np.float64]:
        """See `ApproximateIndex.log_sum`."""
        TEMPERATURE.check("temperature", temperature)
        queries = prepare(self.store, query, "cpu")
        chosen = self.allowed.ravel()[self.sample_keys]
        logits = (queries @ torch.from_numpy(self.sample[chosen]).float().T).double().numpy() / temperature
        return sampled_log_sum(logits, self.sample_keys[chosen], neighbors, temperature=temperature, cells=len(self),
                               cols=self.info.shape[1])  # fmt: skip

    def _nearest(
        self, vector: NDArray[np.float32], count: int, probes: int, where: str | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Cells, and their similarities, of one query."""
        wanted = count if self.whole else min(FOLD * count, MOST_FOUND)
        while True:
            with lance_errors(f"{self.uri} cannot be searched"):
                search = self.table.search(vector, vector_column_name=VECTOR).distance_type("dot").nprobes(probes)
                if where is not None:
                    search = search.where(where, prefilter=True)
                refined = max(CANDIDATES_FOLD, -(-CANDIDATES // wanted))
                found = search.refine_factor(refined).limit(wanted).select([CELL, "_distance"]).to_arrow()
            cells = found[CELL].to_numpy().astype(np.int64)
            similar = 1 - found["_distance"].to_numpy().astype(np.float32)
            self._check(cells)
            kept = self.allowed.ravel()[cells]
            if kept.sum() >= count or len(cells) < wanted or wanted >= MOST_FOUND:
                order = np.argsort(-similar[kept], kind="stable")[:count]
                return cells[kept][order], similar[kept][order]
            wanted = min(FOLD * wanted, MOST_FOUND)

    def _check(self, cells: NDArray[np.int64]) -> None:
        if len(cells) and not (cells.min() >= 0 and cells.max() < self.allowed.size):
            raise ModelError(f"{self.uri} has vectors of no cell: {HINT}")


def import_lance() -> Any:
    """Import LanceDB, an optional dependency.

    Raises:
        ConfigError: it is not installed.
    """
    os.environ.setdefault("LANCE_LOG", "error")
    try:
        import lancedb
        import lancedb.index
    except ImportError as error:
        raise ConfigError("tables of vectors need LanceDB: pip install 'jzi[lance]'") from error
    return lancedb


@contextlib.contextmanager
def lance_errors(what: str) -> Iterator[None]:
    """Turn errors of LanceDB into a ModelError that begins with `what`."""
    try:
        yield
    except ModelError:
        raise
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
        raise ModelError(f"{what}: {first_line(error):.200}") from error


def _connect(lance: Any, uri: str) -> Any:
    """The database of a table; the endpoint of object storage is the one that the cache uses."""
    from jzi.store.disk.object_store import s3_endpoint

    options, endpoint = {}, s3_endpoint() if uri.startswith("s3://") else ""
    if endpoint:
        options = {"aws_endpoint": endpoint, "allow_http": str(endpoint.startswith("http://")).lower()}
    return lance.connect(uri, storage_options=options or None)


def _schema(info: TableInfo) -> pa.Schema:
    fields = [pa.field(CELL, pa.int64(), False), pa.field(VECTOR, pa.list_(pa.float16(), info.width), False)]
    return pa.schema(fields, metadata={_ENTRY: json.dumps(plain(info)).encode()})


def _batch(cells: NDArray[np.int64], vectors: NDArray[np.float16], schema: pa.Schema) -> pa.RecordBatch:
    values = pa.array(np.ascontiguousarray(vectors, np.float16).ravel())
    arrays = [pa.array(cells), pa.FixedSizeListArray.from_arrays(values, vectors.shape[1])]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _info(table: Any, uri: str) -> TableInfo:
    entry = (table.schema.metadata or {}).get(_ENTRY)
    if entry is None:
        raise ModelError(f"{uri} was not written by jzi: {HINT}")
    try:
        info = TypeAdapter(TableInfo).validate_json(entry)
    except ValidationError as error:
        raise ModelError(f"{uri} has an {first_invalid(error)}: {HINT}") from error
    if table.schema.remove_metadata() != _schema(info).remove_metadata():
        raise ModelError(f"{uri} has other columns than jzi writes: {HINT}")
    return info


def _columns(rows: pa.Table, uri: str, info: TableInfo) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
    """Keys (row,) and vectors (row, feature) of a table in memory."""
    if rows.schema.remove_metadata() != _schema(info).remove_metadata():
        raise ModelError(f"{uri} has other columns than jzi writes: {HINT}")
    flat = rows[VECTOR].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    vectors = np.ascontiguousarray(flat, np.float16).reshape(-1, info.width)
    if not np.isfinite(vectors).all():
        raise ModelError(f"{uri} has vectors that are not finite: {HINT}")
    return rows[CELL].to_numpy().astype(np.int64), vectors
