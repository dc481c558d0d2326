"""Splits of a data set into train, val and test, and how far each photo is from the nearest one of training.

The splits are those of `jzi.store.photos.splits`: photos of one drive, of a square of ground or of a day stay together.
Where they leak all the same, the distances to the nearest training photos show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Literal

import numpy as np
import pandas as pd

from jzi.curate.folder import DatasetFolder
from jzi.errors import DatasetError, PhotoTableError
from jzi.evaluate.nearest import LIMITS, nearest_distance
from jzi.store.photos.splits import BLOCK_M, SHARES, SPLITS, SplitInfo, capture_seconds, solar_time, split_photos

SplitBy = Literal["auto", "sequence", "block", "date"]

#: Quantiles of the distances that are reported.
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

#: Distances within which shares are reported, metres: those between which recall is reported.
WITHIN_M = LIMITS[1:-1]

#: Median distances below it are reported as a leak, metres: photos as near show the same house fronts, and GPS is off
#: by as much.
LEAK_M = 10.0


@dataclass(frozen=True)
class SplitOptions:
    """How to split a data set.

    Attributes:
        by: what stays together: drives ("sequence"), squares of ground ("block"), days ("date"), or "auto", the first
            of sequence and block with three groups or more, else each photo by itself.
        shares: of the groups, for train, val and test; they need not add up to 1.
        block_m: side of the squares, metres.
        seed: another seed gives another split.
        val_from: with "date", photos of that day and later ones are of val, rather than by a hash of the day; None if
            val is to be empty.
        test_from: the same for test.
    """

    by: SplitBy = "auto"
    shares: tuple[float, float, float] = SHARES
    block_m: float = BLOCK_M
    seed: int = 0
    val_from: date | None = None
    test_from: date | None = None

    def __post_init__(self) -> None:
        total = sum(self.shares)
        if not (np.isfinite(total) and min(self.shares) >= 0 and self.shares[0] > 0):
            raise DatasetError(
                f"the shares of train, val and test are {self.shares}: none is negative, and train is not 0"
            )
        object.__setattr__(self, "shares", tuple(share / total for share in self.shares))
        if (self.val_from or self.test_from) and self.by != "date":
            raise DatasetError(f'the split is by "{self.by}", but dates are given: they go with "date"')
        if self.val_from and self.test_from and self.val_from >= self.test_from:
            raise DatasetError(
                f"val is from {self.val_from}, not before test, which is from {self.test_from}: exchange them"
            )


@dataclass(frozen=True)
class NearestTraining:
    """Distances of a split's photos to their nearest training photos.

    Attributes:
        split: "val" or "test".
        photos: number of photos.
        quantiles_m: by the share of photos that are at most as far away, one of `QUANTILES`; metres.
        within: share of the photos whose distance is at most one of `WITHIN_M`, by that.
    """

    split: str
    photos: int
    quantiles_m: dict[float, float]
    within: dict[float, float]

    @property
    def median_m(self) -> float:
        """Median of the distances, metres."""
        return self.quantiles_m[0.5]


@dataclass(frozen=True)
class SplitReport:
    """What a split did.

    Attributes:
        text: how the photos were split, in words.
        photos: number of photos of train, val and test.
        nearest: of val and test, if they have photos, and train has.
        warnings: what is wrong with the split, one sentence each.
    """

    text: str
    photos: dict[str, int]
    nearest: tuple[NearestTraining, ...]
    warnings: tuple[str, ...]


def split_dataset(folder: DatasetFolder, options: SplitOptions) -> tuple[DatasetFolder, SplitReport]:
    """Split the photos of a data set; a split that it has is replaced. Nothing is written.

    Returns:
        The data set with column split and `info.split`, and what is worth knowing about them.

    Raises:
        DatasetError: there is no photo, or fewer than half of them have a drive or a time that the options need.
    """
    if not len(folder.photos):
        raise DatasetError(f"{folder.path} has no photos: there is nothing to split")
    photos = folder.photos.drop(columns="split", errors="ignore")
    notes: list[str] = []
    if options.val_from or options.test_from:
        split, text = _by_thresholds(photos, options, notes)
    else:
        try:
            split, info = split_photos(photos, options.by, options.block_m, options.shares, options.seed)
        except PhotoTableError:
            column = "captured_at" if options.by == "date" else "drive or captured_at"
            raise DatasetError(
                f"fewer than half of the photos of {folder.path} have a {column}: split by block"
            ) from None
        text = _text(info, options)
        if info.note:
            notes.append(f"{info.note}: the split is by {info.kind}")
    split_folder = replace(
        folder, photos=photos.assign(split=split), info=folder.info.model_copy(update={"split": text})
    )
    report = split_report(split_folder)
    return split_folder, replace(report, warnings=(*notes, *report.warnings))


def split_report(folder: DatasetFolder) -> SplitReport:
    """What is worth knowing about the split of a data set.

    Raises:
        DatasetError: it has none.
    """
    check_split(folder)
    split = folder.photos["split"]
    counts = {name: int((split == name).sum()) for name in SPLITS}
    nearest = nearest_training(folder.photos)
    return SplitReport(folder.info.split, counts, nearest, (*_empty(counts), *_leaks(nearest)))


def check_split(folder: DatasetFolder) -> None:
    """Raise if photos of a data set have no split.

    Raises:
        DatasetError: they have none.
    """
    if "split" not in folder.photos or not (known := folder.photos["split"].isin(SPLITS)).any():
        raise DatasetError(f"the photos of {folder.path} are not split: run `jzi dataset split {folder.path}` first")
    if not known.all():
        first = folder.photos[~known].iloc[0]
        raise DatasetError(
            f"{(~known).sum()} photos of {folder.path} are in no split (the first, {first['id']!r:.100}, is in "
            f"{first['split']!r:.40}): run `jzi dataset split {folder.path}` again"
        )


def nearest_training(photos: pd.DataFrame) -> tuple[NearestTraining, ...]:
    """Distances of the photos of val and test to their nearest training photos, as recall by distance takes them.

    Args:
        photos: columns split, latitude and longitude.

    Returns:
        Of val and test; without those that have no photos. Nothing if train has none.
    """
    positions = {
        name: photos.loc[photos["split"] == name, ["latitude", "longitude"]].to_numpy(float) for name in SPLITS
    }
    train = positions.pop("train")
    found = []
    for name, places in positions.items():
        if not (len(train) and len(places)):
            continue
        metres = nearest_distance(*places.T, *train.T)
        quantiles = dict(zip(QUANTILES, np.quantile(metres, QUANTILES).tolist(), strict=True))
        within = {limit: float((metres <= limit).mean()) for limit in WITHIN_M}
        found.append(NearestTraining(name, len(places), quantiles, within))
    return tuple(found)


def _by_thresholds(photos: pd.DataFrame, options: SplitOptions, notes: list[str]) -> tuple[pd.Series, str]:
    """Earlier photos are of train, later ones of val, the last ones of test; days are those of local solar time."""
    missing = pd.Series(np.nan, index=photos.index)
    seconds = capture_seconds(photos["captured_at"]) if "captured_at" in photos else missing
    if seconds.notna().mean() < 0.5:
        raise DatasetError("fewer than half of the photos have a captured_at: split by block")
    time = solar_time(seconds, photos["longitude"])
    split = pd.Series("train", index=photos.index, dtype=object)
    words = []
    for name, first in (("val", options.val_from), ("test", options.test_from)):
        if first:
            split[time >= pd.Timestamp(first)] = name
            words.append(f"{name} from {first}")
    if unknown := int(time.isna().sum()):
        notes.append(f"{unknown} photos have no capture time: they are in train")
    return split, f"by date (local solar time): train before, {', '.join(words)}"


def _text(info: SplitInfo, options: SplitOptions) -> str:
    groups = {
        "sequence": "drives of the column drive" if info.source == "column" else "drives by gaps in the capture times",
        "block": f"blocks of {options.block_m:g} m",
        "photo": "photos",
        "date": "days of local solar time",
    }[info.kind]
    shares = " : ".join(f"{100 * share:.3g}" for share in options.shares)
    return f"by {info.kind}: {info.groups} {groups}, shared {shares} by a hash of each, seed {options.seed}"


def _empty(counts: dict[str, int]) -> list[str]:
    return [f"no photo is in {name}" for name in SPLITS if not counts[name]]


def _leaks(nearest: Sequence[NearestTraining]) -> list[str]:
    return [
        f"the split leaks: half of the photos of {each.split} are within {each.median_m:.1f} m of a training photo, so "
        "that recall on them says little about streets without training photos; split by block, with larger blocks"
        for each in nearest
        if each.median_m < LEAK_M
    ]
