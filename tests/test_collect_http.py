from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jzi.errors import ConfigError
from jzi.web.client import Client, HttpOptions, Pace
from jzi.web.rules import Address, HttpError, may_follow, retry_after

FAST = HttpOptions(timeout_s=5, total_s=5, backoff_s=0.01, retries=3)

Handle = Callable[[BaseHTTPRequestHandler, int], None]


def reply(request: BaseHTTPRequestHandler, status: int = 200, body: bytes = b'{"a": 1}', **headers: str) -> None:
    request.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()
    request.wfile.write(body)


class Host:
    """A server whose requests a function handles; the function also gets their number, from 0."""

    def __init__(self) -> None:
        self.handle: Handle = lambda request, number: reply(request)
        self.seen: list[tuple[str, str]] = []
        host = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: object) -> None: ...

            def do_GET(self) -> None:
                host.seen.append((self.path, self.headers.get("Authorization", "")))
                host.handle(self, len(host.seen) - 1)

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *args: object) -> None: ...

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    yield host
    host.server.shutdown()
    host.server.server_close()


def client(host: Host, options: HttpOptions = FAST, authorization: str = "") -> Client:
    return Client("the service", host.url, options, authorization=authorization)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 503])
def test_what_may_pass_is_asked_again(host: Host, status: int) -> None:
    host.handle = lambda request, number: reply(request, status if number < 2 else 200)
    with client(host) as opened:
        assert opened.get_json("/x", {"bbox": "1,2"}) == {"a": 1}
        assert opened.requests == 3
    assert host.seen[0][0] == "/x?bbox=1,2"


@pytest.mark.parametrize("status", [400, 401, 404])
def test_what_will_not_pass_is_asked_once(host: Host, status: int) -> None:
    host.handle = lambda request, number: reply(request, status)
    with client(host) as opened, pytest.raises(HttpError, match=f"status {status}") as raised:
        opened.get_json("/x")
    assert (raised.value.code, raised.value.passes, len(host.seen)) == (status, False, 1)


def test_a_dead_server_ends_in_one_sentence() -> None:
    host = Host()
    host.server.shutdown()
    host.server.server_close()
    with client(host) as opened, pytest.raises(HttpError, match="the service does not answer") as raised:
        opened.get_json("/x")
    assert raised.value.passes and opened.requests == 4


def test_broken_connections_are_asked_again(host: Host) -> None:
    def handle(request: BaseHTTPRequestHandler, number: int) -> None:
        reply(request, Content_Length="8" if number else "100")

    host.handle = handle
    with client(host) as opened:
        assert opened.get_json("/x") == {"a": 1}


def test_retry_after_is_respected_by_all_threads(host: Host) -> None:
    host.handle = lambda request, number: reply(request, 429 if number == 0 else 200, Retry_After="1")
    began = time.monotonic()
    with client(host) as opened:
        opened.get_json("/x")
        assert time.monotonic() - began >= 1
        host.seen.clear()
        host.handle = lambda request, number: reply(request, 429, Retry_After="86400")
        with pytest.raises(HttpError, match="asks to wait for 86,400 s: run the command again then"):
            opened.get_json("/x")


def drip(request: BaseHTTPRequestHandler, start: bytes) -> None:
    request.wfile.write(start)
    for _ in range(200):
        request.wfile.write(b"x")
        request.wfile.flush()
        time.sleep(0.02)


@pytest.mark.parametrize("start", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_answers_that_drip_end_in_time(host: Host, start: bytes) -> None:
    host.handle = lambda request, number: drip(request, start)
    with (
        client(host, HttpOptions(total_s=0.2, retries=0)) as opened,
        pytest.raises(HttpError, match="no answer in time"),
    ):
        opened.download(f"{host.url}/x", limit=1000)


def test_closing_ends_requests_of_other_threads(host: Host) -> None:
    host.handle = lambda request, number: drip(request, b"HTTP/1.1 200 OK\r\nX: ")
    errors: list[BaseException] = []
    opened = client(host, HttpOptions(retries=6, backoff_s=60))

    def ask() -> None:
        try:
            opened.get_json("/x")
        except HttpError as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    while not host.seen:
        time.sleep(0.01)
    opened.close()
    thread.join(20)
    assert not thread.is_alive() and len(errors) == 1


def test_files_that_are_too_large_are_not_read(host: Host) -> None:
    host.handle = lambda request, number: reply(request, body=b"x" * 2000)
    with client(host) as opened:
        with pytest.raises(HttpError, match="more than") as raised:
            opened.download(f"{host.url}/x", limit=1999)
        assert raised.value.code == 413
        host.handle = lambda request, number: (request.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * 2000), None)[1]
        with pytest.raises(HttpError, match="more than"):
            opened.download(f"{host.url}/x", limit=1999)
        assert len(opened.download(f"{host.url}/x", limit=2000)) == 2000


