"""The year and the hour in which photos were taken, by which recall is broken down (Fervers et al. 2024, figure 6)."""

from __future__ import annotations

from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from jzi.errors import ConfigError

#: Name of the group of photos whose time is not known.
UNKNOWN = "unknown"


def moments_of(captured_at: pd.Series) -> pd.Series:
    """Times in UTC; NaT where a time is missing or is no time.

    Args:
        captured_at: milliseconds since 1970 in UTC (numbers, or texts of digits, as Mapillary has them), or times in
            ISO 8601; those without an offset are taken to be in UTC.
    """
    number = pd.to_numeric(captured_at, errors="coerce")
    milliseconds = pd.to_datetime(number.where(number.abs() < 8.64e15), unit="ms", errors="coerce", utc=True)
    texts = captured_at.astype("string").where(number.isna())
    texts = texts.where(texts.str.len() > 0)
    return milliseconds.fillna(pd.to_datetime(texts, format="ISO8601", errors="coerce", utc=True))


def groups_by_time(frame: pd.DataFrame, timezone: str | None = None) -> dict[str, NDArray[Any]]:
    """The year and the local hour of photos.

    Args:
        frame: photos, with the columns `captured_at` (see `moments_of`) and, for the hour where no time zone is given,
            `hour` (0..23, local).
        timezone: IANA name of the photos' time zone, such as "America/New_York".

    Returns:
        "year" and "hour" to (photo,) texts such as "2021" and "06", or `UNKNOWN`; without the hour if neither a time
        zone nor the column `hour` is given, and empty without the column `captured_at`.

    Raises:
        ConfigError: there is no such time zone.
    """
    found: dict[str, NDArray[Any]] = {}
    zone = None if timezone is None else _zone(timezone)
    if "captured_at" in frame:
        moments = moments_of(frame["captured_at"])
        local = moments if zone is None else moments.dt.tz_convert(zone)
        found["year"] = _texts(local.dt.year, 4)
        if zone is not None:
            found["hour"] = _texts(local.dt.hour, 2)
    if zone is None and "hour" in frame:
        hour = pd.to_numeric(frame["hour"], errors="coerce")
        found["hour"] = _texts(np.floor(hour.where((hour >= 0) & (hour < 24))), 2)
    return found


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigError(f"there is no time zone {name!s:.60}: give an IANA name such as America/New_York") from error


def _texts(numbers: pd.Series, digits: int) -> NDArray[Any]:
    known = numbers.notna().to_numpy()
    return np.where(known, [f"{int(each):0{digits}d}" for each in numbers.fillna(0)], UNKNOWN)
