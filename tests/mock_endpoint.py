"""An OpenAI-compatible endpoint on the loopback interface that answers by a script, and misbehaves on request.

    python -m jzi.tests.mock_endpoint

runs one by hand, which answers "A" to everything, and prints its URL.
"""

from __future__ import annotations

import json
import math
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

#: Log-probabilities of a model that prefers A: by token, at each place of its answer.
PREFERS_A = ({"A": math.log(0.7), " A": math.log(0.1), "B": math.log(0.15), "The": math.log(0.05)},)


@dataclass
class Response:
    """What the endpoint does with a request.

    Attributes:
        status: status code.
        body: body, or a document.
        headers: headers beside those of every response.
        delay_s: seconds before the response.
        cut: whether the connection is reset halfway through the body.
        drip_s: seconds between the bytes of the body.
        head_drip_s: seconds between the bytes of a header, after which the connection is closed.
    """

    status: int = 200
    body: bytes | dict[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    cut: bool = False
    drip_s: float = 0.0
    head_drip_s: float = 0.0


def completion(
    text: str | None,
    places: Sequence[Mapping[str, float]] = (),
    *,
    finish: str = "stop",
    system: str | None = None,
    **message: object,
) -> Response:
    """A completion; the first token of each place is the one that was chosen."""
    tokens = [
        {"token": next(iter(place)), "logprob": next(iter(place.values())),
         "top_logprobs": [{"token": token, "logprob": value} for token, value in place.items()]}
        for place in places
    ]  # fmt: skip
    return Response(
        body={
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text, **message},
                    "finish_reason": finish,
                    "logprobs": {"content": tokens} if tokens else None,
                }
            ],
            "usage": {"prompt_tokens": 700, "completion_tokens": max(len(tokens), 1)},
            "system_fingerprint": system,
        }
    )


def error(status: int, message: str = "", **headers: str) -> Response:
    """An error, as OpenAI's endpoint reports it."""
    return Response(
        status, {"error": {"message": message}}, {name.replace("_", "-"): headers[name] for name in headers}
    )


class MockEndpoint:
    """Context manager: the endpoint.

    Args:
        respond: returns the response to the document of a request with images.
        probe: response to requests without images.

    Attributes:
        url: to give to a client.
        requests: documents received.
        headers: headers received, by request.
        paths: paths requested.
    """

    def __init__(
        self,
        respond: Callable[[dict[str, Any]], Response] = lambda _: completion("A", PREFERS_A),
        probe: Response | None = None,
    ) -> None:
        self.respond, self.probe = respond, probe or completion("A", PREFERS_A)
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self._lock = threading.Lock()
        mock = self

        class Handler(_Handler):
            def setup(self) -> None:
                self.mock = mock
                super().setup()

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def asked(self) -> list[dict[str, Any]]:
        """The requests with images."""
        return [request for request in self.requests if images(request)]

    def receive(self, path: str, headers: Mapping[str, str], document: dict[str, Any]) -> Response:
        """Record a request, and choose the response."""
        with self._lock:
            self.paths.append(path)
            self.headers.append(dict(headers))
            self.requests.append(document)
        return self.respond(document) if images(document) else self.probe


def images(document: Mapping[str, Any]) -> list[str]:
    """The data URLs of a request."""
    content = document["messages"][0]["content"]
    return [part["image_url"]["url"] for part in content if part["type"] == "image_url"]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients break connections."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 65536
    disable_nagle_algorithm = True
    mock: MockEndpoint

    def log_message(self, *args: object) -> None: ...

    def do_POST(self) -> None:
        document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        response = self.mock.receive(self.path, self.headers, document)
        time.sleep(response.delay_s)
        if response.head_drip_s:
            self.close_connection = True
            for sent in [b"HTTP/1.1 200 OK\r\nX: ", *[b"x"] * 50]:
                self.wfile.write(sent)
                self.wfile.flush()
                time.sleep(response.head_drip_s)
            return
        body = response.body if isinstance(response.body, bytes) else json.dumps(response.body).encode()
        self.send_response(response.status)
        for name, value in {"Content-Type": "application/json", **response.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if response.cut:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
            return
        for i in range(0, len(body), 1 if response.drip_s else max(len(body), 1)):
            self.wfile.write(body[i : i + 1] if response.drip_s else body)
            self.wfile.flush()
            time.sleep(response.drip_s)

    def do_GET(self) -> None:
        self.mock.paths.append(f"GET {self.path}")
        self.send_error(405)


if __name__ == "__main__":
    with MockEndpoint() as endpoint:
        print(endpoint.url, flush=True)
        threading.Event().wait()
