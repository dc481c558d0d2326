"""Trajectories beside a folder of photos: where the camera was at each photo's time.

GPX                     positions over time
CSV                     columns time, latitude and longitude, by any of the names of a photo table; also heading
TUM                     time tx ty tz qx qy qz qw: metres and a rotation in a frame with z up
KITTI odometry poses    12 numbers a line, the rows of [R t] in the first camera's frame, a line for each photo

The last two need the place of the frame's origin and where its forward axis points. The kind is told by the contents.
Times of photos are read from a list, from their names (such as 1305031102.175304.png), or from their EXIF.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from jzi.curate.folder import DatasetFolder, Rejection
from jzi.errors import DatasetError, PhotoError, first_line
from jzi.recordings.frames import headings, quaternion_matrices, topocentric_positions
from jzi.recordings.gpx import read_gpx
from jzi.recordings.importing import POSITION, PhotoFolder, Recording, clean, photo_ids, place_photos
from jzi.recordings.text import read_numbers, read_text
from jzi.recordings.track import Track, iso_time
from jzi.store.photos.exif import SUFFIXES, read_time
from jzi.store.photos.photo_file import open_regular_file
from jzi.store.photos.photo_table import COLUMNS
from jzi.store.photos.splits import capture_seconds

#: Largest trajectory or list of times, bytes: days at 100 poses a second.
MAX_BYTES, MAX_CSV = 2**30, 2**28

#: Longest time between two points of a trajectory that is bridged, seconds: at 50 km/h a straight line of 140 m. A
#: default that someone may change.
MAX_GAP_S = 10.0

#: Time before 1980 is not that of a receiver: it counts from the start of the recording.
EPOCH_S = 315_532_800.0
#: Times after 2100 are not times: ids of 16 digits, taken for microseconds, are.
LATEST_S = 4_102_444_800.0

Forward = Literal["x", "z"]


@dataclass(frozen=True)
class Frame:
    """A trajectory's own frame.

    Attributes:
        latitude: of its origin, degrees.
        longitude: degrees.
        heading: where its forward axis points, degrees clockwise from north: z of KITTI's poses, else x.
    """

    latitude: float
    longitude: float
    heading: float


@dataclass(frozen=True)
class TrajectoryOptions:
    """How a trajectory and its photos are read.

    Attributes:
        frame: of poses in metres; None for GPX and CSV.
        forward: axis of a pose along which the camera looks: "z" in optical frames, "x" in those of vehicles.
        direction_deg: where the camera looks, clockwise from the direction of travel, if no headings are recorded.
        offset_s: added to the times of the photos.
        max_gap_s: longest time between two points that is bridged.
        times: file with the time of each photo in the order of their names, or "time name" on each line.
    """

    frame: Frame | None = None
    forward: Forward = "z"
    direction_deg: float = 0.0
    offset_s: float = 0.0
    max_gap_s: float = MAX_GAP_S
    times: Path | None = None

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON has it."""
        frame = self.frame and [self.frame.latitude, self.frame.longitude, self.frame.heading]
        times = self.times and str(self.times.resolve())
        return {"frame": frame, "forward": self.forward, "direction": self.direction_deg, "offset": self.offset_s,
                "gap": self.max_gap_s, "times": times}  # fmt: skip


def import_trajectory(
    file: Path, images: Path, out: Path, options: TrajectoryOptions, *, licence: str = "unknown"
) -> DatasetFolder:
    """Make a data set of a folder of photos and a trajectory.

    Args:
        file: the trajectory.
        images: folder of the photos.
        out: the folder of the data set.
        options: how they are read.
        licence: of the photos.

    Raises:
        DatasetError: the trajectory cannot be read, no photo lies on it, or the data set cannot be written.
    """
    photos = PhotoFolder(images)
    names = photos.names() if images.is_dir() else []
    if not names:
        raise DatasetError(f"{images} has no photos: give their folder by --images")
    trajectory = read_trajectory(file, options, len(names))
    rejected: list[Rejection] = []
    recording = Recording("trajectory", file, licence, {**options.as_dict(), "images": str(images.resolve())})
    if isinstance(trajectory, Track):
        rows, rejected = _by_time(photos, names, trajectory, options)
    else:
        times = _listed_times(options.times, names) if options.times else {}
        rows = [
            {**_row(identifier, name, *place), **_captured(times.get(name))}
            for identifier, name, place in zip(photo_ids(names), names, zip(*trajectory, strict=True), strict=True)
        ]
    if not rows and rejected:
        raise DatasetError(
            f"no photo of {images} lies on {file} (the first, {rejected[0].id}: {rejected[0].reason}): correct the "
            "photos' times by --offset SECONDS or give them by --times FILE"
        )
    for row in rows:
        row["drive"] = recording.name
    recording.claim(out)
    clean(out)
    placed, unreadable = place_photos(out, rows, photos, len(rows))
    notes = []
    if isinstance(trajectory, Track) and trajectory.dropped:
        notes.append(f"{trajectory.dropped} points of the trajectory have no position or time of their own.")
    return recording.write(out, placed, [*rejected, *unreadable], notes)


