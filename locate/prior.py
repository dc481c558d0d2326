"""What is known of a position beforehand as an expert: the same distribution for every photo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.errors import CRSError, RasterioError
from rasterio.features import rasterize
from rasterio.transform import from_origin
from rasterio.warp import reproject, transform_geom
from torch import Tensor

from jzi.errors import ConfigError, first_line
from jzi.locate.location import LocateOptions
from jzi.locate.posterior import Posterior
from jzi.store.cell_grid import CellGrid
from jzi.store.info import EncoderInfo
from jzi.store.pyramid import as_pyramid, geodesic_distance


class PriorExpert:
    """A distribution over cells that does not depend on the photo.

    Args:
        area: the cells.
        encoder: of the experts that it is fused with.
        cell_mask: (row, col) whether each cell has imagery.
        weight: (row, col) relative weight of each cell, 0 or more.

    Raises:
        ConfigError: no cell with imagery has any weight.
    """

    name = "prior"
    rules_out = True

    def __init__(
        self, area: CellGrid, encoder: EncoderInfo, cell_mask: NDArray[np.bool_], weight: NDArray[np.float64]
    ) -> None:
        weight = np.where(cell_mask, weight, 0.0)
        if not weight.sum() > 0:
            raise ConfigError("the prior leaves no cell with imagery: give a larger --within or --region, or none")
        self.area, self.encoder, self.cell_mask = area, encoder, cell_mask
        self.weight = weight / weight.sum()

    def posterior(self, query: Tensor, options: LocateOptions) -> Posterior:
        """The prior, for each photo."""
        row, col = np.nonzero(self.weight)
        share = np.broadcast_to(self.weight[row, col], (len(query), len(row)))
        posterior = Posterior.from_cells(self.area, row, col, share)
        return posterior.top(1) if options.estimate == "greedy" else posterior

    def uncalibrated(self) -> PriorExpert | None:
        """None: it is not fitted."""
        return None


def near(area: CellGrid, latitude: float, longitude: float, within: float) -> NDArray[np.float64]:
    """(row, col) weight of 1 for cells whose centre lies within a distance of a position, fading over a cell beyond.

    Args:
        area: the cells.
        latitude: degrees (WGS 84).
        longitude: degrees.
        within: metres.

    Raises:
        ConfigError: the position is no place on earth, or the distance is not positive.
    """
    if not (-90 <= latitude <= 90 and -180 <= longitude <= 180) or not 0 < within < np.inf:
        raise ConfigError(f"--near {latitude} {longitude} --within {within} is no circle on earth: is the order right?")
    distance = geodesic_distance(latitude, longitude, *_positions(area))
    return np.clip((within - distance) / area.cell_size + 1, 0.0, 1.0).reshape(area.shape)


def region(area: CellGrid, file: Path) -> NDArray[np.float64]:
    """(row, col) weight of 1 for cells whose centre lies in the polygons of a GeoJSON file.

    Raises:
        ConfigError: the file cannot be read, or holds no polygon.
    """
    try:
        polygons = _polygons(json.loads(file.read_text()))
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file} cannot be read as GeoJSON: {first_line(error)}") from error
    if not polygons:
        raise ConfigError(f"{file} holds no Polygon or MultiPolygon: give a GeoJSON file with one")
    pyramid = as_pyramid(area)
    transform = from_origin(pyramid.west, pyramid.north, pyramid.cell_size, pyramid.cell_size)
    try:
        projected = [transform_geom("EPSG:4326", pyramid.crs, polygon) for polygon in polygons]
        return np.asarray(rasterize(projected, area.shape, fill=0, transform=transform, dtype="uint8"), np.float64)
    except (ValueError, TypeError, KeyError, RasterioError) as error:
        raise ConfigError(f"{file} has a polygon that cannot be used: {first_line(error)}") from error


def raster(area: CellGrid, file: Path) -> NDArray[np.float64]:
    """(row, col) mean of a raster of weights (its first band) in each cell; 0 where it has no data.

    Raises:
        ConfigError: the raster cannot be read, or has negative weights.
    """
    pyramid = as_pyramid(area)
    weight = np.zeros(area.shape, np.float64)
    try:
        with rasterio.open(file) as source:
            reproject(
                rasterio.band(source, 1),
                weight,
                dst_transform=from_origin(pyramid.west, pyramid.north, pyramid.cell_size, pyramid.cell_size),
                dst_crs=pyramid.crs,
                dst_nodata=0.0,
                resampling=Resampling.average,
            )
    except (RasterioError, CRSError, OSError) as error:
        raise ConfigError(f"{file} cannot be read as a raster of weights: {first_line(error)}") from error
    weight = np.nan_to_num(weight, nan=0.0, posinf=0.0, neginf=-1.0)
    if (weight < 0).any():
        raise ConfigError(f"{file} has negative weights: a prior's are 0 or more")
    return weight


def _positions(area: CellGrid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    row, col = (values.ravel() for values in np.indices(area.shape))
    return area.unproject(*area.cell_centers(row, col))


def _polygons(content: Any) -> list[dict[str, Any]]:
    """Every polygon and multi-polygon of a GeoJSON object."""
    kind = content.get("type") if isinstance(content, dict) else None
    if kind == "FeatureCollection":
        return [polygon for feature in content["features"] for polygon in _polygons(feature)]
    if kind == "Feature":
        return _polygons(content["geometry"])
    if kind == "GeometryCollection":
        return [polygon for geometry in content["geometries"] for polygon in _polygons(geometry)]
    return [content] if kind in ("Polygon", "MultiPolygon") else []
