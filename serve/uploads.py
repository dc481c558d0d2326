"""Receive uploaded photos in memory: within a number of bytes, and within a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from jzi.serve.limits import REGION_BYTES, Limits, RefusedError

#: Character sets of a form's names; Python's other codecs include some that take quadratic time.
CHARSETS = (b"utf-8", b"us-ascii")

#: Longest name of a photo in an answer, characters.
NAME = 100

#: The sentence for a request without a photo.
MISSING = "photo is missing: send a multipart form in UTF-8 with the file `photo`"


@dataclass(frozen=True)
class Upload:
    """The form of one request.

    Attributes:
        photo: bytes of the photo's file.
        name: its name.
        region: GeoJSON of a prior's region; None if none was sent.
        received: bytes of the request's body.
    """

    photo: bytes
    name: str
    region: bytes | None
    received: int


class _MemoryParser(MultiPartParser):
    spool_max_size = 2**62  # never on disk: bodies are limited


class Reservation:
    """Bytes of one request out of those that all requests share; freed when its context ends.

    Args:
        uploads: who they are reserved from.
    """

    def __init__(self, uploads: Uploads) -> None:
        self._uploads, self.bytes = uploads, 0

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, *_: object) -> None:
        self._uploads.held -= self.bytes

    def add(self, count: int) -> None:
        """Reserve more bytes.

        Raises:
            RefusedError: the request is too large, or there are not so many left.
        """
        self.bytes += count
        self._uploads.held += count
        limits = self._uploads.limits
        _check_size(self.bytes, limits)
        if self._uploads.held > limits.waiting_mb * 1e6:
            raise RefusedError(503, f"the photos that wait have {limits.waiting_mb:g} MB already: try again later", 5)


class Uploads:
    """Receives forms; all requests together hold at most `Limits.waiting_mb`.

    Args:
        limits: limits on requests.

    Attributes:
        held: bytes that requests hold.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits, self.held = limits, 0

    def reserve(self) -> Reservation:
        """Return a context for one request; it holds the request's bytes until it ends."""
        return Reservation(self)

    async def receive(self, request: Request, reservation: Reservation) -> Upload:
        """Receive the form of a request.

        Args:
            request: its body is a multipart form with a file `photo`, and perhaps a `region`.
            reservation: of this request.

        Raises:
            RefusedError: the body is no such form, is too large or arrives too slowly, or too many photos wait.
            ClientDisconnect: the client has gone.
        """
        declared = request.headers.get("content-length", "")
        if declared.isdigit():
            _check_size(int(declared[:18]), self.limits)
        kind, options = parse_options_header(request.headers.get("content-type", ""))
        if kind != b"multipart/form-data" or options.get(b"charset", b"utf-8").lower() not in CHARSETS:
            raise RefusedError(422, MISSING)
        parser = _MemoryParser(
            request.headers, self._chunks(request, reservation), max_files=2, max_fields=2, max_part_size=REGION_BYTES
        )
        try:
            async with asyncio.timeout(self.limits.upload_s):
                form = await parser.parse()
        except TimeoutError as error:
            raise RefusedError(408, "the photo arrived too slowly: send it again, or a smaller one") from error
        except (MultiPartException, FormParserError, UnicodeError, LookupError, ValueError) as error:
            raise RefusedError(400, "the body is no valid multipart form: send one with the file `photo`") from error
        return await self._read(form, reservation.bytes)

    async def _chunks(self, request: Request, reservation: Reservation) -> AsyncGenerator[bytes, None]:
        more = True
        while more:
            async with asyncio.timeout(self.limits.stalled_s):
                message = await request.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            more, chunk = message.get("more_body", False), message.get("body", b"")
            reservation.add(len(chunk))
            yield chunk

    async def _read(self, form: FormData, received: int) -> Upload:
        photo, region = form.get("photo"), form.get("region")
        try:
            if not isinstance(photo, UploadFile):
                raise RefusedError(422, MISSING)
            if isinstance(region, UploadFile):
                area: bytes | None = await region.read()
            else:
                area = None if region is None else region.encode(errors="replace")
            if area is not None and len(area) > REGION_BYTES:
                raise RefusedError(422, f"region has more than {REGION_BYTES / 1e6:g} MB: give one with fewer points")
            name = (photo.filename or "photo").encode(errors="replace").decode()
            name = "".join(each for each in name if each.isprintable())[-NAME:] or "photo"
            return Upload(await photo.read(), name, area, received)
        finally:
            await form.close()


def _check_size(size: int, limits: Limits) -> None:
    if size > limits.megabytes * 1e6:
        raise RefusedError(413, f"the request has more than {limits.megabytes:g} MB: send a smaller photo")
