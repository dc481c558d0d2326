"""Photos and windows of an area's imagery as the source that a refiner with trunks of its own is trained on.

The aerial trunk's tokens will be computed tile by tile and sampled on the grids of windows
(`jzi.refine.networks.producer`). In training, the part of the map around a window is rendered on the same grid of
tokens, and sampled in the same way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from numpy.typing import NDArray

from jzi.encode.prefetch import prefetch, reader_threads
from jzi.encode.rasters.imagery import Imagery
from jzi.refine.config import CachedRefinerConfig, RefineConfig
from jzi.refine.info import RefinerInfo
from jzi.refine.networks.producer import trunk_pixels
from jzi.refine.windows.window import Windows
from jzi.store.geometry.cell_grid import Bounds
from jzi.store.geometry.pyramid import Pyramid, TileKey
from jzi.store.photos.photo_table import PhotoTable
from jzi.train.config.refiner import RefinerTrainingConfig
from jzi.train.refine.refine_data import Read
from jzi.train.refine.refine_pairs import PairPhotos
from jzi.train.refine.refine_photos import AreaPhotos, PixelSource, photo_frame

#: Rows of tokens of a photo: 192 x 384 pixels at the default stride of 16.
ROWS = 12


@dataclass(frozen=True)
class TokenGrid:
    """The grid of the tokens of the whole map, and the part of it that a window is sampled from.

    Attributes:
        area: the map.
        token: side of a token, units of the CRS.
        count: tokens along a side of the part of a window.
        stride: pixels of a token.
        margin: pixels around the part.
        side: tokens along a side of a window.
    """

    area: Pyramid
    token: float
    count: int
    stride: int
    margin: int
    side: int

    @classmethod
    def of(cls, area: Pyramid, config: CachedRefinerConfig, window_m: float) -> TokenGrid:
        """The grid of the tokens that `jzi encode-map --detail --refiner` computes for an area.

        Args:
            area: the map.
            config: of a refiner with trunks.
            window_m: side of a window, metres on the ground.
        """
        assert config.trunk is not None
        trunk, side = config.trunk, config.side
        info = RefinerInfo(kind="cached", config=config, window_m=window_m)
        tokens = trunk_pixels(info, trunk.stride, area) // trunk.stride  # of a tile
        token = area.footprint(area.levels - 1) / tokens
        west, south, east, north = area.bounds
        corners = Windows(area, np.array([west, east, west, east]), np.array([south, south, north, north]), window_m, 1)
        longest = window_m * float(corners.scale.max()) * 1.01
        return cls(area, token, math.ceil(longest / token * (side - 1) / side) + 2, trunk.stride, trunk.margin, side)

    @property
    def pixels(self) -> int:
        """Side of the image of a part, with the margin."""
        return self.count * self.stride + 2 * self.margin

    def part(self, west: float, north: float, side: float) -> tuple[Bounds, NDArray[np.float32]]:
        """The part of the map from which a window is sampled.

        Args:
            west: of the window, in the CRS.
            north: of the window.
            side: of the window, units of the CRS.

        Returns:
            Bounds of the image, with the margin, and (side, side, 2) x and y of the window's tokens in the part, from
            -1 to 1, as `grid_sample` takes them.
        """
        steps = (np.arange(self.side) + 0.5) * side / self.side
        right = (west - self.area.west + steps) / self.token - 0.5  # in tokens, from the centre of the first
        down = (self.area.north - north + steps) / self.token - 0.5
        col, row = math.floor(right[0]), math.floor(down[0])
        x, y = ((each + 0.5) * 2 / self.count - 1 for each in (right - col, down - row))
        edge = self.margin / self.stride
        left, top = (col - edge) * self.token, (row - edge) * self.token
        extent = (self.count + 2 * edge) * self.token
        bounds = Bounds(
            self.area.west + left,
            self.area.north - top - extent,
            self.area.west + left + extent,
            self.area.north - top,
        )
        return bounds, np.stack(np.meshgrid(x, y), -1).astype(np.float32)


@dataclass(frozen=True)
class ImageSource(PixelSource):
    """Photos and windows of an area as pixels (a `PairSource`).

    Attributes:
        config: architecture of the refiner.
        grid: the grid of the map's tokens.
    """

    config: CachedRefinerConfig
    grid: TokenGrid
    images: bool = True
    detail: str = ""

    @classmethod
    def load(
        cls, imagery: Imagery, table: PhotoTable, refine: RefineConfig, config: RefinerTrainingConfig
    ) -> ImageSource:
        """Find the photos that lie on a map; photos whose size cannot be read are left out.

        Args:
            imagery: the map.
            table: the photos, inside of its area.
            refine: architecture and side of windows.
            config: the number of validation photos.

        Raises:
            ImageryError: the imagery cannot be read.
        """
        area = imagery.pyramid
        network = refine.cached(1, 1, ROWS)
        frame = photo_frame(table, refine)
        photos = AreaPhotos.of(imagery, frame[_on_imagery(imagery, frame)], network, refine, config)
        return cls(area, photos, imagery, network, TokenGrid.of(area, network, refine.window_m))

    def network(self, refine: RefineConfig) -> CachedRefinerConfig:
        """Architecture of a refiner of these images."""
        return self.config

    def read(self, photos: PairPhotos, windows: Windows) -> Read:
        """Pixels of photos, and of the parts of the map around windows.

        Raises:
            TrainingError: a photo cannot be read.
            ImageryError: the imagery cannot be read.
        """
        images, masks, grids = [], [], []
        for west, south, _, north in windows.bounds.tolist():
            bounds, grid = self.grid.part(west, north, north - south)
            image, covered = self.imagery.render(bounds, self.grid.pixels)
            images.append(torch.from_numpy(image).permute(2, 0, 1))
            masks.append(self._covered(covered, grid))
            grids.append(torch.from_numpy(grid))
        each = zip(photos.row, photos.panorama, strict=True)
        pixels = [self.photos.read(int(row), panorama=bool(panorama)) for row, panorama in each]
        return Read(
            torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2),
            torch.stack(images),
            torch.stack(masks),
            grid=torch.stack(grids),
        )

    def _covered(self, covered: NDArray[np.bool_], grid: NDArray[np.float32]) -> torch.Tensor:
        """(side, side) bool, the window's tokens that are sampled from tokens with imagery, mostly."""
        margin, count, stride = self.grid.margin, self.grid.count, self.grid.stride
        inner = covered[margin : margin + count * stride, margin : margin + count * stride]
        tokens = inner.reshape(count, stride, count, stride).any((1, 3))
        weight = F.grid_sample(
            torch.from_numpy(tokens)[None, None].float(), torch.from_numpy(grid)[None], align_corners=False
        )
        return weight[0, 0] >= 0.5


def _on_imagery(imagery: Imagery, frame: pd.DataFrame) -> NDArray[np.bool_]:
    """(photo,) whether the cell of each photo has imagery; a cell is looked at once."""
    pyramid = imagery.pyramid
    cells = np.stack(pyramid.cells_at(frame["latitude"].to_numpy(float), frame["longitude"].to_numpy(float)), 1)
    distinct, index = np.unique(cells, axis=0, return_inverse=True)
    bounds = [pyramid.tile_bounds(TileKey(pyramid.levels, int(row), int(col))) for row, col in distinct]
    covered = np.array(list(prefetch(lambda each: imagery.render(each, 1)[1].any(), bounds, reader_threads())), bool)
    return np.asarray((covered & (distinct[:, 0] >= 0))[index.reshape(-1)])
