"""Layers of imagery: pixels of a grid in the CRS of the source, read by windows. Nothing is reprojected."""

from __future__ import annotations

import math
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window

from jzi.encode.rasters.raster import GDAL_ERRORS
from jzi.encode.rasters.raster_sources import OFFLINE, REMOTE
from jzi.errors import ImageryError, first_line
from jzi.overhead.area import Area
from jzi.overhead.grid import Grid
from jzi.overhead.urls import ServiceUrl
from jzi.store.geometry.cell_grid import Bounds

#: Options of GDAL for requests: a file that is opened over HTTP is not looked for beside itself, and errors that may
#: pass are repeated by GDAL for files; for services, by `jzi.overhead.download`.
_REQUESTS = {**REMOTE, "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_HTTP_MAX_RETRY": "3",
             "GDAL_HTTP_RETRY_DELAY": "1", "GDAL_VRT_ENABLE_PYTHON": "NO"}  # fmt: skip

#: Largest side of a grid, pixels, the same as of a GDAL raster.
_MAX_SIDE = 2**31 - 1


@dataclass(frozen=True)
class VrtSource:
    """A raster in a VRT.

    Attributes:
        name: file, URL for GDAL, or XML of a service without secrets.
        bands: numbers of its bands, in the order of those of the VRT.
        masked: whether some of its pixels hold no data.
        shape: its rows and columns.
        block: rows and columns of its blocks.
        source: columns, rows, width and height of the part that is shown.
        target: the same in the VRT.
        options: GDAL's options for opening it.
        nodata: the value that stands for no data in every band, if that is how pixels are masked.
    """

    name: str
    bands: tuple[int, ...]
    masked: bool
    shape: tuple[int, int]
    block: tuple[int, int]
    source: tuple[float, float, float, float]
    target: tuple[float, float, float, float]
    options: tuple[tuple[str, str], ...] = ()
    nodata: float | None = None


class Layer(Protocol):
    """Imagery of an area.

    Attributes:
        grid: its pixels.
        bands: number of bands: red, green and blue, or one.
        dtype: of the bands.
        tile: side of what one request gives, pixels; 0 if there are no requests of tiles.
        count: number of files; 0 for a service.
        fingerprint: what it is, without secrets; the same text means the same pixels.
    """

    grid: Grid
    bands: int
    dtype: str
    tile: int
    count: int
    fingerprint: str

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """(band, row, column) pixels of a window of `grid`, and (row, column) validity, 0 or 255.

        Raises:
            ReadError: it cannot be read.
        """
        ...

    def sources(self) -> list[VrtSource]:
        """What a VRT of the grid is made of, topmost first.

        Raises:
            ImageryError: the VRT would hold a secret.
        """
        ...


class ReadError(ImageryError):
    """Pixels cannot be read.

    Attributes:
        code: the status code of HTTP; 0 without one.
        passes: whether another attempt may succeed.
    """

    def __init__(self, message: str, code: int, passes: bool) -> None:
        super().__init__(message)
        self.code, self.passes = code, passes


