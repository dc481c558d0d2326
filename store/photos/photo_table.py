"""The photo table: photos, their positions and their splits.

It is read from a folder of photos with EXIF positions, or from a CSV or Parquet file with common column names. Rows
that cannot be used are listed in `PhotoTable.rejected` with the reason.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from jzi.errors import PhotoTableError
from jzi.store.cache.cache_header import MAX_NAME
from jzi.store.cache.layout import array_name
from jzi.store.disk.table_file import read_table
from jzi.store.geometry.cell_grid import CellGrid
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.geometry.region import RegionCells
from jzi.store.photos.exif_record import read_folder_exif
from jzi.store.photos.photo_finder import PhotoFinder
from jzi.store.photos.splits import SPLITS, TABLE_SPLIT, SplitInfo, block_side, is_zoom_sequence, split_photos, text
from jzi.store.printable import listed

#: Accepted names of each column, in order of preference; in lower case and NFC. `gpslatitude` and `sourcefile` are
#: ExifTool's. In German, Breite and Länge are widths and lengths too: they come last.
COLUMNS = {
    "id": ("id", "image_id", "photo_id", "query_id"),
    "path": ("path", "file", "image", "filename", "file_name", "image_path", "sourcefile"),
    "latitude": ("latitude", "lat", "gps_latitude", "gpslatitude", "latitud", "latitudine", "breedtegraad",
                 "breitengrad", "geographische breite", "geografische breite", "breite"),
    "longitude": ("longitude", "lon", "lng", "long", "gps_longitude", "gpslongitude", "longitud", "longitudine",
                  "lengtegraad", "längengrad", "laengengrad", "geographische länge", "geografische länge", "länge",
                  "laenge"),
    "heading": ("heading", "heading_deg", "compass_deg", "compass_angle", "bearing"),
    "heading_sd": ("heading_sd", "heading_accuracy", "compass_accuracy"),
    "hfov": ("hfov", "hfov_deg", "fov", "field_of_view"),
    "panorama": ("panorama", "is_pano", "is_panorama"),
    "split": ("split", "subset"),
    "drive": ("drive", "drive_id", "sequence_id", "sequence_key", "trip", "trip_id"),
    "captured_at": ("captured_at", "timestamp", "time", "datetime", "date_time", "capture_time"),
    "device": ("device", "device_id", "creator", "creator_id", "user", "username"),
}  # fmt: skip

#: Names that look like those of positions but may mean others, in words or as parts of words: metres of a grid, texts.
_POSITIONS = re.compile(
    r"^(x|y|e|n|[xy]_?coord.*|east.*|north.*|ostwert|nordwert|rechtswert|hochwert|geom(etry)?|wkt|coord.*|koord.*|"
    r"location|position|gps.*)$|latit|longit|breit|l(ä|ae)ng|(^|[^a-z])(lat|lon|lng)([^a-z]|$)"
)

#: Columns of ids, which are read as text.
_TEXT = ("id", "path", "drive", "device")

_SEQUENCE_LENGTH = 200  # characters of a zoom sequence, at most

#: Why a row or a link whose path leads out of the folder of photos is not used.
OUTSIDE = "it lies outside of the folder of photos: use --allow-outside if you trust the table"


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
            WGS 84), split ("train", "val" or "test"), optionally drive (an id), captured_at (time) and device, what
            is known of the camera (heading, heading_sd and hfov, degrees, and panorama), and any other columns of the
            source.
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

    def inside(self, area: CellGrid, region: RegionCells | None = None) -> PhotoTable:
        """Return the rows inside of an area; the others are added to `rejected`.

        Unless the source has splits, the photos inside are split anew, by blocks that suit the area.

        Args:
            area: a pyramid, or the grid of a region.
            region: the region; its cells are the area.

        Raises:
            PhotoTableError: no row is inside.
        """
        latitude, longitude = self.frame["latitude"].to_numpy(), self.frame["longitude"].to_numpy()

        def contains(north: NDArray[Any], east: NDArray[Any]) -> NDArray[np.bool_]:
            return area.cells_at(north, east)[0] >= 0 if region is None else region.contains(north, east)

        inside = contains(latitude, longitude)
        west, south, east, north = area.bounds
        size = max(east - west, north - south)
        if len(self) and not inside.any():
            if contains(longitude, latitude).any():
                raise PhotoTableError(f"{self.source} has latitude and longitude swapped: rename its columns")
            center = area.unproject((west + east) / 2, (south + north) / 2)
            raise PhotoTableError(
                f"none of the {len(self)} photos of {self.source} lies in the area of {size:.0f} m around "
                f"{center[0]:.5f}, {center[1]:.5f} (the first is at {latitude[0]:.5f}, {longitude[0]:.5f})"
            )
        outside = [Rejected(name, "outside the area") for name in self.frame["id"][~inside]]
        frame, split = self.frame[inside].reset_index(drop=True), self.split
        if split.requested:
            frame["split"], split = split_photos(frame, split.requested, block_side(size))
        disagreements = _check_sequences(frame, area, self.source) if isinstance(area, Pyramid) else ()
        return PhotoTable(frame, (*self.rejected, *outside), self.source, disagreements, split)


def read_photo_table(
    source: Path | Mapping[str, Path],
    photos: Path | None = None,
    split_by: str = "auto",
    *,
    allow_outside: bool = False,
    record: Path | None = None,
) -> PhotoTable:
    """Read a folder of photos with EXIF positions (recursively), or a CSV or Parquet table.

    Args:
        source: the folder or the table; or one for each split, by its name.
        photos: folder of a table's photos, which are found by their path or as `<id>.jpg` or `<id>_undistorted.jpg`;
            None for the folder of the table.
        split_by: what to keep together in a split, as in `jzi.store.photos.splits.split_photos`; not used if the source
            has splits.
        allow_outside: whether paths of a table and symbolic links may lead out of the folder of photos.
        record: file that keeps what EXIF says of the photos of folders (`jzi.store.photos.exif_record`); None for none.

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
    finders: dict[Path, PhotoFinder] = {}
    for split, part in parts.items():
        if part.is_dir():
            read, unusable = _read_folder(PhotoFinder(part, allow_outside), record)
        elif part.is_file():
            folder = photos or part.parent
            if folder not in finders:
                finders[folder] = PhotoFinder(folder, allow_outside)
            read, unusable = _read_table(part, folder, finders[folder])
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
        Rejected(_printable(name), "its id is in the table twice: the first row is used")
        for name in frame["id"][duplicate]
    ]
    frame = frame[~duplicate].reset_index(drop=True)
    info = TABLE_SPLIT
    if "split" not in frame:
        frame["split"], info = split_photos(frame, split_by)
    return PhotoTable(frame, tuple(rejected), name, split=info)


