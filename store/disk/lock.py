"""One writer per cache and per model folder: a lock with the owner, its host and its last sign of life.

The lock of a local path is the hidden file `.<name>.lock` beside it, created with O_EXCL, which is atomic on local
disks and on NFS and SMB shares. The owner touches it every `HEARTBEAT_S`. Another process takes over a lock whose owner
was a process of this machine that has ended, or that has shown no sign of life for `STALE_S`: by the clock of the file
server, to which the times of all files belong. Clocks and process ids of other machines are not used.

The lock of a URL is the object `writer.lock` in the cache, created only if there is none, which S3, Google Cloud
Storage and Azure do in one step. A sign of life there is a change of the record, seen by the process that waits. A
stale lock is replaced by a plain write: of two processes that do so within `SETTLE_S`, the last one owns it.

Processes of one `accelerate launch` are one writer: the main process takes the lock for all. A process can take a lock
several times.

An object that holds a lock can be collected as garbage in any thread at any moment: in the thread that is starting for
another lock, or in zarr's event loop while a thread that takes a lock waits for its answer. So nothing waits in a
finalizer, and while `_registry_lock` is held no other process and no start of a thread is waited for.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from jzi.errors import CacheError, JziError, first_line
from jzi.store.disk.lock_files import LocalLockFile, LockFile, StoreLockFile
from jzi.store.disk.lock_owner import LockOwner, machine
from jzi.store.disk.storage import is_url, storage_errors

#: Seconds between two signs of life, and after how many without one a lock is taken over. A share's clients may cache a
#: file's times for up to a minute.
HEARTBEAT_S, STALE_S = 15.0, 120.0

#: Seconds between two looks at a lock that another process owns.
POLL_S = 1.0

#: What to do if another process owns the lock; "shared": another process of this launch has taken it for this one too.
LockMode = Literal["wait", "refuse", "shared"]


class WriterLock:
    """The lock of the writer of a cache or a model folder.

    It is taken when the object is created; `release` or the end of the process releases it. Also a context manager.

    Args:
        path: path or URL of the cache or the model folder, which need not exist.
        mode: what to do if another process owns it.
        error: class of the errors.

    Raises:
        JziError: another process writes there and mode is "refuse", or the lock cannot be written; of class `error`.
    """

    def __init__(self, path: str | Path, mode: LockMode = "wait", error: type[JziError] = CacheError) -> None:
        self.path, self._error = path, error
        self._held: _Held | None = None
        if mode == "shared":
            return
        name = str(path).rstrip("/") if is_url(path) else str(Path(path).resolve())
        with _registry_section():
            held = _registry.get(name)
            if held is None or held.pid != os.getpid():
                held = _registry[name] = _Held(name)
            held.count += 1
            self._held = held
        try:
            with held.taking:
                if held.file is None:
                    held.start(self._take(mode))
        except BaseException:
            self.release()
            raise

    def __enter__(self) -> WriterLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Release the lock, if it has not been released."""
        with _registry_section():
            self._leave()

    def _leave(self) -> None:
        held, self._held = self._held, None
        if held is not None and held.pid == os.getpid():
            held.leave()

    @contextlib.contextmanager
    def released_on_error(self) -> Iterator[None]:
        """Release the lock if the block raises; the traceback would hold it for as long as anyone keeps that."""
        try:
            yield
        except BaseException:
            self.release()
            raise

    def release_with(self, holder: object) -> None:
        """Release the lock when an object is collected, or the process ends.

        Args:
            holder: the object.
        """
        weakref.finalize(holder, self._release_later).atexit = False  # `_release_all` does it then

    def _release_later(self) -> None:
        """Release the lock now if that needs neither a request nor another thread's section, else soon."""
        if not is_url(self.path):
            _dropped.put(self)
            _release_dropped()
        elif (held := self._held) is not None:
            held.tasks.put(self.release)

    def check(self) -> None:
        """Check that no other process has taken over the lock, such as while this one was suspended.

        Raises:
            JziError: another process has; of class `error`.
        """
        if self._held is not None and self._held.is_lost():
            raise self._error(
                f"another process has taken over {self.path} while this one showed no sign of life for {STALE_S:g} s: "
                "run the command again, which keeps what has been written"
            )

    @property
    def record(self) -> bytes | None:
        """What the lock's file holds while this process owns it, for `FollowedLock`; None if it does not."""
        return None if self._held is None or self._held.file is None else self._held.file.record

    def _take(self, mode: LockMode) -> LockFile:
        owner, first_age, announced = LockOwner.this_process(), None, False
        try:
            with storage_errors(self.path, "writer.lock"), _lock_file(self.path) as file:
                while not file.create(owner.record()):
                    data = file.read()
                    if data is None:  # released
                        continue
                    other, age = LockOwner.parse(data), file.age()
                    if age > STALE_S or (other is not None and other.has_ended):
                        file.replace(data, owner.record())
                        if file.read() == owner.record():
                            break
                        continue
                    alive = first_age is not None and age < first_age  # it was touched since
                    first_age = age if first_age is None else max(age, first_age)
                    label = str(other) if other else "another process"
                    local = other is not None and other.machine == machine()
                    if mode == "refuse" and (alive or local):
                        raise self._error(f"{self.path} is being written by {label}: wait for it to end, or stop it")
                    if not announced:
                        takes_over = "" if local else f", or takes over if it shows no sign of life for {STALE_S:g} s"
                        tqdm.write(f"waiting for {label}, which writes {self.path}{takes_over}", file=sys.stderr)
                        announced = True
                    time.sleep(POLL_S)
        except OSError as error:
            raise self._error(f"the lock of {self.path} cannot be written: {first_line(error)}") from error
        except CacheError as error:
            raise self._error(str(error)) from error
        file.record = owner.record()
        return file


