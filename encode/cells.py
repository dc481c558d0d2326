"""The pieces of map that stand for cells: each a square around a cell, several times as wide.

Squares of neighbours overlap, so that they are kept as one mosaic and cut out when they are asked for.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from jzi.encode.device import allocate
from jzi.encode.imagery import Imagery
from jzi.encode.prefetch import prefetch, reader_threads
from jzi.store.pyramid import Bounds, Pyramid

#: Cells to a side that are read in one go.
BLOCK = 16


class CellImages:
    """Images of all cells of a pyramid, row by row from the north-west; index it with a tensor of cells.

    Args:
        imagery: the map.
        image_size: side of an image, pixels.
        context: side of the square around a cell, in cells.
        device: where the mosaic is wanted.
        folder: for a file with it, if it fits nowhere else.
        progress: whether to show it.

    Attributes:
        mosaic: (side, side, 3) uint8, the map with a margin around it.
        has_imagery: (row, col) bool, whether there is any imagery in each cell.

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
        self.cells = self.pyramid.tiles_per_side(self.pyramid.levels)  # to a side
        #: Pixels to a cell, even, and no coarser than the images; the margin around a cell, pixels.
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
        """Where indices are wanted."""
        return self.mosaic.device

    def __len__(self) -> int:
        return self.cells**2

    def __getitem__(self, index: Tensor) -> Tensor:
        """(n,) cells to (n, S, S, 3) uint8."""
        side = self.pixels + 2 * self.margin
        corners = [(cell // self.cells * self.pixels, cell % self.cells * self.pixels) for cell in index.tolist()]
        if not corners:
            return self.mosaic.new_empty(0, self.image_size, self.image_size, 3)
        images = torch.stack([self.mosaic[y : y + side, x : x + side] for y, x in corners])
        if side == self.image_size:
            return images
        size = (self.image_size, self.image_size)
        smaller = F.interpolate(images.permute(0, 3, 1, 2).float(), size, mode="bilinear", antialias=True)
        return smaller.round().clamp(0, 255).byte().permute(0, 2, 3, 1)

    def _render(self, corner: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """A block of cells with the margin around it, and which of its cells have imagery."""
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
    """The side of the largest tile of the pyramid of at most `BLOCK` cells to a side, in cells."""
    side = 1
    while side * pyramid.grid <= min(BLOCK, pyramid.tiles_per_side(pyramid.levels)):
        side *= pyramid.grid
    return side
