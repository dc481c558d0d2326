"""Search a STAC API for imagery of an area, and choose the items that cover it, newest first."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import shapely
from shapely.errors import ShapelyError
from shapely.geometry import shape

from jzi.errors import ConfigError, DatasetError, ImageryError, JziError, first_line
from jzi.overhead.area import Area
from jzi.overhead.capabilities import Terms
from jzi.overhead.mosaic import parse_crs
from jzi.overhead.urls import with_query
from jzi.web.client import MAX_JSON, Client, HttpOptions
from jzi.web.rules import Address

#: Most items that a search may find, and how many are asked for at once.
MAX_ITEMS, _PAGE = 5000, 250

#: Assets that are taken if none is named, the first that an item has: of Sentinel-2 and Landsat, of NAIP.
ASSETS = ("visual", "image")

#: An item is left out if newer ones cover all but this share of what it shows of the area: footprints are rounded.
_NEW = 0.01


@dataclass(frozen=True)
class StacImagery:
    """Items that cover an area.

    Attributes:
        urls: of their assets, newest first.
        dates: of the items, ISO 8601, newest first.
        asset: the name of the asset.
        found: number of items that the search found.
        covered: share of the area that the items cover.
        terms: of the collection.
    """

    urls: tuple[str, ...]
    dates: tuple[str, ...]
    asset: str
    found: int
    covered: float
    terms: Terms


@dataclass(frozen=True)
class _Candidate:
    """An item that can be used: when it was taken, its asset's URL, and what of the area it shows."""

    date: datetime
    url: str
    name: str
    footprint: Any


def find_imagery(
    url: str,
    collection: str,
    area: Area,
    when: str | None = None,
    asset: str | None = None,
    max_cloud: float | None = None,
    crs: str | None = None,
) -> StacImagery:
    """Search for items, and choose those that cover the area.

    Args:
        url: of the API's landing page.
        collection: identifier of the collection.
        area: the area.
        when: a date or an interval, such as "2020/2023"; None for all times.
        asset: name of the asset; the first of `ASSETS` by default.
        max_cloud: greatest cloud cover, percent; items that do not give it are kept.
        crs: take only items of this CRS, as far as they give it.

    Raises:
        ConfigError: an option cannot be used.
        DatasetError: the API does not answer, or not as STAC.
        ImageryError: there is no item, or none with the asset.
    """
    name = "the STAC API"
    try:
        import pystac_client
    except ImportError as error:
        raise DatasetError(
            "STAC needs a package that is missing (pystac-client): pip install 'jzi[dataset]'"
        ) from error
    with Client(name, url, HttpOptions(timeout_s=60.0, retries=4, plain_http=True)) as http:
        name = f"the STAC API at {http.base.host}"
        try:
            client = pystac_client.Client.open(url, stac_io=_bounded_io(http))
            terms = _terms(client.get_collection(collection), collection)
            items, found = _search(client, collection, area, when, max_cloud)
        except JziError:
            raise
        except Exception as error:  # pystac raises errors of many types for documents that are no STAC
            raise DatasetError(
                f"{name} does not answer as a STAC API ({type(error).__name__}: {first_line(error)}): check its URL"
            ) from error
    if not items:
        limit = "" if max_cloud is None else f" with at most {max_cloud:g} % clouds"
        raise ImageryError(
            f"{name} has no items of {collection!r:.100} in the area ({area}){f' at {when}' if when else ''}{limit}: "
            "check the collection, or widen --datetime"
        )
    candidates = _candidates(items, area, asset, crs, name)
    chosen, covered = _cover(candidates, area)
    urls, dates = tuple(each.url for each in chosen), tuple(each.date.date().isoformat() for each in chosen)
    return StacImagery(urls, dates, chosen[0].name, found, covered, terms)


def _bounded_io(http: Client) -> Any:
    """What pystac reads with: requests by `http`, with its bounds, and no local files, which a link might name."""
    from pystac_client.stac_api_io import StacApiIO

    class BoundedIO(StacApiIO):
        def request(
            self,
            href: str,
            method: str | None = None,
            headers: dict[str, str] | None = None,
            parameters: dict[str, Any] | None = None,
        ) -> str:
            if (method or "GET").upper() != "GET":
                raise DatasetError(f"{http.name} asks for a request other than GET: it is not supported")
            pairs = [(key, str(value)) for key, value in (parameters or {}).items() if value is not None]
            return http.download(with_query(href, pairs) if pairs else href, limit=MAX_JSON).decode("utf-8")

        def read_text(self, source: Any, *args: Any, **kwargs: Any) -> str:
            href = source.to_dict()["href"] if hasattr(source, "to_dict") else str(source)
            if not re.match(r"https?://", str(href)):
                raise DatasetError(f"{http.name} links to something that is no URL: {str(href)[:100]!r}")
            return super().read_text(source, *args, **kwargs)

    return BoundedIO(max_retries=None)


