"""Sizes of areas, tiles and cells as commands state them: metres on the ground."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from jzi.commands.shared.reports import cache_text
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.geometry.pyramid import Pyramid
from jzi.workspace.caches import inspect_cache
from jzi.workspace.describe import describe
from jzi.workspace.zoom import describe_area, describe_zoom


@pytest.fixture
def mercator() -> Pyramid:
    """A square of 4000 units of Web Mercator, 2003 m on the ground, at 60 degrees north; cells of 31.3 m."""
    area = replace(Pyramid.around(60.0, 16.37, 4000.0), crs="EPSG:3857", levels=3)
    x, y = (float(each) for each in area.project(60.0, 16.37))
    return replace(area, west=x - 2000, north=y + 2000)


def test_a_zoom_has_metres_on_the_ground_and_bounds_in_the_crs(mercator) -> None:
    assert "area: 2003." in describe_area(mercator) and "cells of 31.3" in describe_area(mercator)
    values, text = describe_zoom(mercator, 60.0, 16.37)
    assert values["cell_m"] == pytest.approx(31.3, abs=0.05) and "cell of 31.3" in text
    tile = values["tiles"][-1]
    west, _, east, _ = tile["bounds"]
    assert (east - west) / tile["footprint_m"] == pytest.approx(1.997, abs=1e-3)


def test_a_cache_has_metres_on_the_ground(mercator, info, tmp_path: Path) -> None:
    FeatureCache.create(tmp_path / "features.zarr", mercator, info)
    facts = describe(str(tmp_path / "features.zarr")).facts
    assert facts["cell_m"] == pytest.approx(31.3, abs=0.05) and facts["area_m"] == pytest.approx(2003, abs=1)
    assert "pyramid  2003." in cache_text(inspect_cache(tmp_path / "features.zarr"), [])
