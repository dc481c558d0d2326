"""One GDAL raster: which bands are colour, which pixels are valid, how values become 8 bits, and any square of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.warp
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import CRSError, RasterioError
from rasterio.transform import from_origin
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from jzi.errors import ImageryError
from jzi.store.pyramid import Bounds


@dataclass(frozen=True)
class RasterOptions:
    """What a user may say of the rasters where they do not say it themselves.

    Attributes:
        crs: of rasters that have a geotransform (a world file, say) but no CRS.
        nodata: value that marks pixels without data.
        stretch: the two values that become 0 and 255; by default percentiles 2 and 98 of rasters that are not 8-bit.
    """

    crs: str | None = None
    nodata: float | None = None
    stretch: tuple[float, float] | None = None


class Raster:
    """One georeferenced raster, safe to read from several threads.

    Raises:
        ImageryError: it cannot be opened, has no georeference or no colour.
    """

    def __init__(self, path: str | Path, options: RasterOptions | None = None) -> None:
        self.path = str(path)
        self.options = options or RasterOptions()
        try:
            source = self.source
        except (RasterioError, CRSError, OSError) as error:
            raise ImageryError(f"{path} cannot be read as a raster: {error}") from error
        placed = not source.transform.is_identity
        if source.crs is None or not placed:
            raise ImageryError(
                f"{path} is not georeferenced: it has {'a geotransform but no CRS' if placed else 'no geotransform'}; "
                + (
                    "name it with `jzi init --map-crs EPSG:...` or map.crs in jzi.toml"
                    if placed
                    else "give it one (a world file, gdal_translate)"
                )
            )
        self.crs = source.crs
        self.transform: Affine = source.transform
        self.width, self.height = source.width, source.height
        self.bands = _color_bands(source.colorinterp)
        self.dtype = np.dtype(source.dtypes[self.bands[0] - 1])
        self.palette = self._palette(source)
        self.stretch = self.options.stretch
        rows = (
            getattr(source, "src_dataset", source).block_shapes[0][1] >= self.width
        )  # of the file, not of a view of it
        self._by_rows = threading.Lock() if rows else None

    @contextmanager
    def _reading(self) -> Iterator[Any]:
        """A handle that no other thread uses meanwhile.

        A file that is stored by whole rows has one for all threads: GDAL keeps what it has read by handle, and each of
        them would read (and decompress) the whole width of the file for its own part of it, 16 threads 16 times.
        """
        if self._by_rows is None:
            yield self.source
        else:
            with self._by_rows:
                yield _open_shared(self._by_rows, self.path, self.options)

    @property
    def source(self) -> Any:
        """This thread's handle."""
        if not hasattr(_handles, "open"):
            _handles.open = lru_cache(maxsize=64)(_open)  # 64: a mosaic of thousands must not use up the file handles
        return _handles.open(self.path, self.options)

    @property
    def files(self) -> list[str]:
        """The files that hold pixels: not statistics and overviews, which tools write beside an unchanged raster."""
        with rasterio.open(self.path) as source:  # a warped view of it would name fewer
            return [name for name in source.files if not name.lower().endswith((".aux.xml", ".ovr", ".msk.ovr"))]

    def _palette(self, source: Any) -> NDArray[np.uint8] | None:
        """(256, 4) RGBA of a raster whose only band holds colour numbers."""
        if source.colorinterp[self.bands[0] - 1] != ColorInterp.palette:
            return None
        table = np.zeros((256, 4), np.uint8)
        for value, rgba in source.colormap(self.bands[0]).items():
            table[value % 256] = rgba
        return table

    @property
    def needs_stretch(self) -> bool:
        """Whether values are not 0..255 as they stand."""
        return self.dtype != np.uint8 and self.palette is None

    def sample(self) -> NDArray[Any]:
        """(n,) valid values of 8 x 8 windows spread over the raster, which cost little where it has no overviews."""
        side, per_side = 256, 8
        values = []
        for row in np.linspace(0, max(0, self.height - side), per_side).astype(int):
            for col in np.linspace(0, max(0, self.width - side), per_side).astype(int):
                window = Window(col, row, min(side, self.width), min(side, self.height))
                data, valid = self._read(window, (int(window.height), int(window.width)))
                values.append(data[:, valid > 0].ravel())
        return np.concatenate(values)

    def read(self, window: Window, shape: tuple[int, int]) -> NDArray[np.uint8]:
        """(4, rows, cols) RGBA of a window, averaged (through overviews, if any) where `shape` is smaller.

        Raises:
            ImageryError: the file cannot be read there.
        """
        data, valid = self._read(window, shape)
        if self.palette is not None:
            rgba = np.moveaxis(self.palette[data[0].astype(np.uint8)], -1, 0)
            return np.concatenate([rgba[:3], np.minimum(rgba[3:], valid[None])])
        if self.needs_stretch:
            low, high = self.stretch or (0.0, 255.0)
            scaled = np.nan_to_num((data.astype(np.float32) - low) * (255 / max(high - low, 1e-12)))
            data = np.clip(scaled + 0.5, 0, 255).astype(np.uint8)
        color = data if len(data) == 3 else np.repeat(data[:1], 3, axis=0)
        return np.concatenate([color, valid[None]])

    def _read(self, window: Window, shape: tuple[int, int]) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """(band, rows, cols) values, and (rows, cols) 255 where alpha, mask and nodata value say there is imagery."""
        # Numbers of a palette cannot be averaged, colours can
        resampling = Resampling.nearest if self.palette is not None else Resampling.average
        try:
            with self._reading() as source:
                data = source.read(
                    self.bands, window=window, out_shape=(len(self.bands), *shape), resampling=resampling
                )
                valid = source.dataset_mask(window=window, out_shape=shape, resampling=resampling)
        except RasterioError as error:
            where = f"rows {window.row_off:.0f}.., columns {window.col_off:.0f}.."
            raise ImageryError(f"{self.path} cannot be read at {where}: {error.__cause__ or error}") from error
        if data.dtype.kind == "f":
            valid = np.where(np.isfinite(data).all(axis=0), valid, 0)
        return data, valid.astype(np.uint8)

    def bounds_in(self, crs: str) -> Bounds:
        """Its extent in another CRS."""
        corners = [self.transform @ (col, row) for col in (0, self.width) for row in (0, self.height)]
        x, y = zip(*corners, strict=True)
        try:
            return Bounds(
                *rasterio.warp.transform_bounds(self.crs, crs, min(x), min(y), max(x), max(y), densify_pts=21)
            )
        except (RasterioError, CRSError) as error:
            raise ImageryError(f"{self.path} cannot be brought into the CRS of the area: {error}") from error

    def warp(self, crs: str, bounds: Bounds, pixels: int) -> NDArray[np.uint8]:
        """(4, pixels, pixels) RGBA in a square of another CRS, north up, antialiased; zeros outside of the raster."""
        rgba = np.zeros((4, pixels, pixels), np.uint8)
        found = self._window(crs, bounds, pixels)
        if found is None:
            return rgba
        window, across, down = found
        # What is far finer is averaged down to twice the resolution that is made, while it is read. The cubic kernel
        # does the rest: GDAL widens it where it shrinks, and it does not blur what it enlarges.
        shrink = max(1.0, min(across, down) / pixels / 2)
        shape = (max(1, round(window.height / shrink)), max(1, round(window.width / shrink)))
        scale = Affine.scale(window.width / shape[1], window.height / shape[0])
        side = (bounds.east - bounds.west) / pixels
        source = self.read(window, shape)
        alpha: dict[str, int] = {"src_alpha": 4, "dst_alpha": 4}
        target = rgba
        if self._surrounds(window) and source[3].min() == 255:  # most: without alpha GDAL takes two thirds of the time
            rgba[3], source, target, alpha = 255, source[:3], rgba[:3], {}
        rasterio.warp.reproject(
            source,
            target,
            src_transform=self.transform @ Affine.translation(window.col_off, window.row_off) @ scale,
            src_crs=self.crs,
            dst_transform=from_origin(bounds.west, bounds.north, side, side),
            dst_crs=crs,
            **alpha,
            resampling=Resampling.cubic,
            # Pixels made per source pixel. GDAL would guess them from the part of the square that the raster covers,
            # and alias where that is a small one: at the edges of a map, and in every sheet of a mosaic.
            XSCALE=pixels / (across * shape[1] / window.width),
            YSCALE=pixels / (down * shape[0] / window.height),
        )
        return rgba

    def _surrounds(self, window: Window) -> bool:
        """Whether there is more of the raster on all sides of a window."""
        rows, cols = window.toslices()
        return rows.start > 0 and cols.start > 0 and rows.stop < self.height and cols.stop < self.width

    def _window(self, crs: str, bounds: Bounds, pixels: int) -> tuple[Window, float, float] | None:
        """The pixels that a square of another CRS needs, with a margin for the kernel; None if there are none.

        And how many of the raster's pixels the whole square is wide and high, were the raster large enough.
        """
        edge, zero, one = np.linspace(0, 1, 22), np.zeros(22), np.ones(22)
        u, v = np.concatenate([edge, edge, zero, one]), np.concatenate([zero, one, edge, edge])
        x, y = bounds.west + u * (bounds.east - bounds.west), bounds.south + v * (bounds.north - bounds.south)
        x, y = (np.array(values) for values in rasterio.warp.transform(crs, self.crs, x, y))
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            return None  # the square lies where the raster's projection is not defined
        col, row = ~self.transform @ (x, y)
        margin = 2 * max(np.ptp(col), np.ptp(row)) / pixels + 4
        west, east = max(0, int(col.min() - margin)), min(self.width, int(col.max() + margin) + 1)
        north, south = max(0, int(row.min() - margin)), min(self.height, int(row.max() + margin) + 1)
        if east <= west or south <= north:
            return None
        south_west, south_east, north_west = 0, len(edge) - 1, 3 * len(edge) - 1
        across = np.hypot(col[south_east] - col[south_west], row[south_east] - row[south_west])
        down = np.hypot(col[north_west] - col[south_west], row[north_west] - row[south_west])
        return Window(west, north, east - west, south - north), float(across), float(down)


