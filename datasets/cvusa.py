"""CVUSA (Workman et al. 2015; Zhai et al. 2017): panoramas of American roads, each with an aerial image around it.

splits/train-19zl.csv, splits/val-19zl.csv: aerial image, panorama and annotation, relative to the folder
split_locations/all.csv: optional; row i - 1 has the positions of pair i, for batches of neighbours
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from jzi.datasets.pairs import is_inside, one_to_one, read_lines
from jzi.errors import PairsError, first_line
from jzi.store.photos.pairs import PairDataset
from jzi.store.photos.photo_table import Rejected

#: The published evaluation is on the split that the data set calls val.
FILES = {"train": "train-19zl.csv", "test": "val-19zl.csv"}

#: Side of an aerial image, metres: 750 pixels of zoom 19 at 39 degrees north. The scale differs by place, so metres are
#: not measured; it only sets the width of the target where metres are trained.
SIDE_M = 174.0


def read(folder: Path, split: Literal["train", "test"]) -> PairDataset:
    """Read a split of CVUSA; pairs of which a file is missing, and duplicates, are named in `rejected`.

    Raises:
        PairsError: the folder is not one of CVUSA, or the list cannot be read.
    """
    file = folder / "splits" / FILES[split]
    if not folder.is_dir() or not file.exists():
        raise PairsError(f"{folder} has no splits/{FILES[split]}: give the folder of CVUSA, with splits/ in it")
    photos, references, left_out = [], [], []
    seen = set()
    for line in read_lines(file, "the list of pairs of CVUSA"):
        try:
            values = next(csv.reader([line]))
        except csv.Error as error:
            raise PairsError(f"{file} is no table of CVUSA ({first_line(error)}): {line!r:.200}") from error
        if len(values) < 2:
            raise PairsError(f"{file} has a line of one value, {line!r:.200}: lines are aerial image, panorama, ...")
        reference, photo = values[0].strip(), values[1].strip()
        if not (is_inside(reference) and is_inside(photo)):
            left_out.append(Rejected(photo, "path leads out of the folder"))
        elif reference in seen:
            left_out.append(Rejected(photo, "pair listed twice"))
        elif not (folder / photo).is_file():
            left_out.append(Rejected(photo, "panorama is listed but not on disk"))
        elif not (folder / reference).is_file():
            left_out.append(Rejected(photo, "the aerial image of the panorama is not on disk"))
        else:
            photos.append(folder / photo)
            references.append(folder / reference)
        seen.add(reference)
    return one_to_one(
        "CVUSA", split, photos, references, side_m=SIDE_M, position=_positions(folder, references), left_out=left_out
    )


def _positions(folder: Path, references: list[Path]) -> NDArray[np.float64]:
    """(pair, 2) latitude and longitude of the photos; NaN without a table of positions."""
    position = np.full((len(references), 2), np.nan)
    file = folder / "split_locations" / "all.csv"
    if not file.exists():
        return position
    rows = [line.split(",") for line in read_lines(file, "the positions of CVUSA")]
    for index, reference in enumerate(references):
        row = int(reference.stem) - 1 if reference.stem.isdecimal() else -1
        try:
            latitude, longitude = (float(value) for value in rows[row][2:4])
        except (IndexError, ValueError):
            continue
        if row >= 0 and abs(latitude) <= 90 and abs(longitude) <= 180:
            position[index] = latitude, longitude
    return position
