"""Trackers: what a training logs to TensorBoard and to Weights & Biases can be read back."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from jzi.tests.children import run
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


@needs("wandb")
@pytest.mark.slow
@pytest.mark.usefixtures("encoded")
def test_weights_and_biases_works_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    options = [*TRAIN.split(), "--set", 'train.trackers=["wandb"]']
    run([sys.executable, "-m", "jzi", *options])  # its file is complete when the process has ended
    (stored_run,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    stored = stored_run.read_bytes()
    assert b"learning_rate" in stored and b"recall@40m" in stored
    assert all(str(loss)[:12].encode() in stored for loss in losses(tmp_path / "model" / "train"))
