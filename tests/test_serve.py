"""The service: what it answers, and what it refuses."""

from __future__ import annotations

import asyncio
import io
import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from jzi.encode.rasters.imagery import Imagery
from jzi.errors import ConfigError, PhotoError
from jzi.locate.answer.fix import FineGrid, Fix
from jzi.locate.answer.location import Candidate, LocateOptions
from jzi.locate.locator import Locator
from jzi.serve.app import Limits, make_app
from jzi.serve.batch import BatchLocator
from jzi.serve.queue import Job
from jzi.store.geometry.pyramid import Pyramid

LOCAL = "http://localhost"


@pytest.fixture
def client(locator, town_raster, pyramid) -> Iterator[TestClient]:
    with Imagery([town_raster], pyramid) as imagery:
        app = make_app(locator, imagery, Limits(megabytes=0.5, megapixels=1.0))
        with TestClient(app, LOCAL) as client:
            yield client


@pytest.fixture
def photo(photo_folder: Path) -> Path:
    return photo_folder / "day0" / "000.jpg"


def post(client: TestClient, data: bytes, name: str = "photo.jpg", **query: object):
    return client.post("/locate", files={"photo": (name, data)}, params=query)


def test_a_photo_is_answered_as_the_locator_answers_it(client, locator, photo) -> None:
    answer = post(client, photo.read_bytes(), top=3, radius=80).json()
    expected = locator.locate(photo, LocateOptions(top=3, radius=80.0), name="photo.jpg").to_dict()
    assert {name: answer[name] for name in expected} == json.loads(json.dumps(expected))
    assert answer["sure"] is True and answer["notes"] == [] and "page" not in answer
    detailed = post(client, photo.read_bytes(), details=True).json()["page"]
    assert len(detailed["zoom"]) == 3 and detailed["heat"]["image"].startswith("data:image/webp")


def test_a_service_withholds_answers_that_are_not_sure(locator, photo) -> None:
    with TestClient(make_app(locator, limits=Limits(abstain=1.0)), LOCAL) as client:
        answer = post(client, photo.read_bytes(), details=True).json()
        assert post(client, photo.read_bytes(), abstain=0).json()["sure"]
        assert post(client, photo.read_bytes(), abstain=2).status_code == 422
    assert (answer["sure"], answer["latitude"], answer["candidates"]) == (False, None, [])
    page = answer["page"]
    assert (page["answer"], page["heat"], page["zoom"], page["features"]) == ("not sure", None, [], [])


def test_photos_that_are_asked_alike_are_located_together(locator, photo, monkeypatch) -> None:
    sizes: list[int] = []
    locate = Locator.locate_embeddings

    def locate_embeddings(self, query, *arguments):
        sizes.append(len(query))
        return locate(self, query, *arguments)

    monkeypatch.setattr(Locator, "locate_embeddings", locate_embeddings)
    data, finished = photo.read_bytes(), dict[str, object]()

    class Request(Job):
        def finish(self, result) -> None:
            finished[self.name] = result

    async def answer() -> None:
        circle = (float(locator.pyramid.unproject(0.0, 0.0)[0]), float(locator.pyramid.unproject(0.0, 0.0)[1]))
        options, other = LocateOptions(top=3), LocateOptions(top=2)
        jobs = [Request(data, f"{number}", options) for number in range(3)]
        jobs += [Request(data, "other", other), Request(b"broken", "broken", options)]
        jobs += [Request(data, "prior", options, circle, 100.0), Request(data, "refused", options, circle[::-1], 100.0)]
        BatchLocator(locator, None, Limits())(jobs)

    asyncio.run(answer())
    assert sorted(sizes) == [1, 1, 3]
    assert isinstance(finished.pop("broken"), PhotoError) and isinstance(finished.pop("refused"), ConfigError)
    alone = locator.locate(photo, LocateOptions(top=3), name="1").to_dict()
    assert json.loads(json.dumps(finished["1"])) == json.loads(json.dumps(alone)) and len(finished) == 5


