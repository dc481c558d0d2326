"""The zoom to a position, for `jzi tile`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jzi.errors import ConfigError
from jzi.store.geometry.cell_grid import off_earth, swap_hint
from jzi.store.geometry.pyramid import Pyramid, preset
from jzi.store.geometry.scale import units_per_metre
from jzi.workspace.setup.settings_file import load_settings


def describe_area(pyramid: Pyramid) -> str:
    """Describe the area in one line, in metres on the ground."""
    latitude, longitude = pyramid.unproject(pyramid.west + pyramid.size / 2, pyramid.north - pyramid.size / 2)
    units = units_per_metre(pyramid)
    footprints = ", ".join(f"{pyramid.footprint(level) / units:g}" for level in range(pyramid.levels))
    return (
        f"area: {pyramid.size / units:g} m square around {latitude:.6f}, {longitude:.6f}; {pyramid.levels} steps of "
        f"{pyramid.grid} x {pyramid.grid}, tiles of {footprints} m, cells of {pyramid.cell_size / units:.2f} m"
    )


def describe_zoom(pyramid: Pyramid, latitude: float, longitude: float) -> tuple[dict[str, Any], str]:
    """Return the path, tiles and bounds of the zoom to a position, as values for JSON and as text.

    Bounds are in the CRS, sizes in metres on the ground.

    Args:
        pyramid: geometry of the area.
        latitude: degrees (WGS 84).
        longitude: degrees (WGS 84).

    Raises:
        ConfigError: the position is outside the area, or not on earth.
    """
    if wrong := off_earth(latitude, longitude):
        raise ConfigError(wrong)
    path = pyramid.paths(latitude, longitude)[0]
    if path[0] < 0:
        hint = swap_hint(pyramid, latitude, longitude)
        where = f"area{hint}" if hint else describe_area(pyramid)
        raise ConfigError(f"latitude {latitude}, longitude {longitude} is outside the {where}")
    keys, units = pyramid.keys(path), units_per_metre(pyramid)
    tiles = []
    for key in keys:
        bounds = pyramid.tile_bounds(key)
        corner_latitude, corner_longitude = pyramid.unproject(
            [bounds.west, bounds.east, bounds.east, bounds.west],
            [bounds.north, bounds.north, bounds.south, bounds.south],
        )
        tiles.append(
            {
                **key._asdict(),
                "footprint_m": pyramid.footprint(key.level) / units,
                "bounds": list(bounds),
                "corners": np.stack([corner_latitude, corner_longitude], -1).round(8).tolist(),
            }
        )
    center = pyramid.tile_positions(pyramid.levels, keys[-1].row, keys[-1].col)
    values = {
        "latitude": latitude,
        "longitude": longitude,
        "path": path.tolist(),
        "cell_m": pyramid.cell_size / units,
        "cell_latitude": float(center[0]),
        "cell_longitude": float(center[1]),
        "crs": pyramid.crs,
        "tiles": tiles,
    }
    lines = [f"path {path.tolist()}, cell of {pyramid.cell_size / units:.2f} m around {center[0]:.6f}, {center[1]:.6f}"]
    lines += [
        f"  level {key.level}  row {key.row:>4}  col {key.col:>4}  {pyramid.footprint(key.level) / units:>9.2f} m  "
        f"x {bounds.west:.2f} .. {bounds.east:.2f}  y {bounds.south:.2f} .. {bounds.north:.2f}"
        for key, bounds in zip(keys, map(pyramid.tile_bounds, keys), strict=True)
    ]
    return values, "\n".join(lines)


def area_for_tile(name: str | None, config_file: Path) -> Pyramid:
    """Return the pyramid of a preset if one is named, else of `config_file` if it exists, else of just-zoom-in-dc."""
    if name is None and config_file.exists():
        return load_settings(config_file).pyramid
    return preset(name or "just-zoom-in-dc")
