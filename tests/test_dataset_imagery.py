"""`jzi dataset imagery`, against a local server whose every pixel is known."""

from __future__ import annotations

import errno
import json
import shutil
import sys
from collections import Counter, namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from rasterio.transform import from_origin
from rasterio.windows import Window

from jzi.cli import main
from jzi.curate.folder import Source
from jzi.errors import ImageryError, JziError
from jzi.overhead import blocks, cog, download, urls, xyz
from jzi.overhead.area import Area
from jzi.overhead.capabilities import parse_capabilities
from jzi.overhead.grid import Grid
from jzi.overhead.layer import Layer
from jzi.overhead.mosaic import Mosaic
from jzi.overhead.ogc import wms_service, wmts_service
from jzi.overhead.services import Access
from jzi.overhead.stac import find_imagery
from jzi.overhead.urls import ServiceUrl
from jzi.overhead.xyz import xyz_service
from jzi.store.geometry.cell_grid import Bounds
from jzi.tests.children import Child
from jzi.tests.mock_imagery import HALF_M, MockImagery, colors, picture
from jzi.web.client import HttpOptions

#: Some 100 m in Washington, of 431 x 401 pixels at zoom 19.
BBOX = (-77.0362, 38.8895, -77.0350, 38.8904)
AREA = Area.of_bbox(*BBOX)
CORNER = xyz._tile_at(AREA, 19, 0, 1)  # column and row of the tile in the north-west
XYZ = ("--attribution", "Mock Survey", "--licence", "CC0")


@pytest.fixture
def server() -> Iterator[MockImagery]:
    with MockImagery() as running:
        yield running


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "WAITS_S", (0.0, 0.0))
    monkeypatch.setattr(urls, "_OPTIONS", HttpOptions(retries=0, plain_http=True))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["dataset", "imagery", *map(str, arguments)])


def bbox(area: tuple[float, ...] = BBOX) -> list[object]:
    return ["--bbox", *area]


def pixels(layer: Layer) -> tuple[np.ndarray, np.ndarray]:
    return layer.read(Window(0, 0, layer.grid.width, layer.grid.height))


def expected(grid: Grid) -> np.ndarray:
    return picture(grid.west, grid.north, grid.x_size, grid.y_size, grid.width, grid.height)


def assert_shows(file: Path, share: float = 1.0) -> None:
    """The picture is where the file says."""
    with rasterio.open(file) as source:
        at = source.transform
        assert source.crs.to_epsg() == 3857
        wanted = picture(at.c, at.f, at.a, -at.e, source.width, source.height)
        assert (source.read() == wanted).all(0).mean() >= share


# Services


def test_tiles_become_a_geotiff_whose_every_pixel_is_where_it_should_be(server: MockImagery, tmp_path: Path) -> None:
    output = tmp_path / "map.tif"
    template = f"{server.url}/xyz/{{z}}/{{x}}/{{y}}.png"
    result = run("--xyz", template, *bbox(), "-o", output, *XYZ, "--compress", "deflate", "--connections", 2)
    assert result.exit_code == 0, result.stderr
    assert_shows(output)
    assert "zoom 19: 0.232 m per pixel" in result.stderr
    assert "licence: CC0" in result.stderr
    with rasterio.open(output) as source:
        west, south, east, north = rasterio.warp.transform_bounds(source.crs, "EPSG:4326", *source.bounds)
        assert west <= BBOX[0] < west + 1e-5 and south <= BBOX[1] < south + 1e-5  # a pixel has 3e-6 degrees
        assert east >= BBOX[2] > east - 1e-5 and north >= BBOX[3] > north - 1e-5
        assert source.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert source.tags()["TIFFTAG_COPYRIGHT"] == "Mock Survey"
    tiles = Counter(path for path in server.asked if "/19/" in path)
    assert sum(tiles.values()) <= len(tiles) + 1  # the one that was looked at first
    assert server.most_busy <= 2
    assert all(agent.startswith("jzi/") for agent in server.agents)
    record = Source.model_validate_json((tmp_path / "map.json").read_bytes())
    assert (record.kind, record.licence, record.attribution) == ("imagery", "CC0", "Mock Survey")
    assert record.details["crs"] == "EPSG:3857" and record.details["zoom"] == "19"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["map.json", "map.tif"]
    made = CliRunner().invoke(main, ["init", str(tmp_path / "area"), "--map", str(output)])
    assert made.exit_code == 0, made.stderr


def test_rows_of_a_template_may_count_from_the_south(server: MockImagery) -> None:
    layer = xyz_service(f"{server.url}/tms/{{z}}/{{x}}/{{-y}}.png", AREA, 0.3, 22, Access()).layer
    assert (pixels(layer)[0] == expected(layer.grid)).all()


