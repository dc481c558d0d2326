"""Local files: digests and atomic writes."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

#: Ends the name of a folder of temporary files.
PARTIAL = ".partial"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file atomically: call `write` with a temporary path on the same file system, then rename that to `path`.

    If `write` raises, `path` is unchanged. The temporary file is in a folder of its own beside `path`, with what
    libraries put beside it in turn; it is removed afterwards, and with it what killed processes left there.
    """
    folder = _partial_folder(path)
    own = folder / _process()
    temporary = own / "file"
    try:
        _remove_ended(folder)
        _make(own)
        temporary.touch()
        mode = temporary.stat().st_mode  # of the umask: safetensors creates files that only their owner can read
        write(temporary)
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        _remove(own)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files that killed processes left in a folder (`write_whole`); those of running ones are kept."""
    for partial in folder.glob(f".*{PARTIAL}"):
        _remove_ended(partial)


def _partial_folder(path: Path) -> Path:
    return path.with_name(f".{path.name}{PARTIAL}")


def _process() -> str:
    """Name of this process: its id, and the machine, since a share may be written from several."""
    return f"{os.getpid()}.{platform.node()}"


def _make(own: Path) -> None:
    while True:
        own.parent.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):  # another process has just removed the parent
            own.mkdir(exist_ok=True)
            return


def _remove_ended(folder: Path) -> None:
    """Remove what processes of this machine that have ended left in a folder of temporary files."""
    for left in folder.glob("*"):
        match = re.fullmatch(r"(\d+)\.(.*)", left.name)
        pid = int(match[1]) if match and match[2] == platform.node() else 0
        if 0 < pid < 2**31 and (pid == os.getpid() or not psutil.pid_exists(pid)):
            _remove(left)


def _remove(own: Path) -> None:
    shutil.rmtree(own, ignore_errors=True)
    with suppress(OSError):  # another process writes the same file
        own.parent.rmdir()
