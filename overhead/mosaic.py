"""A mosaic of rasters of one CRS and pixel size: files, URLs of GeoTIFFs, assets of STAC items."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.warp
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import MaskFlags
from rasterio.windows import Window
from tqdm import tqdm

from jzi.encode.rasters.raster import GDAL_ERRORS, Raster, RasterOptions
from jzi.errors import ConfigError, ImageryError, first_line
from jzi.overhead.area import Area
from jzi.overhead.grid import Grid
from jzi.overhead.layer import ReadError, VrtSource, environment
from jzi.overhead.urls import ServiceUrl, holds_secret
from jzi.store.geometry.cell_grid import Bounds
from jzi.store.photos.photo_file import open_regular_file

#: Most rasters of a mosaic, and the largest text file that lists them, bytes.
MAX_RASTERS, MAX_LIST = 50_000, 2**24

#: Formats that hold their pixels themselves: what a URL may be. Others name files of this machine, or other machines.
_REMOTE_DRIVERS = ("GTiff", "JP2OpenJPEG")

#: Largest relative difference of two pixel sizes that are the same: a hundredth of a pixel after 100 000 of them.
_SAME_SIZE = 1e-7


@dataclass(frozen=True)
class _Sheet:
    """A raster, its window in the mosaic (columns and rows, with fractions) and whether it has a mask."""

    raster: Raster
    name: str
    grid: Grid
    masked: bool
    size: tuple[int, int]  # bytes and modification time, nanoseconds; -1 for a URL


def read_list(file: Path) -> list[str]:
    """Paths and URLs of a text file, one a line; lines that begin with # are skipped.

    Raises:
        ConfigError: it cannot be read, is too large, or empty.
    """
    try:
        with open_regular_file(file) as opened:
            content = opened.read(MAX_LIST + 1)
        if len(content) > MAX_LIST:
            raise ConfigError(f"{file} has more than {MAX_LIST} bytes: it is no list of rasters")
        lines = [line.strip() for line in content.decode("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read as a list of rasters: {first_line(error)}") from error
    entries = [line for line in lines if line and not line.startswith("#")]
    if not entries:
        raise ConfigError(f"{file} lists no raster: write one path or URL a line")
    if len(entries) > MAX_RASTERS:
        raise ConfigError(f"{file} lists more than {MAX_RASTERS:,} rasters: split it, or give a smaller area")
    return [each if "://" in each or each.startswith("/vsi") else str(file.parent / each) for each in entries]


class Mosaic:
    """Rasters side by side, the first on top.

    Args:
        names: files, URLs of http or https, and data sources of GDAL, topmost first.
        area: the area; None for all of them.
        remote: whether local files may name other files and machines.
        crs: take only the rasters of this CRS.
        progress: show progress.

    Raises:
        ImageryError: a raster cannot be used, none lies in the area, or they differ in CRS, pixel size or bands.
        ConfigError: a URL or the CRS cannot be used.
    """

    tile = 0

    def __init__(
        self,
        names: Sequence[str],
        area: Area | None,
        remote: bool = False,
        crs: str | None = None,
        progress: bool = False,
    ) -> None:
        if len(names) > MAX_RASTERS:
            raise ImageryError(f"{len(names):,} rasters are more than {MAX_RASTERS:,}: give a smaller area")
        wanted = parse_crs(crs) if crs else None
        opened = [
            _open(name, remote) for name in tqdm(names, unit="raster", desc="rasters", disable=not progress, delay=2)
        ]
        sheets = [sheet for sheet in opened if wanted is None or CRS.from_user_input(sheet.grid.crs) == wanted]
        if not sheets:
            there = ", ".join(sorted({sheet.grid.label for sheet in opened}))
            raise ImageryError(f"none of the {len(names)} rasters is in {crs}: they are in {there}")
        if area is not None:
            touching = [sheet for sheet in sheets if sheet.grid.cut(area.bounds_in(sheet.grid.crs))]
            if not touching:
                first = rasterio.warp.transform_bounds(sheets[0].grid.crs, "EPSG:4326", *sheets[0].grid.bounds)
                raise ImageryError(
                    f"none of the {len(sheets)} rasters has imagery in the area ({area}): {sheets[0].name} covers "
                    f"{Area(Bounds(*first))}"
                )
            sheets = touching
        _check_alike(sheets)
        reference = sheets[0].grid
        bounds = np.array([sheet.grid.bounds for sheet in sheets])
        west, north = float(bounds[:, 0].min()), float(bounds[:, 3].max())
        width = round((float(bounds[:, 2].max()) - west) / reference.x_size)
        height = round((north - float(bounds[:, 1].min())) / reference.y_size)
        whole = Grid(reference.crs, west, north, reference.x_size, reference.y_size, width, height)
        cut = whole.cut(area.bounds_in(whole.crs)) if area else whole
        assert cut is not None  # a sheet touches the area
        self.grid = Grid(cut.crs, cut.west, cut.north, cut.x_size, cut.y_size, cut.width, cut.height)
        self.sheets, self.count = sheets, len(sheets)
        self.bands, self.dtype = len(sheets[0].raster.bands), str(sheets[0].raster.dtype)
        self.fingerprint = json.dumps([[_unsigned(sheet.name), *sheet.size] for sheet in sheets])

    @property
    def shift(self) -> float:
        """Largest distance of a raster's pixels from the grid, pixels: they are shown without resampling."""
        west = np.array([sheet.grid.west - self.grid.west for sheet in self.sheets]) / self.grid.x_size
        north = np.array([self.grid.north - sheet.grid.north for sheet in self.sheets]) / self.grid.y_size
        offsets = np.stack([west, north])
        return float(abs(offsets - np.rint(offsets)).max())

    @property
    def notes(self) -> list[str]:
        """What a user should know of the rasters."""
        notes = []
        if self.shift > 0.01:
            notes.append(
                f"some rasters lie up to {self.shift:.2f} pixels off the grid of the others: they are shown at the "
                "nearest pixel"
            )
        lacking = self._without_overviews()
        if lacking:
            notes.append(
                f"{len(lacking)} of {self.count} rasters have no overviews ({Path(lacking[0]).name}, for example), "
                "which coarse views need: a GeoTIFF (-o map.tif) has them, or run gdaladdo"
            )
        return notes

    def _without_overviews(self) -> list[str]:
        """Names of large rasters without overviews, which coarse views read whole."""
        return [
            sheet.name for sheet in self.sheets
            if max(sheet.grid.width, sheet.grid.height) > 2048 and not sheet.raster.overviews
        ]  # fmt: skip

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """As `jzi.overhead.layer.Layer.read`."""
        rows, cols = int(window.height), int(window.width)
        data = np.zeros((self.bands, rows, cols), self.dtype)
        valid = np.zeros((rows, cols), np.uint8)
        for sheet in self.sheets:
            if valid.all():
                break
            col, row = self._offset(sheet, window)
            left, top = max(0, col), max(0, row)
            right, bottom = min(cols, col + sheet.grid.width), min(rows, row + sheet.grid.height)
            if left >= right or top >= bottom:
                continue
            part = Window(left - col, top - row, right - left, bottom - top)
            pixels, mask = self._read_sheet(sheet, part)
            place = (slice(top, bottom), slice(left, right))
            free = (valid[place] == 0) & (mask > 0)
            data[:, place[0], place[1]][:, free] = pixels[:, free]
            valid[place][free] = 255
        return data, valid

    def _offset(self, sheet: _Sheet, window: Window) -> tuple[int, int]:
        """Column and row of a sheet in a window of the grid, to the nearest pixel."""
        col = round((sheet.grid.west - self.grid.west) / self.grid.x_size) - int(window.col_off)
        row = round((self.grid.north - sheet.grid.north) / self.grid.y_size) - int(window.row_off)
        return col, row

    def _read_sheet(self, sheet: _Sheet, window: Window) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        is_url = sheet.size[0] < 0
        try:
            with environment(is_url or sheet.raster.options.remote):
                source = sheet.raster.source
                pixels = source.read(sheet.raster.bands, window=window)
                if not sheet.masked:
                    return pixels, np.full(pixels.shape[1:], 255, np.uint8)
                return pixels, source.dataset_mask(window=window)
        except (*GDAL_ERRORS, OSError) as error:
            text = str(error.__cause__ or error).replace(sheet.raster.path, sheet.name)
            reason = first_line(OSError(re.sub(r"\?\S*", "", text)))
            raise ReadError(f"{sheet.name} cannot be read: {reason}", 0, is_url) from None

    def sources(self) -> list[VrtSource]:
        """As `jzi.overhead.layer.Layer.sources`."""
        listed = []
        for sheet in self.sheets:
            raster = sheet.raster
            if sheet.size[0] < 0 and holds_secret(raster.path):
                raise ImageryError(
                    f"a VRT of {sheet.name} would hold the secret of its URL: write a GeoTIFF instead (-o map.tif)"
                )
            x = (sheet.grid.west - self.grid.west) / self.grid.x_size
            y = (self.grid.north - sheet.grid.north) / self.grid.y_size
            left, top = max(0.0, -x), max(0.0, -y)
            right = min(sheet.grid.width, self.grid.width - x)
            bottom = min(sheet.grid.height, self.grid.height - y)
            if left >= right or top >= bottom:
                continue
            extent = (right - left, bottom - top)
            flags = raster.source.mask_flag_enums
            by_value = all(flags[band - 1] == [MaskFlags.nodata] for band in raster.bands)
            listed.append(VrtSource(
                raster.path, tuple(raster.bands), sheet.masked, (raster.height, raster.width),
                raster.source.block_shapes[0], (left, top, *extent), (x + left, y + top, *extent),
                nodata=raster.source.nodata if by_value else None,
            ))  # fmt: skip
        return listed


