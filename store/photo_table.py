"""The photo table: photos, their positions and their splits.

It is read from a folder of photos with EXIF positions, or from a CSV or Parquet file with common column names. Rows
that cannot be used are listed in `PhotoTable.rejected` with the reason.
"""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from jzi.errors import PhotoError, PhotoTableError
from jzi.store.exif import SUFFIXES, ExifPosition, read_position
from jzi.store.pyramid import Pyramid
from jzi.store.splits import SPLITS, TABLE_SPLIT, SplitInfo, block_side, is_zoom_sequence, split_photos, text

_SPELLINGS = (*SUFFIXES, *(suffix.upper() for suffix in SUFFIXES))  # cameras write .JPG

#: Accepted names of each column, in order of preference.
COLUMNS = {
    "id": ("id", "image_id", "photo_id", "query_id"),
    "path": ("path", "file", "image", "filename", "file_name", "image_path"),
    "latitude": ("latitude", "lat", "gps_latitude"),
    "longitude": ("longitude", "lon", "lng", "long", "gps_longitude"),
    "heading": ("heading", "compass_deg", "compass_angle", "bearing"),
    "split": ("split", "subset"),
    "drive": ("drive", "drive_id", "sequence_id", "sequence_key", "trip", "trip_id"),
    "captured_at": ("captured_at", "timestamp", "time", "datetime", "date_time", "capture_time"),
    "device": ("device", "device_id", "creator", "creator_id", "user", "username"),
}

#: Columns of ids, which are read as text.
_TEXT = ("id", "path", "drive", "device")


@dataclass(frozen=True)
class Rejected:
    """A row that cannot be used: its name, and the reason."""

    name: str
    reason: str


@dataclass(frozen=True)
class PhotoTable:
    """Photos with positions and splits.

    Attributes:
        frame: columns id (text), photo (absolute path), path (as in the source), latitude and longitude (degrees,
            WGS 84), split ("train", "val" or "test"), optionally drive (an id), captured_at (time) and device, and any
            other columns of the source.
        rejected: rows that cannot be used.
        source: path of the source, for messages.
        split: how the photos were split.
        disagreements: rows whose published zoom sequence (column `sequence`) differs from that of their position; set
            by `inside`. These rows are used.
    """

    frame: pd.DataFrame
    rejected: tuple[Rejected, ...]
    source: str
    disagreements: tuple[Rejected, ...] = ()
    split: SplitInfo = TABLE_SPLIT

    def __len__(self) -> int:
        return len(self.frame)

    def inside(self, pyramid: Pyramid) -> PhotoTable:
        """Return the rows inside the area of a pyramid; the others are added to `rejected`.

        Unless the source has splits, the photos inside are split anew, by blocks that suit the area.

        Raises:
            PhotoTableError: no row is inside.
        """
        latitude, longitude = self.frame["latitude"].to_numpy(), self.frame["longitude"].to_numpy()
        inside = pyramid.paths(latitude, longitude)[:, 0] >= 0
        if len(self) and not inside.any():
            if (pyramid.paths(longitude, latitude)[:, 0] >= 0).any():
                raise PhotoTableError(f"{self.source} has latitude and longitude swapped: rename its columns")
            center = pyramid.unproject(pyramid.west + pyramid.size / 2, pyramid.north - pyramid.size / 2)
            raise PhotoTableError(
                f"none of the {len(self)} photos of {self.source} lies in the area of {pyramid.size:.0f} m around "
                f"{center[0]:.5f}, {center[1]:.5f} (the first is at {latitude[0]:.5f}, {longitude[0]:.5f})"
            )
        outside = [Rejected(name, "outside the area") for name in self.frame["id"][~inside]]
        frame, split = self.frame[inside].reset_index(drop=True), self.split
        if split.requested:
            frame["split"], split = split_photos(frame, split.requested, block_side(pyramid.size))
        disagreements = _check_sequences(frame, pyramid, self.source)
        return PhotoTable(frame, (*self.rejected, *outside), self.source, disagreements, split)


