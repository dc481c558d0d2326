"""Judgments kept in an SQLite file: a question that was asked once is never asked again."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from jzi.errors import RerankError
from jzi.rerank.judgment_rows import COLUMNS, MAX_ROW, Judgment, check, from_row, is_time, judgment_key, to_row
from jzi.rerank.question import Judge, Kind, Question, Reading
from jzi.store.disk.files import write_whole
from jzi.store.disk.sqlite_file import SqliteFile, SqliteFormat
from jzi.store.printable import FORMULA, printable

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

FORMAT = SqliteFormat(
    what="the judgments",
    application_id=0x6A7A696A,  # "jzij"
    version=1,
    tables=(_TABLE,),
    max_value=2 * MAX_ROW,
    error=RerankError,
    another="give another path",
    anew="remove the file, and ask again",
)

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
    """

    def __init__(self, file: SqliteFile) -> None:
        self._file = file

    @property
    def path(self) -> Path:
        """The file."""
        return self._file.path

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
        if not create and not path.exists():
            raise RerankError(f"no judgments are kept in {path} yet: compare photos first")
        return cls(SqliteFile.open(path, FORMAT))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def get(self, keys: Sequence[str]) -> dict[str, Reading]:
        """Readings by key, of those keys that have one.

        Raises:
            RerankError: a row is damaged, or the file cannot be read.
        """
        readings = {}
        for start in range(0, len(keys), _PAGE):
            page = keys[start : start + _PAGE]
            marks = ",".join("?" * len(page))
            for row in self._file.read(f"SELECT id, {_NAMES} FROM judgments WHERE key IN ({marks})", page):
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
        rows = self._file.read(f"SELECT id, {_NAMES} FROM judgments WHERE {where}", [kind, fingerprint, count])
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
        self._file.write((statement, [to_row(judgment)]))

    def rows(self) -> Iterator[Judgment]:
        """All rows in the order in which they were added.

        Raises:
            RerankError: a row is damaged, or the file cannot be read.
        """
        last = -1
        while page := self._file.read(
            f"SELECT id, {_NAMES} FROM judgments WHERE id > ? ORDER BY id LIMIT {_PAGE}", [last]
        ):
            yield from map(self._judgment, page)
            last = page[-1][0]

    def summary(self) -> list[JudgeSummary]:
        """What is kept of each judge, by name; control characters of names are escaped.

        Raises:
            RerankError: a row is damaged, or the file cannot be read.
        """
        rows = self._file.read(
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
        return self._file.delete(f"DELETE FROM judgments{where}", values)

    def _summary(
        self, judge: Any, fingerprint: Any, answers: int, abstained: Any, tokens_in: Any, tokens_out: Any, *times: Any
    ) -> JudgeSummary:
        counts = (abstained, tokens_in, tokens_out)
        texts = isinstance(judge, str) and isinstance(fingerprint, str)
        if not (texts and all(type(count) is int and count >= 0 for count in counts) and all(map(is_time, times))):
            raise self._file.damage(f"rows of the judge {judge!r:.100}")
        seconds, first, last = times
        return JudgeSummary(
            printable(judge), printable(fingerprint), answers, *counts, seconds, _iso(first), _iso(last)
        )

    def _judgment(self, row: tuple[Any, ...]) -> Judgment:
        try:
            return from_row(row[1:])
        except ValueError as error:
            raise self._file.damage(f"row {row[0]} ({error})") from None


def _cell(text: str) -> str:
    """A text for a spreadsheet, which takes it for no formula."""
    lines = "\n".join(map(printable, text.split("\n")))
    return f"'{lines}" if text.startswith(FORMULA) else lines


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
