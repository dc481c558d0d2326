"""Encoding over a Ray cluster: the bytes of one process, whatever dies; what is missing is said in one sentence."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from jzi.encode.encode_map import Block, MapReport, encode_block, encode_map
from jzi.encode.encode_queries import PhotoReport, encode_batch, encode_queries
from jzi.encode.encoders.encoder import Encoder
from jzi.encode.rasters.imagery import Imagery
from jzi.encode.rasters.tiles import TileRenderer
from jzi.errors import CacheError, ClusterError
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.disk.lock import FollowedLock
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.photos.photo_table import PhotoTable
from jzi.tests.conftest import checkerboard, write_geotiff, write_photo

pytest.importorskip("ray")
from jzi.cluster import connection, pool
from jzi.cluster.connection import connected
from jzi.cluster.encoding import (
    MapWork,
    PhotoWork,
    SentEncoder,
    SentImagery,
    SharedCache,
    block_runner,
    photo_runner,
)

pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")

#: 1365 tiles; the last level has 4 blocks of 16 x 16, which share no chunk.
AREA = Pyramid.around(48.2, 16.37, 800.0, grid=2, levels=6)
TILES, PHOTOS = 1365, 600


@dataclasses.dataclass
class Town:
    """What is encoded, and where to."""

    folder: Path
    imagery: Imagery
    encoder: Encoder
    table: PhotoTable

    def cache(self) -> FeatureCache:
        return FeatureCache.open_or_create(self.folder / "town.zarr", AREA, self.encoder.info, self.imagery.info())

    def encode_map(self, **options: Any) -> MapReport:
        return encode_map(self.cache(), self.encoder, self.imagery, batch_size=4, **options)

    def encode_queries(self, **options: Any) -> PhotoReport:
        return encode_queries(self.cache(), self.encoder, self.table, batch_size=4, **options)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, encoder_folder: Path) -> Town:
    folder = tmp_path_factory.mktemp("source")
    raster = write_geotiff(folder / "map.tif", checkerboard(400, 400), AREA.bounds, AREA.crs)
    encoder = Encoder.load(encoder_folder, image_size=14, device="cpu")
    encoder.model.double()  # an embedding is to be the same in any batch
    photo = write_photo(folder / "photo.jpg")
    (folder / "broken.jpg").write_bytes(b"no photo")
    files = [folder / "broken.jpg" if number == 300 else photo for number in range(PHOTOS)]
    frame = pd.DataFrame({"id": [f"p{number}" for number in range(PHOTOS)], "photo": [str(file) for file in files]})
    frame = frame.assign(latitude=48.2, longitude=16.37, split="train", path="")
    return Town(folder, Imagery([raster], AREA), encoder, PhotoTable(frame, (), str(folder)))


@pytest.fixture(scope="module")
def undisturbed(source: Town) -> Path:
    """The cache of one process."""
    source.encode_map()
    source.encode_queries()
    return source.folder / "town.zarr"


@pytest.fixture
def town(source: Town, tmp_path: Path) -> Town:
    return dataclasses.replace(source, folder=tmp_path)


@pytest.fixture
def whole(undisturbed: Path, files_of: Callable) -> dict[str, bytes]:
    return files_of(undisturbed)


# Blocks and batches, in this process


def test_blocks_and_batches_encoded_one_by_one_make_the_same_cache(town: Town, whole: dict, files_of: Callable) -> None:
    cache = town.cache()
    renderer = TileRenderer(town.imagery, town.encoder.image_size)
    counted: list[int] = []

    class Counter:
        def update(self, n: int = 1) -> None:
            counted.append(n)

    def run_blocks(blocks: list[Block], bar: object) -> list:
        assert [len(block) for block in blocks] == [341] * 4
        return [encode_block(cache, town.encoder, renderer, block, Counter(), batch_size=4) for block in blocks]

    assert town.encode_map(run_blocks=run_blocks) == MapReport(TILES, 0, 0, 0)
    assert sum(counted) == TILES - 1
    report = town.encode_queries(
        run_batches=lambda batches, bar: [
            encode_batch(cache.queries, town.encoder, batch, Counter(), batch_size=4) for batch in batches
        ]
    )
    assert report.encoded == PHOTOS - 1 and [each.name for each in report.unreadable] == ["p300"]
    assert files_of(town.folder / "town.zarr") == whole


# What is missing


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ClusterError, match=r"pip install 'jzi\[ray\]'"), connected("auto"):
        pass


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "127.0.0.1", "a b:6379", ""])
def test_an_address_of_another_kind_is_refused(address: str) -> None:
    with pytest.raises(ClusterError, match="give auto, or host:port"), connected(address):
        pass


def test_a_cluster_that_is_not_there_or_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CONNECT_S", 0.2)
    with socket.create_server(("", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ClusterError, match=r"timed out.*ray start"), connected(address):
            pass
    with pytest.raises(ClusterError, match=r"refused.*ray start"), connected(address):
        pass


def test_what_is_no_cluster_is_recognised_by_its_answer() -> None:
    import threading

    with socket.create_server(("", 0)) as web:

        def answer() -> None:
            with web.accept()[0] as client:
                client.recv(100)
                client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        address = f"127.0.0.1:{web.getsockname()[1]}"
        with pytest.raises(ClusterError, match="is no Ray cluster"), connected(address):
            pass


def map_work(town: Town, cache: FeatureCache) -> MapWork:
    sent = SentEncoder.of(town.encoder), SentImagery.of(town.imagery)
    return MapWork(SharedCache.of(cache), *sent, batch_size=4, tokens=False)


def test_a_node_that_sees_another_cache_or_no_raster_says_so(town: Town, tmp_path: Path) -> None:
    cache = town.cache()
    work = map_work(town, cache)
    work.start("here")
    shutil.copytree(cache.path, tmp_path / "elsewhere" / "town.zarr")
    elsewhere = dataclasses.replace(work.cache, path=str(tmp_path / "elsewhere" / "town.zarr"))
    with pytest.raises(ClusterError, match=r"node there does not see the cache .* storage that all nodes see"):
        dataclasses.replace(work, cache=elsewhere).start("there")
    with pytest.raises(ClusterError, match=r"node there does not see the raster /map.tif"):
        other = dataclasses.replace(work.imagery, sizes={"/map.tif": 5})
        dataclasses.replace(work, imagery=other).start("there")


def test_a_photo_that_only_the_driver_sees_is_not_recorded_as_unreadable(town: Town) -> None:
    def run_batches(batches: list, bar: object) -> list:
        batch = dataclasses.replace(batches[0], paths=("/gone.jpg", *batches[0].paths[1:]))
        work = PhotoWork(SharedCache.of(town.cache()), SentEncoder.of(town.encoder), 4, 0, False)
        return [work.start("there")(batch, None)]

    with pytest.raises(ClusterError, match=r"node there does not see the photo /gone.jpg"):
        town.encode_queries(run_batches=run_batches)
    assert (town.cache().queries.column("status") == 0).all()


def test_a_process_whose_driver_has_ended_writes_no_more(town: Town) -> None:
    cache = town.cache()
    shared = SharedCache.of(cache)
    follower = shared.open("here")
    status, embedding = follower.read_chunk(1, 0, 0)
    follower.write_chunk(1, 0, 0, status, embedding)
    cache.close()
    with pytest.raises(CacheError, match="has ended, or lost its lock"):
        follower.write_chunk(1, 0, 0, status, embedding)
    other = FeatureCache.open(cache.path, "r+")
    with pytest.raises(CacheError, match="has ended, or lost its lock"):
        FollowedLock(other.path, shared.lock).check()


def test_ray_and_parts_that_it_does_not_encode_are_refused(area: Callable) -> None:
    assert "run --cells and --detail afterwards" in area("encode-map --ray auto --cells", code=2).stderr
    assert "host:port" in area("encode-queries --ray nowhere", code=2).stderr


# On a cluster


@contextlib.contextmanager
def cluster_of_two() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80 * 10**6, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        cluster.second = cluster.add_node(num_cpus=1, object_store_memory=80 * 10**6)
        yield cluster
    finally:
        cluster.shutdown()


def when_both_work(monkeypatch: pytest.MonkeyPatch, action: Callable[[], None]) -> None:
    """Call something once, when two processes have encoded a part of their tasks."""
    show, calls = pool.Pool._show, []

    def hooked(self: pool.Pool, bar: Any, state: Any) -> None:
        show(self, bar, state)
        if not calls and sum(process.done > 0 for process in self._processes) == 2:
            calls.append(action())

    monkeypatch.setattr(pool.Pool, "_show", hooked)
    monkeypatch.setattr(pool, "POLL_S", 0.01)


@pytest.mark.slow
def test_a_killed_node_and_an_interrupted_command_leave_the_cache_of_one_process(
    town: Town, whole: dict, files_of: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
        monkeypatch.setenv(name, "0")

    def run_map() -> MapReport:
        cache = town.cache()
        return town.encode_map(run_blocks=block_runner(cache, town.encoder, town.imagery, 1, False))

    def interrupt() -> None:
        raise KeyboardInterrupt

    with cluster_of_two() as cluster, connected(cluster.address):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            when_both_work(patch, interrupt)
            run_map()
        kept = sum(int((town.cache().status(level) == 1).sum()) for level in range(AREA.levels))
        assert 0 < kept < TILES
        with monkeypatch.context() as patch:
            when_both_work(patch, lambda: cluster.remove_node(cluster.second, allow_graceful=False))
            assert run_map() == MapReport(TILES - kept, kept, 0, 0)
        assert len(cluster.list_all_nodes()) == 1
        report = town.encode_queries(run_batches=photo_runner(town.cache(), town.encoder, 4, 0, False))
        assert report.encoded == PHOTOS - 1
        assert np.isfinite(town.cache().level(5)).all()
    assert files_of(town.folder / "town.zarr") == whole
