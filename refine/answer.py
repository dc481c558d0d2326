"""From the output of a refiner to fixes: point, ellipse, radii, further modes and heading."""

from __future__ import annotations

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
from jzi.refine.fuse import RankWeights, combine, rank
from jzi.refine.heading import Heading, summarize, to_headings
from jzi.refine.mosaic import Mosaic
from jzi.refine.points import best_disc, disc_sums, local_maxima, mean_point, most_probable
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
    windows: Windows,
    cells: NDArray[np.int64],
    posterior: Posterior,
    calibration: RefineCalibration,
    options: FixOptions | None = None,
    score: _Floats | None = None,
) -> list[Candidate]:
    """The candidates of one photo with their fixes, the most probable first.

    For the estimate "radius" that is the probability within the radius, else that of the candidate, whose order is that
    of equation 4 in the paper. A candidate whose point lies within the radius of a more probable one is left out. A
    window without coverage has no fix: its probability stays on its cell, and its candidate comes last.

    Args:
        output: of the refiner, one window per candidate.
        windows: (t,) the windows around the candidates' cells.
        cells: (t, 2) rows and columns of the cells, distinct, in the order of the front end.
        posterior: the front end's, of this photo.
        calibration: fitted numbers.
        options: the point.
        score: (t,) s_t; the logarithm of the cells' probabilities by default.
    """
    options, count = options or FixOptions(), len(windows)
    prior = np.array([posterior.at(*cell[:, None])[0] for cell in np.asarray(cells)])
    if score is None:
        with np.errstate(divide="ignore"):
            score = np.log(prior)
    match = output.level0_max.detach().double().cpu().numpy()
    share = rank(np.asarray(score, float), match, prior, calibration.weights)
    density = to_density(output, calibration.temperature)
    probability, share = combine(density, output.mask.cpu().numpy(), windows, prior, share)
    mosaic = _with_other_cells(windows, probability, posterior, cells, share)
    with np.errstate(invalid="ignore"):
        own = probability / share[:, None, None]
    headings = to_headings(output, own, calibration.heading_temperature)
    refined = [
        _candidate(_fix(mosaic, index, headings[index], (int(cells[index][0]), int(cells[index][1])), index, options),
                   mosaic, posterior, options)
        for index in range(count)
        if share[index] > 0
    ]  # fmt: skip
    refined.sort(key=lambda each: -(each.probability if options.estimate == "radius" else _share(each)))
    kept, apart = list[Candidate](), options.radius * float(windows.scale.mean())
    for each in refined:
        if all(np.hypot(each.x - other.x, each.y - other.y) > apart for other in kept):
            kept.append(each)
    unrefined = [_on_its_cell(posterior, cells[index], prior[index]) for index in range(count) if not share[index] > 0]
    return [*kept, *unrefined]


def _share(candidate: Candidate) -> float:
    return candidate.fix.probability if candidate.fix else 0.0


def _with_other_cells(
    windows: Windows, probability: _Floats, posterior: Posterior, cells: NDArray[np.int64], share: _Floats
) -> Mosaic:
    """The windows, and the cells that are not refined with the probability that they had."""
    refined = {tuple(cell) for cell, each in zip(np.asarray(cells).tolist(), share, strict=True) if each > 0}
    reached = posterior.probability[0] > 0
    row, col, left = posterior.row[0][reached], posterior.col[0][reached], posterior.probability[0][reached]
    kept = np.array([cell not in refined for cell in zip(row.tolist(), col.tolist(), strict=True)], bool)
    x, y = posterior.area.cell_centers(row[kept], col[kept])
    return Mosaic(windows, probability, x, y, left[kept])


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
    window, area = windows[index], windows.area
    if options.estimate == "map":
        u, v = most_probable(probability)
    elif options.estimate == "radius":
        u, v = best_disc(probability, options.radius / windows.pixel_m)
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
        modes=_modes(mosaic, index, x, y, options),
        headings=_peaks(window, directions) if directions else (),
        grid=_grid(windows, index, probability),
    )


def _grid(windows: Windows, index: int, probability: _Floats) -> FineGrid:
    bounds = windows[index].bounds
    pixel = (bounds.east - bounds.west) / windows.pixels
    return FineGrid(bounds.west, bounds.north, pixel, probability.astype(np.float32))


def _modes(mosaic: Mosaic, index: int, x: float, y: float, options: FixOptions) -> tuple[Mode, ...]:
    """The places in a window that are more probable than all within `MODE_M`, and are not near the point."""
    windows, probability = mosaic.windows, mosaic.probability[index]
    window, total = windows[index], float(probability.sum())
    smooth = disc_sums(probability, min(options.radius, MODE_M) / windows.pixel_m)
    rows, cols = local_maxima(np.where(probability > 0, smooth, 0.0), MODE_M / windows.pixel_m)
    at_x, at_y = window.pixels_to_crs(cols + 0.5, rows + 0.5)
    chosen, left, modes = [(x, y)], mosaic.without(x, y, MODE_M), list[Mode]()
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
    return tuple(HeadingPeak(float(window.true_heading(heading)), share) for heading, share in directions.peaks)


def _candidate(fix: Fix, mosaic: Mosaic, posterior: Posterior, options: FixOptions) -> Candidate:
    path, steps = path_to(posterior, 0, *fix.cell)
    return Candidate(
        latitude=fix.latitude,
        longitude=fix.longitude,
        x=fix.x,
        y=fix.y,
        cell=fix.cell,
        path=path,
        probability=min(1.0, mosaic.mass(fix.x, fix.y, options.radius)),
        step_probabilities=steps,
        source=fix.source,
        radius_m=options.radius,
        fix=fix,
    )


def _on_its_cell(posterior: Posterior, cell: Sequence[int], probability: float) -> Candidate:
    """A candidate that could not be refined: the centre of its cell."""
    row, col = int(cell[0]), int(cell[1])
    x, y = (float(each) for each in posterior.area.cell_centers(row, col))
    latitude, longitude = (float(each) for each in posterior.area.unproject(x, y))
    path, steps = path_to(posterior, 0, row, col)
    return Candidate(latitude, longitude, x, y, (row, col), path, float(probability), steps, "map")
