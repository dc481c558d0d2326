"""Where a photo may have been taken: a probability for every cell that search reaches, and points drawn from it.

The chain rule of the zoom gives every cell of the map a probability. Small pyramids are searched whole; larger ones by
a beam, and the probability of what it leaves out is told as `residual`. Retrieval has nothing of the kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from jzi.decode.decoder import ZoomDecoder
from jzi.decode.search import BeamSearchResult, zoom
from jzi.decode.tile_table import TileTable
from jzi.store.pyramid import Pyramid

#: What can be answered with: the reference's cell, the most probable cell, the point with the most within a radius.
ESTIMATES = ("greedy", "map", "radius")

#: Pyramids of as many cells are searched whole.
EXACT_CELLS = 4096

#: Hypotheses kept in larger ones.
BEAMS = 64

#: Points of a cell to a side at which a disc may be centred.
POINTS = 4

#: Cells of a photo, the most probable ones, in which a disc may be centred.
CENTRES = 128


@dataclass(frozen=True)
class Posterior:
    """Probabilities of cells for each of several photos.

    Attributes:
        pyramid: how the map is cut.
        paths: (photo, cell, L) the cells that were reached, the most probable first.
        steps: (photo, cell, L) probability of each action given those before it; 0 where cells fill up the array.
        residual: (photo,) probability of all that was not reached.

    Example:
        >>> pyramid = Pyramid.around(48.2, 16.37, 160.0, levels=2)  # 16 x 16 cells of 10 m
        >>> row, col = np.array([3, 3, 9]), np.array([5, 6, 2])
        >>> found = Posterior.from_cells(pyramid, row, col, np.array([0.4, 0.3, 0.2]))
        >>> float(found.residual[0].round(3))
        0.1
        >>> float(most_probable_discs(found, radius=15.0).probability[0, 0].round(3))
        0.7
    """

    pyramid: Pyramid
    paths: NDArray[np.int64]
    steps: NDArray[np.float64]
    residual: NDArray[np.float64]

    @classmethod
    def from_cells(
        cls, pyramid: Pyramid, row: NDArray[np.int64], col: NDArray[np.int64], probability: NDArray[np.float64]
    ) -> Posterior:
        """That of one photo, or of several together, whose cells' probabilities are known; the rest is residual.

        Args:
            pyramid: how the map is cut.
            row: (cell,) of different cells.
            col: likewise.
            probability: (cell,) of each.
        """
        order = (-probability).argsort(kind="stable")
        paths = pyramid.cell_to_path(row[order], col[order])
        mass = probability[order]
        steps = np.empty(paths.shape)
        above = np.full(len(order), mass.sum())
        for level in range(pyramid.levels):  # a step's probability: that of its tile over that of the tile above
            _, tile = np.unique(paths[:, : level + 1], axis=0, return_inverse=True)
            below = np.bincount(tile.ravel(), mass)[tile.ravel()]
            steps[:, level] = np.divide(below, above, out=np.zeros_like(below), where=above > 0)
            above = below
        steps[:, 0] *= mass.sum()
        return cls(pyramid, paths[None], steps[None], np.maximum(0.0, 1 - mass.sum(keepdims=True)))

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def probability(self) -> NDArray[np.float64]:
        """(photo, cell)."""
        return self.steps.prod(-1)

    @cached_property
    def cells(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(photo, cell) rows and columns."""
        return self.pyramid.path_to_tile(self.paths)

    @cached_property
    def centers(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(photo, cell) x and y in the pyramid's CRS, metres."""
        return self.pyramid.tile_centers(self.pyramid.levels, *self.cells)

    def grid(self, photo: int = 0) -> NDArray[np.float64]:
        """(row, col) probability of every cell for one photo; 0 where search did not go."""
        side = self.pyramid.tiles_per_side(self.pyramid.levels)
        grid = np.zeros((side, side))
        row, col = (values[photo] for values in self.cells)
        there = self.probability[photo] > 0
        grid[row[there], col[there]] = self.probability[photo][there]
        return grid

    def of(self, photo: int) -> Posterior:
        """That of one photo alone."""
        one = slice(photo, photo + 1)
        return Posterior(self.pyramid, self.paths[one], self.steps[one], self.residual[one])


@dataclass(frozen=True)
class Points:
    """Points of a map, several for each photo, the most probable first.

    Attributes:
        x: (photo, point) in the pyramid's CRS, metres.
        y: likewise.
        cell: (photo, point) which of the posterior's cells each lies in.
        probability: (photo, point); 0 where there are not as many points.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    cell: NDArray[np.int64]
    probability: NDArray[np.float64]


def posterior(
    decoder: ZoomDecoder,
    table: TileTable,
    query: Tensor,
    *,
    beams: int | None = None,
    temperature: Tensor | None = None,
) -> Posterior:
    """Search the map for each photo.

    Args:
        decoder: in eval mode, on the table's device.
        table: the map.
        query: (photo, feature) embeddings.
        beams: tiles of each level that are looked into; by default all of a pyramid of `EXACT_CELLS` or fewer cells,
            `BEAMS` of others.
        temperature: (L,) what each step's logits are divided by.
    """
    pyramid = table.pyramid
    beams = beams or default_beams(pyramid)
    zooms = zoom(decoder, table, query.to(table.device), beams, cells=beams * pyramid.actions, temperature=temperature)
    return _from_zooms(pyramid, zooms)


def _from_zooms(pyramid: Pyramid, zooms: BeamSearchResult) -> Posterior:
    steps = zooms.log_probability.double().exp().cpu().numpy()
    residual = np.maximum(0.0, 1 - steps.prod(-1).sum(-1))
    return Posterior(pyramid, zooms.paths.cpu().numpy(), steps, np.where(residual < 1e-6, 0.0, residual))


def default_beams(pyramid: Pyramid) -> int:
    """All tiles of the last level where that is exact and cheap, else `BEAMS`."""
    cells = pyramid.tiles_per_side(pyramid.levels) ** 2
    return max(1, cells // pyramid.actions) if cells <= EXACT_CELLS else BEAMS


def greedy_posterior(decoder: ZoomDecoder, table: TileTable, query: Tensor, temperature: Tensor | None) -> Posterior:
    """The one cell that greedy search ends in, the reference's protocol; all else counts as not expanded."""
    zooms = zoom(decoder, table, query.to(table.device), temperature=temperature)
    return _from_zooms(table.pyramid, zooms)


def most_probable_cells(found: Posterior, count: int = 1, apart: float = 0.0) -> Points:
    """The centres of the most probable cells, with the cells' probabilities.

    Args:
        found: where to look.
        count: cells to a photo.
        apart: metres; of cells whose centres are nearer to each other, only the most probable one.
    """
    photos, (x, y) = np.arange(len(found)), found.centers
    left = found.probability.copy()
    chosen: list[tuple[NDArray, ...]] = []
    for _ in range(min(count, left.shape[1])):
        cell = left.argmax(1)
        at = photos, cell
        chosen.append((x[at], y[at], cell, left[at]))
        left[np.hypot(x - x[at][:, None], y - y[at][:, None]) <= apart] = 0.0
    return Points(*(np.stack(values, 1) for values in zip(*chosen, strict=True)))


def most_probable_discs(found: Posterior, radius: float, count: int = 1) -> Points:
    """The points with the most probability within a radius, one after the other, each of what those before it left.

    No two points of a photo lie within the radius of each other, and no probability is counted twice.

    Args:
        found: where to look.
        radius: metres.
        count: points to a photo.
    """
    pyramid, photos = found.pyramid, np.arange(len(found))
    cell_m, side = pyramid.cell_size, pyramid.tiles_per_side(pyramid.levels)
    offset, shares = _disc_shares(cell_m, radius)
    row, col = found.cells
    probability = found.probability.copy()
    # Every photo's cells in one sorted array, so that a cell's neighbours are found by one search for all
    key = (photos[:, None] * side + row) * side + col
    key[probability == 0] = -1
    order = np.argsort(key, axis=None)
    ordered = key.ravel()[order]
    centres = min(CENTRES, probability.shape[1])
    near_row = row[:, :centres, None] + offset[:, 0]  # (photo, cell, neighbour)
    near_col = col[:, :centres, None] + offset[:, 1]
    inside = (near_row >= 0) & (near_row < side) & (near_col >= 0) & (near_col < side)
    wanted = (photos[:, None, None] * side + near_row) * side + near_col
    at = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    inside &= ordered[at] == wanted
    neighbour = order[at]  # into the flat probabilities
    within = (np.arange(POINTS) + 0.5) / POINTS - 0.5
    dx, dy = np.meshgrid(within * cell_m, -within * cell_m)  # row 0 is north
    x, y = (
        values[:, :centres, None] + shift.ravel() for values, shift in zip(found.centers, (dx, dy), strict=True)
    )  # (photo, cell, point)
    possible = np.broadcast_to((probability[:, :centres] > 0)[..., None], x.shape).copy()
    chosen: list[tuple[NDArray, ...]] = []
    for _ in range(count):
        mass = np.where(inside, probability.ravel()[neighbour], 0.0) @ shares.T  # (photo, cell, point)
        best = np.where(possible, mass, -1.0).reshape(len(found), -1).argmax(1)
        cell, point = np.divmod(best, POINTS * POINTS)
        at_best = photos, cell, point
        chosen.append((x[at_best], y[at_best], cell, np.where(possible[at_best], mass[at_best], 0.0)))
        taken = np.where(inside[photos, cell], shares[point], 0.0) * possible[at_best][:, None]
        np.multiply.at(probability.reshape(-1), neighbour[photos, cell], 1 - taken)
        away = np.hypot(x - x[at_best][:, None, None], y - y[at_best][:, None, None]) > radius
        possible &= away
    return Points(*(np.stack(values, 1) for values in zip(*chosen, strict=True)))


def credible_radius(
    found: Posterior, x: NDArray[np.float64], y: NDArray[np.float64], *shares: float
) -> NDArray[np.float64]:
    """(share, photo) radius around points that holds a share of the probability; inf where so much was not expanded.

    Args:
        found: (photo, cell) probabilities.
        x: (photo,) of the points, metres.
        y: (photo,) likewise.
        shares: 0..1.
    """
    cell_m = found.pyramid.cell_size
    within = ((np.arange(3) + 0.5) / 3 - 0.5) * cell_m  # nine points stand for a cell
    dx, dy = np.meshgrid(within, within)
    distance = np.hypot(
        found.centers[0][..., None] + dx.ravel() - x[:, None, None],
        found.centers[1][..., None] + dy.ravel() - y[:, None, None],
    ).reshape(len(found), -1)
    mass = np.repeat(found.probability / dx.size, dx.size, axis=1)
    order = distance.argsort(1)
    cumulated, distance = np.take_along_axis(mass, order, 1).cumsum(1), np.take_along_axis(distance, order, 1)

    def holding(share: float) -> NDArray[np.float64]:
        enough = cumulated >= share - 1e-9
        return np.where(enough.any(1), distance[np.arange(len(found)), enough.argmax(1)], np.inf)

    return np.stack([holding(share) for share in shares])


def _disc_shares(cell_m: float, radius: float, samples: int = 8) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(neighbour, 2) offsets in rows and columns, and (point, neighbour) which share a disc around a point covers."""
    reach = int(np.ceil(radius / cell_m + 0.5))
    offset = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 2, indexing="ij"), -1).reshape(-1, 2)
    point = (np.arange(POINTS) + 0.5) / POINTS - 0.5
    sample = (np.arange(samples) + 0.5) / samples - 0.5
    # Along one axis: (point, offset, sample) in cells, from the point to the sample
    along = np.arange(-reach, reach + 1)[None, :, None] + sample[None, None, :] - point[:, None, None]
    square = (along * cell_m) ** 2
    near = square[:, None, :, None, :, None] + square[None, :, None, :, None, :] <= radius**2
    return offset, near.mean((-1, -2)).reshape(POINTS * POINTS, -1)
