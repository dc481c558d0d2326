"""A data set of one's own photos: read a folder or a table, measure, filter, prepare and write them.

Measurements are kept in a journal beside the data set, so that a run that was killed goes on where it was, and another
with other thresholds opens no photo twice. Positions leave the machine nowhere, and faces and plates stay as they are.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any, Self

import pandas as pd
from PIL import ExifTags
from tqdm import tqdm

from jzi.curate.columns import numbers
from jzi.curate.filters import FilterOptions, filter_images, filter_records
from jzi.curate.folder import IMAGES, INFO, REJECTED, TABLE, DatasetFolder, DatasetInfo, FilterCount, Rejection, Source
from jzi.curate.journal import Journal
from jzi.curate.prepare import VERSION as PREPARE_VERSION
from jzi.curate.prepare import PrepareOptions, image_path, prepare, write_prepared
from jzi.curate.quality import QUALITY_COLUMNS
from jzi.curate.quality import VERSION as QUALITY_VERSION
from jzi.encode.photo.photo_view import view_of
from jzi.encode.prefetch import prefetch, reader_threads
from jzi.errors import DatasetError, PhotoError
from jzi.store.photos.photo_file import open_image
from jzi.store.photos.photo_table import PhotoTable, read_photo_table

#: The journal's name in the folder of the data set.
JOURNAL = "measurements.sqlite"

#: What the reader of the data card must know.
PRIVACY = "Faces and number plates are not blurred by jzi: blur them before you publish photos."

#: Columns of a row that `prepare` reads.
_GIVEN = ("id", "heading", "hfov", "panorama", "camera", "camera_parameters")

#: Columns that `prepare` fills.
_FILLED = ("id", "heading", "hfov", "panorama", "camera", "camera_parameters", "width", "height", *QUALITY_COLUMNS)

_POSITION = ("latitude", "longitude")

#: Columns that are not part of the data set.
_INTERNAL = ["photo", "of", "camera_parameters", "computed_latitude", "computed_longitude", "computed_heading"]


@dataclass(frozen=True)
class OwnPhotos:
    """What is known of one's own photos before they are filtered.

    Attributes:
        source: the folder or the table.
        photos: folder of a table's photos; that of the table by default.
        licence: of the photos.
        attribution: the credit line that the licence asks for.
        allow_outside: whether paths and links may lead out of the folder of photos.
    """

    source: Path
    photos: Path | None = None
    licence: str = "unknown"
    attribution: str = ""
    allow_outside: bool = False


@dataclass(frozen=True)
class FilterReport:
    """What `filter_own_photos` found.

    Attributes:
        found: photos in the folder, or rows in the table.
        counts: of the filters, in the order in which they ran.
        rejected: the photos that are not kept.
        kept: number of photos that are; crops of panoramas count each.
        written: whether the data set was written.
    """

    found: int
    counts: tuple[FilterCount, ...]
    rejected: tuple[Rejection, ...]
    kept: int
    written: bool


def filter_own_photos(
    own: OwnPhotos, output: Path, filters: FilterOptions, preparation: PrepareOptions, *, copy: bool = True,
    dry_run: bool = False, threads: int | None = None,
) -> FilterReport:  # fmt: skip
    """Filter one's own photos into the folder of a data set.

    Args:
        own: where they are.
        output: the folder of the data set, which is created. What an earlier run wrote there is replaced.
        filters: thresholds.
        preparation: how they are prepared. What is measured is the prepared photo.
        copy: whether prepared photos are written to `images/`. Otherwise the table names the photos themselves, which
            are neither resized nor undistorted; panoramas are then kept or skipped.
        dry_run: whether to count only; measurements are kept in `output` all the same.
        threads: that read photos; one per core by default.

    Returns:
        The report; no data set is written if no photo is kept.

    Raises:
        PhotoTableError: the source cannot be read, or has no usable photo.
        DatasetError: the output cannot be written, holds something else, or is the folder of the photos.
    """
    _check(own, output, preparation, copy)
    threads = threads or reader_threads()
    if not copy:
        preparation = replace(preparation, size=None, undistort=False)
    table = read_photo_table(own.source, own.photos, allow_outside=own.allow_outside)
    frame, rejected = _described(_with_columns(table, own), threads)
    unusable = [*(Rejection(each.name, "unusable", each.reason) for each in table.rejected), *rejected]
    found = len(table) + len(table.rejected)
    first = filter_records(frame, filters)
    try:
        output.mkdir(parents=True, exist_ok=True)
        with Journal.open(output / JOURNAL) as journal:
            measured = _Measured.of(first.photos, preparation, journal, threads)
            second = filter_images(measured.photos, filters)
            unusable += measured.unreadable
            counts = [
                FilterCount(name="unusable", setting="a photo with a position", removed=len(unusable)),
                *first.counts,
                *measured.counts(preparation),
                *second.counts,
            ]
            rejected = [*unusable, *first.rejected, *measured.skipped, *second.rejected]
            written = bool(len(second.photos)) and not dry_run
            report = FilterReport(found, tuple(counts), tuple(rejected), len(second.photos), written)
            if not written:
                return report
            paths = _copies(second.photos, first.photos, output, preparation, journal, threads) if copy else []
        photos = second.photos.assign(path=paths or [_own_path(each, output) for each in second.photos["photo"]])
    except OSError as error:
        raise DatasetError(
            f"{error.filename or output} cannot be written ({error.strerror or error}): run it again when it can, what "
            "was measured is kept"
        ) from error
    source = Source(
        kind="photos", name=_name(own), licence=own.licence, attribution=own.attribution, accessed=date.today(),
        count=found,
    )  # fmt: skip
    info = DatasetInfo(sources=(source,), found=found, filters=report.counts, notes=(PRIVACY,))
    DatasetFolder(output, photos.drop(columns=_INTERNAL, errors="ignore"), info, report.rejected).write()
    return report


def _check(own: OwnPhotos, output: Path, preparation: PrepareOptions, copy: bool) -> None:
    if not copy and preparation.panoramas == "crop":
        raise DatasetError("without copies, panoramas cannot be cropped: keep or skip them, or copy the photos")
    if output.exists() and not output.is_dir():
        raise DatasetError(f"{output} is a file: give a folder for the data set")
    folder, target = (own.source if own.source.is_dir() else own.source.parent).resolve(), output.resolve()
    if target == folder or (own.source.is_dir() and target.is_relative_to(folder)):
        raise DatasetError(f"{output} is in the folder of the photos, and would be read as some: give another folder")
    others = [name for name in (TABLE, INFO, REJECTED, IMAGES) if (output / name).exists()]
    if others and not (output / JOURNAL).is_file():
        raise DatasetError(f"{output} holds {others[0]} of something else: give another folder for the data set")


def _name(own: OwnPhotos) -> str:
    """Name of the folder of the photos."""
    folder = own.source if own.source.is_dir() else own.photos or own.source.parent
    return folder.resolve().name or str(folder)


def _with_columns(table: PhotoTable, own: OwnPhotos) -> pd.DataFrame:
    """The table with the columns of a data set: drive, source, licence; SfM positions count as the best known ones."""
    frame = table.frame.copy()
    if table.split.requested:  # the source has none
        frame = frame.drop(columns="split")
    if own.source.is_dir() and "drive" not in frame:
        folders = frame["path"].str.rpartition("/")[0]
        frame["drive"] = folders.where(folders != "", _name(own))
    if {"computed_latitude", "computed_longitude"} <= set(frame) and "gps_latitude" not in frame:
        computed = {name: pd.Series(numbers(frame, f"computed_{name}"), frame.index) for name in _POSITION}
        known = pd.concat(computed, axis=1).notna().all(axis=1)
        frame = frame.assign(**{f"gps_{name}": frame[name] for name in _POSITION})
        frame = frame.assign(**{name: computed[name].where(known, frame[name]) for name in _POSITION})
    for name, value in (("source", _name(own)), ("licence", own.licence)):
        if name not in frame:
            frame[name] = value
    return frame.drop(columns="line", errors="ignore")


def _described(frame: pd.DataFrame, threads: int) -> tuple[pd.DataFrame, list[Rejection]]:
    """The frame with width, height, camera and panorama from the files' headers; and what is no photo."""
    rows = _rows(frame)
    headers = prefetch(_header, rows, threads)
    described, rejected = [], []
    for row, header in zip(rows, tqdm(headers, total=len(rows), unit="photo", desc="headers", delay=2), strict=True):
        if isinstance(header, str):
            rejected.append(Rejection(str(row["id"]), "unusable", header))
        else:
            described.append({**row, **header})
    return pd.DataFrame(described, columns=None if described else frame.columns), rejected


