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

from jzi.errors import ModelError
from jzi.locate.ranges import CANDIDATES, DISTANCE, RANKS, SHARE
from jzi.store.geometry.cell_grid import CellGrid
from jzi.store.geometry.scale import units_per_metre


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
        >>> from jzi.store.geometry.pyramid import Pyramid
        >>> pyramid = Pyramid.around(48.2, 16.37, 160.0, levels=2)  # 16 x 16 cells of 10 m
        >>> row, col = np.array([3, 3, 9]), np.array([5, 6, 2])
        >>> posterior = Posterior.from_cells(pyramid, row, col, np.array([0.4, 0.3, 0.2]))
        >>> float(posterior.residual[0].round(3))
        0.1
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
        """The `count` most probable cells of each photo; the probability of the others goes to the residual.

        Raises:
            ConfigError: `count` is less than 1.
        """
        RANKS.check("count", count)
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


def require_finite(name: str, probability: NDArray[np.float64]) -> None:
    """Raise if an expert's probabilities are not finite.

    Args:
        name: of the expert.
        probability: of any shape.

    Raises:
        ModelError: one is not.
    """
    if not np.isfinite(probability).all():
        raise ModelError(
            f"the expert {name} computed probabilities that are not finite: its weights are too large or damaged; "
            "train it with a lower learning rate, or copy the model again"
        )


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
        apart: minimum distance between the centres of a photo's cells, metres on the ground; less probable ones are
            skipped.

    Raises:
        ConfigError: a number is out of range.
    """
    CANDIDATES.check("count", count)
    if apart:
        DISTANCE.check("apart", apart)
        apart *= units_per_metre(posterior.area)
    photos, (x, y) = np.arange(len(posterior)), posterior.centers
    left = posterior.probability.copy()
    chosen: list[tuple[NDArray[Any], ...]] = []
    for _ in range(min(count, left.shape[1])):
        cell = left.argmax(1)
        at = photos, cell
        chosen.append((x[at], y[at], cell, left[at]))
        left[np.hypot(x - x[at][:, None], y - y[at][:, None]) <= apart] = 0.0
    return Points(*(np.stack(values, 1) for values in zip(*chosen, strict=True)))


def credible_radius(
    posterior: Posterior, x: NDArray[np.float64], y: NDArray[np.float64], *shares: float
) -> NDArray[np.float64]:
    """(share, photo) radius, metres on the ground, around points that contains a share of the probability.

    It is inf if search reached less.

    Args:
        posterior: posterior of the photos.
        x: (photo,) of the points in the area's CRS, metres.
        y: (photo,) of the points in the area's CRS, metres.
        shares: shares of the probability, 0..1.

    Raises:
        ConfigError: a share is out of range.
    """
    SHARE.check("a share of the probability", *shares)
    within = ((np.arange(3) + 0.5) / 3 - 0.5) * posterior.area.cell_size  # a cell is approximated by nine points
    dx, dy = np.meshgrid(within, within)
    radii = np.full((len(shares), len(posterior)), np.inf)
    for photo in range(len(posterior)):  # one at a time, which bounds memory
        right, up = (centers[photo] - at[photo] for centers, at in zip(posterior.centers, (x, y), strict=True))
        order = (distance := np.hypot(right, up)).argsort()
        ordered, probability = distance[order], posterior.probability[photo][order]
        cumulated = probability.cumsum()
        for number, share in enumerate(shares):
            if cumulated[-1] < share - 1e-9:
                continue
            ring = _ring(ordered, cumulated, share - 1e-9, float(np.hypot(dx, dy).max()))
            points = order[ring]
            inside = cumulated[ring.start - 1] if ring.start else 0.0
            radii[number, photo] = _radius(
                np.hypot(right[points, None] + dx.ravel(), up[points, None] + dy.ravel()).ravel(),
                np.repeat(probability[ring] / dx.size, dx.size),
                share - 1e-9 - inside,
            )
    radii /= units_per_metre(posterior.area)
    return radii


def _ring(distance: NDArray[np.float64], cumulated: NDArray[np.float64], share: float, reach: float) -> slice:
    """The cells, in ascending order of distance, that a circle which holds a share of the probability can cut.

    The radius is that of the cell where the share is reached, within `reach`, the distance of a cell's points from its
    centre; so nearer cells are inside, and farther ones outside.
    """
    at = distance[np.searchsorted(cumulated, share)]
    first, last = np.searchsorted(distance, [at - 2.1 * reach, at + 2.1 * reach])  # a margin for rounding
    return slice(int(first), int(last))


def _radius(distance: NDArray[np.float64], probability: NDArray[np.float64], share: float) -> float:
    """The least distance within which points have a share of the probability, or the greatest."""
    order = distance.argsort()
    enough = int(np.searchsorted(probability[order].cumsum(), share))
    return float(distance[order[min(enough, len(order) - 1)]])
