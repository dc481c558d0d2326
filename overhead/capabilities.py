"""What a WMS or WMTS says about itself: its layers, where they are, and its terms."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from jzi.errors import ConfigError, ImageryError, first_line
from jzi.overhead.urls import ServiceUrl, with_query
from jzi.web.rules import Address, HttpError

#: Largest capabilities, bytes: those of large agencies have some 10 MB.
MAX_CAPABILITIES = 32 * 2**20

#: Longest text of the terms that is kept, characters.
_MAX_TEXT = 2000

#: What services write where they have no terms.
_NOTHING = {"", "none", "no", "n/a", "na", "unknown", "null", "-", "otherrestrictions"}

_HREF = "{http://www.w3.org/1999/xlink}href"

#: Metres of a pixel in the definition of scale denominators (OGC 07-057r7, section 6.1).
_PIXEL_M = 0.00028


@dataclass(frozen=True)
class Terms:
    """Whose imagery it is, and on what terms.

    Attributes:
        name: title of the service or collection.
        provider: who offers it.
        licence: name or text of the licence or access constraints; empty if nobody says.
        fees: what it costs, in words; empty if nothing is said.
        url: of the terms or the provider.
    """

    name: str = ""
    provider: str = ""
    licence: str = ""
    fees: str = ""
    url: str = ""


@dataclass(frozen=True)
class TileMatrix:
    """A zoom level of a WMTS: identifier, metres of a pixel at the equator, and side of its tiles in pixels."""

    identifier: str
    pixel_m: float
    side: int


@dataclass(frozen=True)
class WmtsLayer:
    """A layer of a WMTS.

    Attributes:
        sets: identifiers and CRSs of its tile matrix sets, with their matrices from coarse to fine.
        addresses: URLs and templates of its tiles, with 0 for what is filled in.
        terms: of the service.
        title: of the layer.
    """

    sets: dict[str, tuple[str, tuple[TileMatrix, ...]]]
    addresses: tuple[str, ...]
    terms: Terms
    title: str


@dataclass(frozen=True)
class WmsLayer:
    """A layer of a WMS.

    Attributes:
        version: of the protocol that the service speaks.
        crs: CRSs in which it can be had.
        formats: media types of images.
        max_side: largest side of an image, pixels; 0 if it does not say.
        terms: of the service.
        title: of the layer.
    """

    version: str
    crs: tuple[str, ...]
    formats: tuple[str, ...]
    max_side: int
    terms: Terms
    title: str


def fetch_capabilities(url: ServiceUrl, service: str) -> tuple[bytes, ElementTree.Element]:
    """Ask for the capabilities of a service, and parse them.

    Args:
        url: of the service; of a WMTS also the URL of a document.
        service: "WMS" or "WMTS".

    Raises:
        HttpError: it does not answer.
        ImageryError: the answer is no document of capabilities.
    """
    asked = url.fill()
    if service == "WMS" or "?" in asked or not re.search(r"\.xml$", asked):
        asked = with_query(asked, (("SERVICE", service), ("REQUEST", "GetCapabilities")))
    with url.client(f"the {service} at {url.address.host}") as client:
        try:
            content = client.download(asked, limit=MAX_CAPABILITIES)
        except HttpError as error:
            raise HttpError(url.redact(str(error)), error.code, error.repeats, error.reason) from None
    return content, parse_capabilities(content, f"the {service} at {url.address.host}")


def parse_capabilities(content: bytes, name: str) -> ElementTree.Element:
    """Parse a document without entities: none is expanded, and no other document is read.

    Raises:
        ImageryError: it is no XML of capabilities.
    """
    start = content.lstrip()[:512].lower()
    if b"<html" in start or b"<!doctype html" in start:
        raise ImageryError(f"{name} answers with a web page: check its URL, and that it needs no login")
    if b"<!ENTITY" in content or b"\0" in content[:64]:
        raise ImageryError(f"{name} answers with XML that defines entities, or is not UTF-8: it is not read")
    try:
        root = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError) as error:
        raise ImageryError(
            f"{name} answers with no XML of capabilities ({first_line(error)}): check its URL"
        ) from error
    for element in root.iter():  # WMS and WMTS differ in their namespaces, and so do their versions
        element.tag = element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""
    if root.tag in ("ServiceExceptionReport", "ExceptionReport"):
        reason = " ".join("".join(root.itertext()).split())[:200]
        raise ImageryError(f"{name} refuses: {reason or 'without a reason'}")
    if "Capabilities" not in root.tag:
        raise ImageryError(f"{name} answers with {root.tag[:60]!r}, not with capabilities: check its URL")
    return root


def add_parameters(content: bytes, origin: Address, parameters: str) -> bytes:
    """Capabilities of a WMTS whose tiles are asked for with further parameters, which many services do not add.

    Args:
        content: the document, which `parse_capabilities` has passed.
        origin: the service: addresses of other hosts do not get them, since one may be a secret.
        parameters: as in a query.
    """
    root = ElementTree.fromstring(content)
    names = {part.partition("=")[0].lower() for part in parameters.split("&")}
    for element in root.iter():
        for attribute in ("template", _HREF):
            address = element.get(attribute, "")
            there = {part.partition("=")[0].lower() for part in address.partition("?")[2].split("&")}
            try:
                same = Address.parse(re.sub(r"\{[^{}]*\}", "0", address), "an address").origin == origin.origin
            except ConfigError:
                continue
            if same and not names & there:
                element.set(attribute, f"{address.rstrip('?&')}{'&' if '?' in address else '?'}{parameters}")
    return ElementTree.tostring(root)


def wmts_layer(root: ElementTree.Element, name: str) -> WmtsLayer:
    """Find a layer in the capabilities of a WMTS.

    Raises:
        ImageryError: there is no such layer, or its tiles cannot be placed.
    """
    layer = _layer(root.findall("Contents/Layer"), "Identifier", name)
    linked = [_text(link) for link in layer.findall("TileMatrixSetLink/TileMatrixSet")]
    sets = {}
    for tiles in root.findall("Contents/TileMatrixSet"):
        identifier = _text(tiles.find("Identifier"))
        if identifier in linked:
            matrices = [
                TileMatrix(
                    _text(matrix.find("Identifier")),
                    _number(matrix.find("ScaleDenominator")) * _PIXEL_M,
                    int(_number(matrix.find("TileWidth"))),
                )
                for matrix in tiles.findall("TileMatrix")
            ]
            kept = sorted(
                (each for each in matrices if each.pixel_m > 0 and 16 <= each.side <= 4096),
                key=lambda each: -each.pixel_m,
            )
            if kept:
                sets[identifier] = (_text(tiles.find("SupportedCRS")), tuple(kept))
    if not sets:
        raise ImageryError(f"the layer {name!r:.100} of the WMTS has no tiles: give another layer")
    addresses = [each.get("template", "") for each in layer.findall("ResourceURL")]
    for operation in root.findall("OperationsMetadata/Operation"):
        if operation.get("name") == "GetTile":
            addresses += [each.get(_HREF, "") for each in operation.findall("DCP/HTTP/Get")]
    filled = tuple(re.sub(r"\{[^{}]*\}", "0", address) for address in addresses if address)
    return WmtsLayer(sets, filled, _ows_terms(root), _text(layer.find("Title")))


def wms_layer(root: ElementTree.Element, name: str) -> WmsLayer:
    """Find a layer in the capabilities of a WMS.

    Raises:
        ImageryError: there is no such layer.
    """
    parents = {child: parent for parent in root.iter("Layer") for child in parent.findall("Layer")}
    layer = _layer([each for each in root.iter("Layer") if each.find("Name") is not None], "Name", name)
    crs: dict[str, None] = {}
    lineage: list[ElementTree.Element] = []
    at: ElementTree.Element | None = layer
    while at is not None:  # CRSs and attributions are inherited
        lineage.append(at)
        for tag in ("CRS", "SRS"):
            crs.update(dict.fromkeys(word for each in at.findall(tag) for word in _text(each).split()))
        at = parents.get(at)
    credit = next((each for part in lineage if (each := part.find("Attribution")) is not None), None)
    service = root.find("Service")
    contact = (
        _text(service.find("ContactInformation/ContactPersonPrimary/ContactOrganization"))
        if service is not None
        else ""
    )
    terms = Terms(
        name=_text(_find(service, "Title")),
        provider=_text(_find(credit, "Title")) or contact,
        licence=_meaning(_text(_find(service, "AccessConstraints"))),
        fees=_meaning(_text(_find(service, "Fees"))),
        url=_link(_find(service, "OnlineResource")),
    )
    sides = [int(_number(_find(service, tag))) for tag in ("MaxWidth", "MaxHeight")]
    formats = tuple(_text(each) for each in root.findall("Capability/Request/GetMap/Format"))
    version = root.get("version", "1.3.0")
    return WmsLayer(version, tuple(crs), formats, min((side for side in sides if side > 0), default=0), terms,
                    _text(layer.find("Title")))  # fmt: skip


def _layer(layers: list[ElementTree.Element], tag: str, name: str) -> ElementTree.Element:
    names = [_text(layer.find(tag)) for layer in layers]
    if name not in names:
        shown = ", ".join(each for each in names[:20] if each) + (", ..." if len(names) > 20 else "")
        raise ImageryError(
            f"the service has no layer {name!r:.100}: give --layer one of {shown or 'none, it has no layers'}"
        )
    return layers[names.index(name)]


def _ows_terms(root: ElementTree.Element) -> Terms:
    service, provider = root.find("ServiceIdentification"), root.find("ServiceProvider")
    constraints = [] if service is None else [_meaning(_text(each)) for each in service.findall("AccessConstraints")]
    return Terms(
        name=_text(_find(service, "Title")),
        provider=_text(_find(provider, "ProviderName")),
        licence="; ".join(each for each in constraints if each),
        fees=_meaning(_text(_find(service, "Fees"))),
        url=_link(_find(provider, "ProviderSite")),
    )


def _find(element: ElementTree.Element | None, path: str) -> ElementTree.Element | None:
    return None if element is None else element.find(path)


def _text(element: Any) -> str:
    return "" if element is None else " ".join((element.text or "").split())[:_MAX_TEXT]


def _number(element: ElementTree.Element | None) -> float:
    try:
        value = float(_text(element) or "0")
    except ValueError:
        return 0.0
    return value if 0 <= value < 1e12 else 0.0


def _meaning(text: str) -> str:
    return "" if text.lower().strip(" .") in _NOTHING else text


def _link(element: ElementTree.Element | None) -> str:
    """A link without its query, in which a service may repeat a secret."""
    href = "" if element is None else element.get(_HREF, "")
    return href.partition("?")[0][:1000] if re.match(r"https?://", href) else ""
