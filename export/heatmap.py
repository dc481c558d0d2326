"""Write probabilities and scores of all cells as Cloud-Optimized GeoTIFFs, by strips of rows."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS
from rasterio.io import MemoryFile
from rasterio.transform import from_origin
from rasterio.windows import Window

from jzi.errors import ExportError
from jzi.export.files import write_file
from jzi.locate.answer.location import Location
from jzi.locate.posterior import Posterior
from jzi.store.geometry.bands import RADIUS, BandGrid
from jzi.store.geometry.cell_grid import CellGrid
from jzi.store.geometry.pyramid import Pyramid

#: Rows of cells that are in memory at once, and side of a block of the raster, pixels.
STRIP = 256

#: Cells along a side above which blocks that search did not reach are nodata, which takes no space: zeros of all cells
#: of 320 km are written in half a minute.
LARGE = 4096

#: Memory of GDAL's cache of blocks, MB; by default it takes 5 % of all memory.
GDAL_MB = 64

_Strip = NDArray[np.float32]


class Frame:
    """The raster on which cells are drawn: a pixel for each cell, in rows of cells.

    Cells of a pyramid are the pixels. Bands are drawn in an equidistant cylindrical projection of the sphere, in which
    they are rows of pixels, and a pixel has the size of a cell in the band nearest to the equator; elsewhere cells are
    a little wider than pixels, and a pixel takes the cell that its centre lies in, so that every cell has one (but
    for those that the antimeridian cuts).

    Args:
        area: the grid of the cells.
    """

    def __init__(self, area: CellGrid) -> None:
        self.area = area
        self.height, self.width = area.shape
        if isinstance(area, BandGrid):
            self._west = float(((area.first - 0.5) * area.step).min())
            east = float(self._east(area).max())
            self.width = math.ceil((east - self._west) / self._pixel(area) - 1e-9)

    @staticmethod
    def _east(grid: BandGrid) -> NDArray[np.float64]:
        """(row,) east edges, radians, that run on beyond the antimeridian."""
        last = grid.first + grid.count - 1
        numbers = grid.cell_numbers(np.arange(grid.rows), grid.count - 1)
        return np.asarray((numbers + 0.5) * grid.step + np.where(numbers < last, 2 * math.pi, 0.0))

    @staticmethod
    def _pixel(grid: BandGrid) -> float:
        return float(grid.step[abs(grid.bands).argmin()])

    @property
    def crs(self) -> str:
        """The projected CRS as WKT, with a name that other programs show."""
        crs = CRS.from_user_input(self._definition)
        if crs.name != "unknown":
            return crs.to_wkt()
        kind = "bands" if isinstance(self.area, BandGrid) else "area"
        bounds = self.area.bounds
        latitude, longitude = self.area.unproject((bounds.west + bounds.east) / 2, (bounds.south + bounds.north) / 2)
        named = {**crs.to_json_dict(), "name": f"jzi {kind} around {float(latitude):.5f}, {float(longitude):.5f}"}
        return CRS.from_json_dict(named).to_wkt()

    @property
    def _definition(self) -> str:
        if not isinstance(self.area, BandGrid):
            return self.area.crs
        nearest = self.area.bands[abs(self.area.bands).argmin()]
        latitude, longitude = math.degrees(nearest * self.area.cell_m / RADIUS), self.area.center[1]
        return (
            f"+proj=eqc +lat_ts={latitude:.12g} +lat_0=0 +lon_0={longitude:.12g} +R={RADIUS:.0f} +units=m +no_defs "
            "+type=crs"
        )

    @cached_property
    def transform(self) -> Affine:
        """From pixels to metres in the CRS."""
        area = self.area
        if isinstance(area, BandGrid):
            middle = math.radians((area.west + area.east) / 2)
            west = (self._west - middle) / self._pixel(area) * area.cell_m
            return from_origin(west, (area.top + 0.5) * area.cell_m, area.cell_m, area.cell_m)
        bounds = area.bounds
        return from_origin(bounds.west, bounds.north, area.cell_size, area.cell_size)

    def draw(self, strip: _Strip, start: int) -> _Strip:
        """(row, pixel) from (row, col) values of the rows from `start` on; nan where there is no cell."""
        grid = self.area
        if not isinstance(grid, BandGrid):
            return strip
        row = np.arange(start, start + len(strip))
        longitude = self._west + (np.arange(self.width) + 0.5) * self._pixel(grid)
        step, count = grid.step[row, None], grid.count[row, None]
        around = np.where(longitude > math.pi, 2 * math.pi, 0.0)
        cells = np.floor((longitude - around) / step + 0.5).astype(np.int64)
        seam = np.ceil(math.pi / step - 0.5).astype(np.int64)
        col = cells - grid.first[row, None] + np.where(around > 0, 2 * seam + 1, 0)
        inside = (col >= 0) & (col < count)
        drawn = np.take_along_axis(strip, np.where(inside, col, 0), 1)
        return np.where(inside, drawn, np.float32(np.nan))


def write_heatmap(path: Path | str, locations: Sequence[Location], cell_mask: NDArray[np.bool_] | None = None) -> None:
    """Write the probability of every cell as a Cloud-Optimized GeoTIFF, a pixel for each cell, one band per photo.

    The CRS is that of a pyramid; for cells in bands see `Frame`.

    Args:
        path: file to write.
        locations: located photos, all on the same cells.
        cell_mask: (row, col) the cells that were searched; the others become nodata. Without it, cells that search did
            not reach are 0 everywhere. Of answers that are not sure, all cells are nodata, and so are, on maps of more
            than `LARGE` cells to a side, blocks of `STRIP` cells that search did not reach.

    Raises:
        ExportError: the file cannot be written.
    """
    content = _heatmap(locations, cell_mask)
    # Not written by GDAL, which does not report that a disk is full
    write_file(path, lambda file: file.write_bytes(content))


def heatmap_bytes(location: Location) -> bytes:
    """Return the file that `write_heatmap` writes of one location."""
    return _heatmap([location], None)


def _heatmap(locations: Sequence[Location], cell_mask: NDArray[np.bool_] | None) -> bytes:
    area = locations[0].posterior.area
    large = isinstance(area, Pyramid) and max(area.shape) > LARGE

    def strip(band: int, start: int, stop: int) -> _Strip | None:
        if not locations[band].sure:
            return None
        values = _probabilities(locations[band].posterior, start, stop)
        if large:
            if not values.any():
                return None
            values[:, ~_reached_blocks(values)] = np.nan
        if cell_mask is not None:
            values[~cell_mask[start:stop]] = np.nan
        return values

    nodata = large or cell_mask is not None or not isinstance(area, Pyramid)
    nodata = nodata or not all(each.sure for each in locations)
    names = [Path(each.photo).name + ("" if each.sure else " (not sure)") for each in locations]
    return _encode(Frame(area), names, strip, nodata)


def _reached_blocks(values: _Strip) -> NDArray[np.bool_]:
    """(col,) whether the block that a column lies in has a value other than 0."""
    blocks = np.add.reduceat(values.any(0), np.arange(0, values.shape[1], STRIP)) > 0
    return np.repeat(blocks, STRIP)[: values.shape[1]]


def _probabilities(posterior: Posterior, start: int, stop: int) -> _Strip:
    """(row, col) probabilities of the first photo in some rows."""
    values = np.zeros((stop - start, posterior.area.shape[1]), np.float32)
    row, col, probability = posterior.row[0], posterior.col[0], posterior.probability[0]
    here = (row >= start) & (row < stop) & (probability > 0)
    values[row[here] - start, col[here]] = probability[here]
    return values


def write_score_map(
    path: Path,
    area: CellGrid,
    logits: Iterable[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.floating[Any]]]],
    name: str = "",
) -> None:
    """Write how well each cell fits one photo, relative to the best one (Fervers et al. 2024, figures 1 and 5).

    The score of a cell is exp(logit - greatest logit), from 0 to 1; cells that do not come are nodata.

    Args:
        path: file to write, a Cloud-Optimized GeoTIFF as `write_heatmap` writes.
        area: the grid of the cells.
        logits: rows (cell,), columns (cell,) and similarities divided by the temperature (cell,), in chunks.
        name: name of the photo.

    Raises:
        ExportError: the file cannot be written, or no cell comes.
    """
    with tempfile.TemporaryFile() as file:  # a state in float32 has 257 MB
        try:
            file.truncate(4 * area.shape[0] * area.shape[1])
            grid = np.memmap(file, np.float32, "r+", shape=area.shape)
            for start in range(0, len(grid), STRIP):
                grid[start : start + STRIP] = np.nan
            greatest = -math.inf
            for row, col, values in logits:
                grid[row, col] = values
                greatest = max(greatest, float(values.max(initial=-math.inf)))
        except OSError as error:
            raise ExportError(f"{path} cannot be written: {error.strerror}") from error
        if not math.isfinite(greatest):
            raise ExportError(f"{path} cannot be written: there is no cell with a score")
        content = _encode(Frame(area), [name], lambda _, start, stop: np.exp(grid[start:stop] - greatest), True)
    write_file(path, lambda file: file.write_bytes(content))


def _encode(frame: Frame, names: Sequence[str], strip: Callable[[int, int, int], _Strip | None], nodata: bool) -> bytes:
    """Return a Cloud-Optimized GeoTIFF of bands from strips of rows; blocks without a value are not stored.

    Args:
        frame: the raster.
        names: (band,) descriptions.
        strip: called with band, first row and row after the last; (row, col) values, nan where there is none, or None
            if there are only such.
        nodata: whether there are any such.
    """
    profile = {"width": frame.width, "height": frame.height, "count": len(names), "dtype": "float32"}
    profile |= {"crs": frame.crs, "transform": frame.transform, "interleave": "band", "compress": "deflate"}
    profile["SPARSE_OK"] = True
    if nodata:
        profile["nodata"] = math.nan
    if frame.width >= STRIP and frame.height >= STRIP:
        profile |= {"tiled": True, "blockxsize": STRIP, "blockysize": STRIP}
    with (
        rasterio.Env(GDAL_CACHEMAX=GDAL_MB),
        MemoryFile() as memory,
        MemoryFile() as optimized,  # most cells are 0, so both are small
    ):
        with memory.open(driver="GTiff", **profile) as raster:
            for band, name in enumerate(names):
                for start in range(0, frame.height, STRIP):
                    values = strip(band, start, min(start + STRIP, frame.height))
                    if values is None:
                        continue
                    drawn = frame.draw(values, start)
                    for left in range(0, frame.width, STRIP):
                        block = drawn[:, left : left + STRIP]
                        if not (np.isnan(block).all() if nodata else (block == 0).all()):
                            window = Window(left, start, block.shape[1], block.shape[0])
                            raster.write(block, band + 1, window=window)
                raster.set_band_description(band + 1, name)
        options = {"driver": "COG", "compress": "deflate", "overview_resampling": "average", "sparse_ok": True}
        rasterio.shutil.copy(memory.name, optimized.name, **options)
        return bytes(optimized.getbuffer())
