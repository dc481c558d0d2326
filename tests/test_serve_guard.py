"""What the service refuses, bounds and reveals: hosts, origins, tokens, headers, ranges, the queue, logs."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from fastapi.testclient import TestClient
from PIL import Image

from jzi.cli import main
from jzi.errors import ConfigError, PhotoError
from jzi.locate.answer.location import LocateOptions
from jzi.serve.app import make_app
from jzi.serve.batch import BatchLocator
from jzi.serve.guard import Access, JsonFormatter
from jzi.serve.limits import Limits, RefusedError
from jzi.serve.photos import PhotoDecoder
from jzi.serve.queue import Job, PhotoQueue
from jzi.serve.uploads import Uploads
from jzi.tests.children import BOUND_S, wait_until

LOCAL, TOKEN = "http://localhost", "a-token-of-some-length"


@pytest.fixture
def client(locator) -> Iterator[TestClient]:
    app = make_app(locator, None, Limits(queue=4), Access(TOKEN, ["jzi.example"]))
    with TestClient(app, LOCAL, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        yield client


@pytest.fixture
def photo(photo_folder: Path) -> bytes:
    return (photo_folder / "day0" / "000.jpg").read_bytes()


def post(client: TestClient, data: bytes, query: dict | None = None, **options):
    return client.post("/locate", files={"photo": ("secret-name.jpg", data)}, params=query, **options)


# Who may ask


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("192.168.0.7", 200),
        ("JZI.example:80", 200),
        ("attacker.example", 400),
        ("localhost.attacker.example", 400),
        ("127.0.0.1.attacker.example", 400),
        ("", 400),
        ("[", 400),
    ],
)
def test_a_host_name_of_somebody_else_is_refused(client, host: str, status: int) -> None:
    assert client.get("/health", headers={"Host": host}).status_code == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [(LOCAL, 200), ("https://localhost", 200), ("http://attacker.example", 403), ("null", 403), ("http://[", 403)],
)
def test_pages_of_other_sites_cannot_post(client, photo, origin: str, status: int) -> None:
    assert post(client, photo, headers={"Origin": origin}).status_code == status


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer ä"])
def test_a_token_is_required_where_there_is_one(client, photo, header: str) -> None:
    headers = {"Authorization": header.encode()}
    answer = post(client, photo, headers=headers)
    assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    assert TOKEN not in answer.text
    assert (
        client.get("/area", headers=headers).status_code == client.get("/metrics", headers=headers).status_code == 401
    )
    for path in ("/", "/docs", "/openapi.json", "/health", "/static/page.js"):  # the page asks for the token
        assert client.get(path, headers=headers).status_code == 200
    assert post(client, photo).status_code == 200


def test_other_machines_are_let_in_only_with_a_token(monkeypatch) -> None:
    monkeypatch.delenv("JZI_TOKEN", raising=False)
    result = CliRunner().invoke(main, ["serve", "--host", "0.0.0.0", "--port", "0"])
    assert result.exit_code == 2 and "set JZI_TOKEN" in result.output and result.output.count("\n") == 1
    monkeypatch.setenv("JZI_TOKEN", "short")
    result = CliRunner().invoke(main, ["serve", "--host", "0.0.0.0", "--port", "0"])
    assert result.exit_code == 2 and "16 ASCII characters" in result.output and "short" not in result.output
    with pytest.raises(ConfigError):
        Access("a token\nwith a line break")


# Headers, pages, metrics, logs


def test_every_answer_has_the_security_headers(client, monkeypatch) -> None:
    monkeypatch.setattr(BatchLocator, "__call__", lambda *_: 1 / 0)
    answers = [client.get(path) for path in ("/", "/docs", "/health", "/missing", "/static/map.js", "/static/missing")]
    answers += [client.get("/health", headers={"Host": "no"}), client.get("/locate"), post(client, b"")]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 404, 200, 404, 400, 405, 500]
    assert answers[-1].json() == {"detail": "the service failed; its log says where"}
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["x-frame-options"] == "DENY"
        assert "referrer-policy" in answer.headers


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_have_neither_inline_code_nor_files_of_others(client, path: str) -> None:
    page = client.get(path).text
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=|javascript:", page)
    files = re.findall(r'<(?:script|link|img)[^>]*?(?:src|href)="([^"]+)"', page)
    assert files and all(file.startswith(("static/", "data:")) for file in files)
    assert all(client.get(f"/{file}").status_code == 200 for file in files if file.startswith("static/"))


def test_the_reference_has_every_parameter_with_its_range(client) -> None:
    page = client.get("/docs").text
    for part in (
        "POST /locate",
        "/locate?radius=50",
        "GET /tiles/{z}/{x}/{y}",
        "number, more than 0, at most 800, default 50",
        "at least 1, at most 50",
        "at most 20037508",
        "file, at most 1000000 bytes",
        "boolean, default false",
        "Retry-After",
    ):
        assert part in page
    parameters = {
        each["name"]: each["schema"]
        for each in client.get("/openapi.json").json()["paths"]["/locate"]["post"]["parameters"]
    }
    assert parameters["radius"]["exclusiveMinimum"] == 0 and parameters["radius"]["maximum"] == 800
    assert set(parameters["estimate"]["enum"]) == {"mean", "radius", "map", "greedy"}


def test_metrics_count_and_logs_are_silent_about_photos(client, photo, caplog) -> None:
    with caplog.at_level(logging.INFO, "jzi.serve"):
        assert post(client, photo, {"near": "48.2001,16.3701", "within": 300}).status_code == 200
        assert post(client, b"secret content").status_code == 422
        client.get("/secret-path?near=48.2001")
    lines = [JsonFormatter().format(record) for record in caplog.records if record.name == "jzi.serve"]
    entries = [json.loads(line) for line in lines]
    assert [(entry["route"], entry["status"]) for entry in entries] == [
        ("/locate", 200),
        ("/locate", 422),
        ("other", 404),
    ]
    assert entries[0]["batch"] == 1 and entries[0]["received"] > len(photo) and entries[0]["waited"] >= 0
    assert not re.search("secret|48[.]2|16[.]37", "".join(lines))
    metrics = client.get("/metrics").text
    assert 'jzi_requests_total{route="/locate",status="422"} 1.0' in metrics and "jzi_queue_photos 0.0" in metrics
    assert "jzi_upload_bytes 0.0" in metrics


def test_a_failure_is_logged_without_its_message(client, photo, caplog, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(BatchLocator, "_answer", fail)
    assert post(client, photo).status_code == 500
    line = JsonFormatter().format(caplog.records[-1])
    assert (
        json.loads(line)["error"] == "RuntimeError"
        and "secret" not in line
        and any("fail" in at for at in json.loads(line)["at"])
    )


# Ranges


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ({"radius": 0}, "radius must be greater than 0"),
        ({"radius": 801}, "radius must be less than or equal to 800"),
        ({"radius": "inf"}, "radius must be a finite number"),
        ({"radius": "nan"}, "radius must be"),
        ({"radius": "1e400"}, "radius must be"),
        ({"radius": "1" * 5000}, "radius must be"),
        ({"top": 51}, "top must be less than or equal to 50"),
        ({"top": "1e3"}, "top must be a whole number"),
        ({"within": 1e9, "near": "1,2"}, "within must be less than or equal to"),
        ({"near": "1" * 65, "within": 1}, "near must have at most 64 characters"),
        ({"details": "perhaps"}, "details must be true or false"),
        ({"raduis": 3}, "there is no parameter 'raduis'"),
    ],
)
def test_a_value_out_of_its_range_is_one_sentence(client, photo, query, reason: str) -> None:
    answer = post(client, photo, query)
    assert answer.status_code == 422 and reason in answer.json()["detail"] and len(answer.json()["detail"]) < 160


def test_a_large_region_and_other_forms_are_refused(client, photo) -> None:
    answer = client.post("/locate", files={"photo": ("a.jpg", photo), "region": ("r.json", bytes(1_100_000))})
    assert answer.status_code == 422 and "region has more than 1 MB" in answer.json()["detail"]
    form = {"Content-Type": "multipart/form-data; boundary=x; charset=punycode"}
    assert client.post("/locate", content=b"--x", headers=form).status_code == 422
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    assert client.post("/locate", content=b"rubbish", headers=form).status_code == 400
    assert client.post("/locate", data={"photo": "text"}).status_code == 422


def test_an_unknown_radius_is_null(client, photo, monkeypatch) -> None:
    monkeypatch.setattr(
        "jzi.locate.answer.location.credible_radius", lambda posterior, *_: np.full((2, len(posterior)), np.inf)
    )
    answer = post(client, photo, {"details": True})
    assert answer.status_code == 200

    def refuse(name: str) -> None:
        raise AssertionError(name)

    values = json.loads(answer.text, parse_constant=refuse)
    assert values["radius_68_m"] is None and values["radius_95_m"] is None
    assert not [each for each in values["page"]["features"] if each["properties"]["kind"] == "circle"]


# The queue, uploads and photos


def test_waiting_photos_are_encoded_together_and_more_than_the_queue_are_refused(
    client, locator, photo, monkeypatch
) -> None:
    sizes, begin, encode = [], threading.Event(), locator.encoder.encode_photos

    def slow(photos):
        sizes.append(len(photos))
        assert begin.wait(2 * BOUND_S)
        return encode(photos)

    monkeypatch.setattr(locator.encoder, "encode_photos", slow)
    with ThreadPoolExecutor(5) as pool:
        try:
            answers = [pool.submit(post, client, photo)]
            wait_until(lambda: sizes)
            answers += [pool.submit(post, client, photo) for _ in range(4)]
            wait_until(lambda: "jzi_queue_photos 4.0" in client.get("/metrics").text)
            refused = post(client, photo)
        finally:
            begin.set()
    assert sizes == [1, 4] and [answer.result().status_code for answer in answers] == [200] * 5
    assert refused.status_code == 503 and 1 <= int(refused.headers["retry-after"]) <= 120
    probabilities = [answer.result().json()["confidence"] for answer in answers]
    np.testing.assert_allclose(probabilities, probabilities[0], rtol=1e-4)


def test_abandoned_photos_are_not_computed() -> None:
    computed, begin = [], threading.Event()

    def compute(jobs) -> None:
        assert begin.wait(30)
        for job in jobs:
            if not job.abandoned:
                computed.append(job.name)
                job.finish({"name": job.name})

    async def run() -> None:
        queue = PhotoQueue([compute], size=3, batch=1)
        queue.start()
        first = asyncio.ensure_future(queue.locate(Job(b"", "first", LocateOptions())))
        await asyncio.sleep(0.2)  # the thread has taken it
        others = [asyncio.ensure_future(queue.locate(Job(b"", name, LocateOptions()))) for name in "abc"]
        await asyncio.sleep(0.05)
        with pytest.raises(RefusedError, match="3 photos wait already"):
            queue.check()
        first.cancel()  # computed at the moment: dropped between two steps
        for each in others[:2]:
            each.cancel()
        await asyncio.sleep(0.05)
        queue.check()  # their places are free at once
        begin.set()
        assert await others[2] == {"name": "c"} and computed == ["c"]
        queue.close()
        with pytest.raises(RefusedError, match="stopping"):
            await queue.locate(Job(b"", "late", LocateOptions()))

    asyncio.run(run())


def test_bytes_of_all_uploads_are_bounded_and_freed() -> None:
    uploads = Uploads(Limits(megabytes=1.0, waiting_mb=1.5))
    with uploads.reserve() as one, uploads.reserve() as other:
        one.add(900_000)
        with pytest.raises(RefusedError, match=r"have 1[.]5 MB already") as refused:
            other.add(700_000)
        assert refused.value.status == 503 and refused.value.retry_after
        with pytest.raises(RefusedError, match="more than 1 MB"):
            one.add(200_000)
    assert uploads.held == 0
    with pytest.raises(ConfigError, match="less than the 20 MB"):
        Limits(waiting_mb=10)


def test_pixels_that_are_decoded_at_once_are_bounded(monkeypatch) -> None:
    decoding, most = 0, 0

    def open_slowly(image, name, max_pixels):
        nonlocal decoding, most
        decoding += 1
        most = max(most, decoding)
        time.sleep(0.05)
        decoding -= 1
        return image.convert("RGB")

    monkeypatch.setattr("jzi.serve.photos.open_photo", open_slowly)
    buffer = io.BytesIO()
    Image.new("RGB", (100, 40)).save(buffer, "PNG")
    decoder = PhotoDecoder((28, 56), "antialias", 9999)
    with ThreadPoolExecutor(6) as pool:
        photos = list(pool.map(lambda _: decoder.decode(buffer.getvalue(), "a", preview=True), range(6)))
    assert most == 2 and all(photo.pixels.shape == (28, 56, 3) for photo in photos)


def test_formats_whose_readers_run_programs_are_not_read() -> None:
    decoder = PhotoDecoder((28, 56), "antialias", 10**6)
    with pytest.raises(PhotoError, match="convert it to JPEG"):
        decoder.decode(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n", "a.eps", preview=True
        )
