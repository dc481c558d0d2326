"""The points of a map with the most probability within a radius.

Photos are processed one at a time, and large discs by rows of cells, so memory depends neither on the radius nor on the
number of photos.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from jzi.errors import ConfigError
from jzi.locate.points.bands import BandCover
from jzi.locate.points.disc_share import disc_mean, disc_share
from jzi.locate.posterior import Points, Posterior
from jzi.locate.ranges import CANDIDATES, DISTANCE
from jzi.store.geometry.bands import RADIUS, BandGrid
from jzi.store.geometry.cell_grid import CellGrid, longer_side
from jzi.store.geometry.scale import units_per_metre

#: Grid of possible disc centres in a cell: points per side.
POINTS = 4

#: Number of most probable cells in which a disc may be centred.
CENTRES = 128

#: Radius in cells up to which the share of a cell that a disc covers is measured at 8 x 8 samples, and the lines of a
#: cell along which it is measured above.
SAMPLED_RADIUS, LINES = 32.0, (0.25, 0.75)


def check_radius(area: CellGrid, radius: float) -> None:
    """Raise an error unless a radius is of use on a map.

    Args:
        area: the grid of the cells.
        radius: metres on the ground.

    Raises:
        ConfigError: the radius is not a number greater than 0, or is longer than the area's longer side.
    """
    DISTANCE.check("radius", radius)
    side = longer_side(area) / units_per_metre(area)
    if radius > side * (1 + 1e-9):
        raise ConfigError(f"radius is {radius:g} m, more than the area's side of {side:g} m: give a smaller one")


def most_probable_discs(posterior: Posterior, radius: float, count: int = 1, *, mean: bool = False) -> Points:
    """The points with the most probability within a radius, chosen greedily.

    No two points of a photo lie within the radius of each other, and no probability is counted twice: what a point
    covers is removed before the next one is chosen.

    Args:
        posterior: posterior of the photos.
        radius: metres on the ground; at most the area's side.
        count: points per photo, 1..1000.
        mean: whether each point is moved to the mean of the posterior within the radius around it, unless that lies
            within the radius of a better one. Its probability is that within the radius of where it is then.

    Raises:
        ConfigError: a number is out of range.

    Example:
        >>> from jzi.store.geometry.pyramid import Pyramid
        >>> pyramid = Pyramid.around(48.2, 16.37, 160.0, levels=2)  # 16 x 16 cells of 10 m
        >>> row, col = np.array([3, 3, 9]), np.array([5, 6, 2])
        >>> posterior = Posterior.from_cells(pyramid, row, col, np.array([0.4, 0.3, 0.2]))
        >>> float(most_probable_discs(posterior, radius=15.0).probability[0, 0].round(3))
        0.7
    """
    check_radius(posterior.area, radius)
    CANDIDATES.check("count", count)
    radius *= units_per_metre(posterior.area)
    shape = len(posterior), count
    points = Points(np.empty(shape), np.empty(shape), np.zeros(shape, np.int64), np.zeros(shape))
    within = ((np.arange(POINTS) + 0.5) / POINTS - 0.5) * posterior.area.cell_size
    dx, dy = (each.ravel() for each in np.meshgrid(within, -within))  # row 0 is north
    for photo in range(len(posterior)):
        if isinstance(posterior.area, BandGrid):
            x, y, cover = _on_bands(posterior, posterior.area, photo, radius, dx, dy)
        else:
            x, y = (values[photo, :CENTRES, None] for values in posterior.centers)
            x, y = x + dx, y + dy
            far = radius > SAMPLED_RADIUS * posterior.area.cell_size
            cover = (_ChordCover if far else _SampledCover)(posterior, photo, radius)
        _choose(posterior, photo, radius, x, y, cover, points, mean)
    return points


def _on_bands(
    posterior: Posterior, grid: BandGrid, photo: int, radius: float, dx: NDArray[np.float64], dy: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], _Cover]:
    """(cell, point) x and y of the possible points, and what discs around them cover; cells are turned in x and y."""
    row, col = posterior.row[photo, :CENTRES], posterior.col[photo, :CENTRES]
    latitude, longitude = (values[:, None] for values in grid.positions(row, col))
    latitude = latitude + np.degrees(dy / RADIUS)
    longitude = longitude + np.degrees(dx / grid.cell_m * grid.step[row][:, None])
    return *grid.project(latitude, longitude), BandCover(posterior, photo, radius, latitude, longitude)


def _choose(
    posterior: Posterior,
    photo: int,
    radius: float,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    cover: _Cover,
    points: Points,
    mean: bool,
) -> None:
    """Write the points of one photo into `points`; x and y are (cell, point) the possible ones."""
    probability = posterior.probability[photo].copy()
    possible = np.broadcast_to((probability[: len(x)] > 0)[:, None], x.shape).copy()
    points.x[photo], points.y[photo] = x[0, 0], y[0, 0]
    for rank in range(points.x.shape[1]):
        if not possible.any():
            break
        mass = cover.mass(probability)
        best = np.unravel_index(np.where(possible, mass, -1.0).argmax(), mass.shape)
        at, cell = (float(x[best]), float(y[best])), int(best[0])
        share = disc_share(posterior, photo, *at, radius) if mean else None
        if share is not None and probability @ share > 0:
            moved = disc_mean(posterior, photo, *at, probability * share)
            earlier = np.hypot(points.x[photo, :rank] - moved[0], points.y[photo, :rank] - moved[1])
            if (earlier > radius).all():
                at, share = moved, disc_share(posterior, photo, *moved, radius)
                cell = _nearest(posterior, photo, *at)
            points.probability[photo, rank] = probability @ share
            probability *= 1 - share
        else:
            points.probability[photo, rank] = mass[best]
            cover.remove(probability, cell, int(best[1]))
        points.x[photo, rank], points.y[photo, rank] = at
        points.cell[photo, rank] = cell
        possible &= (x - at[0]) ** 2 + (y - at[1]) ** 2 > radius**2


def _nearest(posterior: Posterior, photo: int, x: float, y: float) -> int:
    """Index of the cell with some probability that lies nearest to a point: as a rule the one that contains it."""
    centre_x, centre_y = (values[photo] for values in posterior.centers)
    distance = np.where(posterior.probability[photo] > 0, (centre_x - x) ** 2 + (centre_y - y) ** 2, np.inf)
    return int(distance.argmin())


class _Cover(Protocol):
    """Shares of a photo's cells that discs around the possible points cover."""

    def mass(self, probability: NDArray[np.float64]) -> NDArray[np.float64]:
        """(cell, point) probability that each disc covers, given the (cell,) probabilities."""
        ...

    def remove(self, probability: NDArray[np.float64], cell: int, point: int) -> None:
        """Remove from the probabilities what a disc covers."""
        ...


