"""The one type that every front end answers with and every later stage takes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Candidate:
    """One place where a photo may have been taken.

    Attributes:
        latitude: of the point, degrees (WGS 84).
        longitude: of the point, degrees.
        x: of the point in the pyramid's CRS, metres.
        y: of the point, metres.
        cell: row and column of the terminal cell (level L) that the point lies in.
        path: the L actions that lead to it.
        probability: that the photo was taken in the cell, or within `radius_m` of the point, 0..1.
        step_probabilities: of each action given those before it, L numbers.
        source: what proposed it: "greedy", "map" (the most probable cell) or "radius" (the point with the most
            probability within a radius); later a retriever or a re-ranker.
        radius_m: metres; None where the probability is the cell's.
    """

    latitude: float
    longitude: float
    x: float
    y: float
    cell: tuple[int, int]
    path: tuple[int, ...]
    probability: float
    step_probabilities: tuple[float, ...]
    source: str
    radius_m: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)