def test_a_file_is_written_whole_or_not_at_all(host: Host, tmp_path: Path) -> None:
    host.handle = lambda request, number: reply(request, body=b"abcdef", Content_Length="6" if number else "60")
    with client(host) as opened:
        assert opened.save(f"{host.url}/x", tmp_path / "file", limit=100) == 6
        assert (tmp_path / "file").read_bytes() == b"abcdef"
        with pytest.raises(HttpError):
            opened.save(f"{host.url}/x", tmp_path / "other", limit=5)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_web_page_is_no_answer(host: Host) -> None:
    host.handle = lambda request, number: reply(request, body=b"<html>hello")
    with client(host) as opened, pytest.raises(HttpError, match="answers with a web page"):
        opened.get_json("/x")
    assert len(host.seen) == 3


def test_a_secret_goes_to_its_service_alone_and_into_no_message(host: Host) -> None:
    other = Host()

    def handle(request: BaseHTTPRequestHandler, number: int) -> None:
        reply(request, 302, Location=f"{other.url}/y")

    host.handle = handle
    with client(host, authorization="OAuth secret") as opened:
        with pytest.raises(HttpError, match="redirects to") as raised:
            opened.get_json("/x")
        assert "secret" not in str(raised.value)
        assert opened.download(f"{host.url}/x", limit=100) == b'{"a": 1}'
    assert [secret for _, secret in host.seen] == ["OAuth secret"] * 2
    assert other.seen == [("/y", "")]
    other.server.shutdown()
    other.server.server_close()


def test_redirects_end(host: Host) -> None:
    host.handle = lambda request, number: reply(request, 302, Location="/x")
    with client(host) as opened, pytest.raises(HttpError, match="redirects more than"):
        opened.download(f"{host.url}/x", limit=100)


def test_a_token_is_not_sent_in_the_clear() -> None:
    with pytest.raises(ConfigError, match="unencrypted"):
        Client("the service", "http://example.org", authorization="OAuth secret")
    with pytest.raises(ConfigError, match="unencrypted"):
        Client("the service", "http://example.org")
    Client("the service", "http://example.org", HttpOptions(plain_http=True)).close()


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://example.org", "https://user:secret@example.org", "https://", "https://a b",
            "//x", "https://example.org:99999", "https://[::1", "https://exa\\mple.org", "https://a.b/" + "x" * 9000],
)  # fmt: skip
def test_other_urls_are_refused_without_repeating_them(url: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Address.parse(url, "the URL")
    assert "secret" not in str(raised.value) and "passwd" not in str(raised.value)


@pytest.mark.parametrize(
    ("origin", "target", "allowed"),
    [
        ("https://graph.example.org", "https://cdn.example.net", True),
        ("https://graph.example.org", "http://cdn.example.net", False),
        ("https://graph.example.org", "https://127.0.0.1", False),
        ("https://graph.example.org", "https://localhost", False),
        ("https://graph.example.org", "https://10.1.2.3", False),
        ("https://graph.example.org", "https://169.254.169.254", False),
        ("https://graph.example.org", "https://[::1]", False),
        ("http://127.0.0.1:1", "http://127.0.0.1:2", True),
        ("http://127.0.0.1:1", "https://cdn.example.net", True),
        ("http://127.0.0.1:1", "http://cdn.example.net", False),
    ],
)
def test_links_lead_neither_to_this_machine_nor_out_of_encryption(origin: str, target: str, allowed: bool) -> None:
    assert may_follow(Address.parse(origin, "a"), Address.parse(target, "b")) == allowed


@given(st.text(max_size=40))
def test_every_retry_after_is_a_time_or_none(value: str) -> None:
    seconds = retry_after(value)
    assert seconds is None or seconds >= 0


def test_retry_after_takes_numbers_and_dates() -> None:
    assert retry_after("120") == 120
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after("soon") is None


def test_requests_are_spaced() -> None:
    pace, stop, began = Pace(60 / 0.05), threading.Event(), time.monotonic()
    for _ in range(5):
        pace.wait(stop)
    assert time.monotonic() - began >= 0.2
