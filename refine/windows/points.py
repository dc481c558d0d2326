"""Points of a window's probabilities: the most probable pixel, the best disc, the mean, and modes."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from numpy.typing import NDArray

from jzi.refine.windows.mosaic import cover

_Floats = NDArray[np.float64]

#: u and v, pixels.
Point = tuple[float, float]

#: The offsets (right, down) of 3 x 3 pixels, and the least-squares fit of a, b, c, d, e, f through values at them:
#: a + b right + c down + d right^2 + e down^2 + f right down.
_DOWN, _RIGHT = (each.ravel().astype(float) for each in np.meshgrid((-1, 0, 1), (-1, 0, 1), indexing="ij"))
_QUADRATIC = np.linalg.pinv(np.stack([_RIGHT**0, _RIGHT, _DOWN, _RIGHT**2, _DOWN**2, _RIGHT * _DOWN], 1))


def most_probable(probability: _Floats) -> Point:
    """u and v of the most probable pixel, refined by the quadratic fit through the logarithms of 3 x 3 pixels.

    Args:
        probability: (row, col), not all 0.
    """
    row, col = _greatest(probability, probability)
    with np.errstate(divide="ignore"):
        right, down = _peak(np.log(probability), row, col)
    return col + 0.5 + right, row + 0.5 + down


def best_disc(probability: _Floats, around: _Floats, radius: float) -> Point:
    """u and v of the point with the most probability within a radius.

    Args:
        probability: (row, col), not all 0; points are in pixels that are not 0.
        around: (row, col) the same with the probability of other windows.
        radius: in pixels.
    """
    mass = np.where(probability > 0, disc_sums(around, radius), -np.inf)
    row, col = _greatest(mass, probability)
    right, down = _peak(mass, row, col)
    return col + 0.5 + right, row + 0.5 + down


def mean_point(probability: _Floats) -> Point:
    """u and v of the mean.

    Args:
        probability: (row, col), not all 0.
    """
    total, centres = probability.sum(), np.arange(len(probability)) + 0.5
    return float(probability.sum(0) @ centres / total), float(probability.sum(1) @ centres / total)


def disc_sums(probability: _Floats, radius: float) -> _Floats:
    """(row, col) sums over discs around the pixels' centres, by Fourier transforms.

    Args:
        probability: (row, col); 0 outside.
        radius: in pixels.
    """
    side = len(probability)
    reach = min(side, math.ceil(radius + 0.5))
    offset = np.arange(-reach, reach + 1.0)
    kernel = cover(np.hypot(offset, offset[:, None]), radius, 1.0)
    shape = (side + 2 * reach,) * 2  # without what wraps around
    product = np.fft.rfft2(probability, shape) * np.fft.rfft2(kernel, shape)
    sums = np.fft.irfft2(product, shape)[reach : reach + side, reach : reach + side]
    return np.asarray(np.maximum(sums, 0.0))


def local_maxima(values: _Floats, distance: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of the pixels that no pixel of the square around them exceeds, the greatest first.

    Args:
        values: (row, col) not negative; zeros are no maxima.
        distance: half of the square's side, pixels.
    """
    reach = max(1, min(round(distance), len(values) - 1))
    pooled = torch.from_numpy(values)[None, None]
    for kernel, padding in (((2 * reach + 1, 1), (reach, 0)), ((1, 2 * reach + 1), (0, reach))):
        pooled = _max_pool(pooled, kernel, padding)
    row, col = np.nonzero((values >= pooled[0, 0].numpy()) & (values > 0))
    order = (-values[row, col]).argsort(kind="stable")
    return row[order], col[order]


def _max_pool(values: torch.Tensor, kernel: tuple[int, int], padding: tuple[int, int]) -> torch.Tensor:
    padded = F.pad(values, (padding[1], padding[1], padding[0], padding[0]), value=-math.inf)
    return F.max_pool2d(padded, kernel, stride=1)


def _greatest(values: _Floats, probability: _Floats) -> tuple[int, int]:
    """Row and column of the greatest value; of equal ones, that nearest to the mean of the probability."""
    greatest = values.max()
    row, col = np.nonzero(values >= greatest - abs(greatest) * 1e-9)
    if len(row) == 1:
        return int(row[0]), int(col[0])
    u, v = mean_point(probability)
    nearest = np.hypot(col + 0.5 - u, row + 0.5 - v).argmin()
    return int(row[nearest]), int(col[nearest])


def _peak(values: _Floats, row: int, col: int) -> tuple[float, float]:
    """Offset of a peak to the right and down, at most a pixel; 0 at edges and where the fit has no maximum."""
    around = values[max(0, row - 1) : row + 2, max(0, col - 1) : col + 2]
    if around.shape != (3, 3) or not np.isfinite(around).all():
        return 0.0, 0.0
    _, b, c, d, e, f = _QUADRATIC @ around.ravel()
    determinant = 4 * d * e - f * f
    if not (d < 0 and determinant > 1e-12 * (d * d + e * e)):
        return 0.0, 0.0
    right, down = (f * c - 2 * e * b) / determinant, (f * b - 2 * d * c) / determinant
    return float(np.clip(right, -1, 1)), float(np.clip(down, -1, 1))
