"""Read and warp one GDAL raster as 8-bit RGBA: selection of bands, stretch, validity mask."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.warp
from numpy.typing import NDArray
from rasterio import Affine
from rasterio._err import CPLE_BaseError
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import CRSError, RasterioError
from rasterio.transform import from_origin
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from jzi.encode.rasters.raster_sources import OFFLINE, REMOTE, check_sources, open_raster
from jzi.errors import ImageryError, first_line
from jzi.store.geometry.cell_grid import Bounds

#: Largest block and largest part of a raster that is read at once, bytes.
MAX_BLOCK, MAX_READ = 2**30, 2**30

#: Least number of result pixels per source pixel. GDAL's kernel is 4 / scale pixels wide: at 1e-7 a tile takes a second
#: and at 1e-9 the width overflows. Square pixels have 0.5, so this is an aspect ratio of 50 000.
MIN_SCALE = 1e-5

#: Metadata that hold a credit line: of `jzi dataset imagery`, and the TIFF tag Copyright (33432).
ATTRIBUTION_TAGS = ("ATTRIBUTION", "TIFFTAG_COPYRIGHT")

#: Errors of rasterio, and of GDAL where rasterio does not translate them; messages may not be UTF-8.
GDAL_ERRORS = (RasterioError, CRSError, CPLE_BaseError, UnicodeDecodeError)


@dataclass(frozen=True)
class RasterOptions:
    """Properties of rasters that their files do not record.

    Attributes:
        crs: CRS of rasters that have a geotransform (such as a world file) but no CRS.
        nodata: value of pixels without data.
        stretch: values that are mapped to 0 and 255; percentiles 2 and 98 by default, for rasters that are not 8-bit.
        remote: whether rasters may be URLs and other GDAL data sources, or name files outside of their folder.
    """

    crs: str | None = None
    nodata: float | None = None
    stretch: tuple[float, float] | None = None
    remote: bool = False


class Raster:
    """A georeferenced raster that several threads may read.

    Args:
        path: file or GDAL data source.
        options: how to read it.

    Attributes:
        crs: its CRS.
        transform: pixel (col, row) to position in the CRS.
        width: pixels.
        height: pixels.
        bands: numbers of the bands read as colour, from 1: red, green and blue, or one gray band.
        dtype: data type of the bands.
        palette: (256, 4) uint8 RGBA by value, for rasters with a colour table, else None.
        attribution: the attribution or copyright that its metadata record; "" if none.
        stretch: values mapped to 0 and 255, or None; set by `Imagery` where they are needed and not given.

    Raises:
        ImageryError: the raster cannot be opened, leads to other files or machines, or is not georeferenced.
    """

    def __init__(self, path: str | Path, options: RasterOptions | None = None) -> None:
        self.path = str(path)
        self.options = options or RasterOptions()
        check_sources(self.path, self.options.remote)
        try:
            source = self.source
        except (*GDAL_ERRORS, OSError) as error:
            raise ImageryError(f"{path} cannot be read as a raster: {first_line(error)}") from error
        if source.transform.is_identity:
            raise ImageryError(
                f"{path} is not georeferenced: it has no geotransform; add one (a world file, or gdal_translate), "
                "or locate it with `jzi locate` if it is a photo"
            )
        if source.crs is None:
            raise ImageryError(
                f"{path} is not georeferenced: it has a geotransform but no CRS; set it with `jzi init --map-crs "
                "EPSG:...` or map.crs in jzi.toml"
            )
        self.crs = source.crs
        self.transform: Affine = source.transform
        self.width, self.height = source.width, source.height
        self.bands = _color_bands(source.colorinterp)
        self._check_pixels(source)
        self.dtype = np.dtype(source.dtypes[self.bands[0] - 1])
        self.palette = self._palette(source)
        self.attribution = _attribution(source)
        self.stretch = self.options.stretch
        file = getattr(source, "src_dataset", source)  # not the warped view, which has other blocks
        self._shared_lock = threading.Lock() if file.block_shapes[0][1] >= self.width else None

    def _check_pixels(self, source: Any) -> None:
        dtypes = {source.dtypes[band - 1] for band in self.bands} if source.count else set()
        if not dtypes or any(dtype.startswith("complex") for dtype in dtypes):
            listed = ", ".join(sorted(dtypes)) or "no bands"
            raise ImageryError(f"{self.path} has {listed}: convert it to bands of integers or floats (gdal_translate)")
        rows, cols = max(source.block_shapes)
        block = rows * cols * max(np.dtype(dtype).itemsize for dtype in dtypes) * source.count
        if block > MAX_BLOCK:
            raise ImageryError(
                f"{self.path} has blocks of {rows} x {cols} pixels: rewrite it with gdal_translate -co TILED=YES"
            )
        transform = self.transform
        if not (np.isfinite(transform[:6]).all() and np.isfinite(transform.determinant) and transform.determinant):
            raise ImageryError(f"{self.path} is not georeferenced: its geotransform {transform[:6]} is degenerate")

    @contextmanager
    def _reading(self) -> Iterator[Any]:
        """A handle for exclusive use.

        Files with blocks of whole rows have one handle for all threads: GDAL caches blocks per handle, so with a
        handle per thread each would read and decompress the full width of the file.
        """
        if self._shared_lock is None:
            yield self.source
        else:
            with self._shared_lock:
                yield _open_shared(self._shared_lock, self.path, self.options)

    @property
    def source(self) -> Any:
        """Rasterio dataset, opened for this thread."""
        if not hasattr(_handles, "open"):
            _handles.open = lru_cache(maxsize=64)(_open)  # a mosaic of thousands must not exhaust file descriptors
        return _handles.open(self.path, self.options)

    @property
    def files(self) -> list[str]:
        """Files with pixels or georeference, without the statistics and overviews that tools add later."""
        with _environment(self.options), open_raster(self.path, self.options.remote) as source:  # a view lists fewer
            return [name for name in source.files if not name.lower().endswith((".aux.xml", ".ovr", ".msk.ovr"))]

    @property
    def overviews(self) -> list[int]:
        """Factors of the overviews; of a mosaic (VRT) without own ones, those of its first file.

        Raises:
            ImageryError: that file cannot be read.
        """
        with self._reading() as source:
            factors = source.overviews(self.bands[0])
        if factors or not self.path.lower().endswith(".vrt"):
            return list(factors)
        first = next((name for name in self.files if name != self.path), None)
        if first is None or Path(first).suffix.lower() == ".vrt":
            return []
        try:
            with _environment(self.options), open_raster(first, self.options.remote) as source:
                return list(source.overviews(1))
        except (*GDAL_ERRORS, OSError) as error:
            raise ImageryError(f"{first} cannot be read as a raster: {first_line(error)}") from error

    def _palette(self, source: Any) -> NDArray[np.uint8] | None:
        if source.colorinterp[self.bands[0] - 1] != ColorInterp.palette:
            return None
        table = np.zeros((256, 4), np.uint8)
        for value, rgba in source.colormap(self.bands[0]).items():
            table[value % 256] = rgba
        return table

    @property
    def needs_stretch(self) -> bool:
        """Whether values must be stretched to 0..255."""
        return self.dtype != np.uint8 and self.palette is None

    def sample(self) -> NDArray[Any]:
        """Return the (n,) valid values in 8 x 8 windows, spread over the raster, of up to 256 x 256 pixels."""
        side, per_side = 256, 8  # cheap to read even without overviews
        values = []
        for row in np.linspace(0, max(0, self.height - side), per_side).astype(int):
            for col in np.linspace(0, max(0, self.width - side), per_side).astype(int):
                window = Window(col, row, min(side, self.width), min(side, self.height))
                data, valid = self._read(window, (int(window.height), int(window.width)))
                values.append(data[:, valid > 0].ravel())
        return np.concatenate(values)

    def read(self, window: Window, shape: tuple[int, int]) -> NDArray[np.uint8]:
        """Read a window, averaged (from overviews, if any) if `shape` is smaller.

        Args:
            window: columns and rows.
            shape: rows and columns of the result.

        Returns:
            (4, rows, cols) uint8 RGBA; alpha is 0 where there is no data.

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
        """(band, rows, cols) values and (rows, cols) validity 0..255, from alpha, mask or nodata value."""
        # Palette indices cannot be averaged
        resampling = Resampling.nearest if self.palette is not None else Resampling.average
        if shape[0] * shape[1] * (self.dtype.itemsize * len(self.bands) + 1) > MAX_READ:
            raise self._too_narrow(shape)
        try:
            with _environment(self.options), self._reading() as source:
                data = source.read(
                    self.bands, window=window, out_shape=(len(self.bands), *shape), resampling=resampling
                )
                valid = source.dataset_mask(window=window, out_shape=shape, resampling=resampling)
        except GDAL_ERRORS as error:
            where = f"rows {window.row_off:.0f}.., columns {window.col_off:.0f}.."
            raise ImageryError(f"{self.path} cannot be read at {where}: {error.__cause__ or error}") from error
        if data.dtype.kind == "f":
            valid = np.where(np.isfinite(data).all(axis=0), valid, 0)
        return data, valid.astype(np.uint8)

    def _too_narrow(self, shape: tuple[float, float]) -> ImageryError:
        rows, cols = (f"{pixels:.6g}" for pixels in shape)
        return ImageryError(
            f"{self.path} has too narrow pixels: one tile takes {rows} x {cols}; resample it (gdalwarp)"
        )

    def bounds_in(self, crs: str) -> Bounds:
        """Return the raster's extent in another CRS.

        Raises:
            ImageryError: the extent cannot be transformed.
        """
        corners = [self.transform @ (col, row) for col in (0, self.width) for row in (0, self.height)]
        x, y = zip(*corners, strict=True)
        try:
            return Bounds(
                *rasterio.warp.transform_bounds(self.crs, crs, min(x), min(y), max(x), max(y), densify_pts=21)
            )
        except (*GDAL_ERRORS, ValueError) as error:
            raise ImageryError(
                f"{self.path} cannot be transformed to the area's CRS: {first_line(error)[:200]}"
            ) from error

    def warp(self, crs: str, bounds: Bounds, pixels: int | tuple[int, int]) -> NDArray[np.uint8]:
        """Warp a rectangle of another CRS, north up and antialiased.

        Args:
            crs: CRS of the rectangle.
            bounds: the rectangle, in units of its CRS.
            pixels: side of the result if it is a square, else its rows and columns; pixels are square.

        Returns:
            (4, rows, cols) uint8 RGBA; zeros outside of the raster.

        Raises:
            ImageryError: the file cannot be read there.
        """
        rows, cols = shape_of(pixels)
        rgba = np.zeros((4, rows, cols), np.uint8)
        source_window = self._window(crs, bounds, rows, cols)
        if source_window is None:
            return rgba
        window, across, down = source_window
        # Rasters much finer than the result are averaged to twice its resolution on reading. The cubic kernel, which
        # GDAL widens when downsampling, does the rest without blurring when upsampling.
        shrink = max(1.0, min(across / cols, down / rows) / 2)
        shape = (max(1, round(window.height / shrink)), max(1, round(window.width / shrink)))
        scale = Affine.scale(window.width / shape[1], window.height / shape[0])
        side = (bounds.east - bounds.west) / cols
        # Result pixels per source pixel. GDAL's estimate considers only the part of the result that the raster covers,
        # and aliases if that is small: at the edges of a map and in mosaics of many sheets.
        x_scale, y_scale = cols / (across * shape[1] / window.width), rows / (down * shape[0] / window.height)
        if not min(x_scale, y_scale) >= MIN_SCALE:
            raise self._too_narrow((rows / y_scale, cols / x_scale))
        source = self.read(window, shape)
        alpha: dict[str, int] = {"src_alpha": 4, "dst_alpha": 4}
        target = rgba
        if self._surrounds(window) and source[3].min() == 255:  # most windows; a third faster without alpha
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
            XSCALE=x_scale,
            YSCALE=y_scale,
        )
        return rgba

    def pixels_across(self, crs: str, bounds: Bounds) -> float | None:
        """Number of the raster's pixels along the shorter side of a square of another CRS; None outside the raster."""
        window = self._window(crs, bounds, 1, 1)
        return None if window is None else min(window[1:])

    def _surrounds(self, window: Window) -> bool:
        """Whether the raster extends beyond a window on all sides."""
        rows, cols = window.toslices()
        return rows.start > 0 and cols.start > 0 and rows.stop < self.height and cols.stop < self.width

    def _window(self, crs: str, bounds: Bounds, rows: int, cols: int) -> tuple[Window, float, float] | None:
        """Source window of a rectangle, with a margin for the kernel; None if it does not overlap the raster.

        Also the width and height of the whole rectangle in the raster's pixels, including parts outside of it.
        """
        edge, zero, one = np.linspace(0, 1, 22), np.zeros(22), np.ones(22)
        u, v = np.concatenate([edge, edge, zero, one]), np.concatenate([zero, one, edge, edge])
        x, y = bounds.west + u * (bounds.east - bounds.west), bounds.south + v * (bounds.north - bounds.south)
        x, y = (np.array(values) for values in rasterio.warp.transform(crs, self.crs, x, y))
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            return None  # outside of the domain of the raster's projection
        col, row = ~self.transform @ (x, y)
        margin = 2 * max(np.ptp(col), np.ptp(row)) / min(rows, cols) + 4
        west, east = max(0, int(col.min() - margin)), min(self.width, int(col.max() + margin) + 1)
        north, south = max(0, int(row.min() - margin)), min(self.height, int(row.max() + margin) + 1)
        if east <= west or south <= north:
            return None
        south_west, south_east, north_west = 0, len(edge) - 1, 3 * len(edge) - 1
        across = np.hypot(col[south_east] - col[south_west], row[south_east] - row[south_west])
        down = np.hypot(col[north_west] - col[south_west], row[north_west] - row[south_west])
        return Window(west, north, east - west, south - north), float(across), float(down)


