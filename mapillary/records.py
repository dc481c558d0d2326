"""Records of Mapillary's photos: from the JSON of a page, which is checked field by field, to rows of plain values."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeGuard

from jzi.errors import DatasetError
from jzi.web.rules import MAX_URL

#: Fields that are asked for, beside a link to the image.
FIELDS = (
    "id", "geometry", "computed_geometry", "captured_at", "camera_type", "make", "model", "sequence", "is_pano",
    "compass_angle", "computed_compass_angle", "camera_parameters", "quality_score", "width", "height", "creator",
)  # fmt: skip

#: Those without which there is no data set.
ESSENTIAL = ("id", "geometry")

#: Most photos of a page: the service's limit.
LIMIT = 2000

#: The service's names of cameras, and those of `jzi.curate.options.CAMERAS`.
_CAMERAS = {"perspective": "perspective", "fisheye": "fisheye", "brown": "brown", "spherical": "spherical",
            "equirectangular": "spherical"}  # fmt: skip

#: Photos of a page of which not one has an essential field as expected, from which on the service has changed it.
_ENOUGH = 5

#: Largest time, milliseconds: the year 2200. The filters know which clocks are wrong.
_MAX_MS = 7_258_118_400_000

#: Largest side of a photo, pixels, and most camera parameters.
_MAX_SIDE, _MAX_PARAMETERS = 1_000_000, 16

_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")


class Record(NamedTuple):
    """What is known of a photo; None if it is unknown. Degrees, pixels, milliseconds since 1970."""

    id: str
    latitude: float
    longitude: float
    computed_latitude: float | None
    computed_longitude: float | None
    captured_ms: int | None
    camera: str
    make: str
    model: str
    sequence: str
    panorama: bool
    heading: float | None
    computed_heading: float | None
    camera_parameters: str
    quality_score: float | None
    width: int | None
    height: int | None
    creator: str


@dataclass(frozen=True)
class Page:
    """What a search found.

    Attributes:
        records: by id.
        links: to images, by id.
        refused: reasons, by id, of photos that cannot be used.
        odd: number of values that are of another type than expected, by field; they are taken as unknown.
        count: number of photos, of the last page if there were several.
        is_full: whether there may be more of them.
        cursor: where the next page begins.
    """

    records: Mapping[str, Record]
    links: Mapping[str, str]
    refused: Mapping[str, str]
    odd: Counter[str] = field(default_factory=Counter)
    count: int = 0
    is_full: bool = False
    cursor: str | None = None

    def joined(self, following: Page) -> Page:
        """This page and the next one."""
        return Page(
            {**self.records, **following.records},
            {**self.links, **following.links},
            {**self.refused, **following.refused},
            self.odd + following.odd,
            following.count,
            following.is_full,
            following.cursor,
        )

    def full(self) -> Page:
        """This page, with more that cannot be had by cursors."""
        return replace(self, is_full=True, cursor=None)


def changed(name: str) -> str:
    """The error of a service that has changed a field."""
    return (
        f"the service changed the field {name}: this version of jzi cannot read it, look for a newer one; "
        "what was collected is kept"
    )


def parse_page(document: Any, link: str, limit: int = LIMIT) -> Page:
    """Read a page of a search.

    Args:
        document: the JSON.
        link: the field of the link to the image.
        limit: most photos of a page.

    Raises:
        DatasetError: an essential field is missing or of another type throughout.
    """
    data = document.get("data") if isinstance(document, dict) else None
    if not isinstance(data, list) or len(data) > 100 * LIMIT:
        raise DatasetError(changed("data"))
    records: dict[str, Record] = {}
    links: dict[str, str] = {}
    refused: dict[str, str] = {}
    odd: Counter[str] = Counter()
    for each in data:
        values = each if isinstance(each, dict) else {}
        photo = values.get("id")
        photo = str(photo) if type(photo) is int else photo
        if not is_id(photo):
            raise DatasetError(changed("id"))
        position = _position(values.get("geometry"))
        if position is None:
            given = "geometry" in values and values["geometry"] is not None
            refused[photo] = "its geometry is not a position" if given else "it has no geometry"
            continue
        records[photo] = _record(photo, position, values, odd)
        url = values.get(link)
        if isinstance(url, str) and 0 < len(url) <= MAX_URL:
            links[photo] = url
        elif url is not None:
            odd[link] += 1
    if len(refused) >= _ENOUGH and not records:
        raise DatasetError(changed("geometry"))
    cursor = _cursor(document, is_full=len(data) >= limit)
    return Page(records, links, refused, odd, len(data), len(data) >= limit and not cursor, cursor)


def is_id(photo: Any) -> TypeGuard[str]:
    """Whether a value is the id of a photo, which may become the name of a file."""
    return isinstance(photo, str) and _ID.fullmatch(photo) is not None


def _cursor(document: dict[str, Any], is_full: bool) -> str | None:
    """Where the next page begins; the link to it is not used, since it may hold the token."""
    paging = document.get("paging")
    if not isinstance(paging, dict) or not (is_full or paging.get("next")):
        return None
    cursors = paging.get("cursors")
    after = cursors.get("after") if isinstance(cursors, dict) else None
    return after if isinstance(after, str) and re.fullmatch(r"[\x21-\x7e]{1,1000}", after) else None


def _record(photo: str, position: tuple[float, float], values: dict[str, Any], odd: Counter[str]) -> Record:
    def take(name: str, convert: Any) -> Any:
        value = values.get(name)
        if value is None:
            return None
        converted = convert(value)
        if converted is None:
            odd[name] += 1
        return converted

    computed = take("computed_geometry", _position) or (None, None)
    camera = take("camera_type", _text) or ""
    panorama = take("is_pano", lambda value: value if isinstance(value, bool) else None)
    known = _CAMERAS.get(camera.lower(), "")
    return Record(
        photo, position[1], position[0], computed[1], computed[0],
        take("captured_at", _milliseconds),
        known or ("spherical" if panorama else ""),
        take("make", _text) or "", take("model", _text) or "", take("sequence", _text) or "",
        bool(panorama) or known == "spherical",
        take("compass_angle", _angle), take("computed_compass_angle", _angle),
        take("camera_parameters", _parameters) or "",
        take("quality_score", lambda value: _number(value, 0, 1)),
        take("width", _side), take("height", _side),
        take("creator", _creator) or "",
    )  # fmt: skip


def _number(value: Any, low: float, high: float) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) and low <= value <= high else None


def _position(value: Any) -> tuple[float, float] | None:
    """Longitude and latitude of a GeoJSON point, which may lie off the earth: the filters report that."""
    coordinates = value.get("coordinates") if isinstance(value, dict) else None
    if not isinstance(coordinates, list) or len(coordinates) < 2:
        return None
    longitude, latitude = (_number(each, -1e6, 1e6) for each in coordinates[:2])
    return None if longitude is None or latitude is None else (longitude, latitude)


def _angle(value: Any) -> float | None:
    return _number(value, 0, 360)  # some cameras write -1 for unknown


def _side(value: Any) -> int | None:
    number = _number(value, 1, _MAX_SIDE)
    return None if number is None else int(number)


def _milliseconds(value: Any) -> int | None:
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
            value = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000
        except (ValueError, OverflowError):
            return None
    number = _number(value, -_MAX_MS, _MAX_MS)
    return None if number is None else int(number)


def _parameters(value: Any) -> str | None:
    if not isinstance(value, list) or len(value) > _MAX_PARAMETERS:
        return None
    numbers = [_number(each, -1e6, 1e6) for each in value]
    if None in numbers:
        return None
    return json.dumps(numbers) if any(numbers) else ""  # zeros are those of a camera that SfM knows nothing of


def _creator(value: Any) -> str | None:
    names = [value.get("username"), value.get("id")] if isinstance(value, dict) else [value]
    return next((text for name in names if (text := _text(name))), None)


def _text(value: Any) -> str | None:
    value = str(value) if type(value) is int else value
    return clean(value) if isinstance(value, str) else None


def clean(text: str, length: int = 200) -> str:
    """A text of the service on one line, without control characters, shortened."""
    return "".join(each for each in " ".join(text.split()) if each.isprintable())[:length]
