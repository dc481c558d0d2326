"""Files on the local disk: known by their bytes, and written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` with a temporary path beside `path`, then put what it wrote in the place of `path`.

    Whatever `write` raises is raised; nothing is left behind then.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # by the umask; safetensors makes files that nobody else can read
        write(temporary)
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what `write_whole` left in a folder where its process was killed; files of running processes stay."""
    for path in folder.glob(".*"):
        match = re.fullmatch(r"\..+\.(\d+)", path.name)
        if match and path.is_file() and not psutil.pid_exists(int(match[1])):
            path.unlink(missing_ok=True)
