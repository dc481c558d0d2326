"""Fusion of several photos of one position or of one drive.

Each photo's posterior is used as its likelihood for every cell. Any photo may carry no information (`OUTLIER`), so a
bad one among good ones does not rule out the true position. The residual is spread over the cells that search did not
reach.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from jzi.errors import ConfigError
from jzi.locate.joint.sparse import MAX_CELLS, fuse_sparse, smooth_sparse
from jzi.locate.posterior import Posterior
from jzi.locate.ranges import SECONDS, SPEED_KMH
from jzi.store.geometry.cell_grid import CellGrid
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.geometry.scale import units_per_metre

#: Share of photos that carry no information about where they were taken.
OUTLIER = 0.02

#: Maximum cells per side of a square map on which likelihoods of all cells are stored; on larger maps and on cells in
#: bands, photos are fused over the cells that search reached.
MAX_SIDE = 2048

#: Maximum number of cells times photos of a drive, 1 GB: 32 photos on the largest map, 2048 on one of 256 x 256 cells.
MAX_TRACK = 2**27


def likelihoods(posterior: Posterior, cell_mask: NDArray[np.bool_]) -> Iterator[NDArray[np.float64]]:
    """(row, col) likelihood of every cell for each photo in turn, normalised to a sum of 1.

    Args:
        posterior: posterior of several photos; it need not be normalised.
        cell_mask: (row, col) whether a cell has imagery, and is not excluded by a prior.

    Raises:
        ConfigError: the map has too many cells.
    """
    rows, cols = cell_mask.shape
    if max(rows, cols) > MAX_SIDE:
        raise ConfigError(f"photos are fused on maps of at most {MAX_SIDE} x {MAX_SIDE} cells, not {rows} x {cols}")
    return (_likelihood(posterior, photo, cell_mask) for photo in range(len(posterior)))


def _likelihood(posterior: Posterior, photo: int, cell_mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    uniform = cell_mask / cell_mask.sum()
    grid = posterior.grid(photo)
    unreached = cell_mask & (grid == 0)
    if unreached.any():
        grid = grid + unreached * (posterior.residual[photo] / unreached.sum())
    grid = grid / grid.sum() if grid.any() else uniform
    return np.asarray((1 - OUTLIER) * grid + OUTLIER * uniform)


def fuse(posterior: Posterior, cell_mask: NDArray[np.bool_]) -> Posterior:
    """The posterior of the common position of photos: the normalised product of their likelihoods.

    Args:
        posterior: posterior of the photos.
        cell_mask: (row, col) whether a cell has imagery.

    """
    if not is_dense(posterior.area):
        return fuse_sparse(posterior, cell_mask, OUTLIER)
    logs = np.zeros(cell_mask.shape)
    for likelihood in likelihoods(posterior, cell_mask):
        logs += np.log(np.maximum(likelihood, 1e-300))
    logs[~cell_mask] = -np.inf
    return _to_posterior(posterior, np.exp(logs - logs.max()))


def is_dense(area: CellGrid) -> bool:
    """Whether likelihoods of all cells of an area are stored."""
    return isinstance(area, Pyramid) and max(area.shape) <= MAX_SIDE


def check_track(cells: int, seconds: Sequence[float], speed: float) -> None:
    """Raise an error unless the photos of a drive can be located together.

    Args:
        cells: number of cells of the map.
        seconds: (photo,) time at which each was taken, not decreasing.
        speed: top speed, metres per second.

    Raises:
        ConfigError: the speed or a time is out of range, the times decrease, or photos and cells are too many.
    """
    SPEED_KMH.check("the top speed", speed * 3.6)
    if cells > MAX_SIDE**2:
        cells = MAX_CELLS  # of larger maps, only cells that search reached are in memory
    with np.errstate(invalid="ignore"):  # inf - inf
        gaps = np.diff(np.asarray(seconds, float)).tolist()
    SECONDS.check("the time from a photo to the next", *gaps)
    if cells * len(seconds) > MAX_TRACK:
        raise ConfigError(
            f"a track of {len(seconds)} photos is too long for a map of {cells} cells: pass at most "
            f"{max(1, MAX_TRACK // cells)} photos at once"
        )


def smooth_track(
    posterior: Posterior,
    cell_mask: NDArray[np.bool_],
    seconds: Sequence[float],
    speed: float,
    *,
    rounding_s: float = 0.0,
) -> list[Posterior]:
    """The posterior of each photo of a drive given all of them.

    Forward-backward smoothing (Rabiner 1989) of a hidden Markov model over cells: between two photos the camera moves
    at most as far as its top speed allows, and every cell in reach is equally probable.

    Args:
        posterior: posterior of the photos, in the order of time.
        cell_mask: (row, col) whether a cell has imagery.
        seconds: (photo,) time at which each was taken, not decreasing.
        speed: top speed, metres per second.
        rounding_s: seconds by which the time between two photos may be longer than `seconds` say.

    Raises:
        ConfigError: as `check_track`.
    """
    check_track(cell_mask.size, seconds, speed)
    cell_m = posterior.area.cell_size
    speed *= units_per_metre(posterior.area)
    gaps = np.diff(np.asarray(seconds, float)) + rounding_s
    if not is_dense(posterior.area):
        return smooth_sparse(posterior, cell_mask, [speed * gap + cell_m for gap in gaps.tolist()], OUTLIER)
    reaches = [(speed * gap + cell_m) / cell_m for gap in gaps.tolist()]  # positions are accurate to a cell
    forward: list[NDArray[np.float64]] = []
    for photo, likelihood in enumerate(likelihoods(posterior, cell_mask)):
        ahead = _spread(forward[-1], reaches[photo - 1], cell_mask) if forward else None
        forward.append(likelihood if ahead is None else _normalise(ahead * likelihood))
    smoothed: list[Posterior] = []
    behind = np.ones(cell_mask.shape)
    for photo in reversed(range(len(forward))):
        smoothed.append(_to_posterior(posterior, _normalise(forward.pop() * behind)))
        if photo:
            later = _likelihood(posterior, photo, cell_mask)
            behind = _normalise(_spread(_normalise(behind * later), reaches[photo - 1], cell_mask))
    return smoothed[::-1]


def _spread(grid: NDArray[np.float64], reach: float, cell_mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Spread the mass of each cell over the cells within reach (in cells); convolution by Fourier transform.

    The grid has a sum of 1, to which the least probability of a cell is relative.
    """
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
