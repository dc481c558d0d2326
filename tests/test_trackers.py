"""Trackers: what a training logs to TensorBoard and to Weights & Biases can be read back."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from accelerate.utils import LoggerType

from jzi.train.config.encoders import FinetuneConfig, RetrieverConfig
from jzi.train.config.refiner import RefinerTrainingConfig
from jzi.train.config.statewide import StatewideConfig
from jzi.train.config.training import HeadsTrainingConfig, RunConfig, TrainConfig
from jzi.train.loop import make_accelerator, start_trackers

TRAIN = "train-decoder --experts zoom --set train.epochs=2 --set decoder.layers=1 --set decoder.heads=2"
CONFIGS = (TrainConfig, HeadsTrainingConfig, FinetuneConfig, RetrieverConfig, RefinerTrainingConfig, StatewideConfig)


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


@pytest.fixture
def encoded(jzi: Callable[..., Any], encoded_folder: Path, tmp_path: Path) -> Callable[..., Any]:
    """A working directory with a filled cache."""
    shutil.copytree(encoded_folder, tmp_path, dirs_exist_ok=True)
    return jzi


def losses(folder: Path) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def scalars(folder: Path, name: str) -> list[float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [event.value for event in events.Scalars(name)]


@needs("tensorboard")
def test_tensorboard_shows_the_losses_of_the_metrics_file(encoded: Callable[..., Any], tmp_path: Path) -> None:
    encoded(f"""{TRAIN} --set train.trackers=["tensorboard"]""")
    folder = tmp_path / "model" / "train"
    assert scalars(folder / "jzi", "loss") == pytest.approx(losses(folder), rel=1e-6)


@needs("tensorboard")
@pytest.mark.parametrize("kind", CONFIGS)
def test_every_kind_of_training_can_hand_its_settings_to_a_tracker(kind: type[RunConfig], tmp_path: Path) -> None:
    config = kind(trackers=("tensorboard",))
    accelerator = make_accelerator(config, tmp_path)
    start_trackers(accelerator, config)
    accelerator.end_training()
    (stored,) = (tmp_path / "train" / "jzi").rglob("hparams.yml")
    assert f"learning_rate: {asdict(config)['learning_rate']}" in stored.read_text()


class WandB(ModuleType):
    """The part of the package wandb that Accelerate calls, with what it was given."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.projects: list[str] = []
        self.settings: dict[str, Any] = {}
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.finished = 0
        self.config = SimpleNamespace(update=lambda values, **_: self.settings.update(values))

    def init(self, project: str, **_: Any) -> WandB:
        self.projects.append(project)
        return self

    def log(self, values: dict[str, Any], step: int, **_: Any) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished += 1


def test_weights_and_biases_gets_the_settings_and_the_metrics_of_every_epoch(
    encoded: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = WandB()  # the real one is 20 MB, and its runs are files in a format of its own
    monkeypatch.setitem(sys.modules, "wandb", package)
    monkeypatch.setattr("accelerate.tracking._available_trackers", [LoggerType.WANDB])
    encoded(f"""{TRAIN} --set train.trackers=["wandb"]""")
    assert (package.projects, package.finished) == (["jzi"], 1)
    assert package.settings["learning_rate"] == TrainConfig().learning_rate and "trackers" not in package.settings
    assert [step for step, _ in package.logged] == [1, 2]
    assert [values["loss"] for _, values in package.logged] == pytest.approx(losses(tmp_path / "model" / "train"))
    assert all("recall@40m" in values for _, values in package.logged)


def test_a_tracker_that_is_not_installed_is_named(encoded: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.tracking._available_trackers", [])
    text = encoded(f"""{TRAIN} --set train.trackers=["wandb"]""", code=2).stderr
    assert "train.trackers names wandb, which is not installed: pip install it first" in text
