"""Training a refiner: it learns from the photo and not from where windows lie, resumes exactly, and stops early."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from jzi.errors import ModelError, TrainingError
from jzi.evaluate.metres import constant_error, gain_over
from jzi.refine.cached import CachedRefiner
from jzi.refine.files import RefinerInfo
from jzi.tests.refine_scene import NETWORK, REFINE, Scene
from jzi.train.config import RefinerTrainingConfig
from jzi.train.loop import TrainingLoop
from jzi.train.refine_data import Pairs, prepare
from jzi.train.refine_pairs import draw_windows, own_places
from jzi.train.refiner import RefinerReport, RefinerTask, train_refiner

QUICK = RefinerTrainingConfig(epochs=3, batch_size=8, learning_rate=1e-3, offsets="uniform")


class Killed(BaseException):
    """Stands for a kill signal: the code under test must not catch it."""


def train(folder: Path, scene: Scene, config: RefinerTrainingConfig = QUICK) -> RefinerReport:
    info = RefinerInfo("cached", NETWORK, REFINE.window_m)
    make = lambda: CachedRefiner(NETWORK)  # noqa: E731
    return train_refiner(scene, make, folder, REFINE, config, info, fingerprint={}, progress=False)


def metrics(folder: Path) -> list[dict[str, float]]:
    timings = ("seconds", "samples_per_s")
    lines = (folder / "train" / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in timings} for line in lines]


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene.draw(train=20, val=12)


@pytest.mark.parametrize("steps", [2, 3, 4])  # within the first epoch, at its end, and in the second
def test_a_killed_run_goes_on_to_the_same_losses_and_weights(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    train(tmp_path / "whole", scene)
    step, done = TrainingLoop.step, []

    def killed(*args: object) -> Tensor:
        if len(done) == steps:
            raise Killed
        done.append(1)
        return step(*args)

    often = replace(QUICK, save_every_s=1e-9)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(TrainingLoop, "step", killed)
        train(tmp_path / "parts", scene, often)
    train(tmp_path / "parts", scene, often)
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    whole, parts = (load_file(tmp_path / name / "refiner.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_each_loss_is_logged_without_its_weight(scene: Scene, tmp_path: Path) -> None:
    train(tmp_path, scene, replace(QUICK, epochs=1))
    logged = metrics(tmp_path)[0]
    weighted = logged["loss_decoder"] + 10 * logged["loss_matching"] + logged["loss_rerank"]
    assert logged["loss"] == pytest.approx(weighted, rel=1e-5)
    assert logged["loss_retrieval"] == 0
    assert logged["loss_decoder"] == pytest.approx(np.log(64**2), rel=0.02)  # at the start


def test_a_finished_run_is_not_trained_again_nor_a_run_with_other_settings(scene: Scene, tmp_path: Path) -> None:
    first = train(tmp_path, scene, replace(QUICK, epochs=1))
    assert (first.epochs, first.stopped) == (1, None)
    assert train(tmp_path, scene, replace(QUICK, epochs=1)).epochs == 0
    with pytest.raises(ModelError, match="refiner.sigma_m"):
        train(tmp_path, scene, replace(QUICK, epochs=1, sigma_m=2.0))


def test_training_ends_when_the_validation_loss_no_longer_falls(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 2.0, 2.5, 2.4, 1.0, 0.5])
    monkeypatch.setattr(RefinerTask, "validate", lambda self: {"val_loss": next(losses)})
    config = replace(QUICK, epochs=6, patience=2)
    report = train(tmp_path, scene, config)
    assert [each["val_loss"] for each in metrics(tmp_path)] == [3.0, 2.0, 2.5, 2.4]
    assert (report.stopped, report.best["epoch"]) == (4, 2)
    assert train(tmp_path, scene, config).epochs == 0  # a run that ended is not taken up again


def test_a_run_killed_before_it_ends_early_still_does(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([2.0, 3.0, 1.0])
    monkeypatch.setattr(RefinerTask, "validate", lambda self: {"val_loss": next(losses)})
    config = replace(QUICK, epochs=3, patience=1)

    def killed(self: RefinerTask) -> bool:
        if len(self.run.metrics) == 2:
            raise Killed
        return False

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RefinerTask, "has_converged", killed)
        train(tmp_path, scene, config)
    assert train(tmp_path, scene, config).stopped == 2


def test_no_photo_to_train_on_is_an_error(scene: Scene, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no photo"):
        train(tmp_path / "none", replace(scene, train=scene.train[:0]))
    assert not (tmp_path / "none").exists()


def test_headings_are_given_to_some_photos_and_withheld_from_others(scene: Scene) -> None:
    windows = draw_windows(scene.train, scene.area, REFINE.window_m, NETWORK.pixels, "uniform", (0,))
    pairs = Pairs.read(scene, scene.train, windows)
    known = torch.arange(len(pairs)) % 2 == 0
    batch = prepare(pairs, 8, known, torch.Generator().manual_seed(0), images=False, augment=True)
    flat = (batch.photos.log_heading == 0).all(1)
    assert torch.equal(flat, ~known)
    nearest = (batch.truth.heading_deg / 45).round().long() % 8
    best = batch.photos.log_heading.argmax(1)
    away = (best - nearest + 4) % 8 - 4
    assert (away[known].abs() <= 1).all()  # noise of 10 degrees, sectors of 45
    assert batch.truth.heading_deg.isfinite().all()


# Learning


def answers(folder: Path, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Errors of the most probable pixels of validation photos, and of the best constant guess, metres."""
    refiner = CachedRefiner(NETWORK)
    refiner.load_state_dict(load_file(folder / "refiner.safetensors"))
    refiner.eval()
    windows = draw_windows(scene.val, scene.area, REFINE.window_m, NETWORK.pixels, "uniform", (99,))
    pairs = Pairs.read(scene, scene.val, windows)
    batch = prepare(pairs, NETWORK.rolls, torch.ones(len(pairs)) > 0, None, images=False, augment=False)
    with torch.inference_mode():
        output = refiner.match(refiner.ground(batch.photos), refiner.aerial(batch.windows), batch.mask)
    size = NETWORK.pixels
    best = output.logits.flatten(1).argmax(1).numpy()
    found = np.stack([best % size, best // size], 1) + 0.5
    place = own_places(windows, scene.val)
    error = np.hypot(*((found / size - 0.5 - place) * REFINE.window_m).T)
    return error, constant_error(place * REFINE.window_m)


LEARNING = RefinerTrainingConfig(epochs=10, batch_size=20, learning_rate=2e-3, offsets="uniform", heading_known=0.7)


@pytest.mark.slow
def test_a_tiny_refiner_learns_the_place_from_200_photos(tmp_path: Path) -> None:
    scene = Scene.draw()
    train(tmp_path, scene, LEARNING)
    error, constant = answers(tmp_path, scene)
    assert np.median(error) < 0.15 * REFINE.window_m
    assert gain_over(error, constant).low > 0.1 * REFINE.window_m


@pytest.mark.slow
@pytest.mark.parametrize("control", ["black", "shuffled"])
def test_without_the_photo_it_is_no_better_than_the_best_constant_guess(tmp_path: Path, control: str) -> None:
    scene = Scene.draw().with_control(control)
    train(tmp_path, scene, replace(LEARNING, epochs=6))
    error, constant = answers(tmp_path, scene)
    assert gain_over(error, constant).low <= 0
