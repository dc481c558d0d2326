"""The photos of "Statewide Visual Geolocalization in the Wild" (Fervers et al. 2024), as its scripts download them.

dataset.json                            images-num, images-directory-levels, orig-resolution ...
latlons.npz, timestamps.npz, sequence-idxs.npz      position (degrees), time (ms since 1970) and sequence of each photo
images/<path>-480.jpg, images/<path>.json           a photo, and its Mapillary id, sequence, camera type and creator

The path of a photo is its index as 12 digits, reversed, of which the first digits are folders: with 3 levels, photo
4711 is 1/1/7/400000000. A folder is a state. It holds no splits: states are trained on or tested on as a whole.
"""

from __future__ import annotations

import json
import lzma
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from jzi.errors import DatasetError, first_line
from jzi.store.disk.files import write_whole
from jzi.store.photos.photo_file import open_regular_file
from jzi.store.photos.photo_table import Rejected

#: Most photos: those of the data set's largest state are about 5 million.
MAX_PHOTOS = 10**8

#: Most bytes of dataset.json and of the .json of a photo.
MAX_JSON = 2**16

#: Camera types of panoramas, which the authors' script leaves out, and other downloads need not.
PANORAMAS = ("spherical", "equirectangular")

#: Digits of the reversed index.
DIGITS = 12

#: Kinds of cameras by Mapillary's camera types.
CAMERAS = {
    "perspective": "perspective", "radial": "perspective", "simple_radial": "perspective", "brown": "brown",
    "fisheye": "fisheye", "fisheye_opencv": "fisheye",
}  # fmt: skip

#: What zipfile, its decompressors and numpy raise of damaged files.
_DAMAGED = (
    OSError, KeyError, ValueError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error,
    lzma.LZMAError, SyntaxError, struct.error,
)  # fmt: skip


def photo_path(index: int, levels: int) -> str:
    """Path of a photo in `images/`, without suffix."""
    digits = f"{index:0{DIGITS}}"[::-1]
    return "/".join([*digits[:levels], digits[levels:]])


def read(folder: Path) -> tuple[pd.DataFrame, tuple[Rejected, ...]]:
    """Read a state's photos as a photo table: id, path, latitude, longitude, captured_at, drive, camera and creator.

    Returns:
        The table, with paths relative to `images/`, and the photos that are not on disk or are panoramas.

    Raises:
        DatasetError: the folder is none of the data set, or a file of it is damaged.
    """
    info = _json(folder / "dataset.json")
    if info is None:
        raise DatasetError(f"{folder} has no dataset.json: give a folder of photos that download_mapillary.py wrote")
    count, levels = info.get("images-num"), info.get("images-directory-levels")
    if not (isinstance(count, int) and 0 < count <= MAX_PHOTOS and isinstance(levels, int) and 0 <= levels < DIGITS):
        raise DatasetError(
            f"{folder / 'dataset.json'} has images-num {count!r:.40} and images-directory-levels {levels!r:.40}: it is "
            "none of the state-wide data set"
        )
    position = _array(folder / "latlons.npz", "latlons", (count, 2), "f")
    if position is None:
        raise DatasetError(f"{folder} has no latlons.npz, the positions of its photos: complete the download")
    if count >= 10 and (position == np.rint(position)).all():
        raise DatasetError(
            f"{folder / 'latlons.npz'} has whole degrees only, as an early version of the data set's writer cut them "
            "off: download the photos again"
        )
    times = _array(folder / "timestamps.npz", "timestamps", (count,), "iu")
    sequences = _array(folder / "sequence-idxs.npz", "sequence_idxs", (count,), "iu")
    paths = [photo_path(index, levels) for index in range(count)]
    suffix = _suffix(folder, paths, info)
    columns: dict[str, list[str]] = {"id": [], "drive": [], "camera": [], "creator": []}
    on_disk: list[bool] = []
    panorama: list[bool] = []
    names: dict[str, str] = {"": ""}  # of sequences, for photos without metadata
    unnamed: list[int] = []
    for index, path in enumerate(tqdm(paths, unit="photo", desc="metadata", delay=2)):
        metadata = _json(folder / "images" / f"{path}.json") or {}
        on_disk.append((folder / "images" / f"{path}{suffix}").is_file())
        sequence = "" if sequences is None or sequences[index] < 0 else str(int(sequences[index]))
        if name := _text(metadata.get("sequence")):
            names.setdefault(sequence, name)
        else:
            unnamed.append(index)
        columns["id"].append(_text(metadata.get("image-id")) or str(index))
        columns["drive"].append(name or sequence)
        camera = _text(metadata.get("camera-type"))
        panorama.append(camera in PANORAMAS)
        columns["camera"].append(CAMERAS.get(camera, ""))
        columns["creator"].append(_text(metadata.get("creator")))
    for index in unnamed:
        columns["drive"][index] = names.get(columns["drive"][index], columns["drive"][index])
    frame = pd.DataFrame({"id": columns["id"], "path": [path + suffix for path in paths]})
    frame["latitude"] = position[:, 0]
    frame["longitude"] = np.where(position[:, 1] > 180, position[:, 1] - 360, position[:, 1])
    if times is not None:
        known = (times > 0) & (times < 4 * 10**12)  # until the year 2096
        frame["captured_at"] = pd.to_datetime(np.where(known, times.astype(np.int64), 0), unit="ms", utc=True)
        frame.loc[~known, "captured_at"] = pd.NaT
    for name in ("drive", "camera", "creator"):
        frame[name] = columns[name]
    missing = ~np.array(on_disk)
    if missing.all():
        raise DatasetError(
            f"{folder / 'images'} has none of the {count} photos: download them, not only their positions"
        )
    unused = missing | np.array(panorama)
    rejected = tuple(
        Rejected(name, "photo is not on disk" if lost else "photo is a panorama")
        for name, lost in zip(frame["id"][unused], missing[unused], strict=True)
    )
    return frame[~unused].reset_index(drop=True), rejected