_handles = threading.local()


def close_rasters() -> None:
    """Close this thread's handles and those that threads share; others of a worker thread close as it ends."""
    if hasattr(_handles, "open"):
        _handles.open.cache_clear()
    _open_shared.cache_clear()


def _open(path: str, options: RasterOptions) -> Any:
    source = rasterio.open(path)
    points, points_crs = source.gcps
    if source.crs is None and points:
        source = WarpedVRT(source, src_crs=points_crs, crs=points_crs)  # placed by ground control points
    if source.transform.is_identity:
        return source  # GDAL cannot warp what has no place; the caller says so
    if options.crs is not None and source.crs is None:
        source = WarpedVRT(source, src_crs=options.crs, crs=options.crs, src_transform=source.transform)
    if options.nodata is not None:
        source = WarpedVRT(source, src_nodata=options.nodata, nodata=options.nodata)
    return source


@lru_cache(maxsize=64)
def _open_shared(_lock: threading.Lock, path: str, options: RasterOptions) -> Any:
    """The handle that belongs to a raster's lock."""
    return _open(path, options)


def _color_bands(interpretation: Sequence[ColorInterp]) -> list[int]:
    """1-based: red, green and blue where they are marked; else the first three that are not alpha, or one as gray."""
    marked = [color for color in (ColorInterp.red, ColorInterp.green, ColorInterp.blue) if color in interpretation]
    if len(marked) == 3:
        return [interpretation.index(color) + 1 for color in marked]
    bands = [band for band, color in enumerate(interpretation, 1) if color != ColorInterp.alpha]
    return bands[:3] if len(bands) >= 3 else bands[:1] or [1]
