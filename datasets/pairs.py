"""What the readers of data sets of pairs share: lists in text files, files that are on disk, entries that are left out.

Lists name hundreds of thousands of files. Each folder is listed once, and entries whose files are missing are left out,
counted and named, as are duplicates.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jzi.errors import PairsError, first_line
from jzi.store.photos.pairs import PairDataset
from jzi.store.photos.photo_file import open_image, open_regular_file
from jzi.store.photos.photo_table import Rejected

#: Most bytes of a list; that of all panoramas of VIGOR takes 20 MB.
MAX_BYTES = 256 * 2**20

#: Photos whose size `check_panoramas` looks up.
CHECKED = 32


def read_lines(file: Path, contents: str) -> list[str]:
    """The lines of a text file that are not blank, without the blanks around them.

    Args:
        file: the file; lines may end as on Windows.
        contents: what the file holds, for error messages.

    Raises:
        PairsError: it does not exist, cannot be read, or is too large.
    """
    try:
        with open_regular_file(file) as opened:
            data = opened.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise PairsError(f"{file} has more than {MAX_BYTES} bytes: it is not {contents}")
        lines = [line.strip() for line in data.decode().splitlines()]
    except FileNotFoundError:
        raise PairsError(f"there is no {file}, {contents}: check that the data set is complete") from None
    except (OSError, ValueError) as error:
        raise PairsError(f"{file}, {contents}, cannot be read: {first_line(error)}") from error
    return [line for line in lines if line]


def number(text: str, file: Path, line: str) -> float:
    """A finite number of a list.

    Raises:
        PairsError: the text is not one.
    """
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise PairsError(f"{file} has {text!r:.60} where a number belongs, in the line {line!r:.200}")
    return value


def files_in(folder: Path) -> frozenset[str]:
    """Names of the entries of a folder; empty if there is no such folder."""
    try:
        return frozenset(path.name for path in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
    except (OSError, ValueError) as error:
        raise PairsError(f"{folder} cannot be listed: {first_line(error)}") from error


def is_file_name(name: str) -> bool:
    """Whether a name from a list is that of a file in a folder, rather than a path that leads out of it."""
    return bool(name) and name not in (".", "..") and not {"/", "\\", "\0"} & set(name)


def is_inside(path: str) -> bool:
    """Whether a path from a list leads into the folder that it is relative to."""
    parts = Path(path).parts
    return bool(parts) and not Path(path).is_absolute() and ".." not in parts and "\0" not in path


def objects(values: Iterable[str]) -> NDArray[np.object_]:
    """(n,) texts as an array of objects."""
    return np.array([*values], object)


def one_to_one(
    name: str,
    split: str,
    photos: Sequence[Path],
    references: Sequence[Path],
    *,
    side_m: float,
    position: NDArray[np.float64],
    left_out: Sequence[Rejected],
) -> PairDataset:
    """A data set in which each photo was taken at the centre of an aerial image of its own, facing north.

    Args:
        name: name of the data set.
        split: name of the split.
        photos: the panoramas.
        references: the aerial image of each.
        side_m: nominal side of the aerial images, metres.
        position: (photo, 2) latitude and longitude, degrees; NaN where unknown.
        left_out: entries that were left out.

    Raises:
        PairsError: there is no photo.
    """
    count = len(photos)
    if not count:
        raise PairsError(f"no photo of the {split} split of {name} is on disk with its aerial image: complete the data")
    return PairDataset(
        name=name,
        split=split,
        references=objects(map(str, references)),
        side_m=np.full(count, side_m),
        position=position,
        photos=objects(map(str, photos)),
        positive=np.arange(count),
        offset=np.zeros((count, 2)),
        semi=np.full((count, 0), -1),
        semi_offset=np.zeros((count, 0, 2)),
        heading=np.zeros(count),
        hfov_deg=np.full(count, 360.0),
        view=np.zeros((count, 3)),
        not_metric=f"every photo of {name} is at the centre of its aerial image",
        rejected=tuple(left_out),
    )


def check_panoramas(dataset: PairDataset) -> None:
    """Raise an error if some photos of a data set of panoramas, evenly spaced, are no panoramas.

    Photos that cannot be read are passed over: they are named where all photos are read.

    Raises:
        PairsError: a photo is less than 1.9 times as wide as high.
    """
    for index in np.unique(np.linspace(0, len(dataset) - 1, CHECKED).astype(int)) if len(dataset) else ():
        path = str(dataset.photos[index])
        if dataset.hfov_deg[index] < 360:
            continue
        try:
            with open_image(path, path) as image:
                width, height = image.size
        except Exception:  # unreadable, which is reported where it is read
            continue
        if width < 1.9 * height:
            raise PairsError(
                f"{path} is {width} x {height} pixels, but the photos of {dataset.name} are panoramas, at least 1.9 "
                "times as wide as high: check that the folder holds the data set"
            )
