"""Requests to Mapillary's API v4: pages of a search, links to images, and what its errors mean.

https://www.mapillary.com/developer/api-documentation. Errors have the form of Meta's Graph API:
{"error": {"message": ..., "type": ..., "code": ..., "error_subcode": ..., "is_transient": ...}}.
"""

from __future__ import annotations

import json
import os
import re
import threading
from datetime import date, timedelta
from typing import Literal, Self

from jzi.errors import ConfigError, JziError
from jzi.mapillary.records import ESSENTIAL, FIELDS, LIMIT, Page, changed, clean, parse_page
from jzi.store.photos.photo_file import WHOLE_BYTES
from jzi.web.client import Client, HttpOptions
from jzi.web.rules import TRANSIENT, HttpError

#: Environment variables: the token, and another base URL, of a mirror.
TOKEN, URL = "MAPILLARY_TOKEN", "MAPILLARY_URL"

BASE = "https://graph.mapillary.com"

#: How to get a token.
ADVICE = (
    "register an application at https://www.mapillary.com/dashboard/developers, and set the environment variable "
    f"{TOKEN} to its client token, which begins with MLY|"
)

#: Sizes in which the service gives images, and the fields of their links: pixels of the longer side.
Thumbnail = Literal["1024", "2048", "original"]
LINKS: dict[str, str] = {name: f"thumb_{name}_url" for name in ("1024", "2048", "original")}

#: Requests a minute. The service allows 10 000 searches and 60 000 others a minute to an application; older texts of it
#: 50 000 of both.
OPTIONS = HttpOptions(per_minute=3000)

#: Largest image, bytes: the largest that is read whole anywhere; originals of 8K panoramas have about 20 MB.
MAX_IMAGE = WHOLE_BYTES

#: Most pages of a search that cursors lead through before the box is split instead.
MAX_PAGES = 20

#: Codes of Graph API errors: about the token, and about the rate.
_TOKEN_CODES, _RATE_CODES = {10, 102, 190, 200}, {4, 17, 32, 613}

#: Repetitions of a search that the service finds too large; it says so of what it can answer at times, too.
_LARGE_REPEATS = 1

#: Statuses of a link that has expired, or whose image is gone.
_EXPIRED = (403, 404, 410)


class TooMuchError(HttpError):
    """The service asks for a smaller search."""


class GoneError(HttpError):
    """There is no such photo any more."""


class _FieldError(HttpError):
    """The service does not know a field.

    Attributes:
        field: its name.
    """

    def __init__(self, field: str, code: int) -> None:
        super().__init__(changed(field), code)
        self.field = field


def read_token() -> str:
    """The token of the environment.

    Raises:
        ConfigError: there is none, or it has characters that no token has.
    """
    token = os.environ.get(TOKEN, "")
    if not token:
        raise ConfigError(f"Mapillary needs a token: {ADVICE}")
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise ConfigError(f"the environment variable {TOKEN} holds spaces or other characters that no token has: "
                          "set it anew, without quotes and line breaks")  # fmt: skip
    return token


