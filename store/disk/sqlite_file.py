"""SQLite files that may come from a stranger: their tables are checked before anything is read or written."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from jzi.errors import JziError, first_line

#: Seconds to wait for another process that writes.
BUSY_S = 60.0

#: A statement, and the rows of values that it is run with.
Statement = tuple[str, Iterable[Sequence[object]]]


@dataclass(frozen=True)
class SqliteFormat:
    """A kind of SQLite file.

    Attributes:
        what: its name in messages, such as "the judgments".
        application_id: what distinguishes it from other SQLite files, four bytes.
        version: of the tables.
        tables: statements that create its tables.
        max_value: size of the largest value or row, bytes.
        error: class of its errors.
        another: what to do about a file of something else.
        anew: what to do about a damaged file.
    """

    what: str
    application_id: int
    version: int
    tables: tuple[str, ...]
    max_value: int
    error: type[JziError]
    another: str
    anew: str


class SqliteFile:
    """A file of a format; a context manager, which closes it.

    Several threads and processes may use it at once. What is written is committed at once: a killed process loses
    nothing of it, a power cut the last rows.

    Attributes:
        path: of the file.
        format: its format.
    """

    def __init__(self, path: Path, format: SqliteFormat, connection: sqlite3.Connection) -> None:
        self.path, self.format, self._connection = path, format, connection
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path, format: SqliteFormat) -> Self:
        """Open a file; create it, and its folder, if there is none.

        Raises:
            JziError: of the format; the file is something else, of another version, damaged, or cannot be written.
        """
        with _errors(path, format):
            if path.exists() and not path.is_file():
                raise format.error(f"{format.what} cannot be kept in {path}, which is no file: {format.another}")
            path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            try:
                _prepare(connection, path, format)
            except BaseException:
                connection.close()
                raise
        return cls(path, format, connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        with self._lock, suppress(sqlite3.Error):
            self._connection.close()

    def read(self, statement: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """The rows that a statement finds.

        Raises:
            JziError: of the format; the file cannot be read.
        """
        with self._lock, _errors(self.path, self.format):
            return self._connection.execute(statement, values).fetchall()

    def write(self, *statements: Statement) -> None:
        """Run statements as one transaction.

        Raises:
            JziError: of the format; the file cannot be written.
        """
        with self._lock, _errors(self.path, self.format), _transaction(self._connection):
            for statement, rows in statements:
                self._connection.executemany(statement, rows)

    def delete(self, statement: str, values: Sequence[object] = ()) -> int:
        """Run a statement that deletes rows, give their space back, and return their number.

        Raises:
            JziError: of the format; the file cannot be written.
        """
        with self._lock, _errors(self.path, self.format):
            count = self._connection.execute(statement, values).rowcount
            if count:
                self._connection.execute("VACUUM")
        return count

    def damage(self, where: str) -> JziError:
        """The error of a file with invalid rows."""
        return self.format.error(f"{self.format.what} {self.path} are damaged, in {where}: {self.format.anew}")


def _prepare(connection: sqlite3.Connection, path: Path, format: SqliteFormat) -> None:
    """Check that a file is of a format and can be written; make an empty one such a file."""
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, format.max_value)
    connection.execute("PRAGMA trusted_schema = OFF")
    what, error = format.what, format.error
    with _transaction(connection):
        statement = f"SELECT sql FROM sqlite_master WHERE sql IS NOT NULL LIMIT {len(format.tables) + 1}"
        schema = sorted(sql for (sql,) in connection.execute(statement).fetchall())
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if not (schema or application or version):
            for table in format.tables:
                connection.execute(table)
            connection.execute(f"PRAGMA application_id = {format.application_id}")
            connection.execute(f"PRAGMA user_version = {format.version}")
        elif application != format.application_id:
            raise error(f"{path} does not hold {what}, but is another SQLite file: {format.another}")
        elif version != format.version:
            raise error(
                f"{what} {path} have format version {version}, and this jzi reads {format.version}: use the jzi that "
                f"wrote them, or {format.another}"
            )
        elif schema != sorted(format.tables):
            raise error(f"{what} {path} have other tables than version {version}: {format.another}")
    _begin_log(connection)
    connection.execute("PRAGMA synchronous = NORMAL")


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def _begin_log(connection: sqlite3.Connection) -> None:
    """Switch to write-ahead logging, which SQLite does not wait for if another process does the same."""
    end = time.monotonic() + BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
            time.sleep(0.01)


@contextmanager
def _errors(path: Path, format: SqliteFormat) -> Iterator[None]:
    """Turn errors of SQLite into sentences."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if "decode" in str(error):  # text that is not UTF-8, which Python's module notices
            code = sqlite3.SQLITE_CORRUPT
        raise _error(path, format, code, first_line(error)) from error
    except UnicodeDecodeError as error:  # of the text of the table, or of SQLite's message about it
        raise _error(path, format, sqlite3.SQLITE_CORRUPT, "") from error
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise format.error(
            f"{format.what} {path} cannot be used, {reason}: give a path where files can be written"
        ) from error


def _error(path: Path, format: SqliteFormat, code: int, message: str) -> JziError:
    writing = "allow writing to the file and its folder"
    reason, advice = {
        sqlite3.SQLITE_NOTADB: ("which is no SQLite file", format.another),
        sqlite3.SQLITE_CORRUPT: ("which are damaged", format.anew),
        sqlite3.SQLITE_TOOBIG: ("which have a row that is too large", format.anew),
        sqlite3.SQLITE_READONLY: ("which are read-only", writing),
        sqlite3.SQLITE_CANTOPEN: ("which cannot be opened", writing),
        sqlite3.SQLITE_FULL: ("since the disk is full", "make room, and run the command again"),
        sqlite3.SQLITE_BUSY: ("which another process keeps locked", "end that process, or wait for it"),
    }.get(code, (message, "look at the file and its folder"))
    return format.error(f"{format.what} {path} cannot be used, {reason}: {advice}")
