"""VIGOR (Zhu et al. 2021): panoramas of four cities, and aerial images that cover them without gaps.

<city>/panorama/<id>,<latitude>,<longitude>,.jpg        or ground/<city>/, as Sample4Geo has it
<city>/satellite/satellite_<latitude>_<longitude>.png   or satellite/<city>/
splits__corrected/<city>/same_area_balanced_train__corrected.txt ...   the corrected labels (Lentsch et al. 2023)
splits_new/<city>/same_area_balanced_train.txt ...                     the same, as CCVPE names them
splits/<city>/same_area_balanced_train.txt ...                         the original labels

A line of a label file is a panorama and four times an aerial image, a row and a column: the positive, then the
semi-positives, whose centre is further away. Rows and columns are pixels of 640 from the panorama to the image's
centre, northwards and eastwards: the panorama lies at row 320 + row, column 320 - column. The original labels took all
cities to have one resolution, which is wrong by up to 13 %: they do for retrieval, and not for metres.

Data sets of other cities in this layout (`jzi dataset publish`) have these in cities.json, with the resolution of their
aerial images, and may hold out photos in same_area_balanced_val__corrected.txt. If their photos are no panoramas, these
are in <city>/photos, with headings and horizontal fields of view, degrees, in splits__corrected/<city>/views.txt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from jzi.datasets.pairs import files_in, is_file_name, number, objects, read_lines
from jzi.errors import PairsError
from jzi.store.geometry.pyramid import WGS84
from jzi.store.photos.pairs import PairDataset
from jzi.store.photos.photo_table import Rejected
from jzi.store.photos.vigor_files import CITIES, SIDE, VIEWS, read_cities

Area = Literal["same", "cross"]

#: Metres per pixel of the aerial images, `SIDE` pixels wide (corrected labels of SliceMatch; CCVPE).
RESOLUTION = {"Chicago": 0.111262, "NewYork": 0.113248, "SanFrancisco": 0.118141, "Seattle": 0.100817}

#: Cities that are trained on, and that are tested on, across areas.
CROSS = {"train": ("NewYork", "Seattle"), "test": ("Chicago", "SanFrancisco")}

#: Folders of labels in order of preference, and whether they are the corrected ones.
LABELS = {"splits__corrected": True, "splits_new": True, "splits": False}

#: Labels are the corrected ones if they agree with the positions in the names of files within that share. Labels of the
#: smallest error, those of New York, are off by 0.7 %; rounding to pixels averages out over a city's labels.
AGREEMENT = 0.004
#: Labels of a folder of corrected ones are refused beyond that share: few labels do not determine it better.
DISAGREEMENT = 0.03

_PANORAMA = re.compile(r".*,(-?\d+(?:\.\d+)?),(-?\d+(?:\.\d+)?),\.\w+")
_SATELLITE = re.compile(r"satellite_(-?\d+(?:\.\d+)?)_(-?\d+(?:\.\d+)?)\.\w+")


@dataclass(frozen=True)
class _Labels:
    """The lines of a city's label file."""

    file: Path
    panoramas: list[str]
    satellites: list[list[str]]  # (line, 4)
    delta: NDArray[np.float64]  # (line, 4, 2) row and column


@dataclass(frozen=True)
class _City:
    """The files of a city: folders, and the names that are in them."""

    name: str
    panoramas: Path
    satellites: Path


def read(folder: Path, area: Area, split: Literal["train", "val", "test"]) -> PairDataset:
    """Read a split of VIGOR, or of a data set of other cities in its layout.

    Cities that are not in the folder, files that are not on disk and duplicates are left out and named in `rejected`.
    All aerial images of the split's cities are references.

    Args:
        folder: the folder of the data set.
        area: "same": trained and tested in all cities; "cross": trained in two of VIGOR's, tested in the others.
        split: which of them; "val" only where `has_val` says so.

    Raises:
        PairsError: the folder is not one of VIGOR, or its labels cannot be used.
    """
    labels = _labels_folder(folder)
    left_out: list[Rejected] = []
    cities = []
    resolution = _resolutions(folder)
    if area == "cross" and resolution is not RESOLUTION:
        raise PairsError(f"{folder / CITIES} has other cities than VIGOR, whose protocol across areas is: use same")
    expected = CROSS[split] if area == "cross" else tuple(resolution)
    for name in expected:
        city = _find_city(folder, name)
        if city is None or not (labels / name).is_dir():
            left_out.append(Rejected(name, f"has no images or no labels in {folder}"))
        else:
            cities.append(city)
    if not cities:
        raise PairsError(
            f"{folder} has no images and labels of {', '.join(expected)}: give "
            "the folder of VIGOR, with panorama/ and satellite/ in the folder of each city, and with its labels"
        )
    kind = f"same_area_balanced_{split}" if area == "same" else "pano_label_balanced"
    parts = [_read_city(city, labels, kind, left_out, resolution[city.name]) for city in cities]
    if not sum(len(part) for part in parts):
        raise PairsError(f"no panorama of {labels} is on disk with its aerial image: complete {folder}")
    partial = "" if len(cities) == len(expected) else f", only {', '.join(city.name for city in cities)}"
    name = f"VIGOR, {area}-area{partial}" if resolution is RESOLUTION else f"{', '.join(expected)} in VIGOR's layout"
    return _join(parts, name, split, left_out)


