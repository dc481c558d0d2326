"""The folder of a data set: photos, their table, the rejected photos with the reasons, and what the data card needs.

photos.csv       the photo table (`jzi.store.photos.photo_table`), which `jzi init --queries` reads
images/          the photos, by the paths of the table
rejected.csv     id, filter and reason of every photo that was found but is not in the table
dataset.json     sources with licences, filters with counts, imagery, split (`DatasetInfo`)
DATASET.md       the data card, for people (`jzi dataset card`)
"""

from __future__ import annotations

import csv
import errno
import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from jzi.errors import DatasetError, first_line
from jzi.store.disk.files import write_whole
from jzi.store.disk.table_file import MAX_COLUMNS, MAX_HEADER
from jzi.store.photos.photo_file import open_regular_file
from jzi.store.printable import printable, quote_formula, unquote_formula

TABLE, IMAGES, REJECTED, INFO, CARD = "photos.csv", "images", "rejected.csv", "dataset.json", "DATASET.md"

#: Version of dataset.json.
FORMAT: Literal[1] = 1

#: Largest dataset.json, and photos.csv or rejected.csv, bytes: ten million photos take about 3 GB.
MAX_INFO, MAX_TABLE = 2**22, 2**32

#: Columns of photos.csv, in this order, as far as they are known; others follow. Angles are degrees, positions degrees
#: (WGS 84). gps_* is what the camera recorded, latitude and longitude are the best known position.
COLUMNS = (
    "id", "path", "latitude", "longitude", "heading", "hfov", "panorama", "split", "drive", "captured_at", "device",
    "creator", "camera", "width", "height", "gps_latitude", "gps_longitude", "position_error_m", "source", "licence",
)  # fmt: skip

#: Those of `COLUMNS` that hold text, empty if it is unknown, and those that hold numbers, NaN if they are unknown.
TEXTS = (
    "id", "path", "split", "drive", "captured_at", "device", "creator", "camera", "source", "licence",
)  # fmt: skip
NUMBERS = (
    "latitude", "longitude", "heading", "hfov", "width", "height", "gps_latitude", "gps_longitude", "position_error_m",
)  # fmt: skip

_NEEDED = ("id", "path", "latitude", "longitude")

#: A path that leads out of its folder, or is none.
_OUTSIDE = re.compile(r"(?s)\s*|[/\\~].*|[A-Za-z]:.*|(.*[/\\])?\.\.([/\\].*)?|.*\0.*")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _printable(cls, value: Any) -> Any:
        return printable(value) if isinstance(value, str) else value


class Source(_Model):
    """Where photos or imagery are from.

    Attributes:
        kind: what it gave.
        name: of the service, the folder or the recording.
        licence: such as "CC BY-SA 4.0"; "unknown" if nobody said.
        attribution: the credit line that the licence asks for.
        url: of the service or its terms; empty if there is none. It holds no token.
        accessed: the day.
        count: number of photos or files found there.
        details: what else is worth knowing, one "name: value" each, such as ground sampling distance and year.
    """

    kind: Literal["photos", "imagery"]
    name: str = Field(max_length=1000)
    licence: str = Field(default="unknown", max_length=1000)
    attribution: str = Field(default="", max_length=4000)
    url: str = Field(default="", max_length=4000)
    accessed: date
    count: int = Field(default=0, ge=0)
    details: dict[str, str | Annotated[float, Field(allow_inf_nan=False)]] = {}


class FilterCount(_Model):
    """What a filter removed.

    Attributes:
        name: of the filter, the column `filter` of rejected.csv.
        setting: what it was set to, in words, such as "GPS at most 15 m from the SfM position".
        removed: number of photos.
    """

    name: str = Field(max_length=100)
    setting: str = Field(max_length=1000)
    removed: int = Field(ge=0)


