"""Render the tiles of all levels, reading each source pixel about once.

The finest tiles are rendered in squares of g x g tiles, in rows from north to south, which suits files that are stored
by rows too. Every coarser tile is the average of its children.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jzi.encode.prefetch import prefetch, reader_threads
from jzi.encode.rasters.imagery import BACKGROUND, Imagery
from jzi.store.geometry.pyramid import TileKey


@dataclass(frozen=True)
class Tile:
    """A rendered tile.

    Attributes:
        key: level, row and column.
        image: (image_size, image_size, 3) uint8, north up.
        has_imagery: whether any pixel has imagery.
        cells: (g, g) bool, whether any pixel of each child has imagery, for tiles of level L-1; None above.
    """

    key: TileKey
    image: NDArray[np.uint8]
    has_imagery: bool
    cells: NDArray[np.bool_] | None = None


@dataclass
class _Canvas:
    """A coarse tile that is being assembled from its children."""

    image: NDArray[np.uint8]
    missing: int
    has_imagery: bool = False


@dataclass
class TileRenderer:
    """Renderer of the tiles of a pyramid.

    Args:
        imagery: the map.
        image_size: side of a tile, pixels.
        threads: number of reader threads.
    """

    imagery: Imagery
    image_size: int
    threads: int = field(default_factory=reader_threads)

    def __post_init__(self) -> None:
        self.pyramid = self.imagery.pyramid
        #: Level of the squares that are rendered at once.
        self.unit_level = max(0, self.pyramid.levels - 2)
        self._thumb = math.ceil(self.image_size / self.pyramid.grid)

    def render(self, roots: list[TileKey]) -> Iterator[Tile]:
        """Yield all tiles below and including `roots`, children before parents.

        Args:
            roots: distinct tiles of one level, at most `unit_level`.

        Raises:
            ImageryError: the imagery cannot be read.
        """
        if not roots:
            return
        top = roots[0].level
        side = self.pyramid.grid ** (self.unit_level - top)
        units = sorted(
            TileKey(self.unit_level, root.row * side + row, root.col * side + col)
            for root in roots
            for row in range(side)
            for col in range(side)
        )
        canvases: dict[TileKey, _Canvas] = {}
        for tiles in prefetch(self._render_unit, units, self.threads):
            yield from tiles
            yield from self.parents(tiles[-1], canvases, top)

    def reduced(self, tile: Tile) -> Tile:
        """A tile with as many pixels as `parents` needs of it."""
        return replace(tile, image=_shrink(tile.image, self._thumb))

    def parents(self, tile: Tile, canvases: dict[TileKey, _Canvas], top: int = 0) -> Iterator[Tile]:
        """Copy a finished tile into its parent; yield the parent if it is complete, and so on up to level `top`.

        Args:
            tile: the tile.
            canvases: the incomplete parents, empty at first; updated.
            top: coarsest level to yield.
        """
        while tile.key.level > top:
            level, row, col = tile.key
            g, thumb = self.pyramid.grid, self._thumb
            key = TileKey(level - 1, row // g, col // g)
            if key not in canvases:
                canvases[key] = _Canvas(_background(g * thumb), g * g)
            canvas = canvases[key]
            y, x = row % g * thumb, col % g * thumb
            canvas.image[y : y + thumb, x : x + thumb] = _shrink(tile.image, thumb)
            canvas.has_imagery |= tile.has_imagery
            canvas.missing -= 1
            if canvas.missing:
                return
            del canvases[key]
            tile = Tile(key, _shrink(canvas.image, self.image_size), canvas.has_imagery)
            yield tile

    def _render_unit(self, key: TileKey) -> list[Tile]:
        """Render the finest tiles of a square, then the square itself; just one tile if L = 1."""
        g, size = self.pyramid.grid, self.image_size
        if self.pyramid.levels == 1:
            return [self._leaf(key, *self.imagery.render(self.pyramid.tile_bounds(key), size))]
        image, covered = self.imagery.render(self.pyramid.tile_bounds(key), g * size)
        tiles = []
        for child in self.pyramid.children(key):
            y, x = child.row % g * size, child.col % g * size
            tiles.append(self._leaf(child, image[y : y + size, x : x + size], covered[y : y + size, x : x + size]))
        return [*tiles, Tile(key, _shrink(image, size), bool(covered.any()))]

    def _leaf(self, key: TileKey, image: NDArray[np.uint8], covered: NDArray[np.bool_]) -> Tile:
        edges = np.linspace(0, self.image_size, self.pyramid.grid + 1).astype(int)
        rows = np.logical_or.reduceat(covered, edges[:-1], axis=0)
        cells = np.logical_or.reduceat(rows, edges[:-1], axis=1)
        return Tile(key, image, bool(cells.any()), cells)


def _background(side: int) -> NDArray[np.uint8]:
    return np.broadcast_to(np.array(BACKGROUND, np.uint8), (side, side, 3)).copy()


def _shrink(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Downsample to (side, side, 3) by averaging."""
    if image.shape[0] == side:
        return image
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BOX))
