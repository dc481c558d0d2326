"""Read the points of a GPX track, in a stream: a day at one point a second takes megabytes, and strangers write them.

The points of all tracks are taken, with their times; routes and way points have none. Expat reads element by element;
document types, and with them entities, are refused, so nothing expands and nothing else is opened.
"""

from __future__ import annotations

from array import array
from pathlib import Path
from xml.parsers import expat

from jzi.errors import DatasetError, first_line
from jzi.recordings.track import Track, parse_time
from jzi.store.photos.photo_file import open_regular_file

#: Largest file, bytes: a month at one point a second.
MAX_BYTES = 2**29

#: Deepest nesting of elements, and longest text of a time.
MAX_DEPTH, MAX_TEXT = 64, 64


class _UnsafeError(Exception):
    """The file has what is refused; the message says what."""


class _Points:
    """Collects the attributes and times of `trkpt` elements."""

    def __init__(self) -> None:
        self.latitude, self.longitude, self.time = array("d"), array("d"), array("d")
        self.is_gpx = False
        self._stack: list[str] = []
        self._text: list[str] | None = None

    def start(self, name: str, attributes: dict[str, str]) -> None:
        name = name.rpartition(":")[2]
        self.is_gpx = self.is_gpx or (not self._stack and name == "gpx")
        self._stack.append(name)
        if len(self._stack) > MAX_DEPTH:
            raise _UnsafeError(f"its elements are nested more than {MAX_DEPTH} deep")
        if name == "trkpt":
            self.latitude.append(_number(attributes.get("lat")))
            self.longitude.append(_number(attributes.get("lon")))
            self.time.append(float("nan"))
        self._text = [] if self._stack[-2:] == ["trkpt", "time"] else None

    def characters(self, text: str) -> None:
        if self._text is not None and sum(map(len, self._text)) < MAX_TEXT:
            self._text.append(text[:MAX_TEXT])

    def end(self, _: str) -> None:
        if self._text is not None and self._stack[-2:] == ["trkpt", "time"]:
            seconds = parse_time("".join(self._text))
            self.time[-1] = float("nan") if seconds is None else seconds
        self._text = None
        self._stack.pop()


def read_gpx(file: Path) -> Track:
    """Read the points of all tracks of a GPX file.

    Raises:
        DatasetError: it cannot be read, is no GPX, or its points have no positions or times.
    """
    points = _Points()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = points.start, points.end
    parser.CharacterDataHandler = points.characters
    parser.StartDoctypeDeclHandler = _refuse_doctype
    try:
        with open_regular_file(file) as opened:
            read = 0
            while chunk := opened.read(2**20):
                read += len(chunk)
                if read > MAX_BYTES:
                    raise _UnsafeError(f"it has more than {MAX_BYTES} bytes; split it")
                parser.Parse(chunk, False)
            parser.Parse(b"", True)
    except FileNotFoundError:
        raise DatasetError(f"there is no track {file}: give the GPX file of the recording") from None
    except (expat.ExpatError, _UnsafeError, OSError, ValueError) as error:
        raise DatasetError(f"{file} cannot be read as GPX: {first_line(error)}") from error
    if not points.is_gpx or not points.time:
        what = "no track points (trkpt)" if points.is_gpx else "no element gpx"
        raise DatasetError(f"{file} is no GPX track: it has {what}; export the recording as a track")
    if not any(time == time for time in points.time):
        raise DatasetError(
            f"{file} has {len(points.time)} points and no times: export the track as recorded, with the time of each "
            "point"
        )
    return Track.of(str(file), points.time, points.latitude, points.longitude)


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")


def _refuse_doctype(*_: object) -> None:
    raise _UnsafeError("it has a document type, which no GPX has and which may expand without end; remove <!DOCTYPE>")
