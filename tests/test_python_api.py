"""jzi from Python: what photos may be, how locations show themselves, and the cache as a data set of torch."""

from __future__ import annotations

import io
import json
import re
import runpy
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import jzi as package
from jzi.errors import ConfigError, PhotoError
from jzi.tests.children import run_python
from jzi.tests.conftest import AREA, write_photo

EXAMPLES = Path(package.__file__).parent / "examples"


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.fixture
def location(locator: package.Locator, pixels: np.ndarray) -> package.Location:
    return locator.locate(pixels, name="<b>photo</b>.jpg")


def test_completion_offers_every_public_name() -> None:
    assert {"load", "Location", "export", "__version__"} <= set(dir(package))


# Photos


@pytest.mark.parametrize(
    "convert",
    [
        lambda pixels: Image.fromarray(pixels),
        lambda pixels: pixels / 255,
        lambda pixels: (pixels / 255).astype(np.float32),
        lambda pixels: np.asfortranarray(pixels),
        lambda pixels: torch.from_numpy(pixels).permute(2, 0, 1),
        lambda pixels: torch.from_numpy(pixels).permute(2, 0, 1).float() / 255,
        lambda pixels: (torch.from_numpy(pixels).permute(2, 0, 1).float() / 255).requires_grad_(),
        lambda pixels: png(pixels),
        lambda pixels: bytearray(png(pixels)),
        lambda pixels: io.BytesIO(png(pixels)),
    ],
)
def test_a_photo_in_any_form_is_the_same_photo(
    locator: package.Locator, pixels: np.ndarray, convert: Callable[[np.ndarray], Any]
) -> None:
    expected = locator.encode([pixels])[1]
    torch.testing.assert_close(locator.encode([convert(pixels)])[1], expected)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("photo", "sentence"),
    [
        (np.zeros((3, 8, 8), np.uint8), r"has the shape \(3, 8, 8\): as an array, it must be \(height, width, 3\)"),
        (np.zeros((8, 8), np.uint8), r"has the shape \(8, 8\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), "give several photos as a list"),
        (np.zeros((0, 8, 3), np.uint8), r"has the shape \(0, 8, 3\)"),
        (np.zeros((8, 8, 3), np.int64), "are of type int64: give uint8, or floats from 0 to 1"),
        (np.full((8, 8, 3), 255.0), "reach from 255 to 255"),
        (np.full((8, 8, 3), np.nan), "reach from nan to nan"),
        (torch.zeros(8, 8, 3), r"as a tensor, it must be \(3, height, width\)"),
        (torch.full((3, 8, 8), -1.0), "undo the normalisation"),
        (17, "cannot be of type int: give a path"),
        (None, "cannot be of type NoneType"),
        (io.StringIO("text"), 'open it with mode "rb"'),
        (io.BytesIO(b"no photo"), "is not a photo in a format that is supported"),
    ],
)
def test_what_is_no_photo_is_refused_in_a_sentence(locator: package.Locator, photo: Any, sentence: str) -> None:
    with pytest.raises(PhotoError, match=sentence) as error:
        locator.locate(photo)
    assert "\n" not in str(error.value)


def test_a_list_of_photos_gives_a_list_of_locations(
    locator: package.Locator, pixels: np.ndarray, tmp_path: Path
) -> None:
    path = write_photo(tmp_path / "photo.jpg")
    located = locator.locate([path, pixels, str(path)])
    assert [each.photo for each in located] == [str(path), "photo", str(path)]
    assert locator.locate([]) == []
    with pytest.raises(ConfigError, match="names one photo, but a list of 2"):
        locator.locate([pixels, pixels], name="x")


def test_an_array_that_is_no_photo_does_not_stop_the_others(locator: package.Locator, pixels: np.ndarray) -> None:
    kinds = [type(each).__name__ for each in locator.locate_all([pixels, pixels[..., 0], 3, pixels])]
    assert kinds == ["Location", "NotLocated", "NotLocated", "Location"]


def test_one_path_where_several_photos_are_expected_is_not_read_letter_by_letter(locator: package.Locator) -> None:
    with pytest.raises(PhotoError, match="several photos are expected"):
        list(locator.locate_all("photo.jpg"))


def test_an_open_file_has_the_name_of_its_file(locator: package.Locator, tmp_path: Path) -> None:
    path = write_photo(tmp_path / "photo.jpg")
    with path.open("rb") as file:
        assert locator.locate(file).photo == str(path)


# Locations


def test_a_location_is_one_short_line(location: package.Location) -> None:
    text = repr(location)
    assert re.fullmatch(r"Location\('<b>photo</b>.jpg': 48\.\d{6}, 16\.\d{6}, \d+\.\d % within 50 m\)", text)


