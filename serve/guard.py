"""The outermost layer of the service: who may ask, the security headers of every answer, and a line of log for each."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import logging
import time
import traceback
from collections.abc import Collection, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jzi.errors import ConfigError
from jzi.serve.metrics import Metrics

log = logging.getLogger("jzi.serve")

#: Headers of every answer. OpenStreetMap's tiles, a layer of the page's map, are refused without a referrer.
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: https://tile.openstreetmap.org; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "strict-origin-when-cross-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}

#: Paths that need no token: the page, which asks for it, what it is made of, the reference and the readiness probe.
OPEN = ("/", "/docs", "/openapi.json", "/health")
STATIC = "/static/"

#: Shortest token, characters.
TOKEN = 16

#: Seconds without a byte of a refused body, and in all, for which the rest of it is discarded, so that the client reads
#: the answer: closing a connection with unread bytes resets it.
DISCARD_S, DISCARD_ALL_S = 2.0, 10.0


@dataclass(frozen=True)
class Access:
    """Who may use the service.

    Attributes:
        token: bearer token that requests must carry; empty for none.
        hosts: host names by which the service is addressed, beside `localhost` and IP addresses; a browser that was
            led here by another name (DNS rebinding) is refused.

    Raises:
        ConfigError: the token is too short, or has characters that no header may have.
    """

    token: str = ""
    hosts: Collection[str] = ()

    def __post_init__(self) -> None:
        if self.token and not (len(self.token) >= TOKEN and self.token.isascii() and self.token.isprintable()):
            raise ConfigError(
                f"JZI_TOKEN must have {TOKEN} ASCII characters or more: make one with "
                "python -c 'import secrets; print(secrets.token_urlsafe())'"
            )

    def refusal(self, method: str, path: str, headers: Headers) -> tuple[int, str] | None:
        """Status and sentence for a request that is refused; None if it is not."""
        host = headers.get("host", "")
        if not self._accepts_host(host):
            return 400, "this host name is not that of the service: use its address, or start it with --allowed-host"
        origin = headers.get("origin")
        if method not in ("GET", "HEAD") and origin is not None and _netloc(origin) != host.lower():
            return 403, "the request comes from a page of another site: use the service's own page"
        if self.token and path not in OPEN and not path.startswith(STATIC):
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self.token.encode()):
                return 401, "the token is missing or wrong: send the header Authorization: Bearer TOKEN"
        return None

    def _accepts_host(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            return False
        if name == "localhost" or name in {each.lower() for each in self.hosts}:
            return True
        try:
            ipaddress.ip_address(name)  # no name, so no DNS
        except ValueError:
            return False
        return True


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


class Guard:
    """ASGI middleware, the outermost.

    It refuses requests that `Access` refuses, adds `HEADERS`, turns exceptions into a sentence with status 500, counts
    and logs requests, and discards what a client still sends after it was refused, so that it reads why.

    Args:
        app: wrapped application.
        access: who may use the service.
        metrics: counts requests.
    """

    def __init__(self, app: ASGIApp, access: Access, metrics: Metrics) -> None:
        self.app, self.access, self.metrics = app, access, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        record: dict[str, Any] = scope.setdefault("state", {}).setdefault("record", {})
        headers = Headers(scope=scope)
        try:
            if refusal := self.access.refusal(scope["method"], scope["path"], headers):
                await _sentence(*refusal)(scope, exchange.receive, exchange.send)
            else:
                await self.app(scope, exchange.receive, exchange.send)
        except Exception as error:
            record |= {
                "error": getattr(error, "kind", type(error).__name__),  # of a worker's process, as it is there
                "at": getattr(error, "at", None) or frames(error),
            }
            if not exchange.status:
                await _sentence(500, "the service failed; its log says where")(scope, exchange.receive, exchange.send)
        finally:
            self._report(scope, exchange, record)

    def _report(self, scope: Scope, exchange: _Exchange, record: MutableMapping[str, Any]) -> None:
        route = getattr(scope.get("route"), "path", "other")  # never the path itself, which may hold anything
        status, seconds = exchange.status or 499, time.monotonic() - exchange.start  # 499: the client has gone
        self.metrics.observe(route, status, seconds)
        if status < 400 and route != "/locate":
            return
        entry = {"route": route, "status": status, "seconds": round(seconds, 4), "received": exchange.received}
        level = logging.ERROR if status >= 500 and status != 503 else logging.INFO
        log.log(level, "request", extra={"entry": entry | dict(record)})


def _sentence(status: int, detail: str) -> Response:
    headers = {"www-authenticate": "Bearer"} if status == 401 else None
    return JSONResponse({"detail": detail}, status, headers)


def frames(error: BaseException) -> list[str]:
    """Where an error was raised; its message may quote a photo's name or position."""
    return [f"{frame.name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)[-4:]]


class _Exchange:
    """One request and its response, as they pass."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self.start, self.status, self.received = time.monotonic(), 0, 0
        headers = Headers(scope=scope)
        has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        self._unread = has_body and "expect" not in headers  # a client that expects 100 has sent nothing yet

    async def receive(self) -> Message:
        message = await self._receive()
        self.received += len(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._unread = False
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": list(message["headers"])}
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            if self._unread:
                headers["connection"] = "close"
        elif self._unread and not message.get("more_body", False):
            await self._send({**message, "more_body": True})  # complete by its length; the connection stays open
            message = {"type": "http.response.body", "body": b""}
            try:
                async with asyncio.timeout(DISCARD_ALL_S):
                    while self._unread:
                        async with asyncio.timeout(DISCARD_S):
                            await self.receive()
            except TimeoutError:
                pass
        await self._send(message)


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, event, and the fields of the entry."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record; of an exception the type alone, as its message may hold anything."""
        entry = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "event": str(record.msg).partition("\n")[0],  # not its arguments, which may name a photo
            "logger": record.name,
            **getattr(record, "entry", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            entry |= {"error": type(record.exc_info[1]).__name__, "at": frames(record.exc_info[1])}
        return json.dumps(entry)