def _header(row: dict[str, Any]) -> dict[str, Any] | str:
    """What a file's header says beyond the table, or why it is no photo."""
    try:
        with open_image(row["photo"], "it") as image:
            view, (width, height) = view_of(image).with_table(row), image.size
            if image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8):
                width, height = height, width
    except PhotoError as error:
        return f"cannot be read as a photo ({error})"
    given = row.get("camera")
    camera = str(given) if isinstance(given, str) and given else "spherical" if view.panorama else ""
    return {"width": width, "height": height, "camera": camera, "panorama": view.panorama}


@dataclass(frozen=True)
class _Measured:
    """Rows of prepared photos with what was measured of them, and the photos that have none."""

    photos: pd.DataFrame
    unreadable: list[Rejection]
    skipped: list[Rejection]

    @classmethod
    def of(cls, frame: pd.DataFrame, preparation: PrepareOptions, journal: Journal, threads: int) -> Self:
        """Take measurements from the journal, and make those that it lacks."""
        rows = _rows(frame)
        keys = [_key(row, preparation) for row in rows]
        known = journal.read(key for key in keys if key)
        pending = [(key, row) for key, row in zip(keys, rows, strict=True) if key not in known]
        results = prefetch(lambda item: _measure(item[1], preparation), pending, threads)
        progress = tqdm(total=len(rows), initial=len(rows) - len(pending), unit="photo", desc="measure", delay=2)
        with progress:
            for (key, row), result in zip(pending, results, strict=True):
                known[key or row["id"]] = result
                if key:
                    journal.write(key, result)
                progress.update()
        measured: list[dict[str, Any]] = []
        unreadable, skipped = [], []
        for key, row in zip(keys, rows, strict=True):
            result = known[key or row["id"]]
            if isinstance(result, str):
                unreadable.append(Rejection(str(row["id"]), "unusable", result))
            elif not result:
                skipped.append(Rejection(str(row["id"]), "panorama", "it is a panorama"))
            else:
                measured += [{**row, **each, "of": row["id"]} for each in result]
        columns = [*frame.columns, *(name for name in (*_FILLED, "of") if name not in frame)]
        return cls(pd.DataFrame(measured, columns=None if measured else columns), unreadable, skipped)

    def counts(self, preparation: PrepareOptions) -> list[FilterCount]:
        """What skipping panoramas removed, if they are skipped."""
        if preparation.panoramas != "skip":
            return []
        return [FilterCount(name="panorama", setting="no panoramas", removed=len(self.skipped))]


