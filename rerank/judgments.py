"""Judgments kept in an SQLite file: a question that was asked once is never asked again."""

from __future__ import annotations

import csv
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from jzi.errors import RerankError, first_line
from jzi.rerank.judgment_rows import COLUMNS, MAX_ROW, Judgment, check, from_row, is_time, judgment_key, to_row
from jzi.rerank.question import Judge, Kind, Question, Reading
from jzi.store.disk.files import write_whole
from jzi.store.printable import FORMULA, printable

#: "jzij", and the version of the table: they distinguish a file of judgments from other SQLite files.
APPLICATION_ID, FORMAT_VERSION = 0x6A7A696A, 1

#: Seconds to wait for another process that writes.
BUSY_S = 60.0

_TABLE = """CREATE TABLE judgments (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    photo TEXT NOT NULL,
    crops TEXT NOT NULL,
    kind TEXT NOT NULL,
    judge TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    log_probabilities TEXT NOT NULL,
    mass REAL NOT NULL,
    text TEXT NOT NULL,
    tokens_in INTEGER NOT NULL,
    tokens_out INTEGER NOT NULL,
    seconds REAL NOT NULL,
    abstained INTEGER NOT NULL,
    time REAL NOT NULL
)"""

_NAMES = ", ".join(COLUMNS)

#: Rows that are read at a time: a few kilobytes, or 200 MB if each is as large as is allowed.
_PAGE = 100


@dataclass(frozen=True)
class JudgeSummary:
    """What is kept of a judge.

    Attributes:
        judge: its name.
        fingerprint: of the judge.
        answers: number of answers.
        abstained: of these, those without an answer.
        tokens_in: tokens of all questions.
        tokens_out: tokens of all answers.
        seconds: that they took.
        first: when the first was given, ISO 8601.
        last: when the last was given.
    """

    judge: str
    fingerprint: str
    answers: int
    abstained: int
    tokens_in: int
    tokens_out: int
    seconds: float
    first: str
    last: str


