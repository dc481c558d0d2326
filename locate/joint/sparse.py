"""Fusion of photos on areas with too many cells for an array of them: over the cells that search reached.

The cells that no photo reached share one probability, so that nothing is ruled out for good, and a drive may pass
through them; where it does is not resolved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jzi.locate.joint.fusion import Stacked
from jzi.locate.points.bands import chords
from jzi.locate.posterior import Posterior
from jzi.store.geometry.bands import BandGrid
from jzi.store.geometry.cell_grid import CellGrid

#: Maximum number of cells that several photos reach together, and of one photo.
MAX_CELLS, PHOTO_CELLS = 2**16, 2**13

#: Share of a cell by which the ends of a span may be off.
ROUNDING = 1e-7

#: Probability below which a cell is not ruled out for good, as in the dense fusion.
_LEAST = 1e-12


def narrowed(posterior: Posterior) -> Posterior:
    """The most probable cells of each photo, so many that those of all together are at most `MAX_CELLS`; normalised."""
    posterior = posterior.top(max(1, min(PHOTO_CELLS, MAX_CELLS // len(posterior))))
    total = posterior.probability.sum(1) + posterior.residual
    scale = np.where(total > 0, total, 1.0)
    residual = np.where(total > 0, posterior.residual / scale, 1.0)
    return Posterior(posterior.area, posterior.row, posterior.col, posterior.probability / scale[:, None], residual)


def fuse_sparse(posterior: Posterior, cell_mask: NDArray[np.bool_], outlier: float) -> Posterior:
    """The posterior of the common position of photos; as `jzi.locate.joint.sequential.fuse`.

    Args:
        posterior: posterior of the photos.
        cell_mask: (row, col) whether a cell has imagery.
        outlier: share of photos that carry no information.
    """
    posterior = narrowed(posterior)
    photos = [posterior.of(photo) for photo in range(len(posterior))]
    return Stacked.of(photos, cell_mask, [outlier] * len(photos)).posterior(posterior.area, [1.0] * len(photos))


@dataclass(frozen=True)
class _Cells:
    """The cells that the photos of a drive reached together, in the order of their keys, and the number of the others.

    A value of all cells is an array (cell + 1,): those of these cells, and the one that each of the others has.
    """

    area: CellGrid
    row: NDArray[np.int64]
    col: NDArray[np.int64]
    others: int

    @classmethod
    def of(cls, posterior: Posterior, cell_mask: NDArray[np.bool_]) -> _Cells:
        cols = posterior.area.shape[1]
        reached = (posterior.probability > 0) & cell_mask[posterior.row, posterior.col]
        row, col = np.divmod(np.unique((posterior.row * cols + posterior.col)[reached]), cols)
        return cls(posterior.area, row, col, int(cell_mask.sum()) - len(row))

    @property
    def key(self) -> NDArray[np.int64]:
        return np.asarray(self.row * (self.area.shape[1] + 1) + self.col)

    def normalise(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(values / self.total(values))

    def total(self, values: NDArray[np.float64]) -> float:
        return float(values[:-1].sum() + values[-1] * self.others)

    def likelihood(self, posterior: Posterior, photo: int, outlier: float) -> NDArray[np.float64]:
        """(cell + 1,) of one photo."""
        cols = self.area.shape[1] + 1
        key = posterior.row[photo] * cols + posterior.col[photo]
        at = np.minimum(np.searchsorted(self.key, key), max(0, len(self.row) - 1))
        reached = (posterior.probability[photo] > 0) & (self.key[at] == key if len(self.row) else False)
        count = len(self.row) + self.others
        unreached = count - reached.sum()
        values = np.full(len(self.row) + 1, posterior.residual[photo] / unreached if unreached else 0.0)
        values[at[reached]] = posterior.probability[photo][reached]
        if not self.total(values):
            values[:] = 1.0
        return (1 - outlier) * self.normalise(values) + outlier / count

    def spread(self, values: NDArray[np.float64], reach: float) -> NDArray[np.float64]:
        """Spread the mass of each cell evenly over the cells whose centre is within reach, in metres.

        What leaves these cells is spread evenly over the others, and what comes from the others is as if their mass
        were uniform.
        """
        before = np.concatenate([[0.0], values[:-1].cumsum()])
        key, rows = self.key, np.unique(self.row)
        most = math.floor(reach / self.area.cell_size)
        received, known = np.zeros(len(self.row)), np.zeros(len(self.row), np.int64)
        for offset in range(-most, most + 1):
            at = np.minimum(np.searchsorted(rows, self.row + offset), len(rows) - 1)
            here = np.flatnonzero(rows[at] == self.row + offset)
            for start, stop in self._spans(here, offset, reach):
                target = (self.row[here] + offset) * (self.area.shape[1] + 1)
                first, last = np.searchsorted(key, target + start), np.searchsorted(key, target + stop)
                received[here] += before[last] - before[first]
                known[here] += last - first
        lines = np.arange(-most, most + 1) * self.area.cell_size
        disc = (2 * np.floor(np.sqrt(reach**2 - lines**2) / self.area.cell_size) + 1).sum()
        spread = np.append(received, 0.0) / disc
        if self.others:
            spread[:-1] += np.maximum(0.0, disc - known) / disc * values[-1]
            spread[-1] = max(0.0, self.total(values) - spread[:-1].sum()) / self.others
        return np.asarray(np.maximum(spread, 0.0) + _LEAST)

    def _spans(
        self, cells: NDArray[np.int64], offset: int, reach: float
    ) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """First column and the one after the last of the cells within reach in the row at an offset from each cell."""
        row, col = self.row[cells], self.col[cells]
        if isinstance(self.area, BandGrid):
            latitude, longitude = (np.radians(each) for each in self.area.positions(row, col))
            pairs = chords(self.area, row + offset, 0.5, latitude, longitude, reach)
        else:
            half = math.sqrt(reach**2 - (offset * self.area.cell_size) ** 2) / self.area.cell_size
            center = col.astype(np.float64) + 0.5
            pairs = [(center - half, center + half)]
        limit = self.area.shape[1]
        spans = []
        for left, right in pairs:
            start, stop = np.ceil(left - 0.5 - ROUNDING), np.floor(right + 0.5 + ROUNDING)
            start = np.clip(start, 0, limit).astype(np.int64)
            spans.append((start, np.maximum(start, np.clip(stop, 0, limit).astype(np.int64))))
        return spans


def smooth_sparse(
    posterior: Posterior, cell_mask: NDArray[np.bool_], reaches: Sequence[float], outlier: float
) -> list[Posterior]:
    """The posterior of each photo of a drive given all of them; as `jzi.locate.joint.sequential.smooth_track`.

    Args:
        posterior: posterior of the photos, in the order of time.
        cell_mask: (row, col) whether a cell has imagery.
        reaches: distance that can be covered from each photo to the next, metres.
        outlier: share of photos that carry no information.
    """
    posterior = narrowed(posterior)
    cells = _Cells.of(posterior, cell_mask)
    likelihoods = [cells.likelihood(posterior, photo, outlier) for photo in range(len(posterior))]
    forward = [cells.normalise(likelihoods[0])]
    for likelihood, reach in zip(likelihoods[1:], reaches, strict=True):
        forward.append(cells.normalise(cells.spread(forward[-1], reach) * likelihood))
    smoothed, behind = [], np.ones(len(cells.row) + 1)
    for photo in reversed(range(len(forward))):
        smoothed.append(_to_posterior(cells, cells.normalise(forward[photo] * behind)))
        if photo:
            later = cells.normalise(behind * likelihoods[photo])  # the least probability is relative to a sum of 1
            behind = cells.normalise(cells.spread(later, reaches[photo - 1]))
    return smoothed[::-1]


def _to_posterior(cells: _Cells, values: NDArray[np.float64]) -> Posterior:
    kept = np.flatnonzero(values[:-1] > values.max() * 1e-9)
    found = Posterior.from_cells(cells.area, cells.row[kept], cells.col[kept], values[kept])
    return found.top(PHOTO_CELLS) if len(kept) else found
