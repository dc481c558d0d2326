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

from jzi.encode.detail import DetailReport, encode_detail, encode_detail_units
from jzi.encode.encode_cells import IndexReport, encode_cell_units, index_cells
from jzi.encode.encode_map import Block, MapReport, encode_block, encode_map
from jzi.encode.encode_queries import PhotoReport, encode_batch, encode_queries
from jzi.encode.encoders.encoder import Encoder
from jzi.encode.rasters.detail_tiles import DetailTiles, EncoderTokens
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
from jzi.cluster.encoding import CellWork, DetailWork, MapWork, PhotoWork, task_runner
from jzi.cluster.sent import SharedCache
from jzi.cluster.worker import Work

pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")

#: 1365 tiles; the last level has 4 blocks of 16 x 16, which share no chunk.
AREA = Pyramid.around(48.2, 16.37, 800.0, grid=2, levels=6)
TILES, CELLS, PHOTOS = 1365, 4096, 600

#: Options of a node.
NODE = {"num_cpus": 1, "object_store_memory": 80 * 10**6}

#: Side of a cell's crop in cells, and of a tile's image in pixels, of 2 x 2 tokens.
CONTEXT, PIXELS = 2.0, 28


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

    def encode_cells(self, **options: Any) -> IndexReport:
        return index_cells(self.cache(), self.encoder, self.imagery, CONTEXT, batch_size=4, **options)

    def encode_detail(self, **options: Any) -> DetailReport:
        return encode_detail(self.cache(), self.producer, self.imagery, PIXELS, batch_size=4, **options)

    def encode_queries(self, **options: Any) -> PhotoReport:
        return encode_queries(self.cache(), self.encoder, self.table, batch_size=4, **options)

    @property
    def producer(self) -> EncoderTokens:
        return EncoderTokens(self.encoder)


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
    source.encode_cells()
    source.encode_detail()
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

    counted.clear()
    town.encode_cells(run_units=lambda tasks, bar: [
        encode_cell_units(cache, town.encoder, town.imagery, CONTEXT, task.units, Counter(), batch_size=4)
        for task in reversed(tasks)
    ])  # fmt: skip
    tiles = DetailTiles(town.imagery, PIXELS, town.producer)
    town.encode_detail(run_units=lambda tasks, bar: [
        encode_detail_units(cache, town.producer, tiles, task.units, Counter(), batch_size=4)
        for task in reversed(tasks)
    ])  # fmt: skip
    assert sum(counted) == CELLS + 1024
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


def test_a_node_that_sees_another_cache_or_no_raster_says_so(town: Town, tmp_path: Path) -> None:
    cache = town.cache()
    work = MapWork.of(cache, town.encoder, town.imagery, 4, False)
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
        work = PhotoWork.of(town.cache(), town.encoder, 4, 0, False)
        return [work.start("there")(batch, None)]

    with pytest.raises(ClusterError, match=r"node there does not see the photo /gone.jpg"):
        town.encode_queries(run_batches=run_batches)
    assert (town.cache().queries.column("status") == 0).all()


def test_a_process_whose_driver_has_ended_writes_no_more(town: Town) -> None:
    cache = town.cache()
    shared = SharedCache.of(cache)
    follower = shared.open("here")
    status, embedding = follower.tiles.read_chunk(1, 0, 0)
    follower.tiles.write_chunk(1, 0, 0, status, embedding)
    cache.close()
    with pytest.raises(CacheError, match="has ended, or lost its lock"):
        follower.tiles.write_chunk(1, 0, 0, status, embedding)
    other = FeatureCache.open(cache.path, "r+")
    with pytest.raises(CacheError, match="has ended, or lost its lock"):
        FollowedLock(other.path, shared.lock).check()


def test_every_command_that_encodes_asks_for_the_address_of_a_cluster(area: Callable) -> None:
    for command in ("encode-map --cells --detail", "encode-queries"):
        assert "host:port" in area(f"{command} --ray nowhere", code=2).stderr


