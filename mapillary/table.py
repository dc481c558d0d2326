"""The table of photos while a data set is made from Mapillary: columns, and what filters have removed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from jzi.curate.filters import FilterResult
from jzi.curate.folder import FilterCount, Rejection
from jzi.mapillary.boxes import BoxGrid
from jzi.mapillary.records import Record

#: Columns that are of use while a data set is made, and not in it.
INTERNAL = ("computed_latitude", "computed_longitude", "computed_heading", "camera_parameters", "make", "model")


@dataclass
class Selection:
    """Photos that are still kept, and what removed the others.

    Attributes:
        photos: the kept ones, with a column id.
        rejected: the others.
        counts: of the filters.
    """

    photos: pd.DataFrame
    rejected: list[Rejection] = field(default_factory=list)
    counts: list[FilterCount] = field(default_factory=list)

    def apply(self, result: FilterResult) -> None:
        """Take the result of filters."""
        self.photos = result.photos
        self.rejected += result.rejected
        self.counts += result.counts

    def remove(self, name: str, setting: str, reasons: dict[str, str]) -> None:
        """Remove photos.

        Args:
            name: of the filter.
            setting: what it was set to, in words.
            reasons: by id.
        """
        self.photos = self.photos[~self.photos["id"].isin(list(reasons))].reset_index(drop=True)
        self.rejected += [Rejection(photo, name, reason) for photo, reason in reasons.items()]
        self.counts.append(FilterCount(name=name, setting=setting, removed=len(reasons)))


def record_table(records: pd.DataFrame | None, grid: BoxGrid) -> pd.DataFrame:
    """The photos of a region, with the columns that filters and preparation take (`jzi.curate`).

    Latitude, longitude and heading are those of SfM where there are any. Positions that no region can have, such as 0,
    0, are kept, so that the filters report them.

    Args:
        records: columns of `Record`; None for an empty table.
        grid: of the region.
    """
    if records is None:
        records = pd.DataFrame({name: [] for name in Record._fields}).astype({"id": str, "panorama": bool})
    computed = ~_nowhere(records["computed_latitude"], records["computed_longitude"])
    latitude = records["latitude"].where(~computed, records["computed_latitude"])
    longitude = records["longitude"].where(~computed, records["computed_longitude"])
    inside = grid.contains(longitude.to_numpy(float), latitude.to_numpy(float)) | _nowhere(latitude, longitude)
    table = pd.DataFrame(
        {
            "id": records["id"],
            "latitude": latitude,
            "longitude": longitude,
            "heading": records["computed_heading"].fillna(records["heading"]),
            "panorama": records["panorama"],
            "drive": records["sequence"],
            "captured_at": _iso(records["captured_ms"]),
            "device": (records["make"].astype(str) + " " + records["model"].astype(str)).str.strip(),
            "creator": records["creator"],
            "camera": records["camera"],
            "width": records["width"],
            "height": records["height"],
            "gps_latitude": records["latitude"],
            "gps_longitude": records["longitude"],
            **{name: records[name] for name in (*INTERNAL, "quality_score")},
        }
    )
    return table[inside].reset_index(drop=True)


def _nowhere(latitude: pd.Series, longitude: pd.Series) -> NDArray[np.bool_]:
    """Whether positions are unknown, off the earth, or 0, 0, which broken receivers write."""
    values = np.stack([latitude.to_numpy(float), longitude.to_numpy(float)])
    return np.asarray(~(np.abs(values) <= [[90], [180]]).all(0) | (values == 0).all(0))


def _iso(milliseconds: Any) -> list[str]:
    """ISO 8601 texts in UTC; empty where the time is unknown."""
    values = pd.to_numeric(milliseconds).to_numpy(float)
    known = np.isfinite(values)
    moments = np.where(known, values, 0).astype("int64").astype("datetime64[ms]")
    texts = np.datetime_as_string(moments, timezone="UTC")
    return np.where(known, texts, "").tolist()
