"""Flat retrieval as an expert: the softmax of a photo's similarities to the cells of the map."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from jzi.locate.answer.location import LocateOptions
from jzi.locate.expert import Expert
from jzi.locate.posterior import Posterior
from jzi.locate.priors.restricted import RestrictedExpert
from jzi.locate.ranges import RANKS
from jzi.retrieve.retriever import Retriever
from jzi.retrieve.search import CellIndex, probabilities
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.info import EncoderInfo

#: Number of most similar cells in the softmax; the probability of the others is negligible.
CELLS = 4096

#: Number of most similar cells in the softmax of the greedy estimate, and at least in the ranking of the true cell.
RANKED = 64

#: Maximum number of cells of a restricted expert that are searched exactly; of more, only those near the photo are.
RESTRICTED = 65_536


class RetrievalExpert:
    """A retriever and its index of cells.

    Args:
        retriever: encoder, area and temperature.
        index: index of all cells of the area that have imagery.
    """

    name = "retrieval"
    rules_out = False

    def __init__(self, retriever: Retriever, index: CellIndex) -> None:
        self.retriever, self.index = retriever, index

    @classmethod
    def load(cls, folder: str | Path, *, approximate: bool = False) -> RetrievalExpert:
        """Load the expert from a retriever's folder.

        Args:
            folder: the retriever's folder.
            approximate: whether to search the HNSW graph instead of all cells.

        Raises:
            ModelError: the folder holds no retriever, or has no index.
            CacheError: the index is incomplete or damaged.
        """
        retriever = Retriever.load(folder)
        return cls(retriever, CellIndex.load(retriever, approximate=approximate))

    @property
    def area(self) -> Pyramid:
        """The pyramid whose terminal cells are retrieved."""
        return self.retriever.pyramid

    @property
    def encoder(self) -> EncoderInfo:
        """The retriever's encoder."""
        return self.retriever.encoder

    @cached_property
    def cell_mask(self) -> NDArray[np.bool_]:
        """(row, col) whether each cell has imagery."""
        mask = np.zeros(self.area.shape, bool)
        mask[self.index.row, self.index.col] = True
        return mask

    def posterior(self, query: Tensor, options: LocateOptions) -> Posterior:
        """Softmax over the `CELLS` most similar cells; for "greedy", the first cell of a softmax over `RANKED`.

        Args:
            query: (photo, feature) embeddings.
            options: only the estimate is used.
        """
        greedy = options.estimate == "greedy"
        similarity, cells = self.index.search(query.cpu().numpy(), RANKED if greedy else CELLS)
        probability = probabilities(similarity, cells, self.retriever.temperature)
        if greedy:
            cells, probability = cells[:, :1], probability[:, :1]
        cells = np.maximum(cells, 0)  # cells of -1, where a graph search reached fewer, have probability 0
        return Posterior.from_cells(self.area, self.index.row[cells], self.index.col[cells], probability)

    def restricted(self, cell_mask: NDArray[np.bool_]) -> Expert:
        """The same expert for some of its cells, up to `RESTRICTED` of which are searched exactly.

        Probabilities are a softmax over these cells alone; see `jzi.locate.expert.Restrictable`.

        Args:
            cell_mask: (row, col) the cells.
        """
        kept = np.nonzero(cell_mask[self.index.row, self.index.col])[0]
        if len(kept) > RESTRICTED:
            return RestrictedExpert(self, cell_mask)
        return RetrievalExpert(self.retriever, self.index.subset(kept))

    def uncalibrated(self) -> RetrievalExpert | None:
        """The same expert without the fitted temperature."""
        config = replace(self.retriever.config, temperature=1.0)
        return RetrievalExpert(replace(self.retriever, config=config), self.index)

    def cell_ranks(
        self, query: Tensor, row: NDArray[np.int64], col: NDArray[np.int64], count: int
    ) -> NDArray[np.int64]:
        """(photo,) number of cells more similar than the true one; `count` if it is not among the first `count`.

        Args:
            query: (photo, feature) embeddings.
            row: (photo,) rows of the true cells.
            col: (photo,) columns of the true cells.
            count: number of most similar cells to rank.

        Raises:
            ConfigError: `count` is out of range.
        """
        RANKS.check("count", count)
        _, cells = self.index.search(query.cpu().numpy(), max(count, RANKED))
        cells = cells[:, :count]
        hit = (self.index.row[cells] == row[:, None]) & (self.index.col[cells] == col[:, None]) & (cells >= 0)
        return np.where(hit.any(1), hit.argmax(1), count)
