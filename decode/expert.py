"""The zoom as an expert: by the chain rule its steps give every cell of the map a probability.

Small pyramids are searched exhaustively, larger ones by a beam; what a beam leaves out is the residual.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jzi.decode.model import ZoomModel
from jzi.decode.patch_tokens import PatchTokens
from jzi.decode.search import BATCH, BeamSearchResult, zoom
from jzi.decode.tile_table import TileTable
from jzi.encode.device import best_device
from jzi.errors import ModelError
from jzi.locate.location import LocateOptions
from jzi.locate.posterior import Posterior
from jzi.store.info import EncoderInfo
from jzi.store.pyramid import Pyramid

if TYPE_CHECKING:
    from jzi.store.cache import FeatureCache

#: Pyramids of at most so many cells are searched exhaustively.
EXACT_CELLS = 4096

#: Hypotheses kept in larger ones.
BEAMS = 64


class ZoomExpert:
    """A zoom model and the map that it searches.

    Args:
        model: the decoder, its temperatures and what it was trained on.
        table: the map, on the device where the decoder is.
    """

    name = "zoom"

    def __init__(self, model: ZoomModel, table: TileTable) -> None:
        self.model, self.table = model, table

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: str | None = None,
        cache: str | Path | FeatureCache | None = None,
        *,
        own_map: bool = False,
    ) -> ZoomExpert:
        """From a model folder.

        Args:
            folder: the model.
            device: where to compute; by default the best there is.
            cache: take the map and the patch tokens of tiles from this cache; an imported model has no map of its own,
                and no model folder has patch tokens, which a decoder may read.
            own_map: prefer the map of the folder where it has one, and take only the patch tokens from the cache.

        Raises:
            ModelError: the folder is no zoom model, is damaged, or lacks what its decoder reads.
            CacheError: the cache cannot be used, or belongs to another encoder or pyramid.
        """
        device = device or best_device()
        model = ZoomModel.load(folder, device)
        if cache is None:
            if model.decoder.config.patch_tokens:
                raise ModelError(
                    f"the decoder of {folder} reads patch tokens of tiles, which a model folder does not carry: give "
                    "the cache that holds them (`--cache features.zarr`)"
                )
            return cls(model, TileTable(model.read_map(), device))
        from jzi.store.cache import FeatureCache  # imports zarr, which a model with its own map can do without

        opened = cache if isinstance(cache, FeatureCache) else FeatureCache.open(cache)
        model.check(opened)
        features = model.read_map(None if own_map and model.has_map else opened)
        return cls(model, TileTable(features, device, PatchTokens.of(opened, device)))

    @property
    def area(self) -> Pyramid:
        """The pyramid that is zoomed into."""
        return self.model.pyramid

    @property
    def encoder(self) -> EncoderInfo:
        """Which encoder the decoder was trained with."""
        return self.model.encoder

    @cached_property
    def cell_mask(self) -> NDArray[np.bool_]:
        """(row, col) whether each cell has imagery."""
        pyramid, table = self.area, self.table
        last = pyramid.levels - 1
        side, g = pyramid.tiles_per_side(last), pyramid.grid
        children = table.child_mask[table.offsets[last] :].cpu().numpy().reshape(side, side, g, g)
        return children.swapaxes(1, 2).reshape(side * g, side * g)

    def posterior(self, query: Tensor, options: LocateOptions) -> Posterior:
        """Probabilities of the cells that the search reaches; of the one cell of greedy search for that estimate.

        Args:
            query: (photo, feature) embeddings.
            options: `beams` is how many tiles of each level are expanded; by default all of a pyramid of `EXACT_CELLS`
                or fewer cells, `BEAMS` of others.
        """
        decoder, temperature, pyramid = self.model.decoder, self.model.temperature, self.area
        query = query.to(self.table.device)
        if options.estimate == "greedy":
            return to_posterior(pyramid, zoom(decoder, self.table, query, temperature=temperature))
        beams = options.beams or default_beams(pyramid)
        cells = beams * pyramid.actions
        return to_posterior(pyramid, zoom(decoder, self.table, query, beams, cells=cells, temperature=temperature))

    def uncalibrated(self) -> ZoomExpert | None:
        """The same without the temperatures that were fitted to its steps; None where there are none."""
        if self.model.temperature is None:
            return None
        return ZoomExpert(replace(self.model, temperature=None), self.table)

    @torch.inference_mode()
    def step_accuracy(self, query: Tensor, row: NDArray[np.int64], col: NDArray[np.int64]) -> tuple[float, ...]:
        """Share of photos whose step k is right when those before it are given, k = 1..L.

        Args:
            query: (photo, feature) embeddings.
            row: (photo,) true cells.
            col: likewise.
        """
        decoder, table = self.model.decoder, self.table
        truth = self.area.cell_to_path(row, col)
        tiles, actions = table.along(truth), torch.from_numpy(truth).to(table.device)
        correct = torch.zeros(truth.shape[1], dtype=torch.float64)
        for part in torch.arange(len(truth)).split(decoder.config.batch(BATCH)):
            photos = query[part].to(table.device).float()
            seen, below = table.read(decoder.config, tiles[part], photos)
            logits = decoder(photos, seen, actions[part], below)
            logits = logits.masked_fill(~table.child_mask[tiles[part]], -torch.inf)
            correct += (logits.argmax(-1) == actions[part]).sum(0).cpu()
        return tuple((correct / len(truth)).tolist())


def to_posterior(pyramid: Pyramid, result: BeamSearchResult) -> Posterior:
    """The posterior of a search's cells, with the probabilities of the steps."""
    steps = result.log_probability.double().exp().cpu().numpy()
    probability = steps.prod(-1)
    residual = np.maximum(0.0, 1 - probability.sum(-1))
    row, col = pyramid.path_to_tile(result.paths.cpu().numpy())
    return Posterior(pyramid, row, col, probability, np.where(residual < 1e-6, 0.0, residual), steps)


def default_beams(pyramid: Pyramid) -> int:
    """All tiles of the last level where that is exact and cheap, else `BEAMS`."""
    cells = pyramid.tiles_per_side(pyramid.levels) ** 2
    return max(1, cells // pyramid.actions) if cells <= EXACT_CELLS else BEAMS
