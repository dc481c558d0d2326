"""`jzi estimate`: what an area will take, from some seconds of each step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from jzi.workspace import estimate
from jzi.workspace.estimate import _rate


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "SECONDS", 0.02)
    monkeypatch.setattr(estimate, "MADE", 32)


@pytest.fixture
def estimated(area) -> Callable[[str], dict[str, Any]]:
    """Runs `jzi estimate` with options, and returns what it prints."""
    return lambda options: json.loads(area(f"estimate --set decoder.heads=4 --json {options}").stdout)


def test_all_steps_are_estimated_and_nothing_is_written(estimated, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    values = estimated("--set train.epochs=10")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    steps = {step["name"]: step for step in values["steps"]}
    assert list(steps) == ["encode-map --cells", "encode-queries", "encode-map --detail",
                           "encode-queries --tokens", "train-decoder", "locate"]  # fmt: skip
    assert all(step["seconds"] > 0 and step["memory_bytes"] > 0 for step in steps.values())
    assert values["warnings"] == [] and values["free_disk_bytes"] > 0


def test_the_number_of_photos_scales_what_depends_on_it(estimated) -> None:
    one, ten = (estimated(f"--photos {count}") for count in (1000, 10_000))
    counts = [{step["name"]: (step["count"], step["disk_bytes"]) for step in values["steps"]} for values in (one, ten)]
    assert counts[1]["encode-queries"] == tuple(10 * value for value in counts[0]["encode-queries"])
    assert counts[1]["encode-map --cells"] == counts[0]["encode-map --cells"]
    assert counts[1]["train-decoder"][0] == pytest.approx(10 * counts[0]["train-decoder"][0], abs=10)


def test_what_does_not_fit_is_a_warning(estimated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "LARGEST", 1_000_000)  # what describes the cells takes more, tiles and cells less
    assert "training and search were not measured" in estimated("")["warnings"][0]
    monkeypatch.setattr(estimate, "free_bytes", lambda _: 1000)
    assert any("of memory, but" in warning for warning in estimated("")["warnings"][1:])


def test_the_first_unit_is_not_measured_unless_it_is_the_only_one() -> None:
    seen: list[int] = []
    assert _rate(iter([torch.zeros(5), torch.zeros(3), torch.zeros(4)]), lambda item: seen.append(len(item)))[1] == 7
    assert _rate(iter([torch.zeros(5)]), lambda item: seen.append(len(item)))[1] == 5
    assert _rate(iter([]), print) == (0.0, 0)


def test_an_estimate_without_photos_asks_for_their_number(area) -> None:
    error = area("estimate --set queries.table=", code=2)
    assert "--photos" in error.stderr


def test_the_codes_of_cells_and_tiles_are_written_and_what_describes_a_cell_is_in_memory(estimated) -> None:
    one, two = (estimated(f"--set decoder.layers=1 --set heads.features={count}") for count in (128, 256))
    trained = [next(step for step in values["steps"] if step["name"] == "train-decoder") for values in (one, two)]
    tiles, cells, levels, width = 273, 4096, 3, 32
    assert trained[1]["disk_bytes"] - trained[0]["disk_bytes"] >= 128 * 2 * (2 * cells + tiles)
    assert trained[0]["memory_bytes"] > estimate.MAKING_BYTES * cells * levels * width


def test_checkpoints_count_for_what_fits_on_the_disk(estimated, monkeypatch: pytest.MonkeyPatch) -> None:
    values = estimated("")
    (training,) = [step for step in values["steps"] if step["name"] == "train-decoder"]
    written = sum(step["disk_bytes"] for step in values["steps"])
    usage = estimate.shutil.disk_usage("/")._replace(free=written + training["checkpoint_bytes"] // 2)
    monkeypatch.setattr(estimate.shutil, "disk_usage", lambda _: usage)
    assert "the steps write" in estimated("")["warnings"][0]
