"""Tiles of the user's imagery in Web Mercator (XYZ), for maps: rendered one by one, or a pyramid around some points."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rasterio.warp import transform_bounds

from jzi.encode.rasters.imagery import Imagery
from jzi.export.overlay import BACKGROUND, has_overviews
from jzi.store.geometry.cell_grid import Bounds

#: Side of a tile, pixels.
TILE = 256

#: Radius of the sphere of Web Mercator, metres, and half of the side of its square (EPSG:3857).
RADIUS = 6378137.0
HALF = math.pi * RADIUS

#: Greatest zoom: 3.7 cm a pixel at the equator.
MAX_ZOOM = 22

#: Zooms below the finest one whose tiles are read from rasters without overviews: a tile of the coarsest takes
#: 4096 x 4096 pixels of the raster, a third of a second. Coarser maps are the picture of the whole area.
PLAIN_ZOOMS = 4

#: Tiles around the answer, and around another candidate, from the point to the centre of a tile, in tiles.
NEAR, NEAR_OTHER = 2.6, 1.1

#: Bytes of the tiles that a file embeds, and their number; base64 makes 4 MB of 3.
EMBEDDED_BYTES, EMBEDDED = 3_000_000, 2000


class MapTiles:
    """Renders tiles of imagery, within its area and no other.

    Args:
        imagery: what is drawn.

    Attributes:
        low: least zoom; where `low` > `high`, there is no tile, as the picture of the area shows every pixel.
        high: greatest zoom, at which a pixel of a tile is not larger than one of the finest raster.
    """

    def __init__(self, imagery: Imagery) -> None:
        self.imagery, self.area = imagery, imagery.area
        self._bounds = Bounds(*transform_bounds(self.area.crs, "EPSG:3857", *self.area.bounds, densify_pts=21))
        latitude, _ = (float(each) for each in self.area.unproject(*_centre(self.area.bounds)))
        finest = min(
            max((extent.east - extent.west) / raster.width, 1e-3)
            for raster, extent in zip(imagery.rasters, imagery.extents, strict=True)
        )
        metres = math.cos(math.radians(latitude)) * 2 * HALF / TILE  # a pixel of zoom 0
        self.high = min(MAX_ZOOM, math.ceil(math.log2(metres / finest) - 0.01))
        width = max(self._bounds.east - self._bounds.west, self._bounds.north - self._bounds.south)
        self.low = max(0, math.floor(math.log2(2 * HALF / TILE / (width / BACKGROUND))) + 1)
        if width > HALF:  # across the antimeridian, where the rectangle is the whole earth
            self.low, self.high = 1, 0
        elif not has_overviews(imagery):
            self.low = max(self.low, self.high - PLAIN_ZOOMS)

    def __bool__(self) -> bool:
        return self.low <= self.high

    def covers(self, z: int, x: int, y: int) -> bool:
        """Whether a tile may be drawn: its zoom is one of `low`..`high` and it overlaps the area."""
        if not (self.low <= z <= self.high and 0 <= x < 2**z and 0 <= y < 2**z):
            return False
        tile, area = tile_bounds(z, x, y), self._bounds
        return tile.west < area.east and area.west < tile.east and tile.south < area.north and area.south < tile.north

    def render(self, z: int, x: int, y: int) -> bytes | None:
        """Return a tile as WebP, transparent outside of the imagery and of the area; None if it would be empty.

        Args:
            z: zoom.
            x: column from the west.
            y: row from the north.

        Raises:
            ImageryError: a raster cannot be read there.
        """
        if not self.covers(z, x, y):
            return None
        bounds = tile_bounds(z, x, y)
        image, shown = self.imagery.render(bounds, TILE, "EPSG:3857")
        shown = shown & self._in_area(bounds)
        if not shown.any():
            return None
        if not shown.all():
            image = np.dstack([image, np.where(shown, 255, 0).astype(np.uint8)])
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "WEBP", quality=80)
        return buffer.getvalue()

    def _in_area(self, bounds: Bounds) -> NDArray[np.bool_]:
        """(row, col) whether the centre of each pixel of a tile lies in the area."""
        at = (np.arange(TILE) + 0.5) * (bounds.east - bounds.west) / TILE
        x, y = np.meshgrid(bounds.west + at, bounds.north - at)
        longitude, latitude = np.degrees(x / RADIUS), np.degrees(2 * np.arctan(np.exp(y / RADIUS)) - np.pi / 2)
        x, y = self.area.project(latitude, longitude)
        area = self.area.bounds
        return np.asarray((area.west <= x) & (x <= area.east) & (area.south <= y) & (y <= area.north))


def tile_bounds(z: int, x: int, y: int) -> Bounds:
    """Return the rectangle of a tile in EPSG:3857, metres."""
    side = 2 * HALF / 2**z
    return Bounds(x * side - HALF, HALF - (y + 1) * side, (x + 1) * side - HALF, HALF - y * side)


def embedded_tiles(tiles: MapTiles, photos: Sequence[Sequence[tuple[float, float]]]) -> dict[str, str]:
    """Return the tiles around answers as data URLs by "z/x/y", at every zoom.

    Tiles nearest to the points come first, until `EMBEDDED_BYTES` are reached: one photo has all of them, of many
    photos each has the nearest.

    Args:
        tiles: renders them.
        photos: for each photo latitude and longitude of the answer and of the other candidates.

    Raises:
        ImageryError: a raster cannot be read there.
    """
    wanted: dict[tuple[int, int, int], float] = {}
    for points in photos:
        for rank, (latitude, longitude) in enumerate(points):
            reach, later = (NEAR_OTHER, NEAR) if rank else (NEAR, 0.0)
            for z in range(tiles.low, tiles.high + 1):
                for x, y, distance in _around(latitude, longitude, z, reach):
                    key = z, x, y
                    wanted[key] = min(distance + later, wanted.get(key, math.inf))
    images, held = {}, 0
    for key in sorted(wanted, key=lambda key: wanted[key])[:EMBEDDED]:
        tile = tiles.render(*key)
        if tile is None:
            continue
        held += len(tile)
        if held > EMBEDDED_BYTES:
            break
        images["/".join(map(str, key))] = f"data:image/webp;base64,{base64.b64encode(tile).decode()}"
    return images


def _around(latitude: float, longitude: float, z: int, reach: float) -> Iterable[tuple[int, int, float]]:
    """Column, row and distance (in tiles) of the tiles near a point."""
    across = (math.radians(longitude) * RADIUS + HALF) / (2 * HALF) * 2**z
    mercator = RADIUS * math.log(math.tan(math.pi / 4 + math.radians(latitude) / 2))
    down = (HALF - mercator) / (2 * HALF) * 2**z
    steps = range(-math.ceil(reach), math.ceil(reach) + 1)
    for x in (int(across) + step for step in steps):
        for y in (int(down) + step for step in steps):
            distance = max(abs(x + 0.5 - across), abs(y + 0.5 - down))
            if distance <= reach:
                yield x, y, distance


def tile_data(tiles: MapTiles | None) -> dict[str, Any] | None:
    """Return the zooms of the tiles for `map.js`; None if there are none."""
    return {"low": tiles.low, "high": tiles.high} if tiles else None


def _centre(bounds: Bounds) -> tuple[float, float]:
    return (bounds.west + bounds.east) / 2, (bounds.south + bounds.north) / 2
