"""Intervals of photos that are alike where they are near one another."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from jzi.commands.shared.tables import in_brackets
from jzi.evaluate.intervals import effective_photos, median_interval, share_interval
from jzi.store.geometry.pyramid import Pyramid

AREA = Pyramid.around(48.2, 16.37, 1280.0, levels=3)

#: Share of the drives' photos that are located, on average.
SHARE = 0.3

_Floats = NDArray[np.float64]


def drives(seed: int, count: int, photos: int, alike: float) -> tuple[_Floats, _Floats, _Floats]:
    """Positions and errors of photos every 8 m along straight drives, whose errors have a correlation within a drive.

    Errors of up to 50 m have the probability `SHARE`.
    """
    rng = np.random.default_rng(seed)
    start, turns = rng.uniform(-640, 640, (2, count, 1)), rng.integers(0, 4, (count, 1)) * np.pi / 2
    along = 8.0 * np.arange(photos)
    x, y = start[0] + along * np.cos(turns), start[1] + along * np.sin(turns)
    shared, own = rng.normal(size=(count, 1)), rng.normal(size=(count, photos))
    value = np.sqrt(alike) * shared + np.sqrt(1 - alike) * own
    latitude, longitude = AREA.unproject(x.ravel(), y.ravel())
    return latitude, longitude, 50 * np.exp(value.ravel() + 0.5244)  # the normal quantile of 1 - SHARE


@pytest.mark.parametrize(("count", "photos", "alike"), [(20, 20, 0.8), (50, 8, 0.5), (40, 20, 0.5)])
def test_intervals_of_drives_hold_the_true_share(count: int, photos: int, alike: float) -> None:
    plain, ours = 0, 0
    for seed in range(100):
        latitude, longitude, error = drives(seed, count, photos, alike)
        effective = effective_photos(latitude, longitude, error)
        assert 1 <= effective <= len(error)
        for hits, size in ((0, None), (1, effective)):
            interval = share_interval(error <= 50, size)
            held = interval.low <= SHARE <= interval.high
            plain, ours = plain + (held and not hits), ours + (held and hits)
    assert plain < 80 and ours >= 88  # of intervals that claim 95


def test_photos_from_anywhere_count_as_many_as_they_are() -> None:
    shares = [effective_photos(*drives(seed, 400, 1, 0.0)) / 400 for seed in range(20)]
    assert 0.9 < np.mean(shares) <= 1
    latitude, longitude, _ = drives(0, 20, 20, 0.8)
    assert effective_photos(latitude, longitude, np.full(400, 7.0)) == 400  # equal errors show nothing
    assert effective_photos(latitude[:1], longitude[:1], np.array([3.0])) == 1


def test_copies_of_photos_count_once() -> None:
    """Each of 200 photos far apart is there four times: they count as 200, less those that share a block."""
    latitude, longitude, error = (np.tile(each, 4) for each in drives(1, 200, 1, 0.0))
    assert 100 < effective_photos(latitude, longitude, error) < 260
    # East and west of 180 degrees, and in any order
    order = np.random.default_rng(0).permutation(len(error))
    turned = (longitude + 163.63 + 180) % 360 - 180
    found = effective_photos(latitude[order], turned[order], error[order])
    assert 100 < found < 260
    assert effective_photos(latitude[order], longitude[order], error[order]) == pytest.approx(
        effective_photos(latitude, longitude, error)
    )


def test_fewer_independent_photos_widen_intervals() -> None:
    hit, error = np.arange(400) < 120, np.random.default_rng(0).lognormal(3, 1, 400)
    many, few = share_interval(hit), share_interval(hit, 40.0)
    assert many.value == few.value == 0.3
    assert 3 < (few.high - few.low) / (many.high - many.low) < 3.3  # the square root of 10
    wide, narrow = (median_interval(error, 2000, np.random.default_rng(1), size) for size in (40.0, None))
    assert wide.value == narrow.value
    assert 2.5 < (wide.high - wide.low) / (narrow.high - narrow.low) < 4.5


def test_tables_name_the_number_of_independent_photos_where_it_is_clearly_smaller() -> None:
    assert in_brackets(400, 390.0) == "in brackets 95 % intervals"
    assert in_brackets(400, 71.6).endswith("as of 72 independent photos (those near one another are alike)")
