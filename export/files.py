"""Write locations as GeoJSON, Cloud-Optimized GeoTIFF and CSV."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import rasterio.shutil
from numpy.typing import NDArray
from rasterio.io import MemoryFile
from rasterio.transform import from_origin

from jzi.errors import ExportError, first_line
from jzi.locate.location import Location, printable
from jzi.store.exif import ExifPosition
from jzi.store.files import write_whole
from jzi.store.pyramid import WGS84, Pyramid, TileKey
from jzi.version import __version__

#: Largest side of a heat map, cells: 8192 x 8192 float32 are 256 MB a band.
MAX_HEATMAP_SIDE = 8192

#: First characters by which spreadsheets recognize a formula, or skip to one.
FORMULA = ("=", "+", "-", "@", "\t", "\r")

#: Vertices of a circle.
CORNERS = 64


def write_geojson(path: Path, locations: Sequence[Location], truths: Sequence[ExifPosition | None] = ()) -> None:
    """Write answers, candidates, 68 and 95 % circles, zoom tiles and true positions as GeoJSON (RFC 7946).

    Args:
        path: file to write.
        locations: located photos.
        truths: true position of each photo, None where unknown; empty if there are none.

    Raises:
        ExportError: the file cannot be written.
    """
    features = [
        feature
        for index, location in enumerate(locations)
        for feature in to_features(location, truths[index] if truths else None)
    ]
    collection = {"type": "FeatureCollection", "generator": f"jzi {__version__}", "features": features}
    write_file(path, lambda file: file.write_text(json.dumps(collection, allow_nan=False) + "\n"))


def to_features(location: Location, truth: ExifPosition | None = None) -> list[dict[str, Any]]:
    """Return one location as GeoJSON features, each with the properties `photo` and `kind`.

    Tiles and circles come first, so that points are drawn on top of them.
    """
    pyramid = location.pyramid
    features = [
        _feature(_polygon(tile_corners(pyramid, key)), location, "tile", step=step, footprint_m=pyramid.footprint(step))
        for step, key in enumerate(pyramid.keys(np.array(location.best.path)))
    ]
    for share, radius in ((0.95, location.radius_95), (0.68, location.radius_68)):
        if np.isfinite(radius):
            corners = circle(location.latitude, location.longitude, radius)
            features.append(_feature(_polygon(corners), location, "circle", share=share, radius_m=radius))
    for rank, candidate in enumerate(location.candidates):
        properties = {"rank": rank + 1, "probability": candidate.probability, "radius_m": candidate.radius_m}
        kind = "candidate" if rank else "answer"
        features.append(_feature(_point(candidate.latitude, candidate.longitude), location, kind, **properties))
    if truth:
        features.append(_feature(_point(truth.latitude, truth.longitude), location, "truth"))
    return features


def circle(latitude: float, longitude: float, radius: float) -> NDArray[np.float64]:
    """Return (corner, 2) latitudes and longitudes of a geodesic circle of `radius` metres, counter-clockwise."""
    azimuth = -np.linspace(0, 360, CORNERS, endpoint=False)
    ones = np.ones(CORNERS)
    lon, lat, _ = WGS84.fwd(longitude * ones, latitude * ones, azimuth, radius * ones)
    return np.stack([lat, lon], 1)


def tile_corners(pyramid: Pyramid, key: TileKey) -> NDArray[np.float64]:
    """Return (4, 2) latitudes and longitudes of a tile's corners, counter-clockwise from the south-west."""
    bounds = pyramid.tile_bounds(key)
    x = [bounds.west, bounds.east, bounds.east, bounds.west]
    y = [bounds.south, bounds.south, bounds.north, bounds.north]
    return np.stack(pyramid.unproject(x, y), 1)


def _feature(geometry: dict[str, Any], location: Location, kind: str, **properties: Any) -> dict[str, Any]:
    return {
        "type": "Feature",
        "geometry": geometry,
        "properties": {"photo": location.photo, "kind": kind, **properties},
    }


def _point(latitude: float, longitude: float) -> dict[str, Any]:
    return {"type": "Point", "coordinates": [round(longitude, 7), round(latitude, 7)]}


def _polygon(corners: NDArray[np.float64]) -> dict[str, Any]:
    ring = [[round(float(lon), 7), round(float(lat), 7)] for lat, lon in [*corners, corners[0]]]
    return {"type": "Polygon", "coordinates": [ring]}


def write_heatmap(path: Path, locations: Sequence[Location]) -> None:
    """Write the probability of every cell as a Cloud-Optimized GeoTIFF in the pyramid's CRS, one band per photo.

    Args:
        path: file to write.
        locations: located photos, all on the same pyramid.

    Raises:
        ExportError: the file cannot be written, or the map has too many cells.
    """
    pyramid = locations[0].pyramid
    side = pyramid.tiles_per_side(pyramid.levels)
    if side > MAX_HEATMAP_SIDE:
        raise ExportError(
            f"a heat map of {side} x {side} cells is too large: at most {MAX_HEATMAP_SIDE} cells per side"
        )
    transform = from_origin(pyramid.west, pyramid.north, pyramid.cell_size, pyramid.cell_size)
    profile = {"width": side, "height": side, "count": len(locations), "dtype": "float32", "crs": pyramid.crs}
    profile |= {"compress": "deflate", "interleave": "band"}  # most cells are 0
    with MemoryFile() as memory, MemoryFile() as optimized:
        with memory.open(driver="GTiff", transform=transform, **profile) as raster:
            for band, location in enumerate(locations, 1):
                raster.write(location.posterior.grid().astype(np.float32), band)
                raster.set_band_description(band, Path(location.photo).name)
        options = {"driver": "COG", "compress": "deflate", "overview_resampling": "average"}
        rasterio.shutil.copy(memory.name, optimized.name, **options)
        # Not written by GDAL, which does not report that a disk is full
        write_file(path, lambda file: file.write_bytes(optimized.getbuffer()))


def write_csv(path: Path, answers: Sequence[dict[str, Any]]) -> None:
    """Write one row per photo, with the error for photos that could not be read.

    Args:
        path: file to write.
        answers: results of `Location.to_dict`, or `plain` of a `NotLocated`.

    Raises:
        ExportError: the file cannot be written.
    """
    columns = ("photo", "latitude", "longitude", "confidence", "estimate", "radius_m", "radius_68_m", "radius_95_m")
    rows = [{name: quote_formula(answer.get(name)) for name in (*columns, "error")} for answer in answers]
    write_file(path, partial(pd.DataFrame(rows).to_csv, index=False))


def quote_formula(value: Any) -> Any:
    """A cell of a CSV file that no spreadsheet takes for a formula: such a text gets an apostrophe in front.

    Texts become `printable`. Source: OWASP, "CSV Injection".

    Args:
        value: a cell; numbers are returned as they are.

    Example:
        >>> quote_formula("=1+1.jpg"), quote_formula("a.jpg"), quote_formula(-1.5)
        ("'=1+1.jpg", 'a.jpg', -1.5)
    """
    if not isinstance(value, str):
        return value
    return f"'{printable(value)}" if value.startswith(FORMULA) else printable(value)


def write_file(path: Path, write: Any) -> None:
    """Write a file atomically by calling `write` with a temporary path.

    Raises:
        ExportError: the file cannot be written.
    """
    try:
        write_whole(path, write)
    except (OSError, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or first_line(error)
        raise ExportError(f"{path} cannot be written: {reason}") from error
