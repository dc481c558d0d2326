"""Read the disk layout of the `tiledwebmaps` package: build a GDAL VRT over its full-resolution tiles.

The imagery of the just-zoom-in data set has this layout: `layout.yaml` beside `{zoom}/{x}/{y}.jpg`. Tiles are square
and north-up; tile (x, y) of zoom z covers `tile_shape_crs / 2^z` CRS units along the two `tile_axes`, counted from
`origin_crs`. tests/test_tiled_layout.py compares the georeferencing with that of the package.
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
from pyproj import CRS
from pyproj.exceptions import CRSError

from jzi.errors import ImageryError, PhotoError, first_line
from jzi.store.disk.files import write_whole
from jzi.store.photos.photo_file import open_image, open_regular_file

#: Most bytes of a layout.yaml.
MAX_BYTES = 2**20

_COLORS = ("Red", "Green", "Blue")

#: Values of `preset: XYZ`, web map tiles.
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
    """The contents of a `layout.yaml`.

    Attributes:
        folder: folder of the file.
        crs: CRS of the tiles.
        axes: compass directions in which x and y increase.
        pixels: side of a tile, pixels.
        side: side of a tile of zoom 0, CRS units.
        origin: coordinates of the origin of the tiles, in the order of the CRS's axes.
        size: extent of the whole map, in the order of the CRS's axes; zeros if the file does not give it.
        zoom: zoom of the full-resolution tiles.
        path: path of a tile's file relative to `folder`, with placeholders {zoom}, {x} and {y}.
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
            ImageryError: the file cannot be read, is not a layout, or has tiles that are not square and north-up.
        """
        try:
            with open_regular_file(file) as opened:
                values = yaml.safe_load(opened.read(MAX_BYTES).decode())
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
            raise ImageryError(f"{file} does not exist; pass the layout.yaml of a tiledwebmaps folder") from None
        except (
            OSError,
            yaml.YAMLError,
            AttributeError,
            LookupError,
            TypeError,
            ValueError,
            OverflowError,
            RecursionError,
            CRSError,
        ) as error:  # fmt: skip
            reason = first_line(error)[:200]
            raise ImageryError(f"{file} is not a tiledwebmaps layout: {type(error).__name__} {reason}") from error
        if pixels[0] != pixels[1] or side[0] != side[1] or not set(layout.axes) <= {"east", "west", "north", "south"}:
            raise ImageryError(
                f"{file} has tiles of {pixels} pixels and {side} CRS units along {layout.axes}; "
                "only square tiles along two compass directions are supported"
            )
        layout._check(file)
        return layout

    def _check(self, file: Path) -> None:
        numbers = [self.side, *self.origin, *self.size]
        directions = {axis.direction.lower() for axis in self.crs.axis_info[:2]}
        along = [{"east", "west"} & set(self.axes), {"north", "south"} & set(self.axes)]
        along_crs = [{"east", "west"} & directions, {"north", "south"} & directions]
        if not (
            0 < self.pixels <= 2**14 and 0 <= self.zoom <= 30 and self.side > 0 and np.isfinite(numbers).all()
        ) or not (len(self.axes) == len(self.origin) == len(self.size) == 2 and all(along) and all(along_crs)):
            raise ImageryError(f"{file} is not a layout of tiles on a plane: check its sizes, axes, zoom and CRS")
        if not isinstance(self.path, str) or Path(self.path).is_absolute() or ".." in Path(self.path).parts:
            raise ImageryError(f"{file} has its tiles at {self.path!r}: they must lie in its folder")

    def corner(self, x: int, y: int) -> tuple[float, float]:
        """Return the west and north edges of full-resolution tile (x, y), CRS units."""
        side = self.side / 2.0**self.zoom
        ends = np.array([self._to_crs((x, y), side), self._to_crs((x + 1, y + 1), side)])
        east, north = self._crs_axis("east", "west"), self._crs_axis("north", "south")
        return float(ends[:, east].min()), float(ends[:, north].max())

    def _crs_axis(self, *directions: str) -> int:
        """Return the index of the CRS axis that runs in one of the directions."""
        return next(index for index, axis in enumerate(self.crs.axis_info) if axis.direction.lower() in directions)

    def _to_crs(self, tile: tuple[int, int], side: float) -> NDArray[np.float64]:
        """Return the coordinates of a tile's corner, in the order of the CRS's axes, as the package computes them."""
        opposite = {"east": "west", "west": "east", "north": "south", "south": "north"}
        coordinates = np.array(self.origin)
        for index, direction in enumerate(self.axes):
            axis = self._crs_axis(direction, opposite[direction])
            backwards = self.crs.axis_info[axis].direction.lower() != direction
            coordinates[axis] += (-1 if backwards else 1) * tile[index] * side
            if backwards:  # counted from the far end, which the package adds to the tile's axis rather than the CRS's
                coordinates[index] += self.size[axis]
        return coordinates

    def tiles(self) -> dict[tuple[int, int], Path]:
        """Return the files of the full-resolution tiles on disk by (x, y), sorted by path."""
        pattern = re.escape(self.path).replace(r"\{zoom\}", str(self.zoom))
        pattern = pattern.replace(r"\{x\}", r"(?P<x>-?\d+)").replace(r"\{y\}", r"(?P<y>-?\d+)")
        glob = self.path.replace("{zoom}", str(self.zoom)).replace("{x}", "*").replace("{y}", "*")
        tiles = {}
        try:
            files = sorted(self.folder.glob(glob))
        except (ValueError, NotImplementedError) as error:
            raise ImageryError(f"{self.folder} has its tiles at {self.path!r}: {first_line(error)}") from error
        for file in files:
            if match := re.fullmatch(pattern, file.relative_to(self.folder).as_posix()):
                tiles[int(match["x"]), int(match["y"])] = file
        return tiles

    def write_vrt(self, vrt: Path) -> int:
        """Write a VRT over all full-resolution tiles; missing tiles are nodata.

        Args:
            vrt: file to write; it refers to the tiles by relative paths.

        Returns:
            The number of tiles.

        Raises:
            ImageryError: there are no tiles, or the first one cannot be read or has another size than the layout's.
        """
        tiles = self.tiles()
        if not tiles:
            packed = (self.folder / "images.dat").exists()
            hint = "images.dat, the package's packed form, is not supported" if packed else "check that it is complete"
            raise ImageryError(f"{self.folder} has no tile of zoom {self.zoom} at {self.path}: {hint}")
        first_tile = next(iter(tiles.values()))
        try:
            with open_image(first_tile, str(first_tile)) as image:  # rasterio would warn about missing georeferencing
                bands, pixels = len(image.getbands()), image.width
        except PhotoError as error:
            raise ImageryError(str(error)) from error
        if pixels != self.pixels:
            raise ImageryError(f"{first_tile} is {pixels} pixels wide, but layout.yaml gives {self.pixels}")
        corners = np.array([self.corner(*tile) for tile in tiles])  # (tile, 2) west and north
        west, north = corners[:, 0].min(), corners[:, 1].max()
        resolution = self.side / 2.0**self.zoom / self.pixels
        cols = np.rint((corners[:, 0] - west) / resolution).astype(int)
        rows = np.rint((north - corners[:, 1]) / resolution).astype(int)
        width, height = cols.max() + self.pixels, rows.max() + self.pixels

        root = ElementTree.Element("VRTDataset", rasterXSize=str(width), rasterYSize=str(height))
        ElementTree.SubElement(root, "SRS").text = self.crs.to_wkt()  # GDAL takes x, y as east, north
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
        ElementTree.SubElement(source, "SourceProperties", size)  # without it GDAL opens every tile on opening the VRT
        ElementTree.SubElement(source, "SrcRect", xOff="0", yOff="0", xSize=side, ySize=side)
        ElementTree.SubElement(source, "DstRect", xOff=str(col), yOff=str(row), xSize=side, ySize=side)
