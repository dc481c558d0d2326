"""Write locations as GeoJSON and CSV."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from jzi.errors import ExportError, first_line
from jzi.locate.answer.geojson import circle as circle
from jzi.locate.answer.geojson import feature_collection
from jzi.locate.answer.geojson import to_features as to_features
from jzi.locate.answer.location import Location
from jzi.store.disk.files import write_whole
from jzi.store.photos.exif import ExifPosition
from jzi.store.printable import quote_formula

#: Columns of answers to metres.
FIX_COLUMNS = ("sd_major_m", "sd_minor_m", "axis_deg", "mode_mass", "heading_deg", "heading_sd_deg")


def write_geojson(path: Path | str, locations: Sequence[Location], truths: Sequence[ExifPosition | None] = ()) -> None:
    """Write answers, candidates, 68 and 95 % circles, zoom tiles and true positions as GeoJSON (RFC 7946).

    Of answers to metres also the ellipses of 68 and 95 %, headings as lines and wedges, and further modes.

    Args:
        path: file to write.
        locations: located photos.
        truths: true position of each photo, None where unknown; empty if there are none.

    Raises:
        ExportError: the file cannot be written.
    """
    features = [
        feature
        for index, location in enumerate(locations)
        for feature in to_features(location, truths[index] if truths else None)
    ]
    collection = feature_collection(features)
    write_file(path, lambda file: file.write_text(json.dumps(collection, allow_nan=False) + "\n"))


def write_csv(path: Path | str, answers: Sequence[dict[str, Any]]) -> None:
    """Write one row per photo, with the warnings about it, and the error for photos that could not be read.

    If any answer is to metres, there are the columns `FIX_COLUMNS` too.

    Args:
        path: file to write.
        answers: results of `Location.to_dict`, or `plain` of a `NotLocated`.

    Raises:
        ExportError: the file cannot be written.
    """
    columns = (
        "photo",
        "latitude",
        "longitude",
        "sure",
        "confidence",
        "inside",
        "elsewhere",
        "estimate",
        "radius_m",
        "radius_68_m",
        "radius_95_m",
    )
    fixes = [answer.get("fix") or {} for answer in answers]
    refined = FIX_COLUMNS if any(fixes) else ()
    rows = [
        {name: quote_formula(answer.get(name)) for name in columns}
        | {name: fix.get(name) for name in refined}
        | {"notes": quote_formula("; ".join(answer.get("notes") or ()) or None)}
        | {"error": quote_formula(answer.get("error"))}
        for answer, fix in zip(answers, fixes, strict=True)
    ]
    write_file(path, partial(pd.DataFrame(rows).to_csv, index=False))


def write_file(path: Path | str, write: Any) -> None:
    """Write a file atomically by calling `write` with a temporary path.

    Raises:
        ExportError: the file cannot be written.
    """
    try:
        write_whole(Path(path), write)
    except (OSError, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or first_line(error)
        raise ExportError(f"{path} cannot be written: {reason}") from error
