"""What a refiner is trained towards: weights of places and headings, and the windows that are no negatives.

Weights are a Gaussian around the photo's true position in its window, in metres, pooled for each level of the matching.
Positions are continuous: pixel i covers [i, i + 1).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from torch import Tensor

#: Weights of a level at most this high before normalisation are left out, as in CCVPE's code.
LEAST_WEIGHT = 1e-2


def gaussian(place: Tensor, size: int, sigma: Tensor | float) -> Tensor:
    """An un-normalised Gaussian around each place: 1 at the place itself.

    Args:
        place: (..., 2) column and row of the place, continuous pixels.
        size: side of a window, pixels.
        sigma: standard deviation, pixels; at least 1 is used.

    Returns:
        (..., size, size), at the centres of pixels.
    """
    centre = torch.arange(size, device=place.device, dtype=place.dtype) + 0.5
    spread = 2 * torch.as_tensor(sigma, device=place.device, dtype=place.dtype).clamp(min=1.0) ** 2
    col, row = (-((centre - place[..., axis, None]) ** 2) / spread for axis in (0, 1))  # (..., size)
    return (row[..., :, None] + col[..., None, :]).exp()


def place_target(place: Tensor, mask: Tensor, sigma: Tensor | float) -> Tensor:
    """D_gt: a Gaussian around each place over the pixels with imagery, of sum 1.

    Args:
        place: (n, 2) column and row, continuous pixels.
        mask: (n, P, P) bool, pixels with imagery.
        sigma: standard deviation, pixels; at least 1 is used.

    Returns:
        (n, P, P).
    """
    return normalised(gaussian(place, mask.shape[-1], sigma) * mask)


def level_weights(place: Tensor, mask: Tensor, sigma: Tensor | float, size: int) -> Tensor:
    """w_l of equation 8: the Gaussian, max-pooled to a level, without negligible weights, of sum 1.

    Args:
        place: (..., 2) column and row, continuous pixels.
        mask: (..., P, P) bool, pixels with imagery; P is a multiple of `size`.
        sigma: standard deviation, pixels; at least 1 is used.
        size: side of the level, L_l.

    Returns:
        (..., L_l, L_l); all 0 if no weight is left, since the place is not in the window.
    """
    pixels = gaussian(place, mask.shape[-1], sigma) * mask
    pooled = F.max_pool2d(pixels.flatten(0, -3)[:, None], pixels.shape[-1] // size)[:, 0]
    pooled = pooled * (pooled > LEAST_WEIGHT)
    return normalised(pooled).unflatten(0, pixels.shape[:-2])


def heading_target(heading_deg: Tensor, rolls: int, log_heading: Tensor | None = None) -> Tensor:
    """Weights of the rolls around each true heading, which is shared by the two nearest ones linearly.

    Args:
        heading_deg: (n,) clockwise from the window's north; nan if it is not known.
        rolls: R; roll r stands for the heading 360 r / R.
        log_heading: (n, R) log prior of the rolls; those of -inf get no weight.

    Returns:
        (n, R) of sum 1, or all 0: the heading is not known, or the prior excludes its rolls.
    """
    distance = heading_deg[:, None] * (rolls / 360) - torch.arange(rolls, device=heading_deg.device)
    distance = (distance + rolls / 2) % rolls - rolls / 2
    weight = (1 - distance.abs()).clamp(min=0) if rolls > 1 else torch.ones_like(distance)
    weight = weight.nan_to_num(0.0)
    if log_heading is not None:
        weight = weight * log_heading.isfinite()
    return normalised(weight, (-1,))


def false_negatives(place: Tensor) -> Tensor:
    """Windows that show where another photo was taken, so that they are no negatives of it.

    Args:
        place: (n, m, 2) column and row of photo b in window b', from its centre, fractions of its side.

    Returns:
        (n, m) bool; True on the diagonal, of each photo's own window.
    """
    return (place.abs() < 0.5).all(-1)


def normalised(weight: Tensor, axes: tuple[int, ...] = (-2, -1)) -> Tensor:
    """Weights divided by their sum over some axes; all 0 if they are."""
    total = weight.sum(axes, keepdim=True)
    return weight / torch.where(total > 0, total, 1.0)
