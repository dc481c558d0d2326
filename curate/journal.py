"""A journal of what was measured of photos and which were written, so that a killed run goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from jzi.errors import DatasetError
from jzi.store.disk.sqlite_file import SqliteFile, SqliteFormat

#: Longest entry that is read, characters: the crops of a panorama take 2000 each.
MAX_ENTRY = 2**20

FORMAT = SqliteFormat(
    what="the measurements of photos",
    application_id=0x6A7A6963,  # "jzic"
    version=1,
    tables=(
        "CREATE TABLE measured (key TEXT PRIMARY KEY, result TEXT NOT NULL) WITHOUT ROWID",
        "CREATE TABLE written (path TEXT PRIMARY KEY, key TEXT NOT NULL) WITHOUT ROWID",
    ),
    max_value=4 * MAX_ENTRY,
    error=DatasetError,
    another="give another folder for the data set",
    anew="delete the file, photos are measured anew",
)


class Journal:
    """Results by the keys of what they depend on; a context manager that closes it.

    A result is what was measured of the photos that became of one, or why none did.
    """

    def __init__(self, file: SqliteFile) -> None:
        self._file = file

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a journal, and create it if there is none.

        Raises:
            DatasetError: it is something else, damaged, or cannot be written; also of the other methods.
        """
        return cls(SqliteFile.open(path, FORMAT))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, keys: Iterable[str]) -> dict[str, list[dict[str, Any]] | str]:
        """The results that are known, by their keys; damaged ones are not."""
        found: dict[str, list[dict[str, Any]] | str] = {}
        for key in keys:
            query = "SELECT result FROM measured WHERE key = ? AND length(result) <= ?"
            for (text,) in self._file.read(query, (_digest(key), MAX_ENTRY)):
                try:
                    result = json.loads(text)
                except ValueError:
                    continue
                rows = isinstance(result, list) and all(isinstance(row, dict) and "id" in row for row in result)
                if rows or isinstance(result, str):
                    found[key] = result
        return found

    def write(self, key: str, result: list[dict[str, Any]] | str) -> None:
        """Keep a result."""
        self._file.write(("INSERT OR REPLACE INTO measured VALUES (?, ?)", [(_digest(key), json.dumps(result))]))

    def written(self) -> dict[str, str]:
        """The paths of the photos that were written, and the digests of the keys of what they depend on."""
        return dict(self._file.read("SELECT path, key FROM written"))

    def is_written(self, path: str, key: str) -> bool:
        """Whether a photo was written, of the same key."""
        query = "SELECT 1 FROM written WHERE path = ? AND key = ?"
        return bool(self._file.read(query, (path, _digest(key))))

    def note_written(self, path: str, key: str) -> None:
        """Keep that a photo was written."""
        self._file.write(("INSERT OR REPLACE INTO written VALUES (?, ?)", [(path, _digest(key))]))

    def forget_written(self, path: str) -> None:
        """Keep that a photo was removed."""
        self._file.write(("DELETE FROM written WHERE path = ?", [(path,)]))


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