def parse_crs(text: str) -> CRS:
    """A CRS that an option names.

    Raises:
        ConfigError: PROJ does not know it.
    """
    try:
        return CRS.from_user_input(text)
    except (*GDAL_ERRORS, ValueError) as error:
        raise ConfigError(f"--crs {text:.100} is not a CRS that PROJ knows: give one such as EPSG:26918") from error


def _open(name: str, remote: bool) -> _Sheet:
    size, path, shown = (-1, -1), name, name
    if "://" in name:
        url = ServiceUrl.parse(name, f"the URL of a raster, {_unsigned(name):.200},") if "{env:" in name else None
        shown = _unsigned(name)
        if url is None and not re.match(r"https?://[^@/]+/", name):
            raise ConfigError(f"{shown:.200} is not a URL of http or https without a user: give another one")
        path = f"/vsicurl/{url.fill() if url else name}"
    elif not name.startswith("/vsi"):
        try:
            stat = Path(name).stat()
            size = (stat.st_size, stat.st_mtime_ns)
        except (OSError, ValueError) as error:
            raise ImageryError(f"there is no raster {name}: {getattr(error, 'strerror', error)}") from error
    is_url = size[0] < 0
    try:
        with environment(is_url or remote):
            if is_url:
                _check_remote(path)
            raster = Raster(path, RasterOptions(remote=is_url or remote))
            source = raster.source
            masked = any(MaskFlags.all_valid not in source.mask_flag_enums[band - 1] for band in raster.bands)
    except ImageryError as error:
        if path == shown:
            raise
        raise ImageryError(str(error).replace(path, shown)) from None
    except (*GDAL_ERRORS, OSError) as error:
        reason = re.sub(r"[?]\S*", "", first_line(OSError(str(error).replace(path, shown))))
        raise ImageryError(f"{shown} cannot be read as a raster: {reason}") from None
    transform = raster.transform
    if transform.b or transform.d or transform.a <= 0 or transform.e >= 0:
        raise ImageryError(f"{shown} is not north-up: nothing is reprojected, so warp it first (gdalwarp)")
    if raster.palette is not None:
        raise ImageryError(
            f"{shown} has a colour table: convert it to red, green and blue (gdal_translate -expand rgb)"
        )
    grid = Grid(raster.crs.to_wkt(), transform.c, transform.f, transform.a, -transform.e, raster.width, raster.height)
    return _Sheet(raster, shown, grid, masked, size)


