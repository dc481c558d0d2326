"""Fusion of several photos of one position or of one drive.

Each photo's posterior is used as its likelihood for every cell. Any photo may carry no information (`OUTLIER`), so a
bad one among good ones does not rule out the true position. The residual is spread over the cells that search did not
reach.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from jzi.errors import ConfigError
from jzi.locate.posterior import Posterior

#: Share of photos that carry no information about where they were taken.
OUTLIER = 0.02

#: Maximum cells per side of a map on which photos are fused, because likelihoods of all cells are stored.
MAX_SIDE = 2048


def likelihoods(posterior: Posterior, cell_mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(photo, row, col) likelihood of every cell for each photo, normalised to a sum of 1.

    Args:
        posterior: posterior of several photos; it need not be normalised.
        cell_mask: (row, col) whether a cell has imagery, and is not excluded by a prior.

    Raises:
        ConfigError: the map has too many cells.
    """
    rows, cols = cell_mask.shape
    if max(rows, cols) > MAX_SIDE:
        raise ConfigError(f"photos are fused on maps of at most {MAX_SIDE} x {MAX_SIDE} cells, not {rows} x {cols}")
    uniform = cell_mask / cell_mask.sum()
    grids = []
    for photo in range(len(posterior)):
        grid = posterior.grid(photo)
        unreached = cell_mask & (grid == 0)
        if unreached.any():
            grid = grid + unreached * (posterior.residual[photo] / unreached.sum())
        grid = grid / grid.sum() if grid.any() else uniform
        grids.append((1 - OUTLIER) * grid + OUTLIER * uniform)
    return np.stack(grids)


def fuse(posterior: Posterior, cell_mask: NDArray[np.bool_]) -> Posterior:
    """The posterior of the common position of photos: the normalised product of their likelihoods.

    Args:
        posterior: posterior of the photos.
        cell_mask: (row, col) whether a cell has imagery.

    Raises:
        ConfigError: the map has too many cells.
    """
    logs = np.log(np.maximum(likelihoods(posterior, cell_mask), 1e-300)).sum(0)
    logs[~cell_mask] = -np.inf
    return _to_posterior(posterior, np.exp(logs - logs.max()))


def smooth_track(
    posterior: Posterior, cell_mask: NDArray[np.bool_], seconds: Sequence[float], speed: float
) -> list[Posterior]:
    """The posterior of each photo of a drive given all of them.

    Forward-backward smoothing (Rabiner 1989) of a hidden Markov model over cells: between two photos the camera moves
    at most as far as its top speed allows, and every cell in reach is equally probable.

    Args:
        posterior: posterior of the photos, in the order of time.
        cell_mask: (row, col) whether a cell has imagery.
        seconds: (photo,) time at which each was taken, not decreasing.
        speed: top speed, metres per second.

    Raises:
        ConfigError: the speed is not positive, the times decrease, or the map has too many cells.
    """
    gaps = np.diff(np.asarray(seconds, float))
    if not speed > 0 or (gaps < 0).any():
        raise ConfigError(f"a track needs a top speed of more than 0, not {speed}, and photos in the order of time")
    observed = likelihoods(posterior, cell_mask)
    cell_m = posterior.area.cell_size
    reaches = [speed * gap + cell_m for gap in gaps]  # positions are accurate to a cell
    forward, backward = [observed[0]], [np.ones_like(observed[0])]
    for reach, present in zip(reaches, observed[1:], strict=True):
        forward.append(_normalise(_spread(forward[-1], reach / cell_m, cell_mask) * present))
    for reach, later in zip(reversed(reaches), observed[:0:-1], strict=True):
        backward.append(_normalise(_spread(backward[-1] * later, reach / cell_m, cell_mask)))
    smoothed = (_normalise(ahead * behind) for ahead, behind in zip(forward, reversed(backward), strict=True))
    return [_to_posterior(posterior, grid) for grid in smoothed]


def _spread(grid: NDArray[np.float64], reach: float, cell_mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Spread the mass of each cell over the cells within reach (in cells); convolution by Fourier transform."""
    rows, cols = grid.shape
    cells = min(max(rows, cols), int(np.ceil(reach)))
    offset = np.arange(-cells, cells + 1)
    disc = (np.hypot(*np.meshgrid(offset, offset)) <= reach).astype(float)
    shape = (rows + 2 * cells, cols + 2 * cells)
    spread = np.fft.irfft2(np.fft.rfft2(grid, shape) * np.fft.rfft2(disc / disc.sum(), shape), shape)
    moved = spread[cells : cells + rows, cells : cells + cols]
    # The transform rounds to slightly negative values, and no cell should be ruled out for good
    return np.asarray(np.maximum(moved, 0.0) * cell_mask + 1e-12 * cell_mask)


def _normalise(grid: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(grid / grid.sum())


def _to_posterior(posterior: Posterior, grid: NDArray[np.float64]) -> Posterior:
    grid = _normalise(grid)
    row, col = np.nonzero(grid > grid.max() * 1e-9)
    return Posterior.from_cells(posterior.area, row, col, grid[row, col] / grid[row, col].sum())
