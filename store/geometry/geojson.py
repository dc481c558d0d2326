"""Read the polygons of a GeoJSON text (RFC 7946), within limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from jzi.errors import ConfigError, first_line

#: Largest text, MB (10^6 bytes), and maximum depth of objects that contain objects.
MAX_MB, MAX_DEPTH = 20, 8


def read_polygons(file: Path) -> tuple[dict[str, Any], ...]:
    """Read the polygons of a file; errors as `parse_polygons`."""
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_MB * 10**6 + 1)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror or first_line(error)}") from error
    return parse_polygons(content, str(file))


def parse_polygons(content: bytes | str, name: str) -> tuple[dict[str, Any], ...]:
    """Every Polygon and MultiPolygon of a GeoJSON text; other geometries are skipped.

    Args:
        content: the text.
        name: name of the text in errors.

    Raises:
        ConfigError: the text is too large, is no GeoJSON, contains no polygon, or a position is not in degrees.
    """
    if len(content) > MAX_MB * 10**6:
        raise ConfigError(f"{name} has more than {MAX_MB} MB: give a region with fewer points")
    try:
        polygons = _polygons(json.loads(content), 0)
        rings = [ring for polygon in polygons for ring in _rings(polygon)]
    except (ValueError, RecursionError, KeyError, TypeError, OverflowError) as error:
        raise ConfigError(f"{name} cannot be read as GeoJSON: {_reason(error)}") from error
    if not rings:
        raise ConfigError(f"{name} contains no Polygon or MultiPolygon: give a GeoJSON file with one")
    positions = np.concatenate(rings)
    if (abs(positions) <= (540, 90)).all() and (beyond := abs(positions[:, 0]) > 180).any():
        raise ConfigError(
            f"{name} has longitude {positions[beyond][0, 0]:g}, which is not between -180 and 180 degrees: split a "
            "region that crosses the antimeridian there into two polygons, as RFC 7946 says"
        )
    if not (np.isfinite(positions).all() and (abs(positions) <= (180, 90)).all()):
        raise ConfigError(f"{name} has a position that is not longitude, latitude in degrees: export it in WGS 84")
    return tuple(polygons)


def _polygons(content: Any, depth: int) -> list[dict[str, Any]]:
    if depth > MAX_DEPTH:
        raise ValueError(f"its collections are nested more than {MAX_DEPTH} deep")
    kind = content.get("type") if isinstance(content, dict) else None
    if kind == "Feature":
        return _polygons(content["geometry"], depth + 1) if content["geometry"] else []
    if kind in ("FeatureCollection", "GeometryCollection"):
        parts = content["features" if kind == "FeatureCollection" else "geometries"]
        return [polygon for part in parts for polygon in _polygons(part, depth + 1)]
    if kind in ("Polygon", "MultiPolygon"):
        return [{"type": kind, "coordinates": content["coordinates"]}]
    if kind not in ("Point", "MultiPoint", "LineString", "MultiLineString"):
        raise ValueError("it is no GeoJSON object")
    return []


def _rings(polygon: dict[str, Any]) -> list[np.ndarray]:
    """(position, 2) longitude and latitude of each ring."""
    coordinates = polygon["coordinates"]
    parts = [coordinates] if polygon["type"] == "Polygon" else coordinates
    rings = [np.array([position[:2] for position in ring], np.float64) for part in parts for ring in part]
    if any(ring.ndim != 2 or ring.shape[1] != 2 or len(ring) < 4 for ring in rings):
        raise ValueError("a ring of a polygon has fewer than four positions")
    return rings


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    return f"it lacks {error}" if isinstance(error, KeyError) else first_line(error)
