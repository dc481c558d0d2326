"""Evaluation of a stage that refines candidates: metres before and after it, on held-out photos of a cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from jzi.encode.photo.photo_view import PhotoView
from jzi.evaluate.cases import Cases
from jzi.evaluate.intervals import effective_photos
from jzi.evaluate.stages.metres import (
    SHARES,
    TINY,
    MetreFigures,
    Metres,
    covered,
    heading_difference,
    median_heading,
)
from jzi.evaluate.stages.refined_photos import RefinedPhotos
from jzi.locate.answer.location import Candidate, LocateOptions, Location, to_locations
from jzi.locate.expert import Expert
from jzi.locate.posterior import Posterior
from jzi.locate.ranges import CASES
from jzi.refine.photos import PhotoData
from jzi.refine.stage import RefineStage
from jzi.refine.windows.answer import pixel_features, refine_candidates
from jzi.refine.windows.fuse import FittedWeights, PixelFeatures, fit
from jzi.refine.windows.proposals import Proposals, propose
from jzi.refine.windows.window import Window, Windows
from jzi.store.geometry.cell_grid import CellGrid
from jzi.store.geometry.pyramid import geodesic_distance

#: What photos are replaced with, to check that answers come from them.
Control = Literal["", "black", "shuffled"]

#: Photos whose posteriors are computed at once.
BATCH = 32


class _Answer(NamedTuple):
    """Answers to one photo: of the front end, refined without the weight of the match, and refined."""

    before: Candidate
    unranked: Candidate
    after: Candidate
    density_before: float
    density_after: float


def evaluate_refinement(
    expert: Expert,
    stage: RefineStage,
    photos: RefinedPhotos,
    *,
    options: LocateOptions | None = None,
    control: Control = "",
    headings: bool = True,
    resamples: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> MetreFigures:
    """Locate photos with a front end, refine its candidates, and compare with the true positions.

    Args:
        expert: the front end.
        stage: refines its candidates.
        photos: held-out photos.
        options: the front end's answer.
        control: "black": every photo is replaced with zeros; "shuffled": with another one of them.
        headings: whether the stage is given the headings of photos that record theirs.
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap.
        progress: whether to show a progress bar.

    """
    answers = [
        _answer(stage, proposals, list(location.candidates), photos, number, control, headings)
        for number, location, proposals in _proposals(expert, stage, photos, options, progress)
    ]
    latitude, longitude = (photos.frame[name].to_numpy(float) for name in ("latitude", "longitude"))

    def error(name: str) -> NDArray[np.float64]:
        found = [getattr(each, name) for each in answers]
        return geodesic_distance(latitude, longitude, [c.latitude for c in found], [c.longitude for c in found])

    def metres(error: NDArray[np.float64]) -> Metres:
        return Metres.of(error, resamples, seed, effective_photos(latitude, longitude, error))

    after = error("after")
    effective = effective_photos(latitude, longitude, after)
    fixes = [each.after.fix for each in answers]
    refined = np.array([fix is not None for fix in fixes])
    known = photos.frame["heading_deg"] if "heading_deg" in photos.frame else pd.Series(np.nan, photos.frame.index)
    found = np.array([np.nan if fix is None or fix.heading_deg is None else fix.heading_deg for fix in fixes])
    turned = heading_difference(found, np.asarray(known, np.float64))
    turned = turned[np.isfinite(turned)]
    radii = np.array([(fix.radius_68_m, fix.radius_95_m) if fix else (np.nan, np.nan) for fix in fixes])
    return MetreFigures(
        photos=len(photos),
        effective_photos=effective,
        duplicates=photos.duplicates,
        not_refined=int((~refined).sum()),
        control=control,
        before=metres(error("before")),
        unranked=metres(error("unranked")),
        after=metres(after),
        heading_error=median_heading(turned, resamples, seed),
        headings=len(turned),
        coverage={
            share: covered(after[refined], radii[refined, index], effective * refined.mean())
            for index, share in enumerate(SHARES)
            if refined.any()
        },
        nll_before=_nll([each.density_before for each in answers]),
        nll_after=_nll([each.density_after for each in answers]),
        error=after,
    )


def refined_cases(
    expert: Expert,
    stage: RefineStage,
    photos: RefinedPhotos,
    error: NDArray[np.float64],
    count: int,
    *,
    headings: bool = True,
) -> Cases:
    """Refine the photos with the greatest and the smallest errors once more, to show them.

    Args:
        expert: the front end.
        stage: refines its candidates.
        photos: the photos that were evaluated.
        error: (photo,) their errors, of `evaluate_refinement`.
        count: number of photos to choose, 1..500.
        headings: as of `evaluate_refinement`.

    Raises:
        ConfigError: `count` is out of range.
    """
    CASES.check("the number of photos", count)

    def locate(chosen: NDArray[np.int64]) -> Iterator[Location]:
        for number, location, proposals in _proposals(expert, stage, photos.take(chosen), None, False):
            index = int(chosen[number])
            answer = _answer(stage, proposals, list(location.candidates), photos, index, "", headings).after
            yield location.with_candidates([answer] if answer.fix else location.candidates)

    return Cases.choose(photos.labelled(expert), error, count, locate)


class FittedFusion(NamedTuple):
    """Weights for photos whose heading is known, and for others."""

    known: FittedWeights
    unknown: FittedWeights


def fit_fusion(
    expert: Expert,
    stage: RefineStage,
    photos: RefinedPhotos,
    options: LocateOptions | None = None,
    *,
    progress: bool = False,
) -> FittedFusion:
    """Weights of the front end, the density and the match, fitted on validation photos.

    What is no clear gain in likelihood over the front end alone has no weight (`jzi.refine.windows.fuse.fit`). Nor
    has a refiner whose answers lie farther from the true places than the front end's, in the median: its point is the
    place with the most probability within metres, which without clear evidence is a worse guess than the middle of a
    wider disc. The weights of photos without a heading are fitted on all photos, with their headings withheld.

    Args:
        expert: the front end.
        stage: refines its candidates.
        photos: validation photos.
        options: the front end's answer.
        progress: whether to show a progress bar.
    """
    evidence: dict[bool, list[tuple[NDArray[np.float64], NDArray[np.float64]]]] = {True: [], False: []}
    x, y = _project(expert.area, photos.frame)
    for number, _, proposals in _proposals(expert, stage, photos, options, progress):
        photo = photos.read(number)
        if photo is None:
            continue
        for headings, found in evidence.items():
            view = _view(photos, number, stage, headings)
            if headings and view.heading_deg is None:
                continue
            output = stage.match(photo, view, proposals.windows)
            features, _ = pixel_features(output, proposals, stage.info.temperature)
            if pixel := _own_pixel(features, proposals.windows, x[number], y[number]):
                found.append((features.at(*pixel), features.pooled()))
    fitted = FittedFusion(*(fit([at for at, _ in each], [pooled for _, pooled in each]) for each in evidence.values()))
    fused, measured = stage.with_fusion(fitted.known.weights, fitted.unknown.weights), []
    for headings, weights in zip(evidence, fitted, strict=True):
        if weights.weights.refines:
            used = photos.take(_with_heading(photos, stage)) if headings else photos
            figures = evaluate_refinement(
                expert, fused, used, options=options, headings=headings, resamples=10, progress=progress
            )
            weights = weights.measured(figures.before.median.value, figures.after.median.value)
        measured.append(weights)
    return FittedFusion(*measured)


def _with_heading(photos: RefinedPhotos, stage: RefineStage) -> NDArray[np.int64]:
    """Numbers of the photos whose heading is known."""
    known = [photos.view(number, stage).heading_deg is not None for number in range(len(photos))]
    return np.flatnonzero(known)


def _own_pixel(features: PixelFeatures, windows: Windows, x: float, y: float) -> tuple[int, int, int] | None:
    """Window, row and column of the pixel that a point lies in, in the window that owns it."""
    u, v = windows.crs_to_pixels(np.full(len(windows), x), np.full(len(windows), y))
    rows, cols = (np.floor(each).astype(int).tolist() for each in (v, u))
    for window, (row, col) in enumerate(zip(rows, cols, strict=True)):
        if 0 <= row < windows.pixels and 0 <= col < windows.pixels and features.own[window, row, col]:
            return window, row, col
    return None


def _proposals(
    expert: Expert, stage: RefineStage, photos: RefinedPhotos, options: LocateOptions | None, progress: bool
) -> Iterator[tuple[int, Location, Proposals]]:
    """Number, location by the front end, and windows of each photo."""
    options = options or LocateOptions()
    options = replace(options, top=max(options.top, stage.options.top))
    pixels = stage.refiner.config.pixels
    with tqdm(total=len(photos), unit="photo", desc="refine", disable=not progress) as bar:
        for start in range(0, len(photos), BATCH):
            posterior = expert.posterior(photos.query[start : start + BATCH], options)
            numbers = range(start, min(start + BATCH, len(photos)))
            for number, location in zip(numbers, to_locations(posterior, options, [""] * len(numbers)), strict=True):
                candidates, own = list(location.candidates), location.posterior
                yield number, location, propose(candidates, own, stage.info.window_m, pixels, stage.options.top)
                bar.update()


def _answer(
    stage: RefineStage,
    proposals: Proposals,
    candidates: list[Candidate],
    photos: RefinedPhotos,
    number: int,
    control: Control,
    headings: bool,
) -> _Answer:
    photo = photos.read((number + len(photos) // 2) % len(photos) if control == "shuffled" else number)
    row = photos.frame.iloc[number]
    true = proposals.posterior.area.project(row["latitude"], row["longitude"])
    spread = _cell_density(proposals.posterior, *(float(each) for each in true))
    view = _view(photos, number, stage, headings)
    calibration = stage.calibration(view)
    if photo is None or not calibration.weights.refines:
        return _Answer(candidates[0], candidates[0], candidates[0], spread, spread)
    if control == "black":
        tokens, pixels = (None if each is None else torch.zeros_like(each) for each in (photo.tokens, photo.pixels))
        photo = PhotoData(tokens, pixels, photo.fill)
    output = stage.match(photo, view, proposals.windows)
    without = replace(calibration, weights=calibration.weights._replace(match=0.0))
    unranked = refine_candidates(output, proposals, without, stage.options.fix)
    after = refine_candidates(output, proposals, calibration, stage.options.fix)
    if not any(each.fix for each in after):
        return _Answer(candidates[0], candidates[0], candidates[0], spread, spread)
    inside = proposals.owner(*(float(each) for each in true)) >= 0
    density = _fine_density(after, proposals, *(float(each) for each in true)) if inside else spread
    return _Answer(candidates[0], unranked[0], after[0], spread, density)


def _view(photos: RefinedPhotos, number: int, stage: RefineStage, headings: bool) -> PhotoView:
    """What is known of a photo's camera, without its heading unless it is given to the refiner."""
    view = photos.view(number, stage)
    return view if headings else replace(view, heading_deg=None, heading_sd_deg=None)


