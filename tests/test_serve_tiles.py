"""Tiles of the imagery: where they are, what they show and what they never show, and what they cost."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from jzi.encode.rasters.imagery import Imagery
from jzi.export.map_tiles import TILE, MapTiles, embedded_tiles, tile_bounds
from jzi.export.overlay import background_overlay
from jzi.serve.app import make_app
from jzi.serve.guard import Access
from jzi.serve.site import Site
from jzi.store.geometry.bands import BandGrid
from jzi.tests.conftest import write_geotiff

LOCAL = "http://localhost"


@pytest.fixture(autouse=True)
def small_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of the area so coarse that tiles of several zooms are finer."""
    monkeypatch.setattr("jzi.export.map_tiles.BACKGROUND", 128)


@pytest.fixture
def tiles(town_raster: Path, pyramid) -> Iterator[MapTiles]:
    with Imagery([town_raster], pyramid) as imagery:
        yield MapTiles(imagery)


def at(latitude: float, longitude: float, z: int) -> tuple[int, int, int]:
    """The tile of a position, as the OpenStreetMap wiki computes it (Slippy map tilenames)."""
    x = int((longitude + 180) / 360 * 2**z)
    y = int((1 - math.asinh(math.tan(math.radians(latitude))) / math.pi) / 2 * 2**z)
    return z, x, y


