"""Atomic writes: a file is complete or as before, and nothing of a killed process stays beside it."""

from __future__ import annotations

import os
import platform
import signal
from pathlib import Path

import pytest

from jzi.store.disk.files import remove_leftovers, write_whole
from jzi.tests.children import run_python

#: Writes a file as safetensors does, by way of another temporary file, and is killed meanwhile.
KILLED = """
import os, signal, sys
from pathlib import Path
from jzi.store.disk.files import write_whole

def write(path):
    path.write_bytes(b"half")
    path.with_name(".tmpAbCdEf").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)

write_whole(Path(sys.argv[1]), write)
"""


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A file whose writer was killed."""
    path = tmp_path / "a.bin"
    path.write_bytes(b"before")
    run_python(KILLED, path, code=-signal.SIGKILL)
    assert path.read_bytes() == b"before"
    assert len(names(tmp_path)) > 1
    return path


def names(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in sorted(folder.rglob("*"))]


def test_the_next_write_removes_what_a_killed_writer_left(killed: Path) -> None:
    write_whole(killed, lambda path: path.write_bytes(b"after"))
    assert names(killed.parent) == ["a.bin"]
    assert killed.read_bytes() == b"after"


def test_leftovers_of_a_folder_are_removed_but_for_those_of_running_processes(killed: Path) -> None:
    folder = killed.parent
    kept = [f"{os.getppid()}.{platform.node()}", f"{2**22 + 1}.elsewhere", "notes"]
    for name in kept:
        (folder / ".b.bin.partial" / name).mkdir(parents=True)
    (folder / ".a.123").write_text("a file of the user")
    remove_leftovers(folder)
    assert names(folder) == [".a.123", ".b.bin.partial", *sorted(f".b.bin.partial/{name}" for name in kept), "a.bin"]


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"before")

    def write(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write_whole(tmp_path / "a.bin", write)
    assert names(tmp_path) == ["a.bin"]
    assert (tmp_path / "a.bin").read_bytes() == b"before"


def test_a_write_creates_no_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "missing" / "a.bin", lambda path: path.write_bytes(b""))
    assert names(tmp_path) == []


def test_a_file_has_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "a.bin", lambda path: path.chmod(0o600))
    finally:
        os.umask(before)
    assert (tmp_path / "a.bin").stat().st_mode & 0o777 == 0o640
