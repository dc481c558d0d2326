"""What an approximate index of vectors offers, and the estimate of a sum over all cells from some of them."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from jzi.vectors.exact import Neighbors

#: Vectors that an index keeps apart, drawn at random: 32 MB with 1024 features.
SAMPLED = 16_384

#: Cells of a selection up to which they are compared exactly instead.
EXACT_CELLS = 100_000


class ApproximateIndex(Protocol):
    """An index of the vectors of a store: `VectorIndex` of Faiss, `LanceIndex` of LanceDB."""

    def restricted(self, mask: NDArray[np.bool_]) -> ApproximateIndex:
        """The same index for some of the cells, (row, col)."""
        ...

    def search(self, query: Tensor | NDArray[Any], count: int = 10) -> Neighbors:
        """The most similar cells that the index finds, ranked by exact similarity."""
        ...

    def log_sum(self, query: Tensor | NDArray[Any], temperature: float, neighbors: Neighbors) -> NDArray[np.float64]:
        """(query,) estimate of the logarithm of the sum of exp(similarity / temperature) over all cells.

        Cells of `neighbors` count exactly. The sum over the others is estimated from vectors drawn at random: it is
        unbiased where the index has found the most similar cells, and varies much if few others dominate it.

        Args:
            query: (query, feature); need not be normalised.
            temperature: divisor of similarities.
            neighbors: result of `search`.

        Raises:
            ConfigError: the temperature is out of range.
        """
        ...


def sampled_log_sum(
    logits: NDArray[np.float64],
    keys: NDArray[np.int64],
    neighbors: Neighbors,
    *,
    temperature: float,
    cells: int,
    cols: int,
) -> NDArray[np.float64]:
    """`ApproximateIndex.log_sum`, given the similarities to the sample.

    Args:
        logits: (query, sampled) similarities divided by the temperature.
        keys: (sampled,) row * columns + column of the sampled cells.
        neighbors: result of the search.
        temperature: divisor of similarities.
        cells: number of cells of the index.
        cols: columns of the store.
    """
    exact = neighbors.similarity.astype(np.float64) / temperature
    result = np.empty(len(logits))
    for number in range(len(logits)):
        found = neighbors.row[number] >= 0
        near = neighbors.row[number, found] * cols + neighbors.col[number, found]
        rest = logits[number, ~np.isin(keys, near)]
        others = cells - len(near)
        total = np.logaddexp.reduce(exact[number, found], initial=-np.inf)
        if len(rest) and others > 0:
            total = np.logaddexp(total, np.logaddexp.reduce(rest) + np.log(others / len(rest)))
        result[number] = total
    return result
