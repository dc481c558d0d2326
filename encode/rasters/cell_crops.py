"""Images of cells at several levels of detail: squares of one size in pixels around a cell, each of other pixels.

With the pixels of Fervers et al. 2024 (section 3.2), 0.2, 0.4, 0.8 and 1.6 m, and 384 pixels a side, the image of one
cell of 30 m at the coarsest level contains 419 cells. So images are cut from mosaics that many cells share: one per
level and block of cells. Cells in bands along parallels lie on a square raster in the equirectangular projection around
the block, shifted from row to row by parts of a pixel; cells of other grids lie so in the grid's CRS.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pyproj import Transformer
from torch import Tensor
from tqdm import tqdm

from jzi.encode.device import SHARE, allocate, free_bytes
from jzi.encode.prefetch import prefetch, reader_threads
from jzi.encode.rasters.cell_blocks import BlockKey, CellBlock
from jzi.encode.rasters.held_mosaics import MARGIN, HeldLevel, HeldMosaics, sample_turned, turned_offsets
from jzi.encode.rasters.imagery import Imagery
from jzi.errors import ConfigError
from jzi.store.geometry.bands import RADIUS, BandGrid, wrap_degrees
from jzi.store.geometry.cell_grid import Bounds, CellGrid

T = TypeVar("T")
R = TypeVar("R")

#: Sizes of a pixel, metres, and side of an image, pixels, of Fervers et al. 2024 (section 4.2).
LODS_M, IMAGE_SIZE = (0.2, 0.4, 0.8, 1.6), 384

#: Cells per side of a block. Its finest mosaic has 1.17 times the pixels of its cells, and all four take 120 MB.
BLOCK = 32

#: Side of the parts in which mosaics are rendered, pixels: rendering needs some 60 bytes per pixel.
PART = 1024

#: Size of the mosaics of an area that are kept for training, and how far off their scale may be at the area's edge.
HELD_BYTES, HELD_ERROR = 2**31, 1e-3

#: Side of the image in which `covered` looks for imagery, pixels.
THUMB = 8


@dataclass
class CellCrops:
    """Images of the cells of a grid, and of turned cells anywhere, at several levels of detail.

    All images of a cell have the same centre. Where they reach beyond the imagery, they show its background.

    Args:
        imagery: the map.
        grid: the cells. In EPSG:3857, metres of the CRS are longer than on the ground, and pixels shrink as cells do.
        lods_m: size of a pixel of each level of detail, metres.
        image_size: side S of an image, pixels.
        min_coverage: smallest share of a cell's own square with imagery, 0..1; at 0, one pixel suffices.

    Raises:
        ConfigError: a number is out of range.
    """

    imagery: Imagery
    grid: CellGrid
    lods_m: Sequence[float] = LODS_M
    image_size: int = IMAGE_SIZE
    min_coverage: float = 0.0

    def __post_init__(self) -> None:
        self._held: HeldMosaics | None = None
        if not self.lods_m or not all(math.isfinite(metres) and metres > 0 for metres in self.lods_m):
            raise ConfigError(f"lods_m is {tuple(self.lods_m)}: give the size of a pixel of each level, metres")
        if self.image_size < 1 or not 0 <= self.min_coverage <= 1:
            raise ConfigError(
                f"image_size is {self.image_size} and min_coverage {self.min_coverage:g}: give a number of pixels, and "
                "a share between 0 and 1"
            )

    @property
    def reach(self) -> float:
        """How far the largest image extends from a cell's centre, metres."""
        return max(self.lods_m) * self.image_size / 2

    # Blocks of cells

    def keys(self, rows: slice, cols: slice, wanted: NDArray[np.bool_] | None = None) -> list[BlockKey]:
        """Split a rectangle of cells into blocks of at most `BLOCK` cells a side, without those that have none.

        Args:
            rows: rows of the grid.
            cols: columns of the grid.
            wanted: (row, col) which cells of the rectangle are wanted; all by default.
        """
        (top, bottom), (west, east) = self._clip(rows, cols)
        keys = []
        for row in range(top, bottom, BLOCK):
            for col in range(west, east, BLOCK):
                part = slice(row, min(row + BLOCK, bottom)), slice(col, min(col + BLOCK, east))
                mask = None
                if wanted is not None:
                    mask = wanted[row - top : part[0].stop - top, col - west : part[1].stop - west]
                if mask is None or mask.any():
                    keys.append(BlockKey(*part, mask))
        return keys

    def blocks(self, keys: Iterable[BlockKey], threads: int | None = None) -> Iterator[CellBlock]:
        """Render blocks in order, ahead of the consumer in threads.

        Blocks that wait take at most `SHARE` of the free memory, or one block per thread if that is more.

        Args:
            keys: the blocks.
            threads: number of threads; one per core by default, up to 16.

        Raises:
            ImageryError: the imagery cannot be read.
        """
        room = max(1, int(free_bytes(torch.device("cpu")) * SHARE / self.block_bytes))
        threads = min(threads or reader_threads(), room)
        return prefetch(lambda key: self.block(*key), keys, threads, ahead=min(2 * threads, room))

    @property
    def block_bytes(self) -> int:
        """Size of the mosaics of a whole block, bytes."""
        reach = (BLOCK + 1) * self.grid.cell_size  # rows of a band grid are shifted by up to a cell
        return sum(3 * math.ceil(reach / metres + self.image_size) ** 2 for metres in self.lods_m)

    def block(self, rows: slice, cols: slice, wanted: NDArray[np.bool_] | None = None) -> CellBlock:
        """Render the mosaics of a block of cells.

        Args:
            rows: rows of the grid, in steps of 1; those beyond the grid are left out.
            cols: columns of the grid.
            wanted: (row, col) which of the cells to render; all by default.

        Returns:
            The mosaics and what is known of the cells. Memory grows with the block: 120 MB for 32 x 32 cells of 30 m
            at the default levels.

        Raises:
            ImageryError: the imagery cannot be read.
        """
        (top, bottom), (west, east) = self._clip(rows, cols)
        row, col = np.arange(top, bottom)[:, None], np.arange(west, east)[None]
        mask = np.ones((len(row), col.shape[1]), bool) if wanted is None else wanted.copy()
        if isinstance(self.grid, BandGrid):
            mask &= col < self.grid.count[row]
        coverage = np.zeros(mask.shape, np.float32)
        index = np.argwhere(mask)
        crs, x, y = self._frame(index[:, 0] + top, index[:, 1] + west)
        finest = int(np.argmin(self.lods_m))
        first = None
        if len(index):
            first = self._mosaic(crs, x, y, finest)
            coverage[mask] = self._coverage(first, finest)
        has_imagery = coverage > 0
        has_imagery &= coverage >= self.min_coverage
        kept = has_imagery[mask]
        row, col = np.nonzero(has_imagery)
        corners = np.zeros((len(row), len(self.lods_m), 2))
        empty = np.zeros(len(row), np.float32)
        images: list[Tensor] = []
        if first is not None and len(row):
            for level in range(len(self.lods_m)):
                if level == finest:
                    mosaic = _Mosaic(first.image, first.covered, first.centers[kept])
                else:
                    mosaic = self._mosaic(crs, x[kept], y[kept], level)
                corners[:, level] = mosaic.centers - self.image_size / 2
                if not mosaic.covered.all():
                    empty += self._empty(mosaic, corners[:, level]) / len(self.lods_m)
                images.append(torch.from_numpy(mosaic.image))
        return CellBlock(coverage, has_imagery, row, col, empty, images, corners, self.image_size)

    def _clip(self, rows: slice, cols: slice) -> tuple[tuple[int, int], tuple[int, int]]:
        (top, bottom, _), (west, east, _) = (
            part.indices(size) for part, size in zip((rows, cols), self.grid.shape, strict=True)
        )
        return (top, max(top, bottom)), (west, max(west, east))

    def _frame(
        self, row: NDArray[np.int64], col: NDArray[np.int64]
    ) -> tuple[str, NDArray[np.float64], NDArray[np.float64]]:
        """A CRS in which cells are squares parallel to its axes, and x, y of their centres."""
        if not isinstance(self.grid, BandGrid):
            return self.grid.crs, *self.grid.cell_centers(row, col)
        latitude, longitude = self.grid.positions(row, col)
        if not len(latitude):
            return self.grid.crs, latitude, longitude
        middle = (latitude.min() + latitude.max()) / 2
        turn = wrap_degrees(longitude - longitude[0])  # the antimeridian may lie between them
        east = longitude[0] + (turn.min() + turn.max()) / 2
        scale = math.cos(math.radians(middle)) * RADIUS
        return (
            equirectangular(float(middle), float(wrap_degrees(east))),
            scale * np.radians(longitude[0] + turn - east),
            RADIUS * np.radians(latitude - middle),
        )

    def _mosaic(self, crs: str, x: NDArray[np.float64], y: NDArray[np.float64], level: int) -> _Mosaic:
        """Render the rectangle that contains the images, and the own squares, of cells with centres x, y."""
        metres = self.lods_m[level]
        reach = max(self.image_size / 2, self.grid.cell_size / metres / 2) + MARGIN  # pixels
        west, north = x.min() - reach * metres, y.max() + reach * metres
        shape = (math.ceil(np.ptp(y) / metres + 2 * reach), math.ceil(np.ptp(x) / metres + 2 * reach))
        image, covered = np.empty((*shape, 3), np.uint8), np.empty(shape, bool)
        self._render(image, covered, crs, west, north, metres)
        return _Mosaic(image, covered, np.stack([(north - y) / metres, (x - west) / metres], 1))

    def _render(
        self,
        image: NDArray[np.uint8],
        covered: NDArray[np.bool_] | None,
        crs: str,
        west: float,
        north: float,
        metres: float,
    ) -> None:
        """Render a rectangle into (rows, cols, 3), part by part, and where there is imagery into (rows, cols)."""
        for top in range(0, image.shape[0], PART):
            for left in range(0, image.shape[1], PART):
                rows, cols = min(PART, image.shape[0] - top), min(PART, image.shape[1] - left)
                part_west, part_north = west + left * metres, north - top * metres
                bounds = Bounds(part_west, part_north - rows * metres, part_west + cols * metres, part_north)
                part = slice(top, top + rows), slice(left, left + cols)
                image[part], where = self.imagery.render(bounds, (rows, cols), crs)
                if covered is not None:
                    covered[part] = where

    def _coverage(self, mosaic: _Mosaic, level: int) -> NDArray[np.float32]:
        """(n,) share of the pixels of each cell's own square that have imagery."""
        half = self.grid.cell_size / self.lods_m[level] / 2
        if mosaic.covered.all():
            return np.ones(len(mosaic.centers), np.float32)
        low = np.rint(mosaic.centers - half).astype(int)
        high = np.maximum(low + 1, np.rint(mosaic.centers + half).astype(int))
        return _mean_in(mosaic.covered, low, high)

    def _empty(self, mosaic: _Mosaic, corners: NDArray[np.float64]) -> NDArray[np.float32]:
        """(n,) share of the pixels of each image that have no imagery."""
        low = np.rint(corners).astype(int)
        return 1 - _mean_in(mosaic.covered, low, low + self.image_size)

    # Turned cells anywhere

    def hold(self, folder: Path, *, progress: bool = False) -> bool:
        """Keep mosaics of the whole area, which `at` and `covered` then use instead of reading imagery for each cell.

        Only areas of the size of a town or a city are held: mosaics of all levels of at most `HELD_BYTES`, in which a
        frame of the area's centre is off by at most `HELD_ERROR`. The same area is always held or not, so that an
        interrupted training goes on as it began.

        Args:
            folder: where to put the file that keeps a mosaic if there is no room in memory.
            progress: whether to show a progress bar.

        Returns:
            Whether the area is held.

        Raises:
            ImageryError: the imagery cannot be read.
        """
        bounds = self.imagery.area.bounds
        latitude, longitude = self.imagery.area.unproject(
            (bounds.west + bounds.east) / 2, (bounds.south + bounds.north) / 2
        )
        crs, x, y = self.frame_at(float(latitude), float(longitude))
        width, height = bounds.east - bounds.west, bounds.north - bounds.south
        off = height / 2 * abs(math.tan(math.radians(float(latitude)))) / RADIUS
        if isinstance(self.grid, BandGrid) and off > HELD_ERROR:
            return False
        # A sample lies up to a cell from a photo, and its corner half a diagonal further
        reach = [self.grid.cell_size + (math.sqrt(0.5) * self.image_size + MARGIN + 1) * m for m in self.lods_m]
        shapes = [
            (math.ceil((height + 2 * more) / metres), math.ceil((width + 2 * more) / metres))
            for metres, more in zip(self.lods_m, reach, strict=True)
        ]
        if sum(3 * rows * cols for rows, cols in shapes) > HELD_BYTES:
            return False
        levels, finest = list[HeldLevel](), int(np.argmin(self.lods_m))
        covered = np.zeros(shapes[finest], bool)
        bar = tqdm(list(zip(self.lods_m, shapes, strict=True)), unit="level", desc="mosaics", disable=not progress)
        for level, (metres, shape) in enumerate(bar):
            west, north = x - shape[1] / 2 * metres, y + shape[0] / 2 * metres
            image = allocate((*shape, 3), torch.uint8, torch.device("cpu"), folder)
            self._render(image.numpy(), covered if level == finest else None, crs, west, north, metres)
            levels.append(HeldLevel(image, metres, west, north))
        to_crs = Transformer.from_crs("EPSG:4326", crs, always_xy=True)
        self._held = HeldMosaics(to_crs, levels, finest, covered)
        return True

    def at(
        self, latitude: ArrayLike, longitude: ArrayLike, rotation_deg: ArrayLike = 0.0, *, threads: int = 1
    ) -> NDArray[np.uint8]:
        """Render cells with given centres and rotations, for training.

        Args:
            latitude: (n,) degrees.
            longitude: (n,) degrees.
            rotation_deg: (n,) direction that is up in the images, degrees clockwise from north.
            threads: number of threads.

        Returns:
            (n, level, S, S, 3) uint8.

        Raises:
            ImageryError: the imagery cannot be read.
        """
        latitude, longitude, rotation = np.broadcast_arrays(
            *(np.atleast_1d(np.asarray(each, float)) for each in (latitude, longitude, rotation_deg))
        )
        images = np.empty((len(latitude), len(self.lods_m), self.image_size, self.image_size, 3), np.uint8)
        positions = zip(latitude.tolist(), longitude.tolist(), rotation.tolist(), strict=True)
        for target, image in zip(images, _map(lambda each: self._at(*each), positions, threads), strict=True):
            target[:] = image
        return images

    def covered(self, latitude: ArrayLike, longitude: ArrayLike, *, threads: int = 1) -> NDArray[np.bool_]:
        """Return (n,) whether there is imagery in the square of a cell around each position, degrees (WGS 84).

        Raises:
            ImageryError: the imagery cannot be read.
        """
        positions = zip(np.atleast_1d(latitude), np.atleast_1d(longitude), strict=True)

        half = self.grid.cell_size / 2

        def look(position: tuple[float, float]) -> bool:
            if self._held is not None:
                return self._held.covers(*position, half)
            crs, x, y = self.frame_at(*position)
            return bool(self.imagery.render(Bounds(x - half, y - half, x + half, y + half), THUMB, crs)[1].any())

        if self._held is not None:
            threads = 1  # a look into memory
        looked = tqdm(_map(look, positions, threads), total=np.size(latitude), unit="cell", desc="imagery", delay=5)
        return np.array(list(looked), bool)

    def _at(self, latitude: float, longitude: float, rotation_deg: float) -> NDArray[np.uint8]:
        """(level, S, S, 3) uint8."""
        size = self.image_size
        if self._held is not None and (cut := self._held.cut(latitude, longitude, rotation_deg, size)) is not None:
            return cut
        crs, x, y = self.frame_at(latitude, longitude)
        angle = math.radians(rotation_deg % 360)
        sine, cosine = math.sin(angle), math.cos(angle)
        side = size if angle == 0 else 2 * math.ceil(size / 2 * (abs(sine) + abs(cosine))) + 2 * MARGIN
        grid = turned_offsets(size, angle) * 2 / side
        images = np.empty((len(self.lods_m), size, size, 3), np.uint8)
        for into, metres in zip(images, self.lods_m, strict=True):
            half = side * metres / 2
            image, _ = self.imagery.render(Bounds(x - half, y - half, x + half, y + half), side, crs)
            into[:] = sample_turned(torch.from_numpy(image), grid) if angle else image
        return images

    def frame_at(self, latitude: float, longitude: float) -> tuple[str, float, float]:
        """Return a CRS in which cells near a position are squares parallel to its axes, and x, y of the position."""
        if isinstance(self.grid, BandGrid):
            return equirectangular(latitude, longitude), 0.0, 0.0
        x, y = self.grid.project(latitude, longitude)
        return self.grid.crs, float(x), float(y)


