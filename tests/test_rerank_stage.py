"""Crops of cells, and the stage that orders candidates by what a judge says of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jzi.encode.rasters.imagery import Imagery
from jzi.errors import RerankError
from jzi.locate.answer.location import Candidate, LocateOptions, to_locations
from jzi.locate.expert import Query
from jzi.locate.posterior import Posterior
from jzi.rerank.ask import Asker
from jzi.rerank.config import RerankConfig
from jzi.rerank.cost import Budget
from jzi.rerank.crops import OUTLINE, Crops
from jzi.rerank.fuse import PURE, Weights
from jzi.rerank.judges.scripted import ScriptedJudge
from jzi.rerank.photo import picture
from jzi.rerank.stage import RerankStage, distinct, reweighted
from jzi.store.geometry.mercator import MercatorGrid
from jzi.store.geometry.pyramid import Pyramid

CONFIG = RerankConfig(crop_pixels=64, photo_pixels=64)
CELLS = [(10, 10), (10, 40), (40, 10), (40, 40), (30, 25)]
PROBABILITY = [0.3, 0.25, 0.15, 0.1, 0.05]


@pytest.fixture
def imagery(town_raster: Path, pyramid: Pyramid) -> Imagery:
    return Imagery([town_raster], pyramid)


@pytest.fixture
def crops(imagery: Imagery, pyramid: Pyramid, tmp_path: Path) -> Crops:
    return Crops(pyramid, CONFIG, tmp_path / "crops", lambda: imagery)


@pytest.fixture
def query(photo_folder: Path) -> Query:
    return Query("photo", torch.zeros(8), photo_folder / "day0" / "000.jpg")


@pytest.fixture
def posterior(pyramid: Pyramid) -> Posterior:
    row, col = np.array(CELLS).T
    return Posterior.from_cells(pyramid, row, col, np.array(PROBABILITY))


@pytest.fixture
def candidates(posterior: Posterior) -> tuple[Candidate, ...]:
    return to_locations(posterior, LocateOptions(estimate="map", top=5), ["photo"])[0].candidates


def judge_of(crops: Crops, query: Query, cell: tuple[int, int], **options: float) -> ScriptedJudge:
    """A judge that knows the cell of a photo, without noise."""
    (crop,) = crops.of([cell])
    assert crop
    photo = picture(query.photo, CONFIG.photo_pixels)
    return ScriptedJudge({photo.digest: crop.digest}, gap=6.0, **{"noise": 0.0, "absolute_noise": 0.0, **options})


# Crops


def test_a_crop_shows_two_cells_with_the_cell_outlined_in_its_middle(crops: Crops, town_raster: Path) -> None:
    (crop,) = crops.of([(10, 10)])
    assert crop
    assert crop.pixels.shape == (64, 64, 3)
    yellow = (crop.pixels == OUTLINE).all(-1)
    rows, cols = np.flatnonzero(yellow.any(1)), np.flatnonzero(yellow.any(0))
    assert [rows.min(), cols.min(), rows.max(), cols.max()] == pytest.approx([16, 16, 48, 48], abs=1)
    with Image.open(town_raster) as image:  # 25 m, of which the raster has a pixel each
        whole = np.asarray(image)
    center = whole[round(10.5 * 12.5), round(10.5 * 12.5)]
    assert np.abs(crop.pixels[32, 32].astype(int) - center).max() < 40


def test_crops_have_true_metres_where_the_projection_stretches(write_raster: Callable, tmp_path: Path) -> None:
    grid = MercatorGrid.covering(24.99, 59.995, 25.01, 60.005)
    data = np.zeros((3, 400, 400), np.uint8)
    data[:, :, 200:] = 255
    middle = [float(each) for each in grid.project(60.0, 25.0)]
    half = 400.0  # units of the CRS: 200 m on the ground
    raster = write_raster(data, (middle[0] - half, middle[1] - half, middle[0] + half, middle[1] + half), "EPSG:3857")
    row, col = (int(each[0]) for each in grid.cells_at([60.0], [25.0]))
    x, _ = (float(each) for each in grid.cell_centers(row, col))
    config = replace(CONFIG, crop_m=100.0, outline=False)
    (crop,) = Crops(grid, config, tmp_path / "crops", lambda: Imagery([raster], grid)).of([(row, col)])
    assert crop
    edge = int((crop.pixels[32, :, 0] < 128).sum())  # the raster's middle, in pixels from the west
    assert edge == pytest.approx(32 + (middle[0] - x) / 2 / 100 * 64, abs=1.5)


def test_crops_are_kept_for_machines_without_imagery(crops: Crops, pyramid: Pyramid, tmp_path: Path) -> None:
    (first,) = crops.of([(3, 4)])
    elsewhere = Crops(pyramid, CONFIG, tmp_path / "crops", lambda: None)
    (again,) = elsewhere.of([(3, 4)])
    assert first and again and first.digest == again.digest
    assert elsewhere.rendered == 0
    with pytest.raises(RerankError, match=r"no imagery around cell 5, 6.*--crops-only"):
        elsewhere.of([(5, 6)])


def test_crops_of_other_imagery_are_rendered_anew(
    crops: Crops, pyramid: Pyramid, write_raster: Callable, tmp_path: Path
) -> None:
    (first,) = crops.of([(3, 4)])
    black = write_raster(np.full((3, 800, 800), 7, np.uint8), pyramid.bounds, pyramid.crs, "other.tif")
    other = Crops(pyramid, CONFIG, tmp_path / "crops", lambda: Imagery([black], pyramid))
    (second,) = other.of([(3, 4)])
    assert first and second and first.digest != second.digest
    (kept,) = Crops(pyramid, CONFIG, tmp_path / "crops", lambda: Imagery([black], pyramid)).of([(3, 4)])
    assert kept and kept.digest == second.digest


def test_a_cell_without_imagery_has_no_crop_and_a_damaged_crop_is_named(
    pyramid: Pyramid, write_raster: Callable, tmp_path: Path
) -> None:
    bounds = pyramid.bounds._replace(east=pyramid.bounds.west + 400)
    half = write_raster(np.full((3, 800, 400), 90, np.uint8), bounds, pyramid.crs, "half.tif")
    crops = Crops(pyramid, CONFIG, tmp_path / "crops", lambda: Imagery([half], pyramid))
    assert [each is None for each in crops.of([(3, 4), (3, 60)])] == [False, True]
    (file,) = crops.folder.glob("*.png")
    file.write_bytes(b"no picture")
    with pytest.raises(RerankError, match=r"3_4\.png is not a crop"):
        crops.of([(3, 4)])


# The stage


def test_the_candidate_that_the_judge_prefers_comes_first_and_the_mass_outside_stays(
    crops: Crops, query: Query, posterior: Posterior, candidates: tuple[Candidate, ...]
) -> None:
    judge = judge_of(crops, query, CELLS[3], bias=4.0)
    stage = RerankStage(Asker(judge, None, CONFIG), crops, CONFIG, Weights(prior=1.0, judge=2.0))
    ranked = stage(query, posterior, candidates)
    assert [each.cell for each in ranked] == [CELLS[3], *CELLS[:3], CELLS[4]]
    assert sum(each.probability for each in ranked) == pytest.approx(sum(PROBABILITY), abs=1e-9)
    assert {each.source for each in ranked} == {"rerank"}
    assert judge.calls == 20
    best = ranked[0]
    assert best.judged
    assert (best.judged.rank, best.judged.probability) == (4, pytest.approx(0.1))
    assert [each.rank for each in best.judged.against] == [1, 2, 3, 5]
    assert all(each.log_odds == pytest.approx(6.0) for each in best.judged.against)
    against = {each.rank: each.log_odds for each in ranked[1].judged.against}  # type: ignore[union-attr]
    assert against[4] == pytest.approx(-6.0)
    location = to_locations(posterior, LocateOptions(estimate="map", top=5), ["photo"])[0].with_candidates(ranked)
    values = json.loads(json.dumps(location.to_dict()))
    assert values["estimate"] == "rerank"
    assert values["candidates"][0]["judged"]["probability"] == pytest.approx(0.1)
    assert location.radius_68 < 12.5, "the cell of the new first place has more than 68 % of the probability"


@pytest.mark.parametrize("why", ["gate", "second", "no gain", "budget", "no photo", "one candidate"])
def test_nothing_changes_where_nothing_is_asked(
    why: str, crops: Crops, query: Query, posterior: Posterior, candidates: tuple[Candidate, ...]
) -> None:
    judge = judge_of(crops, query, CELLS[3])
    config = replace(CONFIG, gate=0.2) if why == "gate" else CONFIG
    weights = Weights(judge=0.0, calibrated=True) if why == "no gain" else Weights()
    asker = Asker(judge, None, config, Budget(calls=0) if why == "budget" else None)
    if why == "second":
        candidates = (candidates[0], *(replace(each, probability=0.009) for each in candidates[1:]))
    if why == "one candidate":
        candidates = candidates[:1]
    given = replace(query, photo=None) if why == "no photo" else query
    assert RerankStage(asker, crops, config, weights)(given, posterior, candidates) == candidates
    assert judge.calls == 0


def test_a_candidate_without_imagery_keeps_its_rank_and_its_probability(
    query: Query, posterior: Posterior, candidates: tuple[Candidate, ...], pyramid: Pyramid, write_raster: Callable,
    pattern: Callable, tmp_path: Path,
) -> None:  # fmt: skip
    bounds = pyramid.bounds._replace(south=pyramid.bounds.north - 300)  # without the cells in row 40 and 30
    half = write_raster(pattern(300, 800), bounds, pyramid.crs, "half.tif")
    crops = Crops(pyramid, CONFIG, tmp_path / "crops", lambda: Imagery([half], pyramid))
    judge = judge_of(crops, query, CELLS[1])
    ranked = RerankStage(Asker(judge, None, CONFIG), crops, CONFIG, PURE)(query, posterior, candidates)
    assert [each.cell for each in ranked] == [CELLS[1], CELLS[0], *CELLS[2:]]
    assert [each.probability for each in ranked[2:]] == pytest.approx(PROBABILITY[2:])
    assert ranked[2].judged and ranked[2].judged.score is None


def test_candidates_nearer_than_a_cell_are_compared_once(candidates: tuple[Candidate, ...]) -> None:
    near = replace(candidates[1], x=candidates[0].x + 5.0, y=candidates[0].y)
    assert distinct([candidates[0], near, *candidates[2:]], 12.5, 3) == [0, 2, 3]


def test_the_posterior_around_candidates_changes_with_them(
    posterior: Posterior, candidates: tuple[Candidate, ...]
) -> None:
    new = reweighted(posterior, candidates[:2], np.array([0.5, 1.6]))
    assert new.probability.sum() == pytest.approx(posterior.probability.sum())
    assert new.at(np.array([10]), np.array([40]))[0] == pytest.approx(0.4)
    assert new.at(np.array([30]), np.array([25]))[0] == pytest.approx(0.05)


def test_a_dry_run_counts_the_questions_and_asks_none(
    crops: Crops, query: Query, posterior: Posterior, candidates: tuple[Candidate, ...]
) -> None:
    for method, calls in (("pairs", 20), ("sliding", 8), ("knockout", 8), ("list", 5), ("yesno", 5)):
        config = replace(CONFIG, method=method)
        judge = judge_of(crops, query, CELLS[3])
        stage = RerankStage(Asker(judge, None, config), crops, config, dry_run=True)
        assert stage(query, posterior, candidates) == candidates
        assert (stage.planned.cost.asked, judge.calls) == (calls, 0), method
        RerankStage(Asker(judge, None, config), crops, config)(query, posterior, candidates)
        assert judge.calls == calls, method
