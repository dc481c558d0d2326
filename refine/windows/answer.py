"""From the output of a refiner to fixes, and to the candidates of a photo."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from jzi.locate.answer.fix import Fix
from jzi.locate.answer.location import Candidate, path_to
from jzi.locate.joint.fusion import FLOOR
from jzi.locate.posterior import Posterior
from jzi.refine.windows.fixes import LEAST_MODE, FixOptions, fine_grids, make_fix
from jzi.refine.windows.fuse import PixelFeatures, WindowWeights, combine, own_ground
from jzi.refine.windows.heading import to_headings
from jzi.refine.windows.mosaic import Mosaic
from jzi.refine.windows.proposals import Ground, Proposals, share_ground
from jzi.refine.windows.window import Windows

if TYPE_CHECKING:
    from jzi.refine.outputs import RefinerOutput

_Floats = NDArray[np.float64]


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
    weights: WindowWeights = field(default_factory=WindowWeights)


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
        if not covered:
            fixes.append(None)
            continue
        fix = make_fix(mosaic, 0, headings[index], cell, 0, options or FixOptions())
        fixes.append(replace(fix, grids=fine_grids(one, mosaic.probability)))
    return fixes


def refine_candidates(
    output: RefinerOutput,
    proposals: Proposals,
    calibration: RefineCalibration,
    options: FixOptions | None = None,
) -> list[Candidate]:
    """The candidates of one photo with their fixes, the most probable first.

    For the estimate "radius" that is the probability within the radius, and further modes of a window are candidates
    too; else it is that of the window. A candidate whose point lies
    within the radius of a more probable one is left out, and probability is counted once. A window without imagery has
    no fix: its candidate stays on its cell and comes last.

    Args:
        output: of the refiner, one window per proposal.
        proposals: the windows of the photo.
        calibration: fitted numbers.
        options: the point.
    """
    options, windows = options or FixOptions(), proposals.windows
    features, ground = pixel_features(output, proposals, calibration.temperature)
    probability = combine(features, float(ground.probability.sum()), calibration.weights)
    share = probability.sum((1, 2))
    mosaic = Mosaic(windows, probability, ground.cell_x, ground.cell_y, ground.cell_probability)
    with np.errstate(invalid="ignore", divide="ignore"):
        headings = to_headings(output, probability / share[:, None, None], calibration.heading_temperature)
    refined, unrefined = list[Candidate](), list[Candidate]()
    for index, (row, col) in enumerate(proposals.cells.tolist()):
        if share[index] > 0:
            fix = make_fix(mosaic, index, headings[index], (row, col), index, options)
            fixes = [fix]
            if options.estimate == "radius":  # other places in the window may have more probability than its neighbours
                fixes += [
                    make_fix(mosaic, index, headings[index], (row, col), index, options, mode)
                    for mode in fix.modes
                    if mode.probability >= LEAST_MODE
                ]
            refined += [_candidate(each, proposals.posterior, options) for each in fixes]
        elif not features.own[index].any():
            unrefined.append(_on_its_cell(proposals.posterior, row, col))
    chosen = _apart(refined, mosaic, options)
    if chosen and chosen[0].fix:
        chosen[0] = replace(chosen[0], fix=replace(chosen[0].fix, grids=fine_grids(windows, probability)))
    return [*chosen, *unrefined]


def pixel_features(output: RefinerOutput, proposals: Proposals, temperature: float) -> tuple[PixelFeatures, Ground]:
    """What the pixels of the windows of a photo are weighed by, and the front end's probability of their ground.

    Args:
        output: of the refiner, one window per proposal.
        proposals: the windows.
        temperature: T_D.
    """
    precise = replace(output, logits=output.logits.detach().double())
    ground = share_ground(proposals, output.mask.cpu().numpy())
    with np.errstate(divide="ignore"):
        log_prior = np.log(ground.prior)
    log_density = precise.log_density(temperature).cpu().numpy()
    covered = np.maximum(output.mask.cpu().numpy().sum((1, 2), keepdims=True), 1)
    even = np.where(np.isfinite(log_density), math.log(FLOOR) - np.log(covered), -np.inf)
    log_density = np.logaddexp(math.log1p(-FLOOR) + log_density, even)
    match = output.match.detach().double().cpu().numpy()
    return PixelFeatures(log_prior, log_density, match, own_ground(proposals.windows, ground.mask)), ground


def _apart(candidates: Sequence[Candidate], mosaic: Mosaic, options: FixOptions) -> list[Candidate]:
    """The candidates with their probabilities, chosen greedily; one near another is left out.

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
        if all(math.hypot(each.x - one.x, each.y - one.y) > distance for each in kept):
            kept.append(replace(one, probability=probability))
            mosaic = mosaic.without(one.x, one.y, options.radius)
    return kept


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
