"""Windows around training photos: inside, never centred, and a function of the seed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from jzi.refine.windows.window import Windows
from jzi.store.geometry.pyramid import Pyramid
from jzi.train.refine.refine_pairs import PairPhotos, draw_windows, own_places, places_in

AREA = Pyramid.around(48.2, 16.37, 1280.0, levels=3)  # cells of 20 m
MERCATOR = Pyramid("EPSG:3857", 2_782_000.0, 8_400_000.0, 2560.0, levels=3)  # cells of 20 m on the ground at 60 degrees


def photos_of(area: Pyramid, count: int = 500, seed: int = 0) -> PairPhotos:
    west, south, east, north = area.bounds
    rng = np.random.default_rng(seed)
    latitude, longitude = area.unproject(rng.uniform(west, east, count), rng.uniform(south, north, count))
    frame = pd.DataFrame({"id": range(count), "latitude": latitude, "longitude": longitude})
    frame["heading_deg"] = rng.uniform(0, 360, count)
    return PairPhotos.of(area, frame, 70.0, 10.0)


@pytest.mark.parametrize("area", [AREA, MERCATOR])
@pytest.mark.parametrize(("offsets", "side_m"), [("cell", 60.0), ("cell", 24.0), ("uniform", 80.0)])
def test_every_photo_lies_in_its_window_and_none_at_the_centre(area: Pyramid, offsets: str, side_m: float) -> None:
    photos = photos_of(area)
    windows = draw_windows(photos, area, side_m, 64, offsets, (3, 0))
    place = own_places(windows, photos)
    assert (abs(place) < 0.5).all()
    assert (abs(place) > 1e-6).all()
    assert abs(place.mean(0)).max() < 0.06
    if offsets == "uniform":
        assert abs(place).max() <= 0.4 + 1e-3
        assert place.std(0) == pytest.approx([0.8 / 12**0.5] * 2, abs=0.02)


def test_windows_lie_around_the_photos_cell_or_one_beside_it() -> None:
    photos = photos_of(AREA)
    windows = draw_windows(photos, AREA, 80.0, 64, "cell", (3, 0))
    x, y = AREA.cell_centers(*AREA.cells_at(photos.latitude, photos.longitude))
    right, down = (windows.x - x) / AREA.cell_size, (y - windows.y) / AREA.cell_size
    cell = np.round(np.stack([right, down], 1))
    jitter = np.stack([right, down], 1) - cell
    assert abs(jitter).max() <= 5 / AREA.cell_size + 1e-6
    beside = (cell != 0).any(1)
    assert beside.mean() == pytest.approx(0.3, abs=0.07)
    assert len(np.unique(cell, axis=0)) == 9


def test_windows_are_a_function_of_the_epoch() -> None:
    photos = photos_of(AREA)
    one, same, other = (draw_windows(photos, AREA, 60.0, 64, "cell", (0, epoch)) for epoch in (1, 1, 2))
    assert (one.x == same.x).all()
    assert (one.x != other.x).all()


def test_places_of_photos_in_all_windows_include_their_own() -> None:
    photos = photos_of(MERCATOR, 20)
    windows = draw_windows(photos, MERCATOR, 60.0, 64, "uniform", (0,))
    place = places_in(windows, photos)
    assert np.allclose(place[np.arange(20), np.arange(20)], own_places(windows, photos))
    east_of = Windows(MERCATOR, photos.x[:1] - 6.0 * windows.scale[:1], photos.y[:1], 60.0, 64)
    assert own_places(east_of, photos[:1])[0] == pytest.approx([0.1, 0.0], abs=1e-4)  # 6 m of 60 to the right


def test_photos_beside_training_photos_are_found() -> None:
    photos = photos_of(AREA, 30)
    x, y = photos.x.copy(), photos.y.copy()
    x[:10] += 4.0
    latitude, longitude = AREA.unproject(x, y)
    frame = pd.DataFrame({"id": range(20), "latitude": latitude[:20], "longitude": longitude[:20]})
    moved = PairPhotos.of(AREA, frame, 70.0, 10.0)
    assert moved.near(photos[:10]).tolist() == [True] * 10 + [False] * 10
    assert not moved.near(photos[:0]).any()


def test_unknown_cameras_have_the_default_field_of_view_and_no_heading() -> None:
    frame = pd.DataFrame({"id": ["a", "b", "c"], "latitude": 48.2, "longitude": 16.37})
    frame["hfov_deg"], frame["panorama"] = [np.nan, np.nan, 50.0], [0.0, 1.0, 0.0]
    photos = PairPhotos.of(AREA, frame, 70.0, 10.0)
    assert photos.hfov_deg.tolist() == [70.0, 360.0, 50.0]
    assert photos.panorama.tolist() == [False, True, False]
    assert np.isnan(photos.heading_deg).all()