@pytest.mark.parametrize(
    ("gsd", "finest", "most", "side", "zoom", "says"),
    [
        (0.3, 20, 22, 256, 19, "0.232 m per pixel"),
        (1.0, 20, 22, 256, 17, "0.93 m per pixel"),
        (0.3, 20, 22, 512, 18, "0.232 m per pixel"),
        (0.3, 17, 22, 256, 17, "no tiles there of zoom 18 to 19"),
        (0.3, 20, 16, 256, 16, "16 is the finest allowed"),
    ],
)
def test_the_zoom_is_that_of_the_nearest_pixels_which_the_service_has(
    server: MockImagery, gsd: float, finest: int, most: int, side: int, zoom: int, says: str
) -> None:
    server.finest, server.side = finest, side
    service = xyz_service(f"{server.url}/xyz/{{z}}/{{x}}/{{y}}.png", AREA, gsd, most, Access())
    assert service.zoom == zoom
    assert says in service.choice
    assert (pixels(service.layer)[0] == expected(service.layer.grid)).all()


def test_tiles_that_are_not_there_are_no_data(server: MockImagery) -> None:
    column = CORNER[0] + 1
    server.fail(rf"/19/{column}/", status=404)
    layer = xyz_service(f"{server.url}/xyz/{{z}}/{{x}}/{{y}}.png", AREA, 0.3, 22, Access()).layer
    data, valid = pixels(layer)
    x = layer.grid.west + (np.arange(layer.grid.width) + 0.5) * layer.grid.x_size
    there = np.floor((x + HALF_M) / (256 * layer.grid.x_size)) != column
    assert 0 < there.mean() < 1
    assert ((valid > 0) == there[None, :]).all()
    assert (data == expected(layer.grid))[:, :, there].all()


@pytest.mark.parametrize(("crs", "label"), [(None, "EPSG:3857"), ("EPSG:4326", "EPSG:4326")])
def test_a_wms_is_asked_for_the_area_in_the_order_of_its_axes(server: MockImagery, crs: str | None, label: str) -> None:
    service = wms_service(f"{server.url}/wms", "ortho", AREA, 0.5, crs, None, Access())
    grid = service.layer.grid
    assert grid.label == label
    assert grid.gsd_m(AREA.latitude) == pytest.approx(0.5, rel=1e-3)
    x = grid.west + (np.arange(grid.width) + 0.5) * grid.x_size
    y = grid.north - (np.arange(grid.height) + 0.5) * grid.y_size
    if crs:
        x, y = x / 180 * HALF_M, np.arcsinh(np.tan(np.radians(y))) / np.pi * HALF_M
    assert (pixels(service.layer)[0] == colors(x, y)).all(0).mean() > 0.999  # of colours that change within a rounding
    assert not [path for path in server.asked if "WIDTH=5" in path]  # MaxWidth is 400
    assert (service.terms.provider, service.terms.licence) == ("Survey of Mock", "Open Government Licence")
    assert service.terms.url == f"{server.url}/about"


