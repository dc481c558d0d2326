"""KITTI raw data: photos of drives, with positions and headings of the GPS/IMU unit (Geiger et al. 2013).

<date>/calib_cam_to_cam.txt                     focal lengths
<date>/<drive>/<camera>/data/<frame>.png        photos; cameras are image_00 to image_03, 02 and 03 in colour
<date>/<drive>/<camera>/timestamps.txt          their times, one a line
<date>/<drive>/oxts/data/<frame>.txt            latitude, longitude, altitude, roll, pitch, yaw and 24 others

Yaw is counter-clockwise from east. Any folder of these can be given: that of all dates, of one date, or of one drive.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tqdm import tqdm

from jzi.curate.folder import DatasetFolder, Rejection
from jzi.errors import DatasetError
from jzi.recordings.importing import POSITION, PhotoFolder, Recording, clean, place_photos
from jzi.recordings.text import read_numbers, read_text
from jzi.store.geometry.pyramid import WGS84

#: Cameras, and metres by which each is right of the GPS/IMU unit; all are `AHEAD_M` ahead of it (KITTI's calibrations).
CAMERAS = {"image_00": 0.32, "image_01": 0.86, "image_02": 0.26, "image_03": 0.79}
AHEAD_M = 1.08

#: Most bytes of a pose, a calibration and a list of times.
MAX_POSE, MAX_TIMES = 2**14, 2**26

#: Folders between the one that is given and a drive, at most: a date and a drive.
DEPTH = 2


def import_kitti(folder: Path, out: Path, *, camera: str = "image_02", licence: str = "unknown") -> DatasetFolder:
    """Make a data set of drives of KITTI.

    Args:
        folder: of all dates, a date or a drive.
        out: the folder of the data set.
        camera: one of `CAMERAS`.
        licence: of the photos.

    Raises:
        DatasetError: there is no drive, none of its photos has a pose, or the data set cannot be written.
    """
    drives = find_drives(folder)
    if not drives:
        raise DatasetError(
            f"{folder} has no drive of KITTI (oxts/data/): give the folder of raw data, a date or a drive"
        )
    photos = PhotoFolder(folder)
    rows: list[dict[str, Any]] = []
    rejected: list[Rejection] = []
    for drive in drives:
        read, left_out = _read_drive(folder, drive, camera)
        rows += read
        rejected += left_out
    if not rows and not rejected:
        raise DatasetError(f"{folder} has no photos of {camera}: copy them, or give another --camera")
    recording = Recording("kitti", folder, licence, {"camera": camera}, url="https://www.cvlibs.net/datasets/kitti/")
    recording.claim(out)
    clean(out)
    placed, unreadable = place_photos(out, rows, photos, len(rows))
    notes = [
        "Positions are those of the camera, from the GPS/IMU unit; position_error_m is the accuracy that it reports.",
        "Times are those of KITTI's timestamps.txt, which name no time zone.",
    ]
    return recording.write(out, placed, [*rejected, *unreadable], notes)


def find_drives(folder: Path) -> list[Path]:
    """Drives in a folder, which may be one itself, sorted."""
    level, found = [folder], []
    for _ in range(DEPTH + 1):
        found += [each for each in level if (each / "oxts" / "data").is_dir()]
        level = sorted(
            inner for each in level if each not in found for inner in each.glob("*") if inner.is_dir() and inner.name
        )
    return found


def camera_position(latitude: float, longitude: float, heading: float, right_m: float) -> tuple[float, float]:
    """Latitude and longitude of a camera `AHEAD_M` ahead and some metres right of a position, degrees."""
    azimuth = heading + math.degrees(math.atan2(right_m, AHEAD_M))
    to_longitude, to_latitude, _ = WGS84.fwd(longitude, latitude, azimuth, math.hypot(right_m, AHEAD_M))
    return float(to_latitude), float(to_longitude)


def _read_drive(folder: Path, drive: Path, camera: str) -> tuple[list[dict[str, Any]], list[Rejection]]:
    rows, rejected = [], []
    frames = sorted(each for each in (drive / camera / "data").glob("*") if each.suffix.lower() in (".png", ".jpg"))
    times = _times(drive / camera / "timestamps.txt", len(frames))
    hfov = _field_of_view(drive.parent / "calib_cam_to_cam.txt", camera[-2:])
    name = drive.name or drive.resolve().name
    for frame, time in tqdm(list(zip(frames, times, strict=True)), unit="pose", desc=name, delay=2):
        identifier = f"{name}_{frame.stem}" if camera == "image_02" else f"{name}_{camera}_{frame.stem}"
        pose = _pose(drive / "oxts" / "data" / f"{frame.stem}.txt")
        if isinstance(pose, str):
            rejected.append(Rejection(identifier, POSITION, pose))
            continue
        latitude, longitude, yaw, accuracy = pose
        heading = (90 - math.degrees(yaw)) % 360
        latitude, longitude = camera_position(latitude, longitude, heading, CAMERAS[camera])
        row = {
            "id": identifier, "name": frame.relative_to(folder).as_posix(), "latitude": latitude,
            "longitude": longitude, "heading": heading, "hfov": hfov, "drive": name, "captured_at": time,
            "device": f"KITTI {camera}", "camera": "perspective", "position_error_m": accuracy,
        }  # fmt: skip
        rows.append(row)
    return rows, rejected


def _pose(file: Path) -> tuple[float, float, float, float | None] | str:
    """Latitude, longitude, yaw and accuracy in metres of a pose; or why it has none."""
    if not file.is_file():
        return "the photo has no pose in oxts/data/"
    try:
        values = read_numbers(file, MAX_POSE, "a pose of KITTI")[0]
    except (DatasetError, IndexError):
        return f"{file.name} is no pose of KITTI"
    if len(values) < 6:
        return f"{file.name} has {len(values)} numbers, not the 30 of a pose of KITTI"
    latitude, longitude, yaw = (float(values[index]) for index in (0, 1, 5))
    if not (abs(latitude) <= 90 and abs(longitude) <= 180 and math.isfinite(yaw)) or (latitude, longitude) == (0, 0):
        return f"its pose has latitude {latitude:g}, longitude {longitude:g} and yaw {yaw:g}"
    accuracy = float(values[23]) if len(values) > 23 and 0 < values[23] < 1e4 else None
    return latitude, longitude, yaw, accuracy


def _times(file: Path, count: int) -> list[str | None]:
    """The times of a drive's photos; None if there is no list of them, or it has another length."""
    if not file.is_file():
        return [None] * count
    lines = read_text(file, MAX_TIMES, "times of KITTI").splitlines()
    lines = [line.strip() for line in lines if line.strip()]
    if len(lines) != count:
        return [None] * count
    return [f"{line[:10]}T{line[11:23]}" if len(line) >= 19 else None for line in lines]


def _field_of_view(file: Path, camera: str) -> float | None:
    """Horizontal field of view of the rectified photos, degrees; None without a calibration."""
    if not file.is_file():
        return None
    values: dict[str, list[float]] = {}
    for line in read_text(file, MAX_POSE * 4, "a calibration of KITTI").splitlines():
        key, _, text = line.partition(":")
        if key in (f"S_rect_{camera}", f"P_rect_{camera}"):
            try:
                values[key] = [float(each) for each in text.split()]
            except ValueError:
                return None
    width, focal = ((values.get(f"{key}_rect_{camera}") or [math.nan])[0] for key in "SP")
    return round(math.degrees(2 * math.atan(width / 2 / focal)), 3) if width > 0 and 10 < focal < 1e5 else None