def has_val(folder: Path) -> bool:
    """Whether photos are held out of training in a split of their own, as VIGOR's are not.

    Raises:
        PairsError: cities.json is damaged.
    """
    resolution = _resolutions(folder)
    labels = folder / next(iter(LABELS))
    file = "same_area_balanced_val__corrected.txt"
    return resolution is not RESOLUTION and any((labels / name / file).is_file() for name in resolution)


def _resolutions(folder: Path) -> Mapping[str, float]:
    """Metres per pixel of the aerial images by city: `RESOLUTION`, unless the folder has other cities."""
    return read_cities(folder / CITIES) if (folder / CITIES).exists() else RESOLUTION


def _labels_folder(folder: Path) -> Path:
    for name in LABELS:
        if (folder / name).is_dir():
            return folder / name
    raise PairsError(
        f"{folder} has none of {', '.join(f'{name}/' for name in LABELS)}: give the folder of VIGOR with its labels, "
        "best the corrected ones, splits__corrected/ of https://github.com/tudelft-iv/SliceMatch"
    )


def _find_city(folder: Path, name: str) -> _City | None:
    for panoramas, satellites in (
        (folder / name / "panorama", folder / name / "satellite"),
        (folder / "ground" / name, folder / "satellite" / name),
        (folder / name / "photos", folder / name / "satellite"),
    ):
        if panoramas.is_dir() and satellites.is_dir():
            return _City(name, panoramas, satellites)
    return None


def _read_labels(labels: Path, city: str, kind: str) -> _Labels:
    file = labels / city / f"{kind}__corrected.txt"
    if not file.exists():
        file = labels / city / f"{kind}.txt"
    panoramas, satellites, delta = [], [], []
    for line in read_lines(file, "the labels of VIGOR"):
        values = line.split()
        if len(values) != 13:
            raise PairsError(
                f"{file} has {len(values)} values where 13 belong, a panorama and four times an aerial image, a row "
                f"and a column, in the line {line!r:.200}: give labels of VIGOR"
            )
        panoramas.append(values[0])
        satellites.append(values[1::3])
        delta.append([[number(values[at + 1], file, line), number(values[at + 2], file, line)] for at in (1, 4, 7, 10)])
    return _Labels(file, panoramas, satellites, np.array(delta, float).reshape(-1, 4, 2))


def _read_city(city: _City, labels: Path, kind: str, left_out: list[Rejected], resolution: float) -> PairDataset:
    """The split in one city; what is left out is appended to `left_out`."""
    names = read_lines(labels / city.name / "satellite_list.txt", "the list of a city's aerial images")
    on_disk = files_in(city.satellites)
    index: dict[str, int] = {}
    for name in names:
        if name in index:
            left_out.append(Rejected(f"{city.name}/{name}", "aerial image listed twice"))
        elif not is_file_name(name) or name not in on_disk:
            left_out.append(Rejected(f"{city.name}/{name}", "aerial image is listed but not on disk"))
        else:
            index[name] = len(index)

    table = _read_labels(labels, city.name, kind)
    on_disk, seen, kept = files_in(city.panoramas), set(), []
    views = _read_views(labels / city.name / VIEWS) if city.panoramas.name == "photos" else None
    for line, (panorama, satellites) in enumerate(zip(table.panoramas, table.satellites, strict=True)):
        reason = ""
        if panorama in seen:
            reason = "panorama labelled twice"
        elif not is_file_name(panorama) or panorama not in on_disk:
            reason = "panorama is labelled but not on disk"
        elif satellites[0] not in index:
            reason = "the aerial image of the panorama is not on disk or not listed"
        elif views is not None and panorama not in views:
            reason = f"photo has no heading and field of view in {VIEWS}"
        seen.add(panorama)
        if reason:
            left_out.append(Rejected(f"{city.name}/{panorama}", reason))
        else:
            kept.append(line)

    covering = np.array([[index.get(name, -1) for name in table.satellites[line]] for line in kept], np.int64)
    covering = covering.reshape(-1, 4)
    offset = -resolution * table.delta[kept][:, :, ::-1]  # to the right and up
    view = np.array([views[table.panoramas[line]] if views else (0.0, 360.0) for line in kept]).reshape(-1, 2)
    return PairDataset(
        name=city.name,
        split="",
        references=objects(str(city.satellites / name) for name in index),
        side_m=np.full(len(index), SIDE * resolution),
        position=_positions([*index], _SATELLITE),
        photos=objects(str(city.panoramas / table.panoramas[line]) for line in kept),
        positive=covering[:, 0],
        offset=offset[:, 0],
        semi=covering[:, 1:],
        semi_offset=offset[:, 1:],
        heading=view[:, 0],
        hfov_deg=view[:, 1],
        view=np.zeros((len(kept), 3)),
        not_metric=_check_metric(table, labels, resolution),
    )