def _check_remote(path: str) -> None:
    """Raise the error of the first driver unless one of `_REMOTE_DRIVERS` opens a file."""
    first: Exception | None = None
    for driver in _REMOTE_DRIVERS:
        try:
            rasterio.open(path, driver=driver).close()
            return
        except (*GDAL_ERRORS, OSError) as error:
            first = first or error
    assert first is not None
    raise first


def _unsigned(url: str) -> str:
    """A URL without its query, which may hold a signature; other names as they are."""
    return url.partition("?")[0] if "://" in url else url


def _check_alike(sheets: Sequence[_Sheet]) -> None:
    """Raise unless all sheets have one CRS, pixel size, number of bands and type."""
    how = "nothing is reprojected, so "
    crs = _grouped(sheets, [sheet.grid.label for sheet in sheets])
    if len(crs) > 1:
        each = " and ".join(f"--crs {name}" for name in list(crs)[:2])
        raise ImageryError(
            f"the rasters differ in CRS: {_listed(crs)}; {how}write one map for each ({each}), which `jzi init --map A "
            "--map B` overlays"
        )
    first = sheets[0].grid
    sizes = []
    for sheet in sheets:
        pairs = ((sheet.grid.x_size, first.x_size), (sheet.grid.y_size, first.y_size))
        near = [math.isclose(*pair, rel_tol=_SAME_SIZE) for pair in pairs]
        size = first if all(near) else sheet.grid
        sizes.append(f"{size.x_size:.6g} x {size.y_size:.6g}")
    if len(groups := _grouped(sheets, sizes)) > 1:
        raise ImageryError(
            f"the rasters differ in pixel size: {_listed(groups)}; {how}write one map for each, which `jzi init --map "
            "A --map B` overlays"
        )
    kinds = [f"{len(sheet.raster.bands)} {sheet.raster.dtype} bands" for sheet in sheets]
    if len(groups := _grouped(sheets, kinds)) > 1:
        raise ImageryError(f"the rasters differ in bands: {_listed(groups)}; write one map for each")


def _grouped(sheets: Sequence[_Sheet], labels: Sequence[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for sheet, label in zip(sheets, labels, strict=True):
        groups.setdefault(label, []).append(sheet.name)
    return groups


def _listed(groups: dict[str, list[str]]) -> str:
    """Each group with its number of rasters and the first two of them."""
    parts = []
    for label, names in list(groups.items())[:4]:
        shown = ", ".join(Path(name).name for name in names[:2]) + (", ..." if len(names) > 2 else "")
        parts.append(f"{len(names)} with {label} ({shown})")
    return ", ".join(parts) + (f", and {len(groups) - 4} more kinds" if len(groups) > 4 else "")
