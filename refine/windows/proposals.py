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

#: Points along a side of a cell, at which its share in windows is measured, and of a window, at which its cells are.
CELL_POINTS, WINDOW_POINTS = 16, 64


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
        mask: (t, P, P) where the photo may have been taken: where there is imagery, and the front end excludes nothing.
        probability: (t,) of the ground that each window owns, where the mask is set.
        cell_x: (cell,) centres, in the area's CRS, of the cells with probability outside of that ground.
        cell_y: (cell,).
        cell_probability: (cell,) what is left of their probability.
    """

    mask: NDArray[np.bool_]
    probability: _Floats
    cell_x: _Floats
    cell_y: _Floats
    cell_probability: _Floats


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

    A cell's probability is spread evenly over it. A cell that has probability 0, and is not in the residual, is
    excluded.

    Args:
        proposals: the windows.
        imagery: (t, P, P) where there is imagery.
    """
    windows, posterior = proposals.windows, proposals.posterior
    mask = imagery & _allowed(proposals)
    reached = posterior.probability[0] > 0
    row, col, probability = (each[0][reached] for each in (posterior.row, posterior.col, posterior.probability))
    x, y = posterior.area.cell_centers(row, col)
    used = np.flatnonzero(mask.any((1, 2)))
    shares = np.zeros((len(windows), len(x)))
    if len(used):
        shares[used] = _cell_shares(windows.select(used), mask[used], x, y, posterior.area.cell_size)
    left = probability * (1 - shares.sum(0))
    outside = left > 0
    return Ground(mask, shares @ probability, x[outside], y[outside], left[outside])


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


def _allowed(proposals: Proposals) -> NDArray[np.bool_]:
    """(t, P, P) whether the front end excludes a pixel's cell, as a prior does; outside of the area, nothing is."""
    windows, posterior = proposals.windows, proposals.posterior
    allowed = np.ones((len(windows), windows.pixels, windows.pixels), bool)
    if posterior.residual[0] >= ROUNDING or not len(windows):
        return allowed
    count = min(windows.pixels, WINDOW_POINTS)
    coarse = windows.with_pixels(count)
    centres = np.arange(count) + 0.5
    u, v = (np.broadcast_to(each, (len(windows), count, count)) for each in np.meshgrid(centres, centres))
    latitude, longitude = coarse.pixels_to_position(u, v)
    row, col = posterior.area.cells_at(latitude.ravel(), longitude.ravel())
    cols = posterior.area.shape[1]
    reached = posterior.probability[0] > 0
    keys = posterior.row[0][reached] * cols + posterior.col[0][reached]
    known = ((row < 0) | np.isin(row * cols + col, keys)).reshape(u.shape)
    pixel = np.minimum((np.arange(windows.pixels) + 0.5) * count / windows.pixels, count - 1).astype(int)
    return np.asarray(known[:, pixel[:, None], pixel])