class Mapillary:
    """The service, for several threads; a context manager, which closes its connections.

    Args:
        token: sent in a header to the API alone, not to the hosts of images; in no message.
        base: URL of the API.
        thumbnail: the size of images.
        options: limits.
        limit: most photos of a page.
    """

    def __init__(
        self,
        token: str,
        base: str = BASE,
        thumbnail: Thumbnail = "2048",
        options: HttpOptions = OPTIONS,
        limit: int = LIMIT,
    ) -> None:
        self._token, self._link, self._limit = token, LINKS[thumbnail], limit
        self._api = Client("Mapillary", base, options, authorization=f"OAuth {token}")
        self._images = Client("Mapillary", base, HttpOptions(**{**vars(options), "per_minute": None}))
        self._fields = (*FIELDS, self._link)
        self._unknown: set[str] = set()
        self._lock = threading.Lock()

    @classmethod
    def from_environment(cls, thumbnail: Thumbnail) -> Self:
        """The service with the token, and at the URL, that the environment names.

        Raises:
            ConfigError: there is no token, or the URL cannot be used.
        """
        return cls(read_token(), os.environ.get(URL) or BASE, thumbnail)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the requests of other threads, and close all connections."""
        self._api.close()
        self._images.close()

    @property
    def requests(self) -> int:
        """Number of requests that were sent."""
        return self._api.requests + self._images.requests

    @property
    def unknown_fields(self) -> list[str]:
        """Fields that the service does not know any more."""
        return sorted(self._unknown)

    def search(self, bounds: tuple[float, float, float, float], since: date | None, until: date | None) -> Page:
        """The photos in a box of less than 0.01 square degrees.

        Args:
            bounds: west, south, east, north in degrees.
            since: first day (UTC).
            until: last day (UTC).

        Raises:
            TooMuchError: the box holds more than the service answers at once.
            DatasetError: the service does not answer, refuses the token, or has changed an essential field.
        """
        params = {"bbox": ",".join(f"{each:.7f}" for each in bounds), "limit": str(self._limit)}
        if since:
            params["start_captured_at"] = f"{since.isoformat()}T00:00:00Z"
        if until and until < date.max:
            params["end_captured_at"] = f"{(until + timedelta(days=1)).isoformat()}T00:00:00Z"
        page = self._page(params)
        pages = 1
        while page.cursor and not page.is_full:
            if pages == MAX_PAGES:
                return page.full()
            try:
                following = self._page({**params, "after": page.cursor})
            except TooMuchError:
                raise
            except HttpError as error:
                if error.passes:
                    raise
                return page.full()  # the service does not take its own cursor
            joined = page.joined(following)
            if following.count and len(joined.records) == len(page.records):
                return page.full()  # the same page again
            page, pages = joined, pages + 1
        return page

    def link(self, photo: str) -> str:
        """A fresh link to the image of a photo: links expire.

        Args:
            photo: its id.

        Raises:
            GoneError: there is no such photo any more, or it has no image.
            DatasetError: the service does not answer, or refuses the token.
        """
        document = self._api.get_json(f"/{photo}", {"fields": f"id,{self._link}"}, judge=self._judge)
        if not isinstance(document, dict):
            raise HttpError("Mapillary answers with no photo: try again later", 200)
        link = document.get(self._link)
        if not isinstance(link, str) or not link:
            raise GoneError(f"the service gives no {self._link}", 404)
        return link

    def image(self, photo: str, link: str | None) -> bytes:
        """The file of a photo.

        Args:
            photo: its id.
            link: a link that may have expired; None to ask for one.

        Raises:
            GoneError: there is no such photo any more.
            DatasetError: the service does not answer, or the file is too large.
        """
        if link:
            try:
                return self._images.download(link, limit=MAX_IMAGE)
            except HttpError as error:
                if error.code not in _EXPIRED:
                    raise
        try:
            return self._images.download(self.link(photo), limit=MAX_IMAGE)
        except HttpError as error:
            if error.code in _EXPIRED and not isinstance(error, GoneError):
                raise GoneError(f"its image is gone (status {error.code})", error.code) from None
            raise

    def _page(self, params: dict[str, str]) -> Page:
        """A page of a search; without the optional fields that the service does not know."""
        while True:
            fields = [name for name in self._fields if name not in self._unknown]
            try:
                asked = {**params, "fields": ",".join(fields)}
                return parse_page(self._api.get_json("/images", asked, judge=self._judge), self._link, self._limit)
            except _FieldError as error:
                if error.field in ESSENTIAL or error.field not in fields:
                    raise
                with self._lock:
                    self._unknown.add(error.field)

    def _judge(self, code: int, content: bytes) -> HttpError | None:
        message, number, subcode, transient = _read_error(content)
        if number in _RATE_CODES:
            return HttpError("Mapillary answers that there are too many requests: try again later, which resumes",
                             429, repeats=99, reason="too many requests")  # fmt: skip
        if code in (401, 403) or number in _TOKEN_CODES:
            return HttpError(f"Mapillary does not accept the token (status {code}): {ADVICE}", 401)
        if "reduce the amount of data" in message.lower():
            return TooMuchError("Mapillary asks for a smaller search", code, repeats=_LARGE_REPEATS)
        if match := re.search(r"nonexisting field \((\w{1,60})\)", message):
            return _FieldError(match[1], code)
        if code in (404, 410) or (number == 100 and (subcode == 33 or "does not exist" in message)):
            return GoneError("the photo was deleted", code)
        if transient or code in TRANSIENT:
            return None if code in TRANSIENT else HttpError("Mapillary does not answer: try again later, which resumes",
                                                            503, repeats=99, reason=f"status {code}")  # fmt: skip
        quoted = clean(message.replace(self._token, "***"), 200)
        return HttpError(f"Mapillary refuses a request (status {code}{f': {quoted}' if quoted else ''})", code)


def _read_error(content: bytes) -> tuple[str, int, int, bool]:
    """Message, code, sub-code of a Graph API error, and whether it will pass."""
    try:
        error = json.loads(content)["error"]
        numbers = [each if type(each) is int else 0 for each in (error.get("code"), error.get("error_subcode"))]
        message = error.get("message")
        return message if isinstance(message, str) else "", *numbers, error.get("is_transient") is True  # type: ignore[return-value]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return "", 0, 0, False


def is_about_all(error: JziError) -> bool:
    """Whether an error would be that of every further request, such as a refused token."""
    return isinstance(error, ConfigError) or (
        isinstance(error, HttpError) and (error.code == 401 or isinstance(error, _FieldError))
    )