@pytest.mark.slow
def test_the_commands_give_all_that_they_encode_to_the_cluster(
    area: Callable, tmp_path: Path, files_of: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a cluster that is this process."""
    commands = ("encode-map --cells --detail", "encode-queries --tokens")
    for command in commands:
        area(command)
    alone = files_of(tmp_path / "features.zarr")
    shutil.rmtree(tmp_path / "features.zarr")
    counts: list[int] = []

    def in_this_process(_: FeatureCache, work: Callable[[], Work]) -> Callable:
        def run(tasks: list[Any], bar: Any) -> list[Any]:
            do = work().start("here") if tasks else None
            counts.append(len(tasks))
            return [do(task, bar) for task in tasks] if do else []

        return run

    monkeypatch.setattr("jzi.cluster.connection.connected", lambda _: contextlib.nullcontext())
    monkeypatch.setattr("jzi.cluster.encoding.task_runner", in_this_process)
    for command in commands:
        area(f"{command} --ray auto")
    assert len(counts) == 4 and all(counts)
    assert files_of(tmp_path / "features.zarr") == alone


# On a cluster


@contextlib.contextmanager
def small_cluster() -> Iterator[Any]:
    """A cluster of one node."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    try:
        yield cluster
    finally:
        cluster.shutdown()


@contextlib.contextmanager
def second_node_that_is_killed(cluster: Any, monkeypatch: pytest.MonkeyPatch, then: Callable | None = None) -> Iterator:
    """Kill a node when both have encoded a part of their tasks; call something when the other one has encoded more."""
    import ray

    show, calls = pool.Pool._show, []
    node = cluster.add_node(**NODE)

    def hooked(self: pool.Pool, bar: Any, state: Any) -> None:
        show(self, bar, state)
        starting = [process.waits_for for process in self._processes if process.task is None and process.waits_for]
        if not calls and starting:  # the first node has only the task that it works on until the other one is there
            ray.wait(starting, num_returns=len(starting), timeout=60)
        if not calls and sum(process.done > 0 for process in self._processes) == 2:
            cluster.remove_node(node, allow_graceful=False)
            calls.append(len(state.results))
        elif then is not None and calls and self.lost and len(state.results) > calls[0]:
            then()

    with monkeypatch.context() as patch:
        patch.setattr(pool.Pool, "_show", hooked)
        patch.setattr(pool, "POLL_S", 0.01)
        yield
    assert calls and len(cluster.list_all_nodes()) == 1


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_killed_nodes_and_an_interrupted_command_leave_the_cache_of_one_process(
    town: Town, whole: dict, files_of: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setattr("jzi.encode.encode_cells.TASK_CELLS", 1024)
    parts = town.encoder, town.imagery

    def on_nodes(work: Callable[[FeatureCache], Any]) -> Callable:
        cache = town.cache()
        return task_runner(cache, lambda: work(cache))

    def run_map() -> MapReport:
        return town.encode_map(run_blocks=on_nodes(lambda cache: MapWork.of(cache, *parts, 1, False)))

    with small_cluster() as cluster, connected(cluster.address):
        with pytest.raises(KeyboardInterrupt), second_node_that_is_killed(cluster, monkeypatch, then=interrupt):
            run_map()
        kept = sum(int((town.cache().tiles.status(level) == 1).sum()) for level in range(AREA.levels))
        assert 0 < kept < TILES
        assert run_map() == MapReport(TILES - kept, kept, 0, 0)
        with second_node_that_is_killed(cluster, monkeypatch):
            cells = town.encode_cells(run_units=on_nodes(lambda cache: CellWork.of(cache, *parts, CONTEXT, 4)))
        assert (cells.encoded, cells.reused) == (CELLS, 0)
        with second_node_that_is_killed(cluster, monkeypatch):
            detail = town.encode_detail(
                run_units=on_nodes(lambda cache: DetailWork.of(cache, town.producer, town.imagery, PIXELS, 4))
            )
        assert (detail.encoded, detail.reused) == (1024, 0)
        photos = town.encode_queries(run_batches=on_nodes(lambda cache: PhotoWork.of(cache, town.encoder, 4, 0, False)))
        assert photos.encoded == PHOTOS - 1
    assert np.isfinite(town.cache().tiles.level(5)).all()
    assert files_of(town.folder / "town.zarr") == whole
