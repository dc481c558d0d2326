"""What a photo says against its answer: the position in its metadata, that it is a map or shows nothing, its drive."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from jzi.encode.photo.photos import FEATURELESS
from jzi.errors import PhotoError
from jzi.locate.answer.location import Location
from jzi.store.geometry.pyramid import geodesic_distance
from jzi.store.photos.exif import ExifPosition, read_position
from jzi.store.photos.georeference import is_georeferenced
from jzi.store.printable import listed

#: Metres by which the EXIF position may miss an answer in any case: GPS among tall buildings.
GPS_ERROR_M = 50.0

#: Factor of the odds that a picture that shows nothing was taken in the area, a choice: experts say of some colours and
#: gradients that they fit, and hardly one photo in twenty that somebody means to locate shows nothing.
FEATURELESS_ODDS = 0.05

#: Note on pictures that say where on the map they lie.
GEOREFERENCED = (
    "the picture is georeferenced, as maps and aerial images are: what is located are photos taken from the ground"
)


@dataclass(frozen=True)
class PhotoRecord:
    """What a photo says of itself, whatever the answer.

    Attributes:
        notes: that it is a panorama or a map, or shows nothing.
        position: the position in its EXIF; None if there is none.
    """

    notes: tuple[str, ...] = ()
    position: ExifPosition | None = None

    @classmethod
    def of(cls, photo: Any, notes: Sequence[str], position: ExifPosition | None) -> Self:
        """The record of a photo.

        Args:
            photo: as of `exif_position`.
            notes: those of `jzi.encode.photo.photos.photo_notes`.
            position: the position in its EXIF.
        """
        is_map = isinstance(photo, str | Path | bytes) and is_georeferenced(photo)
        return cls((*notes, *([GEOREFERENCED] if is_map else ())), position)

    @property
    def log_odds(self) -> float:
        """What it adds to the log-odds of being from the area: those of a picture that shows nothing are low."""
        return math.log(FEATURELESS_ODDS) if any(note in self.notes for note in FEATURELESS) else 0.0


def with_notes(location: Location, record: PhotoRecord) -> Location:
    """The answer with the notes about its photo, and the position in its EXIF.

    Args:
        location: the answer.
        record: what the photo says of itself.
    """
    notes = (*location.notes, *record.notes, *exif_note(record.position, location))
    return replace(location, notes=notes, exif=record.position)


def named_notes(names: Sequence[str], notes: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Notes on single photos of a common answer, each once, with the names of the photos that it is about.

    Args:
        names: (photo,) names.
        notes: (photo,) notes.
    """
    about: dict[str, list[str]] = {}
    for name, found in zip(names, notes, strict=True):
        for note in found:
            about.setdefault(note, []).append(name)
    return tuple(f"{listed(photos)}: {note}" for note, photos in about.items())


def exif_position(photo: Any) -> ExifPosition | None:
    """The position in a photo's EXIF; None if there is none, or it cannot be read.

    Args:
        photo: a path or the bytes of a file; anything else has none.
    """
    if not isinstance(photo, str | Path | bytes):
        return None
    try:
        return read_position(photo)
    except (PhotoError, OSError):
        return None


def too_fast_note(before: Location, location: Location, seconds: float, speed: float) -> tuple[str, ...]:
    """A note if the answers to two photos of a drive are too far apart for both to be right.

    Each answer is the most probable one for its photo. If the photos fit no common drive, that is where the photo alone
    fits, as one of several possibilities, and its confidence is low.

    Args:
        before: the answer to the photo before.
        location: the answer.
        seconds: time between the photos.
        speed: top speed, metres per second.

    Returns:
        One note or none.
    """
    ends = (before.latitude, before.longitude, location.latitude, location.longitude)
    distance = float(geodesic_distance(*ends))
    errors = sum(each.best.radius_m or each.cell_m for each in (before, location))
    if distance <= seconds * speed + errors or not (before.sure and location.sure):
        return ()
    return (
        f"{distance:,.0f} m from the answer to the photo before, which {seconds:g} s at the top speed of "
        f"{speed * 3.6:g} km/h do not allow: one of them is wrong, or the photos are not of one drive",
    )


def exif_note(position: ExifPosition | None, location: Location) -> tuple[str, ...]:
    """A note if a photo's EXIF has a position outside of the area, or outside of the circle that holds 95 %.

    Args:
        position: what its EXIF records.
        location: its answer.

    Returns:
        One note or none.
    """
    if position is None:
        return ()
    latitude, longitude = position.latitude, position.longitude
    if location.posterior.area.cells_at(latitude, longitude)[0][0] < 0:
        return (f"its EXIF has the position {latitude:.6f}, {longitude:.6f}, which is outside of this area",)
    distance = float(geodesic_distance(latitude, longitude, location.latitude, location.longitude))
    if not math.isfinite(location.radius_95) or distance <= max(location.radius_95, GPS_ERROR_M) or not location.sure:
        return ()
    return (
        f"its EXIF has the position {latitude:.6f}, {longitude:.6f}, {distance:,.0f} m from this answer and outside of "
        "the circle that holds 95 % of the probability",
    )
