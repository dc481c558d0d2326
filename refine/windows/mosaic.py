"""The windows of one photo as one map of probability: mass and moments around a point, and credible radii."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jzi.refine.windows.window import Windows, wrap

_Floats = NDArray[np.float64]
_Index = NDArray[np.int64]

#: Directions along which the moments of a truncated normal distribution are integrated, and steps of its fit.
DIRECTIONS, STEPS = 1024, 100

#: Share by which masses may differ that count as equal, and moves towards a mean.
EQUAL, SHIFTS = 1e-3, 5

#: Greatest standard deviation of an ellipse, in radii of the disc: what is broader looks even within it.
WIDEST = 1.0


class Ellipse(NamedTuple):
    """Standard deviations along the axes, metres, and the azimuth of the major axis from grid north, 0..180."""

    major_m: float
    minor_m: float
    axis_deg: float


@dataclass(frozen=True, eq=False)
class Mosaic:
    """Probabilities of pixels, of which no two cover the same ground.

    Attributes:
        windows: (window,) the windows.
        probability: (window, row, col) of pixels.
        cell_x: (cell,) centres, in the area's CRS, of cells outside of the windows' candidates.
        cell_y: (cell,).
        cell_probability: (cell,) probabilities of these cells, each spread evenly over its cell.
    """

    windows: Windows
    probability: _Floats
    cell_x: _Floats
    cell_y: _Floats
    cell_probability: _Floats

    @classmethod
    def of(cls, windows: Windows, probability: _Floats) -> Mosaic:
        """Without cells outside of the windows."""
        return cls(windows, probability, np.empty(0), np.empty(0), np.empty(0))

    def mass(self, x: float, y: float, radius: float) -> float:
        """The probability of the pixels within `radius` metres of a point of the area's CRS."""
        return float(self._disc(x, y, radius)[2].sum())

    def centred(self, x: float, y: float, radius: float) -> tuple[float, float]:
        """A point moved to the mean of the mass within a radius, for as long as it holds as much, to `EQUAL`.

        A disc that is larger than a peak holds all of it wherever it lies around it.
        """
        right, up, weight, _ = self._disc(x, y, radius)
        scale = float(self.windows.scale.mean())
        for _ in range(SHIFTS):
            total = weight.sum()
            if not total > 0:
                break
            to_x, to_y = x + weight @ right / total * scale, y + weight @ up / total * scale
            right, up, weight, _ = self._disc(to_x, to_y, radius)
            if weight.sum() < total * (1 - EQUAL):
                break
            x, y = float(to_x), float(to_y)
        return x, y

    def around(self, index: int) -> _Floats:
        """(row, col) probabilities of a window's pixels, and of those of other windows whose centres lie in it."""
        merged, side = self.probability[index].copy(), self.windows.pixels
        for other in range(len(self.windows)):
            if other == index or not self._overlap(index, other):
                continue
            row, col = np.nonzero(self.probability[other] > 0)
            x, y = self.windows[other].pixels_to_crs(col + 0.5, row + 0.5)
            u, v = self.windows[index].crs_to_pixels(x, y)
            inside = (u >= 0) & (u < side) & (v >= 0) & (v < side)
            at = v[inside].astype(int), u[inside].astype(int)
            np.add.at(merged, at, self.probability[other][row, col][inside])
        return merged

    def _overlap(self, one: int, other: int) -> bool:
        x, y = self.windows.x, self.windows.y
        reach = (self.windows.scale[one] + self.windows.scale[other]) / 2 * self.windows.side_m
        return bool(max(abs(x[one] - x[other]), abs(y[one] - y[other])) < reach)

    def without(self, x: float, y: float, radius: float) -> Mosaic:
        """The same without what `mass` counts."""
        probability = self.probability.copy()
        _, _, weight, index = self._disc(x, y, radius)
        probability[index] -= weight
        return Mosaic(self.windows, probability, self.cell_x, self.cell_y, self.cell_probability)

    def ellipse(self, x: float, y: float, radius: float) -> Ellipse:
        """The normal distribution whose part within `radius` metres of a point has the moments that the mass has.

        Not less than the spread of one pixel, nor more than `WIDEST` radii.
        """
        right, up, weight, _ = self._disc(x, y, radius)
        least = self.windows.pixel_m / math.sqrt(12)
        if not weight.sum() > 0:
            return Ellipse(least, least, 0.0)
        weight = weight / weight.sum()
        right, up = right - weight @ right, up - weight @ up
        covariance = np.array([[weight @ right**2, weight @ (right * up)], [weight @ (right * up), weight @ up**2]])
        (small, great), axes = np.linalg.eigh(covariance)
        great, small = _untruncated(max(great, least**2), max(small, least**2), radius)
        azimuth = float(wrap(math.degrees(math.atan2(axes[0, 1], axes[1, 1])), 180))
        return Ellipse(math.sqrt(great), math.sqrt(small), azimuth)

    def radii(self, x: float, y: float, *shares: float) -> list[float]:
        """Radii around a point that contain shares of the probability, metres; inf where all of it is less."""
        scale = float(self.windows.scale.mean())
        distances, weights = [], []
        for index in range(len(self.windows)):
            row, col = np.nonzero(self.probability[index] > 0)
            at_x, at_y = self.windows[index].pixels_to_crs(col + 0.5, row + 0.5)
            distances.append(np.hypot(at_x - x, at_y - y) / scale)
            weights.append(self.probability[index][row, col])
        within = ((np.arange(3) + 0.5) / 3 - 0.5) * self.windows.area.cell_size  # nine points for a cell
        dx, dy = (each.ravel() for each in np.meshgrid(within, within))
        distances.append(np.hypot(self.cell_x[:, None] + dx - x, self.cell_y[:, None] + dy - y).ravel() / scale)
        weights.append(np.repeat(self.cell_probability / dx.size, dx.size))
        distance, weight = np.concatenate(distances), np.concatenate(weights)
        order = distance.argsort()
        cumulated = weight[order].cumsum()
        at = [int(np.searchsorted(cumulated, share - 1e-9)) for share in shares]
        return [float(distance[order[each]]) if each < len(order) else math.inf for each in at]

    def _disc(
        self, x: float, y: float, radius: float
    ) -> tuple[_Floats, _Floats, _Floats, tuple[NDArray[np.int64], ...]]:
        """The pixels within a radius: offset from the point in metres, probability, and index in `probability`.

        Of a pixel on the circle a share counts, which grows from 0 to 1 along the width of a pixel.
        """
        side, pixel = self.windows.pixels, self.windows.pixel_m
        centre_u, centre_v = self.windows.crs_to_pixels(np.full(len(self.windows), x), np.full(len(self.windows), y))
        reach = radius / pixel + 1
        parts: list[tuple[NDArray[np.float64], ...]] = []
        indices: list[tuple[NDArray[np.int64], ...]] = []
        for window, (u, v) in enumerate(zip(centre_u, centre_v, strict=True)):
            cols = np.arange(max(0, math.floor(u - reach)), min(side, math.ceil(u + reach)))
            rows = np.arange(max(0, math.floor(v - reach)), min(side, math.ceil(v + reach)))
            col, row = (each.ravel() for each in np.meshgrid(cols, rows))
            right, up = (col + 0.5 - u) * pixel, (v - row - 0.5) * pixel
            share = cover(np.hypot(right, up), radius, pixel)
            kept = (share > 0) & (self.probability[window, row, col] > 0)
            right, up, share, row, col = (each[kept] for each in (right, up, share, row, col))
            parts.append((right, up, share * self.probability[window, row, col]))
            indices.append((np.full(len(row), window), row, col))
        right, up, weight = (np.concatenate(each) for each in zip(*parts, strict=True))
        index = tuple(np.concatenate(each) for each in zip(*indices, strict=True))
        return right, up, weight, index


