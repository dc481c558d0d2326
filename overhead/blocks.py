"""Blocks of a raster that is being downloaded: kept in a folder, each written whole, so that a killed run resumes."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.io import MemoryFile
from rasterio.windows import Window

from jzi.errors import ImageryError, first_line
from jzi.overhead.area import Area
from jzi.overhead.grid import Grid
from jzi.overhead.layer import Layer, VrtSource
from jzi.store.disk.files import remove_leftovers, write_whole

#: Requests along a side of a block, and the side of blocks of files. Up to 16 requests are lost to a kill; more would
#: keep more connections busy, which services do not want.
_REQUESTS, _FILE_SIDE = 4, 2048

#: Number of blocks from which larger ones are made, since every block of the result looks at all: 2 s for 10 000.
_MANY = 10_000

#: Largest side of a block: 4096 x 4096 pixels of three bands of 16 bits, with working copies, take 250 MB.
_MAX_SIDE = 4096

#: Most blocks: 390 km x 390 km at 0.3 m.
MAX_BLOCKS = 100_000

#: What is known of a block: all of it is imagery, some of it, or none.
State = Literal["full", "part", "none"]


@dataclass(frozen=True)
class Block:
    """A block by its row and column, and its window in the grid."""

    row: int
    col: int
    window: Window


class Blocks:
    """The blocks of a layer that lie in an area.

    Args:
        folder: where they are kept.
        layer: the layer.
        area: the area, whose polygons leave blocks out; None for all.

    Attributes:
        side: of a block, pixels.
        all: the blocks in the area, row by row.
        states: of the blocks that are there, by row and column.

    Raises:
        ImageryError: there are too many.
    """

    def __init__(self, folder: Path, layer: Layer, area: Area | None) -> None:
        self.folder, self.layer, self.grid = folder, layer, layer.grid
        side = _REQUESTS * layer.tile if layer.tile else _FILE_SIDE
        while _count(self.grid, side) > _MANY and 2 * side <= _MAX_SIDE:
            side *= 2
        if _count(self.grid, side) > MAX_BLOCKS:
            raise ImageryError(
                f"the area has {self.grid.width:,} x {self.grid.height:,} pixels, more than a file should hold: give "
                "smaller areas one by one, or coarser pixels"
            )
        self.side = side
        self.all = [
            block for block in _blocks(self.grid, side)
            if area is None or area.touches(self.grid.window_bounds(block.window), self.grid.crs)
        ]  # fmt: skip
        geometry = area.geometry.wkt if area and area.geometry is not None else ""
        request = [layer.fingerprint, repr(self.grid), layer.bands, layer.dtype, side, geometry]
        self.digest = hashlib.sha256(json.dumps(request).encode()).hexdigest()
        self.states: dict[tuple[int, int], State] = {}

    def open(self, force: bool) -> None:
        """Find what is there, and make the folder.

        Args:
            force: discard the blocks of another request.

        Raises:
            ImageryError: the folder holds blocks of another request.
        """
        marker = self.folder / "request"
        if self.folder.exists() and (not marker.exists() or marker.read_text("utf-8").strip() != self.digest):
            if not force and any(self.folder.glob("*.tif")):
                raise ImageryError(
                    f"{self.folder} holds blocks of another request for the same file: repeat that one to complete it, "
                    "or pass --force to discard them"
                )
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.folder)
        if not marker.exists():
            write_whole(marker, lambda file: file.write_text(self.digest + "\n", encoding="utf-8"))
        for file in self.folder.iterdir():
            if match := re.fullmatch(r"(\d+)_(\d+)\.(full|part|none)(?:\.tif)?", file.name):
                self.states[int(match[1]), int(match[2])] = match[3]  # type: ignore[assignment]

    def missing(self) -> list[Block]:
        """The blocks that are not there yet."""
        return [block for block in self.all if (block.row, block.col) not in self.states]

    def requests(self, block: Block) -> int:
        """Number of requests of tiles that a block takes; 0 for files."""
        tile = self.layer.tile
        if not tile:
            return 0
        window = block.window
        left, top = self.grid.col + window.col_off, self.grid.row + window.row_off
        across = -(-(left + window.width) // tile) - left // tile
        down = -(-(top + window.height) // tile) - top // tile
        return int(across * down)

    def transform(self, block: Block) -> Affine:
        """Pixel of a block to x, y of the grid's CRS."""
        return self.grid.transform @ Affine.translation(block.window.col_off, block.window.row_off)

    def write(self, block: Block, data: NDArray[Any], valid: NDArray[np.uint8]) -> None:
        """Keep a block.

        Args:
            block: which.
            data: (band, row, column) pixels.
            valid: (row, column) 0 or 255.

        Raises:
            OSError: it cannot be written; the disk is full, for example.
        """
        state = state_of(valid)
        name = f"{block.row}_{block.col}.{state}"
        if state == "none":
            write_whole(self.folder / name, Path.touch)
        else:
            content = encode_block(data, valid, self.transform(block))
            write_whole(self.folder / f"{name}.tif", lambda file: file.write_bytes(content))
        self.states[block.row, block.col] = state

    def sources(self) -> list[VrtSource]:
        """The blocks with imagery, for a VRT of the grid; the band after the last holds their validity."""
        bands = tuple(range(1, self.layer.bands + 1))
        listed = []
        for block in self.all:
            state = self.states[block.row, block.col]
            if state == "none":
                continue
            window = block.window
            rows, cols = int(window.height), int(window.width)
            listed.append(VrtSource(
                str(self.folder / f"{block.row}_{block.col}.{state}.tif"), bands, state == "part", (rows, cols),
                (min(512, rows), min(512, cols)), (0, 0, cols, rows), (window.col_off, window.row_off, cols, rows),
            ))  # fmt: skip
        return listed


