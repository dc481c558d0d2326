"""Write a GDAL VRT of the parts of a layer, with what `jzi init --map` accepts and no more."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from jzi.encode.rasters.raster_sources import MAX_VRT
from jzi.errors import ImageryError
from jzi.overhead.grid import Grid
from jzi.overhead.layer import VrtSource
from jzi.store.disk.files import write_whole

_COLORS = ("Red", "Green", "Blue")

#: GDAL's names of NumPy's types.
GDAL_TYPES = {"uint8": "Byte", "int8": "Int8", "uint16": "UInt16", "int16": "Int16", "uint32": "UInt32",
              "int32": "Int32", "float32": "Float32", "float64": "Float64"}  # fmt: skip


def write_vrt(
    path: Path,
    grid: Grid,
    dtype: str,
    sources: Sequence[VrtSource],
    tags: Mapping[str, str],
    mask_band: int | None = None,
) -> None:
    """Write a VRT atomically. Files in its folder, or below it, are named relative to it, so that both can be moved.

    Args:
        path: the file to write.
        grid: its pixels.
        dtype: of all bands, as of NumPy.
        sources: its parts, topmost first, all with the same number of bands.
        tags: metadata.
        mask_band: number of the band of all sources that holds their validity; None for GDAL's mask of each.

    Raises:
        ImageryError: it would be larger than jzi reads, or the type is unknown.
    """
    if dtype not in GDAL_TYPES:
        raise ImageryError(f"the imagery has pixels of {dtype}: convert it to integers or floats (gdal_translate)")
    root = ElementTree.Element("VRTDataset", rasterXSize=str(grid.width), rasterYSize=str(grid.height))
    ElementTree.SubElement(root, "SRS").text = grid.crs  # GDAL takes x, y as east, north
    transform = (grid.west, grid.x_size, 0.0, grid.north, 0.0, -grid.y_size)
    ElementTree.SubElement(root, "GeoTransform").text = ", ".join(repr(float(value)) for value in transform)
    metadata = ElementTree.SubElement(root, "Metadata")
    for key, value in tags.items():
        ElementTree.SubElement(metadata, "MDI", key=key).text = value
    values = {source.nodata for source in sources}
    # a value for no data applies to all bands of a pixel, GDAL's mask of one band to that alone
    nodata = f"{values.pop():.17g}" if len(values) == 1 and None not in values else None
    masked = nodata is None and (any(source.masked for source in sources) or not _cover(grid, sources))
    folder = os.path.realpath(path.parent)
    painted = [(source, *_name(source, folder)) for source in reversed(sources)]  # what comes later is painted over
    bands = len(sources[0].bands)
    for band in range(1, bands + 1):
        element = ElementTree.SubElement(root, "VRTRasterBand", dataType=GDAL_TYPES[dtype], band=str(band))
        ElementTree.SubElement(element, "ColorInterp").text = _COLORS[band - 1] if bands == 3 else "Gray"
        if nodata is not None:
            ElementTree.SubElement(element, "NoDataValue").text = nodata
        for source, name, relative in painted:
            _add(element, source, name, relative, dtype, str(source.bands[band - 1]), mask_band, nodata)
    if masked:
        mask = ElementTree.SubElement(ElementTree.SubElement(root, "MaskBand"), "VRTRasterBand", dataType="Byte")
        for source, name, relative in painted:
            _add(mask, source, name, relative, dtype, "mask,1" if mask_band is None else str(mask_band), mask_band)
    content = ElementTree.tostring(root, encoding="unicode")
    if len(content.encode()) > MAX_VRT:
        raise ImageryError(f"{path} would have more than {MAX_VRT} bytes: give a smaller area, or write a GeoTIFF")
    write_whole(path, lambda file: file.write_text(content, encoding="utf-8"))


def leads_elsewhere(path: Path, sources: Sequence[VrtSource]) -> bool:
    """Whether a VRT names files outside of its folder, URLs or services, so that reading it needs `map.remote`."""
    folder = os.path.realpath(path.parent)
    return any(source.options or not _name(source, folder)[1] for source in sources)


def _name(source: VrtSource, folder: str) -> tuple[str, bool]:
    """The name of a source in a VRT of a folder, and whether it is relative to it."""
    if source.name.startswith(("/vsi", "<")) or "://" in source.name:
        return source.name, False
    real = os.path.realpath(source.name)
    if real.startswith(folder.rstrip(os.sep) + os.sep) and ":" not in real:
        return os.path.relpath(real, folder), True
    return real, False


def _cover(grid: Grid, sources: Sequence[VrtSource]) -> bool:
    """Whether one source covers the grid, or several surely do: disjoint parts of the same total size."""
    extents = [source.target for source in sources]
    if any(x <= 0 and y <= 0 and x + w >= grid.width and y + h >= grid.height for x, y, w, h in extents):
        return True
    import shapely

    covered = shapely.union_all([shapely.box(x, y, x + w, y + h) for x, y, w, h in extents])
    return bool(covered.covers(shapely.box(0.5, 0.5, grid.width - 0.5, grid.height - 0.5)))


def _add(
    band: ElementTree.Element,
    source: VrtSource,
    name: str,
    relative: bool,
    dtype: str,
    source_band: str,
    mask_band: int | None,
    nodata: str | None = None,
) -> None:
    over = source.masked and mask_band is None  # pixels without data must not hide what lies below
    element = ElementTree.SubElement(band, "ComplexSource" if over else "SimpleSource")
    ElementTree.SubElement(element, "SourceFilename", relativeToVRT=str(int(relative))).text = name
    if source.options:
        options = ElementTree.SubElement(element, "OpenOptions")
        for key, value in source.options:
            ElementTree.SubElement(options, "OOI", key=key).text = value
    ElementTree.SubElement(element, "SourceBand").text = source_band
    rows, cols = source.shape
    ElementTree.SubElement(
        element, "SourceProperties", RasterXSize=str(cols), RasterYSize=str(rows), DataType=GDAL_TYPES[dtype],
        BlockXSize=str(source.block[1]), BlockYSize=str(source.block[0]),
    )  # fmt: skip
    for tag, window in (("SrcRect", source.source), ("DstRect", source.target)):
        xoff, yoff, xsize, ysize = (f"{value:.10g}" for value in window)
        ElementTree.SubElement(element, tag, xOff=xoff, yOff=yoff, xSize=xsize, ySize=ysize)
    if over and nodata is not None:
        ElementTree.SubElement(element, "NODATA").text = nodata
    elif over:
        ElementTree.SubElement(element, "UseMaskBand").text = "true"