def _read_views(file: Path) -> dict[str, tuple[float, float]]:
    """Heading and horizontal field of view of photos by name, degrees."""
    views = {}
    for line in read_lines(file, "headings and fields of view of photos"):
        values = line.split()
        if len(values) != 3:
            raise PairsError(f"{file} has {len(values)} values where 3 belong, in the line {line!r:.200}")
        heading, hfov = number(values[1], file, line), number(values[2], file, line)
        if not 0 < hfov <= 360:
            raise PairsError(f"{file} has a field of view of {hfov:g} degrees, in the line {line!r:.200}")
        views[values[0]] = heading % 360, hfov
    return views


def _positions(names: Sequence[str], pattern: re.Pattern[str]) -> NDArray[np.float64]:
    """(n, 2) latitudes and longitudes in names of files, degrees; NaN where there are none."""
    found = [pattern.fullmatch(name) for name in names]
    return np.array([[float(match[1]), float(match[2])] if match else [np.nan] * 2 for match in found]).reshape(-1, 2)


def label_scale(
    delta: NDArray[np.float64], panorama: NDArray[np.float64], satellite: NDArray[np.float64], resolution: float
) -> float:
    """The factor between labels and the positions in the names of the files, by least squares; 1 if they agree.

    Args:
        delta: (n, 2) rows and columns of labels, pixels of 640.
        panorama: (n, 2) latitude and longitude of the panoramas, degrees.
        satellite: (n, 2) those of the aerial images.
        resolution: metres per pixel.

    Returns:
        The factor; NaN without a position or an offset.
    """
    known = np.isfinite(panorama).all(-1) & np.isfinite(satellite).all(-1)
    if not known.any():
        return np.nan
    start, end = panorama[known], satellite[known]
    azimuth, _, distance = WGS84.inv(start[:, 1], start[:, 0], end[:, 1], end[:, 0])
    expected = np.stack([distance * np.cos(np.radians(azimuth)), distance * np.sin(np.radians(azimuth))], -1)
    expected /= resolution  # northwards and eastwards, as the labels
    square = (expected**2).sum()
    return float((expected * delta[known]).sum() / square) if square else np.nan


def _check_metric(table: _Labels, labels: Path, resolution: float) -> str:
    """Why labels of a city are not metric; empty if they are.

    Raises:
        PairsError: the labels of a folder of corrected ones are not the corrected ones.
    """
    panorama = _positions(table.panoramas, _PANORAMA)
    satellite = _positions([names[0] for names in table.satellites], _SATELLITE)
    city = table.file.parent.name
    scale = label_scale(table.delta[:, 0], panorama, satellite, resolution)
    original = (
        f"the labels in {labels.name}/ are VIGOR's original ones, with a wrong resolution: put the corrected ones, "
        "splits__corrected/ of https://github.com/tudelft-iv/SliceMatch, beside them"
    )
    if LABELS[labels.name]:
        if abs(scale - 1) > DISAGREEMENT:
            raise PairsError(
                f"{table.file} is not of the corrected labels: its offsets are {scale:.3f} times those between the "
                f"positions in the names of the files; take {city} from https://github.com/tudelft-iv/SliceMatch"
            )
        return ""
    return "" if abs(scale - 1) <= AGREEMENT else original


def _join(parts: Sequence[PairDataset], name: str, split: str, left_out: Sequence[Rejected]) -> PairDataset:
    """One data set of those of all cities."""
    first = np.cumsum([0, *(len(part.references) for part in parts)])[:-1]
    shifted = [
        replace(part, positive=part.positive + start, semi=np.where(part.semi < 0, -1, part.semi + start))
        for part, start in zip(parts, first, strict=True)
    ]
    arrays: dict[str, Any] = {
        field.name: np.concatenate([getattr(part, field.name) for part in shifted])
        for field in fields(PairDataset)
        if isinstance(getattr(parts[0], field.name), np.ndarray)
    }
    not_metric = next((part.not_metric for part in parts if part.not_metric), "")
    return replace(parts[0], name=name, split=split, not_metric=not_metric, rejected=tuple(left_out), **arrays)


def label_order(folder: Path, area: Area, split: Literal["train", "test"]) -> list[str]:
    """Names of all labelled panoramas in the order of CCVPE's code, which its list of orientations has.

    Raises:
        PairsError: the labels cannot be read.
    """
    labels = _labels_folder(folder)
    cities = ("NewYork", "Seattle", "SanFrancisco", "Chicago")
    kind = f"same_area_balanced_{split}" if area == "same" else "pano_label_balanced"
    chosen = [city for city in cities if area == "same" or city in CROSS[split]]
    return [name for city in chosen if (labels / city).is_dir() for name in _read_labels(labels, city, kind).panoramas]
