"""Probabilities of cells for photos, and the most probable points of a map.

The result of an expert, or of a fusion of experts, is a `Posterior`: the probability of every cell that search reached,
and the residual, the total probability of the cells that it did not reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jzi.store.cell_grid import CellGrid

#: Grid of possible disc centres in a cell: points per side.
POINTS = 4

#: Number of most probable cells in which a disc may be centred.
CENTRES = 128


@dataclass(frozen=True)
class Posterior:
    """Probabilities of cells for each of several photos.

    Attributes:
        area: the grid of the cells.
        row: (photo, cell) rows of the cells that search reached, the most probable first.
        col: (photo, cell) columns of those cells.
        probability: (photo, cell); 0 for padding.
        residual: (photo,) total probability of the cells that search did not reach.
        steps: (photo, cell, L) probability of each action of a zoom given those before it; None for other experts.

    Example:
        >>> from jzi.store.pyramid import Pyramid
        >>> pyramid = Pyramid.around(48.2, 16.37, 160.0, levels=2)  # 16 x 16 cells of 10 m
        >>> row, col = np.array([3, 3, 9]), np.array([5, 6, 2])
        >>> posterior = Posterior.from_cells(pyramid, row, col, np.array([0.4, 0.3, 0.2]))
        >>> float(posterior.residual[0].round(3))
        0.1
        >>> float(most_probable_discs(posterior, radius=15.0).probability[0, 0].round(3))
        0.7
    """

    area: CellGrid
    row: NDArray[np.int64]
    col: NDArray[np.int64]
    probability: NDArray[np.float64]
    residual: NDArray[np.float64]
    steps: NDArray[np.float64] | None = None

    @classmethod
    def from_cells(
        cls, area: CellGrid, row: NDArray[np.int64], col: NDArray[np.int64], probability: NDArray[np.float64]
    ) -> Posterior:
        """From the probabilities of cells, in any order; the residual is 1 minus their sum.

        Args:
            area: the grid of the cells.
            row: (cell,) rows of distinct cells, or (photo, cell) if they differ by photo.
            col: columns, as `row`.
            probability: (cell,) for one photo, or (photo, cell).
        """
        probability = np.atleast_2d(probability)
        order = (-probability).argsort(axis=1, kind="stable")
        row = np.take_along_axis(np.broadcast_to(row, order.shape), order, 1)
        col = np.take_along_axis(np.broadcast_to(col, order.shape), order, 1)
        probability = np.take_along_axis(probability, order, 1)
        return cls(area, row, col, probability, np.maximum(0.0, 1 - probability.sum(1)))

    @classmethod
    def concatenate(cls, parts: Sequence[Posterior]) -> Posterior:
        """One posterior of the photos of several, without `steps`; cells are padded to the same number.

        Args:
            parts: at least one, on the same grid.
        """
        cells = max(part.row.shape[1] for part in parts)

        def pad(name: str) -> NDArray[Any]:
            values = (getattr(part, name) for part in parts)
            return np.concatenate([np.pad(each, ((0, 0), (0, cells - each.shape[1]))) for each in values])

        residual = np.concatenate([part.residual for part in parts])
        return cls(parts[0].area, pad("row"), pad("col"), pad("probability"), residual)

    def __len__(self) -> int:
        return len(self.row)

    @property
    def log_probability(self) -> NDArray[np.float64]:
        """(photo, cell); -inf where the probability is 0."""
        with np.errstate(divide="ignore"):
            return np.log(self.probability)

    @cached_property
    def centers(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(photo, cell) x and y of the cells' centres in the area's CRS, metres."""
        return self.area.cell_centers(self.row, self.col)

    def grid(self, photo: int = 0) -> NDArray[np.float64]:
        """(row, col) probability of every cell for one photo; 0 for cells that search did not reach."""
        grid = np.zeros(self.area.shape)
        reached = self.probability[photo] > 0
        grid[self.row[photo][reached], self.col[photo][reached]] = self.probability[photo][reached]
        return grid

    def at(self, row: NDArray[np.int64], col: NDArray[np.int64]) -> NDArray[np.float64]:
        """(photo,) probability of one cell of each photo; 0 if search did not reach it.

        Args:
            row: (photo,) rows of the cells.
            col: (photo,) columns of the cells.
        """
        match = (self.row == row[:, None]) & (self.col == col[:, None])
        return np.asarray((self.probability * match).sum(1))

    def top(self, count: int) -> Posterior:
        """The `count` most probable cells of each photo; the probability of the others goes to the residual."""
        if count >= self.row.shape[1]:
            return self
        steps = None if self.steps is None else self.steps[:, :count]
        residual = self.residual + self.probability[:, count:].sum(1)
        return Posterior(
            self.area, self.row[:, :count], self.col[:, :count], self.probability[:, :count], residual, steps
        )

    def of(self, photo: int) -> Posterior:
        """The posterior of one photo."""
        one = slice(photo, photo + 1)
        steps = None if self.steps is None else self.steps[one]
        return Posterior(self.area, self.row[one], self.col[one], self.probability[one], self.residual[one], steps)