def folder_files(folder: Path, *, allow_outside: bool = False) -> dict[str, str]:
    """Files of the photos of a folder by the ids that `read_photo_table` gives them; opens none.

    Args:
        folder: the folder.
        allow_outside: see `read_photo_table`.
    """
    finder = PhotoFinder(folder, allow_outside)
    return {_name(photo, finder): str(photo) for photo in finder.all()[0]}


def _check_sequences(frame: pd.DataFrame, pyramid: Pyramid, source: str) -> tuple[Rejected, ...]:
    """List the rows whose published zoom sequence is not that of their position.

    Raises:
        PhotoTableError: the length of sequences is not the number of levels.
    """
    if "sequence" not in frame:
        return ()
    published = text(frame["sequence"])
    # Mapillary tables have a column of this name with ids of image series; zoom sequences are lists of actions
    has_sequence = is_zoom_sequence(published) & (published.str.len() <= _SEQUENCE_LENGTH).to_numpy(bool)
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


def _read_folder(finder: PhotoFinder, record: Path | None) -> tuple[pd.DataFrame, list[Rejected]]:
    photos, outside = finder.all()
    names = [_name(photo, finder) for photo in photos]
    exif = read_folder_exif(finder.folder, photos, record)
    usable = (exif["error"] == "").to_numpy(bool)
    rejected = [Rejected(_name(link, finder), OUTSIDE) for link in outside]
    rejected += [Rejected(name, error) for name, error in zip(names, exif["error"], strict=True) if error]
    identity = {"id": names, "photo": list(map(str, photos)), "path": names}
    frame = pd.concat([pd.DataFrame(identity, dtype=object), exif.drop(columns="error")], axis=1)[usable]
    frame = frame.reset_index(drop=True)
    return frame if (frame["captured_at"] != "").any() else frame.drop(columns=["captured_at", "device"]), rejected


def _name(photo: Path, finder: PhotoFinder) -> str:
    """Relative path; bytes that are not UTF-8, which the cache cannot hold, are written as \\xe9."""
    return os.fsencode(photo.relative_to(finder.folder).as_posix()).decode("utf-8", "backslashreplace")


def _printable(name: str) -> str:
    """A name for messages: short, and without control characters, which a terminal may obey."""
    name = name if len(name) <= 100 else f"{name[:100]}..."
    return name if name.isprintable() else name.encode("unicode_escape").decode()


# Tables


