"""Rays over a grid of tokens as shifts: what lies at fixed distances from every place, in one direction.

Azimuths are the middles of R sectors: azimuth j is 360 (j + 1/2) / R degrees clockwise from north. A ray takes the
token nearest to each of its points, so that it is the same shift at all places. Shifts of azimuths that lie a quarter
turn apart are quarter turns of one another, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

#: Rows and columns by which tokens are shifted, for each distance of each azimuth.
Shifts = tuple[tuple[tuple[int, int], ...], ...]


def ray_shifts(bins: int, distances: Sequence[float]) -> Shifts:
    """Shifts of the rays of all azimuths.

    Args:
        bins: number R of azimuths, a multiple of 4.
        distances: along a ray, in tokens.

    Returns:
        Rows (south) and columns (east) of each azimuth and distance.
    """
    quarter = bins // 4
    shifts = []
    for azimuth in range(bins):
        turns, first = divmod(azimuth, quarter)
        angle = 2 * math.pi * (first + 0.5) / bins
        ray = [(round(-math.cos(angle) * far), round(math.sin(angle) * far)) for far in distances]
        for _ in range(turns):
            ray = [(col, -row) for row, col in ray]
        shifts.append(tuple(ray))
    return tuple(shifts)


@dataclass(frozen=True)
class Places:
    """A square grid of places in a grid of tokens.

    Attributes:
        first: row and column of the north-west place, tokens.
        count: places along a side, P.
        stride: tokens from one place to the next.
    """

    first: tuple[int, int]
    count: int
    stride: int = 1

    def shifted(self, shift: tuple[int, int]) -> tuple[slice, slice]:
        """Rows and columns of the tokens that lie a shift away from the places."""
        length = (self.count - 1) * self.stride + 1
        top, left = self.first[0] + shift[0], self.first[1] + shift[1]
        return slice(top, top + length, self.stride), slice(left, left + length, self.stride)


def along_rays(tokens: Tensor, window: Sequence[int], shifts: Sequence[Shifts], places: Places) -> Tensor:
    """The tokens along rays, side by side.

    Its gradient is added in place, shift by shift, which is some 5 times as fast as that of slices.

    Args:
        tokens: (n, T, T, F); rays that start at the places must not leave the grid.
        window: (m,) which of the n grids to look at.
        shifts: (m,) of K azimuths with D distances each.
        places: where rays start.

    Returns:
        (m, K, P, P, D * F).
    """
    result: Tensor = _AlongRays.apply(tokens, window, shifts, places)
    return result


class _AlongRays(Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, window: Sequence[int], shifts: Sequence[Shifts], places: Places) -> Tensor:
        ctx.shape, ctx.window, ctx.shifts, ctx.places = tokens.shape, window, shifts, places
        count, width = places.count, len(shifts[0][0]) * tokens.shape[-1]
        out = tokens.new_empty(len(window), len(shifts[0]), count, count, width)
        for into, index, rays in zip(out, window, shifts, strict=True):
            grid = tokens[index]
            for each, ray in zip(into, rays, strict=True):
                torch.cat([grid[places.shifted(shift)] for shift in ray], -1, out=each)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = gradients
        total, features = gradient.new_zeros(ctx.shape), ctx.shape[-1]
        for of, index, rays in zip(gradient, ctx.window, ctx.shifts, strict=True):
            grid = total[index]
            for each, ray in zip(of, rays, strict=True):
                for part, shift in zip(each.split(features, -1), ray, strict=True):
                    grid[ctx.places.shifted(shift)].add_(part)
        return total, None, None, None


def between_tokens(tokens: Tensor, down: float, right: float) -> Tensor:
    """Tokens (n, T, T, F) at points that lie up to half a token away, interpolated linearly; wrong along the border."""
    for axis, by in ((1, down), (2, right)):
        if by:
            tokens = torch.lerp(tokens, tokens.roll(-1 if by > 0 else 1, axis), abs(by))
    return tokens
