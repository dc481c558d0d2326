"""Probabilities and radii of locations in words, the same in the terminal and on pages."""

from __future__ import annotations

import math

from jzi.locate.answer.location import Location
from jzi.store.plain import percent


def known_radii(location: Location) -> list[str]:
    """The radii around the answer that contain 68 and 95 % of the probability, as far as search reached so much."""
    digits = 1 if location.fix else 0
    return [
        f"{share} % within {radius:.{digits if radius < 100 else 0}f} m"
        for share, radius in _radii(location)
        if math.isfinite(radius)
    ]


def unsearched(location: Location) -> str:
    """How much of the probability was not searched, and which radii are unknown for that; empty for less than 1 %."""
    left = f"{percent(location.residual)} of the probability was not searched"
    unknown = [f"{share} %" for share, radius in _radii(location) if not math.isfinite(radius)]
    if unknown:
        return f"{' and '.join(unknown)} {'radius' if len(unknown) == 1 else 'radii'} unknown: {left}"
    return left if location.residual >= 0.01 else ""


def _radii(location: Location) -> tuple[tuple[int, float], ...]:
    return (68, location.radius_68), (95, location.radius_95)
