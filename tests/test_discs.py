"""The search for the most probable points: bounded in memory for any radius, and exact enough for large ones."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from jzi.errors import ConfigError
from jzi.locate.answer.location import LocateOptions, to_locations
from jzi.locate.points import discs
from jzi.locate.points.disc_share import disc_share
from jzi.locate.points.discs import most_probable_discs
from jzi.locate.posterior import Posterior, credible_radius, most_probable_cells
from jzi.locate.ranges import Range
from jzi.store.geometry.bands import BandGrid
from jzi.store.geometry.pyramid import PRESETS, Pyramid, geodesic_distance

AREA = PRESETS["just-zoom-in-dc"]


def random_posterior(photos: int, cells: int, area: Pyramid = AREA) -> Posterior:
    rng = np.random.default_rng(photos)
    key = np.stack([rng.permutation(area.shape[0] ** 2)[:cells] for _ in range(photos)])
    row, col = np.divmod(key, area.shape[1])
    return Posterior.from_cells(area, row, col, rng.dirichlet(np.full(cells, 0.3), photos) * 0.97)


@pytest.mark.parametrize("radius", [50.0, 1_200.0, 10_000.0])
def test_memory_depends_neither_on_the_radius_nor_on_the_number_of_photos(radius: float) -> None:
    posterior = random_posterior(8, 8192)
    posterior.centers  # noqa: B018 - computed once
    tracemalloc.start()
    most_probable_discs(posterior, radius)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 120e6  # 4.8 GB for one photo and 10 000 m before


def test_radii_are_metres_on_the_ground_where_those_of_the_crs_are_longer() -> None:
    area = Pyramid("EPSG:3857", 2_770_000.0, 8_440_000.0, 2_000.0, grid=2, levels=5)  # at 60 degrees: cells of 31 m
    row, col = (each.ravel() for each in np.indices(area.shape))
    probability = np.random.default_rng(0).dirichlet(np.full(len(row), 0.5))
    posterior = Posterior.from_cells(area, row, col, probability)
    location = to_locations(posterior, LocateOptions(radius=100.0, top=3), [""])[0]
    within = (np.arange(8) + 0.5) / 8 - 0.5  # of a cell
    x, y = area.cell_centers(row, col)
    points = np.broadcast_arrays(
        x[:, None, None] + within * area.cell_size, y[:, None, None] + within[:, None] * area.cell_size
    )
    distance = geodesic_distance(location.latitude, location.longitude, *area.unproject(*points)).reshape(len(row), -1)

    def inside(radius: float) -> float:
        return float(probability @ (distance <= radius).mean(1))

    assert location.best.probability == pytest.approx(inside(100.0), abs=0.003)
    assert inside(location.radius_68) == pytest.approx(0.68, abs=0.01)
    assert location.cell_m == pytest.approx(31.2, abs=0.2)
    cells = to_locations(posterior, LocateOptions("map", radius=100.0, top=20), [""])[0].candidates
    positions = np.array([(each.latitude, each.longitude) for each in cells]).T
    apart = geodesic_distance(positions[0][:, None], positions[1][:, None], *positions)
    assert 100.0 < np.min(apart[apart > 0]) < 140.0
    with pytest.raises(ConfigError, match="more than the area's side of 996"):
        to_locations(posterior, LocateOptions(radius=1_500.0), [""])


@pytest.mark.parametrize("radius", [35.0, 81.0, 160.0])
def test_a_large_disc_covers_what_its_samples_cover(radius: float, monkeypatch: pytest.MonkeyPatch) -> None:
    area = Pyramid.around(48.2, 16.37, 160.0, grid=2, levels=4)  # 16 x 16 cells of 10 m
    posterior = random_posterior(3, 200, area)
    sampled = most_probable_discs(posterior, radius)
    monkeypatch.setattr(discs, "SAMPLED_RADIUS", 0.0)
    chords = most_probable_discs(posterior, radius, 3)
    np.testing.assert_allclose(chords.probability[:, :1], sampled.probability, atol=0.005)
    assert (chords.probability.sum(1) <= posterior.probability.sum(1) + 1e-9).all()


def test_a_disc_of_the_size_of_the_map_contains_all_that_search_reached() -> None:
    points = most_probable_discs(random_posterior(2, 300), 10_000.0, 5)
    np.testing.assert_allclose(points.probability[:, 0], 0.97)
    assert (points.probability[:, 1:] == 0).all()


BANDS = BandGrid.covering(16.36, 48.195, 16.38, 48.205, cell_m=30.0)


@pytest.mark.parametrize("radius", [35.0, 81.0, 2_000.0])
@pytest.mark.parametrize("area", [Pyramid.around(48.2, 16.37, 2_560.0, levels=3), BANDS], ids=["square", "bands"])
def test_the_share_of_cells_is_that_of_their_points(area: Pyramid | BandGrid, radius: float) -> None:
    rng = np.random.default_rng(0)
    row = np.full(400, area.shape[0] // 2) + rng.integers(-12, 12, 400)
    col = np.full(400, area.shape[1] // 2) + rng.integers(-12, 12, 400)
    row, col = np.unique(np.stack([row, col], 1), axis=0).T
    posterior = Posterior.from_cells(area, row, col, np.full(len(row), 1 / len(row)))
    x, y = (float(values[0, 7]) + 11.0 for values in posterior.centers)
    offset = (np.arange(16) + 0.5) / 16 - 0.5
    inside = np.zeros(len(row))
    centre_x, centre_y = (values[0] for values in posterior.centers)
    for east in offset * area.cell_size:  # rows of bands are turned by less than 0.02 degrees here
        for north in offset * area.cell_size:
            inside += np.hypot(centre_x + east - x, centre_y + north - y) <= radius
    np.testing.assert_allclose(disc_share(posterior, 0, x, y, radius), inside / 256, atol=0.1)


def test_the_mean_lies_between_cells_in_proportion_to_their_probabilities() -> None:
    for area in (AREA, BANDS):
        posterior = Posterior.from_cells(area, np.array([9, 9, 9]), np.array([9, 10, 40]), np.array([0.6, 0.2, 0.15]))
        points = most_probable_discs(posterior, 60.0, 2, mean=True)
        x, y = (values[0] for values in posterior.centers)
        assert points.x[0, 0] == pytest.approx(0.75 * x[0] + 0.25 * x[1], abs=0.02)
        assert points.y[0, 0] == pytest.approx(0.75 * y[0] + 0.25 * y[1], abs=0.02)
        assert (points.x[0, 1], points.y[0, 1]) == pytest.approx((x[2], y[2]), abs=0.02)
        assert points.cell.tolist() == [[0, 2]]
        np.testing.assert_allclose(points.probability, [[0.8, 0.15]], atol=1e-9)


def test_means_of_discs_neither_count_twice_nor_lie_within_the_radius_of_one_another() -> None:
    area = Pyramid.around(48.2, 16.37, 160.0, grid=2, levels=4)
    posterior = random_posterior(40, 200, area)
    points = most_probable_discs(posterior, 35.0, 5, mean=True)
    assert (points.probability.sum(1) <= 0.97 + 1e-9).all() and (points.probability > 0).all()
    apart = np.hypot(points.x[:, :, None] - points.x[:, None], points.y[:, :, None] - points.y[:, None])
    assert (apart[:, ~np.eye(5, dtype=bool)] > 35.0).all()


@pytest.mark.parametrize("radius", [0.0, -1.0, np.inf, np.nan, 1e6, 10_001.0, "50", True])
def test_a_radius_outside_of_the_area_is_refused_in_a_sentence(radius: float) -> None:
    posterior = random_posterior(1, 4)
    with pytest.raises(ConfigError, match=r"radius (must be a number of metres greater than 0|is .* m, more than)"):
        most_probable_discs(posterior, radius)
    with pytest.raises(ConfigError, match="radius"):
        to_locations(posterior, LocateOptions(radius=radius), [""])


@pytest.mark.parametrize(
    "options", [{"radius": np.inf}, {"radius": np.nan}, {"top": 10**6}, {"top": 2.5}, {"beams": 10**9}]
)
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(options))} must be a"):
        LocateOptions(**options)


def test_arguments_out_of_range_are_refused() -> None:
    posterior, zero = random_posterior(1, 4), np.zeros(1)
    for call in (
        lambda: most_probable_discs(posterior, 50.0, 0),
        lambda: most_probable_cells(posterior, 10**7),
        lambda: most_probable_cells(posterior, 1, apart=np.nan),
        lambda: credible_radius(posterior, zero, zero, 68.0),
        lambda: posterior.top(0),
    ):
        with pytest.raises(ConfigError, match="must be"):
            call()


def test_a_range_contains_finite_numbers_of_any_type_between_its_bounds() -> None:
    share, count = Range(0, 1, above=True), Range(1, 8, whole=True)
    assert all(value in share for value in (1, 0.5, np.float32(0.5)))
    assert not any(value in share for value in (0, 1.1, np.nan, np.inf, -np.inf, 1j, None, 10**400))
    assert all(value in count for value in (1, np.int64(8))) and not any(value in count for value in (0, 9, 2.0, True))
    assert str(share) == "a number greater than 0 and at most 1"
