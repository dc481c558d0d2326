"""The page of the service and the page of `jzi locate --map` in a real browser, as wide as a phone and as a desktop."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from fastapi.testclient import TestClient
from PIL import Image

from jzi.encode.rasters.imagery import Imagery
from jzi.export.gallery.page import write_cards
from jzi.export.gallery.pool import ImagePool
from jzi.export.page import write_page
from jzi.locate.answer.location import LocateOptions, to_locations
from jzi.locate.posterior import Posterior
from jzi.serve.app import make_app
from jzi.tests.children import wait_until

PHONE, DESKTOP = (390, 844), (1280, 800)
CREDIT = "© <b>Town</b> & Co"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser without animations, which records its requests; skipped where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver")
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (binary and driver):
        pytest.skip("chromium and chromedriver are not here")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        "disable-background-networking",
        "disable-component-update",
        "force-prefers-reduced-motion",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture
def browser(chromium: Any) -> Iterator[Any]:
    """The browser, which has to send no request to others and to report no error."""
    for kind in ("browser", "performance"):
        chromium.get_log(kind)
    yield chromium
    errors = [line["message"] for line in chromium.get_log("browser") if line["level"] == "SEVERE"]
    assert [line for line in errors if "422" not in line] == []
    messages = [json.loads(line["message"])["message"] for line in chromium.get_log("performance")]
    sent = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    assert [url for url in sent if not url.startswith(("http://127.0.0.1:", "file:", "data:", "blob:"))] == []
    chromium.get("about:blank")


def resize(browser: Any, size: tuple[int, int], density: float = 1) -> None:
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": density, "mobile": size == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def find(browser: Any, selector: str) -> list[Any]:
    return list(browser.find_elements("css selector", selector))


def wait(browser: Any, condition: Callable[[Any], Any]) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(browser, 60).until(condition)


def above_the_fold(browser: Any, selector: str) -> bool:
    """Whether an element is seen as a whole without scrolling."""
    script = "const at = document.querySelector(arguments[0]).getBoundingClientRect(); return at.width > 0 && "
    script += "at.height > 0 && at.left >= 0 && at.top >= 0 && at.right <= innerWidth && at.bottom <= innerHeight"
    return bool(browser.execute_script(script, selector))


def fits(browser: Any) -> bool:
    script = "const main = document.querySelector('main'), page = document.documentElement;"
    script += "return page.scrollWidth <= innerWidth && main.scrollWidth <= main.clientWidth"
    return bool(browser.execute_script(script))


def legend(browser: Any) -> list[str]:
    return [item.text for item in find(browser, "#legend li")]


def center(browser: Any) -> list[float]:
    return list(browser.execute_script("const at = map.getCenter(); return [at.lat, at.lng]"))


# The gallery


@pytest.mark.parametrize("size", [PHONE, DESKTOP])
def test_photos_of_a_gallery_keep_their_shape_and_none_is_hidden_at_first(browser, tmp_path, pyramid, size) -> None:
    shapes = {"tall": (300, 400), "wide": (900, 100), "square": (50, 50)}
    pool, cards = ImagePool(), []
    for name, shape in shapes.items():
        photo = pool.add(Image.new("RGB", shape, "red"), 480)
        card = {"name": name, "rank": 1, "error_m": 1.0, "error": "1 m", "confidence": -0.1, "photo": photo}
        cards.append(card | {"shape": shape, "steps": [], "wrong": None, "worst": True})
    write_cards(tmp_path / "a.html", cards, pool, (), title="a", photos=3, median="1 m", pairs=True)
    resize(browser, size)
    browser.get((tmp_path / "a.html").as_uri())
    assert fits(browser)
    script = "return [...document.querySelectorAll('.photo .image')].map(e => [e.clientWidth, e.clientHeight])"
    for (width, height), (wide, high) in zip(browser.execute_script(script), shapes.values(), strict=True):
        assert 20 < height <= 421 and width / height == pytest.approx(wide / high, rel=0.05)


# The exported map


@pytest.fixture
def export(pyramid, tmp_path: Path, take_photo, town_raster) -> Callable[..., str]:
    """Writes the page of some posteriors, a few of them withheld, and returns its address."""

    def write(
        *cells: tuple[float, float], abstain: tuple[float, ...] = (), residual: float = 0.0, inside: float | None = None
    ) -> str:
        located = []
        for index, shares in enumerate(cells):
            row, col = np.array([12, 50]), np.array([10, 44])
            posterior = Posterior.from_cells(pyramid, row, col, np.array(shares) * (1 - residual))
            (location,) = to_locations(posterior, LocateOptions(), [f"/home/someone/trip/{index}.jpg"])
            threshold = abstain[index] if abstain else 0.0
            location = replace(location, abstain=threshold, inside=inside, notes=("a <b>remark</b>",))
            located.append((take_photo(tmp_path / f"{index}.jpg"), location, None))
        with Imagery([town_raster], pyramid, attribution=CREDIT) as imagery:
            write_page(tmp_path / "map.html", located, imagery)
        return f"file://{tmp_path}/map.html"

    return write


@pytest.mark.parametrize("size", [PHONE, DESKTOP])
def test_map_and_answer_are_above_the_fold_and_a_place_moves_the_map_that_is_seen(browser, export, size) -> None:
    resize(browser, size)
    browser.get(export((0.7, 0.3)))
    assert above_the_fold(browser, "#map") and above_the_fold(browser, "#place") and fits(browser)
    assert "70.0 % within 50 m" in find(browser, "#place")[0].text
    before = center(browser)
    other = find(browser, ".candidates button")[1]
    browser.execute_script("arguments[0].scrollIntoView(); arguments[0].click()", other)
    assert above_the_fold(browser, "#map"), "the map has left the screen"
    place = [float(each) for each in find(browser, "#place .answer")[0].text.split(", ")]
    assert center(browser) == pytest.approx(place, abs=1e-4) and center(browser) != pytest.approx(before, abs=1e-4)
    assert fits(browser)


def test_candidates_are_reached_by_keyboard_and_escape_goes_back(browser, export) -> None:
    from selenium.webdriver.common.keys import Keys

    resize(browser, DESKTOP)
    browser.get(export((0.7, 0.3)))
    first, _ = find(browser, ".candidates button")
    first.send_keys(Keys.ARROW_DOWN)
    assert find(browser, "#place .eyebrow")[0].text.upper() == "CANDIDATE 2 OF 2"
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert find(browser, "#place .eyebrow")[0].text.upper() == "ANSWER"


def test_the_legend_lists_what_is_drawn_and_nothing_else(browser, export) -> None:
    resize(browser, DESKTOP)
    browser.get(export((0.7, 0.3), residual=0.2))
    assert "95 % radius unknown: 20.0 % of the probability was not searched" in find(browser, "#place")[0].text
    every = {"answer", "other candidate", "probability, from low to high", "steps of the zoom"}
    assert every <= set(legend(browser)) and "position that the photo records" not in legend(browser)
    browser.execute_script("map.removeLayer(drawn)")
    assert legend(browser) == ["probability, from low to high"]
    browser.execute_script("map.removeLayer(heat)")
    assert legend(browser) == []


def test_the_overview_says_which_photos_are_probably_from_elsewhere(browser, export) -> None:
    resize(browser, PHONE)
    for inside, elsewhere in ((None, False), (0.6, False), (0.4, True)):
        browser.get(export((0.9, 0.1), (0.8, 0.2), abstain=(0.0, 1.0), inside=inside))
        notes = [each.text for each in find(browser, "ol.overview .note")]
        assert [each.endswith(", probably from elsewhere") for each in notes] == [elsewhere] * 2 and fits(browser)


def test_several_photos_have_an_overview_with_names_of_files_alone(browser, export) -> None:
    resize(browser, PHONE)
    address = export((0.9, 0.1), (0.8, 0.2), (0.6, 0.4), abstain=(0.0, 0.0, 0.7))
    assert "/home/someone" not in Path(address.removeprefix("file://")).read_text()
    browser.get(address)
    assert len(find(browser, "#map .number")) == 2 and fits(browser)
    assert "2 located, 1 not sure" in find(browser, "#about")[0].text
    find(browser, "ol.overview button")[2].click()
    assert find(browser, "#place .answer")[0].text == "Not sure" and legend(browser) == []
    assert not find(browser, "#map path") and find(browser, ".remarks li")[0].text == "a <b>remark</b>"
    find(browser, "#navigation button")[1].click()
    assert find(browser, "#name")[0].text == "1.jpg"


def test_the_credit_is_text_and_tiles_are_finer_than_the_picture_of_the_area(
    browser, export, pyramid, town_raster, monkeypatch
) -> None:
    monkeypatch.setattr("jzi.export.map_tiles.BACKGROUND", 256)
    resize(browser, DESKTOP)
    browser.get(export((0.7, 0.3)))
    assert CREDIT in find(browser, ".leaflet-control-attribution")[0].text
    assert not find(browser, ".leaflet-control-attribution b")
    wait(browser, lambda page: len(find(page, "canvas.leaflet-tile-loaded")) > 3)
    seen = "const tile = document.querySelector('canvas.leaflet-tile-loaded').getContext('2d');"
    assert any(browser.execute_script(seen + "return [...tile.getImageData(128, 128, 1, 1).data]"))


@pytest.mark.parametrize(("density", "side"), [(1, 256), (3, 128)])
def test_dense_screens_show_tiles_of_the_next_zoom(browser, export, monkeypatch, density, side) -> None:
    monkeypatch.setattr("jzi.export.map_tiles.BACKGROUND", 256)
    resize(browser, PHONE, density)
    browser.get(export((0.7, 0.3)))
    browser.execute_script("map.setZoom(data.tiles.low, {animate: false})")
    wait(browser, lambda page: find(page, "canvas.leaflet-tile-loaded"))
    tile = "const tile = document.querySelector('canvas.leaflet-tile-loaded');"
    assert browser.execute_script(f"{tile} return [tile.width, tile.offsetWidth]") == [256, side]
    browser.execute_script("map.setZoom(data.tiles.low - 1, {animate: false})")
    assert bool(find(browser, "canvas.leaflet-tile")) == (density > 1)


def test_downloads_hold_what_the_files_of_the_command_hold(browser, export) -> None:
    resize(browser, DESKTOP)
    browser.get(export((0.7, 0.3)))
    browser.execute_script("window.saved = []; saveFile = (name, content) => saved.push([name, content])")
    for button in find(browser, "#about .actions button"):
        if button.text in ("GeoJSON", "Heat map"):
            button.click()
    (first, geojson), (second, raster) = browser.execute_script(
        "return saved.map(([name, content]) => [name, typeof content === 'string' ? content : [...content]])"
    )
    assert (first, second) == ("0.geojson", "0-heatmap.tif")
    assert {each["properties"]["kind"] for each in json.loads(geojson)["features"]} >= {"answer", "candidate", "tile"}
    with rasterio.MemoryFile(bytes(raster)) as file, file.open() as heat:
        assert heat.read(1).sum() == pytest.approx(1)


# The page of the service


@pytest.fixture
def server(locator, town_raster, pyramid, monkeypatch) -> Iterator[str]:
    """The service on a port of its own, with tiles."""
    import uvicorn

    monkeypatch.setattr("jzi.export.map_tiles.BACKGROUND", 256)
    with Imagery([town_raster], pyramid) as imagery, TestClient(make_app(locator, imagery)) as client:
        server = uvicorn.Server(uvicorn.Config(client.app, port=0, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        wait_until(lambda: server.started)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        server.should_exit = server.force_exit = True  # connections of the browser may be open
        wait_until(lambda: not thread.is_alive())


@pytest.fixture
def photo(photo_folder: Path) -> Path:
    return photo_folder / "day0" / "000.jpg"


def open_page(browser: Any, server: str, size: tuple[int, int]) -> None:
    resize(browser, size)
    browser.get(server)
    wait(browser, lambda page: find(page, "#file")[0].is_enabled())


@pytest.mark.parametrize("size", [PHONE, DESKTOP])
def test_a_person_gives_a_photo_and_sees_the_answer(server, browser, photo, tmp_path, pyramid, size) -> None:
    open_page(browser, server, size)
    assert above_the_fold(browser, "#map") and above_the_fold(browser, "#drop") and fits(browser)
    find(browser, "#file")[0].send_keys(str(photo))
    wait(browser, lambda page: find(page, ".candidates button"))
    assert above_the_fold(browser, "#map") and above_the_fold(browser, "#place") and fits(browser)
    assert len(find(browser, ".zoom figure")) == pyramid.levels
    browser.execute_script("map.setView(data.bounds[0], data.tiles.high, {animate: false})")  # a random answer is vague
    wait(browser, lambda page: find(page, "canvas.leaflet-tile-loaded"))
    (tmp_path / "no.jpg").write_text("no image")
    find(browser, "#file")[0].send_keys(str(tmp_path / "no.jpg"))
    wait(browser, lambda page: find(page, "#about .error"))
    assert "not a photo" in find(browser, "#about .error")[0].text and not find(browser, ".candidates")
    wait(browser, lambda page: not find(page, "#status")[0].text)
    assert find(browser, "body")[0].text.lower().count("not located") == 1 and fits(browser)
    assert find(browser, "#about .error")[0].get_attribute("role") == "alert"


def test_several_photos_are_located_one_after_the_other(server, browser, photo, tmp_path) -> None:
    other = shutil.copy(photo, tmp_path / "other.jpg")
    open_page(browser, server, PHONE)
    find(browser, "#file")[0].send_keys(f"{photo}\n{other}")
    wait(browser, lambda page: page.execute_script("return entries.length === 2 && entries.every(each => each.page)"))
    assert len(find(browser, "ol.overview button")) == 2 and len(find(browser, "#map .number")) == 2
    assert fits(browser)


def test_a_person_clicks_on_the_map_to_search_near_a_point(server, browser, photo) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    open_page(browser, server, PHONE)
    browser.execute_script(
        "window.posted = []; const open = XMLHttpRequest.prototype.open; XMLHttpRequest.prototype.open = "
        "function (method, url) { posted.push(url); open.call(this, method, url); }"
    )
    find(browser, "#near")[0].click()
    find(browser, "#file")[0].send_keys(str(photo))
    wait(browser, lambda page: "Click on the map" in find(page, "#status")[0].text)  # the photo waits for the point
    ActionChains(browser).move_to_element(find(browser, "#map")[0]).click().perform()
    wait(browser, lambda page: find(page, ".candidates"))
    (url,) = browser.execute_script("return posted")
    assert "near=48." in url and "within=200" in url and "the photo is searched in here" in legend(browser)
    assert find(browser, "#point")[0].text.startswith("of 48.")
    change = "arguments[0].value = -1; arguments[0].dispatchEvent(new Event('change'))"
    browser.execute_script(change, find(browser, "#within")[0])
    assert len(browser.execute_script("return posted")) == 1
    browser.execute_script("arguments[0].click()", find(browser, "#near")[0])  # off: everywhere again
    wait(browser, lambda page: len(page.execute_script("return posted")) == 2)
    assert "near" not in browser.execute_script("return posted")[-1]
