"""From the output of a refiner to fixes: point, ellipse, radii, further modes and heading."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from jzi.errors import ConfigError
from jzi.locate.fix import FineGrid, Fix, HeadingPeak, Mode
from jzi.locate.location import Candidate, path_to
from jzi.locate.posterior import Posterior
from jzi.locate.ranges import DISTANCE
from jzi.refine.fuse import RankWeights, combine, owned, rank
from jzi.refine.heading import Heading, summarize, to_headings
from jzi.refine.mosaic import Mosaic
from jzi.refine.points import best_disc, disc_sums, local_maxima, mean_point, most_probable
from jzi.refine.proposals import Ground, Proposals, share_ground
from jzi.refine.window import Window, Windows, wrap

if TYPE_CHECKING:
    from jzi.refine.outputs import RefinerOutput

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


@dataclass(frozen=True)
class RefineCalibration:
    """Numbers fitted on validation photos.

    Attributes:
        temperature: T_D, by which logits of pixels are divided.
        heading_temperature: T_h, by which matches of the finest level are divided.
        weights: of the fusion with the front end.
    """

    temperature: float = 1.0
    heading_temperature: float = 0.1
    weights: RankWeights = field(default_factory=RankWeights)


def to_density(output: RefinerOutput, temperature: float = 1.0) -> _Floats:
    """(n, P, P) float64 probabilities of pixels: their sum is 1; 0 where masked, and everywhere without coverage.

    Args:
        output: of the refiner.
        temperature: T_D.
    """
    precise = replace(output, logits=output.logits.detach().double())
    return np.asarray(precise.density(temperature).cpu().numpy())


def to_fixes(
    output: RefinerOutput,
    windows: Windows,
    temperature: float = 1.0,
    heading_temperature: float = 0.1,
    options: FixOptions | None = None,
) -> list[Fix | None]:
    """The fix of each window alone, as for evaluation on windows that contain their photo; None without coverage.

    Args:
        output: of the refiner, one window per photo.
        windows: (n,) the windows.
        temperature: T_D.
        heading_temperature: T_h.
        options: the point.
    """
    density = to_density(output, temperature)
    headings = to_headings(output, density, heading_temperature)
    fixes: list[Fix | None] = []
    for index in range(len(windows)):
        one = windows.select(np.array([index]))
        covered = density[index].any()
        mosaic = Mosaic.of(one, density[index : index + 1])
        cells = one.area.cells_at(*one.positions)
        cell = (int(cells[0][0]), int(cells[1][0]))
        fixes.append(_fix(mosaic, 0, headings[index], cell, 0, options or FixOptions()) if covered else None)
    return fixes


def refine_candidates(
    output: RefinerOutput,
    proposals: Proposals,
    calibration: RefineCalibration,
    options: FixOptions | None = None,
    similarity: _Floats | None = None,
) -> list[Candidate]:
    """The candidates of one photo with their fixes, the most probable first.

    For the estimate "radius" that is the probability within the radius, else that of the candidate, whose order is that
    of equation 4 in the paper. A candidate whose point lies within the radius of a more probable one is left out, and
    probability is counted once. A window without imagery has no fix: its candidate stays on its cell and comes last.

    Args:
        output: of the refiner, one window per proposal.
        proposals: the windows of the photo.
        calibration: fitted numbers.
        options: the point.
        similarity: (t,) s_t; by default the logarithm of the front end's probability of the windows' ground.
    """
    options, windows = options or FixOptions(), proposals.windows
    features = rank_features(output, proposals, calibration.temperature)
    score = features.score if similarity is None else np.asarray(similarity, float)
    prior = features.ground.probability
    share = rank(np.where(prior > 0, score, -np.inf), features.match, prior, calibration.weights)
    probability = combine(features.density, features.ground.mask, windows, prior, share)
    share = probability.sum((1, 2))
    ground = features.ground
    mosaic = Mosaic(windows, probability, ground.cell_x, ground.cell_y, ground.cell_probability)
    with np.errstate(invalid="ignore", divide="ignore"):
        headings = to_headings(output, probability / share[:, None, None], calibration.heading_temperature)
    refined, unrefined = list[Candidate](), list[Candidate]()
    for index, (row, col) in enumerate(proposals.cells.tolist()):
        if share[index] > 0:
            fix = _fix(mosaic, index, headings[index], (row, col), index, options)
            refined.append(_candidate(fix, proposals.posterior, options))
        else:
            unrefined.append(_on_its_cell(proposals.posterior, row, col))
    return [*_apart(refined, mosaic, options), *unrefined]


@dataclass(frozen=True, eq=False)
class RankFeatures:
    """What the windows of a photo are ranked by; the arguments of `jzi.refine.fuse.fit` for validation photos.

    Attributes:
        score: (t,) s_t, the logarithm of the front end's probability of the windows' ground.
        match: (t,) m_t, the greatest match of level 0.
        kept: (t,) share of each density that lies in the window's own ground.
        density: (t, P, P) of each window alone.
        ground: what the front end says of the windows' ground.
    """

    score: _Floats
    match: _Floats
    kept: _Floats
    density: _Floats
    ground: Ground


def rank_features(output: RefinerOutput, proposals: Proposals, temperature: float) -> RankFeatures:
    """The features of the windows of a photo.

    Args:
        output: of the refiner, one window per proposal.
        proposals: the windows.
        temperature: T_D.
    """
    density = to_density(output, temperature)
    ground = share_ground(proposals, output.mask.cpu().numpy())
    kept = (density * (ground.mask & owned(proposals.windows))).sum((1, 2))
    with np.errstate(divide="ignore"):
        score = np.log(ground.probability)
    return RankFeatures(score, output.level0_max.detach().double().cpu().numpy(), kept, density, ground)


def _apart(candidates: Sequence[Candidate], mosaic: Mosaic, options: FixOptions) -> list[Candidate]:
    """The candidates with their probabilities, chosen greedily; one near another is left out and leaves it its windows.

    Args:
        candidates: with fixes.
        mosaic: the windows of the photo.
        options: the point.
    """
    left, kept, distance = list(candidates), list[Candidate](), options.radius * float(mosaic.windows.scale.mean())
    while left:
        mass = [mosaic.mass(each.x, each.y, options.radius) for each in left]
        order = mass if options.estimate == "radius" else [each.fix.probability if each.fix else 0.0 for each in left]
        best = int(np.argmax(order))
        one, probability = left.pop(best), min(1.0, mass[best])
        near = next(
            (rank for rank, each in enumerate(kept) if math.hypot(each.x - one.x, each.y - one.y) <= distance), -1
        )
        if near < 0:
            kept.append(replace(one, probability=probability))
            mosaic = mosaic.without(one.x, one.y, options.radius)
        elif (first := kept[near].fix) and one.fix:
            kept[near] = replace(kept[near], fix=replace(first, grids=first.grids + one.fix.grids))
    return kept


def _fix(mosaic: Mosaic, index: int, heading: _Floats, cell: tuple[int, int], rank: int, options: FixOptions) -> Fix:
    """The fix in one of the windows of a photo.

    Args:
        mosaic: the windows.
        index: of the window; it has probability.
        heading: (R,) probabilities of headings from grid north.
        cell: of the candidate.
        rank: of the candidate, from 0.
        options: the point.
    """
    windows, probability = mosaic.windows, mosaic.probability[index]
    window, area, around = windows[index], windows.area, mosaic.around(index)
    if options.estimate == "map":
        u, v = most_probable(probability)
    elif options.estimate == "radius":
        u, v = best_disc(probability, around, options.radius / windows.pixel_m)
    else:
        u, v = mean_point(probability)
    x, y = (float(each) for each in window.pixels_to_crs(u, v))
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
        modes=_modes(mosaic, index, around, (x, y), options),
        headings=_peaks(window, directions) if directions else (),
        grids=(_grid(windows, index, probability),),
    )


def _grid(windows: Windows, index: int, probability: _Floats) -> FineGrid:
    bounds = windows[index].bounds
    pixel = (bounds.east - bounds.west) / windows.pixels
    return FineGrid(bounds.west, bounds.north, pixel, probability.astype(np.float32))


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


def _candidate(fix: Fix, posterior: Posterior, options: FixOptions) -> Candidate:
    path, steps = path_to(posterior, 0, *fix.cell)
    return Candidate(
        latitude=fix.latitude,
        longitude=fix.longitude,
        x=fix.x,
        y=fix.y,
        cell=fix.cell,
        path=path,
        probability=fix.probability,
        step_probabilities=steps,
        source=fix.source,
        radius_m=options.radius,
        fix=fix,
    )


def _on_its_cell(posterior: Posterior, row: int, col: int) -> Candidate:
    """A candidate that could not be refined: the centre of its cell."""
    x, y = (float(each) for each in posterior.area.cell_centers(row, col))
    latitude, longitude = (float(each) for each in posterior.area.unproject(x, y))
    path, steps = path_to(posterior, 0, row, col)
    probability = float(posterior.at(np.array([row]), np.array([col]))[0])
    return Candidate(latitude, longitude, x, y, (row, col), path, probability, steps, "map")
