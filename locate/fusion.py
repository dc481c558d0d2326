"""Several photos that say more than one: taken at one place, or on one drive.

Each photo's posterior is taken as its evidence for every cell. One photo may be of no use at all (`NO_USE`), so that a
bad one among good ones does not rule the true place out; what search did not reach is spread over the cells that it did
not reach.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from jzi.errors import ConfigError
from jzi.locate.posterior import Posterior

#: The share of photos that tell nothing of where they were taken.
NO_USE = 0.02

#: Most cells to a side of a map on which photos are combined: evidence is kept for every cell.
MAX_SIDE = 2048


def evidence(found: Posterior, cell_mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(photo, row, col) how likely each photo is in every cell; each photo's sum to 1.

    Args:
        found: of several photos.
        cell_mask: (row, col) whether a cell has imagery.

    Raises:
        ConfigError: the map has too many cells.
    """
    side = len(cell_mask)
    if side > MAX_SIDE:
        raise ConfigError(f"photos are combined on maps of at most {MAX_SIDE} x {MAX_SIDE} cells, not {side} x {side}")
    anywhere = cell_mask / cell_mask.sum()
    grids = []
    for photo in range(len(found)):
        grid = found.grid(photo)
        unreached = cell_mask & (grid == 0)
        if unreached.any():
            grid = grid + unreached * (found.residual[photo] / unreached.sum())
        grids.append((1 - NO_USE) * grid / grid.sum() + NO_USE * anywhere)
    return np.stack(grids)


def together(found: Posterior, cell_mask: NDArray[np.bool_]) -> Posterior:
    """Of photos taken at one place: the product of what they say."""
    logs = np.log(np.maximum(evidence(found, cell_mask), 1e-300)).sum(0)
    logs[~cell_mask] = -np.inf
    return _as_posterior(found, np.exp(logs - logs.max()))


def along_track(
    found: Posterior, cell_mask: NDArray[np.bool_], seconds: Sequence[float], speed: float
) -> list[Posterior]:
    """Of photos taken on one drive: what all of them say of where each was taken.

    A hidden Markov model over cells: between two photos the camera went no farther than its top speed allows, and
    every place in reach is as likely; forward-backward over the whole drive (Rabiner 1989).

    Args:
        found: of the photos, in the order of time.
        cell_mask: (row, col) whether a cell has imagery.
        seconds: (photo,) when each was taken; they do not fall.
        speed: top speed, metres per second.

    Raises:
        ConfigError: the speed or the times make no sense.
    """
    gaps = np.diff(np.asarray(seconds, float))
    if not speed > 0 or (gaps < 0).any():
        raise ConfigError(f"a track needs a top speed of more than 0, not {speed}, and photos in the order of time")
    seen = evidence(found, cell_mask)
    reaches = [speed * gap + found.pyramid.cell_size for gap in gaps]  # positions are known to a cell
    forward, backward = [seen[0]], [np.ones_like(seen[0])]
    for reach, now in zip(reaches, seen[1:], strict=True):
        forward.append(_normalised(_move(forward[-1], reach, found, cell_mask) * now))
    for reach, later in zip(reversed(reaches), seen[:0:-1], strict=True):
        backward.append(_normalised(_move(backward[-1] * later, reach, found, cell_mask)))
    smoothed = (_normalised(one * other) for one, other in zip(forward, reversed(backward), strict=True))
    return [_as_posterior(found, grid) for grid in smoothed]


def _move(
    grid: NDArray[np.float64], reach: float, found: Posterior, cell_mask: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Spread what is in each cell over the cells within reach; convolution by Fourier transform."""
    side = len(grid)
    cells = min(side, int(np.ceil(reach / found.pyramid.cell_size)))
    offset = np.arange(-cells, cells + 1)
    disc = (np.hypot(*np.meshgrid(offset, offset)) * found.pyramid.cell_size <= reach).astype(float)
    shape = (side + 2 * cells, side + 2 * cells)
    spread = np.fft.irfft2(np.fft.rfft2(grid, shape) * np.fft.rfft2(disc / disc.sum(), shape), shape)
    moved = spread[cells : cells + side, cells : cells + side]
    return np.maximum(moved, 0.0) * cell_mask + 1e-12 * cell_mask  # rounding; and no place is ruled out for ever


def _normalised(grid: NDArray[np.float64]) -> NDArray[np.float64]:
    return grid / grid.sum()


def _as_posterior(found: Posterior, grid: NDArray[np.float64]) -> Posterior:
    grid = _normalised(grid)
    row, col = np.nonzero(grid > grid.max() * 1e-9)
    return Posterior.from_cells(found.pyramid, row, col, grid[row, col] / grid[row, col].sum())
