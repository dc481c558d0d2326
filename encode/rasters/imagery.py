"""Imagery of a map: one or several rasters, overlaid and warped to a projected CRS, and their fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import rasterio.warp
from numpy.typing import NDArray

from jzi.encode.rasters.raster import GDAL_ERRORS, Raster, RasterOptions, close_rasters, shape_of
from jzi.errors import ImageryError
from jzi.store.disk.files import file_sha256
from jzi.store.geometry.cell_grid import Bounds, CellGrid
from jzi.store.geometry.pyramid import Pyramid, as_pyramid
from jzi.store.info import MAX_ATTRIBUTION, ImageryInfo
from jzi.store.printable import printable

#: Colour of pixels without imagery: ImageNet's mean colour, which normalisation maps to about zero.
BACKGROUND = (124, 116, 104)


@dataclass
class Imagery:
    """Rasters as one layer of 8-bit RGB. Earlier rasters cover later ones.

    Args:
        paths: the rasters, topmost first.
        area: the area: a pyramid, or cells of another geometry.
        options: how to read the rasters.
        background: colour of pixels without imagery, 8-bit RGB. Published networks may need that of their training.
        attribution: the credit line that the imagery's licence asks for, for maps and pictures: text, not HTML; by
            default what the rasters record as their attribution or copyright. It is no part of the fingerprint.

    Raises:
        ImageryError: a raster cannot be used, none overlaps the area, or the background is not a colour.
    """

    paths: Sequence[str | Path]
    area: CellGrid
    options: RasterOptions = field(default_factory=RasterOptions)
    background: tuple[int, int, int] = BACKGROUND
    attribution: str = ""

    def __post_init__(self) -> None:
        self._info: ImageryInfo | None = None  # of the last call of `info`
        if len(self.background) != 3 or not all(0 <= value <= 255 for value in self.background):
            raise ImageryError(f"the background {self.background} is not a colour: give red, green, blue in 0..255")
        if not self.paths:
            raise ImageryError("no raster is given: set map.rasters in jzi.toml")
        self.rasters = [Raster(path, self.options) for path in self.paths]
        self.extents = [raster.bounds_in(self.area.crs) for raster in self.rasters]
        recorded = ", ".join(dict.fromkeys(raster.attribution for raster in self.rasters if raster.attribution))
        self.attribution = printable(self.attribution or recorded)[:MAX_ATTRIBUTION]
        area = self.area.bounds
        if not any(_overlap(extent, area) for extent in self.extents):
            extent = self.extents[0]
            latitude, longitude = self.area.unproject(
                (extent.west + extent.east) / 2, (extent.south + extent.north) / 2
            )
            raise ImageryError(
                f"{', '.join(str(path) for path in self.paths[:3])} does not overlap the area: the raster's "
                f"centre is at latitude {latitude:.5f}, longitude {longitude:.5f}"
            )
        if any(raster.needs_stretch for raster in self.rasters) and self.options.stretch is None:
            self._set_stretch()

    def _set_stretch(self) -> None:
        """Use one stretch for all bands and rasters, which preserves hues and avoids seams."""
        sample = np.concatenate([raster.sample() for raster in self.rasters if raster.needs_stretch])
        if not sample.size:
            raise ImageryError(
                f"{self.paths[0]} has no valid pixels where it was sampled: set map.stretch = [low, high] in jzi.toml"
            )
        low, high = (float(value) for value in np.percentile(sample, (2, 98)))
        for raster in self.rasters:
            raster.stretch = (low, high)

    @property
    def pyramid(self) -> Pyramid:
        """The area as a pyramid.

        Raises:
            PyramidError: it has another geometry.
        """
        return as_pyramid(self.area)

    @property
    def description(self) -> str:
        """How bands are converted to RGB, for users; part of the fingerprint."""
        raster = self.rasters[0]
        bands = f"band {raster.bands[0]} as gray" if len(raster.bands) == 1 else f"bands {raster.bands} as RGB"
        if raster.palette is not None:
            bands = f"band {raster.bands[0]} through its colour table"
        stretched = next((r for r in self.rasters if r.needs_stretch and r.stretch), None)
        if stretched is None or stretched.stretch is None:
            return bands
        how = "as set" if self.options.stretch else "percentiles 2 and 98"
        return f"{bands}, {stretched.dtype} {stretched.stretch[0]:g}..{stretched.stretch[1]:g} to 0..255 ({how})"

    def info(self, previous: ImageryInfo | None = None) -> ImageryInfo:
        """Compute the fingerprint over the files' contents, georeferences and the options they are read with.

        The background is part of it unless it is the default one.

        Args:
            previous: an earlier result; its files with unchanged size and modification time are not hashed again.

        Returns:
            The fingerprint, with size, modification time and SHA-256 of each file.
        """
        infos = [info for info in (previous, self._info) if info]
        digests = {(name, size, mtime): digest for info in infos for name, size, mtime, digest in info.files}
        files = []
        digest = hashlib.sha256(self.description.encode())
        digest.update(json.dumps([self.options.nodata, self.options.stretch]).encode())
        if self.background != BACKGROUND:  # so that caches from before it could be set remain valid
            digest.update(json.dumps(["background", *self.background]).encode())
        for raster in self.rasters:
            for name in raster.files or [raster.path]:
                path = Path(name)
                if not path.is_file():  # /vsicurl/ etc.: only the name is hashed
                    files.append((name, -1, -1, hashlib.sha256(name.encode()).hexdigest()))
                    continue
                stat = path.stat()
                key = (path.name, stat.st_size, stat.st_mtime_ns)
                files.append((*key, digests.get(key) or file_sha256(path)))
            profile = [raster.crs.to_wkt(), list(raster.transform), raster.bands, raster.width, raster.height]
            digest.update(json.dumps([*profile, raster.source.nodata]).encode())
        for *_, file_digest in files:
            digest.update(file_digest.encode())
        self._info = ImageryInfo(digest.hexdigest(), tuple(files), self.description)
        return self._info

    def render(
        self, bounds: Bounds, pixels: int | tuple[int, int], crs: str | None = None
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Render a rectangle, north up and antialiased.

        Args:
            bounds: the rectangle, in units of its CRS.
            pixels: side of the result if it is a square, else its rows and columns; pixels are square.
            crs: CRS of the rectangle; the area's by default.

        Returns:
            (rows, cols, 3) uint8 RGB on `background`, and (rows, cols) bool, True where there is imagery.

        Raises:
            ImageryError: a raster cannot be read there.
        """
        shape = shape_of(pixels)
        color = np.zeros((3, *shape), np.float32)  # premultiplied by the weight
        weight = np.zeros(shape, np.float32)  # 0..255
        around = self._in_area_crs(bounds, crs)
        first = True
        for raster, extent in zip(self.rasters, self.extents, strict=True):
            if (around is None or _overlap(extent, around)) and (weight < 255).any():
                rgba = raster.warp(crs or self.area.crs, bounds, pixels)
                if first and rgba[3].min() == 255:  # most: what follows would return the same
                    return np.moveaxis(rgba[:3], 0, -1), rgba[3] > 0
                first = False
                share = np.minimum(rgba[3], 255 - weight)  # adjacent rasters share the pixels along their seam
                color += rgba[:3] * share
                weight += share
        background = np.array(self.background, np.float32)[:, None, None]
        image = (color + background * (255 - weight)) / 255 + 0.5
        return np.moveaxis(image.astype(np.uint8), 0, -1), weight > 0

    def _in_area_crs(self, bounds: Bounds, crs: str | None) -> Bounds | None:
        """Bounds of a rectangle in the area's CRS; None if they are unknown, so that every raster is tried."""
        if crs is None or crs == self.area.crs:
            return bounds
        try:
            around = Bounds(*rasterio.warp.transform_bounds(crs, self.area.crs, *bounds, densify_pts=21))
        except (*GDAL_ERRORS, ValueError):
            return None
        return around if np.isfinite(around).all() else None

    def __enter__(self) -> Imagery:
        return self

    def __exit__(self, *_: object) -> None:
        close_rasters()


def _overlap(one: Bounds, other: Bounds) -> bool:
    return one.west < other.east and other.west < one.east and one.south < other.north and other.south < one.north
