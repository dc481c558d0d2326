"""Convert results, configurations and arrays to what JSON can hold, and shares to what people read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """Convert a value to the types that `json` reads back: dict, list, str, int, float, bool and None.

    A dataclass becomes a dict of its fields; a tuple, a named tuple or an array a list; a path a string; a NumPy scalar
    a Python number; nan and infinity None, because JSON has neither. Nested values are converted too.

    Raises:
        TypeError: the value is of another type.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    raise TypeError(f"{type(value).__name__} cannot be converted to JSON")


def rounded(value: Any, name: str = "") -> Any:
    """Plain values with as many decimals as they mean, by the names of the entries that they are in.

    Latitudes and longitudes have 7 decimals (1 cm), metres (`x`, `y`, names in `_m`) and other angles (`_deg`) 2, and
    everything else 6, such as probabilities.

    Args:
        value: as from `plain`.
        name: name of the entry.

    Example:
        >>> rounded({"latitude": 52.515432354150896, "radius_m": 17.799164782403672, "path": [10, 1]})
        {'latitude': 52.5154324, 'radius_m': 17.8, 'path': [10, 1]}
    """
    if isinstance(value, dict):
        return {key: rounded(each, key) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each, name) for each in value]
    if not isinstance(value, float):
        return value
    if name in ("latitude", "longitude"):
        return round(value, 7)
    if name == "heading_deg":
        return round(value, 2) % 360  # 359.998 is north
    return round(value, 2 if name in ("x", "y") or name.endswith(("_m", "_deg")) else 6)


def share_text(share: float, decimals: int = 1) -> str:
    """A measured share in percent, such as "83.0 %"; without decimals for levels and thresholds that have none."""
    return f"{100 * share:.{decimals}f} %"


def percent(share: float) -> str:
    """A probability in percent as `share_text`, but "under 0.1 %" and "over 99.9 %" where it is neither 0 nor 1."""
    if 0 < share < 0.0005:
        return "under 0.1 %"
    return "over 99.9 %" if 0.9995 <= share < 1 else share_text(share)
