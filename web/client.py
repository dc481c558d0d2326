"""A small HTTP client with bounds: sizes, times, rates, repetitions, redirects, and where a secret may go."""

from __future__ import annotations

import json
import random
import socket
import ssl
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode, urljoin

from tqdm import tqdm

from jzi.errors import ConfigError, DatasetError, first_line
from jzi.store.disk.files import write_whole
from jzi.version import __version__
from jzi.web.line import Line
from jzi.web.rules import TRANSIENT, Address, HttpError, may_follow, retry_after

#: Largest JSON document, bytes: 2000 records of Mapillary with links have about 3 MB, a page of STAC items as much.
MAX_JSON = 32 * 2**20

#: Bytes of an error that are read, to see what a service says.
MAX_ERROR = 2**16

#: Redirects of one request that are followed.
MAX_REDIRECTS = 5

#: Longest time before a repetition that is waited for, seconds; a service that asks for more ends the run.
MAX_WAIT_S = 600.0

#: A pause that is longer than this is announced, seconds.
ANNOUNCED_S = 5.0

#: How an error of a service is understood: from status and body, None to take it by its status.
Judge = Callable[[int, bytes], HttpError | None]


@dataclass(frozen=True)
class HttpOptions:
    """Limits of a client; the defaults suit services on the Internet.

    Attributes:
        timeout_s: seconds without a byte, or for a connection.
        total_s: seconds for a whole answer, so that one that drips ends.
        retries: repetitions of a request that may succeed later: with `backoff_s` of 1, they span two minutes.
        backoff_s: seconds before the first repetition, doubled for each further one and varied by a half.
        per_minute: requests a minute, of all threads together; None for as many as they send.
        plain_http: whether addresses on other machines may be asked without encryption; never with a secret.
    """

    timeout_s: float = 60.0
    total_s: float = 300.0
    retries: int = 6
    backoff_s: float = 1.0
    per_minute: float | None = None
    plain_http: bool = False


