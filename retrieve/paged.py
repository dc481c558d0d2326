"""The experts cells and levels on maps whose codes do not fit into memory: all of them are read, strip by strip.

A photo is still compared with every cell, so the time grows with the map: the disk reads 256 bytes for each cell and
batch of photos. The results are those of the experts in memory, but for the rounding of sums in another order.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jzi.errors import ModelError
from jzi.locate.answer.location import LocateOptions
from jzi.locate.expert import Expert
from jzi.locate.inside import Hidden
from jzi.locate.posterior import Posterior
from jzi.retrieve.cells import MAX_SIMILARITY, load_heads
from jzi.retrieve.dense import MAX_CELLS
from jzi.retrieve.heads import SimilarityHeads
from jzi.retrieve.levels import stored_shapes
from jzi.store.features.paged_grids import MappedGrid, mapped_tensors
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.info import EncoderInfo

#: Cells of a strip, and photos that are compared at once: codes of 128 features take 34 MB in float32, similarities
#: 17 MB in float64.
STRIP_CELLS, PHOTOS = 2**16, 32

Strip = tuple[NDArray[np.int64], NDArray[np.int64], Tensor]


class PagedDenseExpert(ABC):
    """An expert that compares photos with the codes of all cells, which it reads from a file.

    Args:
        area: pyramid of the cells.
        encoder: encoder of the photos.
        cell_mask: (row, col) whether each cell has imagery, an array or a `CellMask`.
        heads: heads in eval mode, on the device.
        path: the file, for error messages.

    Raises:
        ModelError: no cell has imagery.
    """

    name: str
    rules_out = False

    def __init__(
        self, area: Pyramid, encoder: EncoderInfo, cell_mask: NDArray[np.bool_], heads: SimilarityHeads, path: Path
    ) -> None:
        self.area, self.encoder, self.cell_mask, self.heads, self.path = area, encoder, cell_mask, heads, path
        self.imagery = cell_mask  # `cell_mask`, unless that is restricted
        self.cells = int(cell_mask.sum())
        self.device = heads.log_scale.device
        if not self.cells:
            raise ModelError(f"the map has no imagery, which the expert {self.name} needs: encode rasters of the area")

    @classmethod
    @abstractmethod
    def load(
        cls,
        path: Path,
        entries: dict[str, Any],
        area: Pyramid,
        encoder: EncoderInfo,
        cell_mask: NDArray[np.bool_],
        device: str | torch.device,
    ) -> Self:
        """Open the file of the expert in memory; arguments and errors as of its `load`."""

    @abstractmethod
    def strips(self, query: Tensor) -> Iterator[Strip]:
        """Rows (cell,), columns (cell,) and log-probabilities (photo, cell) of cells with imagery, strip by strip.

        The log-probabilities are up to a constant per photo, as of `DenseExpert.log_probabilities`.

        Args:
            query: (photo, feature) float32 embeddings on the device.
        """

    @torch.inference_mode()
    def posterior(self, query: Tensor, options: LocateOptions) -> Posterior:
        """The `MAX_CELLS` most probable cells; for "greedy", only the first.

        Args:
            query: (photo, feature) embeddings.
            options: only the estimate is used.

        Raises:
            ModelError: the file has values that are not finite.
        """
        parts = [self._posterior(part, options.estimate == "greedy") for part in query.split(PHOTOS)]
        return Posterior.concatenate(parts)

    def _posterior(self, query: Tensor, greedy: bool) -> Posterior:
        count, cols = 1 if greedy else MAX_CELLS, self.area.shape[1]
        restricted = self.cell_mask is not self.imagery
        least = torch.full((len(query),), -torch.inf, dtype=torch.float64, device=self.device)
        total, inside, seen = least, least, 0
        best = torch.empty(len(query), 0, dtype=torch.float64, device=self.device)
        cell = torch.empty(len(query), 0, dtype=torch.int64, device=self.device)
        for row, col, log in self.strips(query.to(self.device).float()):
            values = log.double()
            total = torch.logaddexp(total, values.logsumexp(1))
            if restricted:
                kept = self.cell_mask[row, col]
                row, col, values = row[kept], col[kept], values[:, torch.from_numpy(kept).to(self.device)]
            if not len(row):
                continue
            inside, seen = torch.logaddexp(inside, values.logsumexp(1)), seen + len(row)
            keys = torch.from_numpy(row * cols + col).to(self.device)
            values, index = values.topk(min(count, len(row)), dim=1)
            best, cell = torch.cat([best, values], 1), torch.cat([cell, keys[index]], 1)
            best, index = best.topk(min(count, best.shape[1]), dim=1)
            cell = cell.gather(1, index)
        if not torch.isfinite(total).all():
            raise self._not_finite()
        probability = (best - total[:, None]).exp().cpu().numpy()
        shared = (inside - total).exp().cpu().numpy() if restricted else np.ones(len(query))
        residual = np.maximum(0.0, shared - probability.sum(1)) if seen > probability.shape[1] else np.zeros(len(query))
        return Posterior(self.area, *np.divmod(cell.cpu().numpy(), cols), probability, residual)

    def _not_finite(self) -> ModelError:
        return ModelError(f"{self.path} has codes that are not finite: copy the model again")

    def restricted(self, cell_mask: NDArray[np.bool_]) -> Self:
        """The same expert for some of its cells; see `jzi.locate.expert.Restrictable`.

        Args:
            cell_mask: (row, col) the cells.
        """
        expert = copy.copy(self)
        expert.cell_mask = self.cell_mask & cell_mask
        return expert

    def uncalibrated(self) -> Expert | None:
        """None: the temperature is learned in training."""
        return None


class PagedCellsExpert(PagedDenseExpert):
    """`jzi.retrieve.cells.CellsExpert` with codes on disk.

    Args:
        area: pyramid of the cells.
        encoder: encoder of the photos.
        cell_mask: (row, col) whether each cell has imagery.
        heads: heads in eval mode, on the device.
        path: the file.
        codes: (cell, code) codes of the cells with imagery in row-major order.
    """

    name = "cells"

    def __init__(
        self,
        area: Pyramid,
        encoder: EncoderInfo,
        cell_mask: NDArray[np.bool_],
        heads: SimilarityHeads,
        path: Path,
        codes: MappedGrid,
    ) -> None:
        super().__init__(area, encoder, cell_mask, heads, path)
        self.codes = codes

    def strips(self, query: Tensor) -> Iterator[Strip]:
        """See `PagedDenseExpert.strips`."""
        rows, cols = self.area.shape
        photo_codes, height, first = self.heads.photo_codes(query)[:, 0], max(1, STRIP_CELLS // cols), 0
        for start in range(0, rows, height):
            row, col = np.nonzero(self.imagery[start : start + height])
            if len(row):
                codes = torch.from_numpy(self.codes.rows(first, first + len(row))).to(self.device).float()
                first += len(row)
                yield row + start, col, photo_codes @ codes.T

    @torch.inference_mode()
    def evidence(self, query: Tensor, hidden: Hidden | None = None) -> NDArray[np.float64]:
        """(photo,) logarithm of the mean over the cells of exp(similarity times the factor); see `Evidence`.

        Args:
            query: (photo, feature) embeddings.
            hidden: places whose cells are left out.
        """
        parts = []
        for first in range(0, len(query), PHOTOS):
            photos = slice(first, first + PHOTOS)
            total = torch.full((len(query[photos]),), -torch.inf, dtype=torch.float64, device=self.device)
            for row, col, log in self.strips(query[photos].to(self.device).float()):
                values = log.double()
                if hidden is not None:
                    covered = hidden.of(photos).covers(*self.area.cell_centers(row, col))
                    values = values.masked_fill(torch.from_numpy(covered).to(self.device), -MAX_SIMILARITY)
                total = torch.logaddexp(total, values.logsumexp(1))
            parts.append((total - math.log(self.cells)).cpu().numpy())
        return np.concatenate(parts)

    @classmethod
    def load(
        cls,
        path: Path,
        entries: dict[str, Any],
        area: Pyramid,
        encoder: EncoderInfo,
        cell_mask: NDArray[np.bool_],
        device: str | torch.device,
    ) -> Self:
        """Open what `CellsExpert.save` wrote; arguments and errors as of `CellsExpert.load`."""
        codes: dict[str, tuple[int, ...]] = {"codes": (int(cell_mask.sum()), entries.get("features", 0))}
        _, heads = load_heads(path, entries, encoder, codes, unread=codes, prototypes=0)
        if (heads.config.scales, heads.config.spaces) != (area.levels, 1):
            raise ModelError(f"{path} is of another number of levels than {area.levels}: copy the model again")
        return cls(area, encoder, cell_mask, heads.to(device), path, *mapped_tensors(path, ["codes"], 0))


class PagedLevelsExpert(PagedDenseExpert):
    """`jzi.retrieve.levels.LevelsExpert` with codes on disk.

    Args:
        area: pyramid of the cells.
        encoder: encoder of the photos.
        cell_mask: (row, col) whether each cell has imagery.
        heads: heads with a space for each level, in eval mode, on the device.
        path: the file.
        codes: (row * side + col, code) codes of the tiles of each level 1..L.
        masks: (row, col) of each level 1..L, whether each tile has imagery.
    """

    name = "levels"

    def __init__(
        self,
        area: Pyramid,
        encoder: EncoderInfo,
        cell_mask: NDArray[np.bool_],
        heads: SimilarityHeads,
        path: Path,
        codes: list[MappedGrid],
        masks: list[MappedGrid],
    ) -> None:
        super().__init__(area, encoder, cell_mask, heads, path)
        self.codes, self._cell_masks = codes, masks[-1]
        below, g = None, area.grid
        tiles: list[NDArray[np.bool_]] = []  # of levels L-1..1
        for level in range(area.levels - 1, 0, -1):  # a tile whose child has imagery counts as well
            side = area.tiles_per_side(level)
            grid, height = np.array(masks[level - 1].rows(0, side)), max(1, STRIP_CELLS // (g * g * side))
            for start in range(0, side, height):
                stop = min(start + height, side)
                children = masks[-1].rows(start * g, stop * g) if below is None else below[start * g : stop * g]
                grid[start:stop] |= children.reshape(stop - start, g, side, g).any((1, 3))
            below = grid
            tiles.insert(0, grid)
        self._tiles = tiles

    def _mask(self, level: int, start: int, stop: int) -> NDArray[np.bool_]:
        return self._cell_masks.rows(start, stop) if level == self.area.levels else self._tiles[level - 1][start:stop]

    def strips(self, query: Tensor) -> Iterator[Strip]:
        """See `PagedDenseExpert.strips`."""
        photo_codes = self.heads.photo_codes(query)
        for start, total in self._totals(self.area.levels, photo_codes):
            rows = start, start + total.shape[1]
            mask = self._mask(self.area.levels, *rows)
            row, col = np.nonzero(mask)
            if len(row):
                yield row + start, col, total[:, torch.from_numpy(mask).to(self.device)]

    def _totals(self, level: int, photo_codes: Tensor) -> Iterator[tuple[int, Tensor]]:
        """First row and (photo, row, col) sums over the levels down to one, strip by strip."""
        if level == 0:
            yield 0, photo_codes.new_zeros(len(photo_codes), 1, 1)
            return
        g, side = self.area.grid, self.area.tiles_per_side(level)
        parents, height = side // g, max(1, STRIP_CELLS // (g * side))
        for row, total in self._totals(level - 1, photo_codes):
            for part in range(0, total.shape[1], height):
                above = total[:, part : part + height]
                start, stop = (row + part) * g, (row + part + above.shape[1]) * g
                codes = self.codes[level - 1].rows(start * side, stop * side)
                mask = torch.from_numpy(self._mask(level, start, stop).reshape(-1)).to(self.device)
                similarity = photo_codes[:, level - 1] @ torch.from_numpy(codes).to(self.device).float().T
                if not torch.isfinite(similarity).all():
                    raise self._not_finite()
                similarity = similarity.masked_fill(~mask, -torch.inf)
                siblings = similarity.view(-1, above.shape[1], g, parents, g).transpose(2, 3).flatten(3)
                siblings = siblings.log_softmax(-1).nan_to_num(-torch.inf)  # nan where no child has imagery
                children = siblings + above[..., None]
                yield start, children.unflatten(3, (g, g)).transpose(2, 3).reshape(len(photo_codes), -1, side)

    @classmethod
    def load(
        cls,
        path: Path,
        entries: dict[str, Any],
        area: Pyramid,
        encoder: EncoderInfo,
        cell_mask: NDArray[np.bool_],
        device: str | torch.device,
    ) -> Self:
        """Open what `LevelsExpert.save` wrote; arguments and errors as of `CellsExpert.load`."""
        codes, masks = stored_shapes(area, entries)
        unread = {**codes, **masks}
        _, heads = load_heads(path, entries, encoder, unread, dict.fromkeys(masks, ("BOOL",)), unread)
        grids = mapped_tensors(path, list(masks), 0)
        side = area.tiles_per_side(area.levels)
        height = max(1, STRIP_CELLS // side)
        strips = range(0, side, height)
        same = all(np.array_equal(grids[-1].rows(at, min(at + height, len(cell_mask))), cell_mask[at : at + height])
                   for at in strips)  # fmt: skip
        if (heads.config.scales, heads.config.spaces) != (1, area.levels) or not same:
            raise ModelError(f"{path} does not hold the codes of this map's tiles: copy the model again")
        return cls(area, encoder, cell_mask, heads.to(device), path, mapped_tensors(path, list(codes), 0), grids)