class _SampledCover:
    """Shares by a table of the offsets of a disc's cells."""

    def __init__(self, posterior: Posterior, photo: int, radius: float) -> None:
        rows, cols = posterior.area.shape
        row, col = posterior.row[photo], posterior.col[photo]
        offset, self.shares = _sampled_shares(posterior.area.cell_size, radius)
        key = np.where(posterior.probability[photo] == 0, -1, row * cols + col)
        order = np.argsort(key)
        ordered = key[order]
        near_row = row[:CENTRES, None] + offset[:, 0]  # (cell, neighbour)
        near_col = col[:CENTRES, None] + offset[:, 1]
        near_key = near_row * cols + near_col
        at = np.minimum(np.searchsorted(ordered, near_key), len(ordered) - 1)
        self.inside = (near_row >= 0) & (near_row < rows) & (near_col >= 0) & (near_col < cols)
        self.inside &= ordered[at] == near_key
        self.neighbour = order[at]

    def mass(self, probability: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.where(self.inside, probability[self.neighbour], 0.0) @ self.shares.T)

    def remove(self, probability: NDArray[np.float64], cell: int, point: int) -> None:
        share = np.where(self.inside[cell], self.shares[point], 0.0)
        np.multiply.at(probability, self.neighbour[cell], 1 - share)


