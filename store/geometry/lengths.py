"""Round lengths for scale bars, and distances in words."""

from __future__ import annotations

import math


def round_length(limit: float) -> float:
    """The longest of 1, 2 or 5 times a power of ten that is at most `limit`.

    Example:
        >>> round_length(87.0), round_length(0.6), round_length(2500.0)
        (50.0, 0.5, 2000.0)
    """
    power = 10.0 ** math.floor(math.log10(limit))
    return float(next(each for each in (5 * power, 2 * power, power) if each <= limit * (1 + 1e-9)))


def length_text(metres: float) -> str:
    """A length in metres, or in kilometres from 1 km on."""
    return f"{metres / 1000:g} km" if metres >= 1000 else f"{metres:g} m"


def distance_text(metres: float, digits: int = 0) -> str:
    """A distance in metres with so many digits after the point, or in whole kilometres from 10 km on.

    Example:
        >>> distance_text(1234.56, 1), distance_text(354_469.0, 1)
        ('1,234.6 m', '354 km')
    """
    factor, unit = in_readable_unit(metres)
    return f"{factor * metres:,.{digits if unit == 'm' else 0}f} {unit}"


def in_readable_unit(metres: float) -> tuple[float, str]:
    """The factor and unit for figures of this size: metres, or kilometres from 10 km on, as to another city.

    Example:
        >>> in_readable_unit(12.5), in_readable_unit(2_991_992.73)
        ((1.0, 'm'), (0.001, 'km'))
    """
    return (0.001, "km") if metres >= 10_000 else (1.0, "m")
