"""Files and objects that hold the record of a lock (`jzi.store.disk.lock`)."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.core.sync import sync

from jzi.store.disk.storage import zarr_store

#: Name of the object in a cache at a URL.
OBJECT = "writer.lock"

#: Seconds to wait after a stale record of a URL was replaced, by a plain write: then it belongs to whoever wrote last.
SETTLE_S = 1.0

#: Seconds after which the claim of a process that died while it took over a lock is removed.
CLAIM_S = 30.0

#: Largest record, bytes.
MAX_RECORD = 4096


class LockFile(Protocol):
    """The place of a lock's record.

    Attributes:
        record: the record of this process, once it owns the lock.
    """

    record: bytes

    def create(self, record: bytes) -> bool:
        """Write a record if there is none; returns whether it was written."""
        ...

    def read(self) -> bytes | None:
        """The record; None if there is none."""
        ...

    def age(self) -> float:
        """Seconds since the last sign of life of the owner of the record that was read last."""
        ...

    def replace(self, old: bytes, new: bytes) -> None:
        """Replace a record by another, unless another process does."""
        ...

    def touch(self) -> bool:
        """Show a sign of life; returns False if the record is that of another process."""
        ...

    def delete(self) -> None:
        """Delete the record, if it is that of this process."""
        ...

    def close(self) -> None:
        """Remove temporary files."""
        ...


class LocalLockFile:
    """A lock file beside a local path; in the folder itself if its parent cannot be written.

    Args:
        path: path of the cache or the model folder.
    """

    def __init__(self, path: str | Path) -> None:
        path, self.record = Path(path).resolve(), b""
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.lock")
        inside = path.is_dir() and not os.access(path.parent, os.W_OK)
        self.path = path / ".writer.lock" if inside else beside
        self._claim = self.path.with_name(f"{self.path.name}.claim")
        self._clock = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        self._mtime = 0.0

    def create(self, record: bytes) -> bool:
        return _create(self.path, record)

    def read(self) -> bytes | None:
        try:
            with self.path.open("rb") as file:  # opening it makes NFS fetch its times again
                self._mtime = os.fstat(file.fileno()).st_mtime
                return file.read(MAX_RECORD)
        except FileNotFoundError:
            return None

    def age(self) -> float:
        return self._now() - self._mtime

    def replace(self, old: bytes, new: bytes) -> None:
        if not _create(self._claim, new):
            with suppress(FileNotFoundError):
                if self._now() - self._claim.stat().st_mtime > CLAIM_S:
                    self._claim.unlink()
            time.sleep(0.1)
            return
        try:
            if self.read() == old:  # nobody else replaces it while this process has the claim
                self._clock.write_bytes(new)
                self._clock.replace(self.path)
        finally:
            self._claim.unlink(missing_ok=True)

    def touch(self) -> bool:
        if self.read() != self.record:
            return False
        os.utime(self.path)
        return True

    def delete(self) -> None:
        if self.read() == self.record:
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        self._clock.unlink(missing_ok=True)

    def _now(self) -> float:
        """The time by the clock of the file system."""
        self._clock.touch()
        os.utime(self._clock)
        return self._clock.stat().st_mtime


class StoreLockFile:
    """A lock object in a cache at a URL.

    Args:
        url: URL of the cache.
    """

    def __init__(self, url: str | Path) -> None:
        self._store = zarr_store(url, opening=True)
        self.record = b""
        self._seen, self._changed = b"", time.monotonic()
        self._writing = threading.Lock()  # a sign of life would write anew what is deleted at that moment
        self._deleted = False

    def create(self, record: bytes) -> bool:
        if self.read() is not None:
            return False
        sync(self._store.set_if_not_exists(OBJECT, _buffer(record)))
        return self.read() == record

    def read(self) -> bytes | None:
        buffer = sync(self._store.get(OBJECT, default_buffer_prototype()))
        if buffer is None:
            return None
        data: bytes = buffer.to_bytes()[: 2 * MAX_RECORD]
        if data != self._seen:
            self._seen, self._changed = data, time.monotonic()
        return data.partition(b"\n")[0]

    def age(self) -> float:
        return time.monotonic() - self._changed

    def replace(self, old: bytes, new: bytes) -> None:
        if self.read() == old:
            sync(self._store.set(OBJECT, _buffer(new)))
            time.sleep(SETTLE_S)

    def touch(self) -> bool:
        with self._writing:
            if self._deleted or self.read() != self.record:
                return self._deleted
            sync(self._store.set(OBJECT, _buffer(self.record + f"\n{time.time()}".encode())))
            return True

    def delete(self) -> None:
        with self._writing:
            self._deleted = True
            if self.read() == self.record:
                sync(self._store.delete(OBJECT))

    def close(self) -> None:
        return


def _buffer(data: bytes) -> Buffer:
    return default_buffer_prototype().buffer.from_bytes(data)


def _create(path: Path, data: bytes) -> bool:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
    except OSError:  # such as a full disk
        path.unlink(missing_ok=True)
        raise
    return True