class FollowedLock(WriterLock):
    """The lock that the driver of a cluster holds, for a process that writes on its behalf.

    Args:
        path: path or URL of the cache.
        record: `WriterLock.record` of the driver.
    """

    def __init__(self, path: str | Path, record: bytes) -> None:
        super().__init__(path, "shared")
        self._record = record

    def check(self) -> None:
        """Check that the driver still holds the lock.

        Raises:
            CacheError: it has ended, or another process has taken over the lock.
        """
        with storage_errors(self.path, "writer.lock"), _lock_file(self.path) as file:
            if file.read() != self._record:
                raise CacheError(f"the command that encodes {self.path} has ended, or lost its lock: run it again")


class _Held:
    """A lock of this process, with the thread that shows signs of life.

    Attributes:
        count: number of `WriterLock`s that hold it, or wait until it is taken; changed in a `_registry_section`.
        taking: held by the thread that takes it.
        file: the lock's file; None until it is taken.
        tasks: what its thread is to do; None to end.
    """

    def __init__(self, name: str) -> None:
        self.name, self.pid, self.count, self.taking = name, os.getpid(), 0, threading.Lock()
        self.file: LockFile | None = None
        # Putting into this queue is allowed in a finalizer, setting an event is not: the thread may be waiting for it
        self.tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lost = self._released = False

    def start(self, file: LockFile) -> None:
        """Begin to show signs of life."""
        self.file, self._beat_at = file, time.time()
        threading.Thread(target=self._run, name="writer lock", daemon=True).start()

    def is_lost(self) -> bool:
        """Whether another process has taken over the lock."""
        if time.time() - self._beat_at > 2 * HEARTBEAT_S:  # this process was suspended
            self._beat()
        return self._lost

    def _run(self) -> None:
        while True:
            try:
                task = self.tasks.get(timeout=HEARTBEAT_S)
            except queue.Empty:
                task = self._beat
            if task is None:
                return
            task()

    def _beat(self) -> None:
        if self._lost or self.file is None:
            return
        with suppress(Exception):  # such as a share that is gone for a moment: the next beat tries again
            if not self.file.touch() and not self._released:
                self._lost = True
            self._beat_at = time.time()

    def leave(self) -> None:
        """Count one holder less, and release the lock with the last one."""
        self.count -= 1
        if self.count == 0:
            if _registry.get(self.name) is self:
                del _registry[self.name]
            self.release()

    def release(self) -> None:
        self._released = True
        self.tasks.put(None)
        if self.file is not None:
            with suppress(Exception):  # it becomes stale
                self.file.delete()


_registry: dict[str, _Held] = {}
_registry_lock = threading.Lock()

#: Locks whose holders were collected; released by whoever has the registry.
_dropped: queue.SimpleQueue[WriterLock] = queue.SimpleQueue()


@contextlib.contextmanager
def _registry_section() -> Iterator[None]:
    try:
        with _registry_lock:
            yield
    finally:
        _release_dropped()


def _release_dropped() -> None:
    """Release the locks of collected holders, unless a thread is in a section, which does it at the end of that."""
    while not _dropped.empty() and _registry_lock.acquire(blocking=False):
        try:
            with suppress(queue.Empty):
                _dropped.get_nowait()._leave()
        finally:
            _registry_lock.release()


@atexit.register
def _release_all() -> None:
    for held in list(_registry.values()):
        if held.pid == os.getpid():
            held.release()


def _lock_file(path: str | Path) -> contextlib.closing[LockFile]:
    return contextlib.closing(StoreLockFile(path) if is_url(path) else LocalLockFile(path))
