"""What was asked of Mapillary and what it answered, in an SQLite file of the data set's folder.

Each answer is committed together with the note that it was given, so that a process that is killed at any moment asks
again only what was under way.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import pandas as pd

from jzi.errors import DatasetError, JziError
from jzi.mapillary.boxes import Box
from jzi.mapillary.records import Page, Record, is_id
from jzi.store.disk.sqlite_file import SqliteFile, SqliteFormat
from jzi.store.plain import plain

#: Name of the file in the folder of the data set.
FILE = ".mapillary.sqlite"

#: Largest value of a table, bytes: the rows of a panorama with 64 crops have about 200 kB.
MAX_VALUE = 2**22

#: Rows that are read at a time.
_PAGE = 50_000

_RECORD = (
    "id TEXT PRIMARY KEY, latitude REAL, longitude REAL, computed_latitude REAL, computed_longitude REAL, "
    "captured_ms INTEGER, camera TEXT, make TEXT, model TEXT, sequence TEXT, panorama INTEGER, heading REAL, "
    "computed_heading REAL, camera_parameters TEXT, quality_score REAL, width INTEGER, height INTEGER, creator TEXT"
)
FORMAT = SqliteFormat(
    what="the answers of Mapillary",
    application_id=0x6A7A696D,  # "jzim"
    version=1,
    tables=(
        "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID",
        "CREATE TABLE boxes (depth INTEGER, x INTEGER, y INTEGER, state TEXT, PRIMARY KEY (depth, x, y)) WITHOUT ROWID",
        f"CREATE TABLE records ({_RECORD}) WITHOUT ROWID",
        "CREATE TABLE links (id TEXT PRIMARY KEY, link TEXT) WITHOUT ROWID",
        "CREATE TABLE refused (id TEXT PRIMARY KEY, reason TEXT) WITHOUT ROWID",
        "CREATE TABLE photos (id TEXT PRIMARY KEY, state TEXT, reason TEXT, bytes INTEGER, preparation TEXT, "
        "rows TEXT) WITHOUT ROWID",
    ),
    max_value=MAX_VALUE,
    error=DatasetError,
    another="give another folder",
    anew="remove it and run the command again, which asks anew",
)

#: Types of columns in memory; pandas would take some for those of objects.
_TYPES: dict[str, Any] = {
    **dict.fromkeys((*Record._fields[1:5], "heading", "computed_heading", "quality_score"), "float64"),
    **dict.fromkeys(("width", "height"), "float32"),
    "panorama": "bool",
}

#: What became of a box: asked, split into four, or full at the smallest size.
State = Literal["done", "split", "full"]


@dataclass(frozen=True)
class PhotoOutcome:
    """What became of a photo.

    Attributes:
        id: its id.
        state: "prepared" or "rejected".
        reason: why it was rejected.
        size: bytes that were downloaded.
        preparation: the options that its rows depend on, as text.
        rows: of the prepared photo, or of the crops of a panorama, as `jzi.curate.prepare.write_prepared` returns them.
    """

    id: str
    state: Literal["prepared", "rejected"]
    reason: str = ""
    size: int = 0
    preparation: str = ""
    rows: Sequence[Mapping[str, Any]] = field(default=())


class Journal:
    """The file; a context manager, which closes it."""

    def __init__(self, file: SqliteFile) -> None:
        self._file = file

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open the journal of a folder; create it, and the folder, if there is none.

        Raises:
            DatasetError: the file is something else, of another version, damaged, or cannot be written; also of the
                other methods.
        """
        return cls(SqliteFile.open(folder / FILE, FORMAT))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def damage(self, where: str) -> JziError:
        """The error of a file with invalid values."""
        return self._file.damage(where)

    # What was asked for

    def meta(self, name: str) -> Any:
        """A value that `set_meta` kept; None if there is none."""
        rows = self._file.read("SELECT value FROM meta WHERE name = ?", [name])
        return self._parsed(rows[0][0]) if rows else None

    def set_meta(self, name: str, value: Any) -> None:
        """Keep a value that JSON can hold."""
        self._file.write(("INSERT OR REPLACE INTO meta VALUES (?, ?)", [(name, json.dumps(value))]))

    # Boxes and records

    def box_states(self) -> dict[Box, State]:
        """What became of the boxes that were asked about."""
        rows = self._file.read("SELECT depth, x, y, state FROM boxes")
        if not all(type(depth) is type(x) is type(y) is int and state in ("done", "split", "full")
                   for depth, x, y, state in rows):  # fmt: skip
            raise self.damage("boxes")
        return {Box(*box): state for *box, state in rows}

    def add_page(self, box: Box, state: State, page: Page) -> None:
        """Keep what was found in a box, and that it was asked about. Photos that are there already are not changed."""
        self._file.write(
            ("INSERT OR REPLACE INTO boxes VALUES (?, ?, ?, ?)", [(*box, state)]),
            (f"INSERT OR IGNORE INTO records VALUES ({_marks(Record._fields)})", page.records.values()),
            ("INSERT OR IGNORE INTO links VALUES (?, ?)", page.links.items()),
            ("INSERT OR IGNORE INTO refused VALUES (?, ?)", page.refused.items()),
        )

    def count(self) -> int:
        """Number of records."""
        return self._file.read("SELECT COUNT(*) FROM records")[0][0]

    def refused(self) -> list[tuple[str, str]]:
        """Ids and reasons of photos that the service lists without what is needed."""
        return [
            (str(photo), str(reason)) for photo, reason in self._file.read("SELECT id, reason FROM refused ORDER BY id")
        ]

    def records(self) -> Iterator[pd.DataFrame]:
        """The records in the order of their ids, in frames of limited size with the columns of `Record`."""
        last = ""
        statement = f"SELECT {', '.join(Record._fields)} FROM records WHERE id > ? ORDER BY id LIMIT {_PAGE}"
        while rows := self._file.read(statement, [last]):
            last = rows[-1][0]
            frame = pd.DataFrame(rows, columns=list(Record._fields))
            try:
                frame = frame.astype(_TYPES)
            except (ValueError, TypeError) as error:
                raise self.damage("records") from error
            if not all(map(is_id, frame["id"])):  # they become names of files
                raise self.damage("records")
            yield frame

    # Photos

    def links(self, photos: Sequence[str]) -> dict[str, str]:
        """Links to images, by id, as the service gave them; they may have expired."""
        links: dict[str, str] = {}
        for start in range(0, len(photos), 500):
            page = list(photos[start : start + 500])
            links |= dict(self._file.read(f"SELECT id, link FROM links WHERE id IN ({_marks(page)})", page))
        return links

    def add_outcome(self, outcome: PhotoOutcome) -> None:
        """Keep what became of a photo."""
        rows = json.dumps([plain(dict(row)) for row in outcome.rows], allow_nan=False)
        values = (outcome.id, outcome.state, outcome.reason, outcome.size, outcome.preparation, rows)
        self._file.write(
            ("INSERT OR REPLACE INTO photos VALUES (?, ?, ?, ?, ?, ?)", [values]),
            ("DELETE FROM links WHERE id = ?", [(outcome.id,)]),
        )

    def forget(self, photos: Iterable[str]) -> None:
        """Forget what became of photos, so that they are asked for again."""
        self._file.write(("DELETE FROM photos WHERE id = ?", [(photo,) for photo in photos]))

    def states(self) -> dict[str, tuple[str, str]]:
        """State and preparation of every photo that was asked for, by id."""
        rows = self._file.read("SELECT id, state, preparation FROM photos")
        return {photo: (sys.intern(str(state)), sys.intern(str(preparation))) for photo, state, preparation in rows}

    def mean_bytes(self) -> float | None:
        """Mean size of the photos that were downloaded; None if there are none."""
        return self._file.read("SELECT AVG(bytes) FROM photos WHERE bytes > 0")[0][0]

    def outcomes(self) -> Iterator[list[PhotoOutcome]]:
        """What became of the photos, in the order of their ids, some at a time."""
        last = ""
        columns = "id, state, reason, bytes, preparation, rows"
        while page := self._file.read(f"SELECT {columns} FROM photos WHERE id > ? ORDER BY id LIMIT 2000", [last]):
            outcomes = [
                PhotoOutcome(photo, state, reason, size, preparation, self._parsed(rows))
                for photo, state, reason, size, preparation, rows in page
            ]
            if not all(each.state in ("prepared", "rejected") and isinstance(each.rows, list)
                       and all(map(_is_row, each.rows)) for each in outcomes):  # fmt: skip
                raise self.damage("photos")
            yield outcomes
            last = page[-1][0]

    def _parsed(self, text: Any) -> Any:
        try:
            return json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise self.damage("its values") from error


def _is_row(row: Any) -> bool:
    """Whether a row names a file below the images of its folder."""
    path = row.get("path") if isinstance(row, dict) else None
    parts = path.split("/") if isinstance(path, str) else []
    return len(parts) == 3 and parts[0] == "images" and not {"", ".", ".."} & set(parts) and "\\" not in str(path)


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))