@dataclass(frozen=True)
class Points:
    """Points of a map, several for each photo, the most probable first.

    Attributes:
        x: (photo, point) in the area's CRS, metres.
        y: (photo, point) in the area's CRS, metres.
        cell: (photo, point) index among the posterior's cells of the cell that each lies in.
        probability: (photo, point); 0 for padding.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    cell: NDArray[np.int64]
    probability: NDArray[np.float64]


def most_probable_cells(posterior: Posterior, count: int = 1, apart: float = 0.0) -> Points:
    """The centres of the most probable cells, with the cells' probabilities.

    Args:
        posterior: posterior of the photos.
        count: cells per photo.
        apart: minimum distance between the centres of a photo's cells, metres; less probable ones are skipped.
    """
    photos, (x, y) = np.arange(len(posterior)), posterior.centers
    left = posterior.probability.copy()
    chosen: list[tuple[NDArray[Any], ...]] = []
    for _ in range(min(count, left.shape[1])):
        cell = left.argmax(1)
        at = photos, cell
        chosen.append((x[at], y[at], cell, left[at]))
        left[np.hypot(x - x[at][:, None], y - y[at][:, None]) <= apart] = 0.0
    return Points(*(np.stack(values, 1) for values in zip(*chosen, strict=True)))


def most_probable_discs(posterior: Posterior, radius: float, count: int = 1) -> Points:
    """The points with the most probability within a radius, chosen greedily.

    No two points of a photo lie within the radius of each other, and no probability is counted twice: what a point
    covers is removed before the next one is chosen.

    Args:
        posterior: posterior of the photos.
        radius: metres.
        count: points per photo.
    """
    photos, cell_m, (rows, cols) = np.arange(len(posterior)), posterior.area.cell_size, posterior.area.shape
    offset, shares = _disc_shares(cell_m, radius)
    row, col = posterior.row, posterior.col
    probability = posterior.probability.copy()
    # Every photo's cells in one sorted array, so that a cell's neighbours are found by one search for all
    key = (photos[:, None] * rows + row) * cols + col
    key[probability == 0] = -1
    order = np.argsort(key, axis=None)
    ordered = key.ravel()[order]
    centres = min(CENTRES, probability.shape[1])
    near_row = row[:, :centres, None] + offset[:, 0]  # (photo, cell, neighbour)
    near_col = col[:, :centres, None] + offset[:, 1]
    inside = (near_row >= 0) & (near_row < rows) & (near_col >= 0) & (near_col < cols)
    near_key = (photos[:, None, None] * rows + near_row) * cols + near_col
    at = np.minimum(np.searchsorted(ordered, near_key), len(ordered) - 1)
    inside &= ordered[at] == near_key
    neighbour = order[at]  # into the flat probabilities
    within = (np.arange(POINTS) + 0.5) / POINTS - 0.5
    dx, dy = np.meshgrid(within * cell_m, -within * cell_m)  # row 0 is north
    x, y = (
        values[:, :centres, None] + shift.ravel() for values, shift in zip(posterior.centers, (dx, dy), strict=True)
    )  # (photo, cell, point)
    possible = np.broadcast_to((probability[:, :centres] > 0)[..., None], x.shape).copy()
    chosen: list[tuple[NDArray[Any], ...]] = []
    for _ in range(count):
        mass = np.where(inside, probability.ravel()[neighbour], 0.0) @ shares.T  # (photo, cell, point)
        best = np.where(possible, mass, -1.0).reshape(len(posterior), -1).argmax(1)
        cell, point = np.divmod(best, POINTS * POINTS)
        at_best = photos, cell, point
        chosen.append((x[at_best], y[at_best], cell, np.where(possible[at_best], mass[at_best], 0.0)))
        taken = np.where(inside[photos, cell], shares[point], 0.0) * possible[at_best][:, None]
        np.multiply.at(probability.reshape(-1), neighbour[photos, cell], 1 - taken)
        away = np.hypot(x - x[at_best][:, None, None], y - y[at_best][:, None, None]) > radius
        possible &= away
    return Points(*(np.stack(values, 1) for values in zip(*chosen, strict=True)))


def credible_radius(
    posterior: Posterior, x: NDArray[np.float64], y: NDArray[np.float64], *shares: float
) -> NDArray[np.float64]:
    """(share, photo) radius around points that contains a share of the probability; inf if search reached less.

    Args:
        posterior: posterior of the photos.
        x: (photo,) of the points in the area's CRS, metres.
        y: (photo,) of the points in the area's CRS, metres.
        shares: shares of the probability, 0..1.
    """
    cell_m = posterior.area.cell_size
    within = ((np.arange(3) + 0.5) / 3 - 0.5) * cell_m  # a cell is approximated by nine points
    dx, dy = np.meshgrid(within, within)
    distance = np.hypot(
        posterior.centers[0][..., None] + dx.ravel() - x[:, None, None],
        posterior.centers[1][..., None] + dy.ravel() - y[:, None, None],
    ).reshape(len(posterior), -1)
    mass = np.repeat(posterior.probability / dx.size, dx.size, axis=1)
    order = distance.argsort(1)
    cumulated, distance = np.take_along_axis(mass, order, 1).cumsum(1), np.take_along_axis(distance, order, 1)

    def radius_of(share: float) -> NDArray[np.float64]:
        enough = cumulated >= share - 1e-9
        return np.where(enough.any(1), distance[np.arange(len(posterior)), enough.argmax(1)], np.inf)

    return np.stack([radius_of(share) for share in shares])


def _disc_shares(cell_m: float, radius: float, samples: int = 8) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
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
