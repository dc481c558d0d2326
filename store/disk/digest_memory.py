"""Digests of large files, remembered between processes, so that an unchanged model is not hashed at every start.

A digest is remembered in the user's cache folder with the file's device, inode, size, and times of modification and
of change, for a day; damage that the file system does not know of is noticed after that. A file that changed within
the last seconds is not remembered: it might change again without another time.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

from jzi.store.disk.files import file_sha256, write_whole

#: Size from which digests are remembered, bytes; smaller files are hashed in 50 ms.
LARGE = 2**26

#: Seconds that a digest is remembered, and seconds for which a changed file is not.
LIFETIME_S, SETTLING_S = 86_400, 3

#: Number of files whose digests are remembered, the last ones used.
FILES = 256


def remembered_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; that of an unchanged large file is read from the user's cache folder.

    Args:
        path: the file.

    Raises:
        OSError: the file cannot be read.
    """
    before = path.stat()
    if before.st_size < LARGE:
        return file_sha256(path)
    key, identity, now = str(path.resolve()), _identity(before), time.time()
    match _read().get(key):
        case {"file": file, "digest": str(digest), "hashed": int() | float() as hashed} if (
            file == identity and 0 <= now - hashed < LIFETIME_S
        ):
            return digest
    digest = file_sha256(path)
    settled = max(before.st_mtime, before.st_ctime) < now - SETTLING_S
    if settled and _identity(path.stat()) == identity:
        entries = {**_read(), key: {"file": identity, "digest": digest, "hashed": now}}
        _write(dict(list(entries.items())[-FILES:]))
    return digest


def _identity(stat: os.stat_result) -> list[int]:
    return [stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _path() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path("~/.cache").expanduser()) / "jzi" / "digests.json"


def _read() -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError, RecursionError, RuntimeError):  # RuntimeError: there is no home
        entries = json.loads(_path().read_bytes())
        return entries if isinstance(entries, dict) else {}
    return {}


def _write(entries: dict[str, Any]) -> None:
    with contextlib.suppress(OSError, RuntimeError):  # the next process hashes again
        path = _path()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda temporary: temporary.write_text(json.dumps(entries)))
