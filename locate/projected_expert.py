"""A zoom on the tiles of a square and retrieval among the cells of a region, as one expert on the cells."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jzi.errors import ConfigError
from jzi.locate.expert import Expert
from jzi.locate.fusion import BATCH
from jzi.locate.location import LocateOptions
from jzi.locate.posterior import Posterior
from jzi.locate.projection import NAMES, ProjectedFusion, Projection
from jzi.locate.restricted import restrict
from jzi.store.cell_grid import CellGrid
from jzi.store.info import EncoderInfo


class ProjectedExpert:
    """The weighted product of an expert on cells and one on tiles; see `jzi.locate.projection`.

    Args:
        cells: an expert on the cells of a region.
        tiles: an expert on the larger cells of a map that overlaps the region, such as a zoom.
        weights: exponents of both posteriors, 0 or more. With weight 0 of the cells, the tiles' alone is returned.
        total: number of cells of the region, if `cells` is restricted to some of them.

    Raises:
        ConfigError: the map does not overlap the region, or both weights are 0.
    """

    name = "fused"
    rules_out = False

    def __init__(self, cells: Expert, tiles: Expert, weights: tuple[float, float], *, total: int | None = None) -> None:
        if not max(weights) > 0 or min(weights) < 0:
            raise ConfigError(f"the weights {weights} of {' and '.join(NAMES)} are not positive: fit them again")
        self.cells, self.tiles, self.weights = cells, tiles, weights
        self._projection = Projection(tiles.area, cells.area, cells.cell_mask, total)
        row, col = np.nonzero(tiles.cell_mask)
        if not self._projection.counts(row * tiles.area.shape[1] + col).any():
            raise ConfigError("the map of the zoom model does not overlap the cells to search: give another model")

    @property
    def area(self) -> CellGrid:
        """The grid of the region's cells."""
        return self.cells.area

    @property
    def encoder(self) -> EncoderInfo:
        """The encoder of the expert on cells; photos are also embedded with that of the tiles."""
        return self.cells.encoder

    @property
    def cell_mask(self) -> NDArray[np.bool_]:
        """(row, col) the cells of the region with imagery."""
        return self.cells.cell_mask

    def posterior(self, query: Tensor, options: LocateOptions) -> Posterior:
        """The product over the cells that the expert on cells reached; that of the others is the residual.

        Args:
            query: (photo, feature) embeddings by the encoder of the tiles, followed by those by that of the cells.
            options: `beams` is for the expert on the tiles; for the estimate "greedy", the most probable cell.
        """
        width, parts = self.encoder.width, []
        greedy = options.estimate == "greedy"
        searched = replace(options, estimate="map") if greedy else options
        for photos in query.split(BATCH):
            tiles = self.tiles.posterior(photos[:, :-width], LocateOptions(beams=options.beams))
            if self.weights[0] > 0:
                cells = self.cells.posterior(photos[:, -width:], searched)
                fusion = ProjectedFusion.of(self._projection, cells, tiles)
                fused = fusion.posterior(torch.tensor(self.weights, dtype=torch.float64))
            else:
                fused = self._projection.project(tiles)
            parts.append(fused.top(1) if greedy else fused)
        return Posterior.concatenate(parts)

    def fusion(self, query: Tensor) -> ProjectedFusion:
        """Both posteriors of photos, to fit weights on; see `posterior`."""
        width, options = self.encoder.width, LocateOptions(estimate="map")
        cells = [self.cells.posterior(photos, options) for photos in query[:, -width:].split(BATCH)]
        tiles = [self.tiles.posterior(photos, options) for photos in query[:, :-width].split(BATCH)]
        return ProjectedFusion.of(self._projection, Posterior.concatenate(cells), Posterior.concatenate(tiles))

    def restricted(self, cell_mask: NDArray[np.bool_]) -> ProjectedExpert:
        """The same for some of the cells; see `Restrictable`.

        Args:
            cell_mask: (row, col) the cells.
        """
        return ProjectedExpert(restrict(self.cells, cell_mask), self.tiles, self.weights, total=self._projection.total)

    def uncalibrated(self) -> ProjectedExpert | None:
        """The product of the posteriors without weights."""
        return ProjectedExpert(self.cells, self.tiles, (1.0, 1.0), total=self._projection.total)
