"""Every row of a table is either used or reported, once, whatever stands in it."""

from __future__ import annotations

import csv
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from jzi.errors import PhotoTableError
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.photos.photo_table import COLUMNS, PhotoTable, read_photo_table

#: The photos that exist; tables name others too.
PHOTOS = ("a", "b", "c", "d", "4449826985073821")

IDS = st.sampled_from([*PHOTOS, *PHOTOS, " a ", "gone", "", "007"])
COORDINATES = {
    "latitude": st.one_of(
        st.floats(-90, 90).map(str), st.sampled_from(["48.2", "48.2", "", "north", "95", "-90.1", "nan", "1e400"])
    ),
    "longitude": st.one_of(
        st.floats(-180, 180).map(str), st.sampled_from(["16.37", "16.37", "", "east", "181", "-inf", "nan"])
    ),
}
SPLITS = st.sampled_from(["train", "val", "test", " Train", "validation", "holdout", ""])


@dataclass(frozen=True)
class Table:
    """A CSV: the header and the rows, as text, and how they are written."""

    header: list[str]
    rows: list[list[str]]
    separator: str
    encoding: str

    def column(self, ours: str) -> list[str] | None:
        """The cells of the column that has one of the names of ours."""
        names = [name.strip().lower() for name in self.header]
        for name in COLUMNS[ours]:
            if name in names:
                return [row[names.index(name)] for row in self.rows]
        return None

    def read(self) -> PhotoTable:
        with TemporaryDirectory() as name:
            folder = Path(name)
            for photo in PHOTOS:
                (folder / f"{photo}.jpg").touch()  # nothing opens them here
            text = io.StringIO()
            csv.writer(text, delimiter=self.separator, lineterminator="\n").writerows([self.header, *self.rows])
            (folder / "table.csv").write_text(text.getvalue(), encoding=self.encoding)
            return read_photo_table(folder / "table.csv")


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """With the columns in any order and spelling, split or not, and rows that cannot be used among the others."""
    cells = {"id": IDS, **COORDINATES}
    if draw(st.booleans()):
        cells["split"] = SPLITS
    columns = draw(st.permutations([*cells, "note"]))
    header = ["note" if column == "note" else draw(_spelling(column)) for column in columns]
    row = st.tuples(*(cells.get(column, st.sampled_from(["wet", "", "a,b", 'so "dry"'])) for column in columns))
    # one row that can be used at least: a table without any is refused, see below
    good = {"id": "d", "latitude": "48.2", "longitude": "16.37", "split": "train", "note": "good"}
    rows = draw(st.lists(row.map(list), max_size=12))
    rows.insert(draw(st.integers(0, len(rows))), [good[column] for column in columns])
    return Table(header, rows, draw(st.sampled_from(",;\t|")), draw(st.sampled_from(["utf-8", "utf-8-sig"])))


def _spelling(column: str) -> st.SearchStrategy[str]:
    cases = st.sampled_from([str.lower, str.upper, str.title])
    return st.builds(
        lambda name, case, pad: pad + case(name) + pad,
        st.sampled_from(COLUMNS[column]),
        cases,
        st.sampled_from(["", " "]),
    )


@given(tables())
def test_every_row_of_a_table_is_used_or_reported_once(table: Table) -> None:
    try:
        photos = table.read()
    except PhotoTableError as error:  # most latitudes are beyond 90 degrees, and longitudes are not
        assert "swapped" in str(error)
        return
    assert len(photos) + len(photos.rejected) == len(table.rows)
    lines = photos.frame["line"].tolist()
    assert len(set(lines)) == len(lines)
    ids = table.column("id")
    assert ids is not None
    names = [ids[line - 2].strip() for line in lines]  # the header is line 1
    assert names == photos.frame["id"].tolist()
    reported = [f"row {row + 1}" if not name.strip() else name.strip() for row, name in enumerate(ids)]
    unused = [name for row, name in enumerate(reported) if row + 2 not in lines]
    assert Counter(each.name for each in photos.rejected) == Counter(unused)
    assert all(each.reason for each in photos.rejected)


@given(tables())
def test_the_rows_that_are_used_can_be_used(table: Table) -> None:
    try:
        frame = table.read().frame
    except PhotoTableError:
        return
    assert frame["id"].is_unique
    assert frame["id"].isin(PHOTOS).all()
    assert frame["latitude"].between(-90, 90).all()
    assert frame["longitude"].between(-180, 180).all()
    assert frame["split"].isin(["train", "val", "test"]).all()
    latitude, longitude = (pd.Series(table.column(name)) for name in ("latitude", "longitude"))
    rows = frame["line"] - 2
    assert frame["latitude"].tolist() == latitude[rows].astype(float).tolist()
    assert frame["longitude"].tolist() == longitude[rows].astype(float).tolist()


@given(tables(), st.floats(100, 1e6))
def test_photos_outside_of_an_area_are_reported_too(table: Table, size: float) -> None:
    try:
        photos = table.read()
        inside = photos.inside(Pyramid.around(48.2, 16.37, size, levels=2))
    except PhotoTableError:
        return
    assert len(inside) + len(inside.rejected) == len(table.rows)
    assert inside.frame["line"].isin(photos.frame["line"]).all()
