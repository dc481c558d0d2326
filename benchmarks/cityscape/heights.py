"""Read building heights above ground from a raster in a metric CRS."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from pyproj import CRS, Transformer
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from jzi.errors import ConfigError, ImageryError, first_line

from .chance import Area

SAMPLE = 1024  # side in pixels of the sample from which flat and measured roofs are distinguished


@dataclass(frozen=True)
class HeightRaster:
    """A raster of building heights above ground; 0 or nodata without a building.

    Attributes:
        path: file of the raster.
        crs: projected CRS in metres, as an authority code where it has one, else as WKT.
        bounds: covered area, in whole metres.
        step: height difference, metres, from which neighbouring pixels belong to different buildings.
    """

    path: Path
    crs: str
    bounds: Area
    step: float

    @classmethod
    def open(cls, path: Path) -> HeightRaster:
        """Read a raster's CRS and bounds and estimate `step`.

        Raises:
            ImageryError: the raster cannot be read, or its CRS is missing, not projected or not in metres.
        """
        try:
            with rasterio.open(path) as raster:
                crs = CRS.from_user_input(raster.crs) if raster.crs else None
                bounds = raster.bounds
                side = min(SAMPLE, raster.width, raster.height)
                middle = Window((raster.width - side) // 2, (raster.height - side) // 2, side, side)
                sample = raster.read(1, window=middle, masked=True).filled(0)
        except RasterioError as error:
            raise ImageryError(f"{path} cannot be read as a raster: {first_line(error)}") from error
        if crs is None or not crs.is_projected or {axis.unit_conversion_factor for axis in crs.axis_info} != {1.0}:
            name = crs.name if crs else "none"
            raise ImageryError(
                f"{path} has the CRS {name!r}; reproject it to a projected CRS in metres (gdalwarp -t_srs)"
            )
        authority = crs.to_authority()
        west, south = int(np.ceil(bounds.left)), int(np.ceil(bounds.bottom))
        whole = Area(west, south, int(np.floor(bounds.right)) - west, int(np.floor(bounds.top)) - south)
        return cls(path, ":".join(authority) if authority else crs.to_wkt(), whole, _step(sample))

    def window(self, size: int | None, corner: tuple[int, int] | None, center: tuple[float, float] | None) -> Area:
        """Return the square window of a city.

        Args:
            size: side of the window, metres; by default the largest that fits.
            corner: south-west corner, metres from the raster's west and south edges; by default the window is centred.
            center: latitude and longitude of the centre, instead of `corner`.

        Raises:
            ConfigError: the window is not inside the raster.
        """
        whole = self.bounds
        size = size or min(whole.width, whole.height)
        if center:
            to_crs = Transformer.from_crs("EPSG:4326", self.crs, always_xy=True)
            x, y = to_crs.transform(center[1], center[0])
            if not np.isfinite([x, y]).all():
                raise ConfigError(
                    f"--center {center[0]} {center[1]} cannot be projected to the CRS of {self.path}; "
                    "pass LAT LON in degrees"
                )
            corner = round(x - size / 2) - whole.west, round(y - size / 2) - whole.south
        elif corner is None:
            corner = (whole.width - size) // 2, (whole.height - size) // 2
        area = Area(whole.west + corner[0], whole.south + corner[1], size, size)
        if area.within(whole) != area:
            raise ConfigError(
                f"the window of {size} m at {corner[0]} m east and {corner[1]} m north of the corner of {self.path} "
                f"reaches out of it; choose one within its {whole.width} x {whole.height} m"
            )
        return area

    def read(self, area: Area, per_metre: int) -> np.ndarray:
        """Return heights in metres, (rows, cols) float32; 0 without a building and outside the raster."""
        transform = Affine(1 / per_metre, 0, area.west, 0, -1 / per_metre, area.north)
        with rasterio.open(self.path) as raster:
            options = {"nodata": raster.nodata} if raster.nodata is not None else {"add_alpha": True}
            with WarpedVRT(
                raster,
                crs=raster.crs,
                transform=transform,
                width=area.width * per_metre,
                height=area.height * per_metre,
                resampling=Resampling.nearest,
                **options,
            ) as warped:
                values = warped.read(1).astype(np.float32)
                valid = (warped.dataset_mask() > 0) & np.isfinite(values)
            heights = values * np.float32(raster.scales[0]) + np.float32(raster.offsets[0])
        return np.where(valid, heights, 0).clip(0).astype(np.float32)


def _step(sample: np.ndarray) -> float:
    """Return 0.05 m if each building has one height, else 1 m: measured roofs rise by up to 1 m a pixel."""
    built = (sample[:, 1:] != 0) & (sample[:, :-1] != 0)
    level = (sample[:, 1:] == sample[:, :-1])[built]
    return 0.05 if level.size and level.mean() > 0.8 else 1.0
