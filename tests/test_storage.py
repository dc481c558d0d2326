"""Claims about caches on object storage, against a real S3 server and a proxy that makes it fail."""

from __future__ import annotations

import _thread
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jzi.errors import CacheCorruptError, CacheError, CacheMismatchError
from jzi.store.cache.feature_cache import ENCODED, FeatureCache
from jzi.store.cache.verify import verify_cache
from jzi.store.disk import lock, object_store
from jzi.store.disk.object_store import delete_all, open_store
from jzi.store.geometry.pyramid import Pyramid, TileKey
from jzi.store.info import EncoderInfo, ImageryInfo
from jzi.tests.conftest import CREDENTIALS
from jzi.tests.fault_proxy import FAULTS, FaultProxy

IMAGERY = ImageryInfo("f" * 64, (("map.tif", 10, 20, "a" * 64),), "bands [1, 2, 3] as RGB")


#: As small as a cache can be: most requests are about metadata.
AREA = Pyramid.around(48.2, 16.37, 800.0, levels=1)


def fill_map(cache: FeatureCache) -> None:
    """The same embeddings in every chunk each time."""
    for level in range(cache.pyramid.levels + 1):
        n = cache.pyramid.tiles_per_side(level)
        embedding = np.random.default_rng(level).normal(size=(n, n, cache.encoder.width))
        status = np.full((n, n), ENCODED, np.uint8)
        cache.tiles.write_chunk(level, 0, 0, status, embedding if level < cache.pyramid.levels else None)


def fill(path: str | Path, info: EncoderInfo) -> FeatureCache:
    """The same map and three photos each time."""
    cache = FeatureCache.open_or_create(path, AREA, info, IMAGERY)
    fill_map(cache)
    columns = {"latitude": 48.2, "longitude": 16.37, "split": "train", "photo": "", "path": "a.jpg", "weather": "dry"}
    rows = cache.queries.list_photos(pd.DataFrame({"id": ["a", "b", "c"], **columns}))
    values = {"status": np.ones(3), "photo_sha256": np.full(3, "0" * 64, object)}
    cache.queries.write(rows, values, np.random.default_rng(1).normal(size=(3, info.width)))
    cache.consolidate()
    return cache


@pytest.fixture
def local(tmp_path: Path, info: EncoderInfo, files_of: Callable) -> dict[str, bytes]:
    """The files of such a cache on the disk."""
    fill(tmp_path / "town.zarr", info)
    return files_of(tmp_path / "town.zarr")


@pytest.fixture
def upload(bucket: str, local: dict[str, bytes]) -> Callable[[str], str]:
    """Copies these files to S3 under a name; returns the URL."""

    def upload(name: str = "town.zarr") -> str:
        store = open_store(f"{bucket}/{name}").store
        for key, data in local.items():
            store.put(key, data)
        return f"{bucket}/{name}"

    return upload


