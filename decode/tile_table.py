"""The map's embeddings on the device, so that a zoom is a handful of look-ups by index."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jzi.errors import CacheError
from jzi.store.map_embeddings import NODATA, MapEmbeddings

if TYPE_CHECKING:
    from jzi.decode.config import DecoderConfig
    from jzi.decode.patch_tokens import PatchTokens


class TileTable:
    """All tiles of levels 0..L-1 in one tensor; a tile is an index into it.

    Attributes:
        embedding: (tile, feature) float16 on the device; zeros where there is no imagery. Terminal cells, if there are
            any, come last.
        child_mask: (tile, action) bool; False for children with no imagery, which search never enters.
        patches: the tiles' patch tokens; None where the map came without.
    """

    def __init__(
        self, features: MapEmbeddings, device: torch.device | str = "cpu", patches: PatchTokens | None = None
    ) -> None:
        self.patches = patches
        self.pyramid = features.pyramid
        self.width = features.width
        grids = [*features.embedding, *([] if features.cells is None else [features.cells])]
        flat = np.concatenate([np.nan_to_num(grid).reshape(-1, features.width) for grid in grids])
        self.embedding = torch.from_numpy(flat).to(device)
        levels = range(self.pyramid.levels)
        child_mask = np.concatenate([_by_parent(features.status[k + 1] != NODATA, self.pyramid.grid) for k in levels])
        self.child_mask = torch.from_numpy(child_mask).to(device)
        sizes = [self.pyramid.tiles_per_side(level) ** 2 for level in levels]
        self.offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]).tolist()

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.embedding.device

    def with_embedding(self, embedding: Tensor) -> TileTable:
        """The same tiles with other embeddings, (tile, feature) on their device."""
        table = copy.copy(self)
        table.embedding, table.width = embedding, embedding.shape[1]
        table.child_mask = self.child_mask.to(embedding.device)
        return table

    def index(self, level: int, row: Tensor, col: Tensor) -> Tensor:
        """Index of the tiles (level, row, col)."""
        return self.offsets[level] + row * self.pyramid.tiles_per_side(level) + col

    def read(self, config: DecoderConfig, tile: Tensor, query: Tensor) -> tuple[Tensor, Tensor | None]:
        """What a decoder reads of tiles, as `seen`, and of the tiles below them, as `below`.

        Args:
            config: of the decoder.
            tile: (photo, n) indices.
            query: (photo, feature) embeddings of the photos that look at them.
        """
        return self.seen(tile, query, config.patch_tokens), self.below(tile, config.look_ahead)

    def seen(self, tile: Tensor, query: Tensor, patch_tokens: int) -> Tensor:
        """What a decoder reads of tiles.

        Args:
            tile: (photo, n) indices.
            query: (photo, feature) embeddings of the photos that look at them.
            patch_tokens: the decoder's k.

        Returns:
            (photo, n, feature) float32, or (photo, n, 1 + k, feature): each tile's embedding, then the k of its patch
            tokens that are most similar to the photo.

        Raises:
            CacheError: the map has no patch tokens.
            ConfigError: a tile has fewer.
        """
        embedding = self.embedding[tile].float()
        if not patch_tokens:
            return embedding
        return torch.cat(
            [embedding[:, :, None], self.require_patches(patch_tokens).nearest(tile, query, patch_tokens)], 2
        )

    def require_patches(self, patch_tokens: int) -> PatchTokens:
        """The patch tokens, of which a tile has as many at least.

        Raises:
            CacheError: the map has none.
            ConfigError: a tile has fewer.
        """
        if self.patches is None:
            raise CacheError(f"decoder.patch_tokens is {patch_tokens}, and the map has none: `jzi encode-map --tokens`")
        self.patches.check(patch_tokens)
        return self.patches

    def below(self, tile: Tensor, look_ahead: str) -> Tensor | None:
        """What a decoder sees of the children of tiles.

        Args:
            tile: (...) indices.
            look_ahead: the decoder's.

        Returns:
            None, or (..., action, feature); zeros where there is no imagery, and for cells that are not looked at.

        Raises:
            CacheError: cells are looked at, and the map has none.
        """
        if look_ahead == "none":
            return None
        g, tiles = self.pyramid.grid, self.pyramid.tile_count
        if look_ahead == "cells" and len(self.embedding) == tiles:
            raise CacheError("decoder.look_ahead is cells, and the map has none: run `jzi encode-map --cells`")
        first = torch.tensor([*self.offsets, tiles], device=tile.device)
        level = torch.bucketize(tile, first, right=True) - 1
        side = g**level
        row, col = (tile - first[level]) // side, (tile - first[level]) % side
        child = torch.arange(g * g, device=tile.device)
        rows, cols = row[..., None] * g + child // g, col[..., None] * g + child % g  # (..., action)
        index = first[level + 1][..., None] + rows * (g * side)[..., None] + cols
        there = index < (len(self.embedding) if look_ahead == "cells" else tiles)
        return self.embedding[torch.where(there, index, 0)].float() * there[..., None]

    def along(self, paths: NDArray[np.int64]) -> Tensor:
        """(n, L) indices of the tiles that zooms along (n, L) actions see."""
        rows, cols = self.pyramid.input_tiles(paths)
        side = np.array([self.pyramid.tiles_per_side(level) for level in range(self.pyramid.levels)])
        return torch.from_numpy(np.array(self.offsets) + rows * side + cols).to(self.device)

    def reachable(self, paths: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(n,) whether every step of (n, L) actions enters a tile with imagery."""
        actions = torch.from_numpy(paths).to(self.device)
        return self.child_mask[self.along(paths), actions].all(-1).cpu().numpy()


def _by_parent(status: NDArray[np.bool_], grid: int) -> NDArray[np.bool_]:
    """(rows * g, cols * g) of one level to (parent, action)."""
    n = len(status) // grid
    return status.reshape(n, grid, n, grid).swapaxes(1, 2).reshape(n * n, grid * grid)
