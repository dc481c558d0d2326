"""Claims about the commands on a cache on S3, against a real server and a proxy that makes it fail."""

from __future__ import annotations

import json
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from jzi.store.disk import lock, object_store
from jzi.tests.children import Child
from jzi.tests.conftest import CREDENTIALS
from jzi.tests.fault_proxy import FaultProxy

TRAIN = "train-decoder --set decoder.layers=1 --set train.epochs=1 --set decoder.dropout=0.0"


@pytest.fixture
def url(bucket: str, area: Callable, tmp_path: Path) -> str:
    """URL of a cache, in a working directory with a jzi.toml of two levels that does not name it."""
    settings = tmp_path / "jzi.toml"
    settings.write_text(re.sub(r"(?m)^levels = .*", "levels = 2", settings.read_text()))
    assert "levels = 2" in settings.read_text()
    return f"{bucket}/town.zarr"


@pytest.fixture
def local(area: Callable, url: str, tmp_path: Path, files_of: Callable) -> dict[str, bytes]:
    """The files of a cache of the map, filled on the disk."""
    area("encode-map")
    return files_of(tmp_path / "features.zarr")


@pytest.mark.slow
def test_every_command_takes_a_cache_on_s3(
    area: Callable, url: str, tmp_path: Path, files_of: Callable, objects_of: Callable
) -> None:
    on_s3 = f"--set cache.path={url}"
    outputs = []
    for where in ("", on_s3):
        for command in ("encode-map", "encode-queries --views 1", "encode-map --tokens --cells"):
            outputs.append(area(f"{command} {where}").output)
        name = "model2" if where else "model"
        outputs.append(area(f"{TRAIN} {where} --set model.path={name}").output)
        outputs.append(area(f"evaluate {where} --set model.path={name} --json").stdout)
    assert objects_of(url) == files_of(tmp_path / "features.zarr")
    assert files_of(tmp_path / "model")["decoder.safetensors"] == files_of(tmp_path / "model2")["decoder.safetensors"]
    outputs.append(area(f"cache verify {url}").output)
    assert "sound" in outputs[-1]
    info = json.loads(area(f"info --json {url}").stdout.splitlines()[0])
    assert info["photos"] == 30
    outputs.append(area(f"locate photos/day0/000.jpg --model model2 --cache {url}").output)
    everything = [*map(str.encode, outputs), *objects_of(url).values(), *files_of(tmp_path).values()]
    for secret in CREDENTIALS:
        assert not any(secret.encode() in each for each in everything)
    area(f"cache rm --yes {url} --force")
    assert objects_of(url) == {}


def test_a_command_whose_store_is_dead_ends_with_one_sentence(
    area: Callable, proxy: FaultProxy, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "OPEN_RETRY_S", 0.3)
    proxy.dead = True
    for command in ("encode-map", "encode-queries", "train-decoder"):
        message = area(f"{command} --set cache.path={url}", 2).stderr
        assert url in message
        assert "503 SlowDown" in message
        assert not any(secret in message for secret in CREDENTIALS)
    assert url in area(f"info {url}", 2).stderr
    assert url in area(f"cache verify {url}", 2).stderr


@pytest.mark.slow
def test_a_run_whose_store_dies_ends_with_one_sentence_and_resumes(
    area: Callable, proxy: FaultProxy, url: str, local: dict, objects_of: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    area(f"encode-map --set cache.path={url}")
    needed = proxy.counts.total()
    area(f"cache rm --yes {url}")
    for requests in (needed - 40, 60):  # while tiles are written, and soon after the cache was opened
        proxy.begin({}, dies_after=requests)
        with monkeypatch.context() as patch:
            patch.setattr(object_store, "RETRY_S", 0.5)
            patch.setattr(lock, "STALE_S", 0.5)
            begin = time.monotonic()
            message = area(f"encode-map --set cache.path={url}", 2).stderr
        assert time.monotonic() - begin < 120
        assert "503 SlowDown" in message
        assert "run again later" in message
    proxy.begin({})
    monkeypatch.setattr(lock, "STALE_S", 0.5)  # this process is alive, and its lock could not be deleted
    area(f"encode-map --set cache.path={url}")
    assert objects_of(url) == local


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_fills_a_cache_is_resumed_to_the_same_cache(
    area: Callable, proxy: FaultProxy, url: str, local: dict, objects_of: Callable, start: Callable[..., Child],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    forward, started, chunks = proxy.forward, [], count()

    def kill_at_chunk(method: str, path: str, *rest: object) -> tuple:
        if method == "PUT" and "/c/" in path and "map/" in path and next(chunks) == 3:  # it is on its way
            started[-1].process.kill()
        return forward(method, path, *rest)

    monkeypatch.setattr(proxy, "forward", kill_at_chunk)
    started.append(start([sys.executable, "-m", "jzi", "encode-map", "--set", f"cache.path={url}"]))
    started[-1].wait(-signal.SIGKILL)
    assert len(objects_of(url)) > 0 and objects_of(url) != local
    monkeypatch.setattr(proxy, "forward", forward)
    area(f"encode-map --set cache.path={url}")
    assert objects_of(url) == local


@pytest.mark.slow
def test_of_two_processes_that_fill_one_new_cache_the_second_waits_and_encodes_nothing(
    area: Callable, proxy: FaultProxy, url: str, local: dict, objects_of: Callable, start: Callable[..., Child],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    forward, waits, conditional = proxy.forward, threading.Event(), threading.Lock()

    def forward_once_the_other_waits(method: str, path: str, *rest: object) -> tuple:
        if method == "PUT" and "embedding/c/" in path:
            waits.wait(50)  # less than the time after which a request is repeated
        if "writer.lock" in path:  # moto looks and writes in two steps, where S3 takes one
            with conditional:
                return forward(method, path, *rest)
        return forward(method, path, *rest)

    monkeypatch.setattr(proxy, "forward", forward_once_the_other_waits)
    command = [sys.executable, "-m", "jzi", "encode-map", "--json", "--set", f"cache.path={url}"]
    children = [start(command) for _ in range(2)]
    try:
        children[0].wait_until(lambda: any("waiting for" in child.errors for child in children))
    finally:
        waits.set()
    reports = [json.loads(child.output) for child in children if child.wait(0) == 0]
    messages = [child.errors for child in children]
    assert sorted(report["encoded"] for report in reports) == [0, 1 + 16], messages
    (message,) = [errors for errors in messages if "waiting for" in errors]
    assert [f"waiting for `jzi encode-map` (process {child.pid}" in message for child in children].count(True) == 1
    assert objects_of(url) == local
