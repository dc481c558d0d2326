"""Scenes (height fields with colours), cameras and towns.

Scene-local coordinates are metres: x grows east from the WEST edge, y grows north from the SOUTH edge. Rasters
keep the map's order: row 0 is the northernmost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import torch
from pyproj import Transformer
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Scene:
    """A height field with colours, from which both the overhead view and the street photos are rendered.

    The rasters are contiguous tensors on one device.

    Attributes:
        height: (rows, cols) float32, metres above one datum, including terrain, buildings and trees.
        top: (rows, cols, 3) uint8, the colour of a surface seen from above.
        side: (rows, cols, 3) uint8, the colour of the vertical face that ends at this pixel (walls).
        resolution: metres per pixel.
        facade: (rows, cols) uint8, index into `jzi.synth.shade.FACADES` of each vertical face; None: all plain.
    """

    height: Tensor
    top: Tensor
    side: Tensor
    resolution: float
    facade: Tensor | None = None

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.height.shape[0]

    @property
    def cols(self) -> int:
        """Number of columns."""
        return self.height.shape[1]

    @cached_property
    def facing(self) -> Tensor:
        """Downhill direction, (rows, cols) uint8 in 256ths of a turn clockwise from north.

        It is computed from heights averaged over 5 pixels: an oblique wall is a staircase in the raster, and over
        fewer pixels each of its steps would be shaded separately.
        """
        padded = functional.pad(self.height[None, None], (3, 3, 3, 3), mode="replicate")
        smooth = functional.avg_pool2d(padded, 5, stride=1)[0, 0]
        eastward = smooth[1:-1, :-2] - smooth[1:-1, 2:]
        northward = smooth[2:, 1:-1] - smooth[:-2, 1:-1]
        turn = torch.atan2(eastward, northward).mul_(256 / (2 * math.pi)).round_()
        return turn.remainder_(256).to(torch.uint8)

    def pixel(self, x: np.ndarray | float, y: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """Return the (row, col) of the pixels that contain scene-local points, clipped to the raster."""
        row = self.rows - np.asarray(y) / self.resolution
        col = np.asarray(x) / self.resolution
        return (
            np.clip(np.floor(row), 0, self.rows - 1).astype(np.int64),
            np.clip(np.floor(col), 0, self.cols - 1).astype(np.int64),
        )

    def to(self, device: torch.device | str) -> Scene:
        """Return a copy of the scene with its rasters on `device`."""
        facade = None if self.facade is None else self.facade.to(device)
        return Scene(self.height.to(device), self.top.to(device), self.side.to(device), self.resolution, facade)


@dataclass(frozen=True)
class Cameras:
    """Cameras of a batch of n photos; every field is a float array of shape (n,).

    Attributes:
        x: metres east of the scene's west edge.
        y: metres north of the scene's south edge.
        heading_deg: viewing direction, clockwise from north.
        fov_deg: horizontal field of view.
        eye: camera height above the surface, metres.
        pitch_deg: upward tilt; the horizon is shifted and vertical edges stay vertical, as with a shift lens.
        sun_azimuth_deg: direction of the sun, clockwise from north.
        sun_elevation_deg: elevation of the sun above the horizon.
        brightness: exposure; 1 is normal.
        haze: share of contrast lost per metre of air; 0.002 leaves 14 % at 1 km.
        cloud: 0 is a clear sky with hard shadows, 1 is overcast without shadows.
    """

    x: np.ndarray
    y: np.ndarray
    heading_deg: np.ndarray
    fov_deg: np.ndarray
    eye: np.ndarray
    pitch_deg: np.ndarray
    sun_azimuth_deg: np.ndarray
    sun_elevation_deg: np.ndarray
    brightness: np.ndarray
    haze: np.ndarray
    cloud: np.ndarray

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, chosen: slice | np.ndarray) -> Cameras:
        return Cameras(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})

    @classmethod
    def plain(cls, x: np.ndarray, y: np.ndarray, heading_deg: np.ndarray, fov_deg: float = 90.0) -> Cameras:
        """Return level cameras at eye height (1.7 m) in clear afternoon sun."""
        x = np.asarray(x, dtype=np.float64)

        def constant(value: float) -> np.ndarray:
            return np.full_like(x, value)

        return cls(
            x=x,
            y=np.asarray(y, dtype=np.float64),
            heading_deg=np.asarray(heading_deg, dtype=np.float64),
            fov_deg=constant(fov_deg),
            eye=constant(1.7),
            pitch_deg=constant(0),
            sun_azimuth_deg=constant(215),
            sun_elevation_deg=constant(45),
            brightness=constant(1),
            haze=constant(0.001),
            cloud=constant(0),
        )


@dataclass(frozen=True)
class Town:
    """A georeferenced scene with streets.

    Attributes:
        scene: heights and colours.
        street: (rows, cols) bool, carriageways including the cars parked on them.
        street_deg: (rows, cols) float32, direction of the nearest street in [0, 180) degrees clockwise from north.
        crs: projected CRS in metres.
        west: easting of the scene's west edge.
        south: northing of the scene's south edge.
    """

    scene: Scene
    street: np.ndarray
    street_deg: np.ndarray
    crs: str = "EPSG:32633"
    west: float = 390_000.0
    south: float = 5_819_000.0

    def lon_lat(self, x: np.ndarray | float, y: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """Return the WGS 84 longitudes and latitudes of scene-local points, degrees."""
        transformer = Transformer.from_crs(self.crs, "EPSG:4326", always_xy=True)
        return transformer.transform(self.west + np.asarray(x), self.south + np.asarray(y))

    def xy(self, lon: np.ndarray | float, lat: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """Return the scene-local coordinates of WGS 84 points, metres; the inverse of `lon_lat`."""
        transformer = Transformer.from_crs("EPSG:4326", self.crs, always_xy=True)
        easting, northing = transformer.transform(lon, lat)
        return easting - self.west, northing - self.south