def sentence(call: Callable[[], object]) -> str:
    """The message of the error that a call raises: one sentence without credentials."""
    with pytest.raises(CacheError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    assert not any(secret in message for secret in CREDENTIALS)
    return message


def test_a_cache_on_s3_works_with_the_same_code(
    bucket: str, info: EncoderInfo, local: dict, objects_of: Callable
) -> None:
    url = f"{bucket}/some/where/town.zarr"
    assert "there is no feature cache" in sentence(lambda: FeatureCache.open(url))
    cache = fill(url, info)
    assert objects_of(url) == local
    again = FeatureCache.open(url)
    assert (again.pyramid, again.encoder, again.imagery) == (AREA, info, IMAGERY)
    np.testing.assert_array_equal(again.read_map().embedding[0], cache.tiles.level(0))
    np.testing.assert_array_equal(again.tiles.embedding(TileKey(0, 0, 0)), cache.tiles.level(0)[0, 0])
    np.testing.assert_array_equal(again.queries.embedding([2, 0]), cache.queries.embedding([2, 0]))
    np.testing.assert_array_equal(again.to_xarray()["map/0"]["embedding"], cache.tiles.level(0))
    with pytest.raises(CacheMismatchError):
        FeatureCache.open_or_create(url, AREA, replace(info, fingerprint="0" * 64))
    assert "opened for reading only" in sentence(
        lambda: again.tiles.write_chunk(0, 0, 0, np.ones((1, 1), np.uint8), None)
    )
    assert objects_of(url) == local


@pytest.mark.slow
def test_a_cache_filled_through_failures_is_the_one_filled_locally(
    proxy: FaultProxy, bucket: str, info: EncoderInfo, local: dict, objects_of: Callable
) -> None:
    proxy.begin(FAULTS)
    cache = fill(f"{bucket}/town.zarr", info)
    assert verify_cache(FeatureCache.open(cache.path)).sound
    assert proxy.counts.total() - proxy.counts["none"] > 20, "requests have failed"
    proxy.begin({})
    assert objects_of(cache.path) == local


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_no_kind_of_failure_alone_changes_a_byte(
    proxy: FaultProxy, bucket: str, info: EncoderInfo, local: dict, objects_of: Callable, fault: str
) -> None:
    proxy.begin({fault: 0.03 if fault == "late" else 0.1}, seed=3)
    cache = fill(f"{bucket}/town.zarr", info)
    assert proxy.counts[fault] > 2
    proxy.begin({})
    assert objects_of(cache.path) == local


@pytest.mark.slow
@pytest.mark.parametrize("requests", [40, 100])
def test_a_run_that_loses_its_store_is_completed_by_the_next(
    proxy: FaultProxy, bucket: str, info: EncoderInfo, local: dict, objects_of: Callable, requests: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    url = f"{bucket}/town.zarr"
    proxy.begin({}, dies_after=requests)
    with monkeypatch.context() as patch:
        patch.setattr(object_store, "RETRY_S", 0.3)
        assert "run again" in sentence(lambda: fill(url, info))
    proxy.begin({})
    monkeypatch.setattr(lock, "STALE_S", 0.5)  # this process is alive, and its lock could not be deleted
    fill(url, info)
    assert objects_of(url) == local


def test_two_that_fill_one_map_leave_the_same_bytes(
    proxy: FaultProxy, info: EncoderInfo, local: dict, objects_of: Callable, upload: Callable
) -> None:
    url = upload()
    for key in (key for key in local if key.startswith("map/") and "/c/" in key):
        open_store(url).store.delete(key)
    caches = [FeatureCache.open(url, "r+") for _ in range(2)]
    proxy.begin(FAULTS, seed=5)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda cache: [fill_map(cache) for _ in range(5)], caches))
    proxy.begin({})
    assert len(objects_of(url)) < len(local), "the coordinates are not part of what was filled"
    assert objects_of(url).items() <= local.items()


