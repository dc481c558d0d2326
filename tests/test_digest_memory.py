"""An unchanged large file is hashed once, a changed one always."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

import jzi.store.disk.digest_memory as memory
from jzi.store.disk.digest_memory import remembered_sha256
from jzi.store.disk.files import file_sha256


@pytest.fixture
def hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files that were hashed; the memory is empty, and every file is large and settled."""
    files: list[Path] = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(memory, "LARGE", 1)
    monkeypatch.setattr(memory, "SETTLING_S", -10)
    monkeypatch.setattr(memory, "file_sha256", lambda path: (files.append(path), file_sha256(path))[1])
    return files


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(b"some weights")
    return path


def test_an_unchanged_file_is_hashed_once(file, hashed) -> None:
    digests = {remembered_sha256(file) for _ in range(3)}
    assert digests == {file_sha256(file)} and len(hashed) == 1


def test_a_changed_file_is_hashed_again_even_with_its_old_time(file, hashed) -> None:
    remembered_sha256(file)
    before = file.stat()
    file.write_bytes(b"sOme weights")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert remembered_sha256(file) == file_sha256(file) and len(hashed) == 2
    file.unlink()
    with pytest.raises(FileNotFoundError):
        remembered_sha256(file)


def test_a_digest_is_forgotten_after_a_day(file, hashed, monkeypatch) -> None:
    remembered_sha256(file)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + memory.LIFETIME_S)
    remembered_sha256(file)
    assert len(hashed) == 2


def test_a_file_that_just_changed_and_a_small_one_are_not_remembered(file, hashed, tmp_path, monkeypatch) -> None:
    for name, value in (("SETTLING_S", 3), ("LARGE", 10**6)):
        with monkeypatch.context() as patch:
            patch.setattr(memory, name, value)
            assert remembered_sha256(file) == remembered_sha256(file)
    assert len(hashed) == 4 and not (tmp_path / "cache").exists()


@pytest.mark.parametrize("content", [b"", b"\xff", b"[1]", b'{"%s": 1}', b'{"%s": {"file": [], "digest": 1}}'])
def test_a_damaged_memory_is_replaced(file, hashed, tmp_path, content: bytes) -> None:
    path = tmp_path / "cache" / "jzi" / "digests.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(content.replace(b"%s", str(file).encode()))
    assert remembered_sha256(file) == remembered_sha256(file) == file_sha256(file)
    assert len(hashed) == 1


def test_a_memory_that_cannot_be_written_changes_nothing(file, hashed, tmp_path) -> None:
    (tmp_path / "cache").write_text("a file")
    assert remembered_sha256(file) == remembered_sha256(file) == file_sha256(file)
    assert len(hashed) == 2


def test_the_memory_keeps_a_bounded_number_of_files(tmp_path, hashed, monkeypatch) -> None:
    monkeypatch.setattr(memory, "FILES", 3)
    for number in range(5):
        (tmp_path / str(number)).write_bytes(bytes(10))
        remembered_sha256(tmp_path / str(number))
    assert [Path(name).name for name in memory._read()] == ["2", "3", "4"]
