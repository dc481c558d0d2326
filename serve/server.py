"""Run the application: sockets, time-outs of connections, logs, and the end of the service."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from jzi.errors import ConfigError
from jzi.serve.guard import DISCARD_S, HEADERS, JsonFormatter
from jzi.serve.limits import Limits

log = logging.getLogger("jzi.serve")

#: Seconds for the headers of a request; seconds in which a client must read some of its answer.
HEADERS_S, READ_S = 10.0, 30.0

#: Largest headers of a request, bytes.
HEADER_BYTES = 16384

#: Bytes read from a connection at once; as many wait for the application.
READ_BYTES = 65536

#: Connections, each with at most `HEADER_BYTES` of headers and twice `READ_BYTES` of body; further ones are refused.
CONNECTIONS = 1024

#: Connections that the system accepts on behalf of a busy service.
BACKLOG = 1024


class Connection(H11Protocol):
    """An HTTP connection that is closed when its client is too slow to send headers or to read answers."""

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for the headers of the first request."""
        super().connection_made(transport)
        if hasattr(transport, "max_size"):  # asyncio's own, 256 KiB
            transport.max_size = READ_BYTES
        self._idle_since = time.monotonic()
        self._blocked_since: float | None = None
        if len(self.connections) > CONNECTIONS:
            self._answer(503, "there are too many connections: try again later", b"retry-after: 5\r\n")

    def on_response_complete(self) -> None:
        """Begin to wait for the headers of the next request."""
        self._idle_since = time.monotonic()
        super().on_response_complete()

    def data_received(self, data: bytes) -> None:
        """Parse data, unless the connection is being closed."""
        if not self.transport.is_closing():
            super().data_received(data)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, as other errors are refused; nothing can be said within an answer."""
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            self._answer(400, "this is not a valid HTTP/1.1 request: the API is described at /docs")
        else:
            self.transport.abort()

    def close_if_slow(self) -> None:
        """Close the connection if its client has sent no headers, or read no answer, for too long."""
        now = time.monotonic()
        blocked = self.flow.write_paused or self.transport.is_closing()
        self._blocked_since = (self._blocked_since or now) if blocked else None
        if self._blocked_since is not None:
            if now - self._blocked_since > READ_S:
                self.transport.abort()
        elif (self.cycle is None or self.cycle.response_complete) and now - self._idle_since > HEADERS_S:
            self.transport.close()

    def _answer(self, status: int, detail: str, more: bytes = b"") -> None:
        content = f'{{"detail":"{detail}"}}'.encode()
        headers = b"".join(f"{name}: {value}\r\n".encode() for name, value in HEADERS.items())
        self.transport.write(
            f"HTTP/1.1 {status} \r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n".encode()
            + headers + more + b"connection: close\r\n\r\n" + content
        )  # fmt: skip
        self.transport.close()


class Server(uvicorn.Server):
    """uvicorn's server, which also closes slow connections and refuses what is left when it has to end.

    Args:
        config: uvicorn's settings; `http` is `Connection`.
        stop: called when the server stops accepting connections.
        grace_s: seconds after which connections that are still open are then closed, before uvicorn cancels their
            tasks, which it logs as errors.
    """

    def __init__(self, config: uvicorn.Config, stop: Callable[[], None], grace_s: float) -> None:
        super().__init__(config)
        self._stop, self._grace_s = stop, grace_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections."""
        await super().startup(sockets)
        if self.started:
            log.info("started")

    async def on_tick(self, counter: int) -> bool:
        """Close slow connections once a second; called ten times a second."""
        if counter % 10 == 0:
            self._close_slow()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, finish open requests within a time, refuse the others."""
        log.info("stopping")
        self._stop()
        asyncio.get_running_loop().call_later(self._grace_s, self._abort_all)
        await super().shutdown(sockets)

    def _abort_all(self) -> None:
        for connection in list(self.server_state.connections):
            if isinstance(connection, Connection) and connection.transport:
                connection.transport.abort()

    def _close_slow(self) -> None:
        for connection in list(self.server_state.connections):
            if isinstance(connection, Connection):
                connection.close_if_slow()


def listen(host: str, port: int) -> socket.socket:
    """Open the socket that the service listens on.

    Args:
        host: name or address.
        port: number; 0 for any that is free.

    Raises:
        ConfigError: the address does not exist here, or is in use.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no host name"
        raise ConfigError(f"cannot listen on {host} port {port}: {reason}; give another --host or --port") from error


def is_loopback(listener: socket.socket) -> bool:
    """Return whether only this machine can connect to a socket."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def log_as_json() -> None:
    """Write all logs to standard error, a JSON object per line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(handlers=[handler], level=logging.ERROR, force=True)
    log.setLevel(logging.INFO)
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # such forms are answered with status 400


def run(app: FastAPI, listener: socket.socket, limits: Limits) -> None:
    """Serve until SIGINT or SIGTERM; then open requests have `Limits.shutdown_s` seconds.

    Args:
        app: from `make_app`.
        listener: from `listen`.
        limits: those of the application.
    """
    log_as_json()
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=math.ceil(limits.shutdown_s + DISCARD_S) + 1,
        h11_max_incomplete_event_size=HEADER_BYTES,
    )
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # uvicorn finishes open requests, then re-raises the signal
    Server(config, lambda: app.state.stop(), limits.shutdown_s + DISCARD_S).run(sockets=[listener])
