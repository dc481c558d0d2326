"""Results and configurations as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from jzi.commands.shared.tables import share_with_interval
from jzi.evaluate.intervals import Interval
from jzi.store.geometry.pyramid import Pyramid, TileKey
from jzi.store.info import EncoderInfo, ImageryInfo
from jzi.store.plain import percent, plain, rounded, share_text


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


def test_shares_have_one_decimal_and_a_space_in_tables_and_answers() -> None:
    assert (share_text(0.8168), share_text(0.0), share_text(1.0), share_text(0.5, 0)) == (
        "81.7 %", "0.0 %", "100.0 %", "50 %")  # fmt: skip
    assert (percent(0.83), percent(0.0001), percent(0.9999)) == ("83.0 %", "under 0.1 %", "over 99.9 %")
    shares = [share_with_interval(Interval(value, 0.5 * value, value)) for value in (0.004, 0.83, 1.0)]
    assert shares == ["   0.4 %   (0.2 .. 0.4 %)", "  83.0 %   (41.5 .. 83.0 %)", " 100.0 %   (50.0 .. 100.0 %)"]
