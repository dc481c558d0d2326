"""The fix in a window: its point, with the ellipse, radii, further modes and heading around it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from jzi.errors import ConfigError
from jzi.locate.answer.fix import FineGrid, Fix, HeadingPeak, Mode
from jzi.locate.ranges import DISTANCE
from jzi.refine.windows.heading import Heading, summarize
from jzi.refine.windows.mosaic import Mosaic
from jzi.refine.windows.points import best_disc, disc_sums, local_maxima, mean_point, most_probable
from jzi.refine.windows.window import Window, Windows, wrap

_Floats = NDArray[np.float64]

#: The most probable pixel, the point with the most probability within a radius, or the mean.
ESTIMATES = ("map", "radius", "mean")

#: Radius of a mode, metres: of the mass that its ellipse describes, and to the next mode.
MODE_M = 10.0

#: Least share of a window's probability that another mode has, and the most modes of a fix.
LEAST_MODE, MODES = 0.05, 5


@dataclass(frozen=True)
class FixOptions:
    """How the probabilities of pixels become a point.

    Attributes:
        estimate: "map": the most probable pixel (the paper's); "radius": the point with the most probability within
            `radius`; "mean": the mean.
        radius: metres; the confidence of an answer is the probability within it.

    Raises:
        ConfigError: there is no such estimate, or the radius is out of range.
    """

    estimate: str = "radius"
    radius: float = 5.0

    def __post_init__(self) -> None:
        if self.estimate not in ESTIMATES:
            raise ConfigError(f"there is no estimate {self.estimate!r} of a fix: it is one of {', '.join(ESTIMATES)}")
        DISTANCE.check("radius", self.radius)


def make_fix(
    mosaic: Mosaic,
    index: int,
    heading: _Floats,
    cell: tuple[int, int],
    rank: int,
    options: FixOptions,
    mode: Mode | None = None,
) -> Fix:
    """The fix in one of the windows of a photo.

    Args:
        mosaic: the windows.
        index: of the window; it has probability.
        heading: (R,) probabilities of headings from grid north.
        cell: of the candidate.
        rank: of the candidate, from 0.
        options: the point.
        mode: the point instead; it has no further modes.
    """
    windows, probability = mosaic.windows, mosaic.probability[index]
    window, area, around = windows[index], windows.area, mosaic.around(index)
    at = _point(window, probability, around, options, mode)
    x, y = (float(each) for each in window.pixels_to_crs(*at))
    if options.estimate == "radius":
        x, y = mosaic.centred(x, y, options.radius)
    latitude, longitude = (float(each) for each in area.unproject(x, y))
    row, col = area.cells_at(latitude, longitude)
    ellipse = mosaic.ellipse(x, y, MODE_M)
    radius_68, radius_95 = mosaic.radii(x, y, 0.68, 0.95)
    directions = summarize(heading) if len(heading) > 1 else None
    return Fix(
        latitude=latitude,
        longitude=longitude,
        x=x,
        y=y,
        cell=(int(row[0]), int(col[0])) if row[0] >= 0 else cell,
        sd_major_m=ellipse.major_m,
        sd_minor_m=ellipse.minor_m,
        axis_deg=float(wrap(window.true_heading(ellipse.axis_deg), 180)),
        mode_mass=min(1.0, mosaic.mass(x, y, MODE_M)),
        radius_68_m=radius_68,
        radius_95_m=radius_95,
        heading_deg=float(window.true_heading(directions.mean_deg)) if directions else None,
        heading_sd_deg=directions.sd_deg if directions else None,
        probability=min(1.0, float(probability.sum())),
        candidate_rank=rank + 1,
        modes=() if mode else _modes(mosaic, index, around, (x, y), options),
        headings=_peaks(window, directions) if directions else (),
    )


def _point(
    window: Window, probability: _Floats, around: _Floats, options: FixOptions, mode: Mode | None
) -> tuple[float, float]:
    """u and v of the point in a window."""
    if mode:
        u, v = window.position_to_pixels(mode.latitude, mode.longitude)
        return float(u), float(v)
    if options.estimate == "map":
        return most_probable(probability)
    if options.estimate == "radius":
        return best_disc(probability, around, options.radius / window.pixel_m)
    return mean_point(probability)


def fine_grids(windows: Windows, probability: _Floats) -> tuple[FineGrid, ...]:
    """The windows of a photo that have probability, for outputs.

    Args:
        windows: the windows.
        probability: (window, row, col) of pixels.
    """
    west, _, east, north = windows.bounds.T
    pixel = (east - west) / windows.pixels
    return tuple(
        FineGrid(float(west[index]), float(north[index]), float(pixel[index]), probability[index].astype(np.float32))
        for index in np.flatnonzero(probability.any((1, 2)))
    )


def _modes(
    mosaic: Mosaic, index: int, around: _Floats, point: tuple[float, float], options: FixOptions
) -> tuple[Mode, ...]:
    """The places in a window that are more probable than all within `MODE_M`, and are not near the point."""
    windows, probability = mosaic.windows, mosaic.probability[index]
    window, total = windows[index], float(probability.sum())
    smooth = disc_sums(around, min(options.radius, MODE_M) / windows.pixel_m)
    rows, cols = local_maxima(smooth, MODE_M / math.sqrt(2) / windows.pixel_m)  # a square within the circle
    own = probability[rows, cols] > 0
    rows, cols = rows[own], cols[own]
    at_x, at_y = window.pixels_to_crs(cols + 0.5, rows + 0.5)
    chosen, left, modes = [point], mosaic.without(*point, MODE_M), list[Mode]()
    for mode_x, mode_y in zip(at_x.tolist(), at_y.tolist(), strict=True):
        if min(np.hypot(mode_x - px, mode_y - py) for px, py in chosen) < MODE_M * window.scale:
            continue
        mass = left.mass(mode_x, mode_y, MODE_M)
        if mass < LEAST_MODE * total:
            continue
        chosen.append((mode_x, mode_y))
        left = left.without(mode_x, mode_y, MODE_M)
        latitude, longitude = (float(each) for each in windows.area.unproject(mode_x, mode_y))
        modes.append(Mode(latitude, longitude, mass))
        if len(modes) == MODES:
            break
    return tuple(sorted(modes, key=lambda each: -each.probability))


def _peaks(window: Window, directions: Heading) -> tuple[HeadingPeak, ...]:
    """The peaks as azimuths from true north, if there are two or more."""
    if len(directions.peaks) < 2:
        return ()
    return tuple(replace(each, heading_deg=float(window.true_heading(each.heading_deg))) for each in directions.peaks)