def test_a_photo_that_cannot_be_located_does_not_affect_the_others(locator, photo, monkeypatch) -> None:
    locate = Locator.locate_embeddings

    def locate_embeddings(self, query, options, names, *arguments):
        if "1" in names:
            raise ConfigError("this one not")
        return locate(self, query, options, names, *arguments)

    monkeypatch.setattr(Locator, "locate_embeddings", locate_embeddings)
    finished = dict[str, object]()

    class Request(Job):
        def finish(self, result) -> None:
            finished[self.name] = result

    async def answer() -> None:
        BatchLocator(locator, None, Limits())([Request(photo.read_bytes(), f"{n}", LocateOptions()) for n in range(3)])

    asyncio.run(answer())
    assert {name: isinstance(result, dict) for name, result in finished.items()} == {"0": True, "1": False, "2": True}


class ToMetres:
    """A stage that finds every photo at the centre of its candidate's cell, looking east."""

    name = "refine"

    def __call__(self, query, posterior, candidates) -> list[Candidate]:
        best = candidates[0]
        grid = FineGrid(best.x - 20, best.y + 20, 1.0, np.full((40, 40), 0.5 / 1600, np.float32))
        ellipse = {"sd_major_m": 2.0, "sd_minor_m": 1.0, "axis_deg": 45.0, "mode_mass": 0.5}
        radii = {"radius_68_m": 3.0, "radius_95_m": math.inf}
        heading = {"heading_deg": 90.0, "heading_sd_deg": 8.0}
        rank = {"probability": 0.5, "candidate_rank": 1, "grids": (grid,)}
        point = best.latitude, best.longitude, best.x, best.y, best.cell
        fix = Fix(*point, **ellipse, **radii, **heading, **rank)
        return [replace(best, probability=0.5, radius_m=5.0, source="refine", fix=fix), *candidates[1:]]


def test_a_refined_photo_is_answered_with_its_fix(locator, town_raster, pyramid, photo) -> None:
    staged = Locator(locator.expert, lambda: locator.encoder, [ToMetres()])
    with Imagery([town_raster], pyramid) as imagery, TestClient(make_app(staged, imagery, Limits()), LOCAL) as client:
        answer = post(client, photo.read_bytes(), details=True).json()
    assert answer["fix"]["heading_deg"] == 90.0 and answer["fix"]["radius_95_m"] is None
    assert (answer["confidence"], answer["radius_m"], answer["radius_68_m"]) == (0.5, 5.0, 3.0)
    page = answer["page"]
    assert page["fix"]["directions"][0]["text"] == "90° ± 8°" and len(page["fix"]["heat"]) == 1
    kinds = [feature["properties"]["kind"] for feature in page["features"]]
    assert kinds.count("ellipse") == 2 and kinds.count("wedge") == 1 and kinds.count("circle") == 1


@pytest.mark.parametrize("data", [b"", b"no image", b"\xff\xd8\xff\xe0 broken", "truncated"])
def test_what_is_no_photo_is_said_in_a_sentence(client, photo, data) -> None:
    answer = post(client, photo.read_bytes()[:-300] if data == "truncated" else data, "strange.jpg")
    assert answer.status_code == 422
    assert "strange.jpg" in answer.json()["detail"] and "\n" not in answer.json()["detail"]


def test_large_photos_are_refused_by_bytes_and_by_pixels(client) -> None:
    answer = post(client, bytes(700_000))
    assert answer.status_code == 413 and "more than 0.5 MB" in answer.json()["detail"]
    buffer = io.BytesIO()
    Image.new("RGB", (2000, 1000)).save(buffer, "PNG")
    answer = post(client, buffer.getvalue())
    assert answer.status_code == 422 and "2000 x 1000 pixels" in answer.json()["detail"]


def test_a_body_that_does_not_say_its_size_is_counted(client) -> None:
    def endless() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="photo"; filename="a"\r\n\r\n'
        for _ in range(100):
            yield bytes(100_000)

    answer = client.post("/locate", content=endless(), headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 413


@pytest.mark.parametrize("query", [{"estimate": "best"}, {"radius": 0}, {"top": 0}, {"top": "many"}])
def test_questions_that_make_no_sense_are_refused(client, photo, query) -> None:
    assert post(client, photo.read_bytes(), **query).status_code == 422


def test_requests_that_are_none_are_refused(client) -> None:
    assert client.post("/locate").status_code == 422
    assert client.post("/locate", content=b"\x00\x01", headers={"Content-Type": "multipart/form-data"}).status_code in (
        400,
        422,
    )
    read = client.get("/locate")
    assert read.status_code == 405 and read.headers["allow"] == "POST"
    assert read.json()["detail"] == "/locate does not answer GET: use POST; the reference is at /docs"
    assert "/docs" in client.get("/elsewhere").json()["detail"]


def test_health_and_description(client) -> None:
    health = client.get("/health").json()
    assert health["status"] == "ok" and health["model"] == "model"
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {"/locate", "/health", "/metrics", "/area", "/tiles/{z}/{x}/{y}"}


@pytest.mark.slow
def test_two_hundred_requests_at_once_are_all_answered(client, photo) -> None:
    data = photo.read_bytes()
    with ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(lambda index: post(client, data if index % 4 else b"broken"), range(200)))
    assert [answer.status_code for answer in answers] == [200 if index % 4 else 422 for index in range(200)]
    assert len({answer.text for answer in answers[1::4]}) == 1


