"""Images of probabilities where they are, without an array of all cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pyproj import Transformer

from jzi.locate.posterior import Posterior

#: Share of the greatest probability from which a cell is drawn, of its square root.
LEAST = 0.03

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
        at_row, at_col = posterior.area.cells_at(to_latitude.ravel(), to_longitude.ravel())
        cols = posterior.area.shape[1]
        order = (row * cols + col).argsort()
        key = (row * cols + col)[order]
        at = np.minimum(np.searchsorted(key, at_row * cols + at_col), len(key) - 1)
        hit = (at_row >= 0) & (key[at] == at_row * cols + at_col)
        image = np.where(hit, share[order[at]], 0.0).reshape(image.shape)
    np.maximum.at(image, (((north - y) / pixel).astype(int), ((x - west) / pixel).astype(int)), share)
    return Overlay(image, float(west), float(north - height * pixel), float(west + width * pixel), float(north))
