"""Temperatures of pixels and headings, fitted on held-out photos (Guo et al. 2017, "On Calibration ...")."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from jzi.refine.outputs import RefinerOutput
from jzi.refine.windows.heading import to_headings

#: Ranges of the temperatures of pixels and of headings.
PIXELS, HEADINGS = (0.05, 20.0), (0.001, 10.0)

#: Photos whose logits are normalised at once.
BATCH = 16

_Floats = NDArray[np.float64]


def fit_temperature(logits: Tensor, mask: Tensor, u: ArrayLike, v: ArrayLike) -> float:
    """T_D with the greatest likelihood of true positions, within `PIXELS`; 1 if there are none.

    Args:
        logits: (n, P, P) of validation photos, on any device.
        mask: (n, P, P) whether there is imagery.
        u: (n,) true positions in the windows, pixels; photos outside of windows or imagery are left out.
        v: (n,).
    """
    known, row, col = pixels_at(mask, u, v)
    if not len(known):
        return 1.0

    def loss(temperature: float) -> float:
        total = 0.0
        for part in torch.arange(len(known)).split(BATCH):
            photos = known[part.numpy()]
            values = logits[photos].double() / temperature
            values = values.masked_fill(~mask[photos], -torch.inf)
            truth = values[torch.arange(len(photos)), row[part.numpy()], col[part.numpy()]]
            total += float((values.flatten(1).logsumexp(1) - truth).sum())
        return total / len(known)

    return minimise(loss, *PIXELS)


def negative_log_likelihood(density: _Floats, pixel_m: float, u: ArrayLike, v: ArrayLike) -> _Floats:
    """(n,) -log of the probability per square metre at true positions; nan outside of windows or imagery.

    Args:
        density: (n, P, P) probabilities of pixels.
        pixel_m: side of a pixel, metres.
        u: (n,) true positions in the windows, pixels.
        v: (n,).
    """
    known, row, col = pixels_at(torch.from_numpy(density > 0), u, v)
    values = np.full(len(density), np.nan)
    values[known] = -np.log(density[known, row, col] / pixel_m**2)
    return values


def fit_heading_temperature(output: RefinerOutput, density: _Floats, grid_heading_deg: ArrayLike) -> float:
    """T_h with the greatest likelihood of true headings, within `HEADINGS`; 0.1 if there are none.

    Args:
        output: of a refiner for validation photos.
        density: (n, P, P) probabilities of pixels.
        grid_heading_deg: (n,) true headings as azimuths from grid north; nan leaves a photo out.
    """
    heading, rolls = np.asarray(grid_heading_deg, float), output.levels[-1].shape[1]
    known = np.flatnonzero(np.isfinite(heading) & (density.sum((1, 2)) > 0))
    if not len(known) or rolls == 1:
        return 0.1
    at = heading[known] % 360 * rolls / 360
    low = np.floor(at).astype(int) % rolls
    share, photos = at - np.floor(at), np.arange(len(known))
    chosen = output.select(torch.from_numpy(known))

    def loss(temperature: float) -> float:
        probability = to_headings(chosen, density[known], temperature)
        truth = (1 - share) * probability[photos, low] + share * probability[photos, (low + 1) % rolls]
        return float(-np.log(np.maximum(truth, 1e-12)).mean())

    return minimise(loss, *HEADINGS)


def pixels_at(
    mask: Tensor, u: ArrayLike, v: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Photos whose position lies in a pixel with imagery, and the rows and columns of these pixels.

    Args:
        mask: (n, P, P).
        u: (n,) positions, pixels.
        v: (n,).
    """
    u, v, side = np.asarray(u, float), np.asarray(v, float), mask.shape[-1]
    inside = (u >= 0) & (u < side) & (v >= 0) & (v < side)  # False for nan too
    known = np.flatnonzero(inside)
    row, col = np.floor(v[known]).astype(np.int64), np.floor(u[known]).astype(np.int64)
    covered = mask[known, row, col].cpu().numpy().astype(bool)
    return known[covered], row[covered], col[covered]


def minimise(loss: Callable[[float], float], low: float, high: float, steps: int = 40) -> float:
    """The value within a range with the least loss, which has one minimum, by golden-section search of its logarithm.

    Args:
        loss: of a value.
        low: of the range, above 0.
        high: of the range.
        steps: each divides the range by 1.6.
    """
    golden = (math.sqrt(5) - 1) / 2
    start, stop = math.log(low), math.log(high)
    left, right = stop - golden * (stop - start), start + golden * (stop - start)
    at_left, at_right = loss(math.exp(left)), loss(math.exp(right))
    for _ in range(steps):
        if stop - start < 1e-4:
            break
        if at_left <= at_right:
            stop, right, at_right = right, left, at_left
            left = stop - golden * (stop - start)
            at_left = loss(math.exp(left))
        else:
            start, left, at_left = left, right, at_right
            right = start + golden * (stop - start)
            at_right = loss(math.exp(right))
    return math.exp((start + stop) / 2)