def test_a_panorama_is_told(locator) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (2000, 1000), "teal").save(buffer, "JPEG")
    with TestClient(make_app(locator), LOCAL) as client:
        assert "panorama" in post(client, buffer.getvalue()).json()["notes"][0]


# Priors


def region(pyramid: Pyramid, west: float, south: float, east: float, north: float) -> str:
    """A rectangle in metres from the centre as GeoJSON."""
    x, y = [west, east, east, west, west], [south, south, north, north, south]
    latitude, longitude = pyramid.unproject(x, y)
    return json.dumps({"type": "Polygon", "coordinates": [np.stack([longitude, latitude], 1).tolist()]})


def test_a_prior_is_a_circle_or_a_region_as_a_file_or_as_text(client, photo, pyramid) -> None:
    data, area = photo.read_bytes(), region(pyramid, 190, -300, 390, 300)
    latitude, longitude = (float(each) for each in pyramid.unproject(200.0, -100.0))
    circle = {"near": f"{latitude}, {longitude}", "within": 60}
    answer = post(client, data, **circle).json()
    assert answer["prior"] == {"near": [latitude, longitude], "within_m": 60.0}
    assert all(np.hypot(each["x"] - 200, each["y"] + 100) < 80 for each in answer["candidates"])
    as_file = client.post("/locate", files={"photo": ("a.jpg", data), "region": ("r.json", area)}, params=circle).json()
    as_text = client.post("/locate", files={"photo": ("a.jpg", data)}, data={"region": area}, params=circle).json()
    assert as_file == as_text and as_file["prior"] == {**answer["prior"], "region": "region"}
    assert all(each["x"] > 170 for each in as_file["candidates"])
    assert "prior" not in post(client, data).json()


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ({"near": "48.2,16.37"}, "near and within belong together"),
        ({"within": 100}, "near and within belong together"),
        ({"near": "48.2", "within": 100}, "give latitude,longitude"),
        ({"near": "here,there", "within": 100}, "give latitude,longitude"),
        ({"near": "95,16.37", "within": 100}, "near 95 16.37 is no position on earth"),
        ({"near": "nan,16.37", "within": 100}, "no position on earth"),
        ({"near": "48.2,16.37", "within": -1}, "within must be"),
        ({"near": "48.2,16.37", "within": "inf"}, "within must be"),
        ({"near": "16.37,48.2", "within": 100}, "no cell of the map is within 100 m"),
        ({"region": "{}"}, "region cannot be read as GeoJSON"),
        ({"region": region(Pyramid.around(10.0, 10.0, 800.0), 0, 0, 9, 9)}, "region does not touch the map"),
    ],
)
def test_a_prior_that_cannot_be_used_is_refused_in_a_sentence(client, photo, query, reason) -> None:
    data = {"region": query.pop("region")} if "region" in query else {}
    answer = client.post("/locate", files={"photo": ("a.jpg", photo.read_bytes())}, data=data, params=query)
    assert answer.status_code == 422 and reason in answer.json()["detail"] and "\n" not in answer.json()["detail"]


def test_the_description_has_the_priors(client) -> None:
    description = client.get("/openapi.json").json()
    parameters = {each["name"]: each for each in description["paths"]["/locate"]["post"]["parameters"]}
    assert {"near", "within"} <= parameters.keys() and all(
        "prior" in parameters[name]["description"] for name in ("near", "within")
    )
    form = description["paths"]["/locate"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert "GeoJSON" in form["properties"]["region"]["description"]
