"""Levels as an expert: a zoom by similarity.

At every level the probability of a tile, given its parent, is the softmax of the photo's similarities to the parent's
children; that of a cell is the product along its path. Unlike the decoder, which learns actions, it compares contents,
so it can be used on a map that it was not trained on. All tiles are compared, so the product is exact.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from jzi.errors import ModelError
from jzi.retrieve.cells import load_heads
from jzi.retrieve.dense import DenseExpert
from jzi.retrieve.heads import SimilarityHeads
from jzi.store.features.map_embeddings import NODATA, MapEmbeddings
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.info import EncoderInfo
from jzi.store.tensors import Shape


class LevelsExpert(DenseExpert):
    """Heads, and the codes of all tiles.

    Args:
        area: pyramid of the cells.
        encoder: encoder of the photos.
        has_imagery: (row, col) of each level 1..L, whether each tile has imagery; one whose child has counts as well.
        heads: heads with a space for each level, in eval mode, on the device.
        codes: (row * side + col, code) codes of the tiles of each level 1..L, on the device.
    """

    name = "levels"

    def __init__(
        self,
        area: Pyramid,
        encoder: EncoderInfo,
        has_imagery: list[NDArray[np.bool_]],
        heads: SimilarityHeads,
        codes: list[Tensor],
    ) -> None:
        super().__init__(area, encoder, has_imagery[-1], codes[0].device)
        self.heads, self.codes, self.has_imagery = heads, [each.float() for each in codes], list(has_imagery)
        for level in range(len(has_imagery) - 1, 0, -1):  # so that every cell with imagery can be reached
            parents = len(has_imagery[level - 1])
            children = self.has_imagery[level].reshape(parents, area.grid, parents, area.grid)
            self.has_imagery[level - 1] = self.has_imagery[level - 1] | children.any((1, 3))
        self._masks = [torch.from_numpy(each.ravel()).to(self.device) for each in self.has_imagery]
        self._cells = self._masks[-1].nonzero()[:, 0]

    def log_probabilities(self, query: Tensor) -> Tensor:
        """(photo, cell) sums over the levels."""
        g, photo_codes = self.area.grid, self.heads.photo_codes(query)
        total = query.new_zeros(len(query), 1)
        for level, (codes, mask) in enumerate(zip(self.codes, self._masks, strict=True), 1):
            parents = g ** (level - 1)  # per side
            similarity = (photo_codes[:, level - 1] @ codes.T).masked_fill(~mask, -torch.inf)
            siblings = similarity.view(-1, parents, g, parents, g).transpose(2, 3).flatten(3)  # (photo, r, c, child)
            siblings = siblings.log_softmax(-1).nan_to_num(-torch.inf)  # nan where no child has imagery
            total = siblings + total.view(-1, parents, parents, 1)
            total = total.unflatten(3, (g, g)).transpose(2, 3).reshape(len(query), -1)
        return total[:, self._cells]

    def entries(self) -> dict[str, Any]:
        """What config.json records of the expert."""
        return asdict(self.heads.config)

    def save(self, path: Path) -> None:
        """Write heads and codes as one safetensors file."""
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.heads.state_dict().items()}
        codes = {f"codes.{level}": each.half().cpu().contiguous() for level, each in enumerate(self.codes, 1)}
        masks = {f"imagery.{level}": torch.from_numpy(each) for level, each in enumerate(self.has_imagery, 1)}
        save_file({**tensors, **codes, **masks}, path)

    @classmethod
    def from_map(cls, features: MapEmbeddings, encoder: EncoderInfo, heads: SimilarityHeads) -> LevelsExpert:
        """The expert for a map, from trained heads; arguments as `CellsExpert.from_map`."""
        embeddings, has_imagery = level_embeddings(features)
        codes = [heads.encode_places(level.to(heads.log_scale.device)) for level in embeddings]
        return cls(features.pyramid, encoder, has_imagery, heads, codes)

    @classmethod
    def load(
        cls,
        path: Path,
        entries: dict[str, Any],
        area: Pyramid,
        encoder: EncoderInfo,
        cell_mask: NDArray[np.bool_],
        device: str | torch.device,
    ) -> LevelsExpert:
        """Read what `save` wrote; arguments and errors as `CellsExpert.load`."""
        codes, masks = stored_shapes(area, entries)
        tensors, heads = load_heads(path, entries, encoder, {**codes, **masks}, dict.fromkeys(masks, ("BOOL",)))
        has_imagery = [tensors[name].numpy() for name in masks]
        fits = (heads.config.scales, heads.config.spaces) == (1, area.levels)
        if not fits or not np.array_equal(has_imagery[-1], cell_mask):
            raise ModelError(f"{path} does not hold the codes of this map's tiles: copy the model again")
        return cls(area, encoder, has_imagery, heads.to(device), [tensors[name].to(device) for name in codes])


def level_embeddings(features: MapEmbeddings) -> tuple[list[Tensor], list[NDArray[np.bool_]]]:
    """The embeddings of the tiles of levels 1..L, the last of which are the cells.

    Args:
        features: a map with its cells.

    Returns:
        (row * side + col, feature) float32 of each level, zeros where there is no imagery, and (row, col) whether there
        is imagery.
    """
    assert features.cells is not None
    grids = [*features.embedding[1:], features.cells]
    flat = [torch.from_numpy(np.nan_to_num(grid).reshape(-1, features.width).astype(np.float32)) for grid in grids]
    return flat, [status != NODATA for status in features.status[1:]]


def stored_shapes(area: Pyramid, entries: dict[str, Any]) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """Names and shapes of the codes and of the masks in a file of the expert, level by level.

    Args:
        area: the map.
        entries: as returned by `LevelsExpert.entries`.
    """
    sides = {level: area.tiles_per_side(level) for level in range(1, area.levels + 1)}
    codes: dict[str, Shape] = {f"codes.{level}": (side**2, entries.get("features", 0)) for level, side in sides.items()}
    masks: dict[str, Shape] = {f"imagery.{level}": (side, side) for level, side in sides.items()}
    return codes, masks
