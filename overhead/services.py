"""What the map services have in common: how they are asked, and the XML by which GDAL reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from jzi.errors import ImageryError, first_line
from jzi.overhead.area import Area
from jzi.overhead.capabilities import Terms
from jzi.overhead.layer import ServiceLayer
from jzi.store.photos.photo_file import open_regular_file
from jzi.version import __version__

#: Statuses of tiles that a service does not have: no data.
NO_DATA = "204,404,410"


#: Largest XML of a service, bytes.
MAX_XML = 2**20


@dataclass(frozen=True)
class Access:
    """How a service is asked.

    Attributes:
        connections: requests at the same time.
        timeout_s: seconds for an answer.
        cache: folder of GDAL's cache; None for none.
        cache_bytes: its largest size.
    """

    connections: int = 4
    timeout_s: int = 60
    cache: Path | None = None
    cache_bytes: int = 10 * 2**30


@dataclass(frozen=True)
class Service:
    """A service whose layer can be read.

    Attributes:
        layer: its pixels.
        terms: whose it is.
        zoom: the zoom level; -1 for a WMS, which has none.
        choice: how zoom, pixels and CRS were chosen, in a sentence.
    """

    layer: ServiceLayer
    terms: Terms
    zoom: int
    choice: str


def xml_service(file: Path, area: Area, gsd_m: float) -> Service:
    """Read a service by an XML of GDAL that the user has written, at the overview nearest to the wanted pixels.

    Args:
        file: the XML.
        area: the area.
        gsd_m: wanted ground sampling distance, metres.

    Raises:
        ImageryError: it is no XML of a service, GDAL cannot read it, or it does not reach the area.
    """
    try:
        with open_regular_file(file) as opened:
            content = opened.read(MAX_XML + 1).decode("utf-8-sig").strip()
    except (OSError, ValueError) as error:
        raise ImageryError(f"{file} cannot be read: {first_line(error)}") from error
    if len(content) > MAX_XML or not content.startswith(("<GDAL_WMS", "<GDAL_WMTS", "<?xml")):
        raise ImageryError(f"{file} is no XML of a service (<GDAL_WMS> or <GDAL_WMTS>) of at most {MAX_XML} bytes")
    layer = ServiceLayer(file.name, str(file.absolute()), None, area, gsd_m)
    layer.fingerprint += content
    choice = f"{layer.grid.gsd_m(area.latitude):.3g} m per pixel, {gsd_m:g} m wanted"
    return Service(layer, Terms(name=file.name), -1, choice)


def finish_xml(root: ElementTree.Element, access: Access) -> str:
    """The XML with what all services have in common."""
    add_elements(root, None, {
        "MaxConnections": access.connections, "Timeout": access.timeout_s, "UserAgent": f"jzi/{__version__}",
        "ZeroBlockHttpCodes": NO_DATA, "ZeroBlockOnServerException": "false",
    })  # fmt: skip
    if access.cache is not None:
        add_elements(root, "Cache", {"Path": access.cache, "MaxSize": access.cache_bytes})
    return ElementTree.tostring(root, encoding="unicode")


def add_elements(parent: ElementTree.Element, name: str | None, values: Mapping[str, object]) -> None:
    element = parent if name is None else ElementTree.SubElement(parent, name)
    for key, value in values.items():
        ElementTree.SubElement(element, key).text = str(value)
