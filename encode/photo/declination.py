"""Declination of the magnetic field, by which headings from magnetic north become headings from true north."""

from __future__ import annotations

from functools import cache
from typing import Any

#: First and last year of the world magnetic models that pygeomag has; the nearest one is taken beyond them. The
#: declination of most places changes by less than 0.2 degrees a year.
FIRST_YEAR, LAST_YEAR = 2010.0, 2029.99

#: Year of photos without a date: the epoch of the newest model.
DEFAULT_YEAR = 2025.0


def declination_deg(latitude: float, longitude: float, year: float | None = None) -> float | None:
    """Angle from true to magnetic north at sea level, clockwise, degrees (World Magnetic Model of NOAA and BGS).

    Args:
        latitude: degrees.
        longitude: degrees.
        year: with its fraction; `DEFAULT_YEAR` if it is unknown.

    Returns:
        The declination; None if pygeomag is not installed, or so close to a magnetic pole that compasses do not work.
    """
    try:
        from pygeomag import BlackoutZoneException, CautionZoneException
    except ImportError:
        return None
    time = min(max(DEFAULT_YEAR if year is None else year, FIRST_YEAR), LAST_YEAR)
    try:
        field = _model(int(time)).calculate(latitude, longitude, 0, time, raise_in_warning_zone=True)
    except (BlackoutZoneException, CautionZoneException):
        return None
    return float(field.d)


@cache
def _model(year: int) -> Any:
    """The model of a year, whose coefficients are read from a file."""
    from pygeomag import GeoMag

    return GeoMag(base_year=year)