_handles = threading.local()


def _attribution(source: Any) -> str:
    tags = getattr(source, "src_dataset", source).tags()  # a warped view has none
    return str(next((tags[name] for name in ATTRIBUTION_TAGS if tags.get(name, "").strip()), "")).strip()


def shape_of(pixels: int | tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of an image that is given by its side or by both."""
    return (pixels, pixels) if isinstance(pixels, int) else pixels


def close_rasters() -> None:
    """Close the calling thread's handles and the shared ones. Handles of worker threads close when the thread ends."""
    if hasattr(_handles, "open"):
        _handles.open.cache_clear()
    _open_shared.cache_clear()


def _environment(options: RasterOptions) -> AbstractContextManager[Any]:
    if not options.remote:
        return rasterio.Env(**OFFLINE)
    return rasterio.Env(**{name: value for name, value in REMOTE.items() if name not in os.environ})


def _open(path: str, options: RasterOptions) -> Any:
    with _environment(options):
        return _open_georeferenced(path, options)


def _open_georeferenced(path: str, options: RasterOptions) -> Any:
    source = open_raster(path, options.remote)
    points, points_crs = source.gcps
    if source.crs is None and points:
        source = WarpedVRT(source, src_crs=points_crs, crs=points_crs)  # georeferenced by ground control points
    if source.transform.is_identity:
        return source  # not georeferenced: GDAL cannot warp it, and `Raster` raises
    if options.crs is not None and source.crs is None:
        source = WarpedVRT(source, src_crs=options.crs, crs=options.crs, src_transform=source.transform)
    if options.nodata is not None:
        source = WarpedVRT(source, src_nodata=options.nodata, nodata=options.nodata)
    return source


@lru_cache(maxsize=64)
def _open_shared(_lock: threading.Lock, path: str, options: RasterOptions) -> Any:
    """A raster's shared handle; the lock, which is unique to the raster, is part of the cache key."""
    return _open(path, options)


def _color_bands(interpretation: Sequence[ColorInterp]) -> list[int]:
    """Numbers from 1: the bands tagged as red, green and blue; else the first three without alpha, or one as gray."""
    rgb = [color for color in (ColorInterp.red, ColorInterp.green, ColorInterp.blue) if color in interpretation]
    if len(rgb) == 3:
        return [interpretation.index(color) + 1 for color in rgb]
    bands = [band for band, color in enumerate(interpretation, 1) if color != ColorInterp.alpha]
    return bands[:3] if len(bands) >= 3 else bands[:1] or [1]
