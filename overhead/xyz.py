"""Tiles of a template such as https://host/{z}/{x}/{y}.png: their zoom, size, and the XML by which GDAL reads them."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

from jzi.errors import ConfigError, ImageryError, PhotoError
from jzi.overhead.area import MERCATOR_MAX, Area
from jzi.overhead.capabilities import Terms
from jzi.overhead.layer import ServiceLayer
from jzi.overhead.services import NO_DATA, Access, Service, add_elements, finish_xml
from jzi.overhead.urls import ServiceUrl
from jzi.store.photos.photo_file import open_image
from jzi.web.rules import HttpError

#: Half of the circumference of the earth in Web Mercator, metres.
_HALF_M = 20037508.342789244

#: Metres of a pixel of 256-pixel tiles at zoom 0 on the equator.
_ZOOM_0_M = 2 * _HALF_M / 256

#: Largest tile, bytes: a PNG of 1024 x 1024 pixels takes at most 4 MB.
_MAX_TILE = 8 * 2**20

#: Sides of the tiles of a template, pixels.
_SIDES = (128, 256, 512, 1024)

#: How many zooms above that for the wanted pixels are tried where a service has no tiles: six are a factor of 64.
_TRIED = 6


def xyz_service(template: str, area: Area, gsd_m: float, max_zoom: int, access: Access) -> Service:
    """Read tiles by a template with {z}, {x} and {y}, or {-y} for rows that count from the south.

    {s}, for one of several names of a server, is replaced by a.

    Args:
        template: the template; secrets as {env:NAME}.
        area: the area.
        gsd_m: wanted ground sampling distance, metres.
        max_zoom: the finest zoom that may be used.
        access: how it is asked.

    Raises:
        ConfigError: the template cannot be used, or the area is too far north or south.
        ImageryError: the service answers with something else than tiles.
        HttpError: it does not answer.
    """
    text = re.sub(r"\$\{(z|x|y)\}", r"{\1}", template).replace("{s}", "a")
    fields = set(re.findall(r"\{(?!env:)([^{}]*)\}", text))
    if missing := [name for name in ("z", "x", "y") if name not in fields and not (name == "y" and "-y" in fields)]:
        raise ConfigError(f"--xyz has no {{{missing[0]}}}: give a template such as https://host/{{z}}/{{x}}/{{y}}.png")
    if unknown := fields - {"z", "x", "y", "-y"}:
        raise ConfigError(
            f"--xyz has {{{unknown.pop():.40}}}, which jzi does not know: give a template with {{z}}, {{x}} and {{y}}, "
            "or an XML of GDAL"
        )
    url = ServiceUrl.parse(text, "--xyz")
    if max(abs(area.bounds.south), abs(area.bounds.north)) > MERCATOR_MAX:
        raise ConfigError(f"the area ({area}) reaches beyond latitude {MERCATOR_MAX:.2f}, where web map tiles end")
    name = f"the tile service at {url.address.host}"
    zoom, side, fallen = _find_zoom(url, name, area, gsd_m, max_zoom)
    root = ElementTree.Element("GDAL_WMS")
    service = ElementTree.SubElement(root, "Service", name="TMS")
    escaped = url.text.replace("{-y}", "{y}")
    ElementTree.SubElement(service, "ServerUrl").text = re.sub(r"\{([zxy])\}", r"${\1}", escaped)
    add_elements(root, "DataWindow", {
        "UpperLeftX": -_HALF_M, "UpperLeftY": _HALF_M, "LowerRightX": _HALF_M, "LowerRightY": -_HALF_M,
        "TileLevel": zoom, "TileCountX": 1, "TileCountY": 1, "YOrigin": "bottom" if "-y" in fields else "top",
    })  # fmt: skip
    add_elements(root, None, {"Projection": "EPSG:3857", "BlockSizeX": side, "BlockSizeY": side, "BandsCount": 4})
    layer = ServiceLayer(name, finish_xml(root, access), url, area)
    shrink = math.cos(math.radians(area.latitude))
    choice = (
        f"zoom {zoom}: {_ZOOM_0_M * 256 / side * shrink / 2**zoom:.3g} m per pixel at latitude {area.latitude:.2f}, "
        f"{gsd_m:g} m wanted"
    )
    if fallen:
        choice += f"; there are no tiles there of zoom {zoom + 1}" + (f" to {zoom + fallen}" if fallen > 1 else "")
    elif zoom == max_zoom:
        choice += f"; {max_zoom} is the finest allowed (--max-zoom)"
    return Service(layer, Terms(name=url.address.host), zoom, choice)


def _find_zoom(url: ServiceUrl, name: str, area: Area, gsd_m: float, max_zoom: int) -> tuple[int, int, int]:
    """Zoom and side of tiles, and the number of finer zooms that have none in the area."""
    ground_m = _ZOOM_0_M * math.cos(math.radians(area.latitude))
    side, fallen = 256, 0
    zoom = wanted = min(max(round(math.log2(ground_m / gsd_m)), 0), max_zoom)
    with url.client(name) as client:
        while True:
            content = None
            for u, v in ((0.5, 0.5), (0.25, 0.25), (0.75, 0.75)):
                x, y = _tile_at(area, zoom, u, v)
                address = url.fill(_with_tile(url.text, zoom, x, y))
                try:
                    content = client.download(address, limit=_MAX_TILE)
                    break
                except HttpError as error:
                    if str(error.code) not in NO_DATA.split(","):
                        raise _explained(error, name, url) from None
            if content is None:  # nothing at this zoom
                if zoom == 0 or fallen == _TRIED:
                    raise ImageryError(
                        f"{name} has no tiles in the area ({area}) at zooms {zoom} to {wanted}: check the area and the "
                        "template"
                    )
                zoom, fallen = zoom - 1, fallen + 1
                continue
            found = _side(content, name)
            if found == side:
                return zoom, side, fallen
            side, fallen = found, 0
            zoom = wanted = min(max(round(math.log2(ground_m * 256 / side / gsd_m)), 0), max_zoom)


def _explained(error: HttpError, name: str, url: ServiceUrl) -> HttpError:
    if error.code in (401, 403):
        text = f"{name} refuses (status {error.code}): it may need a token, ?key={{env:NAME}}, or not allow downloads"
    else:
        text = url.redact(str(error))
    return HttpError(text, error.code, error.repeats, error.reason)


def _tile_at(area: Area, zoom: int, u: float, v: float) -> tuple[int, int]:
    """Column and row of the tile at a share of the area's width and height."""
    longitude = area.bounds.west + u * (area.bounds.east - area.bounds.west)
    latitude = area.bounds.south + v * (area.bounds.north - area.bounds.south)
    y = (1 - math.asinh(math.tan(math.radians(latitude))) / math.pi) / 2
    last = 2**zoom - 1
    return min(int((longitude + 180) / 360 * 2**zoom), last), min(max(int(y * 2**zoom), 0), last)


def _with_tile(template: str, zoom: int, x: int, y: int) -> str:
    values = {"{z}": zoom, "{x}": x, "{y}": y, "{-y}": 2**zoom - 1 - y}
    for field, value in values.items():
        template = template.replace(field, str(value))
    return template


def _side(content: bytes, name: str) -> int:
    """Side of a tile, pixels."""
    if content.lstrip()[:1] == b"<":
        raise ImageryError(f"{name} answers with a web page or XML, not with a tile: check the template and the token")
    try:
        with open_image(content, "the tile") as image:
            size = image.size
    except PhotoError as error:
        raise ImageryError(f"{name} answers with something that is no image: {error}") from error
    if size[0] != size[1] or size[0] not in _SIDES:
        raise ImageryError(f"{name} has tiles of {size[0]} x {size[1]} pixels: squares of {_SIDES} are supported")
    return int(size[0])
