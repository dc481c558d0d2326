"""Results and configurations as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from jzi.store.geometry.pyramid import Pyramid, TileKey
from jzi.store.info import EncoderInfo, ImageryInfo
from jzi.store.plain import plain, rounded


@dataclass(frozen=True)
class Report:
    folder: Path
    best: dict[str, float]
    tiles: tuple[TileKey, ...]
    recall: np.ndarray
    seconds: float = np.inf


def test_a_nested_result_becomes_json() -> None:
    report = Report(Path("model"), {"loss": np.float32(0.5), "epoch": 3}, (TileKey(1, 0, 2),), np.array([0.25, np.nan]))
    values = plain(report)
    assert values == {
        "folder": "model",
        "best": {"loss": 0.5, "epoch": 3},
        "tiles": [[1, 0, 2]],
        "recall": [0.25, None],
        "seconds": None,
    }
    assert json.loads(json.dumps(values, allow_nan=False)) == values


def test_geometry_and_infos_are_restored_from_json(info: EncoderInfo) -> None:
    imagery = ImageryInfo("a" * 64, (("ortho.tif", 1, 1, "b" * 64),), "bands as RGB")
    for value in (Pyramid.around(48.2, 16.37, 800.0, levels=3), info, imagery):
        assert type(value)(**json.loads(json.dumps(plain(value)))) == value


def test_other_types_are_refused() -> None:
    with pytest.raises(TypeError, match="set cannot be converted"):
        plain({"split": {"train", "val"}})


def test_a_heading_that_is_rounded_up_to_a_full_turn_is_north() -> None:
    assert rounded({"heading_deg": 359.998, "heading_sd_deg": 7.128}) == {"heading_deg": 0.0, "heading_sd_deg": 7.13}
