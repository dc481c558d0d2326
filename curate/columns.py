"""Columns of frames of photos, whatever types services and tables give them."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from jzi.store.photos.splits import capture_seconds, text


def by_time(frame: pd.DataFrame, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Chosen rows by drive, time and id; those without a time are the last of their drive."""
    order = pd.DataFrame({"drive": frame["drive"].astype(str).to_numpy(), "seconds": times(frame),
                          "id": frame["id"].astype(str).to_numpy()})  # fmt: skip
    rows = order.sort_values(["drive", "seconds", "id"]).index.to_numpy()
    return rows[chosen[rows]]


def times(frame: pd.DataFrame) -> NDArray[np.float64]:
    """(photo,) seconds since 1970; nan where they are not known."""
    if "captured_at" not in frame:
        return np.full(len(frame), np.nan)
    return capture_seconds(frame["captured_at"]).to_numpy(float)


def on_ellipsoid(latitude: NDArray[np.float64], longitude: NDArray[np.float64]) -> NDArray[np.float64]:
    """(photo, 3) points of WGS 84 in metres; over the spacing of photos, chords are as long as geodesics."""
    north, east = np.radians(latitude), np.radians(longitude)
    normal = _SEMI_MAJOR_M / np.sqrt(1 - _ECCENTRICITY_2 * np.sin(north) ** 2)
    horizontal = normal * np.cos(north)
    up = normal * (1 - _ECCENTRICITY_2) * np.sin(north)
    return np.stack([horizontal * np.cos(east), horizontal * np.sin(east), up], 1)


_SEMI_MAJOR_M, _ECCENTRICITY_2 = 6_378_137.0, 6.69437999014e-3  # of WGS 84


def numbers(frame: pd.DataFrame, name: str) -> NDArray[np.float64]:
    """(photo,) a column as numbers, a copy; nan where there is none."""
    if name not in frame:
        return np.full(len(frame), np.nan)
    return np.array(pd.to_numeric(frame[name], errors="coerce"), np.float64)


def texts(frame: pd.DataFrame, name: str) -> pd.Series:
    """(photo,) a column as text; empty where there is none."""
    return text(frame[name]) if name in frame else pd.Series("", index=frame.index, dtype=object)
