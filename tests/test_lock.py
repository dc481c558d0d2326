"""Claims about writers: one for a cache or a model folder, whoever died, wherever it lies."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from jzi.errors import CacheError, ModelError
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.disk import lock as module
from jzi.store.disk import lock_files
from jzi.store.disk.lock import WriterLock
from jzi.store.disk.lock_files import LocalLockFile, StoreLockFile
from jzi.store.disk.lock_owner import LockOwner
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.info import EncoderInfo
from jzi.tests.children import Child, run_python
from jzi.workspace.caches import remove_cache

HOLD = """
import sys, time
from jzi.store.disk.lock import WriterLock
lock = WriterLock(sys.argv[1])
print("held", flush=True)
time.sleep(float([*sys.argv, 600][2]))
lock.release()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "town.zarr"


@pytest.fixture
def hold(start: Callable[..., Child]) -> Callable[..., Child]:
    """Start a process that holds the lock of a path, for some seconds or for good."""

    def hold(path: Path, *seconds: str) -> Child:
        child = start([sys.executable, "-c", HOLD, path, *seconds])
        child.wait_until(lambda: child.output == "held\n")
        return child

    return hold


def lock_file(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def write_lock(path: Path, age: float, **changes: object) -> None:
    """The lock of another process whose last sign of life is `age` seconds old."""
    lock_file(path).write_text(json.dumps({**asdict(LockOwner.this_process()), "token": "other", **changes}))
    os.utime(lock_file(path), (time.time() - age,) * 2)


def test_a_second_writer_is_refused_with_the_owner_and_writes_nothing(path: Path, hold, pyramid, info) -> None:
    child = hold(path)
    with pytest.raises(CacheError, match=rf"town.zarr is being written by .*process {child.pid} on ") as error:
        FeatureCache.create(path, pyramid, info, lock="refuse")
    assert "\n" not in str(error.value) and not path.exists()
    with pytest.raises(ModelError, match="being written"):
        WriterLock(path, "refuse", ModelError)


def test_a_second_writer_waits_with_a_message_and_then_writes(path: Path, hold, pyramid, info, capsys) -> None:
    child = hold(path, "1.5")
    assert FeatureCache.open_or_create(path, pyramid, info).pyramid == pyramid
    assert f"process {child.pid}" in capsys.readouterr().err


def test_readers_do_not_wait(path: Path, hold, pyramid, info) -> None:
    FeatureCache.create(path, pyramid, info).close()
    hold(path)
    assert FeatureCache.open(path).pyramid == pyramid


def test_the_lock_of_a_killed_process_is_taken_over_at_once(path: Path, hold) -> None:
    hold(path).end()
    assert lock_file(path).exists()
    WriterLock(path, "refuse").release()
    assert not lock_file(path).exists()


def test_a_later_process_of_the_same_id_is_not_the_owner(path: Path) -> None:
    write_lock(path, age=0, started=1.0)
    WriterLock(path, "refuse").release()


@pytest.mark.parametrize("record", [None, b"", b"{", b"\xff", b"[1]", b'{"pid": 1e400}'])
def test_a_lock_of_another_machine_is_taken_over_by_its_age_alone(path: Path, monkeypatch, record) -> None:
    monkeypatch.setattr(module, "STALE_S", 0.5)
    monkeypatch.setattr(module, "POLL_S", 0.1)
    write_lock(path, age=0, machine="elsewhere", pid=1)
    if record is not None:
        lock_file(path).write_bytes(record)
    began = time.monotonic()
    WriterLock(path, "refuse").release()
    assert time.monotonic() - began > 0.4
    write_lock(path, age=3600, machine="elsewhere", pid=os.getpid())
    began = time.monotonic()
    WriterLock(path, "refuse").release()
    assert time.monotonic() - began < 0.4


def test_a_lock_of_another_machine_that_shows_signs_of_life_is_refused(path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.05)
    write_lock(path, age=60, machine="elsewhere", host="node7", pid=12)
    sleep = time.sleep

    def beat(seconds: float) -> None:
        sleep(seconds)
        os.utime(lock_file(path))

    monkeypatch.setattr("jzi.store.disk.lock.time.sleep", beat)
    with pytest.raises(CacheError, match="process 12 on node7"):
        WriterLock(path, "refuse")


def test_the_owner_shows_signs_of_life_and_notices_a_takeover(path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.05)
    with WriterLock(path) as lock:
        os.utime(lock_file(path), (0, 0))
        deadline = time.monotonic() + 10
        while lock_file(path).stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert lock_file(path).stat().st_mtime > 0
        lock.check()
        write_lock(path, age=0)
        deadline = time.monotonic() + 10
        with pytest.raises(CacheError, match="taken over"):
            while time.monotonic() < deadline:
                lock.check()
                time.sleep(0.02)
    assert lock_file(path).exists(), "it is the other's"


def test_a_writer_whose_lock_was_taken_over_writes_no_more(path: Path, monkeypatch, pyramid, info) -> None:
    cache = FeatureCache.create(path, pyramid, info)
    monkeypatch.setattr(type(cache.documents.lock._held), "is_lost", lambda _: True)
    status, embedding = cache.tiles.read_chunk(1, 0, 0)
    for write in (
        lambda: cache.tiles.write_chunk(1, 0, 0, status, embedding),
        lambda: cache.require_tokens(2),
        lambda: cache.queries.require_views(1, {"seed": 0}),
    ):
        with pytest.raises(CacheError, match="taken over"):
            write()


def test_a_process_takes_a_lock_several_times_by_any_name(path: Path) -> None:
    with WriterLock(path), WriterLock(str(path.parent / "x" / ".." / path.name), "refuse"):
        assert lock_file(path).exists()
    assert not lock_file(path).exists()


def test_of_many_processes_that_take_over_one_stale_lock_one_at_a_time_holds_it(path: Path, start) -> None:
    script = """
import os, sys
from pathlib import Path
from jzi.store.disk.lock import WriterLock
mark = Path(sys.argv[1] + ".mark")
for _ in range(5):
    with WriterLock(sys.argv[1]):
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))  # fails if another holds the lock
        mark.unlink()
"""
    write_lock(path, age=0, pid=2**22 + 1, started=1.0)
    script = f"import jzi.store.disk.lock as lock; lock.POLL_S = 0.01\n{script}"
    for child in [start([sys.executable, "-c", script, path]) for _ in range(4)]:
        child.wait(0)
    assert not lock_file(path).exists()


def test_the_lock_is_held_as_long_as_anything_can_write(path: Path, pyramid: Pyramid, info: EncoderInfo) -> None:
    queries = FeatureCache.create(path, pyramid, info).queries
    assert lock_file(path).exists()
    del queries
    import gc

    gc.collect()
    assert not lock_file(path).exists()


#: Holders of locks are collected in a new thread; the thread that takes the next lock waits until it has started.
GARBAGE_IN_A_NEW_THREAD = """
import gc, sys, threading
from jzi.store.disk.lock import WriterLock
class Holder: ...
set_event = threading.Event.set
threading.Event.set = lambda event: (gc.collect(), set_event(event))
gc.disable()
for number in range(3):
    holder = Holder()
    holder.itself = holder
    WriterLock(f"{sys.argv[1]}/{number}.zarr").release_with(holder)
"""

#: Holders of locks are collected in zarr's event loop, from which the thread that takes the next lock awaits an answer.
GARBAGE_IN_THE_LOOP = """
import collections, gc, sys
from zarr.storage import MemoryStore
from jzi.store.disk import lock_files
from jzi.store.disk.lock import WriterLock
class Holder: ...
class Store(MemoryStore):
    async def get(self, *given, **options):
        gc.collect()
        return await super().get(*given, **options)
stores = collections.defaultdict(Store)
lock_files.zarr_store = lambda url, **_: stores[url]
gc.disable()
for path in (f"{sys.argv[1]}/1.zarr", "s3://bucket/2.zarr"):
    holder = Holder()
    holder.itself = holder
    WriterLock(path).release_with(holder)
del holder
with WriterLock("s3://bucket/3.zarr"):
    pass
"""


@pytest.mark.parametrize("program", [GARBAGE_IN_A_NEW_THREAD, GARBAGE_IN_THE_LOOP], ids=["thread", "loop"])
def test_a_lock_can_be_taken_while_the_holders_of_others_are_collected(tmp_path: Path, program: str) -> None:
    run_python(program, tmp_path, bound_s=60)
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_opened_is_not_held_by_the_traceback(path: Path, pyramid, info) -> None:
    FeatureCache.create(path, pyramid, info).close()
    (path / "zarr.json").write_text("{}")
    with pytest.raises(CacheError) as refusal:
        FeatureCache.open(path, "r+")
    assert refusal.tb is not None
    assert not lock_file(path).exists()


def test_the_other_processes_of_a_launch_take_no_lock(path: Path, hold, pyramid, info) -> None:
    FeatureCache.create(path, pyramid, info).close()
    hold(path)
    FeatureCache.open(path, "r+", lock="shared").queries.require_views(1, {"seed": 0})


def test_the_other_processes_of_a_launch_leave_the_metadata_to_the_main_process(path: Path, pyramid, info) -> None:
    main = FeatureCache.create(path, pyramid, info)
    (path / "map/1/x/zarr.json").write_text("{}")  # as if the main process were writing it
    other = FeatureCache.open(path, "r+", lock="shared")
    assert (path / "map/1/x/zarr.json").read_text() == "{}"
    main.require_tokens(3)
    assert other.has_tokens and other.patch_tokens.count == 3


# On object storage


@pytest.fixture
def url(bucket: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(lock_files, "SETTLE_S", 0.05)
    monkeypatch.setattr(module, "POLL_S", 0.05)
    return f"{bucket}/town.zarr"


def other_record(**changes: object) -> bytes:
    return replace(LockOwner.this_process(), token="other", **changes).record()


def test_a_cache_at_a_url_has_one_writer_too(url: str, pyramid: Pyramid, info: EncoderInfo) -> None:
    assert StoreLockFile(url).create(other_record())
    with pytest.raises(CacheError, match="being written by"):
        FeatureCache.create(url, pyramid, info, lock="refuse")


def test_a_cache_at_a_url_is_not_deleted_while_another_process_writes_it(url: str, pyramid, info) -> None:
    FeatureCache.create(url, pyramid, info, lock="shared")  # without a lock
    file = StoreLockFile(url)
    assert file.create(other_record())
    with pytest.raises(CacheError, match="is being written by"):
        remove_cache(url)
    FeatureCache.open(url)
    set_object(file, other_record(pid=2**30))  # its process has ended
    remove_cache(url)
    assert file.read() is None
    with pytest.raises(CacheError, match="there is no feature cache"):
        FeatureCache.open(url)


def test_a_lock_at_a_url_is_released_and_taken_over_by_a_dead_process(url: str) -> None:
    WriterLock(url).release()
    file = StoreLockFile(url)
    assert file.read() is None
    assert file.create(other_record(started=1.0))
    WriterLock(url, "refuse").release()
    assert file.read() is None


def test_a_sign_of_life_at_a_url_does_not_bring_back_a_lock_that_is_released_meanwhile(url: str, monkeypatch) -> None:
    file = StoreLockFile(url)
    file.record = other_record()
    assert file.create(file.record)
    release, read = threading.Thread(target=file.delete), file.read

    def read_while_it_is_released() -> bytes | None:
        record = read()
        monkeypatch.setattr(file, "read", read)
        release.start()
        release.join(0.3)
        return record

    monkeypatch.setattr(file, "read", read_while_it_is_released)
    assert file.touch()
    release.join()
    assert file.touch(), "it is released, not lost"
    assert file.read() is None


def test_a_lock_at_a_url_without_a_sign_of_life_is_taken_over(url: str, monkeypatch) -> None:
    monkeypatch.setattr(module, "STALE_S", 0.3)
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.05)
    assert StoreLockFile(url).create(other_record(machine="elsewhere"))
    with WriterLock(url, "refuse"):
        observer = StoreLockFile(url)
        first = observer.read()
        time.sleep(0.2)
        assert observer.read() == first, "a sign of life leaves the owner as it is"
        assert observer.age() < 0.2


def test_of_two_that_take_over_a_lock_at_once_the_last_owns_it(url: str, monkeypatch) -> None:
    first, second = StoreLockFile(url), StoreLockFile(url)
    assert first.create(b"stale")
    assert not second.create(b"new"), "there is one"
    monkeypatch.setattr("jzi.store.disk.lock_files.time.sleep", lambda _: set_object(second, b"second"))
    first.replace(b"stale", b"first")
    assert first.read() == b"second"


def set_object(file: StoreLockFile, data: bytes) -> None:
    from zarr.core.sync import sync

    sync(file._store.set(lock_files.OBJECT, lock_files._buffer(data)))


def test_a_claim_that_was_left_behind_does_not_block(path: Path, monkeypatch) -> None:
    monkeypatch.setattr(lock_files, "CLAIM_S", 0.2)
    write_lock(path, age=0, started=1.0)
    LocalLockFile(path)._claim.write_bytes(b"")
    WriterLock(path, "refuse").release()


# Commands


#: Commands one after the other: a process starts once for all of them.
IN_TURN = """
import sys
from jzi.cli import main
for command in sys.argv[1:]:
    main([*command.split(), "--json"], standalone_mode=False)
"""


@pytest.mark.slow
def test_of_two_commands_on_one_new_cache_and_model_the_second_waits_and_does_nothing(
    area, tmp_path: Path, start
) -> None:
    train = "train-decoder --set decoder.layers=1 --set train.epochs=2 --experts zoom"
    commands = "encode-map", "encode-queries --split-by photo", train
    children = [start([sys.executable, "-c", IN_TURN, *commands]) for _ in range(2)]
    outputs = [map(json.loads, child.output.splitlines()) for child in children if child.wait(0) == 0]
    pairs = zip(*outputs, strict=True)
    done = [sorted(report.get("encoded", report.get("epochs")) for report in pair) for pair in pairs]
    assert done == [[0, 273], [0, 30], [0, 2]]
    assert not list(tmp_path.glob(".*.lock*"))
