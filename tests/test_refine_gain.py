"""What a refiner changes: nothing before it has learned anything, and metres once it knows the place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray

from jzi.encode.photo.photo_view import PhotoView
from jzi.evaluate.stages import refinement
from jzi.evaluate.stages.metres import MetreFigures
from jzi.evaluate.stages.refined_photos import RefinedPhotos
from jzi.evaluate.stages.refinement import _fine_density, evaluate_refinement, fit_fusion
from jzi.locate.answer.location import LocateOptions, to_locations
from jzi.locate.expert import Query
from jzi.locate.posterior import Posterior
from jzi.refine.info import RefinerInfo
from jzi.refine.networks.cached import CachedRefiner
from jzi.refine.networks.files import load_refiner
from jzi.refine.outputs import RefinerOutput
from jzi.refine.photos import PhotoData
from jzi.refine.stage import RefineStage
from jzi.refine.windows.fuse import UNCHANGED
from jzi.refine.windows.window import Windows
from jzi.store.geometry.pyramid import Pyramid
from jzi.tests.refine_scene import AREA, SIDE, Scene, network_config, refine_config
from jzi.tests.test_refiner_training import LEARNING, train
from jzi.train.refine.refine_pairs import PairPhotos

#: Candidates of the front end, like those of an area with larger cells.
OPTIONS = LocateOptions(radius=30.0)


class FrontEnd:
    """An expert whose posterior is the true cell and its neighbours, blurred, and a cell elsewhere."""

    def __init__(self, scene: Scene) -> None:
        self.area = scene.area
        self.row, self.col = self.area.cells_at(scene.val.latitude, scene.val.longitude)

    def posterior(self, query: torch.Tensor, options: LocateOptions) -> Posterior:
        rows, cols, probability = [], [], []
        down, right = (each.ravel() for each in np.meshgrid((-1, 0, 1), (-1, 0, 1), indexing="ij"))
        for photo in query[:, 0].int().tolist():
            rng = np.random.default_rng([5, photo])
            rows.append([*(self.row[photo] + down), (self.row[photo] + 31) % 64])
            cols.append([*(self.col[photo] + right), (self.col[photo] + 31) % 64])
            weight = np.exp(-(down**2 + right**2) / 2) * rng.lognormal(0, 1.0, 9)
            far = rng.uniform(0.02, 0.15)
            probability.append([*((1 - far) * weight / weight.sum()), far])
        return Posterior.from_cells(self.area, *(np.array(each) for each in (rows, cols, probability)))


class Tokens:
    """The windows of a scene, as a `WindowSource`; and its photos, as a `PhotoSource`."""

    reads_tokens = True

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def read(self, windows: Windows, side: int) -> tuple[Any, NDArray[np.bool_]]:
        return self.scene.window_tokens(windows), np.ones((len(windows), side, side), bool)

    def __call__(self, query: Query, view: PhotoView) -> PhotoData | None:
        return PhotoData(tokens=query.tokens)


class KnowingStage(RefineStage):
    """Densities are normal around the place that a photo's tokens are, or nearly even where it is not shown."""

    sd_m = 0.7

    def match(self, photo: PhotoData, view: PhotoView, windows: Windows) -> RefinerOutput:
        assert photo.tokens is not None
        size = self.refiner.config.pixels
        u, v = windows.crs_to_pixels(*(np.full(len(windows), float(each)) for each in photo.tokens))
        centres = np.arange(size) + 0.5
        distance = np.hypot(centres[None, None] - u[:, None, None], centres[None, :, None] - v[:, None, None])
        logits = torch.from_numpy(np.maximum(-((distance * windows.pixel_m / self.sd_m) ** 2) / 2, -8.0))
        shown = torch.from_numpy((np.abs(u - size / 2) < size / 2) & (np.abs(v - size / 2) < size / 2))
        coarse = torch.where(shown, 0.9, 0.1)[:, None, None, None].expand(-1, 1, 4, 4)
        return RefinerOutput(logits, (coarse,), torch.ones(logits.shape) > 0, torch.zeros(len(windows), 1))


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene.draw(train=1, val=40)


def untrained_stage(scene: Scene, **entries: Any) -> RefineStage:
    """A refiner with random weights, as far from the start as those of a few steps."""
    torch.manual_seed(0)
    refiner = CachedRefiner(network_config()).eval()
    for parameter in refiner.parameters():
        parameter.data = parameter.data * 1.5
    return stage_of(RefineStage, refiner, Tokens(scene), **entries)


