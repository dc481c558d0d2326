"""The zoom decoder as an expert: probabilities of cells, by the chain rule over its steps.

All cells of a small pyramid get a probability; larger ones are searched by a beam, and the probability of cells that it
does not reach is the posterior's residual.
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

from jzi.decode.config import Precision
from jzi.decode.exhaustive import zoom_everywhere
from jzi.decode.model import ZoomModel
from jzi.decode.patch_tokens import PatchTokens
from jzi.decode.search import BATCH, BeamSearchResult, zoom
from jzi.decode.tile_table import TileTable
from jzi.encode.device import best_device, to_host
from jzi.errors import ModelError
from jzi.locate.answer.location import LocateOptions
from jzi.locate.inside import Hidden
from jzi.locate.posterior import Posterior, require_finite
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.info import EncoderInfo

if TYPE_CHECKING:
    from jzi.store.cache.feature_cache import FeatureCache

#: Maximum number of cells of a pyramid whose cells all get a probability.
EXACT_CELLS = 4096

#: Default number of hypotheses in larger pyramids.
BEAMS = 64

#: Hypotheses of the search for the evidence of a photo, a small part of the cost of a posterior.
EVIDENCE_BEAMS = 4

#: Probabilities below this are taken for it in logarithms.
LEAST = 1e-12


class ZoomExpert:
    """Expert that searches a map with a zoom model.

    Args:
        model: the model.
        table: the map, on the decoder's device.
    """

    name = "zoom"
    rules_out = False

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
        memory: int | None = None,
        precision: Precision = "float32",
    ) -> ZoomExpert:
        """Load an expert from a model folder.

        Args:
            folder: the model folder.
            device: device to compute on; `best_device()` by default.
            cache: cache to read the map and patch tokens from. Required for imported models, which have no map, and
                for decoders with `patch_tokens`, which no model folder holds.
            own_map: read the map from the model folder if it has one, and only patch tokens from the cache.
            memory: bytes that the map may take; by default a share of what is free. A larger map is read where search
                asks for it.
            precision: of the search; see `PackedDecoder`.

        Raises:
            ModelError: the folder is not a zoom model, is damaged, or lacks the map or patch tokens.
            CacheError: the cache cannot be used, or belongs to another encoder, pyramid or imagery.
        """
        device = device or best_device()
        model = replace(ZoomModel.load(folder, device), precision=precision)
        if cache is None:
            if model.decoder.config.patch_tokens:
                raise ModelError(
                    f"the decoder of {folder} reads patch tokens of tiles, which a model folder does not contain: give "
                    "the cache that holds them (`--cache features.zarr`)"
                )
            return cls(model, TileTable(model.open_map(None, memory, device), device))
        from jzi.store.cache.feature_cache import (
            FeatureCache,  # imports zarr, which is not needed with the map of the folder
        )

        opened = cache if isinstance(cache, FeatureCache) else FeatureCache.open(cache)
        model.check(opened)
        features = model.open_map(None if own_map and model.has_map else opened, memory, device)
        return cls(model, TileTable(features, device, PatchTokens.of(opened, device)))

    @classmethod
    def from_table(cls, folder: str | Path, table: TileTable) -> ZoomExpert:
        """Load an expert from a model folder, with a map that is on the device already.

        Args:
            folder: the model folder.
            table: the map that the model was trained on.

        Raises:
            ModelError: the folder is not a zoom model, or is damaged.
        """
        return cls(ZoomModel.load(folder, table.device), table)

    @property
    def area(self) -> Pyramid:
        """Pyramid of the map."""
        return self.model.pyramid

    @property
    def encoder(self) -> EncoderInfo:
        """Encoder that the decoder was trained with."""
        return self.model.encoder

    @cached_property
    def cell_mask(self) -> NDArray[np.bool_]:
        """(row, col) bool, whether each cell has imagery, and search may enter it."""
        return self.table.cell_mask()

    def posterior(self, query: Tensor, options: LocateOptions) -> Posterior:
        """Compute the probabilities of the cells that the search reaches.

        Args:
            query: (photo, feature) embeddings of photos.
            options: `beams` is the number of tiles per level that are expanded. By default that is as many as a photo
                needs in a small pyramid (`jzi.decode.exhaustive`; all on accelerators), `BEAMS` in a large one, and all
                that a restricted search can enter if they have at most `EXACT_CELLS` cells. With the estimate "greedy"
                there is one cell, that of greedy search.

        Returns:
            The posterior of each photo.

        Raises:
            ModelError: a probability is not finite.
        """
        decoder, temperature, pyramid = self.model.packed, self.model.temperature, self.area
        query = query.to(self.table.device)
        if options.estimate == "greedy":
            result = zoom(decoder, self.table, query, temperature=temperature)
        elif options.beams is None and self._is_small:
            result = zoom_everywhere(decoder, self.table, query, temperature=temperature)
        else:
            beams = options.beams or self._restricted_beams or default_beams(pyramid)
            cells = beams * pyramid.actions
            result = zoom(decoder, self.table, query, beams, cells=cells, temperature=temperature)
        posterior, dropped = _to_posterior(pyramid, result)
        return replace(posterior, residual=dropped) if self._is_restricted else posterior

    def evidence(self, query: Tensor, hidden: Hidden | None = None) -> NDArray[np.float64]:
        """(photo,) log-probability of the cell that a search with few beams finds; see `jzi.locate.inside.Evidence`.

        Args:
            query: (photo, feature) embeddings.
            hidden: places whose cells are left out; the probability of the others is what remains.
        """
        parts, options = [], LocateOptions("map", beams=min(EVIDENCE_BEAMS, default_beams(self.area)))
        for first in range(0, len(query), BATCH):
            photos = slice(first, first + BATCH)
            found = self.posterior(query[photos], options)
            probability, total = found.probability, np.ones(len(found))
            if hidden is not None:
                x, y = self.area.cell_centers(found.row, found.col)
                probability = np.where(hidden.of(photos).covers(x, y), 0.0, probability)
                total -= found.probability.sum(1) - probability.sum(1)
            parts.append(np.log(np.maximum(probability.max(1), LEAST) / np.maximum(total, LEAST)))
        return np.concatenate(parts)

    def restricted(self, cell_mask: NDArray[np.bool_]) -> ZoomExpert:
        """The same expert whose search enters only tiles that contain some of the cells; see `Restrictable`.

        The residual is the probability of the tiles that search dropped, which may contain other cells too.

        Args:
            cell_mask: (row, col) the cells.
        """
        return ZoomExpert(self.model, self.table.restricted(cell_mask))

    @property
    def _is_restricted(self) -> bool:
        return self.table.search_mask is not self.table.child_mask

    @property
    def _is_small(self) -> bool:
        """Whether all cells are searched, and only as many tiles expanded as a photo needs."""
        return self.table.device.type == "cpu" and not self._is_restricted and self.area.cell_count <= EXACT_CELLS

    @cached_property
    def _restricted_beams(self) -> int | None:
        """Number of tiles of the last level that a restricted search can enter; None if they have too many cells."""
        if not self._is_restricted:
            return None
        tiles = self.table.last_tiles(EXACT_CELLS)
        return max(1, tiles) if tiles * self.area.actions <= EXACT_CELLS else None

    def uncalibrated(self) -> ZoomExpert | None:
        """Return this expert without its fitted temperatures; None if it has none."""
        if self.model.temperature is None:
            return None
        return ZoomExpert(replace(self.model, temperature=None), self.table)

    @torch.inference_mode()
    def step_accuracy(self, query: Tensor, row: NDArray[np.int64], col: NDArray[np.int64]) -> tuple[float, ...]:
        """Compute the teacher-forced accuracy of each step.

        Args:
            query: (photo, feature) embeddings of photos.
            row: (photo,) rows of the true cells.
            col: (photo,) columns of the true cells.

        Returns:
            Fraction of photos whose step k is correct given the true steps before it, for k = 1..L.
        """
        decoder, table = self.model.decoder, self.table
        truth = self.area.cell_to_path(row, col)
        tiles, actions = table.tiles_along(truth), torch.from_numpy(truth).to(table.device)
        correct = torch.zeros(truth.shape[1], dtype=torch.float64)
        for part in torch.arange(len(truth)).split(decoder.config.batch(BATCH)):
            photos = query[part].to(table.device).float()
            tokens = table.tokens(tiles[part], photos, decoder.config.patch_tokens)
            logits = decoder(photos, tokens, actions[part])
            logits = logits.masked_fill(~table.child_mask[tiles[part]], -torch.inf)
            correct += (logits.argmax(-1) == actions[part]).sum(0).cpu()
        return tuple((correct / len(truth)).tolist())


def _to_posterior(pyramid: Pyramid, result: BeamSearchResult) -> tuple[Posterior, NDArray[np.float64]]:
    """The posterior over the cells of a search, with the probabilities of the steps; and (photo,) what it dropped."""
    steps, paths, dropped = to_host(result.log_probability.double().exp(), result.paths, result.dropped)
    probability = steps.prod(-1)
    require_finite(ZoomExpert.name, probability)
    residual = np.maximum(0.0, 1 - probability.sum(-1))
    row, col = pyramid.path_to_tile(paths)
    return Posterior(pyramid, row, col, probability, np.where(residual < 1e-6, 0.0, residual), steps), dropped


def default_beams(pyramid: Pyramid) -> int:
    """Return the number of beams that searches all of a pyramid of up to `EXACT_CELLS` cells, else `BEAMS`."""
    return max(1, pyramid.cell_count // pyramid.actions) if pyramid.cell_count <= EXACT_CELLS else BEAMS
