"""The shares of a photo's cells that a disc around any point covers, and the mean of the posterior within it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jzi.locate.points.bands import COARSE, FINE, NEAR, chords
from jzi.locate.posterior import Posterior
from jzi.store.geometry.bands import RADIUS, BandGrid

_Floats = NDArray[np.float64]


def disc_share(posterior: Posterior, photo: int, x: float, y: float, radius: float) -> _Floats:
    """The share of each cell of a photo within a radius of a point.

    Args:
        posterior: posterior of the photos.
        photo: index of the photo.
        x: of the point in the area's CRS, metres.
        y: of the point, metres.
        radius: metres.

    Returns:
        (cell,) 0..1, exact to a 64th of a cell for discs of up to 32 cells, else along two lines of each cell.
    """
    area = posterior.area
    row, col = posterior.row[photo], posterior.col[photo]
    near = radius <= NEAR * area.cell_size
    lines = FINE if near else COARSE
    share = np.zeros(len(row))
    if isinstance(area, BandGrid):
        latitude, longitude = (np.radians(np.atleast_1d(value)) for value in area.unproject(x, y))
        within = np.flatnonzero(abs(area.bands[row] * area.cell_m - latitude * RADIUS) <= radius + area.cell_m)
        for line in lines:
            for left, right in chords(area, row[within], line, latitude, longitude, radius):
                share[within] += np.clip(np.minimum(right, col[within] + 1) - np.maximum(left, col[within]), 0, 1)
        return np.minimum(share / len(lines), 1.0)
    centre_x, centre_y = (values[photo] for values in posterior.centers)
    right, up = centre_x - x, centre_y - y
    within = np.flatnonzero(right**2 + up**2 <= (radius + area.cell_size) ** 2)
    right, up = right[within], up[within]
    along = (0.5 - np.array(lines)[:, None]) * area.cell_size
    half = np.sqrt(np.maximum(radius**2 - (up + along) ** 2, 0.0))  # (line, cell): chords along lines of each cell
    left = np.maximum(-half, right - area.cell_size / 2)
    covered = np.maximum(np.minimum(half, right + area.cell_size / 2) - left, 0.0).sum(0)
    share[within] = np.minimum(covered / (len(lines) * area.cell_size), 1.0)
    return share


def disc_mean(posterior: Posterior, photo: int, x: float, y: float, weight: _Floats) -> tuple[float, float]:
    """The mean position of cells around a point.

    Args:
        posterior: posterior of the photos.
        photo: index of the photo.
        x: of the point in the area's CRS, metres; the mean is of offsets from it.
        y: of the point, metres.
        weight: (cell,) of the cells; some are positive.

    Returns:
        x and y of the mean in the area's CRS, metres.
    """
    some = np.flatnonzero(weight)
    share = weight[some] / weight[some].sum()
    row, col = posterior.row[photo, some], posterior.col[photo, some]
    area = posterior.area
    if not isinstance(area, BandGrid):
        centre_x, centre_y = area.cell_centers(row, col)
        return float(share @ centre_x), float(share @ centre_y)
    latitude, longitude = area.positions(row, col)
    middle = float(area.unproject(x, y)[1])
    east = np.mod(longitude - middle + 180, 360) - 180  # a disc may span the antimeridian
    mean_x, mean_y = area.project(float(share @ latitude), (middle + float(share @ east) + 180) % 360 - 180)
    return float(mean_x), float(mean_y)
