"""Figures in metres: errors, the best constant guess, coverage and headings."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from jzi.evaluate.stages.metres import Metres, constant_error, covered, gain_over, heading_difference, median_heading
from jzi.evaluate.stages.refined_photos import without_duplicates


def test_recall_mean_and_median_are_those_of_the_distances() -> None:
    metres = Metres.of(np.array([0.5, 2.0, 4.0, 30.0]))
    assert [each.value for each in metres.recall.values()] == [0.25, 0.5, 0.75, 0.75]
    assert (metres.mean.value, metres.median.value) == (9.125, 3.0)
    assert metres.mean.low <= metres.mean.value <= metres.mean.high
    assert set(metres.to_dict()) == {
        "recall@1m", "recall@3m", "recall@5m", "recall@10m", "mean_error_m", "median_error_m"
    }  # fmt: skip


def test_the_constant_guess_is_the_same_place_in_every_window() -> None:
    rng = np.random.default_rng(0)
    place = rng.normal([8.0, -3.0], 2.0, (400, 2))
    error = constant_error(place)
    assert np.median(error) == pytest.approx(2.0 * 1.18, abs=0.15)  # of a normal distribution around its mean
    assert np.median(error) <= np.median(np.hypot(*place.T))


def test_answers_that_ignore_the_photo_are_no_gain_over_the_constant_and_good_ones_are() -> None:
    rng = np.random.default_rng(1)
    place = rng.uniform(-30, 30, (200, 2))
    constant = constant_error(place)
    assert gain_over(np.hypot(*(place - rng.uniform(-30, 30, (200, 2))).T), constant).low <= 0
    assert gain_over(np.hypot(*rng.normal(0, 3, (200, 2)).T), constant).low > 5


def test_headings_differ_by_the_shorter_way_around() -> None:
    difference = heading_difference(np.array([350.0, 10.0, 0.0]), np.array([10.0, 350.0, 180.0]))
    assert difference.tolist() == [20.0, 20.0, 180.0]
    assert median_heading(np.empty(0)) is None


@pytest.mark.parametrize("photos", [1, 2, 5])
def test_few_photos_have_no_narrow_interval(photos: int) -> None:
    error = np.full(photos, 3.0)
    metres = Metres.of(error)
    assert (metres.mean.value, metres.mean.low, metres.mean.high) == (3.0, 0.0, np.inf)
    gain, heading, share = gain_over(error, error + 9), median_heading(error), covered(error, error)
    assert (gain.value, gain.low, gain.high) == (9.0, -np.inf, np.inf)
    assert heading is not None and (heading.low, heading.high) == (0.0, 180.0)
    assert share.value == 1.0 and share.low < 0.6
    enough = Metres.of(np.arange(6.0))
    assert 0 < enough.mean.low < enough.mean.value < enough.mean.high < 5


def test_coverage_counts_infinite_radii() -> None:
    share = covered(np.array([1.0, 5.0, 5.0, 9.0]), np.array([2.0, 2.0, 5.0, np.inf]))
    assert share.value == 0.75
    assert 0 <= share.low <= share.value <= share.high <= 1


def test_photos_beside_training_photos_are_dropped_and_counted() -> None:
    frame = pd.DataFrame({
        "split": ["train", "test", "test", "val"],
        "latitude": [48.2, 48.20002, 48.201, 48.2],  # 2.2 m and 111 m from the training photo
        "longitude": [16.37] * 4,
    })  # fmt: skip
    kept, dropped = without_duplicates(frame, frame[frame["split"] == "test"])
    assert (kept.index.tolist(), dropped) == ([2], 1)
    assert without_duplicates(frame[1:], frame[1:3])[1] == 0  # no training photo
    assert without_duplicates(frame, frame[:1])[1] == 0  # training photos themselves