def test_a_location_is_a_geojson_feature(location: package.Location) -> None:
    feature = json.loads(json.dumps(location.__geo_interface__, allow_nan=False))
    assert feature["type"] == "Feature"
    assert feature["geometry"]["coordinates"] == pytest.approx([location.longitude, location.latitude], abs=1e-6)
    assert feature["properties"]["confidence"] == pytest.approx(location.confidence, abs=1e-5)
    from shapely.geometry import shape

    assert shape(feature["geometry"]).within(shape(square()))


def square() -> dict[str, Any]:
    bounds = AREA.bounds
    west, south, east, north = bounds
    latitude, longitude = AREA.unproject([west, east, east, west], [south, south, north, north])
    ring = [[float(x), float(y)] for x, y in zip(longitude, latitude, strict=True)]
    return {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}


def test_geojson_of_a_location_is_what_export_writes(location: package.Location, tmp_path: Path) -> None:
    package.export.write_geojson(str(tmp_path / "a.geojson"), [location])
    assert json.loads((tmp_path / "a.geojson").read_text()) == json.loads(json.dumps(location.to_geojson()))


class Text(HTMLParser):
    """Tags that are open at the end, and those of scripts and the network."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.loaded += [tag] if tag in ("script", "iframe", "img", "link", "b>") else []
        self.loaded += [name for name, _ in attributes if name.startswith("on") or name == "src"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_notebook_shows_a_map_without_scripts_and_network(location: package.Location) -> None:
    html = location._repr_html_()
    parser = Text()
    parser.feed(html)
    assert parser.open == [] and parser.loaded == []
    assert "&lt;b&gt;photo&lt;/b&gt;.jpg" in html and "<b>photo</b>" not in html
    assert f"{location.latitude:.6f}" in html and "<svg" in html and "openstreetmap.org" in html
    assert len(html) < 60_000


def test_an_answer_that_is_withheld_has_no_position_anywhere(locator: package.Locator, pixels: np.ndarray) -> None:
    unsure = locator.locate(pixels, package.LocateOptions(abstain=1.0))
    at = re.compile(r"48\.\d\d|16\.\d\d")
    assert not at.search(repr(unsure)) and not at.search(unsure._repr_html_())
    assert unsure.__geo_interface__["geometry"] is None
    texts = json.dumps([unsure.__geo_interface__, unsure.to_geojson()])
    assert not at.search(texts)


# The cache, and the package


@pytest.fixture(scope="session")
def cache_folder(prepare: Callable[..., Path], area_folder: Path) -> Path:
    return prepare(area_folder, "dataset", "encode-map", "encode-queries") / "features.zarr"


def test_the_cache_is_a_data_set_of_torch(cache_folder: Path) -> None:
    cache = package.FeatureCache.open(str(cache_folder))
    table = package.TileTable(cache.read_map())
    train = package.ZoomDataset.load(cache, table, "train")
    assert isinstance(train, torch.utils.data.Dataset)
    item = train[len(train) - 1]
    assert item["query"].shape == (table.width,) and item["query"].dtype == torch.float32
    path = table.pyramid.paths(item["latitude"].numpy(), item["longitude"].numpy())
    assert item["actions"].tolist() == path.ravel().tolist()
    assert item["tiles"].tolist() == table.tiles_along(path.reshape(1, -1))[0].tolist()
    batch = next(iter(torch.utils.data.DataLoader(train, batch_size=4)))
    assert batch["actions"].shape == (4, table.pyramid.levels)
    assert len([train[index] for index in range(len(train))]) == len(train)


def test_the_example_trains_on_the_cache(
    cache_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train_your_own.py", str(cache_folder), "--epochs", "60"])
    runpy.run_path(str(EXAMPLES / "train_your_own.py"), run_name="__main__")
    text = capsys.readouterr().out
    losses = [float(each) for each in re.findall(r"loss ([\d.]+)", text)]
    assert losses[-1] < losses[0]
    assert re.search(r"test: [\d.]+% within 40 m", text)


def test_export_is_a_name_of_the_package_and_importing_it_loads_nothing_heavy() -> None:
    code = (
        "import sys, jzi\njzi.export\n"
        "print(sorted({'torch', 'numpy', 'matplotlib', 'rasterio', 'huggingface_hub'} & set(sys.modules)))\n"
        "print(callable(jzi.export.write_geojson), 'matplotlib' in sys.modules)"
    )
    assert run_python(code).output.split("\n")[:2] == ["[]", "True False"]
