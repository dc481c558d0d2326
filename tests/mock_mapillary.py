"""A server on the loopback interface that answers as Mapillary's API v4 does, and misbehaves on request.

    python -m jzi.tests.mock_mapillary 300

runs one by hand with 300 photos around 48.2051, 16.37, and prints what to set for `jzi dataset mapillary`.
"""

from __future__ import annotations

import io
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import numpy as np
from PIL import Image

TOKEN = "MLY|1234|secret"

#: Where the photos of `drive` are.
LATITUDE, LONGITUDE = 48.2051, 16.37

#: 2020-06-01T10:00:00Z, milliseconds.
BEGAN_MS = 1_591_005_600_000


@dataclass
class Answer:
    """A reply."""

    status: int = 200
    body: Any = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False


def graph_error(status: int, message: str, code: int = 1, **more: object) -> Answer:
    """An error in the form of the Graph API."""
    return Answer(status, {"error": {"message": message, "type": "OAuthException", "code": code, **more}})


def record(number: int, **changes: object) -> dict[str, Any]:
    """A photo as the service describes it: one of a drive that goes east, a photo each 6 m."""
    longitude = LONGITUDE + number * 8e-5
    return {
        "id": str(100_000_000_000_000 + number),
        "geometry": {"type": "Point", "coordinates": [longitude + 1e-5, LATITUDE]},
        "computed_geometry": {"type": "Point", "coordinates": [longitude, LATITUDE]},
        "captured_at": BEGAN_MS + number * 1000,
        "camera_type": "perspective",
        "make": "Acme",
        "model": "Cam 1",
        "sequence": "AbCdEfGh",
        "is_pano": False,
        "compass_angle": 88.5,
        "computed_compass_angle": 90.25,
        "camera_parameters": [0.85, 0.0, 0.0],
        "quality_score": 0.8,
        "width": 4000,
        "height": 3000,
        "creator": {"id": "77", "username": "anna"},
        **changes,
    }