class DatasetInfo(_Model):
    """What dataset.json holds.

    Attributes:
        format: its version.
        created: the day.
        sources: of photos and imagery.
        found: number of photos before the filters.
        filters: in the order in which they ran; a photo counts for the first that removed it.
        split: how the photos were split, in words; empty if they were not.
        notes: sentences for the reader of the card.
    """

    format: Literal[1] = FORMAT
    created: date = Field(default_factory=date.today)
    sources: tuple[Source, ...] = ()
    found: int = Field(default=0, ge=0)
    filters: tuple[FilterCount, ...] = ()
    split: str = Field(default="", max_length=4000)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rejection:
    """A photo that is not in the data set.

    Attributes:
        id: of the photo.
        filter: the name of the filter that removed it.
        reason: why, with the value, such as "GPS 31 m from the SfM position".
    """

    id: str
    filter: str
    reason: str


@dataclass(frozen=True)
class DatasetFolder:
    """The folder of a data set, read or to be written.

    Attributes:
        path: the folder.
        photos: the kept photos, with columns id, path (relative to the folder), latitude and longitude, and others of
            `COLUMNS`; one row a photo.
        info: what dataset.json holds.
        rejected: the other photos.
    """

    path: Path
    photos: pd.DataFrame
    info: DatasetInfo
    rejected: Sequence[Rejection] = field(default=())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a folder that `write` wrote.

        Columns of `TEXTS` are text, empty where nothing is known; those of `NUMBERS` are float64; panorama is bool.

        Raises:
            DatasetError: it is none, its tables are damaged, a photo has no position, or a path leads out of it.
        """
        info = read_info(path)
        try:
            photos = _read_photos(path / TABLE)
            with _open_table(path / REJECTED) as file:
                rows = csv.reader(file)
                next(rows, None)
                rejected = tuple(Rejection(*map(unquote_formula, row[:3])) for row in rows if len(row) >= 3)
        except DatasetError:
            raise
        except Exception as error:  # of csv, pandas and the files
            reason = (isinstance(error, OSError) and error.strerror) or first_line(error)
            raise DatasetError(f"{path} is not the folder of a data set: {reason}") from error
        return cls(path, photos, info, rejected)

    def write(self) -> None:
        """Write photos.csv, rejected.csv and dataset.json, each atomically and dataset.json last.

        No spreadsheet takes a cell for a formula: texts that look like one get an apostrophe, which `read` removes.

        Raises:
            DatasetError: they cannot be written.
        """
        first = [name for name in COLUMNS if name in self.photos]
        photos = quoted(self.photos[[*first, *(name for name in self.photos if name not in COLUMNS)]])
        rejected = quoted(
            pd.DataFrame([(each.id, each.filter, each.reason) for each in self.rejected], columns=list(_REJECTED))
        )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_whole(self.path / TABLE, partial(photos.to_csv, index=False))
            write_whole(self.path / REJECTED, partial(rejected.to_csv, index=False))
            text = self.info.model_dump_json(indent=2) + "\n"
            write_whole(self.path / INFO, lambda file: file.write_text(text, encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DatasetError(cannot_write(self.path, error)) from error

    def photo(self, path: str) -> Path:
        """The file of a photo, by the column path.

        Raises:
            DatasetError: it is not there, or a link leads out of the folder.
        """
        file = self.path / path
        try:
            real = file.resolve(strict=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise DatasetError(
                f"{self.path / TABLE} lists {path}, which is not there: restore it, or drop its row"
            ) from error
        if not (real.is_relative_to(self.path.resolve()) and real.is_file()):
            raise DatasetError(f"{file} is no file of the data set: drop its row")
        return file


_REJECTED = ("id", "filter", "reason")


def cannot_write(path: Path, error: OSError | ValueError) -> str:
    """The sentence for a file or folder that cannot be written."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{path} cannot be written, the disk is full ({error.strerror}): free some space and run it again"
    return f"{path} cannot be written: {(isinstance(error, OSError) and error.strerror) or first_line(error)}"


