"""An HTTP proxy that makes an object store fail as real ones do, at random but reproducibly.

    python -m jzi.tests.fault_proxy http://127.0.0.1:5000 [SEED]

runs it by hand in front of a server, and prints its URL.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import urlsplit

#: Probability of each fault of a request.
FAULTS = {
    "500": 0.04,  # InternalError; the request is not forwarded
    "503": 0.04,  # SlowDown; the request is not forwarded ("403" is a fault too, which clients do not retry)
    "reset": 0.03,  # before the request is forwarded
    "reset after": 0.03,  # after it was forwarded: done, but the client cannot know
    "late": 0.01,  # the answer comes after the client's time-out
    "twice": 0.04,  # the server receives the request twice
    "cut upload": 0.04,  # the connection breaks halfway through the body of the request
    "cut download": 0.04,  # the connection breaks halfway through the body of the answer
}

#: Bodies of S3's errors.
ERRORS = {
    500: "<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>",
    403: "<Error><Code>InvalidAccessKeyId</Code><AWSAccessKeyId>AKIDEXAMPLE</AWSAccessKeyId></Error>",
    503: "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>",
}

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"}


class FaultProxy:
    """Context manager that forwards requests to a server, and makes some of them fail.

    Args:
        upstream: URL of the server.
        faults: probability of each fault; none by default.
        seed: of the choice of faults.
        late_s: seconds that a late answer is delayed.

    Attributes:
        url: URL of the proxy.
        faults: set by `begin`, at any time.
        dead: while true, every request is answered with 503.
        dies_after: number of requests after which the proxy is dead; None for never.
        counts: number of requests by fault ("none" for those that were only forwarded).
    """

    def __init__(
        self, upstream: str, faults: Mapping[str, float] | None = None, *, seed: int = 0, late_s: float = 1.5
    ) -> None:
        self.upstream = urlsplit(upstream)
        self.faults = dict(faults or {})
        self.late_s = late_s
        self._lock = threading.Lock()
        self.begin(self.faults, seed)
        proxy = self

        class Handler(_Handler):
            def setup(self) -> None:
                self.proxy = proxy
                super().setup()

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def begin(self, faults: Mapping[str, float], seed: int = 0, *, dies_after: int | None = None) -> None:
        """Start to count and to fail anew."""
        with self._lock:
            self.faults, self.dead, self.dies_after = dict(faults), False, dies_after
            self.counts: Counter[str] = Counter()
            self._random = random.Random(seed)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def draw(self) -> str:
        """Draw the fault of the next request."""
        with self._lock:
            self.dead |= self.dies_after is not None and self.counts.total() >= self.dies_after
            names = list(self.faults)
            weights = [self.faults[name] for name in names]
            fault = "503" if self.dead else self._random.choices([*names, "none"], [*weights, 1 - sum(weights)])[0]
            self.counts[fault] += 1
            return fault

    def forward(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[http.client.HTTPResponse, bytes]:
        """Send a request to the server, and return its answer and the body of it."""
        host, port = self.upstream.hostname, self.upstream.port
        assert host
        connection = http.client.HTTPConnection(host, port, timeout=30)
        with contextlib.closing(connection):
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            return response, response.read()

    def forward_half(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> None:
        """Send a request with half of its body, and break the connection to the server."""
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        with socket.create_connection((self.upstream.hostname, self.upstream.port), timeout=30) as connection:
            connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + body[: len(body) // 2])
            time.sleep(0.02)  # a reset discards what has not been read yet
            break_connection(connection)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients break connections, and so does the proxy."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 65536  # head and body in one packet: else each answer waits 40 ms for an acknowledgement
    disable_nagle_algorithm = True
    proxy: FaultProxy

    def log_message(self, *args: object) -> None: ...

    def handle_request(self) -> None:
        fault = self.proxy.draw()
        request = self.command, self.path, self.headers, self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault.isdecimal():
            return self.answer(int(fault), {"Content-Type": "application/xml"}, ERRORS[int(fault)].encode())
        if fault == "reset":
            return break_connection(self.connection)
        if fault == "cut upload" and request[-1]:
            self.proxy.forward_half(*request)
            return break_connection(self.connection)
        response, content = self.proxy.forward(*request)
        if fault == "twice":
            response, content = self.proxy.forward(*request)
        if fault == "reset after":
            return break_connection(self.connection)
        if fault == "late":
            time.sleep(self.proxy.late_s)
        return self.answer(response.status, dict(response.getheaders()), content, fault == "cut download")

    def __getattr__(self, name: str) -> Callable[[], None]:
        if name.startswith("do_"):
            return self.handle_request
        raise AttributeError(name)

    def answer(self, status: int, headers: Mapping[str, str], body: bytes, cut: bool = False) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        length = next((value for name, value in headers.items() if name.lower() == "content-length"), None)
        self.send_header("Content-Length", length if self.command == "HEAD" and length else str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.wfile.flush()
            time.sleep(0.02)
            break_connection(self.connection)


def break_connection(connection: socket.socket) -> None:
    """Close a connection with a reset (RST) rather than an end (FIN)."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    os.close(connection.detach())  # `close` would wait for the handler's files


def main() -> None:
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    with FaultProxy(sys.argv[1], FAULTS, seed=seed) as proxy:
        print(proxy.url, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
        print(dict(proxy.counts))


if __name__ == "__main__":
    main()
