"""Imagery of a map: one or several rasters, overlaid and warped to the pyramid's CRS, and their fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jzi.encode.raster import Raster, RasterOptions, close_rasters
from jzi.errors import ImageryError
from jzi.store.cell_grid import Bounds
from jzi.store.files import file_sha256
from jzi.store.info import ImageryInfo
from jzi.store.pyramid import Pyramid

#: Colour of pixels without imagery: ImageNet's mean colour, which normalisation maps to about zero.
BACKGROUND = (124, 116, 104)


@dataclass
class Imagery:
    """Rasters as one layer of 8-bit RGB in the pyramid's CRS. Earlier rasters cover later ones.

    Args:
        paths: the rasters, topmost first.
        pyramid: the area.
        options: how to read the rasters.

    Raises:
        ImageryError: a raster cannot be used, or none overlaps the pyramid's area.
    """

    paths: Sequence[str | Path]
    pyramid: Pyramid
    options: RasterOptions = field(default_factory=RasterOptions)

    def __post_init__(self) -> None:
        self._info: ImageryInfo | None = None  # of the last call of `info`
        if not self.paths:
            raise ImageryError("no raster is given: set map.rasters in jzi.toml")
        self.rasters = [Raster(path, self.options) for path in self.paths]
        self.extents = [raster.bounds_in(self.pyramid.crs) for raster in self.rasters]
        area = self.pyramid.bounds
        if not any(_overlap(extent, area) for extent in self.extents):
            extent = self.extents[0]
            latitude, longitude = self.pyramid.unproject(
                (extent.west + extent.east) / 2, (extent.south + extent.north) / 2
            )
            raise ImageryError(
                f"{', '.join(str(path) for path in self.paths[:3])} does not overlap the pyramid's area: the raster's "
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

    def render(self, bounds: Bounds, pixels: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Render a square in the pyramid's CRS, north up and antialiased.

        Args:
            bounds: the square, metres.
            pixels: side of the result, pixels.

        Returns:
            (pixels, pixels, 3) uint8 RGB on `BACKGROUND`, and (pixels, pixels) bool, True where there is imagery.

        Raises:
            ImageryError: a raster cannot be read there.
        """
        color = np.zeros((3, pixels, pixels), np.float32)  # premultiplied by the weight
        weight = np.zeros((pixels, pixels), np.float32)  # 0..255
        for raster, extent in zip(self.rasters, self.extents, strict=True):
            if _overlap(extent, bounds) and (weight < 255).any():
                rgba = raster.warp(self.pyramid.crs, bounds, pixels)
                share = np.minimum(rgba[3], 255 - weight)  # adjacent rasters share the pixels along their seam
                color += rgba[:3] * share
                weight += share
        background = np.array(BACKGROUND, np.float32)[:, None, None]
        image = (color + background * (255 - weight)) / 255 + 0.5
        return np.moveaxis(image.astype(np.uint8), 0, -1), weight > 0

    def __enter__(self) -> Imagery:
        return self

    def __exit__(self, *_: object) -> None:
        close_rasters()


def _overlap(one: Bounds, other: Bounds) -> bool:
    return one.west < other.east and other.west < one.east and one.south < other.north and other.south < one.north