class _Mosaic(NamedTuple):
    """A rendered rectangle.

    Attributes:
        image: (rows, cols, 3) uint8.
        covered: (rows, cols) where there is imagery.
        centers: (n, 2) row and column of the centres of cells, pixels from the north-west corner, fractional.
    """

    image: NDArray[np.uint8]
    covered: NDArray[np.bool_]
    centers: NDArray[np.float64]


def _map(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """Like `map`, in threads if there are several: rasters remain open in the calling thread, not in brief ones."""
    return map(function, items) if threads == 1 else prefetch(function, items, threads)


def equirectangular(latitude: float, longitude: float) -> str:
    """CRS with true scale on a parallel of the sphere: x = R cos(latitude) times the difference of longitudes, metres.

    At y metres off that parallel, x is too long by a share of y tan(latitude) / R: 0.008 % at 480 m and 45 degrees.
    """
    return (
        f"+proj=eqc +lat_ts={latitude:.12g} +lat_0={latitude:.12g} +lon_0={longitude:.12g} +R={RADIUS:.0f} +units=m "
        "+no_defs +type=crs"
    )


def _mean_in(mask: NDArray[np.bool_], low: NDArray[np.int64], high: NDArray[np.int64]) -> NDArray[np.float32]:
    """(n,) mean of a mask in rectangles with corners (n, 2), row and column."""
    boxes = zip(low.tolist(), high.tolist(), strict=True)
    return np.array([mask[y:to_y, x:to_x].mean() for (y, x), (to_y, to_x) in boxes], np.float32)