class _ChordCover:
    """Shares by the chords of a disc in the rows of cells; sums along a row are differences of a prefix sum."""

    def __init__(self, posterior: Posterior, photo: int, radius: float) -> None:
        self.radius, self.cols = radius / posterior.area.cell_size, posterior.area.shape[1]  # radius in cells
        self.row, self.col = posterior.row[photo], posterior.col[photo]
        key = np.where(posterior.probability[photo] == 0, -1, self.row * self.cols + self.col)
        self.order = np.argsort(key)
        self.key = key[self.order]
        self.rows = np.unique(self.key[self.key >= 0] // self.cols)
        within = (np.arange(POINTS) + 0.5) / POINTS  # row 0 is north
        self.right, self.down = (each.ravel() for each in np.meshgrid(within, within))

    def mass(self, probability: NDArray[np.float64]) -> NDArray[np.float64]:
        ordered = probability[self.order]
        before = np.concatenate([[0.0], ordered.cumsum()])

        def sum_before(rows: NDArray[np.int64], position: NDArray[np.float64]) -> NDArray[np.float64]:
            cell = np.floor(position)
            key = rows * self.cols + cell.astype(np.int64)
            index = np.searchsorted(self.key, key)
            at = np.minimum(index, len(ordered) - 1)
            return np.asarray(before[index] + (self.key[at] == key) * ordered[at] * (position - cell))

        mass = np.zeros((min(CENTRES, len(self.row)), POINTS * POINTS))
        for cell in range(len(mass)):
            rows = self.rows[abs(self.rows - self.row[cell]) <= self.radius + 1]
            for left, right in self._chords(rows, cell):  # (row, point)
                ends = (sum_before(rows[:, None], np.clip(end, 0, self.cols)) for end in (right, left))
                mass[cell] += np.subtract(*ends).sum(0) / len(LINES)
        return mass

    def remove(self, probability: NDArray[np.float64], cell: int, point: int) -> None:
        share = np.zeros(len(probability))
        for left, right in self._chords(self.row, cell, point):
            overlap = np.minimum(right[:, 0], self.col + 1) - np.maximum(left[:, 0], self.col)
            share += np.clip(overlap, 0, 1) / len(LINES)
        probability *= 1 - share

    def _chords(
        self, rows: NDArray[np.int64], cell: int, point: int | None = None
    ) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """(row, point) columns at which the discs around points of a cell begin and end, along each line of rows."""
        points = slice(None) if point is None else slice(point, point + 1)
        right, down = self.col[cell] + self.right[points], self.row[cell] + self.down[points]
        for line in LINES:
            half = np.sqrt(np.maximum(self.radius**2 - (rows[:, None] + line - down) ** 2, 0.0))
            yield right - half, right + half


@lru_cache(maxsize=16)
def _sampled_shares(cell_m: float, radius: float, samples: int = 8) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(neighbour, 2) offsets in rows and columns, and (point, neighbour) share of each that a point's disc covers."""
    reach = int(np.ceil(radius / cell_m + 0.5))
    offset = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 2, indexing="ij"), -1).reshape(-1, 2)
    point = (np.arange(POINTS) + 0.5) / POINTS - 0.5
    sample = (np.arange(samples) + 0.5) / samples - 0.5
    # Along one axis: (point, offset, sample) in cells, from the point to the sample
    along = np.arange(-reach, reach + 1)[None, :, None] + sample[None, None, :] - point[:, None, None]
    square = (along * cell_m) ** 2
    near = square[:, None, :, None, :, None] + square[None, :, None, :, None, :] <= radius**2
    return offset, near.mean((-1, -2)).reshape(POINTS * POINTS, -1)