def test_a_wmts_is_read_at_the_nearest_matrix(server: MockImagery) -> None:
    service = wmts_service(f"{server.url}/wmts/WMTSCapabilities.xml", "ortho", AREA, 0.3, None, Access())
    assert (pixels(service.layer)[0] == expected(service.layer.grid)).all()
    assert service.zoom == 19 and service.layer.tile == 256
    assert server.count("WMTSCapabilities") == 1
    assert service.terms.licence == "Open Government Licence"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--wms", "{url}/wms", "--layer", "parks"], "has no layer 'parks': give --layer one of ortho, relief"),
        (["--wms", "{url}/wms", "--layer", "ortho", "--crs", "EPSG:25832"], "not offered in EPSG:25832"),
        (
            ["--wms", "{url}/wms", "--layer", "ortho", "--format", "image/tiff"],
            "no images as image/tiff: it has image/png",
        ),
        (["--wms", "{url}/xyz", "--layer", "ortho"], "status 404"),
        (["--wms", "{url}/wms"], "--wms needs --layer"),
        (["--wmts", "{url}/stac", "--layer", "ortho"], "no XML of capabilities"),
        (["--wmts", "{url}/wms", "--layer", "ortho"], "no layer 'ortho'"),
        (["--xyz", "{url}/{x}/{y}.png"], "has no {z}"),
        (["--xyz", "{url}/{q}/{z}/{x}/{y}.png"], "has {q}, which jzi does not know"),
        (["--xyz", "{url}/none/{z}/{x}/{y}.png"], "has no tiles in the area"),
        (["--xyz", "{url}/wms/{z}/{x}/{y}?request=GetCapabilities"], "has no tiles"),
        (["--xyz", "ftp://host/{z}/{x}/{y}.png"], "not a URL of http or https"),
        (["--xyz", "https://me:word@host/{z}/{x}/{y}.png"], "holds a user or a password"),
        (["--xyz", "https://host/{z}/{x}/{y}.png?api_key=abc"], "write api_key={env:NAME}"),
        (["--xyz", "https://host/{z}/{x}/{y}.png?k={env:JZI_NO}"], "JZI_NO, which is not set"),
        (["--xyz", "{url}/xyz/{z}/{x}/{y}.png", "--layer", "a"], "--layer is not for --xyz"),
        (["--xyz", "{url}/xyz/{z}/{x}/{y}.png", "--wms", "{url}/wms"], "give one source"),
    ],
)
def test_a_service_that_cannot_be_used_is_one_sentence(
    server: MockImagery, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    filled = [argument.replace("{url}", server.url) for argument in arguments]
    result = run(*filled, *bbox(), "-o", tmp_path / "map.tif", *XYZ)
    assert result.exit_code == 2
    assert sentence in result.stderr and result.stderr.count("\n") <= 1
    assert not list(tmp_path.iterdir())


def test_whose_tiles_it_are_must_be_known(server: MockImagery, tmp_path: Path) -> None:
    result = run("--xyz", f"{server.url}/xyz/{{z}}/{{x}}/{{y}}.png", *bbox(), "-o", tmp_path / "m.vrt")
    assert "pass --attribution TEXT and --licence TEXT" in result.stderr
    server.constraints = "None"
    result = run("--wms", f"{server.url}/wms", "--layer", "ortho", *bbox(), "-o", tmp_path / "m.vrt")
    assert result.exit_code == 2 and "pass --licence TEXT" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_vrt_of_a_service_is_read_where_the_user_trusts_it(server: MockImagery, tmp_path: Path) -> None:
    result = run("--wmts", f"{server.url}/wmts", "--layer", "ortho", *bbox(), "-o", tmp_path / "map.vrt")
    assert result.exit_code == 0, result.stderr
    assert "attribution: Survey of Mock" in result.stderr
    assert "jzi init --map" in result.stdout and "--remote" in result.stdout
    assert_shows(tmp_path / "map.vrt")
    before = len(server.asked)
    assert_shows(tmp_path / "map.vrt")
    assert not [path for path in server.asked[before:] if "/tiles/" in path]  # GDAL's cache
    refused = CliRunner().invoke(main, ["init", str(tmp_path / "a"), "--map", str(tmp_path / "map.vrt")])
    assert refused.exit_code == 2 and "--remote" in refused.stderr
    made = CliRunner().invoke(main, ["init", str(tmp_path / "a"), "--map", str(tmp_path / "map.vrt"), "--remote"])
    assert made.exit_code == 0, made.stderr


def test_an_xml_of_gdal_is_a_source_at_the_wanted_pixels(server: MockImagery, tmp_path: Path) -> None:
    service = xyz_service(f"{server.url}/xyz/{{z}}/{{x}}/{{y}}.png", AREA, 0.3, 22, Access())
    file = tmp_path / "service.xml"
    file.write_text(service.layer.fingerprint)
    result = run(file, *bbox(), "-o", tmp_path / "map.vrt", *XYZ, "--gsd", 0.9)
    assert result.exit_code == 0, result.stderr
    assert "of 0.93 m" in result.stdout
    assert_shows(tmp_path / "map.vrt")


# Secrets


def test_a_token_is_sent_and_written_nowhere(
    server: MockImagery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JZI_KEY", "s3cr3t")
    monkeypatch.setenv("JZI_DEBUG", "1")
    template = f"{server.url}/xyz/{{z}}/{{x}}/{{y}}.png?key={{env:JZI_KEY}}"
    refused = run("--xyz", template, *bbox(), "-o", tmp_path / "map.vrt", *XYZ)
    assert refused.exit_code == 2 and "would hold the secret of {env:JZI_KEY}" in refused.stderr
    server.fail(f"/19/{CORNER[0]}/{CORNER[1]}", status=500)  # not the tile in the middle, which is looked at first
    results = [run("--xyz", template, *bbox(), "-o", tmp_path / "map.tif", *XYZ)]
    assert "status 500" in results[0].stderr
    server.failures.clear()
    results.append(run("--xyz", template, *bbox(), "-o", tmp_path / "map.tif", *XYZ))
    capabilities = f"{server.url}/wmts?key={{env:JZI_KEY}}"
    wmts = run("--wmts", capabilities, "--layer", "ortho", *bbox(), "-o", tmp_path / "w.tif", "--dry-run")
    assert results[0].exit_code == 2 and results[-1].exit_code == 0 and wmts.exit_code == 0
    assert all("key=s3cr3t" in path for path in server.asked)
    for result in (refused, *results, wmts):
        assert "s3cr3t" not in result.output + result.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and not [path for path in files if b"s3cr3t" in path.read_bytes()]


def test_the_representation_of_a_url_hides_its_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JZI_KEY", "a b/ü")
    url = ServiceUrl.parse("https://host/{z}?key={env:JZI_KEY}", "--xyz")
    assert "a b" not in repr(url)
    assert url.fill() == "https://host/{z}?key=a%20b/%C3%BC"
    assert (
        url.redact(f"cannot open {url.fill()}, a b/ü")
        == "cannot open https://host/{z}?key={env:JZI_KEY}, {env:JZI_KEY}"
    )


# Failures, kills and resuming


def test_a_service_that_fails_leaves_what_is_there_and_the_next_run_resumes(
    server: MockImagery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "_REQUESTS", 1)
    arguments = ("--xyz", f"{server.url}/xyz/{{z}}/{{x}}/{{y}}.png", *bbox(), "-o", tmp_path / "map.tif", *XYZ,
                 "--compress", "deflate", "--rate", 1000)  # fmt: skip
    last = xyz._tile_at(AREA, 19, 1, 0)
    server.fail(f"/19/{last[0]}/{last[1]}", status=503)
    failed = run(*arguments)
    assert failed.exit_code == 2
    assert "answers with status 503, 3 times" in failed.stderr and "run the same command again" in failed.stderr
    assert [path.name for path in tmp_path.iterdir()] == [".map.tif.blocks"]
    other = run(*arguments[:-2], "--gsd", 1)
    assert "holds blocks of another request" in other.stderr
    kept = len(list((tmp_path / ".map.tif.blocks").glob("*.tif")))
    assert kept
    server.failures.clear()
    asked = len(server.asked)
    resumed = run(*arguments)
    assert resumed.exit_code == 0, resumed.stderr
    assert f"{kept} of them there already" in resumed.stderr
    tiles = len({path for path in server.asked if "/19/" in path})
    assert len(server.asked) - asked == tiles - kept + 1  # the one that is looked at
    assert_shows(tmp_path / "map.tif")


@pytest.mark.slow
def test_a_killed_download_resumes_without_its_finished_blocks(server: MockImagery, tmp_path: Path) -> None:
    server.delay_s = 0.05
    wide = (-77.0400, 38.8860, -77.0350, 38.8900)
    output, blocks = tmp_path / "map.tif", tmp_path / ".map.tif.blocks"
    arguments = ["--xyz", f"{server.url}/xyz/{{z}}/{{x}}/{{y}}.png", *bbox(wide), "-o", output, *XYZ, "--compress",
                 "deflate", "--rate", 1000]  # fmt: skip
    with Child([sys.executable, "-m", "jzi", "dataset", "imagery", *arguments]) as child:
        child.wait_until(lambda: len(list(blocks.glob("*_*.*.tif"))) >= 2)
        child.end()
    server.delay_s = 0.0
    kept = {path.name for path in blocks.glob("*_*.*.tif")}
    assert not output.exists() and kept
    before = len(server.asked)
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    assert_shows(output)
    again = Counter(server.asked[before:])
    assert len(again) < len({path for path in server.asked if "/19/" in path})
    assert not blocks.exists()


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ({"status": 200, "body": b"<html>Log in</html>", "kind": "text/html"}, "a web page"),
        ({"status": 403}, "status 403"),
        ({"status": 302, "headers": {"Location": "file:///etc/passwd"}}, "is not a URL of http or https"),
        ({"status": 200, "body": b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "kind": "image/png"}, "no image"),
    ],
)
def test_answers_that_are_no_tiles_end_the_command(
    server: MockImagery, tmp_path: Path, answer: dict[str, Any], sentence: str
) -> None:
    template = f"{server.url}/xyz/{{z}}/{{x}}/{{y}}.png"
    server.fail("/19/", **answer)
    first = run("--xyz", template, *bbox(), "-o", tmp_path / "map.tif", *XYZ)
    assert first.exit_code == 2 and sentence in first.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ({"status": 200, "body": b"<html>Slow down</html>", "kind": "text/html"}, "web page, 3 times"),
        ({"status": 429}, "status 429, 3 times"),
        ({"status": 401}, "status 401; nothing was written"),
    ],
)
def test_answers_in_the_middle_that_are_no_tiles_are_asked_for_again(
    server: MockImagery, answer: dict[str, Any], sentence: str
) -> None:
    layer = xyz_service(f"{server.url}/xyz/{{z}}/{{x}}/{{y}}.png", AREA, 0.3, 22, Access()).layer
    kept_blocks = blocks.Blocks(Path("none"), layer, None)
    server.fail("/19/", **answer)
    with pytest.raises(ImageryError, match=sentence):
        download.read_block(kept_blocks, kept_blocks.all[0], download.Pacer(None), False)
    server.failures.clear()
    server.fail("/19/", **{**answer, "times": 1})
    if "3 times" in sentence:
        data, _ = download.read_block(kept_blocks, kept_blocks.all[0], download.Pacer(None), False)
        assert data.any()


