"""The stream of training samples: each photo once, places evenly, cells turned and shifted, reproducible anywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jzi.encode.photo import augment
from jzi.encode.photo.augment import COLOR_JITTER, JITTER_DRAWS, jitter_colors
from jzi.store.geometry.bands import RADIUS, haversine, move
from jzi.train.statewide.stream import SampleStream, buckets

LATITUDE, LONGITUDE = 42.36, -71.06


def scattered(count: int, reach_m: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Positions within `reach_m` of a place."""
    rng = np.random.default_rng(seed)
    return move(LATITUDE, LONGITUDE, reach_m * np.sqrt(rng.random(count)), 360 * rng.random(count))


def make(latitude: np.ndarray, longitude: np.ndarray, **values) -> SampleStream:
    return SampleStream(latitude, longitude, **{"cell_m": 30.0, "bucket_m": 5.0, "margin_m": 5.0, "seed": 0, **values})


def kolmogorov_smirnov(values: np.ndarray) -> float:
    """Largest distance of the distribution of values from a uniform one in 0..1, times the root of their number."""
    ordered, n = np.sort(values), len(values)
    rank = np.arange(n + 1) / n
    return float(max((rank[1:] - ordered).max(), (ordered - rank[:-1]).max()) * np.sqrt(n))


def test_buckets_are_squares_of_that_side() -> None:
    latitude, longitude = scattered(5000, 100.0)
    bucket = buckets(latitude, longitude, 5.0)
    assert bucket.min() == 0 and len(np.unique(bucket)) == bucket.max() + 1
    assert 1100 < bucket.max() + 1 < 1450  # pi 100^2 / 5^2 = 1257, and those cut by the circle
    for number in range(0, bucket.max() + 1, 50):
        own = bucket == number
        north = np.radians(latitude[own]) * RADIUS
        east = np.radians(longitude[own]) * RADIUS * np.cos(np.radians(LATITUDE))
        assert np.ptp(north) < 5 and np.ptp(east) < 5 + 1e-3
        assert len(np.unique(np.floor(north / 5))) == 1


def test_each_round_takes_one_photo_of_every_bucket_and_no_photo_twice_before_all() -> None:
    latitude, longitude = scattered(400, 30.0)
    stream, bucket = make(latitude, longitude), buckets(latitude, longitude, 5.0)
    most = int(np.bincount(bucket).max())
    photo = stream.samples(np.arange(stream.buckets * most)).photo.reshape(most, -1)
    for number, row in enumerate(photo):
        assert sorted(bucket[row]) == list(range(stream.buckets))
        assert number == 0 or (bucket[row] != bucket[photo[number - 1]]).any()  # in another order
    assert set(photo.flatten()) == set(range(400))
    for number, count in enumerate(np.bincount(bucket)):
        own = photo[bucket[photo] == number]
        for start in range(0, most - count + 1, count):
            assert len(set(own[start : start + count])) == count


def test_samples_depend_on_seed_and_number_alone() -> None:
    latitude, longitude = scattered(100, 30.0)
    whole = make(latitude, longitude).samples(np.arange(500))
    part = make(latitude, longitude).samples(np.array([7, 499, 250]))
    for name in ("photo", "latitude", "longitude", "rotation_deg"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[[7, 499, 250]])
    other = make(latitude, longitude, seed=1).samples(np.arange(500))
    assert (other.photo != whole.photo).mean() > 0.9 and (other.rotation_deg != whole.rotation_deg).all()
    assert len(np.unique(whole.rotation_deg)) == 500


