"""KITTI with aerial images (Shi and Li 2022, "Beyond Cross-view Image Retrieval"): one aerial image a photo.

raw_data/<date>/<drive>/image_02/data/<frame>.png: photos; raw_data/<date>/<drive>/oxts/data/<frame>.txt: poses
raw_data/<date>/calib_cam_to_cam.txt: focal length (P_rect_02)
satmap/<date>/<drive>/<frame>.png: aerial images around the vehicle, with north up
train_files.txt, test1_files.txt (the same area), test2_files.txt (another one), in the folder or in dataLoader/: a line
is <date>/<drive>/<frame>.png; in the test splits also shift_x, shift_y and theta, shares of 20 m, 20 m and 10 degrees

A photo is compared with a view of its aerial image in which the vehicle heads right, up to 10 degrees off, and is up to
20 m from the centre along and across its heading. Tests fix these; training draws them.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import numpy as np

from jzi.datasets.pairs import is_inside, number, objects, read_lines
from jzi.errors import PairsError
from jzi.store.photos.pairs import PairDataset
from jzi.store.photos.photo_table import Rejected

Split = Literal["train", "test1", "test2"]

#: Metres a pixel of the aerial images: zoom 18 at latitude 49.015, at twice the resolution.
RESOLUTION = 156543.03392 * math.cos(math.radians(49.015)) / 2**18 / 2
#: Side of an aerial image and of a view of it, pixels.
IMAGE, VIEW = 1280, 512

#: Largest shift of a view, metres, and the largest turn, degrees.
SHIFT_M, TURN_DEG = 20.0, 10.0

#: The camera, metres ahead and right of the place that poses give.
CAMERA = (1.08, 0.26)

#: Field of view of the colour camera in most drives: 1242 pixels at a focal length of 721.5 pixels.
WIDTH, FOCAL = 1242, 721.5377


def read(folder: Path, split: Split) -> PairDataset:
    """Read a split of KITTI; pairs of which a file is missing, and duplicates, are named in `rejected`.

    Raises:
        PairsError: the folder is not one of KITTI with aerial images, or a list cannot be read.
    """
    for place in ("raw_data", "satmap"):
        if not (folder / place).is_dir():
            raise PairsError(f"{folder} has no {place}/: give the folder of KITTI with aerial images")
    file = next((path for path in (folder, folder / "dataLoader") if (path / f"{split}_files.txt").exists()), folder)
    file = file / f"{split}_files.txt"
    photos, references, views, offsets, headings, fields_of_view = [], [], [], [], [], []
    left_out: list[Rejected] = []
    seen: set[str] = set()
    focal: dict[str, float] = {}
    for line in read_lines(file, "a list of photos of KITTI"):
        name, *numbers = line.split()
        if len(numbers) != (0 if split == "train" else 3):
            expected = "a photo" if split == "train" else "a photo, shift_x, shift_y and theta"
            raise PairsError(f"{file} has the line {line!r:.200}, where {expected} belongs: give lists of KITTI")
        shares = [number(each, file, line) for each in numbers] or [0.0, 0.0, 0.0]
        if not all(-1 <= share <= 1 for share in shares):
            raise PairsError(f"{file} has shares beyond -1..1 in the line {line!r:.200}")
        parts = Path(name).parts
        if not is_inside(name) or len(parts) != 3:
            raise PairsError(f"{file} has the photo {name!r:.200}, which is not <date>/<drive>/<frame>")
        drive = folder / "raw_data" / parts[0] / parts[1]
        frame = parts[2].lower()
        photo, reference = drive / "image_02" / "data" / frame, folder / "satmap" / name
        pose = drive / "oxts" / "data" / Path(frame).with_suffix(".txt")
        reason = ""
        if name in seen:
            reason = "photo listed twice"
        elif not photo.is_file():
            reason = "photo is listed but not on disk"
        elif not reference.is_file():
            reason = "the aerial image of the photo is not on disk"
        elif not pose.is_file():
            reason = "the photo has no pose"
        seen.add(name)
        if reason:
            left_out.append(Rejected(name, reason))
            continue
        yaw = _yaw(pose)
        camera, view = place_view(yaw, *shares)
        photos.append(str(photo))
        references.append(str(reference))
        offsets.append(camera)
        views.append(view)
        headings.append(90 - math.degrees(yaw))
        if parts[0] not in focal:
            focal[parts[0]] = _focal(folder / "raw_data" / parts[0] / "calib_cam_to_cam.txt")
        fields_of_view.append(math.degrees(2 * math.atan(WIDTH / 2 / focal[parts[0]])))
    count = len(photos)
    if not count:
        raise PairsError(f"no photo of {file} is on disk with its aerial image and pose: complete {folder}")
    return PairDataset(
        name="KITTI",
        split=split,
        references=objects(references),
        side_m=np.full(count, IMAGE * RESOLUTION),
        position=np.full((count, 2), np.nan),
        photos=objects(photos),
        positive=np.arange(count),
        offset=np.array(offsets),
        semi=np.full((count, 0), -1),
        semi_offset=np.zeros((count, 0, 2)),
        heading=np.array(headings) % 360,
        hfov_deg=np.array(fields_of_view),
        view=np.array(views),
        view_side_m=VIEW * RESOLUTION,
        shift_m=SHIFT_M,
        turn_deg=TURN_DEG,
        expected_deg=90.0,
        rejected=tuple(left_out),
    )


def place_view(
    yaw: float, shift_x: float, shift_y: float, theta: float
) -> tuple[tuple[float, float], tuple[float, float, float]]:
    """Where the camera is in an aerial image, and which view of the image is compared with its photo.

    Args:
        yaw: heading of the vehicle, radians counter-clockwise from east.
        shift_x: place of the camera in the view along the heading, as a share of `SHIFT_M`.
        shift_y: the same to the left.
        theta: turn of the view, as a share of `TURN_DEG`.

    Returns:
        Metres right and up of the image's centre, and the view as a row of `PairDataset.view`.
    """
    ahead, left = np.array([math.cos(yaw), math.sin(yaw)]), np.array([-math.sin(yaw), math.cos(yaw)])
    camera = CAMERA[0] * ahead - CAMERA[1] * left
    right, up = camera - SHIFT_M * (shift_x * ahead + shift_y * left)
    return (float(camera[0]), float(camera[1])), (float(right), float(up), theta * TURN_DEG - math.degrees(yaw))


def _yaw(pose: Path) -> float:
    """The heading of a pose: the sixth of its numbers."""
    lines = read_lines(pose, "a pose of KITTI")
    values = lines[0].split() if lines else []
    if len(values) < 6:
        raise PairsError(f"{pose} has {len(values)} numbers, not the 30 of a pose of KITTI: copy the file again")
    return number(values[5], pose, lines[0])


def _focal(file: Path) -> float:
    """Focal length in pixels, from a file of calibration; that of most drives if there is none."""
    if not file.exists():
        return FOCAL
    for line in read_lines(file, "a calibration of KITTI"):
        if line.startswith("P_rect_02"):
            values = line.partition(":")[2].split()
            focal = number(values[0] if values else "", file, line)
            if not 100 <= focal <= 10_000:
                raise PairsError(f"{file} has a focal length of {focal:g} pixels in {line!r:.200}: copy the file again")
            return focal
    return FOCAL
