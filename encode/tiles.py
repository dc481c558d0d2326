"""From imagery to the tiles of every level, reading every source pixel about once.

The finest tiles are cut from the imagery in squares of g x g tiles, in rows from north to south, which also suits files
that are stored by rows. Every coarser tile is the mean of its children: no level is read from the imagery again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jzi.encode.imagery import BACKGROUND, Imagery
from jzi.encode.prefetch import prefetch, reader_threads
from jzi.store.pyramid import TileKey


@dataclass(frozen=True)
class Tile:
    """A tile as the encoder takes it.

    Attributes:
        key: which tile.
        image: (image_size, image_size, 3) uint8, north up.
        has_imagery: whether any of it is imagery.
        cells: (g, g) the same for each of its children, for tiles of level L-1; None above.
    """

    key: TileKey
    image: NDArray[np.uint8]
    has_imagery: bool
    cells: NDArray[np.bool_] | None = None


@dataclass
class _Canvas:
    """A coarse tile that is being put together from its children."""

    image: NDArray[np.uint8]
    missing: int
    has_imagery: bool = False


@dataclass
class TileRenderer:
    """Renders tiles of a pyramid.

    Args:
        imagery: what to cut them from.
        image_size: side of a tile, pixels.
        threads: how many threads read.
    """

    imagery: Imagery
    image_size: int
    threads: int = field(default_factory=reader_threads)

    def __post_init__(self) -> None:
        self.pyramid = self.imagery.pyramid
        #: The level of the squares that are read in one go.
        self.unit_level = max(0, self.pyramid.levels - 2)
        self._thumb = math.ceil(self.image_size / self.pyramid.grid)

    def render(self, roots: list[TileKey]) -> Iterator[Tile]:
        """All tiles below and including `roots`, children before parents.

        Args:
            roots: different tiles of ONE level, not deeper than `unit_level`.

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

    def parents(self, tile: Tile, canvases: dict[TileKey, _Canvas], top: int = 0) -> Iterator[Tile]:
        """Paint a finished tile into its parent; yield the parent, and in turn its parents up to `top`, once whole."""
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
        """The finest tiles of a square, then the square itself (which may be one tile, where L = 1)."""
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
    """(side, side, 3): each pixel the mean of those that it covers."""
    if image.shape[0] == side:
        return image
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BOX))
