"""Where a photo is refined: windows around the front end's candidates, and the probability that their ground has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jzi.locate.answer.location import Candidate
from jzi.locate.joint.fusion import ROUNDING
from jzi.locate.posterior import Posterior
from jzi.refine.windows.fuse import owned
from jzi.refine.windows.window import Windows

_Floats = NDArray[np.float64]

#: Points along a side of a cell, at which its share in windows is measured.
CELL_POINTS = 16


@dataclass(frozen=True, eq=False)
class Proposals:
    """The windows of one photo.

    Attributes:
        windows: (t,) around the centres of the candidates' cells, in the order of the front end.
        cells: (t, 2) rows and columns of these cells, distinct.
        posterior: the front end's, of this photo.
    """

    windows: Windows
    cells: NDArray[np.int64]
    posterior: Posterior

    def __len__(self) -> int:
        return len(self.cells)

    def owner(self, x: float, y: float) -> int:
        """Index of the window whose ground a point of the area's CRS is: the nearest one with it; -1 if none has."""
        u, v = self.windows.crs_to_pixels(np.full(len(self), x), np.full(len(self), y))
        inside = (u >= 0) & (u < self.windows.pixels) & (v >= 0) & (v < self.windows.pixels)
        distance = np.where(inside, np.hypot(x - self.windows.x, y - self.windows.y), np.inf)
        return int(distance.argmin()) if inside.any() else -1


@dataclass(frozen=True, eq=False)
class Ground:
    """The front end's probability of the ground of windows.

    Attributes:
        prior: (t, P, P) probability of the cell of each pixel; 0 where the photo cannot have been taken: without
            imagery, outside of the area, and in cells that the front end excludes.
        probability: (t,) of the ground that each window owns, where the prior is not 0.
        cell_x: (cell,) centres, in the area's CRS, of the cells with probability outside of that ground.
        cell_y: (cell,).
        cell_probability: (cell,) what is left of their probability.
    """

    prior: _Floats
    probability: _Floats
    cell_x: _Floats
    cell_y: _Floats
    cell_probability: _Floats

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(t, P, P) where the photo may have been taken."""
        return self.prior > 0


def propose(candidates: Sequence[Candidate], posterior: Posterior, side_m: float, pixels: int, top: int) -> Proposals:
    """Windows around the cells of candidates.

    Args:
        candidates: of any front end, the most probable first; their points do not matter.
        posterior: the front end's, of this photo.
        side_m: side of the windows, metres on the ground.
        pixels: pixels along a side.
        top: most windows.
    """
    cells = list(dict.fromkeys(each.cell for each in candidates))[:top]
    at = np.array(cells, np.int64).reshape(-1, 2)
    return Proposals(Windows.around_cells(posterior.area, at[:, 0], at[:, 1], side_m, pixels), at, posterior)


def share_ground(proposals: Proposals, imagery: NDArray[np.bool_]) -> Ground:
    """Divide the front end's probability among the windows and the ground outside of them; its sum stays the same.

    A cell's probability is divided evenly over it. A cell that has probability 0, and is not in the residual, is
    excluded.

    Args:
        proposals: the windows.
        imagery: (t, P, P) where there is imagery.
    """
    windows, posterior = proposals.windows, proposals.posterior
    prior = spread(windows, posterior) * imagery
    mask = prior > 0
    reached = posterior.probability[0] > 0
    row, col, probability = (each[0][reached] for each in (posterior.row, posterior.col, posterior.probability))
    x, y = posterior.area.cell_centers(row, col)
    used = np.flatnonzero(mask.any((1, 2)))
    shares = np.zeros((len(windows), len(x)))
    if len(used):
        shares[used] = _cell_shares(windows.select(used), mask[used], x, y, posterior.area.cell_size)
    left = probability * (1 - shares.sum(0))
    outside = left > 0
    return Ground(prior, shares @ probability, x[outside], y[outside], left[outside])


def _cell_shares(windows: Windows, mask: NDArray[np.bool_], x: _Floats, y: _Floats, side: float) -> _Floats:
    """(window, cell) share of each cell that each window owns, with the mask set."""
    shares = np.zeros((len(windows), len(x)))
    reach = windows.side_m * windows.scale / 2 + side
    near = np.flatnonzero(
        (np.maximum(abs(x - windows.x[:, None]), abs(y - windows.y[:, None])) < reach[:, None]).any(0)
    )
    own = owned(windows) & mask
    within = ((np.arange(CELL_POINTS) + 0.5) / CELL_POINTS - 0.5) * side
    dx, dy = (each.ravel() for each in np.meshgrid(within, within))
    at_x, at_y = x[near, None] + dx, y[near, None] + dy  # (cell, point)
    distance = np.full((len(windows), *at_x.shape), np.inf)
    covered = np.zeros(distance.shape, bool)
    for index in range(len(windows)):
        u, v = (np.floor(each).astype(int) for each in windows[index].crs_to_pixels(at_x, at_y))
        inside = (u >= 0) & (u < windows.pixels) & (v >= 0) & (v < windows.pixels)
        distance[index] = np.where(inside, np.hypot(at_x - windows.x[index], at_y - windows.y[index]), np.inf)
        covered[index][inside] = mask[index, v[inside], u[inside]]
    nearest = distance.argmin(0)
    for index in range(len(windows)):
        if own[index].any():
            shares[index, near] = ((nearest == index) & covered[index]).mean(1)
    return shares


def spread(windows: Windows, posterior: Posterior) -> _Floats:
    """(t, P, P) the front end's probability of the cell of each pixel; 0 outside of the area and in excluded cells.

    Cells that search did not reach share the residual.

    Args:
        windows: of one photo.
        posterior: the front end's, of this photo.
    """
    area, (rows, cols) = posterior.area, posterior.area.shape
    reached = posterior.probability[0] > 0
    row, col, probability = (each[0][reached] for each in (posterior.row, posterior.col, posterior.probability))
    residual = float(posterior.residual[0])
    rest = residual / max(1, rows * cols - len(row)) if residual >= ROUNDING else 0.0
    west, north = (float(each) for each in area.cell_centers(0, 0))
    centres = np.arange(windows.pixels) + 0.5
    result = np.zeros((len(windows), windows.pixels, windows.pixels))
    for index in range(len(windows)):
        x, y = windows[index].pixels_to_crs(centres, centres)
        down, right = (np.floor(each / area.cell_size + 0.5).astype(np.int64) for each in (north - y, x - west))
        top, left = down[0], right[0]
        cells = np.full((down[-1] - top + 1, right[-1] - left + 1), rest)
        near = (row >= top) & (row <= down[-1]) & (col >= left) & (col <= right[-1])
        cells[row[near] - top, col[near] - left] = probability[near]
        inside = ((down >= 0) & (down < rows))[:, None] & (right >= 0) & (right < cols)
        result[index] = np.where(inside, cells[down[:, None] - top, right - left], 0.0)
    return result
