"""Windows: metres on the ground to pixels to degrees, in every CRS."""

from __future__ import annotations

import numpy as np
import pytest
from pyproj import Geod

from jzi.errors import ConfigError
from jzi.refine.windows.window import Window, Windows
from jzi.store.geometry.bands import BandGrid
from jzi.store.geometry.cell_grid import CellGrid
from jzi.store.geometry.mercator import MercatorGrid
from jzi.store.geometry.pyramid import Pyramid


def utm() -> Pyramid:
    """10 km in the east of zone 32, where grid north is 2.2 degrees off true north."""
    return Pyramid("EPSG:25832", 690_000.0, 5_550_000.0, 10_000.0)


def mercator_pyramid() -> Pyramid:
    """A square around 60 degrees north in EPSG:3857, where a metre on the ground is two units."""
    return Pyramid("EPSG:3857", 2_770_000.0, 8_410_000.0, 20_000.0)


AREAS: dict[str, tuple[CellGrid, float, float]] = {
    "utm": (utm(), 50.02, 11.75),
    "mercator": (mercator_pyramid(), 60.0, 24.97),
    "aeqd": (Pyramid.around(48.2, 16.37, 10_000.0), 48.21, 16.4),
    "bands": (BandGrid.covering(-71.2, 42.3, -71.0, 42.4), 42.36, -71.06),
    "mercator cells": (MercatorGrid.covering(24.9, 59.9, 25.1, 60.1), 60.0, 24.97),
}


def window_at(name: str, side_m: float = 80.0, pixels: int = 384) -> Window:
    area, latitude, longitude = AREAS[name]
    x, y = area.project(latitude, longitude)
    return Window(area, float(x), float(y), side_m, pixels)


@pytest.mark.parametrize("name", AREAS)
def test_metres_and_degrees_come_back_from_pixels(name) -> None:
    window = window_at(name)
    rng = np.random.default_rng(0)
    right, up = rng.uniform(-40, 40, (2, 200))
    u, v = window.offset_to_pixels(right, up)
    back = window.pixels_to_offset(*window.crs_to_pixels(*window.pixels_to_crs(u, v)))
    np.testing.assert_allclose(back, [right, up], atol=1e-6)
    there = window.pixels_to_offset(*window.position_to_pixels(*window.pixels_to_position(u, v)))
    np.testing.assert_allclose(there, [right, up], atol=1e-6)


@pytest.mark.parametrize("name", AREAS)
def test_a_metre_of_a_window_is_a_metre_on_the_ground(name) -> None:
    window = window_at(name)
    right, up = np.array([30.0, 0, -30, 0]), np.array([0.0, 30, 0, -30])
    latitude, longitude = window.pixels_to_position(*window.offset_to_pixels(right, up))
    centre = np.full(4, window.longitude), np.full(4, window.latitude)
    azimuth, _, metres = Geod(ellps="WGS84").inv(*centre, longitude, latitude)
    sphere = 0.004 if name in ("mercator", "mercator cells", "bands") else 1e-4  # these CRSs know no ellipsoid
    np.testing.assert_allclose(metres, 30, rtol=sphere)
    grid = np.array([90.0, 0, 270, 180])
    np.testing.assert_allclose((window.true_heading(grid) - azimuth + 180) % 360 - 180, 0, atol=0.1)
    np.testing.assert_allclose(window.grid_heading(window.true_heading(grid)), grid, atol=1e-9)


def test_80_metres_at_60_degrees_are_160_units_of_web_mercator() -> None:
    for name in ("mercator", "mercator cells"):
        bounds = window_at(name).bounds
        assert bounds.east - bounds.west == pytest.approx(160, abs=1e-6)
        assert bounds.north - bounds.south == pytest.approx(160, abs=1e-6)


def test_grid_north_of_utm_is_off_true_north_and_the_sign_is_right() -> None:
    window = window_at("utm")
    assert window.convergence_deg == pytest.approx(2.1, abs=0.1)  # east of the central meridian, north of the equator
    assert window.true_heading(0) == pytest.approx(window.convergence_deg)
    assert window_at("mercator").convergence_deg == pytest.approx(0, abs=1e-9)


def test_pixel_i_reaches_from_i_to_i_plus_1_from_the_north_west_corner() -> None:
    window = window_at("utm", side_m=80.0, pixels=400)
    bounds, unit = window.bounds, window.scale * 0.2
    x, y = window.pixels_to_crs([0.0, 0.5, 400.0], [0.0, 0.5, 400.0])
    np.testing.assert_allclose(x, [bounds.west, bounds.west + unit / 2, bounds.east])
    np.testing.assert_allclose(y, [bounds.north, bounds.north - unit / 2, bounds.south])
    u, v = window.offset_to_pixels(0.0, 0.0)
    assert (u, v) == (200.0, 200.0)
    u, v = window.offset_to_pixels(10.0, 4.0)  # east is to the right, north is up
    assert (u, v) == (250.0, 180.0)


def test_levels_of_a_window_are_the_same_ground() -> None:
    window = window_at("aeqd")
    coarse = window.with_pixels(12)
    assert coarse.bounds == window.bounds
    u, v = window.offset_to_pixels(np.linspace(-39.9, 39.9, 50), np.full(50, 3.3))
    at = coarse.crs_to_pixels(*window.pixels_to_crs(u, v))
    np.testing.assert_allclose(at, [u / 32, v / 32], atol=1e-6)


def test_many_windows_are_as_each_alone() -> None:
    area = AREAS["utm"][0]
    windows = Windows.around_cells(area, np.array([3, 200, 17]), np.array([5, 9, 255]), 80.0, 128)
    rng = np.random.default_rng(1)
    u, v = rng.uniform(0, 128, (2, 3, 7))
    x, y = windows.pixels_to_crs(u, v)
    for index in range(len(windows)):
        one = windows[index]
        np.testing.assert_allclose([x[index], y[index]], one.pixels_to_crs(u[index], v[index]), atol=1e-6)
        np.testing.assert_allclose(windows.bounds[index], one.bounds)
        assert windows.scale[index] == one.scale and windows.convergence_deg[index] == one.convergence_deg
    np.testing.assert_allclose(windows.crs_to_pixels(x, y), [u, v], atol=1e-6)
    np.testing.assert_allclose(windows.position_to_pixels(*windows.pixels_to_position(u, v)), [u, v], atol=1e-5)
    at = windows.crs_to_pixels(windows.x, windows.y)
    np.testing.assert_allclose(at, 64.0)
    assert len(windows.select(np.array([2, 0]))) == 2 and windows.select(np.array([2]))[0] == windows[2]


@pytest.mark.parametrize(
    ("side_m", "pixels", "x"), [(0, 10, 0), (np.nan, 10, 0), (80, 0, 0), (80, 1.5, 0), (80, 9, np.inf)]
)
def test_a_window_without_a_size_or_a_place_is_refused(side_m, pixels, x) -> None:
    with pytest.raises(ConfigError, match="window"):
        Window(AREAS["aeqd"][0], x, 0.0, side_m, pixels)