def picture(seed: int, width: int = 320, height: int = 240) -> bytes:
    """A JPEG that passes the filters on images: squares of random colours."""
    rng = np.random.default_rng(seed)
    small = rng.integers(40, 215, (height // 10, width // 10, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.kron(small, np.ones((10, 10, 1), np.uint8))).save(file, "JPEG", quality=80)
    return file.getvalue()


class MockMapillary:
    """Context manager: the service, and another host that gives the images.

    Args:
        records: of the photos; those of a drive of 12 photos by default.
        page: most photos of a page.

    Attributes:
        url: for MAPILLARY_URL.
        images: content by id; made when it is asked for.
        deleted: ids of photos that are gone.
        broken: answers for images, by id.
        expired: whether the links of searches have expired.
        too_wide: width of a box from which on the service asks for less, degrees.
        cursors: whether pages that are full lead to further ones.
        script: may answer a request instead, by its path and parameters; None lets the service do it.
        change: changes the records of searches.
        asked: paths with their parameters, in order.
        headers: of these requests.
        delay_s: seconds before each answer.
    """

    def __init__(self, records: list[dict[str, Any]] | None = None, page: int = 2000) -> None:
        self.records = [record(number) for number in range(12)] if records is None else records
        self.page = page
        self.images: dict[str, bytes] = {}
        self.deleted: set[str] = set()
        self.broken: dict[str, Answer] = {}
        self.expired, self.cursors, self.too_wide, self.delay_s = False, False, 1.0, 0.0
        self.script: Callable[[str, dict[str, str]], Answer | None] = lambda path, params: None
        self.change: Callable[[dict[str, Any]], dict[str, Any]] = lambda record: record
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.headers: list[dict[str, str]] = []
        self._lock = threading.Lock()
        self._servers = [_Server(("127.0.0.1", 0), _handler(answer)) for answer in (self._api, self._image)]
        self._threads = [threading.Thread(target=each.serve_forever, args=(0.02,), daemon=True)
                         for each in self._servers]  # fmt: skip
        self.url, self.host = (f"http://127.0.0.1:{each.server_port}" for each in self._servers)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()

    @property
    def counts(self) -> Counter[str]:
        """Number of requests by kind: searches, links and images."""
        return Counter(self.kind(path) for path, _ in self.asked)

    @property
    def image_counts(self) -> Counter[str]:
        """Number of requests for each image, by id."""
        return Counter(path.split("/")[2] for path, _ in self.asked if self.kind(path) == "image")

    @staticmethod
    def kind(path: str) -> str:
        return "search" if path == "/images" else "image" if path.startswith("/image/") else "link"

    def _note(self, path: str, params: dict[str, str], headers: Mapping[str, str]) -> Answer | None:
        with self._lock:
            self.asked.append((path, params))
            self.headers.append(dict(headers))
        time.sleep(self.delay_s)
        return self.script(path, params)

    def _api(self, path: str, params: dict[str, str], headers: Mapping[str, str]) -> Answer:
        if answer := self._note(path, params, headers):
            return answer
        if headers.get("Authorization") != f"OAuth {TOKEN}":
            return graph_error(401, "Invalid OAuth access token - Cannot parse access token", 190)
        return self._search(params) if path == "/images" else self._entity(path[1:], params)

    def _search(self, params: dict[str, str]) -> Answer:
        west, south, east, north = map(float, params["bbox"].split(","))
        if (east - west) * (north - south) >= 0.01:
            return graph_error(400, "Bounding box area too large", 100)
        if east - west > self.too_wide:
            return graph_error(500, "Please reduce the amount of data you're asking for, then retry your request")
        places = [_place(each) for each in self.records]
        inside = [west <= x <= east and south <= y <= north for x, y in places]
        found = [each for each, is_in in zip(self.records, inside, strict=True) if is_in and _in_time(each, params)]
        size = min(int(params.get("limit", 2000)), self.page)
        start = int(params.get("after", 0))
        data = [self._shown(each, params, "old" if self.expired else "new") for each in found[start : start + size]]
        document: dict[str, Any] = {"data": [self.change(each) for each in data]}
        if self.cursors and start + size < len(found):
            document["paging"] = {"cursors": {"before": "0", "after": str(start + size)},
                                  "next": f"{self.url}/images?access_token={TOKEN}&after={start + size}"}  # fmt: skip
        return Answer(body=document)

    def _entity(self, photo: str, params: dict[str, str]) -> Answer:
        found = next((each for each in self.records if each["id"] == photo), None)
        if found is None or photo in self.deleted:
            message = f"Unsupported get request. Object with ID '{photo}' does not exist, cannot be loaded"
            return graph_error(400, message, 100, error_subcode=33)
        return Answer(body=self._shown(found, params, "new"))

    def _shown(self, each: dict[str, Any], params: dict[str, str], age: str) -> dict[str, Any]:
        fields = set(params["fields"].split(",")) | {"id"}
        links = {f"thumb_{size}_url": f"{self.host}/image/{each['id']}/{age}?size={size}&oe=5F"
                 for size in ("256", "1024", "2048", "original")}  # fmt: skip
        return {name: value for name, value in {**links, **each}.items() if name in fields and value is not None}

    def _image(self, path: str, params: dict[str, str], headers: Mapping[str, str]) -> Answer:
        if answer := self._note(path, params, headers):
            return answer
        _, _, photo, age = path.split("/")
        if age == "old" or photo in self.deleted:
            return Answer(403, b"URL signature expired", {"Content-Type": "text/plain"})
        if photo in self.broken:
            return self.broken[photo]
        with self._lock:
            content = self.images.setdefault(photo, b"") or picture(int(photo) % 2**31)
            self.images[photo] = content
        return Answer(body=content, headers={"Content-Type": "image/jpeg"})


def _place(each: dict[str, Any]) -> tuple[float, float]:
    """Where a search finds a photo."""
    for name in ("computed_geometry", "geometry"):
        if isinstance(each.get(name), dict):
            longitude, latitude = each[name]["coordinates"]
            return longitude, latitude
    return LONGITUDE, LATITUDE


def _in_time(each: dict[str, Any], params: dict[str, str]) -> bool:
    seconds = np.datetime64(int(each["captured_at"]), "ms")
    start, end = params.get("start_captured_at", "1700-01-01Z"), params.get("end_captured_at", "2300-01-01Z")
    return bool(np.datetime64(start.rstrip("Z")) <= seconds < np.datetime64(end.rstrip("Z")))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients break connections."""


def _handler(answer: Callable[..., Answer]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = 65536

        def log_message(self, *args: object) -> None: ...

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            params = {name: values[-1] for name, values in parse_qs(parts.query).items()}
            reply = answer(parts.path, params, self.headers)
            body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            self.send_response(reply.status)
            headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **reply.headers}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if reply.cut else body)
            self.close_connection |= reply.cut

    return Handler


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    with MockMapillary([record(number) for number in range(count)]) as service:
        service.delay_s = 0.05
        east = LONGITUDE + count * 8e-5
        print(f"export MAPILLARY_TOKEN='{TOKEN}' MAPILLARY_URL={service.url}", flush=True)
        print(f"jzi dataset mapillary --bbox {LONGITUDE - 1e-3:.4f} {LATITUDE - 1e-3:.4f} {east:.4f} "
              f"{LATITUDE + 1e-3:.4f} -o photos/", flush=True)  # fmt: skip
        threading.Event().wait()