class Pace:
    """Spaces requests of several threads evenly, and pauses them all."""

    def __init__(self, per_minute: float | None) -> None:
        self._interval_s = 60 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self, stop: threading.Event) -> None:
        """Wait for the turn of a request, or until `stop` is set."""
        with self._lock:
            now = time.monotonic()
            turn = max(self._next, now)
            self._next = turn + self._interval_s
        if turn > now:
            stop.wait(turn - now)

    def pause(self, seconds: float) -> None:
        """Let no request begin for some seconds."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


@lru_cache(maxsize=1)
def _ssl_context() -> ssl.SSLContext:
    """The context of all connections: to load the certificates takes a tenth of a second."""
    import httpx

    return httpx.create_ssl_context()


class Client:
    """Sends GET requests, from several threads; a context manager, which closes it.

    Args:
        name: of the service, in messages.
        base: its URL, which decides what its answers may link to (`may_follow`).
        options: limits.
        authorization: a header for requests to the scheme, host and port of `base`, and to no others. It is in no
            message.

    Attributes:
        requests: number of requests that were sent.

    Raises:
        ConfigError: the URL cannot be used, or a secret would be sent unencrypted.
        DatasetError: httpx is missing.
    """

    def __init__(
        self,
        name: str,
        base: str,
        options: HttpOptions = HttpOptions(),
        *,
        authorization: str = "",
    ) -> None:
        self.name, self.base, self.requests = name, Address.parse_base(base, f"the URL of {name}"), 0
        self._options, self._authorization = options, authorization
        if self.base.scheme == "http" and not self.base.is_loopback and (authorization or not options.plain_http):
            what = f"the token of {name}" if authorization else f"requests to {name}"
            raise ConfigError(f"{what} would be sent to {self.base.host} unencrypted: give a URL that begins https://")
        try:
            import httpx  # noqa: F401
        except ImportError as error:
            raise DatasetError(f"{name} needs a package that is missing (httpx): pip install 'jzi[dataset]'") from error
        self._pace = Pace(options.per_minute)
        self._closed = threading.Event()
        self._lines: list[Line] = []
        self._local, self._lock = threading.local(), threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the requests that are under way in other threads, which then fail, and close all connections."""
        self._closed.set()
        with self._lock:
            lines, self._lines = self._lines, []
        for line in lines:
            line.cut()
            line.close()

    def get_json(
        self, url: str, params: Mapping[str, str] | None = None, *, limit: int = MAX_JSON, judge: Judge | None = None
    ) -> Any:
        """The JSON document at a URL; redirects are followed within the service only.

        Args:
            url: the URL, or a path that begins with a slash, which is appended to that of the service.
            params: the query.
            limit: largest document, bytes.
            judge: what errors of the service mean.

        Raises:
            HttpError: the service does not answer, or not with JSON.
        """
        target = self.base.url + url if url.startswith("/") else url
        target += ("&" if "?" in target else "?") + urlencode(params, safe=",:") if params else ""

        def parse(content: bytes) -> Any:
            try:
                return json.loads(content)
            except (ValueError, RecursionError) as error:
                kind = "a web page" if content.lstrip()[:1] == b"<" else f"no JSON ({first_line(error)})"
                raise HttpError(f"{self.name} answers with {kind}: try again later", 200, repeats=2) from None

        return self._repeated(target, limit, judge, parse, same_origin=True)

    def download(self, url: str, *, limit: int, judge: Judge | None = None) -> bytes:
        """The bytes at a URL, which a service has named or `base` is part of.

        Args:
            url: the URL; it is not repeated in errors.
            limit: the most bytes.
            judge: what errors of the service mean.

        Raises:
            HttpError: they cannot be had, or are too many (code 413).
        """
        return self._repeated(url, limit, judge, bytes)

    def save(self, url: str, path: Path, *, limit: int, judge: Judge | None = None) -> int:
        """Write the bytes at a URL to a file, atomically and without holding them; return their number.

        Raises:
            HttpError: as of `download`.
            OSError: the file cannot be written.
        """
        written = 0

        def write(temporary: Path) -> None:
            nonlocal written
            with temporary.open("wb") as file:

                def begin() -> None:
                    file.seek(0)
                    file.truncate()

                self._repeated(url, limit, judge, bytes, begin=begin, take=file.write)
                written = file.tell()

        write_whole(path, write)
        return written

    def _repeated(
        self,
        url: str,
        limit: int,
        judge: Judge | None,
        convert: Callable[[bytes], Any],
        *,
        same_origin: bool = False,
        begin: Callable[[], object] = lambda: None,
        take: Callable[[bytes], object] | None = None,
    ) -> Any:
        address = self._checked(url)
        attempt, repeats = 0, Counter[int]()
        while True:
            self._pace.wait(self._closed)
            if self._closed.is_set():
                raise HttpError(f"the request to {self.name} was interrupted: run the command again")
            begin()
            asked_s = None
            try:
                content, error, asked_s = self._answer(address, limit, judge, same_origin, take)
                if error is None:
                    return convert(content)
            except HttpError as raised:
                error = raised
            repeats[error.code] += 1
            if attempt >= self._options.retries or repeats[error.code] > error.repeats:
                raise error
            wait_s = self._options.backoff_s * 2**attempt * random.uniform(0.5, 1.5)
            if asked_s is not None:
                if asked_s > MAX_WAIT_S:
                    raise HttpError(
                        f"{self.name} asks to wait for {asked_s:,.0f} s: run the command again then", error.code
                    ) from None
                wait_s = max(asked_s, wait_s)
            if error.code == 429:  # of all threads
                self._pace.pause(wait_s)
            if wait_s > ANNOUNCED_S:
                tqdm.write(f"{self.name}: {error.reason}; trying again in {wait_s:.0f} s", file=sys.stderr)
            attempt += 1
            self._closed.wait(wait_s)

    def _checked(self, url: str) -> Address:
        try:
            address = Address.parse(url, f"an address that {self.name} gives")
        except ConfigError as error:
            raise HttpError(str(error), 400) from None
        if address.origin != self.base.origin and not may_follow(self.base, address):
            raise HttpError(f"{self.name} refers to {address.host:.100}, which it may not: the file is left out", 400)
        return address

    def _answer(
        self,
        address: Address,
        limit: int,
        judge: Judge | None,
        same_origin: bool,
        take: Callable[[bytes], object] | None,
    ) -> tuple[bytes, HttpError | None, float | None]:
        """The body at an address, or the error that the service reports, and how long it asks to wait, seconds."""
        for _ in range(MAX_REDIRECTS + 1):
            code, headers, content = self._attempt(address, limit, take)
            if code in (301, 302, 303, 307, 308) and headers.get("location"):
                address = self._checked(urljoin(address.url, headers["location"]))
                if same_origin and address.origin != self.base.origin:
                    raise HttpError(
                        f"{self.name} redirects to {address.host:.100}: give the URL that it redirects to", code
                    )
                continue
            if code == 200:
                return content, None, None
            error = (judge and judge(code, content)) or self._refusal(code)
            return b"", error, retry_after(headers.get("retry-after", "")) if error.repeats else None
        raise HttpError(f"{self.name} redirects more than {MAX_REDIRECTS} times: check its URL", 310)

    def _refusal(self, code: int) -> HttpError:
        """The error of a status; the body is not quoted, since it may repeat a secret."""
        if code in TRANSIENT:
            reason = "too many requests" if code == 429 else f"status {code}"
            return HttpError(self._silence(reason), code, repeats=self._options.retries, reason=reason)
        return HttpError(f"{self.name} refuses a request (status {code})", code, reason=f"status {code}")

    def _silence(self, reason: str) -> str:
        return f"{self.name} does not answer ({reason}): try again later, which resumes"

    def _attempt(
        self, address: Address, limit: int, take: Callable[[bytes], object] | None
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body of one request; a body that is wanted is handed to `take`, if that is given."""
        import httpx

        line, received, size = self._line(), bytearray(), 0
        secret = bool(self._authorization) and address.origin == self.base.origin
        headers = {"Authorization": self._authorization} if secret else {}
        failed = partial(HttpError, repeats=self._options.retries)
        try:
            with line.limited(self._options.total_s):
                with self._lock:
                    self.requests += 1
                with line.client.stream(
                    "GET",
                    address.url,
                    headers=headers,
                    extensions={"trace": line.trace},
                ) as response:
                    code = response.status_code
                    most = limit if code == 200 else MAX_ERROR
                    if code == 200 and int(response.headers.get("content-length", "0") or 0) > most:
                        raise HttpError(f"it has more than {most / 2**20:.0f} MiB", 413)
                    for chunk in response.iter_raw():  # raw: what is small cannot become large
                        size += len(chunk)
                        if size > most:
                            if code != 200:
                                break
                            raise HttpError(f"it has more than {most / 2**20:.0f} MiB", 413)
                        if code == 200 and take:
                            take(chunk)
                        else:
                            received += chunk
        except httpx.TransportError as error:
            late = line.is_cut or isinstance(error, httpx.TimeoutException)
            reason = "no answer in time" if late else f"the connection broke: {self._quoted(error)}"
            if isinstance(_root(error), socket.gaierror):
                message = f"there is no {address.host} in the network: check the name, and that this machine is online"
                raise failed(message, reason=reason) from None
            raise failed(self._silence(reason), reason=reason) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise HttpError(f"{self.name} cannot be asked: {self._quoted(error)}", 400) from None
        if line.is_cut:  # looks like the end of an answer without a length
            raise failed(self._silence("no answer in time"), reason="no answer in time")
        return code, response.headers, bytes(received)

    def _quoted(self, error: Exception) -> str:
        text = str(error)
        for secret in (self._authorization, self._authorization.rpartition(" ")[2]):
            text = text.replace(secret, "***") if secret else text
        return first_line(type(error)(text) if text else error)

    def _line(self) -> Line:
        """The line of this thread."""
        import httpx

        line: Line | None = getattr(self._local, "line", None)
        if line is None:
            client = httpx.Client(
                headers={"Accept-Encoding": "identity", "User-Agent": f"jzi/{__version__}"},
                verify=_ssl_context(),
                timeout=self._options.timeout_s,
                limits=httpx.Limits(max_connections=1),
                follow_redirects=False,  # `_answer` checks where they lead
                trust_env=not self.base.is_loopback,  # a proxy is of no use there
            )
            line = self._local.line = Line(client)
            with self._lock:
                self._lines.append(line)
        return line


def _root(error: BaseException) -> BaseException:
    """The first of the errors that led to this one."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return error
