"""When a video was recorded, from the header of an MP4 or MOV file (ISO 14496-12), and whether a file is a video.

OpenCV's decoder tells the kind of a file by its contents, and some kinds, such as playlists, name other files and
addresses. Only containers that hold their own frames are let through.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from jzi.errors import DatasetError
from jzi.store.photos.photo_file import open_regular_file

#: Seconds from the start of 1904, from which MP4 counts, to that of 1970.
EPOCH_1904_S = 2_082_844_800

#: Most boxes that are walked through.
MAX_BOXES = 10_000

_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")


def check_video(file: Path) -> None:
    """Refuse what is no MP4, MOV, Matroska, WebM or AVI by its first bytes.

    Raises:
        DatasetError: there is no such file, or it is something else.
    """
    try:
        with open_regular_file(file) as opened:
            start = opened.read(12)
    except FileNotFoundError:
        raise DatasetError(f"there is no video {file}") from None
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file} cannot be read: {error}") from error
    matroska, avi = start[:4] == b"\x1a\x45\xdf\xa3", start[:4] == b"RIFF" and start[8:] == b"AVI "
    if not (start[4:8] in _BOXES or matroska or avi):
        raise DatasetError(f"{file} is no video in MP4, MOV, Matroska, WebM or AVI: convert it, as by ffmpeg")


def recording_time(file: Path) -> float | None:
    """Seconds since 1970 at which the header says that the recording was made; None if it does not.

    Raises:
        OSError: the file cannot be read.
    """
    with open_regular_file(file) as opened:
        opened.seek(0, 2)
        movie = _find(opened, b"moov", 0, opened.tell())
        header = movie and _find(opened, b"mvhd", *movie)
        if not header:
            return None
        opened.seek(header[0])
        content = opened.read(12)
    if len(content) < 12:
        return None
    seconds = struct.unpack(">Q" if content[0] == 1 else ">I", content[4 : 12 if content[0] == 1 else 8])[0]
    return float(seconds - EPOCH_1904_S) if seconds > EPOCH_1904_S else None


def _find(file: BinaryIO, kind: bytes, start: int, end: int) -> tuple[int, int] | None:
    """Where the contents of the first box of a kind begin and end, between two bytes of a file."""
    for _ in range(MAX_BOXES):
        if start + 8 > end:
            return None
        file.seek(start)
        size, name = struct.unpack(">I4s", file.read(8))
        contents = start + 8
        if size == 1:
            large = file.read(8)
            if len(large) < 8:
                return None
            size, contents = struct.unpack(">Q", large)[0], start + 16
        following = start + size if size else end
        if following < contents or following > end:
            return None
        if name == kind:
            return contents, following
        start = following
    return None