def read_photo_table(
    source: Path | Mapping[str, Path], photos: Path | None = None, split_by: str = "auto"
) -> PhotoTable:
    """Read a folder of photos with EXIF positions (recursively), or a CSV or Parquet table.

    Args:
        source: the folder or the table; or one for each split, by its name.
        photos: folder of a table's photos, which are found by their path or as `<id>.jpg` or `<id>_undistorted.jpg`;
            None for the folder of the table.
        split_by: what to keep together in a split, as in `jzi.store.splits.split_photos`; not used if the source has
            splits.

    Raises:
        PhotoTableError: the source does not exist, has no coordinates, or no row can be used; or it lacks what
            `split_by` needs.
    """
    parts = source if isinstance(source, Mapping) else {"": source}
    if isinstance(source, Mapping) and (not source or not set(source) <= set(SPLITS)):
        raise PhotoTableError(
            f"queries.table names tables for {', '.join(source) or 'nothing'}, not for {', '.join(SPLITS)}"
        )
    frames, rejected = [], []
    for split, part in parts.items():
        if part.is_dir():
            read, unusable = _read_folder(part)
        elif part.is_file():
            read, unusable = _read_table(part, photos or part.parent)
        else:
            raise PhotoTableError(f"there is no {part}: queries.table is a folder of photos, a CSV or a Parquet file")
        frames.append(read.assign(split=split) if split else read)
        rejected += unusable
    name = ", ".join(str(part) for part in parts.values())
    frame = pd.concat(frames, ignore_index=True)
    if frame.empty:
        first = f" (the first, {rejected[0].name}: {rejected[0].reason})" if rejected else ""
        raise PhotoTableError(f"{name} has no usable photo{first}; {len(rejected)} were rejected")
    duplicate = frame["id"].duplicated().to_numpy()
    rejected += [
        Rejected(name, "its id is in the table twice: the first row is used") for name in frame["id"][duplicate]
    ]
    frame = frame[~duplicate].reset_index(drop=True)
    info = TABLE_SPLIT
    if "split" not in frame:
        frame["split"], info = split_photos(frame, split_by)
    return PhotoTable(frame, tuple(rejected), name, split=info)


def _check_sequences(frame: pd.DataFrame, pyramid: Pyramid, source: str) -> tuple[Rejected, ...]:
    """List the rows whose published zoom sequence is not that of their position.

    Raises:
        PhotoTableError: the length of sequences is not the number of levels.
    """
    if "sequence" not in frame:
        return ()
    published = text(frame["sequence"])
    # Mapillary tables have a column of this name with ids of image series; zoom sequences are lists of actions
    has_sequence = is_zoom_sequence(published)
    if not has_sequence.any():
        return ()
    sequences = [json.loads(actions) for actions in published[has_sequence]]
    lengths = {len(sequence) for sequence in sequences}
    if lengths != {pyramid.levels}:
        listed = ", ".join(str(length) for length in sorted(lengths))
        raise PhotoTableError(
            f"{source} has sequences of {listed} actions, but the pyramid has {pyramid.levels} levels: set "
            "pyramid.levels or remove the column"
        )
    actual = pyramid.paths(frame["latitude"][has_sequence], frame["longitude"][has_sequence])
    differing = np.flatnonzero((actual != np.array(sequences)).any(1))
    rows = frame[has_sequence].iloc[differing]
    return tuple(
        Rejected(
            f"{name} (line {line})",
            f"its sequence is {sequences[index]}, but that of its position is {actual[index].tolist()}",
        )
        for index, name, line in zip(differing, rows["id"], rows["line"], strict=True)
    )


# Folders


