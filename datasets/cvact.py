"""CVACT (Liu and Li 2019): panoramas of Canberra, each with an aerial image around it.

ACT_data.mat: ids of the panoramas (panoIds), their positions (utm), and 1-based numbers of those of trainSet and valSet
ANU_data_small/streetview/<id>_grdView.jpg, ANU_data_small/satview_polish/<id>_satView_polish.jpg: train and val
ANU_data_test/streetview/..., ANU_data_test/satview_polish/...: the test split, all pairs that are on disk
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pyproj import Transformer

from jzi.datasets.matlab import read_matlab
from jzi.datasets.pairs import files_in, is_file_name, one_to_one
from jzi.errors import PairsError
from jzi.store.photos.pairs import PairDataset
from jzi.store.photos.photo_table import Rejected

#: Ends of the names of panoramas and of aerial images.
PHOTO, REFERENCE = "_grdView.jpg", "_satView_polish.jpg"

#: Side of an aerial image, metres: 1200 pixels of zoom 20 at Canberra's latitude. As in CVUSA, metres are not measured.
SIDE_M = 146.0

#: Canberra's zone of UTM.
ZONE = "EPSG:32755"


def read(folder: Path, split: Literal["train", "val", "test"]) -> PairDataset:
    """Read a split of CVACT; pairs of which a file is missing, and duplicates, are named in `rejected`.

    Raises:
        PairsError: the folder is not one of CVACT, or ACT_data.mat cannot be read.
    """
    images = folder / ("ANU_data_test" if split == "test" else "ANU_data_small")
    if not images.is_dir():
        raise PairsError(f"{folder} has no {images.name}/: give the folder of CVACT, with ACT_data.mat in it")
    photo_names, reference_names = files_in(images / "streetview"), files_in(images / "satview_polish")
    utm: dict[str, NDArray[np.float64]] = {}
    if split == "test":
        ids = sorted(name.removesuffix(PHOTO) for name in photo_names if name.endswith(PHOTO))
    else:
        ids, utm = _ids(folder / "ACT_data.mat", split)
    kept, left_out, seen = [], [], set()
    for name in ids:
        reason = ""
        if name in seen:
            reason = "pair listed twice"
        elif not is_file_name(name) or f"{name}{PHOTO}" not in photo_names:
            reason = "panorama is listed but not on disk"
        elif f"{name}{REFERENCE}" not in reference_names:
            reason = "the aerial image of the panorama is not on disk"
        seen.add(name)
        if reason:
            left_out.append(Rejected(name, reason))
        else:
            kept.append(name)
    return one_to_one(
        "CVACT",
        split,
        [images / "streetview" / f"{name}{PHOTO}" for name in kept],
        [images / "satview_polish" / f"{name}{REFERENCE}" for name in kept],
        side_m=SIDE_M,
        position=_positions([utm.get(name) for name in kept]),
        left_out=left_out,
    )


def _ids(file: Path, split: str) -> tuple[list[str], dict[str, NDArray[np.float64]]]:
    """Ids of a split, and the positions of all panoramas in UTM, where they are known."""
    values = read_matlab(file, ("panoIds", f"{split}Set", "utm"))
    try:
        ids = [_text(name) for name in values["panoIds"]]
        fields = [*values[f"{split}Set"].values()]
        numbers = np.asarray(fields[1], np.int64).ravel() - 1  # the second field, as published code reads it
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise PairsError(
            f"{file} lacks panoIds or the numbers in {split}Set: give the ACT_data.mat of CVACT"
        ) from error
    if len(numbers) and not (numbers.min() >= 0 and numbers.max() < len(ids)):
        raise PairsError(
            f"{file} has numbers of {split}Set from {numbers.min() + 1} to {numbers.max() + 1} for {len(ids)} "
            "panoramas: give the ACT_data.mat of CVACT"
        )
    utm = values.get("utm")
    known = isinstance(utm, np.ndarray) and utm.ndim == 2 and len(utm) == len(ids) and utm.shape[1] >= 2
    positions = dict(zip(ids, np.asarray(utm, np.float64)[:, :2], strict=True)) if known else {}
    return [ids[number] for number in numbers], positions


def _text(value: Any) -> str:
    """The text of a row of characters, or of a cell that holds one."""
    return (value if isinstance(value, str) else "".join(value)).strip()


def _positions(utm: list[NDArray[np.float64] | None]) -> NDArray[np.float64]:
    """(pair, 2) latitude and longitude; NaN where unknown."""
    position = np.full((len(utm), 2), np.nan)
    known = [index for index, place in enumerate(utm) if place is not None]
    if known:
        x, y = np.array([utm[index] for index in known]).T
        longitude, latitude = Transformer.from_crs(ZONE, "EPSG:4326", always_xy=True).transform(x, y)
        position[known] = np.stack([latitude, longitude], -1)
    position[~np.isfinite(position).all(-1)] = np.nan
    return position
