"""State-wide retrieval as an expert: the softmax of a photo's similarities to all cells of a store."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jzi.errors import ConfigError, ModelError
from jzi.locate.answer.location import LocateOptions
from jzi.locate.posterior import Posterior
from jzi.locate.ranges import RANKS, TEMPERATURE
from jzi.store.features.map_embeddings import ENCODED
from jzi.store.geometry.cell_grid import CellGrid
from jzi.store.info import EncoderInfo
from jzi.vectors.approximate import ApproximateIndex
from jzi.vectors.district import KEPT, MARGIN_M, TILES, districts
from jzi.vectors.exact import Matches, Neighbors, prepare, scan
from jzi.vectors.store import VectorStore, read_blocks

#: Number of most similar cells of a posterior; the probability of the others is its residual.
CELLS = 4096

#: The same of an approximate search, which reads a chunk of the store for nearly every one of them.
INDEXED_CELLS = 128


class BandsExpert:
    """Retrieval among the cells of a state, on any grid of cells (Fervers et al. 2024).

    By default every posterior is exact: all vectors are read, a unit at a time, for all photos of a call together. With
    an index the most similar cells are those that the index finds, and the sum over the others, and so all
    probabilities, are estimated from a random sample of the cells (`ApproximateIndex.log_sum`).

    Args:
        area: the grid of the cells.
        store: their vectors.
        encoder: info of the encoder of the photos.
        temperature: divisor of cosine similarities.
        index: an index of the store, for approximate search.

    Raises:
        ConfigError: the temperature is out of range.
        ModelError: the store has another grid, or no vectors.
    """

    name = "retrieval"
    rules_out = False

    def __init__(
        self,
        area: CellGrid,
        store: VectorStore,
        encoder: EncoderInfo,
        temperature: float,
        index: ApproximateIndex | None = None,
    ) -> None:
        TEMPERATURE.check("temperature", temperature)
        if area.shape != tuple(store.shape):
            raise ModelError(f"{store.path} has cells of {store.shape}, not of {area.shape}: it is of another region")
        self.area, self.store, self.encoder, self.temperature, self.index = area, store, encoder, temperature, index
        self.cell_mask: NDArray[np.bool_] = store.status() == ENCODED
        self.whole = True  # not restricted
        if not self.cell_mask.any():
            raise ModelError(f"{store.path} has no encoded cells: run `jzi index`")

    def posterior(self, query: Tensor, options: LocateOptions) -> Posterior:
        """The `CELLS` most similar cells (`INDEXED_CELLS` with an index); for "greedy", the first one.

        Args:
            query: (photo, feature) embeddings.
            options: only the estimate is used.
        """
        greedy = options.estimate == "greedy"
        if self.index is not None:
            neighbors = self.index.search(query, INDEXED_CELLS)
            return self._posterior(neighbors, self.index.log_sum(query, self.temperature, neighbors), greedy)
        mask = None if self.whole else self.cell_mask
        found = scan(
            self.store,
            query,
            1 if greedy else CELLS,
            mask=mask,
            temperature=self.temperature,
            device=query.device,
        )
        assert found.log_sum is not None
        return self._posterior(found.neighbors, found.log_sum, greedy)

    def posterior_within(
        self, query: Tensor, coarse: Posterior, *, kept: float = KEPT, tiles: int = TILES
    ) -> Posterior:
        """The posterior in the probable tiles of a coarse posterior, such as a zoom's; only their chunks are read.

        Probabilities are a softmax over the cells of the district, times the probability of its tiles. That of the
        other tiles is the residual.

        Args:
            query: (photo, feature) embeddings.
            coarse: posterior of these photos over larger cells, on any grid.
            kept: share of its probability that is searched.
            tiles: greatest number of its cells that are searched.

        Raises:
            ConfigError: a number is out of range, or `coarse` is of another number of photos.
        """
        if len(coarse) != len(query):
            raise ConfigError(f"a posterior of {len(coarse)} photos cannot bound the search for {len(query)}")
        parts, margin_m = [], max(MARGIN_M, self.area.cell_size)  # so that small tiles in a cell reach its centre
        for photo, district in enumerate(districts(coarse, self.area, kept=kept, tiles=tiles, margin_m=margin_m)):
            encoded = self.cell_mask[district.row, district.col]
            found = scan(
                self.store,
                query[photo : photo + 1],
                CELLS,
                cells=(district.row[encoded], district.col[encoded]),
                temperature=self.temperature,
                device=query.device,
            )
            assert found.log_sum is not None
            log_sum = found.log_sum - np.log(max(district.probability, 1e-300))
            inside = self._posterior(found.neighbors, log_sum, False)
            residual = np.maximum(0.0, 1 - inside.probability.sum(1))
            parts.append(Posterior(self.area, inside.row, inside.col, inside.probability, residual))
        return Posterior.concatenate(parts)

    def restricted(self, cell_mask: NDArray[np.bool_]) -> BandsExpert:
        """The same expert for some of its cells; units without any of them are not read.

        Probabilities are a softmax over these cells alone; see `jzi.locate.expert.Restrictable`.

        Args:
            cell_mask: (row, col) the cells.
        """
        expert = copy.copy(self)
        expert.cell_mask, expert.whole = self.cell_mask & cell_mask, False
        if self.index is not None:
            expert.index = self.index.restricted(cell_mask)
        return expert

    def uncalibrated(self) -> BandsExpert | None:
        """The same expert without the fitted temperature."""
        expert = copy.copy(self)
        expert.temperature = 1.0
        return expert

    def cell_ranks(
        self, query: Tensor, row: NDArray[np.int64], col: NDArray[np.int64], count: int
    ) -> NDArray[np.int64]:
        """(photo,) number of cells at least as similar as the true one, at most `count`.

        With an index, of the cells that it finds; `count` where the true one is not among them, or has no imagery.

        Args:
            query: (photo, feature) embeddings.
            row: (photo,) rows of the true cells.
            col: (photo,) columns of the true cells.
            count: number of most similar cells to rank.

        Raises:
            ConfigError: `count` is out of range.
        """
        RANKS.check("count", count)
        if self.index is not None:
            found = self.index.search(query, count)
            hit = (found.row == row[:, None]) & (found.col == col[:, None]) & (found.row >= 0)
            return np.where(hit.any(1), hit.argmax(1) if hit.shape[1] else 0, count)
        ranks = np.full(len(query), count)
        known = np.flatnonzero((row >= 0) & (col >= 0) & self.cell_mask[row, col])
        if len(known):
            mask = None if self.whole else self.cell_mask
            matches = Matches(np.arange(len(known)), row[known], col[known])
            better = scan(self.store, query[known], mask=mask, matches=matches, device=query.device).better
            assert better is not None
            ranks[known] = np.minimum(better, count)
        return ranks

    def log_scores(self, query: Tensor) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]]:
        """Rows (cell,), columns (cell,) and log-scores (cell,) of all cells for one photo, in one pass over the store.

        A log-score is the cosine similarity divided by the temperature; the index, if there is one, is not used.

        Args:
            query: (1, feature) its embedding.
        """
        (photo,) = prepare(self.store, query, query.device)
        for block in read_blocks(self.store, mask=None if self.whole else self.cell_mask):
            similarity = torch.from_numpy(block.vectors).to(photo.device).float() @ photo
            yield block.row, block.col, (similarity / self.temperature).cpu().numpy()

    def _posterior(self, neighbors: Neighbors, log_sum: NDArray[np.float64], greedy: bool) -> Posterior:
        row, col, similarity = neighbors.row, neighbors.col, neighbors.similarity.astype(np.float64)
        if not row.shape[1]:  # no cells: a padding of probability 0
            padding = np.zeros((len(row), 1), np.int64)
            return Posterior(self.area, padding, padding, np.zeros((len(row), 1)), np.zeros(len(row)))
        if greedy:
            row, col, similarity = row[:, :1], col[:, :1], similarity[:, :1]
        finite = np.where(np.isneginf(log_sum), 0.0, log_sum)
        probability = np.exp(similarity / self.temperature - finite[:, None])
        probability /= np.maximum(1.0, probability.sum(1, keepdims=True))  # but for rounding the sum is at most 1
        residual = np.maximum(0.0, 1 - probability.sum(1))
        residual[residual < 1e-6] = 0.0  # the precision of the sum
        return Posterior(self.area, np.maximum(row, 0), np.maximum(col, 0), probability, residual)
