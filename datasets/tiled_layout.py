"""The disk layout of the `tiledwebmaps` package as one raster: a GDAL VRT over its full-resolution tiles.

The benchmark's imagery comes so: `layout.yaml` beside `{zoom}/{x}/{y}.jpg`. Every tile is north up and square; tile
(x, y) of zoom z covers `tile_shape_crs / 2^z` units of the CRS along the two `tile_axes`, from `origin_crs` on.
tests/test_tiled_layout.py checks it against the package itself.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image
from pyproj import CRS
from pyproj.exceptions import CRSError

from jzi.errors import ImageryError
from jzi.store.files import write_whole

_COLORS = ("Red", "Green", "Blue")

#: What `preset: XYZ` stands for: web map tiles.
_XYZ = {
    "crs": "EPSG:3857",
    "tile_axes": ["east", "south"],
    "tile_shape_px": [256, 256],
    "tile_shape_crs": [40075016.68557849] * 2,
    "origin_crs": [-20037508.342789244] * 2,
    "size_crs": [40075016.68557849] * 2,
}


@dataclass(frozen=True)
class TiledLayout:
    """A `layout.yaml`.

    Attributes:
        folder: where it lies.
        crs: of the tiles.
        axes: the compass directions in which x and y grow.
        pixels: side of a tile, pixels.
        side: side of a tile of zoom 0, CRS units.
        origin: of the tiles, in the order of the CRS's axes.
        size: of the whole, in the order of the CRS's axes; zeros where it is not said.
        zoom: of the full-resolution tiles.
        path: of a tile's file, with {zoom}, {x} and {y}.
    """

    folder: Path
    crs: CRS
    axes: tuple[str, ...]
    pixels: int
    side: float
    origin: tuple[float, ...]
    size: tuple[float, ...]
    zoom: int
    path: str

    @classmethod
    def read(cls, file: Path) -> TiledLayout:
        """Read a layout.yaml.

        Raises:
            ImageryError: it cannot be read, or is of a kind that is not known.
        """
        try:
            values = yaml.safe_load(file.read_text())
            if values.get("preset") == "XYZ":
                values = {**values, **_XYZ}
            pixels, side = values["tile_shape_px"], values.get("tile_shape_crs", [1.0, 1.0])
            layout = cls(
                folder=file.parent,
                crs=CRS.from_user_input(values["crs"]),
                axes=tuple(values.get("tile_axes", ["east", "south"])),
                pixels=int(pixels[0]),
                side=float(side[0]),
                origin=tuple(map(float, values.get("origin_crs", [0.0, 0.0]))),
                size=tuple(map(float, values.get("size_crs") or [0.0, 0.0])),
                zoom=int(values.get("max_zoom", 0)),
                path=values.get("path", "{zoom}/{x}/{y}.jpg"),
            )
        except FileNotFoundError:
            raise ImageryError(f"there is no {file}") from None
        except (OSError, yaml.YAMLError, AttributeError, LookupError, TypeError, ValueError, CRSError) as error:
            raise ImageryError(f"{file} is no layout of tiledwebmaps: {type(error).__name__} {error}") from error
        if pixels[0] != pixels[1] or side[0] != side[1] or not set(layout.axes) <= {"east", "west", "north", "south"}:
            raise ImageryError(f"{file} has tiles that are not square, or axes that are no compass directions")
        return layout

    def corner(self, x: int, y: int) -> tuple[float, float]:
        """West and north edge of tile (x, y) of the full resolution, CRS units."""
        side = self.side / 2.0**self.zoom
        ends = np.array([self._to_crs((x, y), side), self._to_crs((x + 1, y + 1), side)])
        east, north = self._crs_axis("east", "west"), self._crs_axis("north", "south")
        return float(ends[:, east].min()), float(ends[:, north].max())

    def _crs_axis(self, *directions: str) -> int:
        """Which of the CRS's axes runs that way."""
        return next(index for index, axis in enumerate(self.crs.axis_info) if axis.direction.lower() in directions)

    def _to_crs(self, tile: tuple[int, int], side: float) -> NDArray[np.float64]:
        """Coordinates of a tile's corner, in the order of the CRS's axes, as the package computes them."""
        opposite = {"east": "west", "west": "east", "north": "south", "south": "north"}
        coordinates = np.array(self.origin)
        for index, direction in enumerate(self.axes):
            axis = self._crs_axis(direction, opposite[direction])
            backwards = self.crs.axis_info[axis].direction.lower() != direction
            coordinates[axis] += (-1 if backwards else 1) * tile[index] * side
            if backwards:  # it counts from the far end; the package adds that end by the tile's axis, not the CRS's
                coordinates[index] += self.size[axis]
        return coordinates

    def tiles(self) -> dict[tuple[int, int], Path]:
        """Every full-resolution tile that is there."""
        pattern = re.escape(self.path).replace(r"\{zoom\}", str(self.zoom))
        pattern = pattern.replace(r"\{x\}", r"(?P<x>-?\d+)").replace(r"\{y\}", r"(?P<y>-?\d+)")
        glob = self.path.replace("{zoom}", str(self.zoom)).replace("{x}", "*").replace("{y}", "*")
        found = {}
        for file in sorted(self.folder.glob(glob)):
            if match := re.fullmatch(pattern, file.relative_to(self.folder).as_posix()):
                found[int(match["x"]), int(match["y"])] = file
        return found

    def write_vrt(self, vrt: Path) -> int:
        """Write the VRT over all full-resolution tiles; where one is missing there is no data.

        Returns:
            The number of tiles.

        Raises:
            ImageryError: there is no tile, or the first cannot be read.
        """
        tiles = self.tiles()
        if not tiles:
            packed = (self.folder / "images.dat").exists()
            hint = "images.dat, the package's packed form, is not read" if packed else "is the copy whole?"
            raise ImageryError(f"{self.folder} has no tile of zoom {self.zoom} at {self.path}: {hint}")
        some = next(iter(tiles.values()))
        try:
            with Image.open(some) as first:  # rasterio would warn that it has no place of its own
                bands, pixels = len(first.getbands()), first.width
        except (OSError, Image.DecompressionBombError) as error:
            raise ImageryError(f"{some} cannot be read: {error}") from error
        if pixels != self.pixels:
            raise ImageryError(f"{some} is {pixels} pixels wide, and layout.yaml says {self.pixels}")
        corners = np.array([self.corner(*tile) for tile in tiles])  # (tile, 2) west and north
        west, north = corners[:, 0].min(), corners[:, 1].max()
        resolution = self.side / 2.0**self.zoom / self.pixels
        cols = np.rint((corners[:, 0] - west) / resolution).astype(int)
        rows = np.rint((north - corners[:, 1]) / resolution).astype(int)
        width, height = cols.max() + self.pixels, rows.max() + self.pixels

        root = ElementTree.Element("VRTDataset", rasterXSize=str(width), rasterYSize=str(height))
        ElementTree.SubElement(root, "SRS").text = self.crs.to_wkt()  # GDAL takes x, y for east, north
        transform = (west, resolution, 0.0, north, 0.0, -resolution)
        ElementTree.SubElement(root, "GeoTransform").text = ", ".join(repr(float(value)) for value in transform)
        mask = ElementTree.SubElement(ElementTree.SubElement(root, "MaskBand"), "VRTRasterBand", dataType="Byte")
        bands_xml = [(mask, "mask,1")]
        for band in range(1, 4):
            element = ElementTree.SubElement(root, "VRTRasterBand", dataType="Byte", band=str(band))
            ElementTree.SubElement(element, "ColorInterp").text = _COLORS[band - 1]
            bands_xml.append((element, str(min(band, bands))))
        for file, col, row in zip(tiles.values(), cols, rows, strict=True):
            for element, band_text in bands_xml:
                self._add_source(element, band_text, os.path.relpath(file, vrt.parent), int(col), int(row))
        write_whole(vrt, ElementTree.ElementTree(root).write)
        return len(tiles)

    def _add_source(self, band: ElementTree.Element, source_band: str, name: str, col: int, row: int) -> None:
        side = str(self.pixels)
        source = ElementTree.SubElement(band, "SimpleSource")
        ElementTree.SubElement(source, "SourceFilename", relativeToVRT="1").text = name
        ElementTree.SubElement(source, "SourceBand").text = source_band
        size = {"RasterXSize": side, "RasterYSize": side, "DataType": "Byte", "BlockXSize": side, "BlockYSize": "1"}
        ElementTree.SubElement(source, "SourceProperties", size)  # so that GDAL need not open every tile to begin with
        ElementTree.SubElement(source, "SrcRect", xOff="0", yOff="0", xSize=side, ySize=side)
        ElementTree.SubElement(source, "DstRect", xOff=str(col), yOff=str(row), xSize=side, ySize=side)