def stage_of(kind: type[RefineStage], refiner: CachedRefiner, source: Any, **entries: Any) -> RefineStage:
    info = RefinerInfo(kind="cached", config=refiner.config, window_m=refine_config(SIDE).window_m, **entries)
    return kind(refiner, info, source, source)


def photos_of(scene: Scene, tokens: torch.Tensor | None = None) -> RefinedPhotos:
    frame = pd.DataFrame({"latitude": scene.val.latitude, "longitude": scene.val.longitude, "panorama": 1.0})
    frame["hfov_deg"], frame["heading_deg"], frame["heading_sd_deg"] = 360.0, scene.val.heading_deg, 10.0
    shown = scene.photo_tokens(scene.val) if tokens is None else tokens
    return RefinedPhotos(frame, torch.arange(len(frame))[:, None].float(), lambda number: PhotoData(shown[number]))


def knowing_photos(scene: Scene, error_m: float) -> RefinedPhotos:
    """Photos whose tokens are their places, with a normal error."""
    error = np.random.default_rng(8).normal(0, error_m, (len(scene.val), 2))
    return photos_of(scene, torch.from_numpy(np.stack([scene.val.x, scene.val.y], 1) + error))


def test_a_refiner_that_has_learned_nothing_gets_no_weight_and_changes_no_answer(scene: Scene) -> None:
    front_end, photos = FrontEnd(scene), photos_of(scene)
    known, unknown = fit_fusion(front_end, untrained_stage(scene), photos, OPTIONS)
    assert known.weights == unknown.weights == UNCHANGED and known.photos > 30
    stage = untrained_stage(scene, fusion=tuple(known.weights), fusion_unknown=tuple(unknown.weights))
    posterior = front_end.posterior(photos.query[:1], OPTIONS)
    (location,) = to_locations(posterior, OPTIONS, ["a.jpg"])
    refined = stage(Query("a.jpg", photos.query[0], tokens=photos.read(0).tokens), posterior, location.candidates)
    assert location.with_candidates(refined) == location  # the point, the confidence and the radii
    figures = evaluate_refinement(front_end, stage, photos, options=OPTIONS, resamples=10)
    assert figures.before == figures.unranked == figures.after
    assert figures.nll_before == figures.nll_after


def test_even_with_a_weight_a_refiner_that_has_learned_nothing_stays_in_the_likely_cells(scene: Scene) -> None:
    """Its density is nearly even: where in the window the photo was taken is what the front end knows."""
    few = replace(scene, val=scene.val[:20])
    figures = evaluate_refinement(FrontEnd(few), untrained_stage(few), photos_of(few), options=OPTIONS, resamples=10)
    assert figures.after.median.value < figures.before.median.value + AREA.cell_size / 2
    assert figures.nll_after < figures.nll_before + 0.5


def test_a_refiner_that_knows_the_place_gets_a_weight_and_improves_the_answers(scene: Scene) -> None:
    front_end, photos = FrontEnd(scene), knowing_photos(scene, 0.7)
    stage = stage_of(KnowingStage, CachedRefiner(network_config()), None)
    fitted = fit_fusion(front_end, stage, photos, OPTIONS).known
    assert fitted.weights.density > 0.5 and fitted.gain[0] > 1
    stage = stage_of(KnowingStage, CachedRefiner(network_config()), None, fusion=tuple(fitted.weights))
    few = replace(photos, frame=photos.frame[:20], query=photos.query[:20])
    figures = evaluate_refinement(front_end, stage, few, options=OPTIONS, resamples=10)
    assert figures.after.median.value < 2 < 4 < figures.before.median.value
    assert figures.nll_after < figures.nll_before - 1
    for radius, recall in figures.after.recall.items():
        assert recall.value >= figures.before.recall[radius].value


