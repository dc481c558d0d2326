"""The spread of a fused posterior: how often the true cell is a neighbour of the one that the experts agree on.

Weights fit how sure a product of experts is, but not an error that the experts share: tiles beside one another look
alike, and photos that were taken near the border of a cell fit both sides. The true cell is modelled as drawn from the
product, and moved to the next row with probability `spread` in each of both directions, and likewise to the next
column. Moves to cells without imagery are not made.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jzi.locate.joint.gain import MIN_PHOTOS, is_clear, mean_and_error
from jzi.locate.keys import distinct

#: Most probable cells of a photo that are moved on a map of which only some cells are reached.
MOVED = 256

#: The greatest spread, with which all nine cells are equally probable, and the spreads and factors that are tried.
GREATEST = 1 / 3
SPREADS: list[float] = np.linspace(0.0, GREATEST, 101).tolist()
FACTORS: list[float] = np.linspace(1.0, 1.5, 11).tolist()

TINY = 1e-300

#: (9, 2) rows and columns of a cell and its neighbours, from it.
OFFSETS = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1], indexing="ij"), -1).reshape(9, 2)

#: (9,) number of axes along which each of them is moved.
MOVES = np.abs(OFFSETS).sum(1)


def kernel(spread: float) -> NDArray[np.float64]:
    """(9,) the probability of each of `OFFSETS`.

    Example:
        >>> kernel(0.25).reshape(3, 3)
        array([[0.0625, 0.125 , 0.0625],
               [0.125 , 0.25  , 0.125 ],
               [0.0625, 0.125 , 0.0625]])
    """
    return np.asarray((1 - 2 * spread) ** (2 - MOVES) * spread**MOVES)


def neighbours(key: NDArray[np.int64], cell_mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(..., 9) keys of the cells that a move by each of `OFFSETS` ends in: the cell itself where that has no imagery.

    Args:
        key: (...) row * columns + column of cells.
        cell_mask: (row, col) whether each cell has imagery.
    """
    rows, cols = cell_mask.shape
    row, col = (each[..., None] + offset for each, offset in zip(np.divmod(key, cols), OFFSETS.T, strict=True))
    inside = (row >= 0) & (row < rows) & (col >= 0) & (col < cols)
    inside &= cell_mask[row.clip(0, rows - 1), col.clip(0, cols - 1)]
    return np.where(inside, row * cols + col, key[..., None])


def spread_all(key: NDArray[np.int64], probability: Tensor, cell_mask: NDArray[np.bool_], spread: float) -> Tensor:
    """(photo, cell) probabilities after the moves, where all cells with imagery are given.

    Args:
        key: (cell,) row * columns + column of all cells with imagery.
        probability: (photo, cell).
        cell_mask: (row, col) whether each cell has imagery.
        spread: probability of a move in one direction.
    """
    rows, cols = cell_mask.shape
    index, mask = torch.tensor(key), torch.tensor(cell_mask, dtype=probability.dtype)
    grid = torch.zeros(len(probability), rows * cols, dtype=probability.dtype)
    grid[:, index] = probability
    left = 1 - _blurred(mask[None], spread).flatten(1)  # the moves that are not made
    return _blurred(grid.view(-1, rows, cols), spread).flatten(1)[:, index] + left[:, index] * probability


def spread_best(
    key: NDArray[np.int64], probability: Tensor, other: Tensor, cell_mask: NDArray[np.bool_], spread: float
) -> tuple[NDArray[np.int64], Tensor]:
    """Move the `MOVED` most probable cells of each photo.

    Args:
        key: (photo, cell) row * columns + column of the cells that were reached; arbitrary where the probability is 0.
        probability: (photo, cell).
        other: (photo,) probability of each cell that was not reached.
        cell_mask: (row, col) whether each cell has imagery.
        spread: probability of a move in one direction.

    Returns:
        (photo, cell) keys of the same cells and those moved to, ascending, and their probabilities after the moves.
    """
    padding, photos = cell_mask.size, len(key)
    best, index = probability.topk(min(MOVED, key.shape[1]), dim=1)
    source = np.take_along_axis(key, index.numpy(), 1)
    target = neighbours(source, cell_mask)
    target[best.numpy() == 0] = padding
    reached = np.where(probability.numpy() > 0, key, padding)
    found, column = distinct(np.concatenate([reached, target.reshape(photos, -1)], 1), padding)
    at = torch.from_numpy(column)
    here, there = at[:, : key.shape[1]], at[:, key.shape[1] :]
    moved = torch.where(torch.from_numpy(found < padding), other[:, None], 0.0)
    moved.scatter_(1, here, probability)  # padding gets 0
    shares = best[..., None] * torch.from_numpy(kernel(spread))
    moved.scatter_add_(1, there, shares.flatten(1))
    moved.scatter_add_(1, here.gather(1, index), -best)
    found[found == padding] = 0
    return found, moved.clamp(min=0.0)


def fit_spread(product: Tensor, base: Tensor, truth: Tensor) -> tuple[float, float]:
    """The spread with the greatest likelihood of the true cells, and the common factor of the weights beside it.

    Weights are fitted without a spread, and are lower for the errors that it accounts for. With the most likely factor
    the probabilities of cells are right, but those of circles of several cells are too high, with none too low; its
    square root lies between (`python -m benchmarks.fusion`). Without a clear gain (`jzi.locate.joint.gain`) the spread
    is 0 and the factor 1.

    Args:
        product: (photo, entry) logarithm of the product of the experts' posteriors, for one cell of each entry.
        base: (photo, entry) logarithm of the number of cells of an entry; -inf for padding.
        truth: (photo, 9) the product for the `neighbours` of the true cells.

    Returns:
        The factor and the spread.
    """
    if len(truth) < MIN_PHOTOS:
        return 1.0, 0.0

    def near(factor: float) -> Tensor:
        return (factor * truth - (factor * product + base).logsumexp(-1, keepdim=True)).exp()

    def likelihood(probability: Tensor, spread: float) -> Tensor:
        return (probability @ torch.from_numpy(kernel(spread))).clamp(min=TINY).log()

    def best(factor: float) -> tuple[float, float]:
        probability = near(factor)
        values = {spread: float(likelihood(probability, spread).mean()) for spread in SPREADS}
        found = max(values, key=values.__getitem__)
        return values[found], found

    factor = max(FACTORS, key=best) ** 0.5
    spread = best(factor)[1]
    gain = likelihood(near(factor), spread) - likelihood(near(1.0), 0.0)
    return (factor, spread) if is_clear(*mean_and_error(gain)) else (1.0, 0.0)


def _blurred(grid: Tensor, spread: float) -> Tensor:
    """(photo, row, col) values, each distributed over its neighbours; what leaves the grid is lost."""
    for axis in (1, 2):
        size, moved = grid.shape[axis], (1 - 2 * spread) * grid
        if size > 1:
            moved.narrow(axis, 0, size - 1).add_(grid.narrow(axis, 1, size - 1), alpha=spread)
            moved.narrow(axis, 1, size - 1).add_(grid.narrow(axis, 0, size - 1), alpha=spread)
        grid = moved
    return grid
