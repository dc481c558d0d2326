"""Priors on cells in bands: shares of cells, and room for those of a state."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import shapely
import torch

from jzi.errors import ConfigError
from jzi.locate.answer.location import LocateOptions
from jzi.locate.joint.sequential import fuse
from jzi.locate.posterior import Posterior
from jzi.locate.priors.prior import PriorExpert
from jzi.locate.priors.prior_weights import Prior
from jzi.store.geometry.bands import RADIUS, BandGrid
from jzi.store.geometry.pyramid import geodesic_distance

GRID = BandGrid.covering(-71.10, 42.35, -71.06, 42.37, 30.0)
SEAM = BandGrid.covering(179.98, 65.0, 180.02, 65.02, 30.0)
OUTLINE = [(-71.09, 42.352), (-71.07, 42.3545), (-71.066, 42.366), (-71.08, 42.3601), (-71.094, 42.3682)]


def polygon(outline: list[tuple[float, float]]) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": [[*outline, outline[0]]]}


def samples(grid: BandGrid, side: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """(row, col, sample) latitude and longitude of points of all cells; nan where there is none."""
    row, col = np.indices(grid.shape)
    inside = col < grid.count[row]
    latitude, longitude = (each[..., None] for each in grid.positions(row, np.minimum(col, grid.count[row] - 1)))
    up, right = (each.ravel() for each in np.meshgrid(*[(np.arange(side) + 0.5) / side - 0.5] * 2))
    latitude = latitude + np.degrees(up * grid.cell_m / RADIUS)
    longitude = longitude + np.degrees(right * grid.step[row][..., None])
    latitude[~inside] = np.nan
    return latitude, longitude


def test_a_region_weights_cells_by_the_share_of_them_that_it_covers() -> None:
    weight = Prior(region=(polygon(OUTLINE),)).weight(GRID)
    latitude, longitude = samples(GRID)
    share = shapely.contains_xy(shapely.Polygon(OUTLINE), longitude, latitude).mean(-1)
    assert weight.dtype == np.float32
    np.testing.assert_allclose(weight, share, atol=0.06)
    assert weight.sum() == pytest.approx(share.sum(), rel=1e-3)
    tiny = [(-71.08, 42.36), (-71.0799, 42.36), (-71.0799, 42.36003)]
    weight = Prior(region=(polygon(tiny),)).weight(GRID)
    assert 1 <= (weight > 0).sum() <= 2 and weight.max() >= 1 / 64


@pytest.mark.parametrize(("grid", "center"), [(GRID, (42.361, -71.078)), (SEAM, (65.01, 179.9995))])
def test_a_circle_is_measured_on_the_ellipsoid_also_across_the_antimeridian(
    grid: BandGrid, center: tuple[float, float]
) -> None:
    weight = Prior(near=center, within=400.0).weight(grid)
    latitude, longitude = samples(grid)
    inside = geodesic_distance(*center, np.nan_to_num(latitude), longitude) <= 400
    seam = grid is SEAM  # cells that the antimeridian cuts reach beyond it here
    assert (abs(weight - inside.mean(-1)) < 0.06).mean() > (0.97 if seam else 0.9999)
    assert weight.sum() * 900 == pytest.approx(np.pi * 400**2, rel=0.06 if seam else 0.008)
    assert (Prior(near=center, within=0.1).weight(grid) > 0).sum() == 1


def test_a_large_circle_is_measured_at_the_centres() -> None:
    grid = BandGrid.covering(-10.0, 60.0, 10.0, 70.0, 20_000.0)
    weight = Prior(near=(20.0, 0.0), within=5.0e6).weight(grid)
    row, col = np.indices(grid.shape)
    inside = col < grid.count[row]
    distance = geodesic_distance(20.0, 0.0, *grid.positions(row, np.minimum(col, grid.count[row] - 1)))
    np.testing.assert_array_equal(weight, inside & (distance <= 5.0e6))
    assert 0 < weight.sum() < inside.sum()


def test_a_raster_is_averaged_over_each_cell(write_raster: Callable[..., Path]) -> None:
    """Weights that are linear in longitude and latitude, pixels of about 8 m."""
    side = 560
    latitude = np.linspace(42.34, 42.38, side * 2 + 1)[1::2][::-1, None]
    longitude = np.linspace(-71.12, -71.04, side * 2 + 1)[None, 1::2]
    values = (3 + 40 * (latitude - 42.36) + 30 * (longitude + 71.08)).astype(np.float32)[None]
    file = write_raster(values, (-71.12, 42.34, -71.04, 42.38), "EPSG:4326")
    weight = Prior(raster=file).weight(GRID)
    row, col = np.indices(GRID.shape)
    inside = col < GRID.count[row]
    latitude, longitude = GRID.positions(row, np.minimum(col, GRID.count[row] - 1))
    expected = np.where(inside, 3 + 40 * (latitude - 42.36) + 30 * (longitude + 71.08), 0.0)
    np.testing.assert_allclose(weight * expected.max(), expected, atol=0.004)
    assert weight.max() == 1
    values[0, 300, 300] = -1
    with pytest.raises(ConfigError, match="negative or infinite"):
        Prior(raster=write_raster(values, (-71.12, 42.34, -71.04, 42.38), "EPSG:4326")).weight(GRID)


def test_cells_of_which_a_raster_has_no_data_have_no_weight(write_raster: Callable[..., Path]) -> None:
    values = np.ones((1, 100, 200), np.float32)
    for nodata in (-9999, 255):
        values[0, :, :100] = nodata  # the western half
        file = write_raster(values, (-71.12, 42.34, -71.04, 42.38), "EPSG:4326", nodata=nodata)
        weight = Prior(raster=file).weight(GRID)
        row, col = np.indices(GRID.shape)
        longitude = GRID.positions(row, np.minimum(col, GRID.count[row] - 1))[1]
        assert (weight[(col < GRID.count[row]) & (longitude > -71.079)] == 1).all()
        assert not weight[longitude < -71.081].any()


def test_parts_are_multiplied_and_a_prior_outside_of_the_region_is_refused() -> None:
    circle, region = Prior(near=(42.36, -71.08), within=300.0), Prior(region=(polygon(OUTLINE),))
    both = Prior(near=(42.36, -71.08), within=300.0, region=(polygon(OUTLINE),))
    np.testing.assert_allclose(both.weight(GRID), circle.weight(GRID) * region.weight(GRID))
    with pytest.raises(ConfigError, match="no cell of the map is within 50 m"):
        Prior(near=(10.0, 10.0), within=50.0).weight(GRID)
    with pytest.raises(ConfigError, match="no cell"):
        Prior(region=(polygon([(1.0, 1.0), (2.0, 1.0), (2.0, 2.0)]),), region_name="far.geojson").weight(GRID)


class _Flat:
    """An expert that gives 2000 cells of a grid."""

    name, rules_out, encoder = "flat", False, SimpleNamespace(width=4)

    def __init__(self, grid: BandGrid) -> None:
        self.area, self.cell_mask = grid, np.arange(grid.shape[1]) < grid.count[:, None]
        rng = np.random.default_rng(0)
        cell = np.unique(rng.integers(0, grid.rows * grid.count.min(), 4000))
        self.row, self.col = np.divmod(rng.permutation(cell)[:2000], grid.count.min())

    def posterior(self, query: torch.Tensor, options: LocateOptions) -> Posterior:
        return Posterior.from_cells(self.area, self.row, self.col, np.full((len(query), 2000), 0.9 / 2000))

    def uncalibrated(self) -> None:
        return None


def test_a_prior_of_a_state_takes_a_few_bytes_a_cell() -> None:
    grid = BandGrid.covering(-73.55, 41.2, -69.9, 42.9, 120.0)  # 4 M cells
    expert = _Flat(grid)
    outline = [(-73.0, 41.3), (-70.0, 41.4), (-70.5, 42.8), (-72.8, 42.7)]
    tracemalloc.start()
    weight = Prior(region=(polygon(outline),)).weight(grid)
    weighted = PriorExpert(expert, weight)
    found = weighted.posterior(torch.zeros(2, 4), LocateOptions())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * weight.size
    assert weight.sum() == pytest.approx(shapely.Polygon(outline).area / np.degrees(1) ** 2
                                         * np.cos(np.radians(42.06)) * RADIUS**2 / 120**2, rel=0.01)  # fmt: skip
    np.testing.assert_allclose(found.probability.sum(1) + found.residual, 1)
    covered = weight[expert.row, expert.col] > 0
    assert (found.probability[0] > 0).sum() == covered.sum() > 500
    assert (weighted.cell_mask == (weight > 0)).all()


def test_a_circle_keeps_what_the_expert_says_of_its_cells_one_by_one_and_together() -> None:
    expert = _Flat(GRID)
    weight = Prior(near=(42.36, -71.08), within=300.0).weight(GRID)
    weighted = PriorExpert(expert, weight)
    found = weighted.posterior(torch.zeros(2, 4), LocateOptions())
    assert found.residual.tolist() == [0, 0] and found.probability.shape[1] == (weight > 0).sum()
    grid = found.grid()
    assert ((grid > 0) == (weight > 0)).all()
    reached = np.zeros(GRID.shape)
    np.add.at(reached, (expert.row, expert.col), 1.0)
    both = (weight == 1) & (reached == 1)
    assert np.ptp(grid[both]) < 1e-9 and grid[both].mean() > 2 * grid[(weight == 1) & (reached == 0)].mean()
    likelihood = weighted.likelihood.posterior(torch.zeros(2, 4), LocateOptions())
    together = weighted.weighted(fuse(likelihood, weighted.cell_mask))
    assert together.probability.sum() == pytest.approx(1)
    assert together.grid()[both].mean() / grid[both].mean() > 1.1  # two photos are more certain
