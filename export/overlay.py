"""Images laid over a map: probabilities where they are, the imagery of an area, warped to Web Mercator."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from affine import Affine
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from pyproj import Transformer
from rasterio.enums import Resampling
from rasterio.transform import array_bounds, from_origin
from rasterio.warp import calculate_default_transform, reproject, transform_bounds

from jzi.encode.rasters.imagery import Imagery
from jzi.errors import ImageryError
from jzi.locate.answer.location import Location
from jzi.locate.posterior import Posterior
from jzi.store.geometry.cell_grid import Bounds, CellGrid, longer_side
from jzi.store.geometry.pyramid import Pyramid

#: Sides of the picture of the whole area and of a heat map, pixels.
BACKGROUND, HEAT = 2048, 1536

#: Rasters that are asked for their overviews, a mosaic of thousands of files is made by one program; and pixels of
#: rasters without any up to which the picture of a region is read, some seconds.
ASKED, READ_PIXELS = 8, 2**28

#: Share of the greatest probability from which a cell is drawn, of its square root.
LEAST = 0.03

#: Cells along a side of a map up to which all of it is drawn; of larger ones the window that search reached.
WHOLE = 1024

#: Greatest side of an image, pixels, and pixels along a side of a cell where there is room for them.
PIXELS, CELL_PIXELS = 1024, 4


@dataclass(frozen=True)
class Overlay:
    """The cells of a photo that are worth drawing.

    Attributes:
        share: (row, col) square root of the probability relative to the greatest, 0..1; north is up.
        west: bounds, metres in a projected CRS.
        south: see `west`.
        east: see `west`.
        north: see `west`.
    """

    share: NDArray[np.float64]
    west: float
    south: float
    east: float
    north: float


def draw_cells(posterior: Posterior, crs: str) -> Overlay:
    """Draw the probable cells of the first photo in the rectangle that contains them.

    Every cell has a pixel at least, and its outline where there is room.

    Args:
        posterior: posterior of the photo.
        crs: a projected CRS in metres.
    """
    probability = posterior.probability[0]
    share = np.sqrt(probability / max(float(probability.max(initial=0.0)), 1e-300))
    drawn = np.flatnonzero(share > LEAST)
    row, col, share = posterior.row[0][drawn], posterior.col[0][drawn], share[drawn]
    latitude, longitude = posterior.area.unproject(*posterior.area.cell_centers(row, col))
    to_crs = Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    x, y = to_crs.transform(longitude, latitude)
    margin = 3 * posterior.area.cell_size
    west, south, east, north = x.min() - margin, y.min() - margin, x.max() + margin, y.max() + margin
    pixel = max(posterior.area.cell_size / CELL_PIXELS, max(east - west, north - south) / PIXELS)
    width, height = int(np.ceil((east - west) / pixel)), int(np.ceil((north - south) / pixel))
    image = np.zeros((height, width))
    if pixel < posterior.area.cell_size:
        right, down = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
        to_longitude, to_latitude = to_crs.transform(west + right * pixel, north - down * pixel, direction="INVERSE")
        at = to_latitude.ravel(), to_longitude.ravel()
        image = values_at(posterior.area, row, col, share, *at).reshape(image.shape)
    np.maximum.at(image, (((north - y) / pixel).astype(int), ((x - west) / pixel).astype(int)), share)
    return Overlay(image, float(west), float(north - height * pixel), float(west + width * pixel), float(north))


def values_at(
    area: CellGrid,
    row: NDArray[np.integer[Any]],
    col: NDArray[np.integer[Any]],
    values: NDArray[np.float64],
    latitude: NDArray[np.float64],
    longitude: NDArray[np.float64],
) -> NDArray[np.float64]:
    """(n,) values of the cells that contain n positions; 0 where there is none.

    Args:
        area: the grid of the cells.
        row: (cell,) rows of one cell or more.
        col: (cell,) their columns.
        values: (cell,) their values.
        latitude: (n,) degrees.
        longitude: (n,) degrees.
    """
    at_row, at_col = area.cells_at(latitude, longitude)
    cols = area.shape[1]
    order = (row * cols + col).argsort()
    key = (row * cols + col)[order]
    at = np.minimum(np.searchsorted(key, at_row * cols + at_col), len(key) - 1)
    hit = (at_row >= 0) & (key[at] == at_row * cols + at_col)
    return np.where(hit, values[order[at]], 0.0)


def background_overlay(imagery: Imagery | None) -> dict[str, Any] | None:
    """Return the imagery of the whole area as a Leaflet image overlay.

    None without imagery, and for a region of which more pixels would have to be read than `READ_PIXELS`.
    """
    if imagery is None:
        return None
    area = imagery.area
    pixels = sum(raster.width * raster.height for raster in imagery.rasters)
    if not isinstance(area, Pyramid) and pixels > READ_PIXELS and not has_overviews(imagery):
        return None
    bounds, side = area.bounds, longer_side(area)
    rows, cols = (max(1, round(BACKGROUND * each / side)) for each in
                  (bounds.north - bounds.south, bounds.east - bounds.west))  # fmt: skip
    image, covered = imagery.render(bounds, (rows, cols))
    alpha = np.where(covered, 255, 0).astype(np.uint8)
    return warped_overlay(np.dstack([image, alpha]), area.crs, bounds, Resampling.bilinear)


def has_overviews(imagery: Imagery) -> bool:
    """Whether coarse pictures of the imagery can be read from overviews, judged by its first rasters."""
    try:
        return all(raster.overviews for raster in imagery.rasters[:ASKED])
    except ImageryError:
        return False


def is_quick_to_read(imagery: Imagery, bounds: Bounds) -> bool:
    """Whether a coarse picture of a rectangle of the area needs at most `READ_PIXELS`, or is read from overviews."""
    pixels = 0.0
    for raster, extent in zip(imagery.rasters, imagery.extents, strict=True):
        width = min(extent.east, bounds.east) - max(extent.west, bounds.west)
        height = min(extent.north, bounds.north) - max(extent.south, bounds.south)
        if width > 0 and height > 0:
            whole = (extent.east - extent.west) * (extent.north - extent.south)
            pixels += width * height / whole * raster.width * raster.height
    return pixels <= READ_PIXELS or has_overviews(imagery)


def heat_overlay(location: Location) -> dict[str, Any]:
    """Return the posterior as a coloured Leaflet image overlay; improbable cells are transparent."""
    area = location.posterior.area
    if not isinstance(area, Pyramid) or max(area.shape) > WHOLE:
        drawn = draw_cells(location.posterior, "EPSG:3857")
        bounds = drawn.west, drawn.south, drawn.east, drawn.north
        return placed_overlay(colours(drawn.share), bounds, lossless=True)
    grid = location.posterior.grid()
    image = colours(np.sqrt(grid / grid.max()))
    factor = max(1, HEAT // len(grid))  # so that borders of cells are where they belong after warping
    return warped_overlay(image.repeat(factor, 0).repeat(factor, 1), area.crs, area.bounds, Resampling.nearest)


def warped_overlay(image: NDArray[np.uint8], crs: str, bounds: Bounds, resampling: Resampling) -> dict[str, Any]:
    """Warp a (row, col, 4) image of a rectangle of a CRS to Web Mercator; the overlay has its corners."""
    height, width = image.shape[:2]
    source: Affine = from_origin(
        bounds.west, bounds.north, (bounds.east - bounds.west) / width, (bounds.north - bounds.south) / height
    )
    transform, columns, rows = calculate_default_transform(crs, "EPSG:3857", width, height, *bounds)
    warped = np.zeros((4, rows, columns), np.uint8)
    reproject(
        np.ascontiguousarray(np.moveaxis(image, -1, 0)),
        warped,
        src_transform=source,
        src_crs=crs,
        dst_transform=transform,
        dst_crs="EPSG:3857",
        resampling=resampling,
    )
    return placed_overlay(
        np.moveaxis(warped, 0, -1), array_bounds(rows, columns, transform), lossless=resampling == Resampling.nearest
    )  # few colours, sharp edges


def colours(share: NDArray[np.float64]) -> NDArray[np.uint8]:
    """(row, col, 4) colours of (row, col) square roots of relative probabilities."""
    image = (colormaps["inferno"](0.25 + 0.75 * share) * 255).astype(np.uint8)
    image[..., 3] = (255 * np.minimum(1.0, 1.5 * share) * (share > LEAST)).astype(np.uint8)
    return np.asarray(image)


def placed_overlay(
    image: NDArray[np.uint8], corners: tuple[float, float, float, float], *, lossless: bool = False
) -> dict[str, Any]:
    """A (row, col, 4) image in Web Mercator as an overlay; corners are west, south, east, north in metres."""
    west, south, east, north = transform_bounds("EPSG:3857", "EPSG:4326", *corners)
    return {
        "image": data_url(Image.fromarray(image), "WEBP", lossless=lossless),
        "bounds": [[south, west], [north, east]],
    }


def lat_lon_bounds(area: CellGrid) -> list[list[float]]:
    """Return the south-west and north-east corners of the area as [latitude, longitude]."""
    west, south, east, north = transform_bounds(area.crs, "EPSG:4326", *area.bounds)
    return [[south, west], [north, east if east > west else east + 360]]


def jpeg_url(image: Image.Image) -> str:
    """Return the image as a data URL of a JPEG."""
    return data_url(image, "JPEG")


def data_url(image: Image.Image, format: str, *, lossless: bool = False) -> str:
    """Return the image as a data URL of the format, such as "WEBP"."""
    buffer = io.BytesIO()
    image.save(buffer, format, quality=85, lossless=lossless)
    return f"data:image/{format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
