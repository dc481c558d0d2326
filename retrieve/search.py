"""Which cells are most like a photo: exact with Faiss's IndexFlatIP, approximate with its HNSW graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jzi.errors import ConfigError, ModelError, first_line
from jzi.retrieve.retriever import Retriever
from jzi.store.model_folder import GRAPH, verify_file, write_file

#: Links of a node of the graph, and how many nodes are kept in sight while it is built and searched.
LINKS, BUILD_SIGHT, SEARCH_SIGHT = 32, 200, 256


class CellIndex:
    """The cells of a map, to be searched by cosine similarity.

    Args:
        row: (cell,) in the pyramid's terminal cells.
        col: likewise.
        embedding: (cell, feature); of any length.
        graph: an HNSW graph over them, for approximate search; exact without.
    """

    def __init__(
        self, row: NDArray[np.int64], col: NDArray[np.int64], embedding: NDArray[Any], graph: Any = None
    ) -> None:
        self.row, self.col = row, col
        if graph is None:
            faiss = import_faiss()
            graph = faiss.IndexFlatIP(embedding.shape[1])
            graph.add(unit(embedding))
        self.index = graph

    @classmethod
    def load(cls, retriever: Retriever, *, approximate: bool = False) -> CellIndex:
        """The database of a retriever.

        Args:
            retriever: with an index.
            approximate: search its HNSW graph.

        Raises:
            ModelError: there is no index, or no graph.
            CacheError: the index is not complete.
        """
        cache = retriever.open_cache()
        row, col, embedding = cache.cells.read()
        if not approximate:
            return cls(row, col, embedding)
        faiss = import_faiss()
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
            raise ModelError(f"{retriever.hnsw_path} is of another index: run `jzi index --hnsw` again")
        graph.hnsw.efSearch = SEARCH_SIGHT
        return cls(row, col, embedding, graph)

    def __len__(self) -> int:
        return len(self.row)

    @property
    def bytes(self) -> int:
        """What search keeps in memory: vectors in float32, and the links of a graph."""
        faiss = import_faiss()
        vectors = 4 * self.index.ntotal * self.index.d
        if isinstance(self.index, faiss.IndexHNSW):
            return vectors + 4 * self.index.hnsw.neighbors.size()
        return vectors

    def search(self, query: NDArray[Any], count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """(query, count) cosine similarities and cells, the most similar first; cell -1 where a graph found fewer.

        Args:
            query: (query, feature) of any length.
            count: how many cells; at most all.
        """
        found, cells = self.index.search(unit(query), min(count, len(self)))
        return found, cells


def probabilities(similarity: NDArray[np.float32], cells: NDArray[np.int64], temperature: float) -> NDArray[np.float64]:
    """(query, cell) softmax of what `CellIndex.search` found; 0 for cell -1."""
    logits = np.where(cells < 0, -np.inf, similarity.astype(np.float64) / temperature)
    share = np.exp(logits - logits.max(1, keepdims=True))
    return share / share.sum(1, keepdims=True)


def unit(embedding: NDArray[Any]) -> NDArray[np.float32]:
    """(n, feature) float32 of length one."""
    values = np.ascontiguousarray(embedding, np.float32)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


def build_graph(embedding: NDArray[Any]) -> Any:
    """An HNSW graph (Malkov and Yashunin 2018) over (cell, feature) embeddings."""
    faiss = import_faiss()
    graph = faiss.IndexHNSWFlat(embedding.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction, graph.hnsw.efSearch = BUILD_SIGHT, SEARCH_SIGHT
    graph.add(unit(embedding))
    return graph


def save_graph(graph: Any, path: Path) -> None:
    """Write a graph, whole or not at all, and record its digest in the retriever's config.json.

    Raises:
        ModelError: the disk is full or refuses.
    """
    faiss = import_faiss()
    write_file(path.parent, path.name, lambda file: faiss.write_index(graph, str(file)))


def import_faiss() -> Any:
    """The library; it is an extra.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise ConfigError("retrieval needs Faiss: pip install 'jzi[retrieve]'") from error
    return faiss