def state_of(valid: NDArray[np.uint8]) -> State:
    """What a block's validity amounts to."""
    if valid.all():
        return "full"
    return "part" if valid.any() else "none"


def encode_block(data: NDArray[Any], valid: NDArray[np.uint8] | None, transform: Affine, **options: Any) -> bytes:
    """A GeoTIFF of a block, without loss unless `options` say otherwise.

    Args:
        data: (band, row, column) pixels.
        valid: (row, column) 0 or 255, which becomes a further band; None for none.
        transform: pixel to x, y.
        options: of GDAL's GeoTIFF driver.

    Raises:
        ImageryError: GDAL cannot.
    """
    stacked = data if valid is None else np.concatenate([data, valid[None].astype(data.dtype)])
    chosen = {"compress": "deflate", "zlevel": 1, "tiled": True, "blockxsize": 512, "blockysize": 512, **options}
    with MemoryFile() as file:
        try:
            with file.open(driver="GTiff", count=len(stacked), height=stacked.shape[1], width=stacked.shape[2],
                           dtype=stacked.dtype, transform=transform, **chosen) as target:  # fmt: skip
                target.write(stacked)
        except OSError as error:
            raise ImageryError(f"a block cannot be compressed: {first_line(error)}") from error
        return bytes(file.getbuffer())


def _blocks(grid: Grid, side: int) -> Iterator[Block]:
    """Blocks whose edges are edges of the source's tiles."""
    for row in range(grid.row // side, -(-(grid.row + grid.height) // side)):
        for col in range(grid.col // side, -(-(grid.col + grid.width) // side)):
            left, top = max(0, col * side - grid.col), max(0, row * side - grid.row)
            right = min(grid.width, (col + 1) * side - grid.col)
            bottom = min(grid.height, (row + 1) * side - grid.row)
            yield Block(row, col, Window(left, top, right - left, bottom - top))


def _count(grid: Grid, side: int) -> int:
    return (-(-grid.width // side) + 1) * (-(-grid.height // side) + 1)
