"""Photos and windows of areas for the refiner that looks along rays: from memory, so that a step waits for no file."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from jzi.encode.device import SHARE
from jzi.encode.rasters.imagery import Imagery
from jzi.refine.config import RefineConfig
from jzi.refine.ray_config import MAP_STRIDE, RayConfig
from jzi.refine.windows.window import Windows
from jzi.store.geometry.cell_grid import Bounds
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.photos.photo_table import PhotoTable
from jzi.train.config.refiner import RefinerTrainingConfig
from jzi.train.refine.refine_data import Read
from jzi.train.refine.refine_pairs import PairPhotos
from jzi.train.refine.refine_photos import AreaPhotos, PixelSource, photo_frame

#: Side of the blocks in which a mosaic is rendered, pixels.
BLOCK = 2048

#: Largest relative difference of a pixel of a mosaic from its nominal size, by the CRS's scale; beyond, windows are
#: rendered one by one. At the edge of a window it is a tenth of a token.
SCALE_ERROR = 0.005


@dataclass(frozen=True)
class Mosaic:
    """A map in memory.

    Attributes:
        area: the map; its north-west corner is that of the first pixel.
        pixel: side of a pixel, units of the CRS.
        image: (row, col, 3) uint8.
        mask: (row, col) bool, whether there is imagery.
    """

    area: Pyramid
    pixel: float
    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]

    @classmethod
    def render(cls, imagery: Imagery, pixel_m: float) -> Mosaic | None:
        """Render a whole map; None if memory has no room for it, or the scale of its CRS varies.

        Args:
            imagery: the map.
            pixel_m: side of a pixel, metres on the ground.

        Raises:
            ImageryError: the imagery cannot be read.
        """
        area = imagery.pyramid
        west, south, east, north = area.bounds
        middle = (west + east) / 2, (south + north) / 2
        scale = Windows(area, np.array([west, east, west, east, middle[0]]),
                        np.array([south, south, north, north, middle[1]]), 1.0, 1).scale  # fmt: skip
        pixel = pixel_m * float(scale[-1])
        side = math.ceil(area.size / pixel)
        if np.abs(scale / scale[-1] - 1).max() > SCALE_ERROR or 4 * side**2 > SHARE * psutil.virtual_memory().available:
            return None
        image, mask = np.zeros((side, side, 3), np.uint8), np.zeros((side, side), bool)
        for row in range(0, side, BLOCK):
            for col in range(0, side, BLOCK):
                rows, cols = min(BLOCK, side - row), min(BLOCK, side - col)
                left, top = west + col * pixel, north - row * pixel
                bounds = Bounds(left, top - rows * pixel, left + cols * pixel, top)
                part = slice(row, row + rows), slice(col, col + cols)
                image[part], mask[part] = imagery.render(bounds, (rows, cols))
        return cls(area, pixel, image, mask)

    def cut(self, x: float, y: float, side: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """A square around a point, moved by up to half a pixel; black beyond the edge.

        Args:
            x: of its centre, in the area's CRS.
            y: of its centre.
            side: pixels.
        """
        west, _, _, north = self.area.bounds
        left, top = round((x - west) / self.pixel - side / 2), round((north - y) / self.pixel - side / 2)
        image, mask = np.zeros((side, side, 3), np.uint8), np.zeros((side, side), bool)
        height, width = self.mask.shape
        rows, cols = slice(max(top, 0), min(top + side, height)), slice(max(left, 0), min(left + side, width))
        if rows.start < rows.stop and cols.start < cols.stop:
            into = slice(rows.start - top, rows.stop - top), slice(cols.start - left, cols.stop - left)
            image[into], mask[into] = self.image[rows, cols], self.mask[rows, cols]
        return image, mask

    def has_imagery(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
        """(point,) whether there is imagery at points of the area's CRS."""
        west, _, _, north = self.area.bounds
        row, col = np.floor((north - y) / self.pixel).astype(int), np.floor((x - west) / self.pixel).astype(int)
        inside = (row >= 0) & (row < len(self.mask)) & (col >= 0) & (col < len(self.mask))
        return inside & self.mask[np.where(inside, row, 0), np.where(inside, col, 0)]


