"""WMS and WMTS as layers: the choice of CRS and zoom from their capabilities, and the XML by which GDAL reads them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import pyproj
from rasterio.crs import CRS
from rasterio.io import MemoryFile

from jzi.encode.rasters.raster import GDAL_ERRORS
from jzi.errors import ImageryError
from jzi.overhead.area import Area
from jzi.overhead.capabilities import TileMatrix, add_parameters, fetch_capabilities, wms_layer, wmts_layer
from jzi.overhead.grid import metres_per_unit
from jzi.overhead.layer import ServiceLayer
from jzi.overhead.mosaic import parse_crs
from jzi.overhead.services import Access, Service, add_elements, finish_xml
from jzi.overhead.urls import ServiceUrl
from jzi.web.rules import Address, may_follow

#: Side of a request to a WMS, pixels: servers commonly allow 2048.
_WMS_SIDE = 512


def wmts_service(url_text: str, name: str, area: Area, gsd_m: float, crs: str | None, access: Access) -> Service:
    """Read a layer of a WMTS.

    Args:
        url_text: URL of its capabilities; secrets as {env:NAME}.
        name: identifier of the layer.
        area: the area.
        gsd_m: wanted ground sampling distance, metres.
        crs: CRS of its tiles; by default Web Mercator if it has it, else its first.
        access: how it is asked.

    Raises:
        JziError: as of `xyz_service`.
    """
    url = ServiceUrl.parse(url_text, "--wmts")
    content, root = fetch_capabilities(url, "WMTS")
    layer = wmts_layer(root, name)
    known = {key: found for key, (text, _) in layer.sets.items() if (found := _crs(text)) is not None}
    wanted = parse_crs(crs) if crs else CRS.from_epsg(3857)
    matching = [key for key, found in known.items() if found == wanted]
    if not matching and (crs or not known):
        there = ", ".join(dict.fromkeys(text for text, _ in layer.sets.values()))
        raise ImageryError(
            f"the layer {name!r:.100} has no tiles in {crs or 'a CRS that PROJ knows'}: it has {there:.300}"
        )
    tiles = (matching or list(known))[0]
    matrix = _nearest(layer.sets[tiles][1], gsd_m, math.cos(math.radians(area.latitude)))
    title = f"the WMTS at {url.address.host}"
    for address in layer.addresses:  # which GDAL asks for tiles
        if not may_follow(url.address, Address.parse(address, f"an address that {title} gives")):
            raise ImageryError(f"{title} refers to {Address.parse(address, title).host:.100}, which it may not")
    element = ElementTree.Element("GDAL_WMTS")
    add_elements(element, None, {"GetCapabilitiesUrl": url.text, "Layer": name, "TileMatrixSet": tiles,
                                 "TileMatrix": matrix.identifier, "BandsCount": 4})  # fmt: skip
    own = _own_parameters(url.text)
    if own:
        content = add_parameters(content, url.address, url.fill("&".join(f"{key}={value}" for key, value in own)))
    # GDAL reads what was checked, and does not ask again
    file = MemoryFile(content, ext=".xml")
    xml = finish_xml(element, access)
    read = xml.replace(escape(url.text), file.name)
    if own:  # GDAL appends these to the capabilities' URL too
        extra = escape("&".join(f"{key}={value}" for key, value in own))
        xml = xml.replace("</GDAL_WMTS>", f"<ExtraQueryParameters>{extra}</ExtraQueryParameters></GDAL_WMTS>")
    opened = ServiceLayer(title, read, url, area, shown=xml, kept=file)
    opened.tile = matrix.side  # GDAL has blocks of its own here
    choice = (
        f"tile matrix {matrix.identifier!r:.60} of {tiles!r:.60}: {opened.grid.gsd_m(area.latitude):.3g} m per pixel "
        f"at latitude {area.latitude:.2f}, {gsd_m:g} m wanted"
    )
    return Service(opened, layer.terms, layer.sets[tiles][1].index(matrix), choice)


def wms_service(
    url_text: str, name: str, area: Area, gsd_m: float, crs: str | None, image_format: str | None, access: Access
) -> Service:
    """Read a layer of a WMS, with pixels of exactly the wanted size.

    Args:
        url_text: its base URL; secrets as {env:NAME}.
        name: name of the layer.
        area: the area.
        gsd_m: ground sampling distance, metres.
        crs: CRS of the images; by default Web Mercator if the layer has it, else its first that is projected.
        image_format: media type of the images; by default JPEG if the service has it, else PNG.
        access: how it is asked.

    Raises:
        JziError: as of `xyz_service`.
    """
    url = ServiceUrl.parse(url_text, "--wms")
    _, root = fetch_capabilities(url, "WMS")
    layer = wms_layer(root, name)
    chosen = _wms_crs(layer.crs, crs, name)
    found = CRS.from_user_input(chosen)
    formats = layer.formats or ("image/png",)
    usual = [each for each in ("image/jpeg", "image/png", "image/webp") if each in formats]
    if (image_format and image_format not in formats) or not (image_format or usual):
        raise ImageryError(
            f"the WMS has no images as {image_format or 'JPEG or PNG'}: it has {', '.join(formats):.200}"
        )
    image_format = image_format or usual[0]
    bounds = area.bounds_in(chosen)
    x_size, y_size = (gsd_m / metres for metres in metres_per_unit(found, area.latitude))
    width, height = (math.ceil((high - low) / size) for low, high, size in (
        (bounds.west, bounds.east, x_size), (bounds.south, bounds.north, y_size)
    ))  # fmt: skip
    if max(width, height) > 2**31 - 1:
        raise ImageryError(f"the area has {width:,} x {height:,} pixels of {gsd_m:g} m: give a smaller one")
    element = ElementTree.Element("GDAL_WMS")
    service = ElementTree.SubElement(element, "Service", name="WMS")
    version = "1.1.1" if layer.version.startswith("1.1") else "1.3.0"
    base = url.text if "?" in url.text else f"{url.text}?"
    add_elements(service, None, {"Version": version, "ServerUrl": base, "CRS" if version == "1.3.0" else "SRS": chosen,
                         "ImageFormat": image_format, "Layers": name, "Styles": "",
                         "Transparent": "FALSE" if image_format == "image/jpeg" else "TRUE"})  # fmt: skip
    if version == "1.3.0" and _north_first(chosen):
        add_elements(service, None, {"BBoxOrder": "yxYX"})
    add_elements(element, "DataWindow", {
        "UpperLeftX": repr(bounds.west), "UpperLeftY": repr(bounds.north),
        "LowerRightX": repr(bounds.west + width * x_size), "LowerRightY": repr(bounds.north - height * y_size),
        "SizeX": width, "SizeY": height,
    })  # fmt: skip
    side = min(_WMS_SIDE, layer.max_side or _WMS_SIDE)
    add_elements(element, None, {"Projection": chosen, "BlockSizeX": side, "BlockSizeY": side, "BandsCount": 4})
    title = f"the WMS at {url.address.host}"
    opened = ServiceLayer(title, finish_xml(element, access), url, area)
    return Service(opened, layer.terms, -1, f"{gsd_m:g} m per pixel in {chosen}, as {image_format}")


def _wms_crs(offered: Sequence[str], wanted: str | None, name: str) -> str:
    """The code of the CRS to ask for."""
    known = {code: crs for code in offered if re.fullmatch(r"[A-Za-z]+:\d+", code) and (crs := _crs(code)) is not None}
    if wanted:
        crs = parse_crs(wanted)
        matching = [code for code, each in known.items() if each == crs]
        if not matching:
            raise ImageryError(
                f"the layer {name!r:.100} is not offered in {wanted}: give --crs one of {', '.join(known)[:300]}"
            )
        return matching[0]
    for code in ("EPSG:3857", *(code for code, crs in known.items() if crs.is_projected), *known):
        if code in known:
            return code
    raise ImageryError(f"the layer {name!r:.100} is offered in no CRS that PROJ knows: give another layer")


def _north_first(code: str) -> bool:
    """Whether the first axis of a CRS points north, so that a WMS 1.3.0 takes y before x."""
    return pyproj.CRS.from_user_input(code).axis_info[0].direction.lower() == "north"


def _crs(text: str) -> CRS | None:
    try:
        return CRS.from_user_input(text) if text else None
    except (*GDAL_ERRORS, ValueError):
        return None


def _own_parameters(url: str) -> list[tuple[str, str]]:
    """The parameters of a URL that are not those of the protocol: a token, a map file."""
    protocol = {"service", "request", "version", "acceptversions", "acceptformats"}
    pairs = [part.partition("=") for part in url.partition("?")[2].split("&") if part]
    return [(key, value) for key, _, value in pairs if key.lower() not in protocol]


def _nearest(matrices: Sequence[TileMatrix], gsd_m: float, shrink: float) -> TileMatrix:
    return min(matrices, key=lambda matrix: abs(math.log(matrix.pixel_m * shrink / gsd_m)))
