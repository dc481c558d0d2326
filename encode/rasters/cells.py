"""Reference crops of cells: squares centred on a cell and several times as wide.

Crops of neighbouring cells overlap, so the map is kept as one mosaic and crops are cut from it on access.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from jzi.encode.device import allocate
from jzi.encode.prefetch import prefetch, reader_threads
from jzi.encode.rasters.imagery import Imagery
from jzi.store.geometry.cell_grid import Bounds
from jzi.store.geometry.pyramid import Pyramid

#: Maximum cells per side of a block that is rendered at once.
BLOCK = 16


class CellImages:
    """Reference crops of all cells of a pyramid, in row-major order from the north-west corner.

    `images[index]` returns the (n, S, S, 3) uint8 crops of an (n,) tensor of cell numbers, on `device`.

    Args:
        imagery: the map.
        image_size: side S of a crop, pixels.
        context: side of the square around a cell, in cells.
        device: preferred device of the mosaic; it is kept in memory or in a file if the device has no room.
        folder: where to put that file.
        progress: whether to show a progress bar.

    Attributes:
        mosaic: (side, side, 3) uint8, the map with a margin around it.
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
        progress: bool = True,
    ) -> None:
        self.imagery, self.pyramid, self.image_size = imagery, imagery.pyramid, image_size
        self.cells = self.pyramid.tiles_per_side(self.pyramid.levels)  # per side
        #: Pixels per cell, even and at least the resolution of the crops; margin around a cell in pixels.
        self.pixels = 2 * math.ceil(image_size / context / 2)
        self.margin = round((context - 1) * self.pixels / 2)
        side = self.cells * self.pixels + 2 * self.margin
        self.mosaic = allocate((side, side, 3), torch.uint8, device, folder)
        self.has_imagery = np.zeros((self.cells, self.cells), bool)
        self._block = _block_side(self.pyramid)
        starts = range(0, self.cells, self._block)
        corners = [(row, col) for row in starts for col in starts]
        rendered = prefetch(self._render, corners, reader_threads())
        for (row, col), (image, covered) in zip(
            corners, tqdm(rendered, total=len(corners), unit="block", desc="cells", disable=not progress), strict=True
        ):
            y, x = row * self.pixels, col * self.pixels
            self.mosaic[y : y + len(image), x : x + len(image)] = torch.from_numpy(image)
            self.has_imagery[row : row + self._block, col : col + self._block] = covered

    @property
    def device(self) -> torch.device:
        """Device of the crops."""
        return self.mosaic.device

    def __len__(self) -> int:
        return self.cells**2

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


def _block_side(pyramid: Pyramid) -> int:
    """Side in cells of the largest tile of at most `BLOCK` cells per side."""
    side = 1
    while side * pyramid.grid <= min(BLOCK, pyramid.tiles_per_side(pyramid.levels)):
        side *= pyramid.grid
    return side
