"""Overhead imagery as tiles in the layout of the `tiledwebmaps` package, which `jzi.datasets.tiled_layout` reads.

`layout.yaml` beside `{zoom}/{x}/{y}.jpg`. Tiles of the finest zoom are rendered, those of coarser ones averaged from
four. Tiles without imagery are not there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from jzi.encode.rasters.imagery import BACKGROUND, Imagery
from jzi.store.disk.files import write_whole
from jzi.store.geometry.cell_grid import Bounds
from jzi.store.geometry.pyramid import Pyramid

#: Side of a tile, pixels: a thousand tiles for 10 km at the resolution below, and few wasted where one is read in part.
PIXELS = 512

#: Side of the masks by which photos without imagery are found, pixels: each is a few metres.
MASK = 128

#: Least pixels across the finest tile that an encoder sees, where imagery has them: twice the input of the paper's.
FINEST = 768

#: Of tiles as JPEG: twice that of `jzi dataset`'s photos in bytes, with artefacts that no one sees at 1:1.
QUALITY = 92

SUBFOLDER = "{zoom}/{x}/{y}.jpg"


@dataclass(frozen=True)
class TileGrid:
    """Square tiles over an area, which the north-west corner of zoom 0 shares with it.

    Attributes:
        area: the area.
        resolution: metres per pixel of the finest zoom.
        zoom: the finest zoom; one tile covers the area at zoom 0.
        count: tiles along a side of the area at the finest zoom.
    """

    area: Pyramid
    resolution: float
    zoom: int
    count: int

    @classmethod
    def over(cls, area: Pyramid, imagery: Imagery) -> TileGrid:
        """Tiles at the resolution of the imagery, but none that no encoder makes use of."""
        finest = area.footprint(area.levels - 1)
        resolution = max(finest / FINEST, native_resolution(area, imagery))
        count = max(1, math.ceil(area.size / (resolution * PIXELS) - 1e-9))
        return cls(area, resolution, math.ceil(math.log2(count)), count)

    def side(self, zoom: int) -> float:
        """Side of a tile of a zoom, metres."""
        return self.resolution * PIXELS * 2.0 ** (self.zoom - zoom)

    @property
    def south(self) -> float:
        """Southern edge of the one tile of zoom 0: y is counted from it."""
        return self.area.north - self.side(0)

    def bounds(self, x: int, y: int) -> Bounds:
        """Rectangle of a tile of the finest zoom, metres in the area's CRS."""
        side = self.side(self.zoom)
        west, south = self.area.west + x * side, self.south + y * side
        return Bounds(west, south, west + side, south + side)

    def layout(self) -> str:
        """The contents of layout.yaml."""
        return yaml.safe_dump(
            {
                "crs": self.area.crs,
                "tile_shape_px": [PIXELS, PIXELS],
                "tile_shape_crs": [self.side(0)] * 2,
                "tile_axes": ["east", "north"],
                "origin_crs": [self.area.west, self.south],
                "size_crs": [self.side(0)] * 2,
                "min_zoom": 0,
                "max_zoom": self.zoom,
                "path": SUBFOLDER,
            },
            sort_keys=False,
        )


def native_resolution(area: Pyramid, imagery: Imagery) -> float:
    """Metres per pixel of the finest of the rasters, near the middle of the part of the area that each covers."""
    found = []
    for raster, extent in zip(imagery.rasters, imagery.extents, strict=True):
        bounds = area.bounds
        x = (max(extent.west, bounds.west) + min(extent.east, bounds.east)) / 2
        y = (max(extent.south, bounds.south) + min(extent.north, bounds.north)) / 2
        side = area.footprint(area.levels)
        pixels = raster.pixels_across(area.crs, Bounds(x - side / 2, y - side / 2, x + side / 2, y + side / 2))
        if pixels:
            found.append(side / pixels)
    return min(found, default=0.0)


def has_imagery(
    grid: TileGrid, imagery: Imagery, latitude: NDArray[np.float64], longitude: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """(n,) whether there is imagery at positions of the area, to within `PIXELS` / `MASK` pixels of the finest zoom."""
    x, y = grid.area.project(latitude, longitude)
    side = grid.side(grid.zoom)
    across, up = (x - grid.area.west) / side, (y - grid.south) / side  # in tiles
    tiles, tile = np.unique(np.stack([np.floor(across), np.floor(up)], -1).astype(int), axis=0, return_inverse=True)
    tile, found = tile.ravel(), np.zeros(len(x), bool)
    for number, (col, row) in enumerate(tqdm(tiles.tolist(), unit="tile", desc="coverage", delay=2)):
        covered = imagery.render(grid.bounds(col, row), MASK)[1]
        inside = np.flatnonzero(tile == number)
        pixels = (np.array([row + 1 - up[inside], across[inside] - col]) * MASK).astype(int).clip(0, MASK - 1)
        found[inside] = covered[pixels[0], pixels[1]]
    return found


def tile_file(folder: Path, zoom: int, x: int, y: int) -> Path:
    """The file of a tile."""
    return folder / SUBFOLDER.format(zoom=zoom, x=x, y=y)


def write_tiles(grid: TileGrid, imagery: Imagery, folder: Path) -> int:
    """Write the tiles of all zooms, and layout.yaml last; tiles that are there are kept.

    Args:
        grid: the tiles.
        imagery: the imagery, of the grid's area.
        folder: the folder of layout.yaml.

    Returns:
        The number of tiles of the finest zoom.

    Raises:
        ImageryError: a raster cannot be read.
        OSError: a tile cannot be written.
    """
    zoom, written = grid.zoom, 0
    present: set[tuple[int, int]] = set()
    rows = range(2**zoom - grid.count, 2**zoom)  # the northern ones
    with tqdm(total=grid.count**2, unit="tile", desc="imagery", delay=2) as progress:
        for y in reversed(rows):
            for x in range(grid.count):
                file = tile_file(folder, zoom, x, y)
                if not file.exists():
                    image, covered = imagery.render(grid.bounds(x, y), PIXELS)
                    if covered.any():
                        save_jpeg(Image.fromarray(image), file)
                        present.add((x, y))
                else:
                    present.add((x, y))
                progress.update()
    written = len(present)
    while zoom:
        zoom -= 1
        parents = sorted({(x // 2, y // 2) for x, y in present})
        for x, y in parents:
            file = tile_file(folder, zoom, x, y)
            if not file.exists():
                save_jpeg(_averaged(folder, zoom, x, y), file)
        present = set(parents)
    text = grid.layout()
    write_whole(folder / "layout.yaml", lambda path: path.write_text(text, encoding="utf-8"))
    return written


def _averaged(folder: Path, zoom: int, x: int, y: int) -> Image.Image:
    """A tile from the four of the next zoom; y runs north, rows of the picture south."""
    canvas = Image.new("RGB", (2 * PIXELS, 2 * PIXELS), BACKGROUND)
    for right in (0, 1):
        for up in (0, 1):
            child = tile_file(folder, zoom + 1, 2 * x + right, 2 * y + up)
            if child.exists():
                with Image.open(child, formats=("JPEG",)) as image:
                    canvas.paste(image, (right * PIXELS, (1 - up) * PIXELS))
    return canvas.resize((PIXELS, PIXELS), Image.Resampling.BOX)


def save_jpeg(image: Image.Image, file: Path) -> None:
    """Write a JPEG atomically.

    Raises:
        OSError: it cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, lambda path: image.save(path, format="JPEG", quality=QUALITY))