def test_a_full_disk_is_one_sentence_and_loses_nothing(
    server: MockImagery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--xyz", f"{server.url}/xyz/{{z}}/{{x}}/{{y}}.png", *bbox(), "-o", tmp_path / "map.tif", *XYZ)
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 10))
        result = run(*arguments)
    assert result.exit_code == 2 and "are needed in" in result.stderr and "free some space" in result.stderr

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    shutil.rmtree(tmp_path / ".map.tif.blocks")  # the samples were all of them
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        result = run(*arguments)
    assert result.exit_code == 2 and "the disk is full" in result.stderr
    assert not (tmp_path / "map.tif").exists()


def test_a_geotiff_that_gdal_cannot_write_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ImageryError, match="the blocks are kept"):
        cog.write_cog(tmp_path / "none.vrt", tmp_path / "map.tif", "jpeg", 90, "uint8", 1, False)


def test_a_dry_run_estimates_and_writes_nothing(server: MockImagery, tmp_path: Path) -> None:
    template = f"{server.url}/xyz/{{z}}/{{x}}/{{y}}.png"
    result = run("--xyz", template, *bbox(), "-o", tmp_path / "map.tif", *XYZ, "--json", "--dry-run")
    values = json.loads(result.stdout)
    assert values["estimate"]["requests"] == values["estimate"]["missing"] * 4 or values["estimate"]["requests"] >= 4
    assert values["estimate"]["output_bytes"] > 0 and values["zoom"] == 19
    assert not list(tmp_path.iterdir())