def _read_folder(folder: Path) -> tuple[pd.DataFrame, list[Rejected]]:
    photos = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())

    def read(photo: Path) -> ExifPosition | PhotoError:
        try:
            return read_position(photo)
        except PhotoError as error:
            return error

    rows, rejected = [], []
    with ThreadPoolExecutor() as pool:
        for photo, exif in zip(photos, pool.map(read, photos), strict=True):
            name = photo.relative_to(folder).as_posix()
            if isinstance(exif, PhotoError):
                rejected.append(Rejected(name, str(exif)))
            else:
                heading = np.nan if exif.heading is None else exif.heading
                time = "" if exif.time is None else exif.time.isoformat()
                position = exif.latitude, exif.longitude, heading
                rows.append((name, str(photo.absolute()), name, *position, time, exif.device))
    columns = ["id", "photo", "path", "latitude", "longitude", "heading", "captured_at", "device"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame if (frame["captured_at"] != "").any() else frame.drop(columns=["captured_at", "device"]), rejected


# Tables


def _read_table(source: Path, photos: Path) -> tuple[pd.DataFrame, list[Rejected]]:
    if not photos.is_dir():
        raise PhotoTableError(f"there is no folder {photos} with the photos of {source}")
    frame = _parse(source)
    frame.columns = [str(column).strip() for column in frame.columns]
    frame = frame.rename(columns=_standard_names(list(frame.columns)))
    for needed in ("latitude", "longitude"):
        if needed not in frame:
            has = ", ".join(map(str, frame.columns))
            raise PhotoTableError(
                f"{source} has no column of {needed}s (one of {', '.join(COLUMNS[needed])}): it has {has}"
            )
    if "id" not in frame and "path" not in frame:
        raise PhotoTableError(
            f"{source} does not identify photos: add a column {' or '.join(COLUMNS['id'][:2] + COLUMNS['path'][:3])}"
        )
    frame["line"] = np.arange(2, len(frame) + 2)  # line of the file; the header is line 1
    for name in ("latitude", "longitude", "heading"):
        if name in frame:
            frame[name] = pd.to_numeric(frame[name], errors="coerce").astype(float)
    latitude, longitude = frame["latitude"], frame["longitude"]
    if len(frame) and ((latitude.abs() > 90) & (longitude.abs() <= 90)).mean() > 0.5:
        raise PhotoTableError(
            f"{source} has latitude and longitude swapped (its first latitude is {latitude.iloc[0]}): rename them"
        )
    frame["id"] = text(frame["id" if "id" in frame else "path"])
    finder = _PhotoFinder(photos, source.parent)
    path = text(frame["path"]) if "path" in frame else pd.Series("", index=frame.index)
    files = [finder.find(name, str(relative)) for name, relative in zip(frame["id"], path, strict=True)]
    frame["photo"] = [str(file.absolute()) if file else "" for file in files]
    frame["path"] = [given or (file.name if file else "") for given, file in zip(path, files, strict=True)]
    return _usable_rows(frame, photos)


def _usable_rows(frame: pd.DataFrame, photos: Path) -> tuple[pd.DataFrame, list[Rejected]]:
    """Separate rows with an id, a position, a valid split and a photo from the others."""
    latitude, longitude = frame["latitude"], frame["longitude"]
    reason = pd.Series("", index=frame.index, dtype=object)
    if "split" in frame:
        aliases = {"validation": "val", "valid": "val", "training": "train", "testing": "test"}
        frame["split"] = text(frame["split"]).str.lower().replace(aliases)
        reason[~frame["split"].isin(SPLITS)] = "its split is not one of " + ", ".join(SPLITS)
    reason[frame["photo"] == ""] = f"no such photo in {photos}"
    reason[(latitude.abs() > 90) | (longitude.abs() > 180)] = "its position is out of range"
    reason[latitude.isna() | longitude.isna()] = "its latitude or longitude is not a number"
    reason[frame["id"] == ""] = "it has no id"
    bad = reason != ""
    names = [name or f"row {row + 1}" for row, name in zip(frame.index[bad], frame["id"][bad], strict=True)]
    rejected = [Rejected(name, why) for name, why in zip(names, reason[bad], strict=True)]
    return frame[~bad].reset_index(drop=True), rejected


def _parse(source: Path) -> pd.DataFrame:
    try:
        if source.suffix.lower() in (".parquet", ".pq", ".geoparquet"):
            frame = pd.read_parquet(source)
            return frame.reset_index(drop=frame.index.names == [None])  # a named index is used as a column
        with source.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
        if "\0" in header or not header.strip():
            raise PhotoTableError(f"{source} is not a CSV or Parquet table")
        try:
            separator = csv.Sniffer().sniff(header, delimiters=",;\t|").delimiter
        except csv.Error:
            separator = ","
        names = next(csv.reader([header], delimiter=separator))
        # read ids as text: as floats, those of 16 digits would be rounded
        ids = {column: str for column in names if _is_text(column)}
        # Fields beyond the header are ignored; pandas does not warn about them if usecols is given
        usecols = (lambda _: True) if _first_row_length(source, separator) > len(names) else None
        return pd.read_csv(source, sep=separator, encoding="utf-8-sig", dtype=ids, index_col=False, usecols=usecols)
    except (ValueError, OSError, pd.errors.ParserError) as error:
        raise PhotoTableError(f"{source} cannot be read as a table: {error}") from error


def _first_row_length(source: Path, separator: str) -> int:
    """Number of fields of the first row below the header; 0 if there is none or csv cannot read it."""
    with source.open(encoding="utf-8-sig", newline="") as file, contextlib.suppress(csv.Error):
        rows = csv.reader(file, delimiter=separator)
        next(rows, None)
        return len(next(filter(None, rows), ()))
    return 0


def _is_text(column: str) -> bool:
    return column.strip().lower() in ("sequence", *(name for ours in _TEXT for name in COLUMNS[ours]))


def _standard_names(columns: list[str]) -> dict[str, str]:
    """Map columns of the source to the names used here; the preferred one if several match."""
    lower = {column.lower(): column for column in reversed(columns)}
    return {lower[name]: ours for ours, names in COLUMNS.items() for name in [n for n in names if n in lower][:1]}


class _PhotoFinder:
    """Finds the photo of a row: by its path, by its id and known suffixes, then anywhere below the folder."""

    def __init__(self, photos: Path, table_folder: Path) -> None:
        self.photos = photos
        self.table_folder = table_folder

    def find(self, name: str, path: str) -> Path | None:
        names = [path] if path else []
        names += [name, *(name + stem + suffix for stem in ("", "_undistorted") for suffix in _SPELLINGS)]
        tries = [self.photos / each for each in names if each] + [self.table_folder / path] * bool(path)
        for photo in tries:
            if photo.suffix.lower() in SUFFIXES and photo.is_file():
                return photo
        for each in names:
            if each and Path(each).name in self._below:
                return self._below[Path(each).name]
        return None

    @cached_property
    def _below(self) -> dict[str, Path]:
        """Photos in all subfolders by file name; names that occur twice are ambiguous and left out."""
        below: dict[str, Path] = {}
        twice = set()
        for photo in self.photos.rglob("*"):
            if photo.suffix.lower() in SUFFIXES:
                twice |= {photo.name} & below.keys()
                below[photo.name] = photo
        return {name: photo for name, photo in below.items() if name not in twice}