Places = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def read_trajectory(file: Path, options: TrajectoryOptions, photos: int = 0) -> Track | Places:
    """Read a trajectory of any kind: a track, or of KITTI's poses the latitude, longitude and heading of each photo.

    Args:
        file: the file.
        options: how it is read.
        photos: number of photos, which KITTI's poses must have too.

    Raises:
        DatasetError: it cannot be read, or is of no known kind.
    """
    start = _beginning(file)
    if start.startswith("<"):
        return read_gpx(file)
    rows = [] if any(letter.isalpha() and letter.lower() not in "einfa" for letter in start) else (
        read_numbers(file, MAX_BYTES, "a trajectory")
    )  # fmt: skip
    widths = {len(row) for row in rows}
    if widths == {8}:
        return _tum(file, np.array(rows), options)
    if widths == {12}:
        return _kitti(file, np.array(rows), options, photos)
    if rows:
        raise DatasetError(
            f"{file} is no trajectory: its lines have {', '.join(map(str, sorted(widths)[:5]))} numbers, where TUM has "
            "8 and KITTI's poses 12; give a CSV a header with time, latitude and longitude"
        )
    return read_csv_track(file)


def read_csv_track(file: Path) -> Track:
    """Read a CSV with columns time, latitude and longitude, and perhaps heading.

    Raises:
        DatasetError: it cannot be read or lacks one of them.
    """
    text = read_text(file, MAX_CSV, "a CSV table")
    header = text.lstrip().partition("\n")[0]
    try:
        separator = max(",;\t|", key=header.count)
        frame = pd.read_csv(StringIO(text), sep=separator, index_col=False, comment="#", skipinitialspace=True)
    except Exception as error:  # of csv and pandas, of many types
        raise DatasetError(f"{file} cannot be read as a table: {first_line(error)}") from error
    lower = {str(column).strip().lower(): column for column in reversed(frame.columns)}
    found = {name: next((lower[each] for each in COLUMNS[name] if each in lower), None)
             for name in ("captured_at", "latitude", "longitude", "heading")}  # fmt: skip
    shown = {"captured_at": "time", "latitude": "latitude", "longitude": "longitude"}
    if missing := [word for name, word in shown.items() if found[name] is None]:
        raise DatasetError(f"{file} has no column {' and no column '.join(missing)}: name them so in its first line")
    numbers = {name: pd.to_numeric(frame[column], errors="coerce").to_numpy(float)
               for name, column in found.items() if column is not None and name != "captured_at"}  # fmt: skip
    time = capture_seconds(frame[found["captured_at"]]).to_numpy(float)
    return Track.of(str(file), time, numbers["latitude"], numbers["longitude"], numbers.get("heading"))


def _beginning(file: Path) -> str:
    """The first characters of a text file that are neither blank nor of a comment."""
    try:
        with open_regular_file(file) as opened:
            text = opened.read(2**16).decode("utf-8-sig", "replace")
    except FileNotFoundError:
        raise DatasetError(f"there is no trajectory {file}") from None
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file} cannot be read: {first_line(error)}") from error
    if "\0" in text:
        raise DatasetError(f"{file} is no trajectory: it is no text")
    lines = (line.strip() for line in text.splitlines())
    return next((line for line in lines if line and not line.startswith("#")), "")


def _frame(file: Path, options: TrajectoryOptions, axis: str) -> Frame:
    if options.frame is None:
        raise DatasetError(
            f"{file} is in metres: give --origin LATITUDE LONGITUDE, where its frame begins, and --heading DEGREES, "
            f"where its {axis} axis points, clockwise from north"
        )
    return options.frame


def _tum(file: Path, rows: NDArray[np.float64], options: TrajectoryOptions) -> Track:
    frame = _frame(file, options, "x")
    rotation = quaternion_matrices(rows[:, 4:8])
    looks = rotation[:, :, "xyz".index(options.forward)]
    turned = _turn(np.stack([rows[:, 1:4], looks]), frame.heading, forward=0, left=1, up=2)
    latitude, longitude = topocentric_positions(frame.latitude, frame.longitude, 0.0, turned[0])
    time = capture_seconds(pd.Series(rows[:, 0])).to_numpy(float)
    return Track.of(str(file), time, latitude, longitude, headings(turned[1]))


