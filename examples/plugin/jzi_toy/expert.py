"""An expert of one's own: the tiles of the last level whose embeddings are most similar to that of the photo.

    jzi locate photo.jpg --experts zoom,similar-tiles
    jzi evaluate --experts zoom,similar-tiles          # alone and fused, beside the zoom

The entry point `similar-tiles` of the group `jzi.experts` is the function `load` below.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import jzi


class SimilarTiles:
    """Softmax over cosine similarities; all cells of a tile are equally probable."""

    name = "similar-tiles"
    rules_out = False  # a small probability is no proof that the photo is elsewhere
    weight = 0.1  # exponent in a fusion, where 1 trusts it as much as itself alone; choose it on validation photos
    temperature = 0.05

    def __init__(self, context: jzi.ExpertContext) -> None:
        self.area, self.encoder, self.cell_mask = context.area, context.encoder, context.cell_mask
        self.row, self.col = np.nonzero(context.cell_mask)  # (cell,) the cells with imagery
        last = self.area.levels - 1
        self.tiles = self._normed(context.table.embedding[context.table.offsets[last] :])  # (tile, feature)
        grid, side = self.area.grid, self.area.tiles_per_side(last)
        self.tile_of_cell = self.row // grid * side + self.col // grid  # (cell,)

    def posterior(self, query: Tensor, options: jzi.LocateOptions) -> jzi.Posterior:
        """The probabilities of all cells for (photo, feature) embeddings."""
        similarity = self._normed(query.to(self.tiles.device)) @ self.tiles.T  # (photo, tile)
        logits = similarity[:, torch.from_numpy(self.tile_of_cell).to(similarity.device)] / self.temperature
        probability: NDArray[np.float64] = logits.double().softmax(1).cpu().numpy()  # (photo, cell)
        posterior = jzi.Posterior.from_cells(self.area, self.row, self.col, probability)
        return posterior.top(1) if options.estimate == "greedy" else posterior

    def uncalibrated(self) -> None:
        """None: no temperature was fitted."""

    @staticmethod
    def _normed(embedding: Tensor) -> Tensor:
        return torch.nn.functional.normalize(embedding.float(), dim=-1)


def load(context: jzi.ExpertContext) -> SimilarTiles:
    """Make the expert for a model."""
    return SimilarTiles(context)
