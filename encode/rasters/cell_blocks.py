"""Rendered blocks of cells: mosaics that cells share, from which the images of each are cut when asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class BlockKey(NamedTuple):
    """Cells to render together.

    Attributes:
        rows: rows of the grid.
        cols: columns of the grid.
        wanted: (row, col) which of them to render; None for all.
    """

    rows: slice
    cols: slice
    wanted: NDArray[np.bool_] | None = None

    @property
    def cells(self) -> int:
        """Number of cells to render."""
        shape = (self.rows.stop - self.rows.start, self.cols.stop - self.cols.start)
        return math.prod(shape) if self.wanted is None else int(self.wanted.sum())


@dataclass(frozen=True)
class CellBlock:
    """Rendered cells of a block; images of cells are cut from its mosaics when asked for.

    Attributes:
        coverage: (row, col) share of the pixels of a cell's own square that have imagery; 0 for cells not wanted.
        has_imagery: (row, col) which cells have images.
        row: (n,) rows in the block of the cells that have images, in row-major order.
        col: (n,) columns in the block.
        empty: (n,) share of the pixels of each cell's images, all levels, that have no imagery.
        mosaics: (rows, cols, 3) uint8 for each level of detail.
        corners: (n, level, 2) row and column in the mosaics of each image's north-west corner, pixels, fractional.
        image_size: side S of an image, pixels.
    """

    coverage: NDArray[np.float32]
    has_imagery: NDArray[np.bool_]
    row: NDArray[np.int64]
    col: NDArray[np.int64]
    empty: NDArray[np.float32]
    mosaics: list[Tensor] = field(repr=False)
    corners: NDArray[np.float64] = field(repr=False)
    image_size: int

    def __len__(self) -> int:
        return len(self.row)

    def to(self, device: torch.device | str) -> CellBlock:
        """Copy with the mosaics on a device, where images are then cut."""
        mosaics = [mosaic.to(device) for mosaic in self.mosaics]
        return CellBlock(
            self.coverage, self.has_imagery, self.row, self.col, self.empty, mosaics, self.corners, self.image_size
        )

    def __getitem__(self, index: slice) -> Tensor:
        """(n, level, S, S, 3) uint8 images of a range of the cells, on the device of the mosaics."""
        size, corners = self.image_size, self.corners[index]
        device = self.mosaics[0].device if self.mosaics else torch.device("cpu")
        images = torch.empty((len(corners), self.corners.shape[1], size, size, 3), dtype=torch.uint8, device=device)
        for cell, levels in enumerate(corners):
            for level, (y, x) in enumerate(levels):
                images[cell, level] = _cut(self.mosaics[level], float(y), float(x), size)
        return images


def _cut(mosaic: Tensor, y: float, x: float, size: int) -> Tensor:
    """(size, size, 3) uint8 with its north-west corner at a fractional pixel of a mosaic, by bilinear interpolation."""
    top, left = math.floor(y), math.floor(x)
    part = mosaic[top : top + size + 1, left : left + size + 1].float()
    part = torch.lerp(part[:-1], part[1:], y - top)
    return torch.lerp(part[:, :-1], part[:, 1:], x - left).round_().byte()
