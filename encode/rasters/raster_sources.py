"""What a raster may lead to: GDAL formats can name files elsewhere and other machines, which strangers' files must not.

Unless the user allows it (`map.remote`), a raster is a regular file of a format that holds its pixels itself, or a VRT
of such files in its own folder, whose every element is known; and GDAL has no network.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import rasterio
from rasterio.errors import RasterioError

from jzi.errors import ImageryError, first_line

#: First bytes of the formats that hold their pixels themselves, and their GDAL drivers.
DRIVERS = (
    (b"II*\0", "GTiff"),
    (b"MM\0*", "GTiff"),
    (b"II+\0", "GTiff"),
    (b"MM\0+", "GTiff"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG", "PNG"),
    (b"RIFF", "WEBP"),
    (b"\0\0\0\x0cjP", "JP2OpenJPEG"),
    (b"\xff\x4f\xff\x51", "JP2OpenJPEG"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"SQLite format 3", "GPKG"),
)

#: GDAL options without `map.remote`: no file of the network can be opened, nor Python run.
OFFLINE = {
    "CPL_VSIL_CURL_ALLOWED_FILENAME": "none",
    "GDAL_HTTP_PROXY": "127.0.0.1:9",
    "GDAL_HTTPS_PROXY": "127.0.0.1:9",
    "GDAL_VRT_ENABLE_PYTHON": "NO",
}

#: GDAL options with `map.remote`, unless the environment sets them: a server that does not accept connections, or sends
#: nothing for a minute, is given up. GDAL waits for it without a bound.
REMOTE = {"GDAL_HTTP_CONNECTTIMEOUT": "30", "GDAL_HTTP_LOW_SPEED_LIMIT": "1", "GDAL_HTTP_LOW_SPEED_TIME": "60"}

#: Largest VRT, bytes, and the deepest nesting of VRTs.
MAX_VRT, MAX_DEPTH = 256 * 2**20, 4

_SOURCES = {"SimpleSource", "ComplexSource", "AveragedSource", "KernelFilteredSource", "Overview"}
_HISTOGRAM = "Histograms HistItem HistMin HistMax BucketCount IncludeOutOfRange Approximate HistCounts"
_ELEMENTS = _SOURCES | set(
    "VRTDataset SRS GeoTransform GCPList GCP Metadata MDI VRTRasterBand ColorInterp NoDataValue HideNoDataValue "
    "ColorTable Entry Description UnitType Offset Scale CategoryNames Category MaskBand OverviewList SourceFilename "
    "SourceBand SourceProperties SrcRect DstRect NODATA ScaleOffset ScaleRatio LUT ColorTableComponent SrcMin SrcMax "
    f"DstMin DstMax Exponent UseMaskBand Kernel Size Coefs BlockXSize BlockYSize {_HISTOGRAM}".split()
)
_ATTRIBUTE_NAMES = """
rasterXSize rasterYSize dataAxisToSRSAxisMapping coordinateEpoch Projection Id Info Pixel Line X Y Z domain key
dataType band blockXSize blockYSize c1 c2 c3 c4 relativeToVRT shared resampling RasterXSize RasterYSize DataType
BlockXSize BlockYSize xOff yOff xSize ySize normalized
"""
_ATTRIBUTES = frozenset(_ATTRIBUTE_NAMES.split())
_HINT = "set map.remote = true (--remote of jzi init) if you trust it"


def check_sources(path: str, remote: bool) -> None:
    """Raise if a raster leads to other machines or to files outside of its folder.

    Args:
        path: file or GDAL data source.
        remote: whether that is allowed.

    Raises:
        ImageryError: it is not a regular file, is of a format that may name others, or names one elsewhere.
    """
    if remote:
        return
    if path.startswith("/vsi") or "://" in path or path.lstrip().startswith("<"):
        raise ImageryError(f"{path} is not a local file: {_HINT}")
    _Checker(os.path.realpath(Path(path).parent)).check(path)


def is_raster(path: str) -> bool:
    """Whether a file begins as a raster of one of the formats that are read without `map.remote`."""
    try:
        return bool(_driver(path))
    except ImageryError:
        return False


def open_raster(path: str, remote: bool) -> Any:
    """Open a raster that `check_sources` has passed.

    Raises:
        RasterioError: it cannot be opened.
    """
    return rasterio.open(path) if remote else rasterio.open(path, driver=_driver(path))


def _driver(path: str) -> str:
    """The GDAL driver of a file; a VRT is what has its element near its start, as for GDAL.

    Raises:
        ImageryError: its format is not one of `DRIVERS`.
    """
    with Path(path).open("rb") as file:
        start = file.read(4096)
    if b"<VRTDataset" in start:
        return "VRT"
    for magic, driver in DRIVERS:
        if start.startswith(magic):
            return "MBTiles" if path.lower().endswith(".mbtiles") else driver
    raise ImageryError(
        f"{path} cannot be read as a raster: it is not a GeoTIFF, JPEG, PNG, WebP, JPEG 2000, GeoPackage or VRT, and "
        f"other formats may name files elsewhere; {_HINT}"
    )


class _Checker:
    def __init__(self, root: str) -> None:
        self.root = root
        self.passed: set[str] = set()

    def check(self, path: str, depth: int = 0) -> None:
        """Check a file, its overviews and masks, and the files that it names."""
        if path in self.passed:
            return
        self.passed.add(path)
        self._check_file(path)
        driver = _driver(path)
        if driver == "VRT":
            if depth > MAX_DEPTH:
                raise ImageryError(f"{path} is a VRT of VRTs, more than {MAX_DEPTH} deep: write one of the rasters")
            for source in self._vrt_sources(path):
                self.check(source, depth + 1)
        elif driver == "GTiff" or os.path.lexists(f"{path}.aux.xml"):
            self._check_overviews(path)
        for suffix in (".ovr", ".msk"):
            if os.path.lexists(path + suffix):
                self._check_file(path + suffix)
                if _driver(path + suffix) != "GTiff":
                    raise ImageryError(f"{path}{suffix} is not a TIFF: remove it, or {_HINT}")
                self.check(path + suffix, depth)

    def _check_file(self, path: str) -> None:
        try:
            mode = Path(path).stat().st_mode
        except (OSError, ValueError) as error:
            raise ImageryError(f"{path} cannot be read as a raster: {getattr(error, 'strerror', error)}") from error
        if not stat.S_ISREG(mode):
            raise ImageryError(f"{path} cannot be read as a raster: it is not a regular file")

    def _check_overviews(self, path: str) -> None:
        """Metadata of any format may name a file with overviews."""
        try:
            with rasterio.open(path, driver=_driver(path)) as source:
                if source.tags(ns="OVERVIEWS") or source.tags(ns="ProxyOverviewRequest"):
                    raise ImageryError(f"{path} has its overviews in another file: {_HINT}")
        except (RasterioError, UnicodeDecodeError):
            return  # reported where it is read

    def _vrt_sources(self, path: str) -> list[str]:
        if Path(path).stat().st_size > MAX_VRT:
            raise ImageryError(f"{path} is a VRT of more than {MAX_VRT} bytes: use fewer rasters")
        try:
            content = Path(path).read_text("utf-8")
            if "<!DOCTYPE" in content or "<!ENTITY" in content or "<![CDATA" in content:
                raise ValueError("it has a document type or CDATA")
            root = ElementTree.fromstring(content)
        except (ValueError, ElementTree.ParseError, RecursionError) as error:
            raise ImageryError(
                f"{path} is not a VRT that gdalbuildvrt writes ({first_line(error)}): {_HINT}"
            ) from error
        sources = []
        for element in root.iter():
            unknown = {element.tag} - _ELEMENTS or set(element.attrib) - _ATTRIBUTES
            domain = element.get("domain", "").lower()
            if unknown or domain.startswith(("overviews", "proxyoverview", "xml:")):
                raise ImageryError(f"{path} is a VRT with {(unknown or {domain}).pop()[:50]!r}: {_HINT}")
            if element.tag == "SourceFilename":
                sources.append(self._source(path, element.text or "", element.get("relativeToVRT") == "1"))
        return sources

    def _source(self, vrt: str, name: str, relative: bool) -> str:
        path = os.path.normpath(Path(vrt).parent / name if relative else Path(name).absolute())
        inside = f"{os.path.realpath(path)}{os.sep}".startswith(self.root.rstrip(os.sep) + os.sep)
        if not inside or ":" in name or name.startswith(("/vsi", "<")) or name != name.strip() or not name:
            raise ImageryError(f"{vrt} names {name[:200]!r}, which is not a file in its folder: {_HINT}")
        return path
