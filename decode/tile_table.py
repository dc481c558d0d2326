"""The map's embeddings, addressed by tile index: in one tensor on the device, or read where search asks for them."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jzi.decode.paged_tiles import PagedMask, PagedTiles, TileIndex
from jzi.errors import CacheError
from jzi.store.features.map_embeddings import NODATA, MapEmbeddings
from jzi.store.features.map_pages import PagedMap

if TYPE_CHECKING:
    from jzi.decode.patch_tokens import PatchTokens


class TileTable:
    """Embeddings of all tiles of levels 0..L-1, level by level in row-major order.

    Of a map that is not in memory, `embedding` and the masks are no tensors, but give tensors where they are indexed.

    Args:
        features: the map, in memory or not.
        device: device of the tensors.
        patches: the tiles' patch tokens, if the map has them.

    Attributes:
        embedding: (tile, feature) float16 on the device; zeros where there is no imagery.
        child_mask: (tile, action) bool on the device; False for children without imagery, which search never enters.
        search_mask: (tile, action) bool on the device; the children that search enters: those of `child_mask`, or only
            some of them after `restricted`.
        offsets: index of the first tile of each level.
        patches: the tiles' patch tokens, or None.
    """

    embedding: Tensor | PagedTiles
    child_mask: Tensor | PagedMask
    search_mask: Tensor | PagedMask

    def __init__(
        self,
        features: MapEmbeddings | PagedMap,
        device: torch.device | str = "cpu",
        patches: PatchTokens | None = None,
    ) -> None:
        self.patches = patches
        self.pyramid = features.pyramid
        self.width = features.width
        levels = range(self.pyramid.levels)
        sizes = [self.pyramid.tiles_per_side(level) ** 2 for level in levels]
        self.offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]).tolist()
        if isinstance(features, PagedMap):
            index = TileIndex(features, self.offsets, torch.device(device))
            self.embedding = PagedTiles(index)
            self.child_mask = self.search_mask = PagedMask(index)
            return
        flat = np.empty((sum(sizes), features.width), features.embedding[0].dtype)
        for level, first, size in zip(levels, self.offsets, sizes, strict=True):
            tiles = flat[first : first + size]
            tiles[:] = features.embedding[level].reshape(-1, features.width)
            np.nan_to_num(tiles, copy=False)
        self.embedding = torch.from_numpy(flat).to(device)
        child_mask = np.concatenate([_by_parent(features.status[k + 1] != NODATA, self.pyramid.grid) for k in levels])
        self.child_mask = self.search_mask = torch.from_numpy(child_mask).to(device)

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.embedding.device

    def with_embedding(self, embedding: Tensor) -> TileTable:
        """Return the same tiles with other embeddings.

        Args:
            embedding: (tile, feature), on any device, which becomes the table's.
        """
        table = copy.copy(self)
        table.embedding, table.width = embedding, embedding.shape[1]
        table.child_mask, table.search_mask = (
            mask.to(embedding.device) for mask in (self.child_mask, self.search_mask)
        )
        return table

    def restricted(self, cell_mask: NDArray[np.bool_]) -> TileTable:
        """Return the same tiles with a search that enters only tiles that contain certain cells.

        Args:
            cell_mask: (row, col) the cells.
        """
        table, masks, mask = copy.copy(self), [], cell_mask
        if isinstance(self.search_mask, PagedMask):
            table.search_mask = self.search_mask.restricted(cell_mask)
            return table
        for level in reversed(range(self.pyramid.levels)):
            masks.append(_by_parent(mask, self.pyramid.grid))
            side = self.pyramid.tiles_per_side(level)
            mask = masks[-1].any(1).reshape(side, side)
        table.search_mask = self.search_mask & torch.from_numpy(np.concatenate(masks[::-1])).to(self.device)
        return table

    def last_tiles(self, limit: int) -> int:
        """Number of tiles of the last level that search can enter, if it is at most a limit; else a larger number."""
        if isinstance(self.search_mask, PagedMask):
            return self.search_mask.last_tiles(limit)
        return int(self.search_mask[self.offsets[-1] :].any(1).sum())

    def cell_mask(self) -> NDArray[np.bool_]:
        """(row, col) bool, whether search may enter each cell."""
        if isinstance(self.search_mask, PagedMask):
            return self.search_mask.cell_mask()
        last, g = self.pyramid.levels - 1, self.pyramid.grid
        side = self.pyramid.tiles_per_side(last)
        children = self.search_mask[self.offsets[last] :].cpu().numpy().reshape(side, side, g, g)
        return children.swapaxes(1, 2).reshape(side * g, side * g)

    def index(self, level: int, row: Tensor, col: Tensor) -> Tensor:
        """Return the indices of tiles.

        Args:
            level: 0..L-1.
            row: int64 of any shape.
            col: int64 of the same shape.
        """
        return self.offsets[level] + row * self.pyramid.tiles_per_side(level) + col

    def tokens(self, tile: Tensor, query: Tensor, patch_tokens: int) -> Tensor:
        """Look up the tokens of tiles.

        Args:
            tile: (photo, n) indices.
            query: (photo, feature) embeddings of the photos.
            patch_tokens: number k of patch tokens per tile.

        Returns:
            (photo, n, feature) float32 embeddings if k is 0, else (photo, n, 1 + k, feature): each tile's embedding,
            then its k patch tokens that are most similar to the photo.

        Raises:
            CacheError: the map has no patch tokens.
            ConfigError: a tile has fewer than k.
        """
        embedding = self.embedding[tile].float()
        if not patch_tokens:
            return embedding
        return torch.cat(
            [embedding[:, :, None], self.require_patches(patch_tokens).nearest(tile, query, patch_tokens)], 2
        )

    def require_patches(self, patch_tokens: int) -> PatchTokens:
        """Return the tiles' patch tokens.

        Args:
            patch_tokens: number k that a decoder reads per tile.

        Raises:
            CacheError: the map has no patch tokens.
            ConfigError: a tile has fewer than k.
        """
        if self.patches is None:
            raise CacheError(
                f"decoder.patch_tokens is {patch_tokens}, but the map has none: run `jzi encode-map --tokens`"
            )
        self.patches.check(patch_tokens)
        return self.patches

    def tiles_along(self, paths: NDArray[np.int64]) -> Tensor:
        """Return the tiles along paths, from level 0 on.

        Args:
            paths: (n, L) actions.

        Returns:
            (n, L) int64 indices on the device.
        """
        rows, cols = self.pyramid.input_tiles(paths)
        side = np.array([self.pyramid.tiles_per_side(level) for level in range(self.pyramid.levels)])
        return torch.from_numpy(np.array(self.offsets) + rows * side + cols).to(self.device)

    def is_reachable(self, paths: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether every step of a path enters a tile or cell with imagery.

        Args:
            paths: (n, L) actions.

        Returns:
            (n,) bool.
        """
        actions = torch.from_numpy(paths).to(self.device)
        return self.child_mask[self.tiles_along(paths), actions].all(-1).cpu().numpy()


def _by_parent(status: NDArray[np.bool_], grid: int) -> NDArray[np.bool_]:
    """Reshape (rows * g, cols * g) of one level to (parent, action)."""
    n = len(status) // grid
    return status.reshape(n, grid, n, grid).swapaxes(1, 2).reshape(n * n, grid * grid)
