"""A server of imagery on 127.0.0.1: XYZ and TMS tiles, WMS, WMTS, a STAC API and files, all of one made picture.

The picture covers the earth in Web Mercator, and its colours follow from the position to 2 m (`colors`), so that a test
can say which pixel must be where. Failures are switched on by patterns of paths.
"""

from __future__ import annotations

import io
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from PIL import Image

HALF_M = 20037508.342789244


def colors(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(3, row, col) uint8 of the picture at x (col,) and y (row,), metres of Web Mercator."""
    x, y = np.broadcast_arrays(np.asarray(x)[None, :], np.asarray(y)[:, None])
    blue = np.floor(x / 512) * 37 + np.floor(y / 512) * 91
    return np.stack([np.floor(x / 2) % 256, np.floor(y / 2) % 256, blue % 256]).astype(np.uint8)


def picture(west: float, north: float, pixel_x: float, pixel_y: float, width: int, height: int) -> np.ndarray:
    """The picture at the centres of pixels."""
    return colors(west + (np.arange(width) + 0.5) * pixel_x, north - (np.arange(height) + 0.5) * pixel_y)


@dataclass
class Answer:
    """What is sent instead of the right answer."""

    status: int = 503
    body: bytes = b""
    kind: str = "text/plain"
    headers: dict[str, str] = field(default_factory=dict)
    times: float = float("inf")


class MockImagery(ThreadingHTTPServer):
    """The server; a context manager.

    Attributes:
        asked: paths with queries of all requests, in their order.
        failures: patterns of paths, and what is answered to them; the first that matches.
        finest: finest zoom that has tiles.
        side: side of tiles, pixels.
        delay_s: before each tile.
        files: folder of files that are served below /files/.
        items: STAC items, newest first or not.
        page: items of a page.
        terms: fees and constraints of WMS and WMTS.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[str] = []
        self.agents: set[str] = set()
        self.failures: list[tuple[str, Answer]] = []
        self.finest, self.side, self.delay_s, self.page = 20, 256, 0.0, 2
        self.files: Path | None = None
        self.items: list[dict[str, Any]] = []
        self.licence, self.fees, self.constraints = "CC-BY-4.0", "none", "Open Government Licence"
        self.busy = self.most_busy = 0
        self.lock = threading.Lock()

    def __enter__(self) -> MockImagery:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fail(self, pattern: str, **answer: Any) -> None:
        self.failures.append((pattern, Answer(**answer)))

    def count(self, pattern: str) -> int:
        return sum(bool(re.search(pattern, path)) for path in self.asked)


def image(pixels: np.ndarray, kind: str = "png") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.moveaxis(pixels, 0, -1)).save(file, "JPEG" if kind == "jpg" else "PNG", quality=95)
    return file.getvalue()


