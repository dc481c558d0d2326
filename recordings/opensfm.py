"""OpenSfM: positions and headings of photos from a reconstruction (https://opensfm.org/docs/dataset.html).

reconstruction.json   shots with rotation and translation in a topocentric frame, cameras, and the frame's reference_lla
reference_lla.json    the frame's origin, where the reconstruction does not have it
camera_models.json    cameras, where the reconstruction does not have them
exif/<photo>.exif     time, device and GPS position of each photo
images/<photo>        the photos
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jzi.curate.folder import DatasetFolder, Rejection
from jzi.errors import DatasetError
from jzi.recordings.frames import headings, rotation_matrices, topocentric_positions
from jzi.recordings.importing import POSITION, PhotoFolder, Recording, clean, photo_ids, place_photos
from jzi.recordings.members import read_json, read_members
from jzi.recordings.track import iso_time
from jzi.store.geometry.pyramid import geodesic_distance

#: Largest file of one photo's EXIF, and of cameras, bytes.
MAX_EXIF, MAX_CAMERAS = 2**20, 2**26

#: Kinds of cameras of a data set by OpenSfM's projection types. A "dual" camera is between perspective and fisheye.
KINDS = {
    "perspective": "perspective", "radial": "perspective", "simple_radial": "perspective", "brown": "brown",
    "fisheye": "fisheye", "fisheye_opencv": "fisheye", "fisheye62": "fisheye", "fisheye624": "fisheye",
    "spherical": "spherical", "equirectangular": "spherical",
}  # fmt: skip

_WHAT = "a reconstruction of OpenSfM"


def import_opensfm(folder: Path, out: Path, *, images: Path | None = None, licence: str = "unknown") -> DatasetFolder:
    """Make a data set of a folder of OpenSfM.

    Args:
        folder: its folder.
        out: the folder of the data set.
        images: folder of the photos; `images` in the folder by default.
        licence: of the photos.

    Raises:
        DatasetError: there is no reconstruction with a geographic reference, none of its photos can be used, or the
            data set cannot be written.
    """
    photos = PhotoFolder(images or folder / "images")
    if not photos.path.is_dir():
        raise DatasetError(f"{photos.path} is no folder: give the photos of the reconstruction by --images")
    rows, rejected = read_shots(folder)
    recording = Recording("opensfm", folder, licence, {"images": str(photos.path.resolve())})
    recording.claim(out)
    clean(out)
    for row in rows:
        row.setdefault("drive", recording.name)
    placed, unreadable = place_photos(out, _with_exif(folder, rows), photos, len(rows))
    notes = [
        "Positions and headings are those of the reconstruction, gps_latitude and gps_longitude those of the EXIF."
    ]
    return recording.write(out, placed, [*rejected, *unreadable], notes)


def read_shots(folder: Path) -> tuple[list[dict[str, Any]], list[Rejection]]:
    """The photos of all reconstructions of a folder: rows with name, position, heading and camera, and the others.

    Raises:
        DatasetError: there is no reconstruction, it is damaged, or has no geographic reference.
    """
    file = folder / "reconstruction.json"
    if not file.is_file():
        raise DatasetError(
            f"{folder} has no reconstruction.json: give the folder of OpenSfM, after `opensfm reconstruct`"
        )
    reference = cameras = None
    if (folder / "reference_lla.json").is_file():
        reference = read_json(folder / "reference_lla.json", MAX_EXIF, "the origin of a reconstruction")
    if (folder / "camera_models.json").is_file():
        cameras = read_json(folder / "camera_models.json", MAX_CAMERAS, "the cameras of OpenSfM")
    shots: dict[str, dict[str, Any]] = {}
    rejected: list[Rejection] = []
    for part in read_members(file, ("cameras", "shots", "reference_lla"), _WHAT):
        if not _is_mapping(part.get("shots")):
            raise DatasetError(f"{file} is not {_WHAT}: it has no shots")
        origin = _origin(part.get("reference_lla") or reference, file)
        models = {**_mapping(cameras), **_mapping(part.get("cameras"))}
        for name, row in _read_part(part["shots"], models, origin):
            if name not in shots:  # a photo is in the larger reconstruction, which comes first
                shots[name] = row
    if not shots:
        raise DatasetError(f"{file} has no shots: run `opensfm reconstruct`")
    rows = []
    for identifier, (name, row) in zip(photo_ids(shots), shots.items(), strict=True):
        reason = row.pop("reason", "")
        if reason:
            rejected.append(Rejection(identifier, POSITION, reason))
        else:
            rows.append({"id": identifier, "name": name, **row})
    return rows, rejected


def _origin(value: Any, file: Path) -> tuple[float, float, float]:
    names = ("latitude", "longitude", "altitude")
    origin = [_number(_mapping(value).get(name)) for name in names]
    origin[2] = 0.0 if math.isnan(origin[2]) else origin[2]
    if not (abs(origin[0]) <= 90 and abs(origin[1]) <= 180 and abs(origin[2]) < 1e5) or origin[:2] == [0.0, 0.0]:
        raise DatasetError(
            f"{file} has no geographic reference (reference_lla), so that its positions are metres from an unknown "
            "place: run OpenSfM on photos with GPS positions"
        )
    return origin[0], origin[1], origin[2]


def _read_part(
    shots: Mapping[str, Any], cameras: Mapping[str, Any], origin: tuple[float, float, float]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and rows of one reconstruction's shots; a row has a `reason` if its position cannot be used."""
    names = list(shots)
    values = [_mapping(shots[name]) for name in names]
    rotation = rotation_matrices([_vector(value.get("rotation")) for value in values])
    translation = np.array([_vector(value.get("translation")) for value in values]).reshape(-1, 3, 1)
    centre = -(rotation.transpose(0, 2, 1) @ translation)[:, :, 0]  # camera to world
    latitude, longitude = topocentric_positions(*origin, centre)
    heading = headings(rotation[:, 2])  # where the camera's z axis leads
    near = np.abs(centre).max(1, initial=0) < 1e6  # false for NaN
    for index, (name, value) in enumerate(zip(names, values, strict=True)):
        if not (near[index] and math.isfinite(latitude[index]) and math.isfinite(longitude[index])):
            yield name, {"reason": "its pose is no number, or a thousand kilometres from the reconstruction's origin"}
            continue
        row = {"latitude": float(latitude[index]), "longitude": float(longitude[index]), "heading": heading[index]}
        row.update(camera_columns(_mapping(cameras.get(str(value.get("camera")))), _orientation(value)))
        if time := iso_time(_number(value.get("capture_time"))):
            row["captured_at"] = time
        if isinstance(value.get("skey"), str) and value["skey"]:
            row["drive"] = value["skey"][:200]
        yield name, row


