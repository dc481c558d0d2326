"""A journal of what was measured of photos and which were written, so that a killed run goes on where it was."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from jzi.errors import DatasetError, first_line

#: "jzim": distinguishes a journal from other SQLite files.
APPLICATION_ID = 0x6A7A696D

#: Seconds between commits: what a kill loses at most. A commit for each photo would take longer than measuring it.
COMMIT_S = 2.0

#: Seconds to wait for another process that writes.
BUSY_S = 60.0

#: Longest entry that is read, characters: the crops of a panorama take 2000 each.
MAX_ENTRY = 2**20

_TABLES = (
    "CREATE TABLE IF NOT EXISTS measured (key TEXT PRIMARY KEY, result TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS written (path TEXT PRIMARY KEY, key TEXT NOT NULL) WITHOUT ROWID",
)


class Journal:
    """Results by the keys of what they depend on; a context manager that keeps what was written, errors or not.

    It is used by one thread. A result is what was measured of the photos that became of one, or why none did.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        self._committed = time.monotonic()

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator[Self]:
        """Open a journal, and create it if there is none.

        Raises:
            DatasetError: it is something else, damaged, or cannot be written; also within the block.
        """
        with _errors(path):
            connection = sqlite3.connect(path, timeout=BUSY_S)
            try:
                (application,) = connection.execute("PRAGMA application_id").fetchone()
                (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
                if application != APPLICATION_ID and tables:
                    raise DatasetError(f"{path} is not a journal of jzi: give another folder for the data set")
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                for table in _TABLES:
                    connection.execute(table)
                try:
                    yield cls(path, connection)
                finally:
                    connection.commit()
            finally:
                connection.close()

    def read(self, keys: Iterable[str]) -> dict[str, list[dict[str, Any]] | str]:
        """The results that are known, by their keys; damaged ones are not."""
        found: dict[str, list[dict[str, Any]] | str] = {}
        for key in keys:
            query = "SELECT result FROM measured WHERE key = ? AND length(result) <= ?"
            for (text,) in self._connection.execute(query, (_digest(key), MAX_ENTRY)):
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
        self._connection.execute("INSERT OR REPLACE INTO measured VALUES (?, ?)", (_digest(key), json.dumps(result)))
        self._commit_now_and_then()

    def written(self) -> dict[str, str]:
        """The paths of the photos that were written, and the digests of the keys of what they depend on."""
        return dict(self._connection.execute("SELECT path, key FROM written"))

    def is_written(self, path: str, key: str) -> bool:
        """Whether a photo was written, of the same key."""
        query = "SELECT 1 FROM written WHERE path = ? AND key = ?"
        return self._connection.execute(query, (path, _digest(key))).fetchone() is not None

    def note_written(self, path: str, key: str) -> None:
        """Keep that a photo was written."""
        self._connection.execute("INSERT OR REPLACE INTO written VALUES (?, ?)", (path, _digest(key)))
        self._commit_now_and_then()

    def forget_written(self, path: str) -> None:
        """Keep that a photo was removed."""
        self._connection.execute("DELETE FROM written WHERE path = ?", (path,))
        self._commit_now_and_then()

    def _commit_now_and_then(self) -> None:
        if time.monotonic() - self._committed > COMMIT_S:
            self._connection.commit()
            self._committed = time.monotonic()


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:  # the disk is full, no permission, locked
        raise DatasetError(f"{path} cannot be written ({first_line(error)}): free some space or give another folder, "
                           "and run it again") from error  # fmt: skip
    except sqlite3.DatabaseError as error:
        raise DatasetError(f"{path} is damaged ({first_line(error)}): delete it, photos are measured anew") from error