class _Handler(BaseHTTPRequestHandler):
    server: MockImagery
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        with server.lock:
            server.asked.append(self.path)
            server.agents.add(self.headers.get("User-Agent", ""))
            server.busy += 1
            server.most_busy = max(server.most_busy, server.busy)
            failure = next((a for pattern, a in server.failures if a.times > 0 and re.search(pattern, self.path)), None)
            if failure:
                failure.times -= 1
        try:
            if failure:
                self.send(failure.body, failure.kind, failure.status, failure.headers)
                return
            parts = urlsplit(self.path)
            query = {key.lower(): values[0] for key, values in parse_qs(parts.query).items()}
            for pattern, answer in _ROUTES:
                if match := re.fullmatch(pattern, parts.path):
                    answer(self, query, *match.groups())
                    return
            self.send(b"not here", "text/plain", 404)
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            with server.lock:
                server.busy -= 1

    def do_HEAD(self) -> None:
        self.do_GET()

    def send(self, body: bytes, kind: str, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_json(self, content: Any) -> None:
        self.send(json.dumps(content).encode(), "application/json")

    # Tiles

    def tile(self, query: dict[str, str], z: str, x: str, y: str, kind: str, south: bool = False) -> None:
        zoom, col, row = int(z), int(x), int(y)
        row = 2**zoom - 1 - row if south else row
        time.sleep(self.server.delay_s)
        if zoom > self.server.finest:
            self.send(b"no tile", "text/plain", 404)
            return
        pixel = 2 * HALF_M / 2**zoom / self.server.side
        west, north = -HALF_M + col * pixel * self.server.side, HALF_M - row * pixel * self.server.side
        self.send(image(picture(west, north, pixel, pixel, self.server.side, self.server.side), kind), f"image/{kind}")

    def tms(self, query: dict[str, str], z: str, x: str, y: str, kind: str) -> None:
        self.tile(query, z, x, y, kind, south=True)

    # WMS

    def wms(self, query: dict[str, str]) -> None:
        if query.get("request") == "GetCapabilities":
            body = WMS.format(url=self.server.url, fees=self.server.fees, constraints=self.server.constraints)
            self.send(body.encode(), "text/xml")
            return
        box = [float(value) for value in query["bbox"].split(",")]
        width, height = int(query["width"]), int(query["height"])
        if query.get("crs") == "EPSG:4326":  # version 1.3.0: latitude first
            south, west, north, east = box
            longitude = west + (np.arange(width) + 0.5) * (east - west) / width
            latitude = north - (np.arange(height) + 0.5) * (north - south) / height
            x = longitude / 180 * HALF_M
            y = np.arcsinh(np.tan(np.radians(latitude))) / np.pi * HALF_M
            self.send(image(colors(x, y)), "image/png")
            return
        west, south, east, north = box
        pixels = picture(west, north, (east - west) / width, (north - south) / height, width, height)
        self.send(image(pixels), "image/png")

    # WMTS

    def wmts(self, query: dict[str, str]) -> None:
        levels = "".join(
            MATRIX.format(z=z, scale=559082264.0287178 / 2**z, side=2**z, half=HALF_M)
            for z in range(self.server.finest + 1)
        )
        body = WMTS.format(
            url=self.server.url, levels=levels, fees=self.server.fees, constraints=self.server.constraints
        )
        self.send(body.encode(), "text/xml")

    # STAC

    def landing(self, query: dict[str, str]) -> None:
        url = self.server.url
        links = [("self", "/stac"), ("root", "/stac"), ("data", "/stac/collections"), ("search", "/stac/search")]
        self.send_json({
            "type": "Catalog", "stac_version": "1.0.0", "id": "mock", "title": "Mock", "description": "mock",
            "conformsTo": ["https://api.stacspec.org/v1.0.0/core", "https://api.stacspec.org/v1.0.0/item-search",
                           "https://api.stacspec.org/v1.0.0/collections"],
            "links": [{"rel": rel, "href": url + path, "type": "application/json"} for rel, path in links],
        })  # fmt: skip

    def collection(self, query: dict[str, str], name: str) -> None:
        if name not in ("naip", "sentinel-2-l2a"):
            self.send(json.dumps({"code": "NotFoundError", "description": "no such"}).encode(), "application/json", 404)
            return
        self.send_json({
            "type": "Collection", "stac_version": "1.0.0", "id": name, "title": name.upper(), "description": "d",
            "license": self.server.licence, "links": [{"rel": "license", "href": "https://example.org/terms"}],
            "providers": [{"name": "USDA", "roles": ["producer", "licensor"]}, {"name": "Host", "roles": ["host"]}],
            "extent": {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}},
        })  # fmt: skip

    def search(self, query: dict[str, str]) -> None:
        west, south, east, north = map(float, query["bbox"].split(","))
        found = [
            item for item in self.server.items
            if item["collection"] in query["collections"].split(",")
            and item["bbox"][0] < east and item["bbox"][2] > west
            and item["bbox"][1] < north and item["bbox"][3] > south
            and _within(item["properties"]["datetime"], query.get("datetime"))
        ]  # fmt: skip
        start = int(query.get("token", "0"))
        links = [{"rel": "self", "href": self.server.url + self.path}]
        if start + self.server.page < len(found):
            base = re.sub(r"&token=\d+", "", self.path)
            links.append({"rel": "next", "href": f"{self.server.url}{base}&token={start + self.server.page}"})
        page = found[start : start + self.server.page]
        self.send_json({"type": "FeatureCollection", "features": page, "links": links})

    def file(self, query: dict[str, str], name: str) -> None:
        path = self.server.files / name if self.server.files else None
        if path is None or not path.is_file():
            self.send(b"", "text/plain", 404)
            return
        content = path.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            self.send(content, "image/tiff", headers={"Accept-Ranges": "bytes"})
            return
        first, last = int(wanted[1]), min(int(wanted[2] or len(content) - 1), len(content) - 1)
        if first >= len(content):
            self.send(b"", "image/tiff", 416, {"Content-Range": f"bytes */{len(content)}"})
            return
        headers = {"Content-Range": f"bytes {first}-{last}/{len(content)}", "Accept-Ranges": "bytes"}
        self.send(content[first : last + 1], "image/tiff", 206, headers)