class Judgments:
    """A file of judgments, to which rows are added and in which none is changed.

    Each row is committed when it is added, so that killing the process loses none of them. Several processes, and
    threads, may use a file at once.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path, create: bool = True) -> Self:
        """Open a file of judgments.

        Args:
            path: of the file.
            create: whether to create it, and its folder, if there is none.

        Raises:
            RerankError: the file is something else, of another version, damaged, or cannot be written, or there is none
                and it is not to be created.
        """
        with _errors(path):
            if path.exists() and not path.is_file():
                raise RerankError(f"{path} is no file of judgments: give the path of a file, or of none")
            if not create and not path.exists():
                raise RerankError(f"no judgments are kept in {path} yet: compare photos first")
            path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            try:
                _prepare(connection, path)
            except BaseException:
                connection.close()
                raise
        return cls(path, connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def get(self, keys: Sequence[str]) -> dict[str, Reading]:
        """Readings by key, of those keys that have one.

        Raises:
            RerankError: a row is damaged, or the file cannot be read.
        """
        readings = {}
        for start in range(0, len(keys), _PAGE):
            page = keys[start : start + _PAGE]
            marks = ",".join("?" * len(page))
            for row in self._read(f"SELECT id, {_NAMES} FROM judgments WHERE key IN ({marks})", page):
                judgment = self._judgment(row)
                readings[judgment.key] = judgment.reading
        return readings

    def first(self, kind: Kind, fingerprint: str, count: int) -> list[Reading]:
        """The first answers of a judge to questions of a kind, in the order in which they were added.

        Args:
            kind: of the questions.
            fingerprint: of the judge.
            count: the most that are returned.

        Raises:
            RerankError: a row is damaged, or the file cannot be read.
        """
        where = "kind = ? AND fingerprint = ? ORDER BY id LIMIT ?"
        rows = self._read(f"SELECT id, {_NAMES} FROM judgments WHERE {where}", [kind, fingerprint, count])
        return [self._judgment(row).reading for row in rows]

    def put(self, judge: Judge, question: Question, reading: Reading) -> None:
        """Add a reading, unless the question has one.

        Raises:
            RerankError: the reading is not one of such a question, or the file cannot be written.
        """
        photo, crops = question.photo.digest, tuple(crop.digest for crop in question.crops)
        judgment = Judgment(
            judgment_key(question, judge.fingerprint), photo, crops, question.kind,
            judge.name, judge.fingerprint, reading, time.time(),
        )  # fmt: skip
        try:
            check(judgment)
        except ValueError as error:
            raise RerankError(f"the judge {judge.name:.100} gave an unusable answer: {error}") from None
        statement = f"INSERT OR IGNORE INTO judgments ({_NAMES}) VALUES ({', '.join('?' * len(COLUMNS))})"
        with self._lock, _errors(self.path):
            self._connection.execute(statement, to_row(judgment))

    def rows(self) -> Iterator[Judgment]:
        """All rows in the order in which they were added.

        Raises:
            RerankError: a row is damaged, or the file cannot be read.
        """
        last = -1
        while page := self._read(f"SELECT id, {_NAMES} FROM judgments WHERE id > ? ORDER BY id LIMIT {_PAGE}", [last]):
            yield from map(self._judgment, page)
            last = page[-1][0]

    def summary(self) -> list[JudgeSummary]:
        """What is kept of each judge, by name; control characters of names are escaped.

        Raises:
            RerankError: a row is damaged, or the file cannot be read.
        """
        rows = self._read(
            "SELECT judge, fingerprint, COUNT(*), SUM(abstained), SUM(tokens_in), SUM(tokens_out), SUM(seconds), "
            "MIN(time), MAX(time) FROM judgments GROUP BY judge, fingerprint ORDER BY judge, MIN(id)",
            [],
        )
        return [self._summary(*row) for row in rows]

    def export(self, path: Path) -> int:
        """Write all rows to a CSV file, and return their number.

        Log-probabilities are separated by spaces, as are the digests of crops; times are in ISO 8601, UTC. Control
        characters other than line breaks are escaped.

        Raises:
            RerankError: a row is damaged, or a file cannot be read or written.
        """
        count = 0

        def write(temporary: Path) -> None:
            nonlocal count
            with temporary.open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(COLUMNS)
                for judgment in self.rows():
                    row = dict(zip(COLUMNS, to_row(judgment), strict=True))
                    row["crops"] = " ".join(judgment.crops)
                    row["log_probabilities"] = " ".join(map(repr, judgment.reading.log_probabilities))
                    row["time"] = _iso(judgment.time)
                    row |= {name: _cell(row[name]) for name in ("judge", "fingerprint", "photo", "crops", "text")}
                    writer.writerow(row.values())
                    count += 1

        try:
            write_whole(path, write)
        except OSError as error:
            raise RerankError(f"the judgments cannot be written to {path}: {error.strerror or error}") from error
        return count

    def prune(self, *, before: float | None = None, judge: str | None = None) -> int:
        """Remove rows that match all conditions given, and return their number.

        Args:
            before: Unix time that they are older than.
            judge: name of their judge.

        Raises:
            RerankError: the file cannot be written.
        """
        conditions = [*(["time < ?"] if before is not None else []), *(["judge = ?"] if judge is not None else [])]
        values = [value for value in (before, judge) if value is not None]
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        with self._lock, _errors(self.path):
            count = self._connection.execute(f"DELETE FROM judgments{where}", values).rowcount
            if count:
                self._connection.execute("VACUUM")
        return count

    def _read(self, statement: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        with self._lock, _errors(self.path):
            return self._connection.execute(statement, values).fetchall()

    def _summary(
        self, judge: Any, fingerprint: Any, answers: int, abstained: Any, tokens_in: Any, tokens_out: Any, *times: Any
    ) -> JudgeSummary:
        counts = (abstained, tokens_in, tokens_out)
        texts = isinstance(judge, str) and isinstance(fingerprint, str)
        if not (texts and all(type(count) is int and count >= 0 for count in counts) and all(map(is_time, times))):
            raise RerankError(
                f"the judgments {self.path} are damaged, in rows of the judge {judge!r:.100}: remove the file, and ask "
                "again"
            )
        seconds, first, last = times
        return JudgeSummary(
            printable(judge), printable(fingerprint), answers, *counts, seconds, _iso(first), _iso(last)
        )

    def _judgment(self, row: tuple[Any, ...]) -> Judgment:
        try:
            return from_row(row[1:])
        except ValueError as error:
            raise RerankError(
                f"the judgments {self.path} are damaged, in row {row[0]} ({error}): remove the file, and ask again"
            ) from None


def _cell(text: str) -> str:
    """A text for a spreadsheet, which takes it for no formula."""
    lines = "\n".join(map(printable, text.split("\n")))
    return f"'{lines}" if text.startswith(FORMULA) else lines


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Check that a file is one of judgments that can be written; make an empty one such a file."""
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 2 * MAX_ROW)
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("BEGIN IMMEDIATE")
    try:
        schema = connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL LIMIT 2").fetchall()
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if not (schema or application or version):
            connection.execute(_TABLE)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
        elif application != APPLICATION_ID:
            raise RerankError(f"{path} is no file of judgments, but another SQLite file: give another path")
        elif version != FORMAT_VERSION:
            raise RerankError(
                f"the judgments {path} have format version {version}, and this jzi reads {FORMAT_VERSION}: "
                "use the jzi that wrote them, or another path"
            )
        elif schema != [(_TABLE,)]:
            raise RerankError(f"the judgments {path} have another table than version {version}: give another path")
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise
    _begin_log(connection)
    connection.execute("PRAGMA synchronous = NORMAL")  # a killed process loses nothing, a power cut the last rows


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
def _errors(path: Path) -> Iterator[None]:
    """Turn errors of SQLite into sentences."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if "decode" in str(error):  # text that is not UTF-8, which Python's module notices
            code = sqlite3.SQLITE_CORRUPT
        reason, advice = _REASONS.get(code, (first_line(error), "look at the file and its folder"))
        raise RerankError(f"the judgments {path} cannot be used, {reason}: {advice}") from error
    except UnicodeDecodeError as error:  # of the text of the table, or of SQLite's message about it
        reason, advice = _REASONS[sqlite3.SQLITE_CORRUPT]
        raise RerankError(f"the judgments {path} cannot be used, {reason}: {advice}") from error
    except OSError as error:
        raise RerankError(
            f"the judgments {path} cannot be used, {error.strerror or error}: give a path where files can be written"
        ) from error


#: Reason and advice by SQLite's code.
_REASONS = {
    sqlite3.SQLITE_NOTADB: ("which is no SQLite file", "give another path"),
    sqlite3.SQLITE_CORRUPT: ("which are damaged", "remove the file, and ask again"),
    sqlite3.SQLITE_TOOBIG: ("which have a row that is too large", "remove the file, and ask again"),
    sqlite3.SQLITE_READONLY: ("which are read-only", "allow writing to the file and its folder"),
    sqlite3.SQLITE_CANTOPEN: ("which cannot be opened", "allow writing to the file and its folder"),
    sqlite3.SQLITE_FULL: ("since the disk is full", "make room"),
    sqlite3.SQLITE_BUSY: ("which another process keeps locked", "end that process, or wait for it"),
}
