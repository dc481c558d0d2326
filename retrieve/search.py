"""Search for the cells most similar to a photo: exact with Faiss's IndexFlatIP, or approximate with an HNSW graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jzi.errors import ModelError, first_line
from jzi.locate.ranges import RANKS, TEMPERATURE
from jzi.retrieve.retriever import Retriever
from jzi.store.model_folder import GRAPH, verify_file, write_file
from jzi.vectors.index_files import import_faiss

#: HNSW parameters: links per node (M), and candidates kept while building (efConstruction) and searching (efSearch).
LINKS, EF_CONSTRUCTION, EF_SEARCH = 32, 200, 256


class CellIndex:
    """An index of the cells of a map by cosine similarity.

    Args:
        row: (cell,) rows of terminal cells.
        col: (cell,) columns of terminal cells.
        embedding: (cell, feature); need not be normalised.
        graph: an HNSW graph over the embeddings for approximate search; None for exact search.
    """

    def __init__(
        self, row: NDArray[np.int64], col: NDArray[np.int64], embedding: NDArray[Any], graph: Any = None
    ) -> None:
        self.row, self.col = row, col
        if graph is None:
            faiss = import_faiss()
            graph = faiss.IndexFlatIP(embedding.shape[1])
            graph.add(normalise_rows(embedding))
        self.index = graph

    @classmethod
    def load(cls, retriever: Retriever, *, approximate: bool = False) -> CellIndex:
        """Load the index of a retriever.

        Args:
            retriever: a retriever with an index.
            approximate: whether to search its HNSW graph.

        Raises:
            ModelError: there is no index, or no graph.
            CacheError: the index is incomplete or damaged.
        """
        row, col, embedding = retriever.read_cells()
        if not approximate:
            return cls(row, col, embedding)
        faiss = import_faiss()
        if retriever.published:
            raise ModelError(f"{retriever.folder} was published, without a graph: leave --approximate out")
        if not retriever.hnsw_path.exists():
            raise ModelError(
                f"{retriever.folder} has no graph for approximate search: run `jzi index --retriever "
                f"{retriever.folder} --hnsw`"
            )
        verify_file(retriever.folder, retriever.config, GRAPH)
        try:
            graph = faiss.read_index(str(retriever.hnsw_path))
        except RuntimeError as error:
            raise ModelError(f"{retriever.hnsw_path} cannot be read: {first_line(error)}") from error
        if graph.ntotal != len(row):
            raise ModelError(
                f"{retriever.hnsw_path} has {graph.ntotal} cells, but the index has {len(row)}: run `jzi index --hnsw` "
                "again"
            )
        graph.hnsw.efSearch = EF_SEARCH
        return cls(row, col, embedding, graph)

    def subset(self, cells: NDArray[np.int64]) -> CellIndex:
        """An exact index of some of the cells, given by their indices."""
        return CellIndex(self.row[cells], self.col[cells], self.index.reconstruct_batch(cells))

    def __len__(self) -> int:
        return len(self.row)

    @property
    def bytes(self) -> int:
        """Memory of the index: vectors in float32, and the links of the graph."""
        faiss = import_faiss()
        vectors = 4 * self.index.ntotal * self.index.d
        if isinstance(self.index, faiss.IndexHNSW):
            return vectors + 4 * self.index.hnsw.neighbors.size()
        return vectors

    def search(self, query: NDArray[Any], count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The most similar cells of each query.

        Args:
            query: (query, feature); need not be normalised.
            count: number of cells; at most all.

        Returns:
            (query, count) cosine similarities and indices of cells, most similar first; -1 if a graph reached fewer.

        Raises:
            ConfigError: `count` is out of range.
        """
        RANKS.check("count", count)
        similarity, cells = self.index.search(normalise_rows(query), min(count, len(self)))
        return similarity, cells


def probabilities(similarity: NDArray[np.float32], cells: NDArray[np.int64], temperature: float) -> NDArray[np.float64]:
    """(query, cell) softmax of similarities; 0 for a cell of -1.

    Args:
        similarity: (query, cell), as `CellIndex.search` returns them.
        cells: (query, cell), likewise.
        temperature: divisor of the similarities.

    Raises:
        ConfigError: the temperature is out of range.
    """
    TEMPERATURE.check("temperature", temperature)
    logits = np.where(cells < 0, -np.inf, similarity.astype(np.float64) / temperature)
    weight = np.exp(logits - logits.max(1, keepdims=True))
    return weight / weight.sum(1, keepdims=True)


def normalise_rows(embedding: NDArray[Any]) -> NDArray[np.float32]:
    """(n, feature) float32 rows of unit length."""
    values = np.ascontiguousarray(embedding, np.float32)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


def build_graph(embedding: NDArray[Any]) -> Any:
    """Build an HNSW graph (Malkov and Yashunin 2018) over (cell, feature) embeddings."""
    faiss = import_faiss()
    graph = faiss.IndexHNSWFlat(embedding.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction, graph.hnsw.efSearch = EF_CONSTRUCTION, EF_SEARCH
    graph.add(normalise_rows(embedding))
    return graph


def save_graph(graph: Any, path: Path) -> None:
    """Write a graph atomically, and record its digest in the retriever's config.json.

    Args:
        graph: from `build_graph`.
        path: the retriever's `hnsw_path`.

    Raises:
        ModelError: the folder cannot be written.
    """
    faiss = import_faiss()
    write_file(path.parent, path.name, lambda file: faiss.write_index(graph, str(file)))
