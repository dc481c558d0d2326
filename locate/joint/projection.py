"""Fusion of experts on different cells: a zoom's tiles and the cells of state-wide retrieval.

The probability of a tile is spread evenly over the cells whose centre lies in it; cells are of equal area, so that this
is the tile's probability divided by the area that it has inside of the region. The fused log-probability of a cell is
the weighted sum of both experts' log-probabilities, as in `jzi.locate.joint.fusion`. Cells that retrieval did not reach
differ by their tile only, and are summed by tile: the normalisation is over all cells of the region.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jzi.locate.joint.fusion import FLOOR, MAX_CELLS, ROUNDING
from jzi.locate.joint.fusion_weights import PRIOR_PHOTOS, FusionWeights, clear_weights, maximise
from jzi.locate.posterior import Posterior
from jzi.store.geometry.cell_grid import CellGrid

#: Most probable tiles of a photo that keep their own probability; that of the others is spread over the rest.
TILES = 256

#: The experts of the fusion: on the cells, and on the tiles.
NAMES = ("cells", "zoom")

#: Cells around tiles that are looked up at once, about.
_LOOKED_UP = 2**20


class Projection:
    """Which cells of a grid lie in the cells of another, larger one (tiles).

    Args:
        tiles: the grid of the tiles.
        cells: the grid of the cells, which is finer.
        cell_mask: (row, col) the cells of the region with imagery.
        total: number of cells of the region, if `cell_mask` has only some of them.
    """

    def __init__(
        self, tiles: CellGrid, cells: CellGrid, cell_mask: NDArray[np.bool_], total: int | None = None
    ) -> None:
        self.tiles, self.cells, self.cell_mask = tiles, cells, cell_mask
        self.count = int(cell_mask.sum())
        self.total = total or self.count
        self._counts: dict[int, int] = {}

    def tile_of(self, row: NDArray[np.int64], col: NDArray[np.int64]) -> NDArray[np.int64]:
        """row * columns + column of the tile that contains the centre of each cell; -1 outside of the tiles."""
        latitude, longitude = self.cells.unproject(*self.cells.cell_centers(row.ravel(), col.ravel()))
        tile_row, tile_col = self.tiles.cells_at(latitude, longitude)
        return np.where(tile_row >= 0, tile_row * self.tiles.shape[1] + tile_col, -1).reshape(row.shape)

    def cells_of(self, tile: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The cells of the region in several tiles: index of the tile, row and column of a cell, (pair,) each.

        Args:
            tile: (n,) distinct numbers row * columns + column.
        """
        row, col = np.divmod(tile, self.tiles.shape[1])
        latitude, longitude = self.tiles.unproject(*self.tiles.cell_centers(row, col))
        # Half of the diagonal, and room for the distortion of the tiles' CRS; compared with the tile itself below
        radius = self.tiles.cell_size * 0.75 + self.cells.cell_size
        pairs = max(1.0, np.pi * radius**2 / self.cells.cell_size**2)
        parts = []
        for part in np.array_split(np.arange(len(tile)), int(np.ceil(len(tile) * pairs / _LOOKED_UP))):
            index, cell_row, cell_col = self.cells.within(latitude[part], longitude[part], radius)
            kept = self.cell_mask[cell_row, cell_col]
            index, cell_row, cell_col = part[index[kept]], cell_row[kept], cell_col[kept]
            kept = self.tile_of(cell_row, cell_col) == tile[index]
            parts.append((index[kept], cell_row[kept], cell_col[kept]))
        found = [np.concatenate(each) for each in zip(*parts, strict=True)]
        return found[0], found[1], found[2]

    def counts(self, tile: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n,) number of cells of the region in each tile, computed once for a tile."""
        flat = tile.ravel()
        unknown = np.array([each for each in np.unique(flat).tolist() if each not in self._counts], np.int64)
        if len(unknown):
            index = self.cells_of(unknown)[0]
            counted = np.bincount(index, minlength=len(unknown))
            self._counts.update(zip(unknown.tolist(), counted.tolist(), strict=True))
        return np.array([self._counts[each] for each in flat.tolist()], np.int64).reshape(tile.shape)

    def project(self, posterior: Posterior, limit: int = MAX_CELLS) -> Posterior:
        """A posterior over tiles as one over cells, those of the most probable tiles, at most `limit` for each photo.

        The probability of tiles without a cell of the region is left out of all, and the rest divided by what remains.

        Args:
            posterior: posterior over the tiles.
            limit: number of cells; the probability of the others becomes the residual.
        """
        groups = _Groups.of(self, posterior.top(TILES))
        parts = []
        for photo in range(len(posterior)):
            density = groups.density(photo)
            order = (-density).argsort(kind="stable")
            fitting = order[groups.size[photo][order].cumsum() <= limit]
            fitting = fitting[density[fitting] > 0]
            index, row, col = self.cells_of(groups.tile[photo][fitting]) if len(fitting) else (np.empty(0, int),) * 3
            parts.append(Posterior.from_cells(self.cells, row, col, density[fitting][index]))
        return Posterior.concatenate(parts)


@dataclass(frozen=True)
class _Groups:
    """The tiles of each photo's posterior, with the cells in them."""

    tile: NDArray[np.int64]  # (photo, tile)
    size: NDArray[np.int64]  # (photo, tile) cells of the region; 0 for padding
    probability: NDArray[np.float64]  # (photo, tile) normalised with `rest`
    rest: NDArray[np.float64]  # (photo,) of all other cells together

    @classmethod
    def of(cls, projection: Projection, posterior: Posterior) -> _Groups:
        tile = posterior.row * posterior.area.shape[1] + posterior.col
        size = np.where(posterior.probability > 0, projection.counts(tile), 0)
        probability = np.where(size > 0, posterior.probability, 0.0)
        others = projection.count - size.sum(1)
        rest = np.where(others > 0, posterior.residual, 0.0)
        total = probability.sum(1) + rest
        empty = total <= 0  # no tile of the photo has a cell: it says nothing of the region
        total[empty] = 1.0
        rest = np.where(empty, 1.0, rest / total)
        return cls(tile, size, probability / total[:, None], rest)

    def density(self, photo: int) -> NDArray[np.float64]:
        """(tile,) probability of each cell in a tile."""
        return np.asarray(self.probability[photo] / np.maximum(1, self.size[photo]))