def decode(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        assert image.size == (TILE, TILE)
        return np.asarray(image.convert("RGBA"))


def test_a_tile_shows_what_the_imagery_shows_there(tiles, pyramid) -> None:
    assert tiles.low < tiles.high
    key = at(48.2, 16.37, tiles.high)
    expected, _ = tiles.imagery.render(tile_bounds(*key), TILE, "EPSG:3857")
    shown = decode(tiles.render(*key))
    assert np.abs(shown[..., :3].astype(int) - expected).mean() < 8 and (shown[..., 3] == 255).all()


def test_nothing_outside_of_the_area_is_shown_even_where_the_raster_has_pixels(town_raster, pyramid) -> None:
    small = replace(pyramid, west=-100.0, north=100.0, size=200.0)
    with Imagery([town_raster], small) as imagery:
        tiles = MapTiles(imagery)
        corner = small.unproject(small.bounds.west, small.bounds.south)
        z, x, y = at(float(corner[0]), float(corner[1]), tiles.high)
        alpha = decode(tiles.render(z, x, y))[..., 3]
        bounds = tile_bounds(z, x, y)
        assert 0 < (alpha > 0).mean() < 1
        cols = np.flatnonzero((alpha > 0).any(axis=0))
        west = math.radians(float(corner[1])) * 6378137
        assert bounds.west + (cols[0] + 1) * (bounds.east - bounds.west) / TILE == pytest.approx(west, abs=2.0)
        far = [tiles.render(z, x - 9, y), tiles.render(tiles.low - 1, 0, 0), tiles.render(tiles.high + 1, 2 * x, 2 * y)]
        assert far == [None] * 3


def test_regions_of_bands_have_tiles_and_a_picture_too(town_raster, pyramid, monkeypatch) -> None:
    latitude, longitude = pyramid.unproject(*pyramid.cell_centers(*np.array([[10, 50], [10, 50]])))
    grid = BandGrid.covering(longitude.min(), latitude.min(), longitude.max(), latitude.max(), 30.0)
    with Imagery([town_raster], grid) as imagery:
        tiles = MapTiles(imagery)
        key = at(float(latitude.mean()), float(longitude.mean()), tiles.high)
        expected, _ = imagery.render(tile_bounds(*key), TILE, "EPSG:3857")
        assert np.abs(decode(tiles.render(*key))[..., :3].astype(int) - expected).mean() < 8
        (south, west), (north, east) = background_overlay(imagery)["bounds"]
        assert west < longitude.min() < longitude.max() < east and south < latitude.min() < latitude.max() < north
        monkeypatch.setattr("jzi.export.overlay.READ_PIXELS", 100)  # of a region too large to be read for a picture
        assert background_overlay(imagery) is None
        site = Site(grid)
        site.render(imagery)
        with TestClient(FastAPI(routes=site.router(FastAPI()).routes), base_url=LOCAL) as client:
            area = client.get("/area").json()
            assert area["imagery"] is None and area["tiles"] == {"low": tiles.low, "high": tiles.high}
            assert client.get("/tiles/{}/{}/{}".format(*key)).headers["content-type"] == "image/webp"
        site.close()


def test_an_area_that_its_picture_shows_in_full_has_no_tiles(pyramid, tmp_path) -> None:
    coarse = write_geotiff(tmp_path / "coarse.tif", np.full((3, 16, 16), 99, np.uint8), pyramid.bounds, pyramid.crs)
    with Imagery([coarse], pyramid) as imagery:
        assert not MapTiles(imagery)


def test_tiles_of_a_page_are_nearest_to_its_answers_and_bounded(tiles, monkeypatch) -> None:
    positions = [(48.2, 16.37), (48.2005, 16.371)]
    all_of_them = embedded_tiles(tiles, [positions])
    assert "/".join(map(str, at(*positions[0], tiles.high))) in all_of_them
    assert "/".join(map(str, at(*positions[1], tiles.high))) in all_of_them
    assert {int(key.split("/")[0]) for key in all_of_them} == set(range(tiles.low, tiles.high + 1))
    monkeypatch.setattr("jzi.export.map_tiles.EMBEDDED_BYTES", sum(map(len, all_of_them.values())) // 3)
    fewer = embedded_tiles(tiles, [positions])
    assert 0 < len(fewer) < len(all_of_them) and "/".join(map(str, at(*positions[0], tiles.high))) in fewer


# Over HTTP


@pytest.fixture
def client(locator, town_raster, pyramid) -> Iterator[TestClient]:
    with Imagery([town_raster], pyramid) as imagery, TestClient(make_app(locator, imagery), LOCAL) as client:
        yield client


def url(client: TestClient, zoom: str = "high") -> str:
    return "/tiles/" + "/".join(map(str, at(48.2, 16.37, client.get("/area").json()["tiles"][zoom])))


def test_a_tile_is_rendered_once_and_asked_for_again_by_its_tag(client, monkeypatch) -> None:
    first = client.get(url(client))
    assert first.status_code == 200 and first.headers["content-type"] == "image/webp"
    assert first.headers["cache-control"] == "private, max-age=3600" and "etag" in first.headers
    monkeypatch.setattr(MapTiles, "render", lambda *_: 1 / 0)
    assert client.get(url(client)).content == first.content
    again = client.get(url(client), headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304 and again.content == b""


def test_kept_tiles_are_bounded(client, monkeypatch) -> None:
    monkeypatch.setattr("jzi.serve.tiles.CACHE_BYTES", len(client.get(url(client)).content) + 10)
    client.get(url(client, "low"))
    rendered: list[object] = []
    render = MapTiles.render
    monkeypatch.setattr(MapTiles, "render", lambda *key: rendered.append(key) or render(*key))
    client.get(url(client))
    assert len(rendered) == 1  # it was dropped for the other


@pytest.mark.parametrize(
    "path",
    ["0/0/0", "99/1/1", "-1/0/0", "18/-1/5", "18/0/0", f"18/{10**30}/1", "a/b/c", "18/1/..%2f..%2fetc", "18/1/2.png"],
)
def test_what_is_no_tile_of_the_area_is_refused_without_reading(client, path, monkeypatch) -> None:
    monkeypatch.setattr(MapTiles, "render", lambda *_: 1 / 0)
    answer = client.get(f"/tiles/{path}")
    assert answer.status_code in (404, 422) and isinstance(answer.json()["detail"], str)


def test_a_number_of_thousands_of_digits_is_one_sentence(client) -> None:
    answer = client.get(f"/tiles/{'9' * 5000}/1/1")
    assert (
        answer.status_code == 422 and answer.json()["detail"] == f"z must be a number of fewer digits, not '{'9' * 39}"
    )


def test_imagery_that_disappears_leaves_the_picture_of_the_area(client, town_raster) -> None:
    from jzi.encode.rasters.raster import close_rasters

    high = url(client)
    town_raster.unlink()
    close_rasters()
    answer = client.get(high)
    assert answer.status_code == 404 and str(town_raster.parent) not in answer.text
    assert client.get("/area").json()["imagery"]["image"].startswith("data:image/webp")


def test_tiles_need_the_token_as_the_rest_does(locator, town_raster, pyramid) -> None:
    with Imagery([town_raster], pyramid) as imagery:
        app = make_app(locator, imagery, access=Access("a-token-of-sixteen"))
        with TestClient(app, LOCAL) as client:
            headers = {"Authorization": "Bearer a-token-of-sixteen"}
            zoom = client.get("/area", headers=headers).json()["tiles"]["high"]
            path = "/tiles/" + "/".join(map(str, at(48.2, 16.37, zoom)))
            assert client.get(path).status_code == 401 and client.get(path, headers=headers).status_code == 200


def test_a_service_without_imagery_has_no_tiles(locator) -> None:
    with TestClient(make_app(locator), LOCAL) as client:
        assert client.get("/tiles/18/1/1").status_code == 404 and client.get("/area").json()["tiles"] is None