def camera_columns(camera: Mapping[str, Any], orientation: int = 1) -> dict[str, Any]:
    """Kind, field of view and parameters of a camera of OpenSfM, as columns of photos.csv; without what is unknown.

    Args:
        camera: an entry of `cameras`.
        orientation: EXIF orientation of the photo: its longer side is upright from 5 on.
    """
    kind = KINDS.get(str(camera.get("projection_type", "perspective")), "") if camera else ""
    if kind == "spherical":
        return {"camera": kind, "hfov": 360.0, "panorama": True}
    columns: dict[str, Any] = {"camera": kind} if kind else {}
    width, height = _number(camera.get("width")), _number(camera.get("height"))
    focal = _number(camera.get("focal", camera.get("focal_x")))
    if not (kind and width > 0 and height > 0 and 0.01 < focal < 100):
        return columns
    radial = [_number(camera.get(f"k{index}", 0.0)) for index in range(1, 7)]
    radial = [0.0 if math.isnan(value) else value for value in radial]
    columns["camera_parameters"] = json.dumps([focal, radial[0], radial[1]])
    side = height if orientation >= 5 else width
    columns["hfov"] = round(2 * math.degrees(_edge_angle(kind, side / 2 / max(width, height) / focal, radial)), 3)
    return columns


def _edge_angle(kind: str, edge: float, radial: list[float]) -> float:
    """Angle from the optical axis at which a camera sees a distance from the centre, in focal lengths."""
    fisheye = kind == "fisheye"
    ideal = min(edge, math.pi) if fisheye else math.atan(edge)

    def radius(angle: float) -> float:
        x = angle if fisheye else math.tan(angle)
        return x * (1 + sum(k * x ** (2 * power) for power, k in enumerate(radial, 1)))

    return _solve(radius, edge, math.pi if fisheye else math.radians(89), ideal)


def _solve(function: Callable[[float], float], value: float, end: float, fallback: float) -> float:
    """The smallest argument in 0..end at which a function from 0 reaches a value; the fallback if it turns before."""
    steps = np.linspace(0, end, 1000)
    values = np.array([function(float(step)) for step in steps])
    turn = np.flatnonzero(np.diff(values) <= 0)
    rising = values[: turn[0] + 1] if len(turn) else values
    reached = int(np.searchsorted(rising, value))
    if not 0 < reached < len(rising):
        return fallback
    return float(np.interp(value, rising[reached - 1 : reached + 1], steps[reached - 1 : reached + 1]))


def _with_exif(folder: Path, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows with what exif/ says: device, time, GPS position and its distance from the reconstructed one."""
    for row in rows:
        file = folder / "exif" / f"{row['name']}.exif"
        exif: Mapping[str, Any] = {}
        if ".." not in Path(row["name"]).parts and file.is_file():
            try:
                exif = _mapping(read_json(file, MAX_EXIF, "the EXIF of a photo"))
            except DatasetError:
                exif = {}  # the reconstruction knows enough
        device = " ".join(str(exif.get(key) or "").strip() for key in ("make", "model") if exif.get(key) != "unknown")
        if device.strip():
            row["device"] = " ".join(device.split())[:200]
        if "captured_at" not in row and (seconds := _number(exif.get("capture_time"))) > 0:
            row["captured_at"] = iso_time(seconds) or None
        gps = _mapping(exif.get("gps"))
        latitude, longitude = _number(gps.get("latitude")), _number(gps.get("longitude"))
        if abs(latitude) <= 90 and abs(longitude) <= 180 and (latitude, longitude) != (0, 0):
            row["gps_latitude"], row["gps_longitude"] = latitude, longitude
            error = geodesic_distance(latitude, longitude, row["latitude"], row["longitude"])
            row["position_error_m"] = round(float(error), 2)
        yield row


def _orientation(shot: Mapping[str, Any]) -> int:
    value = shot.get("orientation")
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and abs(value) < 1e300 else math.nan


def _vector(value: Any) -> list[float]:
    known = isinstance(value, list) and len(value) == 3
    return [_number(each) for each in value] if known else [math.nan] * 3
