"""Photos from a video and a GPX track: frames at a spacing in metres, with the positions of their times on the track.

A frame's time is the recording's start, from the video's header or given, plus the frame's own time stamp, so that a
varying frame rate does no harm. The position is interpolated, the heading is the direction of travel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from jzi.curate.folder import IMAGES, DatasetFolder, Rejection
from jzi.errors import DatasetError, first_line
from jzi.recordings.gpx import read_gpx
from jzi.recordings.importing import POSITION, Recording, clean
from jzi.recordings.mp4 import check_video, recording_time
from jzi.recordings.track import Track, iso_time
from jzi.recordings.trajectories import MAX_GAP_S
from jzi.store.disk.files import write_whole

#: Largest side of a frame, pixels: 16K video.
MAX_SIDE = 16_384

#: Most frames that are taken, and most that are read through: a day at 60 a second.
MAX_FRAMES, MAX_READ = 1_000_000, 5_184_000

#: Quality of the photos as JPEG.
QUALITY = 95

#: Clocks of cameras that run on local time are off by multiples of this, seconds.
ZONE_S, MOST_ZONES = 1800, 28


@dataclass(frozen=True)
class VideoOptions:
    """How frames are chosen.

    Attributes:
        every_m: metres between two frames along the track.
        start_s: when the recording began, seconds since 1970; None for what the video says.
        offset_s: added to the start; with neither of the two, the start is this long after the first point of the
            track. None for 0.
        min_speed_kmh: nothing is taken where the track is slower: a receiver that stands still seems to move at up to
            1 km/h.
        max_gap_s: longest time between two points of the track that is bridged.
        direction_deg: where the camera looks, clockwise from the direction of travel.
        hfov_deg: horizontal field of view; 360 for a panorama; None if unknown.
    """

    every_m: float = 5.0
    start_s: float | None = None
    offset_s: float | None = None
    min_speed_kmh: float = 2.0
    max_gap_s: float = MAX_GAP_S
    direction_deg: float = 0.0
    hfov_deg: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON has it."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True)
class Alignment:
    """How a video lies on a track.

    Attributes:
        start_s: when the recording began, seconds since 1970.
        duration_s: of the video; NaN if it does not say.
        source: where the start is from, in words.
        before_s: seconds of the video before the track begins.
        after_s: seconds of the video after the track ends.
    """

    start_s: float
    duration_s: float
    source: str
    before_s: float
    after_s: float

    def sentences(self) -> list[str]:
        """What to check the alignment by."""
        lines = [f"The video begins at {iso_time(self.start_s, whole=True)}, {self.source}."]
        parts = [(self.before_s, "before the track begins"), (self.after_s, "after the track ends")]
        outside = " and ".join(f"{seconds:.0f} s {where}" for seconds, where in parts if seconds >= 0.5)
        if outside:
            lines.append(f"The video is longer than the track: {outside} were left out; check the start.")
        return lines


def import_video(
    file: Path, gpx: Path, out: Path, options: VideoOptions, *, licence: str = "unknown"
) -> tuple[DatasetFolder, Alignment]:
    """Make a data set of the frames of a video.

    Args:
        file: the video.
        gpx: its track.
        out: the folder of the data set.
        options: how frames are chosen.
        licence: of the video.

    Returns:
        The data set, and how the video lies on the track.

    Raises:
        DatasetError: the video or the track cannot be read, they have no time in common, or nothing moves.
    """
    check_video(file)
    track = read_gpx(gpx)
    with _Capture(file) as video:
        alignment = align(file, track, video.duration_s, options)
        end = alignment.start_s + (MAX_READ if math.isnan(alignment.duration_s) else alignment.duration_s)
        times = track.spaced(
            options.every_m,
            start_s=alignment.start_s,
            end_s=end,
            min_speed=options.min_speed_kmh / 3.6,
            max_gap_s=options.max_gap_s,
        )
        if not len(times):
            raise DatasetError(
                f"{gpx} does not move faster than {options.min_speed_kmh:g} km/h during the video: lower --min-speed, "
                f"or raise --max-gap beyond {options.max_gap_s:g} s if its points are further apart"
            )
        if len(times) > MAX_FRAMES:
            raise DatasetError(f"{file} would give {len(times)} photos, more than {MAX_FRAMES}: raise --every")
        settings = {**options.as_dict(), "gpx": str(gpx.resolve()), "start": alignment.start_s}
        recording = Recording("video", file, licence, settings)
        recording.claim(out)
        clean(out)
        rows, rejected = _take(video, out, times - alignment.start_s, recording)
    seconds = np.array([row.pop("seconds") for row in rows]) + alignment.start_s
    latitude, longitude, heading = track.at(seconds, options.max_gap_s)
    kept = []
    for row, time, north, east, azimuth in zip(rows, seconds, latitude, longitude, heading, strict=True):
        if not math.isfinite(north):  # the frame nearest to the last position is later than the track
            rejected.append(Rejection(row["id"], POSITION, "its frame is later than the track"))
            continue
        row |= {"latitude": float(north), "longitude": float(east), "captured_at": iso_time(float(time))}
        row["heading"] = float((azimuth + options.direction_deg) % 360)
        if options.hfov_deg is not None:
            row["hfov"] = options.hfov_deg
        if options.hfov_deg == 360:
            row |= {"panorama": True, "camera": "spherical"}
        kept.append({**row, "drive": recording.name})
    dropped = f"{track.dropped} points of the track have no position or time of their own."
    notes = [*alignment.sentences(), *([dropped] if track.dropped else [])]
    return recording.write(out, kept, rejected, notes), alignment


def align(file: Path, track: Track, duration_s: float, options: VideoOptions) -> Alignment:
    """Find out when a video began.

    Args:
        file: the video.
        track: its track.
        duration_s: of the video; NaN if unknown.
        options: what the user says.

    Raises:
        DatasetError: neither the video nor the user says it, or the video has no time in common with the track.
    """
    offset = options.offset_s or 0.0
    recorded = recording_time(file)
    if options.start_s is not None:
        start, source = options.start_s, "as given"
    elif recorded is not None:
        start, source = recorded, "as its header says"
    elif options.offset_s is not None:
        start, source = track.start_s, "counted from the first point of the track"
    else:
        raise DatasetError(
            f"{file} does not say when it was recorded: give --start TIME (the track begins at "
            f"{iso_time(track.start_s, whole=True)}), or --offset SECONDS after the track's first point"
        )
    if offset:
        source += f" {offset:+g} s"
    start += offset
    length = 0.0 if math.isnan(duration_s) else duration_s
    end = start + length
    if end < track.start_s or start > track.end_s:
        shown = [iso_time(each, whole=True) or f"{each:g}" for each in (start, end, track.start_s, track.end_s)]
        raise DatasetError(
            f"{file} runs from {shown[0]} to {shown[1]} and {track.name} from {shown[2]} to {shown[3]}: give --start "
            f"TIME or --offset SECONDS{_zone_hint(start, end, track, offset)}"
        )
    before, after = max(0.0, track.start_s - start), max(0.0, end - track.end_s)
    return Alignment(start, duration_s, source, before, after)


def _zone_hint(start: float, end: float, track: Track, offset: float) -> str:
    """An offset of whole half hours with which a video lies inside of its track."""
    for step in sorted(range(-MOST_ZONES, MOST_ZONES + 1), key=abs):
        shift = step * ZONE_S
        if start + shift >= track.start_s - 60 and end + shift <= track.end_s + 60:
            return f"; if the camera was on local time, try --offset {offset + shift:g}"
    return ""


class _Capture:
    """A video that OpenCV reads frame by frame; a context manager.

    Args:
        file: the video.
    """

    def __init__(self, file: Path) -> None:
        self._cv2 = _opencv()
        self._file = file

    def __enter__(self) -> _Capture:
        self._video = self._cv2.VideoCapture(str(self._file.resolve()), self._cv2.CAP_FFMPEG)
        width, height = (int(self._get(name)) for name in ("FRAME_WIDTH", "FRAME_HEIGHT"))
        if not self._video.isOpened() or not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
            self._video.release()
            raise DatasetError(f"{self._file} has no frames that can be read: convert it to MP4, as by ffmpeg")
        return self

    def __exit__(self, *_: object) -> None:
        self._video.release()

    def _get(self, name: str) -> float:
        return float(self._video.get(getattr(self._cv2, f"CAP_PROP_{name}")))

    @property
    def duration_s(self) -> float:
        """Duration by the header; NaN if it does not say."""
        frames, rate = self._get("FRAME_COUNT"), self._get("FPS")
        return frames / rate if 0 < frames < 1e9 and 0.01 < rate < 1e5 else math.nan

    @property
    def frames(self) -> int:
        """Number of frames by the header; 0 if it does not say."""
        count = self._get("FRAME_COUNT")
        return int(count) if 0 < count < 1e9 else 0

    def seconds(self) -> Iterator[float]:
        """The time of each frame from the start, while the frame is the current one."""
        for _ in range(MAX_READ):
            if not self._video.grab():
                return
            yield self._get("POS_MSEC") / 1000

    def jpeg(self) -> tuple[bytes, int, int] | None:
        """The current frame as JPEG, its width and height; None if it is damaged."""
        done, frame = self._video.retrieve()
        if not done or frame is None or not 0 < max(frame.shape[:2]) <= MAX_SIDE:
            return None
        done, encoded = self._cv2.imencode(".jpg", frame, [self._cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        return (encoded.tobytes(), frame.shape[1], frame.shape[0]) if done else None


def _take(
    video: _Capture, out: Path, targets: NDArray[np.float64], recording: Recording
) -> tuple[list[dict[str, Any]], list[Rejection]]:
    """Write the first frame at or after each time from the start; frames that are in place are not decoded again."""
    rows: list[dict[str, Any]] = []
    rejected: list[Rejection] = []
    name, following, last = recording.name, 0, -1.0
    folder = out / IMAGES / name
    for seconds in tqdm(video.seconds(), total=video.frames or None, unit="frame", desc="video", delay=1):
        if seconds < last or seconds < targets[following] - 1e-3:  # a stamp that is lost is 0
            last = max(last, seconds)
            continue
        last = seconds
        following = int(np.searchsorted(targets, seconds + 1e-3, side="right"))
        identifier = f"{name}_{round(seconds * 1000):09d}"
        row = {"id": identifier, "path": f"{IMAGES}/{name}/{identifier}.jpg", "seconds": seconds}
        if size := _size(folder / f"{identifier}.jpg"):
            rows.append({**row, "width": size[0], "height": size[1]})
        elif frame := video.jpeg():
            content, width, height = frame
            _write(folder / f"{identifier}.jpg", content)
            rows.append({**row, "width": width, "height": height})
        else:
            rejected.append(Rejection(identifier, "photo", "the frame is damaged"))
        if following >= len(targets):
            break
    if last < 0:
        raise DatasetError(f"{recording.path} has no frames that can be read: convert it to MP4, as by ffmpeg")
    return rows, rejected


def _size(file: Path) -> tuple[int, int] | None:
    from jzi.errors import PhotoError
    from jzi.store.photos.photo_file import open_image

    try:
        with open_image(file, file.name) as image:
            return image.size
    except PhotoError:
        return None


def _write(file: Path, content: bytes) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, lambda temporary: temporary.write_bytes(content))
    except OSError as error:
        raise DatasetError(f"{file} cannot be written: {error.strerror or first_line(error)}") from error


def _opencv() -> ModuleType:
    try:
        import cv2
    except ImportError as error:
        raise DatasetError("reading videos needs OpenCV: pip install 'jzi[dataset]'") from error
    return cv2
