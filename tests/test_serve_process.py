"""The service as a process of its own, and clients on raw sockets: slow, gone, malformed, and the end by SIGTERM."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jzi.tests.children import Child

pytestmark = pytest.mark.slow

FORM = "Content-Type: multipart/form-data; boundary=x"


class Service:
    """A running service.

    Args:
        child: its process.
    """

    def __init__(self, child: Child) -> None:
        self.child = child
        child.wait_until(lambda: '"started"' in child.errors)
        self.port = int(re.search(r":(\d+);", child.errors)[1])

    def connect(self, data: bytes = b"") -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        connection.sendall(data)
        return connection

    def head(self, length: int, *headers: str) -> bytes:
        lines = ["POST /locate HTTP/1.1", "Host: localhost", FORM, f"Content-Length: {length}", *headers]
        return "\r\n".join([*lines, "", ""]).encode()

    def post(self, photo: bytes) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("POST", "/locate", form(photo), dict([FORM.split(": ")]))
        response = connection.getresponse()
        response.read()
        connection.close()
        return response.status


def form(photo: bytes) -> bytes:
    return b'--x\r\nContent-Disposition: form-data; name="photo"; filename="a"\r\n\r\n' + photo + b"\r\n--x--\r\n"


def status(connection: socket.socket) -> int:
    """The status of the answer; 0 if the connection was closed without one."""
    try:
        answer = connection.recv(65536)
    except ConnectionResetError:
        return 0
    return int(answer[9:12]) if answer else 0


@pytest.fixture(scope="module")
def start_service(zoom_folder: Path) -> Callable[[], Child]:
    command = [sys.executable, "-m", "jzi", "serve", "--model", zoom_folder, "--port", "0"]
    return lambda: Child(command)


@pytest.fixture(scope="module")
def service(start_service: Callable[[], Child]) -> Iterator[Service]:
    """A service that outlives the tests: what one client does, the next must not notice."""
    with start_service() as child:
        yield Service(child)
    assert "Traceback" not in child.errors


@pytest.fixture(scope="module")
def photo(town_folder: Path) -> bytes:
    return (town_folder / "photos" / "day0" / "000.jpg").read_bytes()


def test_slow_clients_are_closed_and_others_answered_beside_them(service, photo) -> None:
    start = time.monotonic()
    headers = [service.connect(b"POST /locate HTTP/1.1\r\nHost: loc") for _ in range(50)]
    bodies = [service.connect(service.head(1_000_000) + form(photo)[:100]) for _ in range(300)]
    assert service.post(photo) == 200 and time.monotonic() - start < 9
    assert [status(each) for each in headers] == [0] * 50
    assert [status(each) for each in bodies] == [408] * 300
    assert 8 < time.monotonic() - start < 25


def test_malformed_requests_are_refused_and_the_service_lives(service, photo) -> None:
    rng = np.random.default_rng(0)
    request = service.head(len(form(photo))) + form(photo)
    chunked = (
        b"POST /locate HTTP/1.1\r\nHost: localhost\r\n" + FORM.encode() + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    for data in (b"\x16\x03\x01\x02\x00", b"GET / HTTP/9\r\n\r\n", chunked + b"zz\r\n", b"GET /" + b"a" * 70_000):
        assert status(service.connect(data)) in (0, 400)
    for _ in range(200):
        data = bytearray(request)
        for at in rng.integers(0, 300, rng.integers(1, 30)):
            data[at] = rng.integers(256)
        connection = service.connect()
        connection.settimeout(0.05)
        try:
            connection.sendall(data)
            assert status(connection) not in (500, 502)
        except (TimeoutError, OSError):
            pass  # it waits for the rest of a request, or has refused the beginning
        connection.close()
    refused = service.connect(service.head(10**9, "Expect: 100-continue"))
    assert status(refused) == 413
    assert service.post(photo) == 200


def test_a_refused_client_that_still_sends_reads_the_reason(service) -> None:
    connection = service.connect(service.head(25_000_000))
    connection.sendall(bytes(3_000_000))
    time.sleep(0.2)
    assert status(connection) == 413


def test_a_refused_client_that_sends_slowly_reads_the_reason(service) -> None:
    connection = service.connect(service.head(25_000_000))
    for _ in range(8):
        connection.sendall(bytes(200_000))
        time.sleep(0.4)  # in all longer than the service waits for a client that sends nothing
    assert status(connection) == 413


def test_photos_of_clients_that_are_gone_are_not_computed(service, photo) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (7000, 5000)).save(buffer, "PNG")  # about a second each
    before = len(service.child.errors)
    for _ in range(40):
        service.connect(service.head(len(form(buffer.getvalue()))) + form(buffer.getvalue())).close()
    start = time.monotonic()
    assert service.post(photo) == 200 and time.monotonic() - start < 30
    entries = [json.loads(line) for line in service.child.errors[before:].splitlines()]
    assert [entry.get("status") for entry in entries].count(499) >= 35


def test_sigterm_ends_the_service_within_ten_seconds(start_service: Callable[[], Child]) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (7000, 5000)).save(buffer, "PNG")
    with start_service() as child, ThreadPoolExecutor(60) as pool:
        service = Service(child)
        answers = [pool.submit(service.post, buffer.getvalue()) for _ in range(60)]
        open_uploads = [service.connect(service.head(1000)) for _ in range(5)]
        time.sleep(2)
        start = time.monotonic()
        child.process.send_signal(signal.SIGTERM)
        assert child.wait() == -signal.SIGTERM and time.monotonic() - start < 10
        assert {answer.result() for answer in answers} <= {200, 503}
    assert {status(each) for each in open_uploads} == {503}
    lines = child.errors.splitlines()
    assert lines[0].startswith("serving on ") and all(json.loads(line)["event"] for line in lines[1:])


def test_clients_that_send_a_byte_at_a_time_end_with_the_service_and_are_no_errors(start_service) -> None:
    with start_service() as child, ThreadPoolExecutor(6) as pool:
        service = Service(child)
        uploads = [service.connect(service.head(100_000) + form(b"")[:60]) for _ in range(3)]
        refused = [service.connect(service.head(10**12)) for _ in range(3)]

        def drip(connection: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection.sendall(b"a")
                    time.sleep(0.1)

        drips = [pool.submit(drip, each) for each in (*uploads, *refused)]
        time.sleep(1)
        child.process.send_signal(signal.SIGTERM)
        assert child.wait() == -signal.SIGTERM
        for each in drips:
            each.result(timeout=10)
    lines = [json.loads(line) for line in child.errors.splitlines()[1:]]
    assert [each for each in lines if each["level"] == "error"] == []