def test_a_refiner_whose_answers_are_farther_off_gets_no_weight_in_spite_of_its_gain(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stage_of(KnowingStage, CachedRefiner(network_config()), None)
    measured = refinement.evaluate_refinement

    def farther(*args: Any, headings: bool, **options: Any) -> MetreFigures:
        figures = measured(*args, headings=headings, **options)
        return figures if headings else replace(figures, before=figures.after, after=figures.before)

    monkeypatch.setattr(refinement, "evaluate_refinement", farther)
    known, unknown = fit_fusion(FrontEnd(scene), stage, knowing_photos(scene, 0.7), OPTIONS)
    assert unknown.gain[0] > 1 and unknown.weights == UNCHANGED
    assert unknown.median_m is not None and unknown.median_m[0] < unknown.median_m[1]
    assert known.median_m is None or known.weights.refines


def test_recall_within_1_m_is_not_lower_after_refining_a_decided_case(scene: Scene) -> None:
    """The front end is sure of the right cell, and its centre is the place: refining may not lose what was found."""
    row, col = AREA.cells_at(scene.val.latitude, scene.val.longitude)
    x, y = AREA.cell_centers(row, col)
    latitude, longitude = AREA.unproject(x, y)
    moved = replace(scene, val=replace(scene.val, x=x, y=y, latitude=latitude, longitude=longitude))

    class Decided(FrontEnd):
        def posterior(self, query: torch.Tensor, options: LocateOptions) -> Posterior:
            number = query[:, 0].int().numpy()
            rows, cols = (np.stack([each[number], (each[number] + 20) % 64], 1) for each in (row, col))
            return Posterior.from_cells(AREA, rows, cols, np.full((len(number), 2), (0.95, 0.05)))

    options = replace(OPTIONS, estimate="map")
    stage = stage_of(KnowingStage, CachedRefiner(network_config()), None)
    figures = evaluate_refinement(Decided(moved), stage, knowing_photos(moved, 0.2), options=options, resamples=10)
    assert figures.before.recall[1.0].value == 1.0
    assert figures.after.recall[1.0].value >= figures.before.recall[1.0].value


def test_likelihoods_before_and_after_are_per_square_metre_on_the_ground() -> None:
    """At 60 degrees north, a square metre is four square units of EPSG:3857."""
    area = Pyramid("EPSG:3857", 2_770_000.0, 8_400_000.0, 2048.0, levels=3)
    x, y = np.array(area.bounds[:2])[:, None] + np.random.default_rng(2).uniform(200, 1800, (2, 8))
    latitude, longitude = area.unproject(x, y)
    val = PairPhotos.of(area, pd.DataFrame({"id": range(8), "latitude": latitude, "longitude": longitude}), 360.0, 10.0)
    scene = replace(Scene.draw(train=1, val=1), val=val, area=area)

    class Flat(KnowingStage):
        sd_m = 1e6

    stage = stage_of(Flat, CachedRefiner(network_config()), None)
    figures = evaluate_refinement(FrontEnd(scene), stage, knowing_photos(scene, 0.1), options=OPTIONS, resamples=10)
    assert figures.nll_after == pytest.approx(figures.nll_before, abs=0.05)


def test_a_place_where_two_windows_meet_has_the_density_of_the_nearest_pixel() -> None:
    """Of a pixel that the other window owns, none of both has a probability."""
    left, right = np.array([[0.3, 0.2, 0.0]] * 2), np.array([[0.0, 0.4, 0.1]] * 2)
    grids = [
        SimpleNamespace(west=west, north=4.0, pixel=2.0, probability=probability)
        for west, probability in ((0.0, left), (3.4, right))
    ]
    candidates: Any = [SimpleNamespace(fix=SimpleNamespace(grids=grids)), SimpleNamespace(fix=None)]
    proposals: Any = SimpleNamespace(windows=SimpleNamespace(pixel_m=2.0))
    density = [4 * _fine_density(candidates, proposals, x, 1.0) for x in (1.0, 3.0, 4.2, 5.3, 6.4, 8.4, 30.0)]
    assert density == pytest.approx([0.3, 0.2, 0.2, 0.4, 0.4, 0.1, 0.0])


@pytest.mark.slow
def test_a_trained_refiner_improves_the_answers_for_photos_that_it_has_not_seen(tmp_path: Path) -> None:
    scene = Scene.draw(train=200, val=60, side=5)
    train(tmp_path, scene, LEARNING)
    refiner, info = load_refiner(tmp_path)
    stage = RefineStage(refiner, info, Tokens(scene), Tokens(scene))
    fitted = fit_fusion(FrontEnd(scene), stage, photos_of(scene), OPTIONS).known
    assert fitted.weights.density > 0
    held = replace(scene, val=Scene.draw(train=1, val=60, seed=5).val)  # the same map
    info = replace(info, fusion=tuple(fitted.weights))
    stage = RefineStage(refiner, info, Tokens(held), Tokens(held))
    figures = evaluate_refinement(FrontEnd(held), stage, photos_of(held), options=OPTIONS, resamples=10)
    assert figures.after.median.value < 0.8 * figures.before.median.value
    assert figures.nll_after < figures.nll_before
