"""Exact search that streams over all vectors of a store, without an index.

One pass serves any number of queries, and memory does not grow with the store: a unit of it is in memory while the next
is read. The same pass finds the most similar cells, the sum over all cells that a softmax needs, and how many cells are
more similar than the right ones, which is all that evaluation needs of a ranking (Fervers et al. 2024, section 4.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from jzi.errors import CacheCorruptError, ConfigError
from jzi.locate.ranges import RANKS, TEMPERATURE
from jzi.vectors.store import TIE, Block, VectorStore, by_chunk, read_blocks

#: Similarities computed at once: 64 MB in float32.
ENTRIES = 2**24


@dataclass(frozen=True)
class Neighbors:
    """The most similar cells of queries, most similar first.

    Attributes:
        row: (query, k) rows; -1 for padding, where there are fewer cells.
        col: (query, k) columns; -1 for padding.
        similarity: (query, k) float32 cosine similarities; -inf for padding.
    """

    row: NDArray[np.int64]
    col: NDArray[np.int64]
    similarity: NDArray[np.float32]


@dataclass(frozen=True)
class Matches:
    """The right cells of queries, any number for each.

    Attributes:
        query: (pair,) index of a query.
        row: (pair,) row of one of its cells.
        col: (pair,) column of that cell.
    """

    query: NDArray[np.int64]
    row: NDArray[np.int64]
    col: NDArray[np.int64]

    def __getitem__(self, index: Any) -> Matches:
        return Matches(self.query[index], self.row[index], self.col[index])


@dataclass(frozen=True)
class Scan:
    """Result of a pass over cells.

    Attributes:
        neighbors: the most similar cells.
        log_sum: (query,) float64 logarithm of the sum of exp(similarity / temperature) over all cells of the pass;
            -inf if there are none. None if no temperature was given.
        better: (query,) number of cells that are no matches and at least as similar as the best match, but for rounding
            (`TIE`). None if no matches were given.
        cells: number of cells of the pass.
    """

    neighbors: Neighbors
    log_sum: NDArray[np.float64] | None
    better: NDArray[np.int64] | None
    cells: int


def scan(
    store: VectorStore,
    query: Tensor | NDArray[Any],
    count: int = 1,
    *,
    mask: NDArray[np.bool_] | None = None,
    cells: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
    temperature: float | None = None,
    matches: Matches | None = None,
    device: torch.device | str = "cpu",
) -> Scan:
    """Compare queries with all cells, or some of them, in one pass.

    Args:
        store: the vectors.
        query: (query, feature); need not be normalised.
        count: number of most similar cells to return; fewer if there are fewer.
        mask: (row, col) the cells to compare with; all by default. Units without any are not read.
        cells: distinct rows (cell,) and columns (cell,) to compare with instead; only their chunks are read.
        temperature: divisor of similarities in the sum over all cells.
        matches: the right cells, to count the cells that rank before them. They must have vectors, and every query
            needs one.
        device: device of the products.

    Raises:
        ConfigError: a number is out of range, the query has another width than the store, or lacks a match.
        CacheCorruptError: a vector is not finite.
    """
    RANKS.check("count", count)
    if temperature is not None:
        TEMPERATURE.check("temperature", temperature)
    queries = prepare(store, query, device)
    size, cols = len(queries), store.shape[1]
    best = torch.full((size, count), -torch.inf, device=device)
    keys = torch.full((size, count), -1, dtype=torch.int64, device=device)
    log_sum = torch.full((size,), -torch.inf, dtype=torch.float64, device=device)
    better, pairs, threshold = torch.zeros(size, dtype=torch.int64, device=device), None, None
    if matches is not None:
        threshold = torch.from_numpy(best_match(store, queries, matches)).to(device) - TIE
        pairs = matches[matches.row.argsort(kind="stable")]
    total = 0
    for block in read_blocks(store, mask=mask, cells=cells):
        total += len(block.row)
        vectors = torch.from_numpy(block.vectors).to(device).float()
        block_keys = torch.from_numpy(block.row * cols + block.col).to(device)
        own = None if pairs is None else _matches_in(block, pairs, cols)
        step = max(1, ENTRIES // max(1, len(vectors)))
        for start in range(0, size, step):
            part = slice(start, start + step)
            similarity = queries[part] @ vectors.T
            if not torch.isfinite(similarity).all():
                raise CacheCorruptError(f"{store.path} has vectors that are not finite: encode its cells again")
            if temperature is not None:
                log_sum[part] = torch.logaddexp(log_sum[part], (similarity / temperature).logsumexp(1).double())
            _merge(best[part], keys[part], similarity, block_keys)
            if own is not None and threshold is not None:
                inside = (own.query >= start) & (own.query < start + len(similarity))
                similarity[own.query[inside] - start, own.row[inside]] = -torch.inf
                better[part] += (similarity >= threshold[part, None]).sum(1)
    return Scan(
        _neighbors(best, keys, cols),
        None if temperature is None else log_sum.cpu().numpy(),
        None if matches is None else better.cpu().numpy(),
        total,
    )


def similarities(store: VectorStore, query: Tensor | NDArray[Any], pairs: Matches) -> NDArray[np.float32]:
    """(pair,) cosine similarity of each pair of a query and a cell, exact; each chunk is read about once.

    Args:
        store: the vectors.
        query: (query, feature); need not be normalised.
        pairs: the pairs; the cells must have vectors.
    """
    queries = prepare(store, query, "cpu")
    result = np.empty(len(pairs.query), np.float32)
    for part in by_chunk(pairs.row, pairs.col):
        vectors = torch.from_numpy(store.gather(pairs.row[part], pairs.col[part])).float()
        result[part] = (queries[torch.from_numpy(pairs.query[part])] * vectors).sum(1).numpy()
    return result


def best_match(store: VectorStore, query: Tensor | NDArray[Any], matches: Matches) -> NDArray[np.float32]:
    """(query,) similarity of the most similar match of each query.

    Raises:
        ConfigError: a query lacks a match.
    """
    similarity = similarities(store, query, matches)
    best = np.full(len(query), -np.inf, np.float32)
    np.maximum.at(best, matches.query, similarity)
    if lacking := int(np.isneginf(best).sum()):
        raise ConfigError(f"{lacking} of {len(best)} queries have no cell that matches: leave them out")
    return best


def prepare(store: VectorStore, query: Tensor | NDArray[Any], device: torch.device | str) -> Tensor:
    """(query, feature) float32 of unit length on a device.

    Raises:
        ConfigError: the query has another width than the store, or is not finite.
    """
    tensor = torch.as_tensor(query).to(device).float()
    if tensor.ndim != 2 or tensor.shape[1] != store.width:
        raise ConfigError(
            f"queries of shape {tuple(tensor.shape)} cannot be compared with vectors of {store.width} features in "
            f"{store.path}: encode both with the same model"
        )
    if not torch.isfinite(tensor).all():
        raise ConfigError("a query has features that are not finite: encode the photo again")
    return normalize(tensor, dim=1)


def _merge(best: Tensor, keys: Tensor, similarity: Tensor, block_keys: Tensor) -> None:
    """Merge a block into the most similar cells (query, k) so far, in place."""
    if not similarity.shape[1]:
        return
    count = best.shape[1]
    found = int((similarity > best[:, -1:]).sum(1).max())
    if not found:
        return
    similarity, cell = similarity.topk(min(found, count), dim=1)
    joined = torch.cat([best, similarity], 1)
    best[:], index = joined.topk(count, dim=1)
    keys[:] = torch.cat([keys, block_keys[cell]], 1).gather(1, index)


def _neighbors(best: Tensor, keys: Tensor, cols: int) -> Neighbors:
    similarity, key = best.cpu().numpy(), keys.cpu().numpy()
    used = int((key >= 0).sum(1).max(initial=0))
    order = np.lexsort((key[:, :used], -similarity[:, :used]), axis=1)  # of equal ones the first cell comes first
    key, similarity = np.take_along_axis(key, order, 1), np.take_along_axis(similarity, order, 1)
    row, col = np.divmod(key, cols)
    return Neighbors(np.where(key < 0, -1, row), np.where(key < 0, -1, col), similarity)


def _matches_in(block: Block, pairs: Matches, cols: int) -> Matches:
    """The matches (sorted by row) in a block, with the index in the block as `row`."""
    if not len(block.row):
        return pairs[:0]
    low, high = pairs.row.searchsorted([block.row.min(), block.row.max() + 1])
    near = pairs[low:high]
    near = near[(near.col >= block.col.min()) & (near.col <= block.col.max())]
    keys, wanted = block.row * cols + block.col, near.row * cols + near.col
    order = keys.argsort()
    index = order[np.minimum(keys[order].searchsorted(wanted), len(order) - 1)]
    present = keys[index] == wanted
    return Matches(near.query[present], index[present], near.col[present])
