"""Many requests at once to `jzi serve`, beside slow, abandoned and malformed ones; then SIGTERM during others."""

from __future__ import annotations

import http.client
import io
import random
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

import psutil
from PIL import Image

from jzi.serve.limits import BYTES_PER_PIXEL, Limits
from jzi.tests import hostile
from jzi.tests.attacks.scene import TRAIN, encode, make_town, must
from jzi.tests.children import Child
from jzi.tests.test_serve_process import FORM, Service, form, status

#: Memory that connections take beyond the limits, as README states.
CONNECTIONS = 100e6


class Answers(NamedTuple):
    """What was answered, and how the service ended."""

    statuses: Counter[str]
    beside: Counter[str]
    seconds: float
    memory_mb: float
    bound_mb: float
    ended_s: float
    faults: list[str]


@cache
def plain(large: bool) -> bytes:
    """A small JPEG, or a PNG of few bytes and 35 megapixels."""
    buffer = io.BytesIO()
    size, format = ((7000, 5000), "PNG") if large else ((640, 320), "JPEG")
    Image.new("RGB", size, "red").save(buffer, format)
    return buffer.getvalue()


def _photo(rng: random.Random) -> bytes:
    """A plain photo, a hostile one, or a large one."""
    kind = rng.choice(["plain", "plain", "plain", "hostile", "large"])
    if kind == "hostile":
        example = hostile.photo(rng.choice([*hostile.PHOTO_KINDS]), rng.randrange(2**32))
        return example.files[example.name]
    return plain(kind == "large")


def _ask(service: Service, photo: bytes) -> str:
    """The status, and what is wrong with the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=300)
    try:
        connection.request("POST", "/locate", form(photo), dict([FORM.split(": ")]))
        response = connection.getresponse()
        body = response.read()
    except OSError as error:
        return f"no answer ({type(error).__name__})"
    finally:
        connection.close()
    if response.status == 503 and not response.headers.get("Retry-After"):
        return "503 without Retry-After"
    if response.status >= 500 and response.status != 503:
        return f"{response.status} {body[:200]!r}"
    return str(response.status)


def _slow(service: Service, stop: threading.Event, rng: random.Random) -> str:
    """Send a request byte by byte until it is closed."""
    connection = service.connect()
    data = service.head(100_000) + form(bytes(90_000))
    try:
        for at in range(len(data)):
            if stop.wait(0.3 + rng.random()):
                return "slow, still open at the end"
            connection.sendall(data[at : at + 1])
            connection.setblocking(False)
            try:
                return f"slow, closed with {status(connection)}"
            except BlockingIOError:
                connection.settimeout(30)
    except OSError:
        return "slow, closed"
    finally:
        connection.close()
    return "slow, read to the end"


def _abandoned(service: Service, photo: bytes) -> str:
    connection = service.connect(service.head(len(form(photo))))
    try:
        connection.sendall(form(photo)[: max(1, len(photo) // 2)] if len(photo) % 2 else form(photo))
    except OSError:
        return "abandoned, refused before"
    finally:
        connection.close()
    return "abandoned"


def _malformed(service: Service, photo: bytes, rng: random.Random) -> str:
    data = bytearray(service.head(len(form(photo))) + form(photo)[:1000])
    for _ in range(rng.randrange(1, 30)):
        data[rng.randrange(min(300, len(data)))] = rng.randrange(256)
    connection = service.connect()
    connection.settimeout(20)
    try:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return f"malformed, answered {status(connection)}"
    except OSError:
        return "malformed, closed"
    finally:
        connection.close()


def attack(count: int, seed: int, town: Path, say: Callable[[str], object]) -> Answers:
    """Send `count` requests at once, and a quarter as many of each other kind beside them."""
    rng = random.Random(seed)
    photos = [_photo(rng) for _ in range(count)]
    limits, faults, stop = Limits(), [], threading.Event()
    beside: Counter[str] = Counter()
    with Child(
        [sys.executable, "-m", "jzi", "serve", "--model", "model", "--port", "0"], cwd=town, bound_s=1800
    ) as child:
        service = Service(child)
        process = psutil.Process(child.pid)
        _ask(service, photos[0])
        memory = [process.memory_info().rss]

        def watch() -> None:
            while not stop.wait(0.05):
                memory.append(process.memory_info().rss)

        watcher = threading.Thread(target=watch)
        watcher.start()
        others = max(1, count // 4)
        with ThreadPoolExecutor(count + 3 * others) as pool:
            slow = [pool.submit(_slow, service, stop, random.Random(rng.random())) for _ in range(others)]
            start = time.monotonic()
            asked = [pool.submit(_ask, service, photo) for photo in photos]
            gone = [pool.submit(_abandoned, service, rng.choice(photos)) for _ in range(others)]
            wrong = [pool.submit(_malformed, service, photos[0], random.Random(rng.random())) for _ in range(others)]
            statuses = Counter(each.result() for each in asked)
            seconds = time.monotonic() - start
            beside.update(each.result() for each in [*gone, *wrong])
            say(f"{count} requests in {seconds:.0f} s: {dict(statuses)}; beside: {dict(beside)}")
            if (after := _ask(service, plain(False))) != "200":
                faults.append(f"a request afterwards got {after}")
            stop.set()
            beside.update(each.result() for each in slow)
        watcher.join()
        with ThreadPoolExecutor(min(60, count)) as pool:
            late = [pool.submit(_ask, service, photo) for photo in photos[:60]]
            time.sleep(2)
            start = time.monotonic()
            child.process.send_signal(signal.SIGTERM)
            code = child.wait()
            ended = time.monotonic() - start
            last = Counter(each.result() for each in late)
        say(f"SIGTERM: ended after {ended:.1f} s with {code}; requests meanwhile: {dict(last)}")
        if code != -signal.SIGTERM or ended > 10:
            faults.append(f"SIGTERM: exit code {code} after {ended:.1f} s")
        if "Traceback" in child.errors or "Traceback" in child.output:
            faults.append(f"a traceback in the log: {child.errors[-2000:]}")
    bound = limits.waiting_mb * 1e6 + BYTES_PER_PIXEL * limits.megapixels * 1e6 + CONNECTIONS
    grown = max(memory) - memory[0]
    if grown > bound:
        faults.append(f"{grown / 1e6:.0f} MB of memory, more than {bound / 1e6:.0f}")
    allowed = {"200", "400", "413", "415", "422", "503"}
    faults += [f"{number} x {answer}" for answer, number in {**statuses}.items() if answer not in allowed]
    faults += [f"{number} x {answer} at the end" for answer, number in last.items() if answer not in allowed]
    return Answers(statuses, beside, seconds, grown / 1e6, bound / 1e6, ended, faults)


def prepare(folder: Path) -> Path:
    """The town with a model."""
    make_town(folder)
    encode(folder)
    must(TRAIN, folder)
    return folder