def _within(when: str, interval: str | None) -> bool:
    if not interval:
        return True
    first, _, last = interval.partition("/")
    return first[:10] <= when[:10] <= (last or first)[:10]


_ROUTES: list[tuple[str, Callable[..., None]]] = [
    (r"/(?:xyz|wmts/tiles)/(\d+)/(\d+)/(\d+)\.(png|jpg)", _Handler.tile),
    (r"/tms/(\d+)/(\d+)/(\d+)\.(png|jpg)", _Handler.tms),
    (r"/wms", _Handler.wms),
    (r"/wmts(?:/WMTSCapabilities\.xml)?", _Handler.wmts),
    (r"/stac/?", _Handler.landing),
    (r"/stac/collections/([^/]+)", _Handler.collection),
    (r"/stac/search", _Handler.search),
    (r"/files/([\w.-]+)", _Handler.file),
]

WMS = """<?xml version="1.0" encoding="UTF-8"?>
<WMS_Capabilities version="1.3.0" xmlns="http://www.opengis.net/wms" xmlns:xlink="http://www.w3.org/1999/xlink">
<Service><Name>WMS</Name><Title>Orthophotos of Mock</Title><OnlineResource xlink:href="{url}/about?token=x"/>
<ContactInformation><ContactPersonPrimary><ContactPerson>A</ContactPerson>
<ContactOrganization>Survey of Mock</ContactOrganization></ContactPersonPrimary></ContactInformation>
<Fees>{fees}</Fees><AccessConstraints>{constraints}</AccessConstraints>
<MaxWidth>400</MaxWidth><MaxHeight>4000</MaxHeight></Service>
<Capability><Request><GetMap><Format>image/png</Format></GetMap></Request>
<Layer><Title>All</Title><CRS>EPSG:4326</CRS><CRS>EPSG:3857</CRS><CRS>CRS:84</CRS>
<Layer><Name>ortho</Name><Title>Orthophoto 2023</Title></Layer><Layer><Name>relief</Name><Title>R</Title></Layer>
</Layer></Capability></WMS_Capabilities>"""

MATRIX = """<TileMatrix><ows:Identifier>{z}</ows:Identifier><ScaleDenominator>{scale!r}</ScaleDenominator>
<TopLeftCorner>-{half} {half}</TopLeftCorner><TileWidth>256</TileWidth><TileHeight>256</TileHeight>
<MatrixWidth>{side}</MatrixWidth><MatrixHeight>{side}</MatrixHeight></TileMatrix>"""

WMTS = """<?xml version="1.0" encoding="UTF-8"?>
<Capabilities xmlns="http://www.opengis.net/wmts/1.0" xmlns:ows="http://www.opengis.net/ows/1.1"
 xmlns:xlink="http://www.w3.org/1999/xlink" version="1.0.0">
<ows:ServiceIdentification><ows:Title>Tiles of Mock</ows:Title><ows:Fees>{fees}</ows:Fees>
<ows:AccessConstraints>{constraints}</ows:AccessConstraints></ows:ServiceIdentification>
<ows:ServiceProvider><ows:ProviderName>Survey of Mock</ows:ProviderName>
<ows:ProviderSite xlink:href="https://example.org/survey"/></ows:ServiceProvider>
<Contents><Layer><ows:Title>Orthophoto</ows:Title><ows:Identifier>ortho</ows:Identifier>
<Style isDefault="true"><ows:Identifier>default</ows:Identifier></Style><Format>image/png</Format>
<TileMatrixSetLink><TileMatrixSet>web</TileMatrixSet></TileMatrixSetLink>
<ResourceURL format="image/png" resourceType="tile"
 template="{url}/wmts/tiles/{{TileMatrix}}/{{TileCol}}/{{TileRow}}.png"/></Layer>
<TileMatrixSet><ows:Identifier>web</ows:Identifier><ows:SupportedCRS>urn:ogc:def:crs:EPSG::3857</ows:SupportedCRS>
{levels}</TileMatrixSet></Contents></Capabilities>"""
