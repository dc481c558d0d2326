"""A zoom on the tiles of a square and retrieval among the cells of a region, as one expert on the cells."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jzi.errors import ConfigError
from jzi.locate.answer.location import LocateOptions
from jzi.locate.expert import Expert
from jzi.locate.joint.fusion import BATCH
from jzi.locate.joint.projection import NAMES, ProjectedFusion, Projection
from jzi.locate.joint.zoomed import NO_OVERLAP, ZoomedExpert
from jzi.locate.posterior import Posterior
from jzi.locate.priors.restricted import restrict

#: Tiles whose cells are counted at once, to see whether there is any.
_COUNTED = 256


class ProjectedExpert(ZoomedExpert):
    """The weighted product of an expert on cells and one on tiles; see `jzi.locate.joint.projection`.

    Args:
        cells: an expert on the cells of a region.
        tiles: an expert on the larger cells of a map that overlaps the region, such as a zoom.
        weights: exponents of both posteriors, 0 or more. With weight 0 of the cells, the tiles' alone is returned.
        total: number of cells of the region, if `cells` is restricted to some of them.

    Raises:
        ConfigError: the map does not overlap the region, or both weights are 0.
    """

    name = "fused"

    def __init__(self, cells: Expert, tiles: Expert, weights: tuple[float, float], *, total: int | None = None) -> None:
        if not max(weights) > 0 or min(weights) < 0:
            raise ConfigError(f"the weights {weights} of {' and '.join(NAMES)} are not positive: fit them again")
        super().__init__(cells, tiles)
        self.weights = weights
        self._projection = Projection(tiles.area, cells.area, cells.cell_mask, total)
        if not self._overlaps():
            raise ConfigError(NO_OVERLAP)

    def _overlaps(self) -> bool:
        """Whether the centre of a cell lies in a tile with imagery."""
        tile = np.flatnonzero(self.inside)
        parts = np.array_split(tile, range(_COUNTED, len(tile), _COUNTED))
        return any(self._projection.counts(part).any() for part in parts)

    def posterior(self, query: Tensor, options: LocateOptions) -> Posterior:
        """The product over the cells that the expert on cells reached; that of the others is the residual.

        Args:
            query: (photo, feature) embeddings by the encoder of the tiles, followed by those by that of the cells.
            options: `beams` is for the expert on the tiles; for the estimate "greedy", the most probable cell.
        """
        greedy = options.estimate == "greedy"
        searched = replace(options, estimate="map") if greedy else options
        parts = []
        for photos in query.split(BATCH):
            tiles = self._tiles(photos, searched)
            if self.weights[0] > 0:
                fused = self._posterior(self._fusion(photos, tiles, searched))
            else:
                fused = self._projection.project(tiles)
            parts.append(fused.top(1) if greedy else fused)
        return Posterior.concatenate(parts)

    def posteriors(self, query: Tensor, options: LocateOptions) -> dict[str, Posterior]:
        """The posterior of either expert alone, on the cells, and that of both; each expert runs once.

        Args:
            query: see `posterior`.
            options: see `posterior`; not "greedy".

        Returns:
            Posteriors by name: "cells", "zoom" and "fused".
        """
        tiles = self._tiles(query, options)
        fusion, zoom = self._fusion(query, tiles, options), self._projection.project(tiles)
        fused = self._posterior(fusion) if self.weights[0] > 0 else zoom
        return {"cells": fusion.posterior(torch.tensor([1.0, 0.0], dtype=torch.float64)), "zoom": zoom, "fused": fused}

    def fusion(self, query: Tensor) -> ProjectedFusion:
        """Both posteriors of photos, to fit weights on; see `posterior`."""
        options = LocateOptions(estimate="map")
        tiles = Posterior.concatenate([self._tiles(photos, options) for photos in query.split(BATCH)])
        return self._fusion(query, tiles, options)

    def _tiles(self, query: Tensor, options: LocateOptions) -> Posterior:
        return self.tiles.posterior(self.split(query)[0], LocateOptions(beams=options.beams))

    def _fusion(self, query: Tensor, tiles: Posterior, options: LocateOptions) -> ProjectedFusion:
        parts = [self.cells.posterior(photos, options) for photos in self.split(query)[1].split(BATCH)]
        return ProjectedFusion.of(self._projection, Posterior.concatenate(parts), tiles)

    def _posterior(self, fusion: ProjectedFusion) -> Posterior:
        return fusion.posterior(torch.tensor(self.weights, dtype=torch.float64))

    def restricted(self, cell_mask: NDArray[np.bool_]) -> ProjectedExpert:
        """The same for some of the cells; see `Restrictable`.

        If none of them is on the map of the tiles, that expert says nothing of them, and the other one decides.

        Args:
            cell_mask: (row, col) the cells.

        Raises:
            ConfigError: none of them is on the map of the tiles, whose expert has all the weight.
        """
        expert = copy.copy(self)
        expert.cells = restrict(self.cells, cell_mask)
        expert._projection = Projection(self.tiles.area, self.area, expert.cell_mask, self._projection.total)
        if self.weights[0] == 0 and not expert._overlaps():
            raise ConfigError(
                "the prior lies outside of the zoom's map, and the fusion gives the retriever no weight: give a prior "
                "on that map, or leave out --fuse and --zoom"
            )
        return expert

    def uncalibrated(self) -> ProjectedExpert | None:
        """The product of the posteriors without weights."""
        return ProjectedExpert(self.cells, self.tiles, (1.0, 1.0), total=self._projection.total)