@dataclass(frozen=True)
class ProjectedFusion:
    """Two posteriors of the same photos, over cells and over tiles, ready to be multiplied.

    Entries are the cells that the first reached, then groups of the other cells: those of each tile, and the rest.

    Attributes:
        cells: posterior over the cells.
        log: (expert, photo, entry) log-probability of a cell by either expert.
        log_count: (photo, entry) logarithm of the number of cells of an entry; -inf for padding.
        tile: (photo, tile) the tiles, and the log-probabilities by both experts of one cell of a group.
    """

    cells: Posterior
    log: Tensor
    log_count: Tensor
    projection: Projection = field(repr=False)
    tile: NDArray[np.int64]

    @classmethod
    def of(cls, projection: Projection, cells: Posterior, tiles: Posterior) -> ProjectedFusion:
        """Bring both posteriors onto the same cells.

        Args:
            projection: which cells lie in which tiles.
            cells: posterior over the cells.
            tiles: posterior of the same photos over the tiles.
        """
        cells, groups = cells.top(MAX_CELLS), _Groups.of(projection, tiles.top(TILES))
        photos, width, number = len(cells), cells.row.shape[1], groups.tile.shape[1]
        reached = (cells.probability > 0) & projection.cell_mask[cells.row, cells.col]
        own = projection.tile_of(cells.row, cells.col)
        log = np.zeros((2, photos, width + number + 1))
        count = np.zeros((photos, width + number + 1))
        for photo in range(photos):
            mask, order = reached[photo], groups.tile[photo].argsort()
            known = groups.size[photo] > 0
            ordered = np.where(known, groups.tile[photo], -2)[order]
            at = np.minimum(np.searchsorted(groups.tile[photo][order], own[photo]), number - 1)
            inside = ordered[at] == own[photo]
            group = np.where(inside, order[at], number)  # the last group is the rest
            taken = np.bincount(group[mask], minlength=number + 1)
            size = np.append(groups.size[photo], projection.count - groups.size[photo].sum())
            density = np.append(groups.density(photo), groups.rest[photo] / max(1, size[-1]))
            unreached = projection.count - mask.sum()
            residual = cells.residual[photo] if cells.residual[photo] >= ROUNDING else 0.0
            spread = residual / max(1, unreached)
            count[photo] = np.concatenate([mask, np.maximum(0, size - taken)])
            log[0, photo] = np.concatenate([cells.probability[photo], np.full(number + 1, spread)])
            log[1, photo] = np.concatenate([density[group], density])
        with np.errstate(divide="ignore"):
            values = np.log((1 - FLOOR) * log + FLOOR / projection.total)
            counts = np.log(count)
        return cls(cells, torch.from_numpy(values), torch.from_numpy(counts), projection, groups.tile)

    def fused(self, weights: Tensor) -> Tensor:
        """(photo, entry) log-probability of one cell of each entry; see `log_count`.

        Args:
            weights: (2,) exponents of the posteriors over cells and over tiles, 0 or more.
        """
        log = torch.einsum("e,epc->pc", weights, self.log)
        return log - (log + self.log_count).logsumexp(-1, keepdim=True)

    def posterior(self, weights: Tensor) -> Posterior:
        """The product over the cells that the first posterior reached; that of the others is the residual."""
        width = self.cells.row.shape[1]
        log = self.fused(weights)[:, :width] + self.log_count[:, :width]
        return Posterior.from_cells(self.cells.area, self.cells.row, self.cells.col, log.exp().numpy())

    def entries_of(self, row: NDArray[np.int64], col: NDArray[np.int64]) -> NDArray[np.int64]:
        """(photo,) entry of a cell of each photo.

        Args:
            row: (photo,) rows of the cells.
            col: (photo,) columns.
        """
        width, tile = self.cells.row.shape[1], self.projection.tile_of(row, col)
        counted = self.log_count.numpy() > -np.inf
        same = (self.cells.row == row[:, None]) & (self.cells.col == col[:, None]) & counted[:, :width]
        within = (self.tile == tile[:, None]) & counted[:, width:-1]
        rest = np.ones((len(row), 1), bool)
        return np.asarray(np.concatenate([same, within, rest], 1).argmax(1))

    def log_likelihood(self, weights: Tensor, row: NDArray[np.int64], col: NDArray[np.int64]) -> Tensor:
        """(photo,) log-probability of the true cells."""
        return self.fused(weights)[torch.arange(len(row)), torch.from_numpy(self.entries_of(row, col))]

    def fit(self, row: NDArray[np.int64], col: NDArray[np.int64]) -> FusionWeights:
        """The weights of both experts, "cells" and "zoom", with the greatest likelihood of the true cells, 0 or more.

        With the prior of, and dropping experts as, `jzi.locate.joint.fusion_weights.FusionFit.product`.

        Args:
            row: (photo,) rows of the true cells.
            col: (photo,) columns.
        """
        photos, entry = torch.arange(len(row)), torch.from_numpy(self.entries_of(row, col))
        truth = self.log[:, photos, entry]

        @cache
        def fitted(used: tuple[int, ...]) -> tuple[Tensor, Tensor]:
            index, weights = list(used), torch.zeros(len(NAMES), dtype=torch.float64)
            weights[index] = maximise(self.log[index], self.log_count, truth[index], PRIOR_PHOTOS)
            return weights[index], self.fused(weights)[photos, entry]

        return clear_weights(NAMES, lambda used: fitted(tuple(used)))