@dataclass(frozen=True)
class RaySource(PixelSource):
    """Photos and windows of an area as pixels (a `PairSource`); windows have the margin that rays need.

    Attributes:
        photos: training photos, all with headings, and validation photos.
        mosaic: the map in memory; None to render windows one by one.
        config: architecture of the refiner.
        headless: training photos that were left out because their heading is not known.
    """

    mosaic: Mosaic | None
    config: RayConfig
    headless: int = 0
    images: bool = True
    detail: str = ""

    @classmethod
    def load(
        cls, imagery: Imagery, table: PhotoTable, refine: RefineConfig, config: RefinerTrainingConfig
    ) -> RaySource:
        """Render a map, and find the photos that lie on it.

        Args:
            imagery: the map.
            table: the photos, inside of its area.
            refine: architecture and side of windows.
            config: the number of validation photos.

        Raises:
            ImageryError: the imagery cannot be read.
        """
        area, network = imagery.pyramid, refine.ray_config()
        mosaic = Mosaic.render(imagery, network.token_m / MAP_STRIDE)
        frame = photo_frame(table, refine)
        x, y = area.project(frame["latitude"].to_numpy(float), frame["longitude"].to_numpy(float))
        frame = frame[mosaic.has_imagery(x, y) if mosaic else _rendered(imagery, x, y)]
        photos = AreaPhotos.of(imagery, frame, network, refine, config)
        known = np.isfinite(photos.splits.train.heading_deg)
        splits = replace(photos.splits, train=photos.splits.train[known])
        return cls(area, replace(photos, splits=splits), imagery, mosaic, network, int((~known).sum()))

    def read(self, photos: PairPhotos, windows: Windows) -> Read:
        """Pixels of photos, and of windows with their margin.

        Raises:
            TrainingError: a photo cannot be read.
            ImageryError: the imagery cannot be read.
        """
        side = self.config.outer
        cut = [self._window(*each) for each in zip(windows.x, windows.y, windows.scale, strict=True)]
        images = np.stack([image for image, _ in cut])
        masks = np.stack([mask.reshape(side, MAP_STRIDE, side, MAP_STRIDE).any((1, 3)) for _, mask in cut])
        pixels = np.stack([self.photos.read(int(row), panorama=False) for row in photos.row])
        photo, window = (torch.from_numpy(each).permute(0, 3, 1, 2) for each in (pixels, images))
        return Read(photo, window, torch.from_numpy(masks))

    def _window(self, x: float, y: float, scale: float) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        pixels = self.config.outer * MAP_STRIDE
        if self.mosaic is not None:
            return self.mosaic.cut(x, y, pixels)
        half = self.config.outer * self.config.token_m * scale / 2
        return self.imagery.render(Bounds(x - half, y - half, x + half, y + half), pixels)


@dataclass(frozen=True)
class RaySources:
    """Several areas; as a `PairSource`, the first one that has validation photos, with the training photos of all.

    Attributes:
        parts: the areas.
    """

    parts: tuple[RaySource, ...]
    images: bool = True

    @property
    def own(self) -> RaySource:
        """The area whose validation photos fit temperatures."""
        return next((part for part in self.parts if len(part.val)), self.parts[0])

    @property
    def area(self) -> Pyramid:
        """Of `own`."""
        return self.own.area

    @property
    def val(self) -> PairPhotos:
        """Of `own`."""
        return self.own.val

    @property
    def train(self) -> PairPhotos:
        """Of all areas; x and y are in the CRS of each."""
        parts = [part.train for part in self.parts]
        return PairPhotos(
            **{each.name: np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(PairPhotos)}
        )

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What the outcome of training depends on."""
        first, *others = self.parts
        return {**first.fingerprint, **{f"also {n}": str(part.fingerprint) for n, part in enumerate(others, 1)}}

    def read(self, photos: PairPhotos, windows: Windows) -> Read:
        """Of `own`."""
        return self.own.read(photos, windows)


def _rendered(imagery: Imagery, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    near = (Bounds(px - 0.5, py - 0.5, px + 0.5, py + 0.5) for px, py in zip(x, y, strict=True))
    return np.array([bool(imagery.render(bounds, 1)[1].any()) for bounds in near], bool)