def quoted(frame: pd.DataFrame) -> pd.DataFrame:
    """The same table with text that no spreadsheet takes for a formula, in the header too; sizes are whole numbers."""
    result = frame.copy(deep=False)
    for name in frame:
        if name in ("width", "height") and pd.api.types.is_float_dtype(frame[name]):
            result[name] = frame[name].round().astype("Int64")
        elif not (pd.api.types.is_numeric_dtype(frame[name]) or pd.api.types.is_datetime64_any_dtype(frame[name])):
            result[name] = frame[name].astype(object).map(quote_formula)
    return result.rename(columns=quote_formula)


def _open_table(file: Path) -> io.TextIOWrapper:
    opened = open_regular_file(file)
    if file.stat().st_size > MAX_TABLE:
        opened.close()
        raise DatasetError(f"{file} has more than {MAX_TABLE} bytes: it is no table of jzi")
    return io.TextIOWrapper(opened, encoding="utf-8", newline="")


def _read_photos(file: Path) -> pd.DataFrame:
    with _open_table(file) as opened:
        header = opened.readline(MAX_HEADER)
        names = next(csv.reader([header]), [])
        if len(header) == MAX_HEADER or len(names) > MAX_COLUMNS:
            raise DatasetError(f"{file} has more than {MAX_COLUMNS} columns: it is no table of jzi")
        opened.seek(0)
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # of rows that are longer than the header
            # "NA" and "null" are ids and names like any other
            photos = pd.read_csv(
                opened, dtype=dict.fromkeys(TEXTS, str), index_col=False, keep_default_na=False, na_values=[""]
            )
    photos = photos.rename(columns=unquote_formula)
    if missing := [name for name in _NEEDED if name not in photos]:
        raise DatasetError(f"{file} lacks {', '.join(missing)}: make the data set anew")
    for name in photos:
        if name in NUMBERS:
            photos[name] = pd.to_numeric(photos[name], errors="coerce").astype(float)
        elif not pd.api.types.is_numeric_dtype(photos[name]):
            photos[name] = photos[name].map(unquote_formula, na_action="ignore")
            if name in TEXTS:
                photos[name] = photos[name].astype(object).where(photos[name].notna(), "")
    for name in TEXTS:
        if name in photos and pd.api.types.is_numeric_dtype(photos[name]):  # no row has one
            photos[name] = pd.Series("", index=photos.index, dtype=object)
    if "panorama" in photos:
        photos["panorama"] = photos["panorama"].astype(str).str.lower().isin(("true", "1", "1.0"))
    _check_photos(photos, file)
    return photos


def _check_photos(photos: pd.DataFrame, file: Path) -> None:
    off_earth = ~(photos["latitude"].abs().le(90) & photos["longitude"].abs().le(180))
    outside = photos["path"].str.fullmatch(_OUTSIDE)
    for wrong, what in (
        (photos["id"] == "", "has no id"),
        (photos["id"].duplicated(), "has the id of another row"),
        (off_earth, "has no position on earth"),
        (outside, "has a path that is not one of a file in the folder"),
    ):
        if wrong.any():
            row = int(wrong.to_numpy().argmax())
            raise DatasetError(
                f"row {row + 1} of {file} ({photos['id'].iloc[row]!r:.100}) {what}: remove it, or make the set anew"
            )


def read_info(path: Path) -> DatasetInfo:
    """Read the dataset.json of a folder.

    Raises:
        DatasetError: there is none, or it is damaged or of another version.
    """
    file = path / INFO
    try:
        with open_regular_file(file) as opened:
            content = opened.read(MAX_INFO + 1)
    except (OSError, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or first_line(error)
        raise DatasetError(
            f"{path} is not the folder of a data set ({INFO}: {reason}): make one by `jzi dataset mapillary` "
            "or `jzi dataset filter`"
        ) from error
    if len(content) > MAX_INFO:
        raise DatasetError(f"{file} is larger than {MAX_INFO} bytes: it is no {INFO} of jzi")
    try:
        return DatasetInfo.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "its text"
        raise DatasetError(f"{file} is damaged or of another version ({where}: {first['msg']})") from error
