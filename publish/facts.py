"""What a data card says of a data set, as plain data: the contents of card.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from jzi.curate.folder import DatasetFolder, FilterCount, Source
from jzi.curate.splits import SplitReport, split_report
from jzi.store.geometry.pyramid import WGS84
from jzi.store.photos.splits import SPLITS, capture_seconds, map_blocks, solar_time
from jzi.version import __version__

#: Side of the squares whose number is the ground that photos cover, metres: a block of houses.
SQUARE_M = 100.0

#: Widths of the bins of headings and of horizontal fields of view, degrees.
HEADING_DEG, HFOV_DEG = 15, 10

#: Most devices, sizes and the like that are listed; the others are counted together.
LISTED = 15

OTHERS, UNKNOWN = "others", "unknown"


@dataclass(frozen=True)
class Extent:
    """The rectangle that photos lie in, degrees (WGS 84); east is below west if it crosses 180 degrees.

    Attributes:
        km2: its area on the ground.
        covered_km2: area of the squares of `SQUARE_M` with a photo in them.
    """

    south: float
    west: float
    north: float
    east: float
    km2: float
    covered_km2: float


@dataclass(frozen=True)
class CardFacts:
    """What a data card says.

    Attributes:
        title: of the data set.
        created: the day on which the data set was built.
        generator: the program and its version.
        photos: number of photos.
        panoramas: how many of them are panoramas.
        extent: where they are.
        found: number of photos before the filters.
        filters: what they removed.
        sources: of photos and imagery.
        photos_by_source: number of photos by the column source.
        licences: number of photos by licence.
        creators: number of creators.
        without_creator: number of photos whose creator is unknown.
        largest_creator: share of the photos that the creator with most of them took.
        devices: number of photos by device, the most frequent first.
        device_count: number of devices.
        cameras: number of photos by the kind of camera.
        sizes: number of photos by width and height in pixels.
        years: number of photos by year, in local mean solar time.
        months: by month, 1..12.
        hours: by hour, 0..23.
        without_time: number of photos whose time is unknown.
        headings: by bins of `HEADING_DEG` degrees, which begin there.
        without_heading: number of photos whose heading is unknown.
        fields_of_view: of photos that are no panoramas, by bins of `HFOV_DEG` degrees.
        without_field_of_view: number of those whose field of view is unknown.
        position_error_m: median and 95 % quantile of the column position_error_m; empty without it.
        split: the split; None if there is none.
        notes: sentences that the parts of the data set's making left.
    """

    title: str
    created: date
    generator: str
    photos: int
    panoramas: int
    extent: Extent
    found: int
    filters: tuple[FilterCount, ...]
    sources: tuple[Source, ...]
    photos_by_source: dict[str, int]
    licences: dict[str, int]
    creators: int
    without_creator: int
    largest_creator: float
    devices: dict[str, int]
    device_count: int
    cameras: dict[str, int]
    sizes: dict[str, int]
    years: dict[int, int]
    months: dict[int, int]
    hours: dict[int, int]
    without_time: int
    headings: dict[int, int]
    without_heading: int
    fields_of_view: dict[int, int]
    without_field_of_view: int
    position_error_m: dict[float, float] = field(default_factory=dict)
    split: SplitReport | None = None
    notes: tuple[str, ...] = ()

    @property
    def photo_licences(self) -> tuple[str, ...]:
        """Licences of the photos: those of the table, else of the sources of photos."""
        listed = [name for name in self.licences if name not in (UNKNOWN, OTHERS)]
        return tuple(listed or [each.licence for each in self.sources if each.kind == "photos"])

    @property
    def imagery_licences(self) -> tuple[str, ...]:
        """Licences of the imagery."""
        return tuple(dict.fromkeys(each.licence for each in self.sources if each.kind == "imagery"))


def card_facts(folder: DatasetFolder, title: str, imagery: Sequence[Source] = ()) -> CardFacts:
    """Collect what a card says of a data set.

    Args:
        folder: the data set, with one photo or more.
        title: its title.
        imagery: sources of imagery beside those of the data set.
    """
    photos = folder.photos
    texts = {name: _text(photos, name) for name in ("source", "licence", "creator", "device", "camera", "captured_at")}
    time = solar_time(capture_seconds(texts["captured_at"]), photos["longitude"])
    panorama = photos["panorama"].astype(bool) if "panorama" in photos else pd.Series(False, index=photos.index)
    heading, hfov, error = (_number(photos, name) for name in ("heading", "hfov", "position_error_m"))
    known = [each for each in imagery if each not in folder.info.sources]
    creators = texts["creator"][texts["creator"] != ""].value_counts()
    devices = texts["device"][texts["device"] != ""]
    width, height = (_number(photos, name) for name in ("width", "height"))
    sized = width.notna() & height.notna()
    sizes = width[sized].astype(int).astype(str) + " x " + height[sized].astype(int).astype(str)
    split = split_report(folder) if "split" in photos and photos["split"].isin(SPLITS).all() else None
    return CardFacts(
        title=title,
        created=folder.info.created,
        generator=f"jzi {__version__}",
        photos=len(photos),
        panoramas=int(panorama.sum()),
        extent=extent(photos),
        found=max(folder.info.found, len(photos)),
        filters=folder.info.filters,
        sources=(*folder.info.sources, *known),
        photos_by_source=_counts(texts["source"]),
        licences=_counts(texts["licence"]),
        creators=len(creators),
        without_creator=int((texts["creator"] == "").sum()),
        largest_creator=float(creators.iloc[0] / len(photos)) if len(creators) else 0.0,
        devices=_counts(devices),
        device_count=int(devices.nunique()),
        cameras=_counts(texts["camera"]),
        sizes=_counts(sizes),
        years=_histogram(time.dt.year),
        months=_histogram(time.dt.month, range(1, 13)),
        hours=_histogram(time.dt.hour, range(24)),
        without_time=int(time.isna().sum()),
        headings=_histogram(heading % 360 // HEADING_DEG * HEADING_DEG, range(0, 360, HEADING_DEG)),
        without_heading=int(heading.isna().sum()),
        fields_of_view=_histogram(hfov[~panorama & hfov.between(0, 360)] // HFOV_DEG * HFOV_DEG),
        without_field_of_view=int(hfov[~panorama].isna().sum()),
        position_error_m={q: float(error.quantile(q)) for q in (0.5, 0.95)} if error.notna().any() else {},
        split=split,
        notes=folder.info.notes,
    )


def extent(photos: pd.DataFrame) -> Extent:
    """The rectangle that photos lie in, and its area.

    Args:
        photos: columns latitude and longitude, one row or more.
    """
    latitude, longitude = photos["latitude"].to_numpy(float), unwrapped(photos["longitude"].to_numpy(float))
    south, north, west, east = latitude.min(), latitude.max(), longitude.min(), longitude.max()
    steps = np.linspace(0, 1, 32)  # parallels are no geodesics
    along = west + (east - west) * steps
    corners = np.concatenate([along, along[::-1]]), np.repeat([south, north], len(steps))
    area = abs(WGS84.polygon_area_perimeter(*corners)[0]) / 1e6
    squares = map_blocks(photos, SQUARE_M).nunique() * (SQUARE_M / 1000) ** 2
    ends = [float((each + 180) % 360 - 180) if abs(each) > 180 else float(each) for each in (west, east)]
    return Extent(float(south), ends[0], float(north), ends[1], float(area), float(squares))


def unwrapped(longitude: NDArray[np.float64]) -> NDArray[np.float64]:
    """Longitudes without a jump, where places on both sides of 180 degrees are meant; they may then exceed 180."""
    return longitude % 360 if np.ptp(longitude) > 180 else longitude


def _text(photos: pd.DataFrame, name: str) -> pd.Series:
    return photos[name] if name in photos else pd.Series("", index=photos.index, dtype=object)


def _number(photos: pd.DataFrame, name: str) -> pd.Series:
    found = photos[name].astype(float) if name in photos else pd.Series(np.nan, index=photos.index)
    return found.where(np.isfinite(found))


def _counts(values: pd.Series) -> dict[str, int]:
    """Number of rows by value, the most frequent first, those beyond `LISTED` together."""
    counts = values.replace("", UNKNOWN).value_counts(sort=False)
    ordered = sorted(counts.items(), key=lambda each: (-each[1], str(each[0])))
    listed = {str(name): int(count) for name, count in ordered[:LISTED]}
    if rest := sum(int(count) for _, count in ordered[LISTED:]):
        listed[OTHERS] = listed.get(OTHERS, 0) + rest
    return listed


def _histogram(values: pd.Series, every: Sequence[int] = ()) -> dict[int, int]:
    """Number of rows by value, in order; of `every` value, if they are given."""
    counts = values.dropna().astype(int).value_counts()
    return {int(value): int(counts.get(value, 0)) for value in (every or sorted(counts.index))}