def _search(
    client: Any, collection: str, area: Area, when: str | None, max_cloud: float | None
) -> tuple[list[Any], int]:
    """Items in the area that are clear enough, and the number of all that were found."""
    options: dict[str, Any] = {}
    if max_cloud is not None and client.conforms_to("QUERY"):
        options["query"] = {"eo:cloud_cover": {"lte": max_cloud}}
    if client.conforms_to("SORT"):
        options["sortby"] = "-properties.datetime"
    try:
        search = client.search(
            method="GET", collections=[collection], bbox=list(area.bounds), datetime=when, limit=_PAGE,
            max_items=MAX_ITEMS, **options,
        )  # fmt: skip
    except Exception as error:  # nothing is asked yet: pystac raises a bare Exception for dates
        raise ConfigError(f"--datetime {when or '':.60} cannot be used: {first_line(error)}") from error
    items = list(search.items())
    clear = [item for item in items if max_cloud is None or _clouds(item) <= max_cloud]
    return clear, len(items)


def _clouds(item: Any) -> float:
    value = item.properties.get("eo:cloud_cover")
    return float(value) if isinstance(value, int | float) else 0.0


def _terms(collection: Any, name: str) -> Terms:
    if collection is None:
        raise ImageryError(f"the STAC API has no collection {name!r:.100}: check --collection")
    providers = [str(each.name) for each in collection.providers or () if set(each.roles or ["licensor"]) != {"host"}]
    link = next((each.href for each in collection.links if each.rel == "license"), "")
    licence = str(collection.license or "")
    if licence.lower() in ("proprietary", "other", "various"):
        licence = f"{licence}, see {link}" if link else licence
    return Terms(
        name=str(collection.title or collection.id)[:300], provider=", ".join(providers)[:1000], licence=licence[:1000],
        url=link[:1000] if re.match(r"https?://[^@?]*$", link) else "",
    )  # fmt: skip


def _candidates(items: Iterable[Any], area: Area, asset: str | None, crs: str | None, name: str) -> list[_Candidate]:
    """Items with an asset that can be read, newest first."""
    wanted = parse_crs(crs) if crs else None
    whole = _polygon(area)
    candidates, keys, schemes, other_crs = [], set(), set(), set()
    for item in items:
        keys |= set(item.assets)
        key = next((each for each in ([asset] if asset else ASSETS) if each in item.assets), None)
        date = item.datetime or item.common_metadata.end_datetime or item.common_metadata.start_datetime
        if key is None or date is None or not item.geometry:
            continue
        given = item.properties.get("proj:code") or item.properties.get("proj:epsg")
        if wanted is not None and given:
            code = f"EPSG:{given}" if isinstance(given, int) else str(given)
            if parse_crs(code) != wanted:
                other_crs.add(code)
                continue
        href = str(item.assets[key].get_absolute_href() or "")
        try:
            Address.parse(href, "an asset")
            footprint = shape(item.geometry).buffer(0).intersection(whole)
        except ConfigError:
            schemes.add(href.partition(":")[0][:20])
            continue
        except (ShapelyError, ValueError, TypeError, AttributeError, IndexError):
            continue
        if footprint.area > 0:
            zone = date if date.tzinfo else date.replace(tzinfo=UTC)
            candidates.append(_Candidate(zone, href, key, footprint))
    if candidates:
        return sorted(candidates, key=lambda each: (each.date, each.url), reverse=True)
    if schemes:
        raise ImageryError(
            f"the assets of {name} cannot be had over https ({', '.join(sorted(schemes))}): give another --asset, "
            f"of {', '.join(sorted(keys))[:300]}, or another API"
        )
    if other_crs:
        raise ImageryError(f"{name} has no items in {crs}: they are in {', '.join(sorted(other_crs))[:200]}")
    raise ImageryError(
        f"{name} has no asset {asset or ' or '.join(ASSETS)} in the area: give --asset, one of "
        f"{', '.join(sorted(keys))[:300] or 'none, its items have no assets'}"
    )


def _polygon(area: Area) -> Any:
    return area.geometry if area.geometry is not None else shapely.box(*area.bounds)


def _cover(candidates: list[_Candidate], area: Area) -> tuple[list[_Candidate], float]:
    """The candidates that show something that newer ones do not, and the share of the area that they cover."""
    whole = _polygon(area)
    left, chosen = whole, []
    for each in candidates:
        if left.intersection(each.footprint).area > _NEW * each.footprint.area:
            chosen.append(each)
            left = left.difference(each.footprint)
    return chosen, 1 - left.area / whole.area