def write_table(folder: Path, table: Path) -> tuple[Rejected, ...]:
    """Write the photo table of a state as a Parquet file; returns the photos that are left out of it.

    Args:
        folder: of the state.
        table: the file.

    Raises:
        DatasetError: as `read`, or the file cannot be written.
    """
    frame, rejected = read(folder)
    try:
        table.parent.mkdir(parents=True, exist_ok=True)
        write_whole(table, lambda file: frame.to_parquet(file, index=False))
    except OSError as error:
        raise DatasetError(f"{table} cannot be written: {error.strerror or first_line(error)}") from error
    return rejected


def _suffix(folder: Path, paths: list[str], info: dict[str, Any]) -> str:
    """What ends the names of photos: their height in pixels and .jpg."""
    for path in paths[:100]:
        file = folder / "images" / path
        for found in file.parent.glob(f"{file.name}-*.jpg"):
            if match := re.fullmatch(re.escape(file.name) + r"(-\d{1,5}\.jpg)", found.name):
                return match[1]
    resolution = info.get("orig-resolution")
    if isinstance(resolution, list) and resolution and isinstance(resolution[0], int):
        return f"-{resolution[0]}.jpg"
    return "-480.jpg"


def _array(file: Path, name: str, shape: tuple[int, ...], kinds: str) -> NDArray[Any] | None:
    """An array of a .npz file; None if there is no such file. Nothing is unpickled, and no more is read than fits."""
    try:
        with open_regular_file(file) as opened, zipfile.ZipFile(opened) as archive:
            member = archive.getinfo(f"{name}.npy")
            if member.file_size > 8 * int(np.prod(shape)) + 2**14:
                raise ValueError(f"{name} takes {member.file_size} bytes, too many for {shape[0]} photos")
            with archive.open(member) as content:
                version = np.lib.format.read_magic(content)
                read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                found, fortran, dtype = read_header[version](content)  # before memory is allocated for it
                if found == shape and dtype.kind in kinds:
                    data = content.read(dtype.itemsize * int(np.prod(shape)))
                    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
    except FileNotFoundError:
        return None
    except _DAMAGED as error:
        raise DatasetError(f"{file} cannot be read: {first_line(error)}; download it again") from error
    raise DatasetError(
        f"{file} has {name} of type {dtype} and shape {found}, not {shape}: it belongs to another dataset.json"
    )


def _json(file: Path) -> dict[str, Any] | None:
    """A small JSON object; None if there is no such file or it is damaged, since the arrays know most."""
    try:
        with open_regular_file(file) as opened:
            content = opened.read(MAX_JSON + 1)
        value = json.loads(content) if len(content) <= MAX_JSON else None
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _text(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**64:
        return str(value)
    return value.strip()[:200] if isinstance(value, str) else ""