def _read_table(source: Path, photos: Path, finder: PhotoFinder) -> tuple[pd.DataFrame, list[Rejected]]:
    if not photos.is_dir():
        raise PhotoTableError(f"there is no folder {photos} with the photos of {source}")
    frame = read_table(source, _is_text)
    frame = _with_standard_names(frame)
    for needed in ("latitude", "longitude"):
        if needed not in frame:
            has = _printable(", ".join(map(str, frame.columns)))
            others = [str(each) for each in frame.columns if each not in COLUMNS]
            similar = [each for each in others if _POSITIONS.search(_key(each))]
            hint = f"; if {_printable(listed(similar))} means that in degrees (WGS 84), rename it" if similar else ""
            raise PhotoTableError(
                f"{source} has no column of {needed}s ({', '.join(COLUMNS[needed][:3])}, ...): it has {has}{hint}"
            )
    if "id" not in frame and "path" not in frame:
        raise PhotoTableError(
            f"{source} does not identify photos: add a column {' or '.join(COLUMNS['id'][:2] + COLUMNS['path'][:3])}"
        )
    frame["line"] = np.arange(2, len(frame) + 2)  # line of the file; the header is line 1
    for name in ("latitude", "longitude", "heading", "heading_sd", "hfov"):
        if name in frame:
            frame[name] = _numbers(frame[name])
    latitude, longitude = frame["latitude"], frame["longitude"]
    if len(frame) and ((latitude.abs() > 90) & (longitude.abs() <= 90)).mean() > 0.5:
        raise PhotoTableError(
            f"{source} has latitude and longitude swapped (its first latitude is {latitude.iloc[0]}): rename them"
        )
    frame["id"] = text(frame["id" if "id" in frame else "path"])
    path = text(frame["path"]) if "path" in frame else pd.Series("", index=frame.index)
    paths = path.tolist()  # much faster to iterate over
    files, leads_out = finder.find(frame["id"].tolist(), paths, source.parent)
    frame["photo"] = pd.Series(files, index=frame.index, dtype=object)
    frame["path"] = [given or file.rpartition(os.sep)[2] for given, file in zip(paths, files, strict=True)]
    return _usable_rows(frame, photos, np.array(leads_out, bool))


def _with_standard_names(frame: pd.DataFrame) -> pd.DataFrame:
    """Rename columns; those whose name is that of another, or is too long for the cache, are left out."""
    names = [str(column).strip() for column in frame.columns]
    standard = _standard_names(names)
    taken: set[str] = set(standard.values())
    columns: dict[str, int] = {}
    for index, name in enumerate(names):
        if name in standard and standard[name] not in columns:
            columns[standard[name]] = index
        elif name not in taken and 0 < len(array_name(name).encode()) <= MAX_NAME:
            columns.setdefault(name, index)
    result = frame.iloc[:, list(columns.values())].copy()
    result.columns = pd.Index(list(columns))
    return result


def _numbers(column: pd.Series) -> pd.Series:
    """The column as numbers, nan where there is none; spreadsheets of many countries write 48,2 for 48.2."""
    try:
        if column.dtype == object or isinstance(column.dtype, pd.StringDtype):
            column = column.replace(r"^(\s*[+-]?\d+),(\d+\s*)$", r"\1.\2", regex=True)
        return pd.to_numeric(column, errors="coerce").astype(float)
    except (TypeError, ValueError):  # of lists and other nested values
        return pd.Series(np.nan, index=column.index)


def _usable_rows(
    frame: pd.DataFrame, photos: Path, leads_out: NDArray[np.bool_]
) -> tuple[pd.DataFrame, list[Rejected]]:
    """Separate rows with an id, a position, a valid split and a photo from the others."""
    latitude, longitude = frame["latitude"], frame["longitude"]
    reason = pd.Series("", index=frame.index, dtype=object)
    if "split" in frame:
        aliases = {"validation": "val", "valid": "val", "training": "train", "testing": "test"}
        frame["split"] = text(frame["split"]).str.lower().replace(aliases)
        reason[~frame["split"].isin(SPLITS)] = "its split is not one of " + ", ".join(SPLITS)
    missing = (frame["photo"] == "").to_numpy()
    reason[missing] = f"no such photo in {photos}"
    reason[missing & leads_out] = f"no such photo in {photos}; {OUTSIDE.replace('it lies', 'it may lie')}"
    reason[(latitude.abs() > 90) | (longitude.abs() > 180)] = "its position is out of range"
    reason[latitude.isna() | longitude.isna()] = "its latitude or longitude is not a number"
    reason[frame["id"] == ""] = "it has no id"
    bad = reason != ""
    names = [_printable(name) or f"row {row + 1}" for row, name in zip(frame.index[bad], frame["id"][bad], strict=True)]
    rejected = [Rejected(name, why) for name, why in zip(names, reason[bad], strict=True)]
    return frame[~bad].reset_index(drop=True), rejected


def _is_text(column: str) -> bool:
    return _key(column) in ("sequence", *(name for ours in _TEXT for name in COLUMNS[ours]))


def _standard_names(columns: list[str]) -> dict[str, str]:
    """Map columns of the source to the names used here; the preferred one if several match."""
    by_key = {_key(column): column for column in reversed(columns)}
    return {by_key[name]: ours for ours, names in COLUMNS.items() for name in [n for n in names if n in by_key][:1]}


def _key(column: str) -> str:
    """The name of a column as `COLUMNS` has it; on some systems ä is two characters."""
    return unicodedata.normalize("NFC", column.strip().lower())
