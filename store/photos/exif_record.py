"""What EXIF says of the photos of a folder, recorded in a Parquet file so that each photo is opened once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from jzi.errors import PhotoError, PhotoTableError
from jzi.store.disk.files import write_whole
from jzi.store.disk.table_file import read_table
from jzi.store.photos.exif import read_position
from jzi.store.printable import printable

#: Version of the record; increase it when `jzi.store.photos.exif.read_position` returns other values for a photo.
VERSION = 1

#: Photos read from which on the record is written: fewer take less than a second.
MIN_RECORDED = 1000

#: Columns of what is known of a photo, and of the file that it is known of.
_KNOWN = {
    "latitude": float, "longitude": float, "heading": float, "captured_at": object, "device": object, "error": object,
}  # fmt: skip
_STAMP = {"bytes": np.int64, "mtime_ns": np.int64}
_COLUMNS = {"photo": object, **_STAMP, **_KNOWN}


def read_folder_exif(folder: str | Path, photos: Sequence[Path], record: Path | None = None) -> pd.DataFrame:
    """Read position, heading, time and device from the EXIF data of a folder's photos.

    Photos whose size and modification time are those of the record are not opened. A record that is damaged, or of
    another version, is ignored; one that cannot be written is left out.

    Args:
        folder: the folder.
        photos: photos in it.
        record: file of the record, which may be that of several folders; None for none.

    Returns:
        A row for each photo: latitude, longitude and heading (degrees; nan if not recorded), captured_at (ISO 8601) and
        device, and error, the reason if the photo has no usable position; text is empty if there is nothing to say.
    """
    if record is None:
        return _read(photos)[0]
    names = pd.Series([_text(os.fspath(photo)) for photo in photos], dtype=object)
    stamps = np.array([_stamp(photo) for photo in photos], np.int64).reshape(-1, 2)
    recorded = _load(record)
    row = pd.Index(recorded["photo"]).get_indexer(pd.Index(names))
    same = row >= 0
    same[same] = (recorded[list(_STAMP)].to_numpy(np.int64)[row[same]] == stamps[same]).all(1)
    read, readable = _read([photo for photo, is_same in zip(photos, same, strict=True) if not is_same])
    known = recorded.iloc[row[same]][list(_KNOWN)]
    result: pd.DataFrame = pd.concat(
        [known.set_axis(np.flatnonzero(same)), read.set_axis(np.flatnonzero(~same))]
    ).sort_index()
    if len(read) >= MIN_RECORDED:
        kept = same.copy()
        kept[~same] = readable
        own = pd.DataFrame({"photo": names, **dict(zip(_STAMP, stamps.T, strict=True))}).join(result)[kept]
        others = ~recorded["photo"].str.startswith(_text(os.path.join(folder, "")))  # noqa: PTH118
        with contextlib.suppress(OSError, ValueError):  # a folder that is read-only, text that is no UTF-8
            _write(record, pd.concat([recorded[others.astype(bool)], own], ignore_index=True))
    return result


def _read(photos: Sequence[Path]) -> tuple[pd.DataFrame, NDArray[np.bool_]]:
    """What EXIF says of photos, and (photo,) whether they can be read at all."""

    def read(photo: Path) -> tuple[Any, ...]:
        try:
            exif = read_position(photo)
        except PhotoError as error:
            return np.nan, np.nan, np.nan, "", "", str(error), error.__cause__ is None
        heading = np.nan if exif.heading is None else exif.heading
        time = exif.time.isoformat() if exif.time else ""
        return exif.latitude, exif.longitude, heading, time, exif.device, "", True

    with ThreadPoolExecutor() as pool:
        rows = list(tqdm(pool.map(read, photos), total=len(photos), unit="photo", desc="EXIF", delay=2))
    frame = pd.DataFrame(rows, columns=[*_KNOWN, "readable"], dtype=object).astype({**_KNOWN, "readable": bool})
    return frame[list(_KNOWN)], frame["readable"].to_numpy(bool)


def _load(record: Path) -> pd.DataFrame:
    """The rows of a record, one for each photo; none if it cannot be used."""
    empty = pd.DataFrame({name: pd.Series(dtype=dtype) for name, dtype in _COLUMNS.items()})
    if not record.is_file():
        return empty
    try:
        frame = read_table(record, lambda _: True)
        if list(frame.columns) != [*_COLUMNS, "version"] or not frame["version"].eq(VERSION).all():
            return empty
        frame = frame[list(_COLUMNS)].astype(_COLUMNS)
    except (PhotoTableError, ArithmeticError, TypeError, ValueError):
        return empty
    texts = [name for name, dtype in _COLUMNS.items() if dtype is object]
    usable = (frame["latitude"].abs() <= 90) & (frame["longitude"].abs() <= 180) | (frame["error"] != "")
    usable &= frame[texts].map(lambda value: isinstance(value, str)).all(axis=1)
    frame = frame[usable].drop_duplicates("photo")
    return frame.assign(error=frame["error"].map(printable))  # it is printed, and who wrote the file is not known


def _write(record: Path, frame: pd.DataFrame) -> None:
    write_whole(record, lambda path: frame.assign(version=VERSION).to_parquet(path, index=False))


def _stamp(photo: Path) -> tuple[int, int]:
    """Size and modification time; -1 for both if there is no such file."""
    try:
        stat = photo.stat()
    except OSError:
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


def _text(path: str) -> str:
    """A path as the record holds it: bytes that are not UTF-8 are written as \\xe9."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