def _fine_density(candidates: list[Candidate], proposals: Proposals, x: float, y: float) -> float:
    """Probability per square metre of the pixel whose centre is nearest to a point of the windows.

    The pixels of windows do not lie on one grid: where two windows meet, a point may lie in a pixel of either that the
    other one owns.
    """
    nearest, found = np.inf, 0.0
    for grid in (grid for each in candidates if each.fix for grid in each.fix.grids):
        u, v = (x - grid.west) / grid.pixel, (grid.north - y) / grid.pixel
        first_row, first_col = max(0, int(v // 1) - 1), max(0, int(u // 1) - 1)
        around = grid.probability[first_row : max(0, int(v // 1) + 2), first_col : max(0, int(u // 1) + 2)]
        rows, cols = np.nonzero(around)
        distance = np.hypot(rows + first_row + 0.5 - v, cols + first_col + 0.5 - u) * grid.pixel
        if len(distance) and distance.min() < nearest:
            index = int(distance.argmin())
            nearest, found = float(distance[index]), float(around[rows[index], cols[index]])
    return found / proposals.windows.pixel_m**2


def _cell_density(posterior: Posterior, x: float, y: float) -> float:
    """Probability per square metre on the ground of the cell of a point of the area's CRS."""
    row, col = posterior.area.cells_at(*posterior.area.unproject(x, y))
    side_m = posterior.area.cell_size / Window(posterior.area, x, y, side_m=1.0, pixels=1).scale
    return float(posterior.at(row, col)[0]) / side_m**2


def _project(area: CellGrid, frame: pd.DataFrame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return area.project(frame["latitude"].to_numpy(float), frame["longitude"].to_numpy(float))


def _nll(density: list[float]) -> float:
    return float(-np.log(np.maximum(density, TINY)).mean())
