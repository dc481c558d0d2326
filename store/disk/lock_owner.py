"""The process that owns a writer's lock (`jzi.store.disk.lock`), as the lock's record names it."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import psutil
from pydantic import TypeAdapter


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
        return cls(uuid.uuid4().hex, socket.gethostname(), machine(), os.getpid(), started, command, time.time())

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
        if self.machine != machine() or not 0 < self.pid < 2**31:
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


@lru_cache
def machine() -> str:
    """Identify the machine since it was started and the namespace of process ids, which a container has of its own."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)
