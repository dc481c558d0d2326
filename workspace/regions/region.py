"""The region of a working directory: its cells, and the settings that `jzi init --region` writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import shapely
from numpy.typing import NDArray

from jzi.errors import ConfigError, ImageryError
from jzi.store.disk.files import write_whole
from jzi.store.geometry.region import Region, RegionCells, Rule
from jzi.workspace.inputs import open_map, open_photo_table
from jzi.workspace.setup.init import relative_path
from jzi.workspace.setup.settings import (
    MapSettings,
    QuerySettings,
    RegionSection,
    RegionSettings,
    find_rasters,
    names_url,
)

if TYPE_CHECKING:
    from jzi.encode.rasters.imagery import Imagery
    from jzi.encode.rasters.raster import RasterOptions
    from jzi.store.photos.photo_table import PhotoTable

#: File that the footprint of the rasters is written to where no region is given.
FOOTPRINT = "region.geojson"

#: Longest edge of a polygon, degrees, of which the ends are projected.
_SEGMENT_DEG = 0.02

#: Points along each side of a raster's outline, which is curved in longitude and latitude.
_OUTLINE = 32


def open_region(settings: RegionSettings) -> RegionCells:
    """Read the region that the settings name, and find its cells.

    Raises:
        ConfigError: the file cannot be read or has no polygon.
        BandsError: the region cannot be used.
    """
    section = settings.region
    return RegionCells.of(Region.read(settings.path(section.file)), section.cell_m, section.rule)


def region_settings(
    folder: Path,
    region: Path | None,
    cell_m: float | None,
    rule: Rule | None,
    rasters: Sequence[str] = (),
    *,
    queries: str | None = None,
    photos: str | None = None,
    map_crs: str | None = None,
    split_by: Literal["auto", "sequence", "block", "photo"] | None = None,
    allow_outside: bool = False,
    remote: bool = False,
) -> tuple[RegionSettings, RegionCells, PhotoTable | None]:
    """Create the settings of a working directory for a region, and read its photo table if one is named.

    Nothing is written, except that `write_footprint` has to write a region that is the outline of the rasters.

    Args:
        folder: the working directory.
        region: a GeoJSON file; None for the outline of the rasters.
        cell_m: side of a cell, metres; 30 by default.
        rule: which cells belong to the region; those that it touches by default.
        rasters: as in `jzi.workspace.setup.init.new_settings`, and so the others.
        queries: folder of photos, or CSV or Parquet table.
        photos: folder of the table's photos.
        map_crs: CRS of rasters without one.
        split_by: what photos of a split have in common.
        allow_outside: whether paths of the table may lead out of the folder of photos.
        remote: whether rasters may name files outside of their folder; they may if one is a URL.

    Raises:
        JziError: the region, the rasters or the photos cannot be used.
    """
    from jzi.encode.rasters.raster import RasterOptions

    imagery = MapSettings(rasters=[relative_path(raster, folder) for raster in rasters], crs=map_crs)
    imagery.remote = remote or names_url(rasters)  # named by the user
    section = RegionSection(relative_path(str(region), folder) if region else FOOTPRINT)
    section.cell_m, section.rule = cell_m or section.cell_m, rule or section.rule
    if region:
        outline = Region.read(region)
    elif rasters:
        outline = footprint(find_rasters(rasters), RasterOptions(crs=map_crs, remote=imagery.remote))
    else:
        raise ConfigError("no region is given: pass --region REGION.geojson, or --map RASTER for its outline")
    cells = RegionCells.of(outline, section.cell_m, section.rule)
    table, lookup = (relative_path(path, folder) if path else None for path in (queries, photos))
    settings = RegionSettings(
        region=section,
        map=imagery,
        queries=QuerySettings(table, lookup, split_by=split_by or "auto", allow_outside=allow_outside),
    )
    settings.folder = folder
    settings.overridden = frozenset({"queries.split_by"} if split_by else ())
    if region and rasters:
        with open_map(settings, cells.grid) as opened:  # refuses one of another place
            _check_overlap(opened, cells)
    return settings, cells, open_photo_table(settings) if queries else None


def _check_overlap(imagery: Imagery, cells: RegionCells) -> None:
    """Raise an ImageryError if no raster touches the region: its polygons, not only the rectangle around them."""

    def project(positions: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack(cells.grid.project(positions[:, 1], positions[:, 0]), 1)

    # Edges are curved in the grid's CRS, by less than a metre between points so close
    outline = shapely.transform(shapely.segmentize(cells.region.geometry, _SEGMENT_DEG), project)
    margin = cells.grid.cell_m  # a cell reaches so far beyond the region
    rasters = [shapely.box(west - margin, south - margin, east + margin, north + margin)
               for west, south, east, north in imagery.extents]  # fmt: skip
    # A region around half of the earth is not valid there
    if outline.is_valid and not shapely.intersects(outline, rasters).any():
        raise ImageryError(
            f"{cells.region.name} has no imagery: {', '.join(map(str, imagery.paths[:3]))} lies beside its polygons; "
            "name rasters that show them"
        )


def footprint(rasters: Sequence[str], options: RasterOptions) -> Region:
    """The outline of rasters as a region.

    Args:
        rasters: paths of the rasters.
        options: how they are read.

    Raises:
        ImageryError: a raster cannot be used.
    """
    from pyproj import Transformer

    from jzi.encode.rasters.raster import Raster

    polygons = []
    share = np.linspace(0, 1, _OUTLINE, endpoint=False)
    for path in rasters:
        raster = Raster(path, options)
        along = np.concatenate([share, np.ones(_OUTLINE), 1 - share, np.zeros(_OUTLINE)]) * raster.width
        down = np.concatenate([np.zeros(_OUTLINE), share, np.ones(_OUTLINE), 1 - share]) * raster.height
        x, y = raster.transform @ (along, down)
        longitude, latitude = Transformer.from_crs(raster.crs.to_wkt(), "EPSG:4326", always_xy=True).transform(x, y)
        ring = np.stack([longitude, latitude], 1).round(9).tolist()
        polygons.append({"type": "Polygon", "coordinates": [[*ring, ring[0]]]})
    return Region.of(polygons, FOOTPRINT)


def write_footprint(settings: RegionSettings, cells: RegionCells) -> None:
    """Write the outline of the rasters into the folder of the settings, if that is the region."""
    if settings.region.file == FOOTPRINT and cells.region.name == FOOTPRINT:
        content = {"type": "Feature", "properties": {}, "geometry": cells.region.to_geojson()}
        settings.folder.mkdir(parents=True, exist_ok=True)
        write_whole(settings.folder / FOOTPRINT, lambda path: path.write_text(json.dumps(content)))


def describe_region(cells: RegionCells, features: int) -> tuple[dict[str, Any], str]:
    """Number of cells and bands of a region, and the size of its index, as values for JSON and as text.

    Args:
        cells: the cells.
        features: features of an embedding.
    """
    grid, runs = cells.grid, cells.runs
    bands = grid.bands[runs.row]
    square_km = runs.count * grid.cell_m**2 / 1e6
    size = 2 * features * runs.count
    values = {
        "region": cells.region.name,
        "cell_m": grid.cell_m,
        "rule": cells.rule,
        "cells": runs.count,
        "bands": runs.bands,
        "first_band": int(bands.min()),
        "last_band": int(bands.max()),
        "columns": grid.shape[1],
        "area_km2": square_km,
        "index_bytes": size,
        "fingerprint": runs.fingerprint,
    }
    space = f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
    text = (
        f"region: {runs.count:,} cells of {grid.cell_m:g} m in {runs.bands:,} bands, {square_km:,.1f} km2; an index of "
        f"{features} features takes {space}"
    )
    return values, text