def cover(distance: _Floats, radius: float, pixel: float) -> _Floats:
    """Shares of pixels that a disc covers, by the distance of their centres from its own."""
    share = np.clip((radius - distance) / pixel + 0.5, 0.0, 1.0)
    if radius < 2 * pixel:  # few pixels: the area that they cover together is the disc's
        share *= min(1.0, math.pi * radius**2 / max(1e-12, float(share.sum()) * pixel**2))
    return np.asarray(share)


def _untruncated(great: float, small: float, radius: float) -> tuple[float, float]:
    """Variances of the normal distribution whose part in a disc around its mean has the given variances.

    The part of a standard deviation of half a radius that is in the disc has 17 % less. Each step divides by the
    shrinkage at the current variances; radial integrals are exact.
    """
    angle = np.arange(DIRECTIONS) * (2 * math.pi / DIRECTIONS)
    square = np.stack([np.cos(angle) ** 2, np.sin(angle) ** 2])  # (axis, direction)
    measured = np.array([great, small])
    variance, widest = measured.copy(), (WIDEST * radius) ** 2
    for _ in range(STEPS):
        rate = (square / variance[:, None]).sum(0)
        z = rate * radius**2 / 2
        mass = -np.expm1(-z) / rate
        second = 2 * (-np.expm1(-z) - z * np.exp(-z)) / rate**2
        truncated = (square * second).sum(1) / mass.sum()
        change = measured / truncated
        variance = np.minimum(variance * change, widest)
        if abs(change - 1).max() < 1e-4 or variance.max() >= widest:
            break
    return float(variance.max()), float(variance.min())