def _measure(row: dict[str, Any], preparation: PrepareOptions) -> list[dict[str, Any]] | str:
    """What `prepare` fills of each prepared photo, or why there is none."""
    try:
        prepared = prepare(Path(row["photo"]), _given(row), preparation)
    except PhotoError as error:
        return str(error)
    return [{name: each.row[name] for name in _FILLED if name in each.row} for each in prepared]


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def _given(row: dict[str, Any]) -> dict[str, Any]:
    """What `prepare` is given of a row."""
    return {name: row[name] for name in _GIVEN if name in row and not _missing(row[name])}


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _key(row: dict[str, Any], preparation: PrepareOptions) -> str:
    """What a measurement depends on; empty if the file cannot be looked at."""
    try:
        status = Path(row["photo"]).stat()
    except OSError:
        return ""
    given = {name: str(value) for name, value in _given(row).items()}
    file = (row["photo"], status.st_size, status.st_mtime_ns)
    return json.dumps([PREPARE_VERSION, QUALITY_VERSION, file, given, asdict(preparation)], sort_keys=True)


def _copies(
    photos: pd.DataFrame, sources: pd.DataFrame, output: Path, preparation: PrepareOptions, journal: Journal,
    threads: int,
) -> list[str]:  # fmt: skip
    """Write the photos that are not there yet, remove those of earlier runs; (photo,) paths in the data set."""
    names: dict[str, set[str]] = {}
    for source, name in zip(photos["of"], photos["id"], strict=True):
        names.setdefault(source, set()).add(name)
    rows = [row for row in _rows(sources) if row["id"] in names]
    keys = {row["id"]: _key(row, preparation) for row in rows}

    def is_there(source: str) -> bool:
        paths = [image_path(name) for name in names[source]]
        return all(journal.is_written(path, keys[source]) and (output / path).is_file() for path in paths)

    pending = [row for row in rows if not is_there(row["id"])]
    kept = {image_path(name) for name in photos["id"]}
    for path in journal.written().keys() - kept:
        (output / path).unlink(missing_ok=True)
        journal.forget_written(path)

    def write(row: dict[str, Any]) -> list[str]:
        prepared = prepare(Path(row["photo"]), _given(row), preparation)
        return [write_prepared(output, each)["path"] for each in prepared if each.row["id"] in names[row["id"]]]

    progress = tqdm(total=len(rows), initial=len(rows) - len(pending), unit="photo", desc="copy", delay=2)
    with progress:
        for row, paths in zip(pending, prefetch(write, pending, threads), strict=True):
            for path in paths:
                journal.note_written(path, keys[row["id"]])
            progress.update()
    return [image_path(name) for name in photos["id"]]


def _own_path(photo: str, output: Path) -> str:
    """Path of a photo that is not copied: relative to the table where it lies below it, else absolute."""
    path, folder = Path(photo), output.resolve()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