def test_other_files_are_not_replaced(server: MockImagery, tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text('{"mine": true}')
    template = f"{server.url}/xyz/{{z}}/{{x}}/{{y}}.png"
    result = run("--xyz", template, *bbox(), "-o", tmp_path / "map.vrt", *XYZ)
    assert result.exit_code == 2 and "map.json exists" in result.stderr
    assert (tmp_path / "map.json").read_text() == '{"mine": true}'
    assert run("--xyz", template, *bbox(), "-o", tmp_path / "map.vrt", *XYZ, "--force").exit_code == 0
    assert "map.vrt exists" in run("--xyz", template, *bbox(), "-o", tmp_path / "map.vrt", *XYZ).stderr


# Areas


@pytest.mark.parametrize(
    ("box", "sentence"),
    [
        ((-77, 39, -76, 38), "its south at or above its north"),
        ((-76, 38, -77, 39), "its west at or beyond its east"),
        ((38.8, -177.1, 38.9, -177.0), "latitude and longitude are swapped"),
        ((-277, 38, -76, 39), "is not on earth"),
        (("nan", 38, -76, 39), "is not on earth"),
        ((10, 86, 11, 87), "beyond latitude 85.05"),
    ],
)
def test_a_rectangle_that_is_none_is_one_sentence(tmp_path: Path, box: tuple[Any, ...], sentence: str) -> None:
    result = run("--xyz", "http://127.0.0.1:9/{z}/{x}/{y}.png", "--bbox", *box, "-o", tmp_path / "m.tif", *XYZ)
    assert result.exit_code == 2 and sentence in result.stderr


def test_the_area_of_a_working_directory_with_a_margin(server: MockImagery, tmp_path: Path) -> None:
    run_init = ["init", str(tmp_path), "--center", "38.89", "-77.0355", "--size", "100", "--levels", "2"]
    assert CliRunner().invoke(main, run_init).exit_code == 0
    result = run("--xyz", f"{server.url}/xyz/{{z}}/{{x}}/{{y}}.png", "--area", tmp_path / "jzi.toml", "--margin", 20,
                 "-o", tmp_path / "map.vrt", *XYZ, "--json")  # fmt: skip
    values = json.loads(result.stdout)
    assert values["width"] * values["gsd_m"] == pytest.approx(140, abs=1)
    assert values["height"] * values["gsd_m"] == pytest.approx(140, abs=1)


def test_blocks_outside_of_a_region_are_not_asked_for(server: MockImagery, tmp_path: Path) -> None:
    west, south, east, north = -77.04, 38.885, -77.03, 38.893
    triangle = {"type": "Polygon", "coordinates": [[[west, south], [east, south], [west, north], [west, south]]]}
    (tmp_path / "region.geojson").write_text(json.dumps(triangle))
    area = Area.of_region(tmp_path / "region.geojson")
    layer = xyz_service(f"{server.url}/xyz/{{z}}/{{x}}/{{y}}.png", area, 0.3, 22, Access()).layer
    inside = blocks.Blocks(tmp_path / "b", layer, area)
    every = blocks.Blocks(tmp_path / "b", layer, None)
    assert 0.4 < len(inside.all) / len(every.all) < 0.9
    assert inside.digest != every.digest


@given(
    st.floats(-1e7, 1e7), st.floats(-1e7, 1e7), st.floats(0.01, 1e3), st.integers(1, 5000), st.integers(1, 5000),
    st.floats(0, 0.9), st.floats(0, 0.9), st.floats(0.01, 1),
)  # fmt: skip
def test_a_cut_covers_the_rectangle_with_whole_pixels(
    west: float, north: float, size: float, width: int, height: int, u: float, v: float, share: float
) -> None:
    whole = Grid("EPSG:3857", west, north, size, size, width, height)
    left, top = west + u * width * size, north - v * height * size
    wanted = Bounds(left, top - share * height * size, left + share * width * size, top)
    cut = whole.cut(wanted)
    assert cut is not None
    slack = 1e-5 * size + 1e-9 * max(abs(west), abs(north))
    assert cut.bounds.west <= wanted.west + slack and cut.bounds.north >= wanted.north - slack
    assert cut.bounds.east >= min(wanted.east, whole.bounds.east) - slack
    assert cut.bounds.south <= max(wanted.south, whole.bounds.south) + slack
    assert min(cut.col, cut.row) >= 0 and cut.col + cut.width <= width and cut.row + cut.height <= height
    assert cut.bounds.west > wanted.west - size - slack or cut.col == 0


@given(st.integers(0, 3000), st.integers(0, 3000), st.integers(1, 3000), st.integers(1, 3000))
def test_blocks_tile_a_grid_on_the_tiles_of_the_service(col: int, row: int, width: int, height: int) -> None:
    grid = Grid("EPSG:3857", 0.0, 0.0, 1.0, 1.0, width, height, col, row)
    parts = list(blocks._blocks(grid, 1024))
    assert sum(block.window.width * block.window.height for block in parts) == width * height
    for block in parts:
        assert block.window.col_off == 0 or (col + block.window.col_off) % 1024 == 0
        assert block.window.row_off == 0 or (row + block.window.row_off) % 1024 == 0


# Rasters


def write_raster(
    file: Path, west: float, north: float, size: float = 1.0, side: int = 64, crs: str = "EPSG:3857", **options: Any
) -> Path:
    """A GeoTIFF of the picture."""
    with rasterio.open(file, "w", driver="GTiff", width=side, height=side, count=3, dtype="uint8", crs=crs,
                       transform=from_origin(west, north, size, size), **options) as target:  # fmt: skip
        data = np.maximum(picture(west, north, size, size, side, side), 1)
        if options.get("nodata") == 0:
            data[:, :, :10] = 0
        target.write(data)
    return file


def test_rasters_become_a_vrt_that_can_be_moved_and_a_geotiff_with_the_same_pixels(tmp_path: Path) -> None:
    (tmp_path / "sheets").mkdir()
    for index in range(4):
        write_raster(tmp_path / "sheets" / f"{index}.tif", 1000 + 64 * (index % 2), -64 * (index // 2))
    (tmp_path / "sheets" / "3.tif").unlink()
    assert run(tmp_path / "sheets", "-o", tmp_path / "map.vrt").exit_code == 0
    result = run(tmp_path / "sheets", "-o", tmp_path / "map.tif", "--compress", "deflate")
    assert result.exit_code == 0, result.stderr
    shutil.copytree(tmp_path, tmp_path / "moved")
    shutil.rmtree(tmp_path / "sheets")
    moved = tmp_path / "moved"
    with rasterio.open(moved / "map.vrt") as vrt, rasterio.open(moved / "map.tif") as tif:
        assert (vrt.read() == tif.read()).all() and vrt.transform == tif.transform
        assert (vrt.dataset_mask() == tif.dataset_mask()).all()
        assert not tif.dataset_mask()[64:, 64:].any() and tif.dataset_mask()[:64].all()
    made = CliRunner().invoke(main, ["init", str(moved), "--map", str(moved / "map.vrt")])  # without --remote
    assert made.exit_code == 0, made.stderr


def test_pixels_without_data_do_not_hide_those_below(tmp_path: Path) -> None:
    files = [write_raster(tmp_path / "a.tif", 1000, 0, nodata=0), write_raster(tmp_path / "b.tif", 990, 0, nodata=0)]
    mosaic = Mosaic([str(file) for file in files], None)
    data, valid = pixels(mosaic)
    assert run(*files, "-o", tmp_path / "map.vrt").exit_code == 0
    with rasterio.open(tmp_path / "map.vrt") as vrt:
        assert (vrt.dataset_mask() == valid).all()
        assert (vrt.read() == data).all()
    assert not valid[:, :10].any() and valid[:, 10:].all()
    assert (data[:, :, 10:20] == np.maximum(picture(1000, 0, 1, 1, 10, 64), 1)).all()  # of the lower one


@pytest.mark.parametrize(
    ("others", "sentence"),
    [
        ({"crs": "EPSG:32618"}, "1 with EPSG:3857 (a.tif), 1 with EPSG:32618 (b.tif); nothing is reprojected"),
        ({"size": 0.5}, "differ in pixel size: 1 with 1 x 1 (a.tif), 1 with 0.5 x 0.5 (b.tif)"),
    ],
)
def test_rasters_that_differ_are_named(tmp_path: Path, others: dict[str, Any], sentence: str) -> None:
    write_raster(tmp_path / "a.tif", 1000, 0)
    write_raster(tmp_path / "b.tif", 1064, 0, **others)
    result = run(tmp_path / "*.tif", "-o", tmp_path / "map.vrt")
    assert result.exit_code == 2 and sentence in result.stderr
    if "crs" in others:
        assert run(tmp_path / "*.tif", "-o", tmp_path / "map.vrt", "--crs", "EPSG:32618").exit_code == 0


def test_rasters_elsewhere_are_refused_with_where_they_are(tmp_path: Path) -> None:
    file = write_raster(tmp_path / "a.tif", -8_575_000, 4_706_000)
    result = run(file, "--bbox", 77.03, 38.88, 77.04, 38.9, "-o", tmp_path / "m.vrt")
    assert result.exit_code == 2
    assert "none of the 1 rasters has imagery in the area" in result.stderr and "longitude -77.0" in result.stderr


def test_a_list_names_files_and_urls(server: MockImagery, tmp_path: Path) -> None:
    server.files = tmp_path
    write_raster(tmp_path / "a.tif", 1000, 0)
    write_raster(tmp_path / "b.tif", 1064, 0)
    (tmp_path / "list.txt").write_text(f"# sheets\na.tif\n\n{server.url}/files/b.tif\n")
    result = run(tmp_path / "list.txt", "-o", tmp_path / "map.vrt")
    assert result.exit_code == 0, result.stderr
    assert "--remote" in result.stdout
    (tmp_path / "evil.tif").write_text(
        '<VRTDataset rasterXSize="1" rasterYSize="1"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f"<SourceFilename>{tmp_path / 'a.tif'}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    result = run(f"{server.url}/files/evil.tif", "-o", tmp_path / "other.vrt")
    assert result.exit_code == 2 and "cannot be read as a raster" in result.stderr


# STAC


def add_item(
    server: MockImagery,
    name: str,
    date: str,
    west: float,
    collection: str = "naip",
    asset: str = "image",
    **properties: Any,
) -> None:
    """An item whose asset is 64 m of the picture, from some metres of Web Mercator."""
    assert server.files
    origin = -8_575_000.0, 4_706_000.0
    write_raster(server.files / f"{name}.tif", origin[0] + west, origin[1])
    box = [origin[0] + west, origin[1] - 64, origin[0] + west + 64, origin[1]]
    west_deg, south, east, north = rasterio.warp.transform_bounds("EPSG:3857", "EPSG:4326", *box)
    ring = [[west_deg, south], [east, south], [east, north], [west_deg, north], [west_deg, south]]
    server.items.append({
        "type": "Feature", "stac_version": "1.0.0", "id": name, "collection": collection, "links": [],
        "geometry": {"type": "Polygon", "coordinates": [ring]}, "bbox": [west_deg, south, east, north],
        "properties": {"datetime": f"{date}T00:00:00Z", "proj:epsg": 3857, **properties},
        "stac_extensions": [], "assets": {asset: {"href": f"{server.url}/files/{name}.tif", "type": "image/tiff"}},
    })  # fmt: skip


@pytest.fixture
def stac(server: MockImagery, tmp_path: Path) -> MockImagery:
    server.files = tmp_path / "files"
    server.files.mkdir()
    add_item(server, "old", "2019-06-01", 0)
    add_item(server, "older", "2018-06-01", 0)  # nothing that newer ones do not show
    add_item(server, "new", "2022-06-01", 32)
    add_item(server, "cloudy", "2023-06-01", 0, **{"eo:cloud_cover": 80})
    return server


STAC_AREA = Area(
    Bounds(*rasterio.warp.transform_bounds("EPSG:3857", "EPSG:4326", -8_574_998, 4_705_938, -8_574_906, 4_705_998))
)


def test_the_newest_items_that_cover_the_area_are_chosen_over_all_pages(stac: MockImagery) -> None:
    found = find_imagery(f"{stac.url}/stac", "naip", STAC_AREA, max_cloud=10)
    assert [url.rpartition("/")[2] for url in found.urls] == ["new.tif", "old.tif"]
    assert (found.found, found.dates, found.asset) == (4, ("2022-06-01", "2019-06-01"), "image")
    assert found.covered == pytest.approx(1, abs=1e-3)
    assert (found.terms.licence, found.terms.provider) == ("CC-BY-4.0", "USDA")
    assert stac.count("/stac/search") == 2
    only = find_imagery(f"{stac.url}/stac", "naip", STAC_AREA, when="2019-01-01/2019-12-31", max_cloud=10)
    assert only.dates == ("2019-06-01",) and only.covered == pytest.approx(0.66, abs=0.05)


def test_items_become_a_geotiff_with_dates_and_providers(stac: MockImagery, tmp_path: Path) -> None:
    result = run("--stac", f"{stac.url}/stac", "--collection", "naip", *bbox(STAC_AREA.bounds), "--max-cloud", 10, "-o",
                 tmp_path / "map.tif", "--compress", "deflate")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert_shows(tmp_path / "map.tif", share=0.95)  # zeros of the picture are ones in the files
    record = Source.model_validate_json((tmp_path / "map.json").read_bytes())
    assert record.count == 2 and record.attribution == "USDA" and record.details["dates"] == "2019-06-01 to 2022-06-01"


def test_pixels_of_ten_metres_are_called_too_coarse(stac: MockImagery, tmp_path: Path) -> None:
    assert stac.files
    add_item(stac, "s2", "2023-06-01", 0, "sentinel-2-l2a", "visual")
    write_raster(stac.files / "s2.tif", -8_575_000, 4_706_000, size=10)
    result = run("--stac", f"{stac.url}/stac", "--collection", "sentinel-2-l2a", *bbox(STAC_AREA.bounds), "-o",
                 tmp_path / "map.vrt")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "warning: 7.78 m per pixel is far too coarse" in result.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--collection", "none"], "status 404"),
        (["--collection", "naip", "--datetime", "2001"], "has no items of 'naip' in the area"),
        (["--collection", "naip", "--datetime", "yesterday"], "--datetime"),
        (["--collection", "naip", "--asset", "nir"], "no asset nir in the area: give --asset, one of image"),
        (["--collection", "naip", "--crs", "EPSG:26918"], "no items in EPSG:26918: they are in EPSG:3857"),
        ([], "--stac needs --collection"),
    ],
)
def test_a_search_without_a_result_is_one_sentence(
    stac: MockImagery, tmp_path: Path, options: list[str], sentence: str
) -> None:
    result = run("--stac", f"{stac.url}/stac", *options, *bbox(STAC_AREA.bounds), "-o", tmp_path / "map.vrt")
    assert result.exit_code == 2 and sentence in result.stderr
    assert not (tmp_path / "map.vrt").exists()


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[1, 2",
        b'{"type": "FeatureCollection", "features": [{"type": "Feature"}], "links": []}',
        b'{"type": "FeatureCollection", "features": [{}], "links": [{"rel": "next", "href": "/etc/passwd"}]}',
    ],
    ids=["html", "half", "empty-item", "file"],
)
def test_an_api_that_answers_with_something_else_is_one_sentence(stac: MockImagery, body: bytes) -> None:
    stac.fail("/stac/search", body=body, status=200)
    with pytest.raises(JziError, match="the STAC API at"):
        find_imagery(f"{stac.url}/stac", "naip", STAC_AREA)


def test_assets_that_need_credentials_are_named(stac: MockImagery) -> None:
    for item in stac.items:
        item["assets"]["image"]["href"] = "s3://bucket/a.tif"
    with pytest.raises(ImageryError, match=r"cannot be had over https \(s3\)"):
        find_imagery(f"{stac.url}/stac", "naip", STAC_AREA)


# Capabilities


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><WMS_Capabilities>&x;</WMS_Capabilities>', "entities"),
        (b"<html><body>Log in</body></html>", "web page"),
        (
            b"<ServiceExceptionReport><ServiceException>no key</ServiceException></ServiceExceptionReport>",
            "refuses: no key",
        ),
        (b"<WMS_Capabilities>", "no XML"),
        (b"<feed/>", "'feed', not with capabilities"),
        ("<WMS_Capabilities/>".encode("utf-16"), "not UTF-8"),
    ],
    ids=["entity", "html", "exception", "half", "other", "utf-16"],
)
def test_capabilities_that_are_none_are_one_sentence(content: bytes, sentence: str) -> None:
    with pytest.raises(ImageryError, match=sentence):
        parse_capabilities(content, "the WMS")


def test_the_document_type_of_old_capabilities_is_not_fetched() -> None:
    content = b'<!DOCTYPE WMT_MS_Capabilities SYSTEM "http://127.0.0.1:9/a.dtd"><WMT_MS_Capabilities version="1.1.1"/>'
    assert parse_capabilities(content, "the WMS").get("version") == "1.1.1"
