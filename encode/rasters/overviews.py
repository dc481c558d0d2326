"""How many pixels of the imagery a level of detail makes GDAL read, and the overviews that would save it.

Overviews are smaller copies of a raster inside of it or beside it. Without them, an image of coarse pixels is averaged
from the finest ones: at 1.6 m from imagery of 0.15 m, from 114 each.
"""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass

from jzi.encode.rasters.cell_crops import CellCrops
from jzi.encode.rasters.raster import Raster
from jzi.errors import ImageryError
from jzi.store.geometry.cell_grid import Bounds

#: Source pixels per pixel of an image from which overviews are advised. With overviews of all powers of 2, at most 16
#: are read: imagery is averaged to twice the resolution of the image, from an overview of less than twice that.
MANY = 64

#: Source pixels per training sample from which training is refused: more than a second of a core, which decodes some
#: 200 million pixels per second, and so 90 days of a core for the 6 million samples of Fervers et al. 2024.
HOPELESS = 2**28


@dataclass(frozen=True)
class ReadingCost:
    """What images of cells cost to read.

    Attributes:
        per_pixel: source pixels read per pixel of an image of each level, of the raster that needs most.
        per_sample: source pixels read per turned cell with all levels, for training, on average over rotations.
        rasters: rasters that lack overviews.
        factors: overviews that they lack.
        resampling: how to make them: "average", or "nearest" for rasters with a colour table.
    """

    per_pixel: tuple[float, ...]
    per_sample: int
    rasters: tuple[str, ...] = ()
    factors: tuple[int, ...] = ()
    resampling: str = "average"

    @property
    def commands(self) -> list[str]:
        """For each raster that lacks overviews, the command that makes them, in a file beside it."""
        factors = " ".join(map(str, self.factors))
        return [f"gdaladdo -ro -r {self.resampling} {shlex.quote(raster)} {factors}" for raster in self.rasters]

    @property
    def warning(self) -> str | None:
        """What to do about missing overviews; None if reading is cheap."""
        if not self.rasters:
            return None
        factors = ",".join(map(str, self.factors))
        rio = f"rio overview --build {factors} --resampling {self.resampling} {shlex.quote(self.rasters[0])}"
        more = len(self.rasters) - 1
        return (
            f"{self.rasters[0]} has no overviews for the coarse levels of detail, so that a pixel of them is read from "
            f"{max(self.per_pixel):.0f} of the raster: run `{self.commands[0]}`, or before anything is encoded `{rio}`"
            + (f", and the same for {more} more" if more else "")
        )


def reading_cost(crops: CellCrops) -> ReadingCost:
    """Compute what the images of cells cost to read, from the sizes of pixels and the overviews of the rasters.

    Raises:
        ImageryError: a raster cannot be read.
    """
    worst = [0.0] * len(crops.lods_m)
    lacking: list[Raster] = []
    factors: set[int] = set()
    for raster, extent in zip(crops.imagery.rasters, crops.imagery.extents, strict=True):
        sizes = _pixels_per_pixel(crops, raster, extent)
        if sizes is None:
            continue
        stored = [1, *raster.overviews]
        costs = [(size / max(f for f in stored if f <= max(1.0, size / 2))) ** 2 for size in sizes]
        worst = [max(pair) for pair in zip(worst, costs, strict=True)]
        if max(costs) > MANY:
            lacking.append(raster)
            factors |= {2**power for power in range(1, math.floor(math.log2(max(sizes) / 2)) + 1)}
    # The square around a turned one is (|cos| + |sin|)^2 times as large, on average 1 + 2 / pi
    turned = (1 + 2 / math.pi) * crops.image_size**2
    nearest = any(raster.palette is not None for raster in lacking)
    return ReadingCost(
        tuple(worst),
        round(turned * sum(worst)),
        tuple(raster.path for raster in lacking),
        tuple(sorted(factors)),
        "nearest" if nearest else "average",
    )


def check_training_reads(cost: ReadingCost) -> str | None:
    """Return the warning about missing overviews, if any, for training.

    Raises:
        ImageryError: a training sample would read more than `HOPELESS` source pixels.
    """
    if cost.rasters and cost.per_sample > HOPELESS:
        raise ImageryError(
            f"each training sample would read {cost.per_sample / 1e6:,.0f} million pixels, more than "
            f"{HOPELESS / 1e6:,.0f} million, because {cost.warning}"
        )
    return cost.warning


def _pixels_per_pixel(crops: CellCrops, raster: Raster, extent: Bounds) -> list[float] | None:
    """Source pixels along a side of a pixel of each level, in the middle of what of the area the raster covers."""
    area = crops.imagery.area.bounds
    west, east = max(extent.west, area.west), min(extent.east, area.east)
    south, north = max(extent.south, area.south), min(extent.north, area.north)
    if west >= east or south >= north:
        return None
    latitude, longitude = crops.imagery.area.unproject((west + east) / 2, (south + north) / 2)
    crs, x, y = crops.frame_at(float(latitude), float(longitude))
    half = crops.grid.cell_size / 2
    per_cell = raster.pixels_across(crs, Bounds(x - half, y - half, x + half, y + half))
    return None if per_cell is None else [per_cell * metres / crops.grid.cell_size for metres in crops.lods_m]