class ServiceLayer:
    """A map service that GDAL reads, by an XML that jzi has written or the user has given.

    Args:
        name: of the service, in messages.
        xml: XML or data source of GDAL, with placeholders for secrets.
        url: the URL whose secrets they are; None if there are none.
        area: the area.
        gsd_m: wanted ground sampling distance, to choose one of the source's overviews; None for its finest pixels.
        shown: the XML that a VRT names, if that is another.
        kept: what must exist as long as the layer.

    Raises:
        ImageryError: GDAL cannot read it, or it does not reach the area.
    """

    count = 0

    def __init__(
        self,
        name: str,
        xml: str,
        url: ServiceUrl | None,
        area: Area,
        gsd_m: float | None = None,
        shown: str | None = None,
        kept: object = None,
    ) -> None:
        self.name, self._xml, self._url, self._kept = name, xml, url, kept
        self._shown = shown or xml
        self.fingerprint = re.sub(r"<(MaxConnections|Timeout|UserAgent|Cache)>.*?</\1>", "", self._shown, flags=re.S)
        self._lock, self._opened = threading.Lock(), None
        self._options: dict[str, int] = {}
        source = self._open()
        whole = _grid_of(source, name)
        factors = source.overviews(1)
        if gsd_m is not None and factors:
            finest = whole.gsd_m(area.latitude)
            levels = [-1, *range(len(factors))]
            level = min(levels, key=lambda n: abs(math.log(finest * (1 if n < 0 else factors[n]) / gsd_m)))
            if level >= 0:
                self.close()
                self._options = {"OVERVIEW_LEVEL": level}
                self.fingerprint += f" level {level}"
                source = self._open()
                whole = _grid_of(source, name)
        grid = whole.cut(area.bounds_in(whole.crs))
        if grid is None:
            raise ImageryError(f"{name} has no imagery in the area ({area}); it covers {_extent(whole)}")
        self.grid, self.tile, self.dtype = grid, int(source.block_shapes[0][1]), source.dtypes[0]
        self._alpha = source.count in (2, 4)
        self.bands = source.count - self._alpha
        if self.bands not in (1, 3) or len(set(source.dtypes)) > 1:
            raise ImageryError(f"{name} has {source.count} bands: give a service of red, green and blue, or one band")

    def _open(self) -> Any:
        if self._opened is None:
            filled = self._url.fill(self._xml) if self._url else self._xml
            try:
                with environment():
                    self._opened = rasterio.open(filled, **self._options)
            except (*GDAL_ERRORS, OSError) as error:
                raise self._error(error) from None  # the cause may repeat a secret
        return self._opened

    def close(self) -> None:
        """Close the data source."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def _error(self, error: BaseException) -> ReadError:
        text = str(error.__cause__ or error)
        text = self._url.redact(text) if self._url else text
        match = re.search(r"HTTP status code: (\d+)", text)
        code = int(match[1]) if match else 0
        if code:
            return ReadError(f"{self.name} answers with status {code}", code, code in (408, 425, 429) or code >= 500)
        if "ReadBlockFromFile" in text or "exception" in text.lower():
            return ReadError(f"{self.name} answers with something that is no image, such as a web page", 0, True)
        if "Unable to download" in text or "timed out" in text.lower() or "resolve" in text.lower():
            reason = re.search(r"error: ([^\n]*?)\.?\n", text + "\n")
            return ReadError(f"{self.name} does not answer ({reason[1] if reason else first_line(error)})", 0, True)
        shown = first_line(OSError(re.sub(r"\?\S*", "", text)))  # without the query, which may hold a secret
        return ReadError(f"{self.name} cannot be read: {shown}", 0, False)

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """As `Layer.read`."""
        placed = Window(window.col_off + self.grid.col, window.row_off + self.grid.row, window.width, window.height)
        try:
            with environment(), self._lock:
                data = self._open().read(window=placed)
        except (*GDAL_ERRORS, OSError) as error:
            raise self._error(error) from None
        if self._alpha:
            return data[:-1], np.where(data[-1] > 0, 255, 0).astype(np.uint8)
        return data, np.full(data.shape[1:], 255, np.uint8)

    def sources(self) -> list[VrtSource]:
        """As `Layer.sources`."""
        if self._url and self._url.secrets:
            raise ImageryError(
                f"a VRT of {self.name} would hold the secret of {{env:{self._url.secrets[0][0]}}}: write a GeoTIFF "
                "instead (-o map.tif)"
            )
        source = self._open()
        extent = (self.grid.width, self.grid.height)
        options = tuple((name, str(value)) for name, value in self._options.items())
        return [VrtSource(
            self._shown, tuple(range(1, self.bands + 1)), self._alpha, (source.height, source.width),
            source.block_shapes[0], (self.grid.col, self.grid.row, *extent), (0, 0, *extent), options,
        )]  # fmt: skip


@contextmanager
def environment(remote: bool = True) -> Iterator[None]:
    """GDAL's options for reading; those of requests leave what the environment sets."""
    options = {name: value for name, value in _REQUESTS.items() if name not in os.environ} if remote else OFFLINE
    with rasterio.Env(**options):
        yield


def _grid_of(source: Any, name: str) -> Grid:
    transform = source.transform
    if (
        source.crs is None
        or transform.is_identity
        or transform.b
        or transform.d
        or transform.a <= 0
        or transform.e >= 0
    ):
        raise ImageryError(f"{name} is not georeferenced with north up: give a service that is")
    if max(source.width, source.height) > _MAX_SIDE:
        raise ImageryError(f"{name} has too many pixels: give a coarser zoom")
    return Grid(source.crs.to_wkt(), transform.c, transform.f, transform.a, -transform.e, source.width, source.height)


def _extent(grid: Grid) -> str:
    try:
        degrees = Bounds(*rasterio.warp.transform_bounds(grid.crs, "EPSG:4326", *grid.bounds, densify_pts=21))
    except (*GDAL_ERRORS, ValueError):
        return "another part of the earth"
    return str(Area(degrees))
