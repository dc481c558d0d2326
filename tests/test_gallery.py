"""What evaluations report beside recall: the gallery, published results that compare, distance to training photos."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from jzi.commands.shared.tables import evaluation_table
from jzi.evaluate.calibration import calibrate
from jzi.evaluate.gallery import GalleryExpert, RankedGalleryExpert, restrict_to_occupied
from jzi.evaluate.metrics import Evaluation, score
from jzi.evaluate.nearest import nearest_distance, recall_by_distance
from jzi.evaluate.photos import LabelledPhotos
from jzi.evaluate.protocol import evaluate
from jzi.evaluate.published import published_apart, published_for
from jzi.locate.answer.location import LocateOptions
from jzi.locate.posterior import Posterior
from jzi.store.geometry.pyramid import Pyramid, geodesic_distance, preset
from jzi.store.info import EncoderInfo

PYRAMID = Pyramid.around(48.2, 16.37, 160.0, levels=2)  # 16 x 16 cells of 10 m


@dataclass
class FixedExpert:
    """Returns rows of given probabilities; a query is the index of its row."""

    probability: np.ndarray
    name: str = "fixed"
    rules_out: bool = False

    area = PYRAMID
    encoder = EncoderInfo("tiny", False, "e" * 64, width=1, image_size=28, layout="halves")
    cell_mask = np.ones((16, 16), bool)

    def posterior(self, query: Tensor, options: LocateOptions) -> Posterior:
        values = self.probability[query[:, 0].long().numpy()]
        posterior = Posterior.from_cells(self.area, *np.divmod(np.arange(256), 16), values)
        if options.estimate == "greedy":
            posterior = replace(posterior, **{n: getattr(posterior, n)[:, :1] for n in ("row", "col", "probability")})
        return posterior

    def uncalibrated(self) -> FixedExpert | None:
        return None


class RankingExpert(FixedExpert):
    def cell_ranks(self, *_: object) -> np.ndarray:
        raise AssertionError("ranks among all cells")


@pytest.fixture
def photos() -> LabelledPhotos:
    """40 photos in the centres of random cells."""
    row, col = np.random.default_rng(1).integers(0, 16, (2, 40))
    latitude, longitude = PYRAMID.unproject(*PYRAMID.cell_centers(row, col))
    return LabelledPhotos("test", torch.arange(40.0)[:, None], latitude, longitude, row, col, 0)


@pytest.fixture
def probability() -> np.ndarray:
    """(photo, cell) sums to 0.9; some cells have probability 0."""
    values = np.random.default_rng(0).gamma(0.3, size=(40, 256))
    values[values < 1e-3] = 0
    return 0.9 * values / values.sum(1, keepdims=True)


# The gallery


def test_an_occupied_gallery_holds_all_of_the_probability_that_is_left(photos, probability) -> None:
    expert = restrict_to_occupied(FixedExpert(probability), photos)
    assert expert.cell_mask.sum() == len(set(zip(photos.row, photos.col, strict=True)))
    inside = expert.cell_mask.ravel()
    posterior = expert.posterior(photos.query, LocateOptions("map"))
    unreached = probability == 0  # the residual is spread evenly over these cells, whatever the gallery
    residual = 0.1 * unreached[:, inside].sum(1) / unreached.sum(1)
    total = probability[:, inside].sum(1) + residual
    for photo in range(40):
        expected = np.where(inside, probability[photo], 0) / total[photo]
        np.testing.assert_allclose(posterior.grid(photo).ravel(), expected, atol=1e-12)
    np.testing.assert_allclose(posterior.residual, residual / total)


def test_the_greedy_answer_is_the_most_probable_cell_of_the_gallery(photos, probability) -> None:
    expert = restrict_to_occupied(FixedExpert(probability), photos)
    greedy = expert.posterior(photos.query, LocateOptions("greedy"))
    assert greedy.row.shape == (40, 1)
    best = np.where(expert.cell_mask.ravel(), probability, -1).argmax(1)
    assert (greedy.row[:, 0] * 16 + greedy.col[:, 0]).tolist() == best.tolist()


def test_an_expert_that_reaches_no_cell_of_the_gallery_answers_the_nearest_one(photos) -> None:
    probability = np.zeros((40, 256))
    probability[:, 5 * 16 + 5] = 1.0
    mask = np.zeros((16, 16), bool)
    mask[[0, 7, 15], [0, 6, 15]] = True
    posterior = GalleryExpert(FixedExpert(probability), mask).posterior(photos.query[:3], LocateOptions("greedy"))
    assert (posterior.row[:, 0].tolist(), posterior.col[:, 0].tolist()) == ([7] * 3, [6] * 3)
    assert (posterior.probability == 0).all() and (posterior.residual == 1).all()


def test_ranks_count_only_cells_of_the_gallery(photos, probability) -> None:
    assert type(restrict_to_occupied(FixedExpert(probability), photos)) is GalleryExpert
    expert = restrict_to_occupied(RankingExpert(probability), photos)
    assert isinstance(expert, RankedGalleryExpert)
    inside = expert.cell_mask.ravel()
    truth = probability[np.arange(40), photos.row * 16 + photos.col]
    before = (probability[:, inside] > truth[:, None]).sum(1)
    expected = np.where(truth > 0, np.minimum(before, 10), 10)
    assert expert.cell_ranks(photos.query, photos.row, photos.col, 10).tolist() == expected.tolist()
    assert evaluate(expert, photos).recall_at[10].value == (expected < 10).mean()


def test_an_evaluation_names_its_gallery(photos, probability) -> None:
    everything = evaluate(FixedExpert(probability), photos)
    occupied = evaluate(restrict_to_occupied(FixedExpert(probability), photos), photos)
    assert (everything.gallery, everything.gallery_cells) == ("all", 256)
    assert (occupied.gallery, occupied.gallery_cells) == ("occupied", 36)
    assert occupied.sequence_accuracy.value >= everything.sequence_accuracy.value
    calibration = calibrate(restrict_to_occupied(FixedExpert(probability), photos), photos)
    assert set(calibration.answers) == {"map", "radius", "mean"}


# Published results


def evaluation(gallery: str) -> Evaluation:
    area = preset("just-zoom-in-dc")
    row = col = np.full(3, 100)
    latitude, longitude = area.unproject(*area.cell_centers(row, col))
    return score(area, row, col, np.ones(3), latitude, longitude, gallery=gallery, gallery_cells=5)


def test_no_table_holds_results_of_two_galleries_or_maps() -> None:
    for gallery, method in (("all", "Just Zoom In, batch 128"), ("occupied", "GeoMoE")):
        values = evaluation(gallery).to_dict()
        assert method in [row["method"] for row in values["published"]]
        assert {row["gallery"] for row in values["published"]} == {gallery}
        assert len(values["published"]) + len(values["published_apart"]) == 13
        blocks = evaluation_table(evaluation(gallery), "title").split("\n\n")
        assert sum("this model" in block for block in blocks) == 1
        for block in blocks:
            assert sum(figure in block for figure in ("55.7 %", "65.3 %", "95.8 %")) <= 1
            assert ("this model" in block) == (f"{'55.7' if gallery == 'all' else '95.8'} %" in block)


def test_blocks_of_other_galleries_are_headed_by_what_differs() -> None:
    text = evaluation_table(evaluation("all"), "title")
    assert "not comparable with the above, published for only the 12 029 cells" in text
    assert "not comparable with the above, published for a smaller map" in text
    assert published_for(PYRAMID) == published_apart(PYRAMID) == ()


# Distance to the nearest training photo


@pytest.mark.parametrize("spread", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("others", [1, 7, 500])
def test_the_nearest_photo_is_that_of_an_exhaustive_search(spread: float, others: int) -> None:
    rng = np.random.default_rng(0)
    latitude, to_latitude = (48.2 + spread * rng.normal(size=count) for count in (100, others))
    longitude, to_longitude = (-0.001 + spread * rng.normal(size=count) for count in (100, others))
    every = geodesic_distance(latitude[:, None], longitude[:, None], to_latitude, to_longitude)
    found = nearest_distance(latitude, longitude, to_latitude, to_longitude)
    np.testing.assert_allclose(found, every.min(1), rtol=1e-3)


@pytest.mark.parametrize("middle", [(-16.8, 180.0), (66.0, -180.0), (-89.999, 0.0), (90.0, 20.0)])
def test_the_nearest_photo_is_found_across_the_antimeridian_and_at_the_poles(middle: tuple[float, float]) -> None:
    rng = np.random.default_rng(0)
    area = Pyramid.around(*middle, 2000.0)
    positions, training = (area.unproject(*rng.uniform(-1000, 1000, (2, count))) for count in (100, 500))
    every = geodesic_distance(positions[0][:, None], positions[1][:, None], *training)
    np.testing.assert_allclose(nearest_distance(*positions, *training), every.min(1), rtol=1e-3)


def test_recall_is_reported_for_each_distance() -> None:
    distance = np.array([0.0, 9.9, 10.0, 30.0, 30.0, 250.0])
    error = np.array([5.0, 60.0, 5.0, 60.0, 20.0, 300.0])
    result = recall_by_distance(distance, error, (50, 100))
    assert [each.photos for each in result.bins] == [2, 1, 2, 0, 1]
    assert [each.recall.get(50.0) for each in result.bins] == [0.5, 1.0, 0.5, None, 0.0]
    assert math.isinf(result.bins[-1].high)
    values = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert values["median_m"] == 20.0 and values["bins"][-1]["to_m"] is None
    text = evaluation_table(replace(evaluation("all"), by_training_distance=result), "title")
    assert "nearest training photo: 20.0 m (median)" in text
    assert "100 m or more" in text and "50 to 100 m" not in text


# The command


def test_evaluate_reports_the_gallery_and_the_distance_to_training_photos(area: Callable) -> None:
    for command in ("encode-map", "encode-queries --split-by photo", "train-decoder --set train.epochs=1"):
        area(f"{command} --set decoder.layers=1 --set decoder.heads=2" if "train" in command else command)
    text = area("evaluate --gallery occupied --estimates --split train").stdout
    assert "only among the" in text and "nearest training photo" not in text
    values = json.loads(area("evaluate --gallery occupied --json").stdout)
    assert values["gallery"] == "occupied" and values["gallery_cells"] <= values["photos"]
    everything = json.loads(area("evaluate --json").stdout)
    assert (everything["gallery"], everything["gallery_cells"]) == ("all", 4096)
    bins = everything["by_training_distance"]["bins"]
    assert sum(each["photos"] for each in bins) == everything["photos"]
    assert "among all 4096 cells" in area("evaluate").stdout
