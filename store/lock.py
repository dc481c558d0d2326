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
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
import weakref
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import psutil
from pydantic import TypeAdapter
from tqdm import tqdm

from jzi.errors import CacheError, JziError, first_line
from jzi.store.lock_files import LocalLockFile, LockFile, StoreLockFile
from jzi.store.storage import is_url, storage_errors

#: Seconds between two signs of life, and after how many without one a lock is taken over. A share's clients may cache a
#: file's times for up to a minute.
HEARTBEAT_S, STALE_S = 15.0, 120.0

#: Seconds between two looks at a lock that another process owns.
POLL_S = 1.0

#: What to do if another process owns the lock; "shared": another process of this launch has taken it for this one too.
LockMode = Literal["wait", "refuse", "shared"]


@dataclass(frozen=True)
class LockOwner:
    """A process that owns a lock.

    Attributes:
        token: random; identifies the lock.
        host: name of the machine, for people.
        machine: identifies the machine since it was started, and the container.
        pid: process id.
        started: when the process was started, seconds since 1970; a later process may have the same id.
        command: its command, for people.
        since: when it took the lock, seconds since 1970.
    """

    token: str
    host: str
    machine: str
    pid: int
    started: float
    command: str
    since: float

    @classmethod
    def this_process(cls) -> LockOwner:
        """This process, with a new token."""
        program, *arguments = sys.argv or ["python"]
        name = "jzi" if Path(program).name in ("jzi", "__main__.py") else Path(program).name
        command = " ".join([name, *arguments[:1]])[:80]
        started = psutil.Process().create_time()
        return cls(uuid.uuid4().hex, socket.gethostname(), _machine(), os.getpid(), started, command, time.time())

    @classmethod
    def parse(cls, data: bytes) -> LockOwner | None:
        """Read a record; None if it is damaged or still being written."""
        with suppress(ValueError):  # of pydantic too
            return _OWNER.validate_json(data, strict=True)
        return None

    def record(self) -> bytes:
        """The record that `parse` reads."""
        return json.dumps(asdict(self)).encode()

    @property
    def has_ended(self) -> bool:
        """Whether the process was on this machine and has ended; False if it cannot be known."""
        if self.machine != _machine() or not 0 < self.pid < 2**31:
            return False
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) > 2
        except psutil.NoSuchProcess:
            return True
        except psutil.Error:
            return False

    def __str__(self) -> str:
        text = f"`{self.command:.80}` (process {self.pid} on {self.host:.60})"
        return "".join(character for character in text if character.isprintable())


_OWNER = TypeAdapter(LockOwner)


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
        with _registry_lock:
            held = _registry.get(name)
            if held is None or held.pid != os.getpid():
                held = _registry[name] = _Held(name, self._take(mode))
            held.count += 1
            self._held = held

    def __enter__(self) -> WriterLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Release the lock, if it has not been released."""
        held, self._held = self._held, None
        if held is not None and held.pid == os.getpid():
            with _registry_lock:
                held.count -= 1
                if held.count == 0:
                    held.release()

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

        A garbage collection may happen while zarr's event loop waits for the thread in which it happens, so the
        requests of a URL are sent from another one.

        Args:
            holder: the object.
        """
        weakref.finalize(holder, self._release_anywhere).atexit = False  # `_release_all` does it then

    def _release_anywhere(self) -> None:
        if is_url(self.path):
            threading.Thread(target=self.release, name="release of a lock", daemon=True).start()
        else:
            self.release()

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
                    local = other is not None and other.machine == _machine()
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


class _Held:
    """A lock of this process, with the thread that shows signs of life."""

    def __init__(self, name: str, file: LockFile) -> None:
        self.name, self.file, self.pid, self.count = name, file, os.getpid(), 0
        self._lost, self._released, self._beat_at = threading.Event(), threading.Event(), time.time()
        threading.Thread(target=self._run, name="writer lock", daemon=True).start()

    def is_lost(self) -> bool:
        """Whether another process has taken over the lock."""
        if time.time() - self._beat_at > 2 * HEARTBEAT_S:  # this process was suspended
            self._beat()
        return self._lost.is_set()

    def _run(self) -> None:
        while not (self._released.wait(HEARTBEAT_S) or self._lost.is_set()):
            self._beat()

    def _beat(self) -> None:
        with suppress(Exception):  # such as a share that is gone for a moment: the next beat tries again
            if not self.file.touch() and not self._released.is_set():
                self._lost.set()
            self._beat_at = time.time()

    def release(self) -> None:
        self._released.set()
        _registry.pop(self.name, None)
        with suppress(Exception):  # it becomes stale
            self.file.delete()


_registry: dict[str, _Held] = {}
_registry_lock = threading.RLock()


@atexit.register
def _release_all() -> None:
    for held in list(_registry.values()):
        if held.pid == os.getpid():
            held.release()


def _lock_file(path: str | Path) -> contextlib.closing[LockFile]:
    return contextlib.closing(StoreLockFile(path) if is_url(path) else LocalLockFile(path))


@lru_cache
def _machine() -> str:
    """Identify the machine since it was started and the namespace of process ids, which a container has of its own."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)
