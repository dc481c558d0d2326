"""Claims about `jzi dataset mapillary` and the boxes that it searches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from jzi.cli import main
from jzi.errors import ConfigError, DatasetError
from jzi.mapillary.api import LIMIT
from jzi.mapillary.boxes import Box, BoxGrid
from jzi.mapillary.regions import box_region, outline
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.geometry.region import Region
from jzi.tests.mapillary_runs import BBOX, FAST
from jzi.tests.mock_mapillary import LATITUDE, LONGITUDE, TOKEN, Answer, MockMapillary, record


@pytest.fixture
def service() -> Iterator[MockMapillary]:
    with MockMapillary() as service:
        yield service


# Regions and boxes


@given(
    st.floats(-179, 179), st.floats(-84, 84), st.floats(1e-4, 0.05), st.floats(1e-4, 0.05), st.floats(0, 1),
    st.floats(0, 1),
)  # fmt: skip
def test_every_position_of_a_box_is_asked_about(
    west: float, south: float, width: float, height: float, x: float, y: float
) -> None:
    east, north = min(west + width, 180), south + height
    grid = BoxGrid(box_region(west, south, east, north))
    longitude, latitude = west + x * (east - west), south + y * (north - south)
    bounds = [grid.clipped(box) for box in grid]
    assert any(w - 1e-6 <= longitude <= e + 1e-6 and s - 1e-6 <= latitude <= n + 1e-6 for w, s, e, n in bounds)
    assert all((e - w) * (n - s) < 0.01 for w, s, e, n in bounds)


def test_boxes_that_do_not_touch_the_polygons_are_skipped() -> None:
    triangle = {"type": "Polygon", "coordinates": [[(16.0, 48.0), (16.1, 48.0), (16.0, 48.1), (16.0, 48.0)]]}
    assert 50 <= len(list(BoxGrid(Region.of([triangle])))) <= 80


def test_children_cover_their_box() -> None:
    box = Box(2, 5, 7)
    bounds = np.array([child.bounds for child in box.children()])
    np.testing.assert_allclose([*bounds[:, :2].min(0), *bounds[:, 2:].max(0)], box.bounds)


def test_a_box_may_cross_the_antimeridian() -> None:
    grid = BoxGrid(box_region(179.99, -17, -179.99, -16.99))
    assert {box.x for box in grid} <= {0, 1, 35998, 35999}
    assert grid.contains([179.995, -179.995, 0], [-16.995] * 3).tolist() == [True, True, False]


def test_a_region_that_is_too_large_is_one_sentence() -> None:
    with pytest.raises(DatasetError, match="is too large"):
        BoxGrid(box_region(-20, 30, 40, 70))
    with pytest.raises(ConfigError, match="has no area"):
        box_region(1, 2, 3, 2)


def test_the_outline_of_a_square_holds_its_cells() -> None:
    pyramid = Pyramid.around(48.2, 16.37, 4000.0, levels=3)
    rows, cols = np.divmod(np.arange(16 * 16), 16)
    latitude, longitude = pyramid.unproject(*pyramid.cell_centers(rows, cols))
    assert BoxGrid(outline(pyramid, "a")).contains(longitude, latitude).all()


# The command


@pytest.fixture
def environment(service: MockMapillary, monkeypatch: pytest.MonkeyPatch) -> MockMapillary:
    monkeypatch.setenv("MAPILLARY_TOKEN", TOKEN)
    monkeypatch.setenv("MAPILLARY_URL", service.url)
    return service


def run(*arguments: object, bbox: tuple[float, ...] = BBOX) -> Result:
    box = ["--bbox", *map(str, bbox)] if bbox else []
    return CliRunner().invoke(main, ["dataset", "mapillary", *box, *map(str, arguments)])


def test_the_command_reports_what_it_did(environment: MockMapillary, tmp_path: Path) -> None:
    result = run("-o", tmp_path, "--json", "--duplicate-bits", "off")
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert (values["found"], values["downloaded"], values["kept"]) == (12, 12, 12)
    assert "to download: 11 photos, about" in result.stderr


def test_an_area_may_come_from_a_working_directory(environment: MockMapillary, tmp_path: Path) -> None:
    file = tmp_path / "jzi.toml"
    pyramid = Pyramid.around(LATITUDE, LONGITUDE, 800.0, levels=3)
    from jzi.workspace.setup.settings import Settings
    from jzi.workspace.setup.settings_file import write_settings

    settings = Settings(pyramid)
    settings.folder = tmp_path
    write_settings(settings)
    result = run("-o", tmp_path / "photos", "--area", file, "--json", "--dry-run", bbox=())
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["found"] == sum(abs(number * 8e-5) * 74_100 < 400 for number in range(12))


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, "Mapillary needs a token"),
        ("MLY|wrong|hidden", r"does not accept the token"),
        ("MLY with spaces", "no token has"),
    ],
)
def test_without_a_good_token_the_command_says_how_to_get_one(
    environment: MockMapillary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str | None, message: str
) -> None:
    monkeypatch.delenv("MAPILLARY_TOKEN")
    if token:
        monkeypatch.setenv("MAPILLARY_TOKEN", token)
    result = run("-o", tmp_path)
    assert result.exit_code == 2 and message in result.stderr and "MAPILLARY_TOKEN" in result.stderr
    assert "hidden" not in result.output and "Traceback" not in result.output


def test_an_area_without_photos_is_one_sentence(environment: MockMapillary, tmp_path: Path) -> None:
    result = run("-o", tmp_path, bbox=(1.0, 2.0, 1.001, 2.001))
    assert result.exit_code == 2 and "Mapillary has no photos in the box 1 2 1.001 2.001" in result.stderr


@pytest.mark.parametrize("areas", [(), ("--area", "jzi.toml", "--region", "r.geojson")])
def test_exactly_one_area_is_given(environment: MockMapillary, tmp_path: Path, areas: tuple[str, ...]) -> None:
    result = run("-o", tmp_path, *areas, bbox=())
    assert result.exit_code == 2 and "give one of --area" in result.stderr


def test_photos_that_failed_give_exit_code_1(environment: MockMapillary, tmp_path: Path, monkeypatch: Any) -> None:
    from jzi.mapillary import api as mapillary_api

    environment.broken[record(0)["id"]] = Answer(500)
    monkeypatch.setattr(mapillary_api.Mapillary.__init__, "__defaults__", (mapillary_api.BASE, "2048", FAST, LIMIT))
    result = run("-o", tmp_path, "--duplicate-bits", "off")
    assert result.exit_code == 1 and "1 photo could not be downloaded" in result.stderr
