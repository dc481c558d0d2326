"""Reference crops of cells: squares centred on a cell and several times as wide.

Crops of neighbouring cells overlap, so the map is kept as one mosaic and crops are cut from it on access.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from jzi.encode.device import allocate
from jzi.encode.prefetch import prefetch, reader_threads
from jzi.encode.rasters.imagery import Imagery
from jzi.store.features.cell_features import Unit
from jzi.store.geometry.cell_grid import Bounds
from jzi.store.geometry.pyramid import Pyramid

#: Maximum cells per side of a block that is rendered at once.
BLOCK = 16


class CellImages:
    """Reference crops of the cells of a pyramid, or of a rectangle of them, in row-major order from its north-west.

    `images[index]` returns the (n, S, S, 3) uint8 crops of an (n,) tensor of cell numbers, on `device`. A crop is the
    same in every rectangle.

    Args:
        imagery: the map.
        image_size: side S of a crop, pixels.
        context: side of the square around a cell, in cells.
        device: preferred device of the mosaic; it is kept in memory or in a file if the device has no room.
        folder: where to put that file.
        window: rows and columns of the rectangle; all cells by default.
        progress: whether to show a progress bar.

    Attributes:
        cells: number of columns.
        mosaic: (height, width, 3) uint8, the map in the rectangle with a margin around it.
        has_imagery: (row, col) bool, whether any pixel of each cell has imagery.

    Raises:
        ImageryError: the imagery cannot be read.
    """

    def __init__(
        self,
        imagery: Imagery,
        image_size: int,
        context: float,
        *,
        device: torch.device,
        folder: Path,
        window: Unit | None = None,
        progress: bool = True,
    ) -> None:
        self.imagery, self.pyramid, self.image_size = imagery, imagery.pyramid, image_size
        side = self.pyramid.tiles_per_side(self.pyramid.levels)
        rows, cols = window or (slice(0, side), slice(0, side))
        height, self.cells = rows.stop - rows.start, cols.stop - cols.start
        #: Pixels per cell, even and at least the resolution of the crops; margin around a cell in pixels.
        self.pixels = 2 * math.ceil(image_size / context / 2)
        self.margin = round((context - 1) * self.pixels / 2)
        shape = (height * self.pixels + 2 * self.margin, self.cells * self.pixels + 2 * self.margin, 3)
        self.mosaic = allocate(shape, torch.uint8, device, folder)
        self.has_imagery = np.zeros((height, self.cells), bool)
        self._block = _block_side(self.pyramid)
        corners = [(row, col) for row in self._starts(rows, side) for col in self._starts(cols, side)]
        rendered = prefetch(self._render, corners, reader_threads())
        for (row, col), (image, covered) in zip(
            corners, tqdm(rendered, total=len(corners), unit="block", desc="cells", disable=not progress), strict=True
        ):
            down, right = row - rows.start, col - cols.start
            _paste(self.mosaic, torch.from_numpy(image), down * self.pixels, right * self.pixels)
            _paste(self.has_imagery, covered, down, right)

    @property
    def device(self) -> torch.device:
        """Device of the crops."""
        return self.mosaic.device

    def __len__(self) -> int:
        return self.has_imagery.size

    def __getitem__(self, index: Tensor) -> Tensor:
        side = self.pixels + 2 * self.margin
        corners = [(cell // self.cells * self.pixels, cell % self.cells * self.pixels) for cell in index.tolist()]
        if not corners:
            return self.mosaic.new_empty(0, self.image_size, self.image_size, 3)
        images = torch.stack([self.mosaic[y : y + side, x : x + side] for y, x in corners])
        if side == self.image_size:
            return images
        size = (self.image_size, self.image_size)
        resized = F.interpolate(images.permute(0, 3, 1, 2).float(), size, mode="bilinear", antialias=True)
        return resized.round().clamp(0, 255).byte().permute(0, 2, 3, 1)

    def _starts(self, cells: slice, side: int) -> range:
        """First rows (or columns) of the blocks to render for some of `side` rows.

        Margins overlap, and a block covers those before it: of the blocks that begin before the first row nothing but
        the last is seen, while those that begin in the margin after the last row are.
        """
        reach = math.ceil((cells.stop * self.pixels + 2 * self.margin) / self.pixels)
        return range(cells.start // self._block * self._block, min(reach, side), self._block)

    def _render(self, corner: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Render a block of cells with its margin; also return which of its cells have imagery."""
        row, col = corner
        metres = self.pyramid.cell_size / self.pixels
        side = self._block * self.pixels + 2 * self.margin
        west = self.pyramid.west + (col * self.pixels - self.margin) * metres
        north = self.pyramid.north - (row * self.pixels - self.margin) * metres
        image, covered = self.imagery.render(Bounds(west, north - side * metres, west + side * metres, north), side)
        inner = covered[self.margin : side - self.margin, self.margin : side - self.margin]
        shape = (self._block, self.pixels, self._block, self.pixels)
        return image, np.asarray(inner.reshape(shape).any((1, 3)))


def _paste(target: Any, values: Any, row: int, col: int) -> None:
    """Copy values into an array from a row and a column on, which may lie outside, as far as they overlap."""
    top, left = max(row, 0), max(col, 0)
    bottom, right = (
        max(top, min(row + len(values), len(target))),
        max(left, min(col + values.shape[1], target.shape[1])),
    )
    target[top:bottom, left:right] = values[top - row : bottom - row, left - col : right - col]


def _block_side(pyramid: Pyramid) -> int:
    """Side in cells of the largest tile of at most `BLOCK` cells per side."""
    side = 1
    while side * pyramid.grid <= min(BLOCK, pyramid.tiles_per_side(pyramid.levels)):
        side *= pyramid.grid
    return side
