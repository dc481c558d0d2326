"""Metres on the ground in areas whose CRS has other ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from jzi.refine.windows.window import Windows
from jzi.store.geometry.bands import BandGrid
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.geometry.scale import ground_metres, largest_scale, metres_per_unit, units_per_metre


def area_in(crs: str, latitude: float) -> Pyramid:
    """A square of 4000 units of a CRS around a position at 16.37 degrees east."""
    area = replace(Pyramid.around(latitude, 16.37, 4000.0), crs=crs)
    x, y = (float(each) for each in area.project(latitude, 16.37))
    return replace(area, west=x - 2000, north=y + 2000)


@pytest.mark.parametrize(("latitude", "scale"), [(0.0, 1.0), (48.2, 1.4973), (60.0, 1.9950)])
def test_all_scales_of_web_mercator_agree(latitude, scale) -> None:
    area = area_in("EPSG:3857", latitude)
    bounds = area.bounds
    assert units_per_metre(area) == pytest.approx(scale, rel=4e-3)
    assert 1 / ground_metres(area, bounds) == pytest.approx(scale, rel=3e-3)
    assert largest_scale(area, [latitude], [16.37]) == pytest.approx(scale, rel=8e-3)  # of the meridian
    x, y = (np.array([sum(each) / 2]) for each in ((bounds.west, bounds.east), (bounds.south, bounds.north)))
    assert Windows(area, x, y, 10.0, 8).scale == pytest.approx(scale, rel=8e-3)


def test_metres_of_national_grids_and_of_bands_are_those_of_the_ground() -> None:
    area = area_in("EPSG:32633", 48.2)
    assert units_per_metre(area) == 1.0 and largest_scale(area, [48.2], [16.37]) == pytest.approx(1.0, abs=1e-3)
    assert ground_metres(area, area.bounds) == pytest.approx(1.0, abs=1e-3)
    bands = BandGrid.covering(16.3, 48.1, 16.4, 48.2)
    assert units_per_metre(bands) == largest_scale(bands, [48.15], [16.35]) == 1.0


def test_the_scale_of_a_projection_that_is_not_conformal_differs_by_direction() -> None:
    area = area_in("+proj=cea +lat_ts=0 +units=m +type=crs", 60.0)  # equal areas: stretched from west to east
    x, y = area.project([60.0], [16.37])
    across, along = metres_per_unit(area, x, y, 50.0)
    assert across[0] == pytest.approx(0.5, rel=0.01) and along[0] == pytest.approx(2.0, rel=0.01)
    assert units_per_metre(area) == 1.0 and largest_scale(area, [60.0], [16.37]) == pytest.approx(2.0, rel=0.01)


def test_positions_that_have_no_projection_are_left_out() -> None:
    area = area_in("EPSG:32633", 48.2)
    assert not np.isfinite(area.project(0.0, 105.0)[0]).all()
    assert largest_scale(area, [48.2, 0.0], [16.37, 105.0]) == largest_scale(area, [48.2], [16.37])
    assert largest_scale(area, [], []) == largest_scale(area, [0.0], [105.0]) == 1.0