@pytest.mark.parametrize("cell_m, inner", [(30.0, 10.0), (50.0, 20.0), (8.0, 0.0)])
def test_a_photo_lies_uniformly_in_the_inner_part_of_a_turned_cell(cell_m, inner) -> None:
    latitude, longitude = scattered(2000, 500.0)
    samples = make(latitude, longitude, cell_m=cell_m).samples(np.arange(2000))
    photo = latitude[samples.photo], longitude[samples.photo]
    north = np.radians(photo[0] - samples.latitude) * RADIUS
    east = np.radians(photo[1] - samples.longitude) * RADIUS * np.cos(np.radians(samples.latitude))
    angle = np.radians(samples.rotation_deg)
    up, right = north * np.cos(angle) + east * np.sin(angle), east * np.cos(angle) - north * np.sin(angle)
    assert kolmogorov_smirnov(samples.rotation_deg / 360) < 1.63  # 1 % level
    if not inner:
        np.testing.assert_allclose(haversine(*photo, samples.latitude, samples.longitude), 0, atol=1e-6)
        return
    for offset in (up, right):
        assert abs(offset).max() < inner + 0.01
        assert kolmogorov_smirnov(offset / (2 * inner) + 0.5) < 1.63
    assert abs(np.corrcoef(up, right)[0, 1]) < 0.08 and abs(np.corrcoef(up, samples.rotation_deg)[0, 1]) < 0.08


def test_cells_may_differ_in_size_from_photo_to_photo() -> None:
    latitude, longitude = scattered(200, 500.0)
    cell_m = np.where(np.arange(200) < 100, 10.0, 40.0)
    samples = make(latitude, longitude, cell_m=cell_m).samples(np.arange(150))
    distance = haversine(latitude[samples.photo], longitude[samples.photo], samples.latitude, samples.longitude)
    small = cell_m[samples.photo] == 10
    assert distance[small].max() < 1e-6 and distance[~small].max() > 10


# Colour jitter


def test_all_levels_of_a_cell_have_one_draw() -> None:
    rng = torch.Generator().manual_seed(0)
    cells, draws = torch.rand(6, 1, 3, 8, 8, generator=rng).expand(-1, 4, -1, -1, -1), torch.rand(6, JITTER_DRAWS)
    views = jitter_colors(cells, draws)
    assert views.shape == cells.shape and views.min() >= 0 and views.max() <= 1
    assert (views == views[:, :1]).all()
    torch.testing.assert_close(views[:, 0], jitter_colors(cells[:, 0], draws), rtol=0, atol=0)


def test_the_jitter_has_the_ranges_of_the_published_code_and_none_in_the_middle() -> None:
    images = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.2
    middle = torch.full((24, JITTER_DRAWS), 0.5)
    torch.testing.assert_close(jitter_colors(images, middle), images, atol=1e-5, rtol=0)
    assert COLOR_JITTER == (0.15, 0.15, 0.15, 0.1)
    bright = middle.clone()
    bright[:, 0] = 1.0
    torch.testing.assert_close(jitter_colors(images, bright), (images * 1.15).clamp(0, 1), atol=1e-5, rtol=0)
    hue = middle.clone()
    hue[:, 3] = 1.0
    red = torch.tensor([0.8, 0.2, 0.2])[:, None, None].expand(24, 3, 8, 8)
    shifted = jitter_colors(red, hue)[:, :, 0, 0]  # by a tenth of the circle, towards yellow
    torch.testing.assert_close(shifted, torch.tensor([0.8, 0.2 + 0.6 * 0.6, 0.2]).expand(24, 3), atol=1e-4, rtol=0)


def test_operations_come_in_every_order(monkeypatch) -> None:
    images = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).expand(240, -1, -1, -1)
    draws = torch.full((240, JITTER_DRAWS), 0.95)
    draws[:, 4] = (torch.arange(240) + 0.5) / 240
    views = jitter_colors(images, draws)
    assert 8 < len({tuple(view.flatten().mul(1e4).round().tolist()) for view in views}) <= 24  # some orders commute
    orders = augment._ORDERS
    assert len(orders.unique(dim=0)) == 24
    one = jitter_colors(images[:1], draws[100:101])  # alone as in a batch
    torch.testing.assert_close(one[0], views[100], atol=1e-6, rtol=0)
