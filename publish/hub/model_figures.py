"""Figures of an evaluation that the card of a model states."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

#: "recall@50m" of answers, and "recall@1<50m" of the first of the cells that retrieval ranks.
_RECALL = re.compile(r"recall@(?:(\d[\d.]*)m|1<([1-9][\d.]*)m)")


def hub_metrics(evaluation: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Recall of the default answer as the front matter of a card states it."""
    return [
        {"type": "recall", "name": f"Recall within {radius}", "value": round(interval["value"], 4)}
        for radius, interval in recall_by_radius(default_answer(evaluation)).items()
    ]


def default_answer(evaluation: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Figures of the default answer: of the fusion of all experts, else of the model."""
    if not evaluation:
        return {}
    experts = evaluation.get("experts") or {}
    fused = experts.get("fused")
    return fused if isinstance(fused, Mapping) else evaluation


def recall_by_radius(values: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    """Intervals of recall by radius, such as "50 m"."""
    found = {}
    for key, interval in values.items():
        match = _RECALL.fullmatch(key)
        if match and is_interval(interval):
            found[f"{match[1] or match[2]} m"] = interval
    return found


def is_interval(value: Any) -> bool:
    """Whether a value has the finite numbers of an interval."""
    numbers = [value.get(name) for name in ("value", "low", "high")] if isinstance(value, Mapping) else [None]
    return all(isinstance(number, int | float) and np.isfinite(number) for number in numbers)


def split_name(evaluation: Mapping[str, Any] | None) -> str:
    """Split of the photos that were evaluated."""
    name = (evaluation or {}).get("split")
    return name if name in ("train", "val", "test", "all") else "test"