def test_a_damaged_object_is_noticed(upload: Callable) -> None:
    cache = FeatureCache.open(upload())
    store, key = open_store(cache.path).store, "map/0/embedding/c/0/0/0"
    data = bytearray(store.get(key).bytes())
    data[len(data) // 2] ^= 4
    store.put(key, bytes(data))
    with pytest.raises(CacheCorruptError):
        cache.tiles.level(0)
    assert verify_cache(cache).damaged == ("map/0/embedding [0, 0, 0]",)


@pytest.mark.parametrize(
    "call",
    [
        lambda url, cache: FeatureCache.open(url),
        lambda url, cache: FeatureCache.create(url, AREA, cache.encoder),
        lambda url, cache: cache.tiles.level(0),
        lambda url, cache: len(cache.queries),
        lambda url, cache: cache.has_cells,
        lambda url, cache: fill_map(cache),
        lambda url, cache: verify_cache(cache),
        lambda url, cache: delete_all(url),
    ],
    ids=["open", "create", "read", "count", "ask", "write", "verify", "delete"],
)
def test_a_store_that_stays_dead_is_one_sentence_in_time(
    proxy: FaultProxy, upload: Callable, call: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = upload()
    monkeypatch.setattr(object_store, "RETRY_S", 0.5)
    monkeypatch.setattr(object_store, "OPEN_RETRY_S", 0.5)
    cache = FeatureCache.open(url, "r+")
    proxy.dead = True
    start = time.monotonic()
    message = sentence(lambda: call(url, cache))
    assert time.monotonic() - start < 10
    for part in (url, proxy.url.removeprefix("http://"), "503 SlowDown", "run again later"):
        assert part in message


@pytest.mark.parametrize(
    ("fault", "expected"),
    [("403", "the server refused the credentials (403 InvalidAccessKeyId): set AWS_ACCESS_KEY_ID"),
     ("reset", "the server did not answer"), ("late", "the server did not answer")],
)  # fmt: skip
def test_other_failures_that_last_are_named(
    proxy: FaultProxy, bucket: str, fault: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "OPEN_RETRY_S", 0.5)
    proxy.begin({fault: 1.0})
    assert expected in sentence(lambda: FeatureCache.open(f"{bucket}/town.zarr"))


def test_a_bucket_that_does_not_exist_is_named(proxy: FaultProxy, info: EncoderInfo) -> None:
    url = "s3://no-such-bucket/town.zarr"
    message = sentence(lambda: FeatureCache.create(url, AREA, info))
    assert "there is no such bucket (404 NoSuchBucket): create it" in message


def test_an_endpoint_that_nobody_listens_on_is_named(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "OPEN_RETRY_S", 0.5)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://user:wJalrXUtnFEMI@127.0.0.1:9")
    message = sentence(lambda: FeatureCache.open("s3://bucket/town.zarr"))
    assert "s3://bucket/town.zarr (at 127.0.0.1:9) cannot be used, the server did not answer" in message


@pytest.mark.parametrize(
    ("url", "missing", "expected"),
    [("s3://bucket/a.zarr", "AWS_ACCESS_KEY_ID", "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
     ("az://container/a.zarr", "AZURE_STORAGE_ACCOUNT_NAME", "no credentials: set AZURE_STORAGE_ACCOUNT_NAME")],
)  # fmt: skip
def test_missing_credentials_are_named(
    proxy: FaultProxy, url: str, missing: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(missing, raising=False)
    assert expected in sentence(lambda: FeatureCache.open(url))


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIDEXAMPLE:wJalrXUtnFEMI@bucket/a.zarr",
        "https://user:wJalrXUtnFEMI@host/a.zarr",
        "https://host/a.zarr?X-Amz-Signature=wJalrXUtnFEMI",
    ],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    assert "leave it out" in sentence(lambda: FeatureCache.open(url))


@pytest.mark.parametrize(
    "url", ["nosuch://bucket/a.zarr", "s3:///a.zarr", "memory://a.zarr", "s3://Bad Bucket/a", "s3://[/a"]
)
def test_a_url_that_is_none_of_a_cache_is_refused(proxy: FaultProxy, url: str) -> None:
    assert "give one such as s3://bucket/name.zarr" in sentence(lambda: FeatureCache.open(url))


def test_a_deletion_that_was_interrupted_can_be_repeated(
    proxy: FaultProxy, upload: Callable, local: dict, objects_of: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, other = upload("town.zarr"), upload("town.zarr2")
    proxy.begin({}, dies_after=20)
    with monkeypatch.context() as patch:
        patch.setattr(object_store, "RETRY_S", 0.3)
        sentence(lambda: delete_all(url))
    proxy.begin({})
    FeatureCache.open(url)  # its description goes last
    delete_all(url)
    assert objects_of(url) == {}
    assert objects_of(other) == local


def test_a_process_ends_after_the_threads_of_obstore_have_left_python() -> None:
    pytest.importorskip("obstore")
    ended = threading.Event()

    def callback() -> None:  # as Rust's threads call it: unknown to `threading`
        time.sleep(0.5)
        ended.set()

    _thread.start_new_thread(callback, ())
    object_store._wait_for_threads()
    assert ended.is_set()
