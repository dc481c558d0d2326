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
        cell: row and column of the terminal cell (level L).
        path: the L actions that lead to it.
        probability: of the cell, 0..1, by the chain rule over the steps.
        step_probabilities: of each action given those before it, L numbers.
        source: what proposed it: "greedy", "beam", later a retriever or a re-ranker.
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

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)
