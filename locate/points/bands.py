"""Discs on cells in bands along parallels: bands are sheared, so a disc has its own columns in each of them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from jzi.locate.posterior import Posterior
from jzi.store.geometry.bands import RADIUS, BandGrid

#: Lines of a cell along which its share in a disc is measured, for discs of up to `NEAR` cells and for larger ones.
FINE, COARSE = tuple((np.arange(8) + 0.5) / 8), (0.25, 0.75)
NEAR = 32.0

_Floats = NDArray[np.float64]
_Cells = NDArray[np.int64]


def chords(
    grid: BandGrid, row: _Cells, line: float, latitude: _Floats, longitude: _Floats, radius: float
) -> list[tuple[_Floats, _Floats]]:
    """The columns between which discs on the sphere cut a line of each row; exact (haversine).

    Args:
        grid: the cells.
        row: (...) rows of the grid.
        line: where the line runs in its row: 0 at the north edge, 1 at the south edge.
        latitude: (...) of the centres of the discs, radians; broadcast with `row`, as `longitude`.
        longitude: (...) radians.
        radius: metres.

    Returns:
        Pairs of the columns at which a disc begins and ends, 0 to the number of cells of the row, (...) each; column c
        reaches from c to c + 1. There is one pair, or three in a grid that reaches around more than half of the earth.
    """
    phi = (grid.bands[row] + 0.5 - line) * grid.cell_m / RADIUS
    square = math.sin(min(radius / 2 / RADIUS, math.pi / 2)) ** 2 - np.sin((phi - latitude) / 2) ** 2
    share = np.clip(square / (np.cos(phi) * np.cos(latitude)), 0.0, 1.0)
    half = 2 * np.arcsin(np.sqrt(share))
    west = math.radians(grid.west)
    middle = west + np.mod(longitude - west + math.pi / 2, 2 * math.pi) - math.pi / 2
    turns = (0.0,) if grid.east - grid.west <= 180 else (-2 * math.pi, 0.0, 2 * math.pi)
    found = []
    for turn in turns:
        left, right = (columns_at(grid, row, middle + turn + side * half) for side in (-1, 1))
        found.append((left, np.maximum(left, right)))
    return found


def columns_at(grid: BandGrid, row: _Cells, longitude: _Floats) -> _Floats:
    """Columns, with fractions, at longitudes in radians that run on beyond the antimeridian; clipped to the row."""
    step, first, count = grid.step[row], grid.first[row], grid.count[row]
    around = 2 * np.ceil(math.pi / step - 0.5) + 1  # cells of a band, the two that the antimeridian cuts included
    beyond = longitude > math.pi
    cells = np.where(beyond, (longitude - 2 * math.pi) / step + around, longitude / step)
    return np.asarray(np.clip(cells + 0.5 - first, 0, count))


class BandCover:
    """Shares of a photo's cells that discs around possible points cover; see `jzi.locate.points.discs`.

    The share of a cell is the mean, over lines along the parallel, of the part of the line that lies in the disc. The
    probability along a line is a difference of a prefix sum over the cells of its row.

    Args:
        posterior: posterior of photos, on bands.
        photo: index of the photo.
        radius: of the discs, metres.
        latitude: (cell, point) of the possible points, degrees.
        longitude: (cell, point) degrees.
    """

    def __init__(self, posterior: Posterior, photo: int, radius: float, latitude: _Floats, longitude: _Floats) -> None:
        area = posterior.area
        assert isinstance(area, BandGrid)
        self.grid, self.radius, self.cols = area, radius, area.shape[1] + 1  # positions in a row: 0 to the row's end
        self.latitude, self.longitude = np.radians(latitude), np.radians(longitude)
        self.row, self.col = posterior.row[photo], posterior.col[photo]
        key = np.where(posterior.probability[photo] == 0, -1, self.row * self.cols + self.col)
        self.order = np.argsort(key)
        self.key = key[self.order]
        self.rows = np.unique(self.key[self.key >= 0] // self.cols)
        near = radius <= NEAR * area.cell_m
        self.lines: tuple[float, ...] = FINE if near else COARSE
        self.reach = math.ceil(radius / area.cell_m) + 1
        self._ends = self._all_ends() if near else None

    def mass(self, probability: _Floats) -> _Floats:
        """(cell, point) probability that each disc covers, given the (cell,) probabilities."""
        ordered = probability[self.order]
        before = np.concatenate([[0.0], ordered.cumsum()])
        if self._ends is not None:
            return self._between(before, ordered, self._ends)
        mass = np.zeros(self.latitude.shape)
        for cell in range(len(mass)):
            rows = self.rows[abs(self.rows - self.row[cell]) <= self.reach]
            mass[cell] = self._between(before, ordered, self._ends_of(rows[None], slice(cell, cell + 1)))[0]
        return mass

    def remove(self, probability: _Floats, cell: int, point: int) -> None:
        """Remove from the probabilities what a disc covers."""
        near = np.flatnonzero(abs(self.row - self.row[cell]) <= self.reach)
        row, col, share = self.row[near], self.col[near], np.zeros(len(near))
        latitude, longitude = self.latitude[cell, point, None], self.longitude[cell, point, None]
        for line in self.lines:
            for left, right in chords(self.grid, row, line, latitude, longitude, self.radius):
                share += np.clip(np.minimum(right, col + 1) - np.maximum(left, col), 0, 1) / len(self.lines)
        probability[near] *= 1 - np.minimum(share, 1.0)

    def _all_ends(self) -> list[tuple[_Cells, _Floats]]:
        rows = self.row[: len(self.latitude), None] + np.arange(-self.reach, self.reach + 1)  # (cell, row)
        return self._ends_of(rows, slice(None))

    def _ends_of(self, rows: _Cells, cells: slice) -> list[tuple[_Cells, _Floats]]:
        """Index among the sorted cells and part of the cell at each chord's end, (cell, row, point): ends, begins."""
        inside = (rows >= 0) & (rows < self.grid.rows)
        row = np.where(inside, rows, 0)[..., None]
        latitude, longitude = self.latitude[cells, None], self.longitude[cells, None]  # (cell, 1, point)
        ends = []
        for line in self.lines:
            for pair in chords(self.grid, row, line, latitude, longitude, self.radius):
                for columns in pair[::-1]:
                    whole = np.floor(columns)
                    key = row * self.cols + whole.astype(np.int64)
                    index = np.searchsorted(self.key, key)
                    at = np.minimum(index, len(self.key) - 1)
                    part = (self.key[at] == key) * (columns - whole)
                    ends.append((np.where(inside[..., None], index, 0), np.where(inside[..., None], part, 0.0)))
        return ends

    def _between(self, before: _Floats, ordered: _Floats, ends: list[tuple[_Cells, _Floats]]) -> _Floats:
        values = np.append(ordered, 0.0)
        mass = np.zeros(0)
        for number, (index, part) in enumerate(ends):
            at = (before[index] + part * values[index]).sum(1)
            mass = at if not number else mass - at if number % 2 else mass + at
        return np.asarray(np.maximum(mass, 0.0) / len(self.lines))