def _kitti(file: Path, rows: NDArray[np.float64], options: TrajectoryOptions, photos: int) -> Places:
    frame = _frame(file, options, "z")
    if len(rows) != photos:
        raise DatasetError(f"{file} has {len(rows)} poses for {photos} photos: give the photos of this sequence only")
    pose = rows.reshape(-1, 3, 4)
    if not np.isfinite(pose).all():
        raise DatasetError(f"{file} has poses that are no numbers: copy it again")
    turned = _turn(np.stack([pose[:, :, 3], pose[:, :, 2]]) * [-1, -1, 1], frame.heading, forward=2, left=0, up=1)
    return (*topocentric_positions(frame.latitude, frame.longitude, 0.0, turned[0]), headings(turned[1]))


def _turn(vectors: NDArray[np.float64], heading: float, *, forward: int, left: int, up: int) -> NDArray[np.float64]:
    """(..., 3) east, north and up of vectors in a frame whose forward axis points to a heading."""
    ahead, side = vectors[..., forward], vectors[..., left]
    sin, cos = math.sin(math.radians(heading)), math.cos(math.radians(heading))
    return np.stack([ahead * sin - side * cos, ahead * cos + side * sin, vectors[..., up]], -1)


def _by_time(
    photos: PhotoFolder, names: Sequence[str], track: Track, options: TrajectoryOptions
) -> tuple[list[dict[str, Any]], list[Rejection]]:
    times = photo_times(photos, names, options.times)
    seconds = np.array([times.get(name, np.nan) for name in names]) + options.offset_s
    latitude, longitude, heading = track.at(seconds, options.max_gap_s)
    if track.heading is None:
        heading = (heading + options.direction_deg) % 360
    rows, rejected = [], []
    for index, (identifier, name) in enumerate(zip(photo_ids(names), names, strict=True)):
        if math.isfinite(latitude[index]):
            row = _row(identifier, name, latitude[index], longitude[index], heading[index])
            rows.append({**row, **_captured(seconds[index])})
        else:
            rejected.append(Rejection(identifier, POSITION, _off_track(seconds[index], track)))
    return rows, rejected


def _off_track(time: float, track: Track) -> str:
    if math.isnan(time):
        return "no time in a list, in its name or in its EXIF"
    if track.start_s <= time <= track.end_s:
        return "the trajectory has a gap at its time"
    shown = [iso_time(each, whole=True) for each in (time, track.start_s, track.end_s)]
    return f"its time {shown[0]} is not on the trajectory, {shown[1]} to {shown[2]}"


def photo_times(photos: PhotoFolder, names: Sequence[str], file: Path | None) -> dict[str, float]:
    """Times of photos by name, seconds: from a list, else from numbers that all names are, else from their EXIF.

    Args:
        photos: their folder.
        names: of the photos, sorted.
        file: the list; None if there is none.

    Raises:
        DatasetError: the list cannot be read or does not fit the photos.
    """
    if file is not None:
        return _listed_times(file, names)
    stems = pd.Series([Path(name).stem for name in names], index=pd.Index(names), dtype=object)
    numbers = capture_seconds(pd.to_numeric(stems, errors="coerce"))
    # a running number is no time; times of a recording without a clock have decimals
    counted = bool(numbers.notna().all()) and all("." in Path(name).stem for name in names)
    if numbers.between(EPOCH_S, LATEST_S).all() or counted:
        return dict(zip(names, numbers.astype(float), strict=True))
    times = {}
    for name in names:
        with contextlib.suppress(PhotoError):
            if moment := read_time(photos.find(name)):
                times[name] = float(capture_seconds(pd.Series([moment]))[0])
    return times


def _listed_times(file: Path, names: Sequence[str]) -> dict[str, float]:
    lines = [line.split() for line in read_text(file, MAX_BYTES, "a list of times").splitlines()]
    lines = [words for words in lines if words and not words[0].startswith("#")]
    named = all(len(words) == 2 and Path(words[1]).suffix.lower() in SUFFIXES for words in lines)
    if named and lines:
        by_name = {Path(words[1]).name: words[0] for words in lines}
        listed = {name: by_name[Path(name).name] for name in names if Path(name).name in by_name}
    elif len(lines) == len(names):
        listed = {name: " ".join(words) for name, words in zip(names, lines, strict=True)}
    else:
        raise DatasetError(f"{file} has {len(lines)} times for {len(names)} photos: give one a line, or 'time name'")
    seconds = capture_seconds(pd.Series(list(listed.values()), dtype=object))
    return dict(zip(listed, seconds.astype(float), strict=True))


def _row(identifier: str, name: str, latitude: float, longitude: float, heading: float) -> dict[str, Any]:
    return {
        "id": identifier, "name": name, "latitude": float(latitude), "longitude": float(longitude),
        "heading": float(heading),
    }  # fmt: skip


def _captured(time: float | None) -> dict[str, Any]:
    return {"captured_at": iso_time(time)} if time is not None and time > EPOCH_S else {}
