"""The folder of a data set: photos, their table, the rejected photos with the reasons, and what the data card needs.

photos.csv       the photo table (`jzi.store.photo_table`), which `jzi init --queries` reads
images/          the photos, by the paths of the table
rejected.csv     id, filter and reason of every photo that was found but is not in the table
dataset.json     sources with licences, filters with counts, imagery, split (`DatasetInfo`)
DATASET.md       the data card, for people (`jzi dataset card`)
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from pathlib import Path
from typing import Literal, Self

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jzi.errors import DatasetError, first_line
from jzi.store.files import write_whole

TABLE, IMAGES, REJECTED, INFO, CARD = "photos.csv", "images", "rejected.csv", "dataset.json", "DATASET.md"

#: Version of dataset.json.
FORMAT: Literal[1] = 1

#: Largest dataset.json, bytes.
MAX_INFO = 2**22

#: Columns of photos.csv, in this order, as far as they are known; others follow. Angles are degrees, positions degrees
#: (WGS 84). gps_* is what the camera recorded, latitude and longitude are the best known position.
COLUMNS = (
    "id", "path", "latitude", "longitude", "heading", "hfov", "panorama", "split", "drive", "captured_at", "device",
    "creator", "camera", "width", "height", "gps_latitude", "gps_longitude", "position_error_m", "source", "licence",
)  # fmt: skip


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


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
    details: dict[str, str | float] = {}


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

        Raises:
            DatasetError: it is none.
        """
        info = read_info(path)
        try:
            text = dict.fromkeys(("id", "path", "drive", "device", "creator", "camera", "source", "licence"), str)
            photos = pd.read_csv(path / TABLE, dtype=text, encoding="utf-8")
            with (path / REJECTED).open(encoding="utf-8", newline="") as file:
                rejected = tuple(Rejection(*row[:3]) for row in list(csv.reader(file))[1:] if len(row) >= 3)
        except (OSError, ValueError, csv.Error) as error:
            raise DatasetError(f"{path} is not the folder of a data set: {first_line(error)}") from error
        missing = {"id", "path", "latitude", "longitude"} - set(photos.columns)
        if missing:
            raise DatasetError(f"{path / TABLE} lacks {', '.join(sorted(missing))}: make the data set anew")
        return cls(path, photos, info, rejected)

    def write(self) -> None:
        """Write photos.csv, rejected.csv and dataset.json, each atomically and dataset.json last.

        Raises:
            DatasetError: they cannot be written.
        """
        first = [name for name in COLUMNS if name in self.photos]
        photos = self.photos[[*first, *(name for name in self.photos if name not in COLUMNS)]]
        rejected = pd.DataFrame(
            [(each.id, each.filter, each.reason) for each in self.rejected], columns=["id", "filter", "reason"]
        )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_whole(self.path / TABLE, partial(photos.to_csv, index=False))
            write_whole(self.path / REJECTED, partial(rejected.to_csv, index=False))
            text = self.info.model_dump_json(indent=2) + "\n"
            write_whole(self.path / INFO, lambda file: file.write_text(text, encoding="utf-8"))
        except OSError as error:
            raise DatasetError(f"{self.path} cannot be written: {error.strerror or first_line(error)}") from error


def read_info(path: Path) -> DatasetInfo:
    """Read the dataset.json of a folder.

    Raises:
        DatasetError: there is none, or it is damaged or of another version.
    """
    file = path / INFO
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_INFO + 1)
        if len(content) > MAX_INFO:
            raise DatasetError(f"{file} is larger than {MAX_INFO} bytes: it is no {INFO} of jzi")
        return DatasetInfo.model_validate_json(content)
    except OSError as error:
        raise DatasetError(
            f"{path} is not the folder of a data set ({INFO}: {error.strerror}): make one by `jzi dataset mapillary` "
            "or `jzi dataset filter`"
        ) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "its text"
        raise DatasetError(f"{file} is damaged or of another version ({where}: {first['msg']})") from error
