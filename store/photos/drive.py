"""The photos of a drive in the order in which they were taken, by the clock of the camera."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jzi.errors import PhotoError
from jzi.store.photos.exif import CaptureTime, ExifPosition, read_time_and_position


@dataclass(frozen=True)
class DrivePhotos:
    """Photos of a drive.

    Attributes:
        files: (photo,) in the order of time.
        seconds: (photo,) since the first.
        positions: (photo,) what each file records; None if it has no position.
        rounding_s: seconds by which the time between two photos may be longer than `seconds` say.
    """

    files: list[Path]
    seconds: list[float]
    positions: list[ExifPosition | None]
    rounding_s: float


def read_drive(files: Sequence[Path]) -> DrivePhotos:
    """Read times and positions of photos from their EXIF; each file is opened once.

    Times are compared in UTC if all photos record the offset of their clock, else by the clock.

    Args:
        files: the photos, in any order; those of the same time keep the order of their names.

    Raises:
        PhotoError: a file is no photo, or has no capture time.
    """
    read = [(file, *read_time_and_position(file)) for file in files]
    timed: list[tuple[CaptureTime, Path, ExifPosition | None]] = []
    for file, time, position in read:
        if time is None:
            raise PhotoError(
                f"{file} has no capture time in its EXIF: pass --interval SECONDS, and the photos in order"
            )
        timed.append((time, file, position))
    zoned = all(time.offset is not None for time, _, _ in timed)
    moments = [(time.utc if zoned else time.local, file, position) for time, file, position in timed]
    moments.sort(key=lambda each: each[:2])
    return DrivePhotos(
        [file for _, file, _ in moments],
        [(moment - moments[0][0]).total_seconds() for moment, _, _ in moments],
        [position for _, _, position in moments],
        max((time.resolution_s for time, _, _ in timed), default=0.0),
    )
