"""Training a refiner: it learns from the photo and not from where windows lie, resumes exactly, and stops early."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from jzi.errors import ModelError, TrainingError
from jzi.evaluate.stages.metres import constant_error, gain_over
from jzi.refine.info import RefinerInfo, read_refiner_info
from jzi.refine.networks.cached import CachedRefiner
from jzi.refine.networks.files import load_refiner
from jzi.refine.outputs import RefinerOutput
from jzi.refine.windows.answer import to_fixes
from jzi.refine.windows.window import Windows
from jzi.store.geometry.pyramid import geodesic_distance
from jzi.store.trained_photos import TrainedPhotos
from jzi.tests.refine_scene import Scene, network_config, refine_config
from jzi.train.config.refiner import RefinerTrainingConfig
from jzi.train.loop import TrainingLoop
from jzi.train.refine.refine_data import Pairs, prepare
from jzi.train.refine.refine_pairs import draw_windows, own_places
from jzi.train.refine.refiner import RefinerReport, RefinerTask, train_refiner

QUICK = RefinerTrainingConfig(epochs=2, batch_size=8, learning_rate=1e-3, offsets="uniform")


class Killed(BaseException):
    """Stands for a kill signal: the code under test must not catch it."""


def train(
    folder: Path, scene: Scene, config: RefinerTrainingConfig = QUICK, start: Path | None = None
) -> RefinerReport:
    network, refine = network_config(scene.side), refine_config(scene.side)
    info = RefinerInfo(kind="cached", config=network, window_m=refine.window_m)
    make = partial(CachedRefiner, network)
    return train_refiner(scene, make, folder, refine, config, info, fingerprint={}, start=start, progress=False)


def metrics(folder: Path) -> list[dict[str, float]]:
    timings = ("seconds", "samples_per_s")
    lines = (folder / "train" / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in timings} for line in lines]


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene.draw(train=20, val=12, side=3)


@pytest.fixture(scope="module")
def whole(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "refiner"
    train(folder, scene)
    return folder


@pytest.mark.parametrize("steps", [2, 3, 4])  # within the first epoch, at its end, and in the second
def test_a_killed_run_goes_on_to_the_same_losses_and_weights(
    scene: Scene, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
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
    assert metrics(tmp_path / "parts") == metrics(whole)
    one, other = (load_file(folder / "refiner.safetensors") for folder in (whole, tmp_path / "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_photos_of_its_training_are_recorded_and_not_validated_on(scene: Scene, whole: Path, tmp_path: Path) -> None:
    again = partial(train, tmp_path / "again", start=whole)
    again(scene)
    assert set(TrainedPhotos.read(tmp_path / "again").model) == set(scene.train.key)
    with pytest.raises(ModelError, match="refiner was trained on 20 of the 20 photos of the val split"):
        train(tmp_path / "swapped", replace(scene, train=scene.val, val=scene.train), start=whole)
    assert not (tmp_path / "swapped").exists()


def test_each_loss_is_logged_without_its_weight(scene: Scene, tmp_path: Path) -> None:
    train(tmp_path, scene, replace(QUICK, epochs=1))
    logged = metrics(tmp_path)[0]
    weighted = logged["loss_decoder"] + 10 * logged["loss_matching"] + logged["loss_rerank"]
    assert logged["loss"] == pytest.approx(weighted, rel=1e-5)
    assert logged["loss_retrieval"] == 0
    assert logged["loss_decoder"] == pytest.approx(np.log(24**2), rel=0.02)  # at the start


def test_a_finished_run_is_not_trained_again_nor_a_run_with_other_settings(scene: Scene, tmp_path: Path) -> None:
    first = train(tmp_path, scene, replace(QUICK, epochs=1))
    assert (first.epochs, first.stopped) == (1, None)
    assert train(tmp_path, scene, replace(QUICK, epochs=1)).epochs == 0
    with pytest.raises(ModelError, match=r"refiner\.sigma_m"):
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
    windows = draw_windows(scene.train, scene.area, 18.0, 24, "uniform", (0,))
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


def answers(folder: Path, scene: Scene) -> tuple[RefinerOutput, Windows, NDArray[np.float64], NDArray[np.float64]]:
    """Output for held-out photos with known headings, their windows, errors of the most probable pixels and of the
    best constant guess, metres.
    """
    refiner, info = load_refiner(folder)
    size, side_m = info.config.pixels, info.window_m
    windows = draw_windows(scene.val, scene.area, side_m, size, "uniform", (99,))
    pairs = Pairs.read(scene, scene.val, windows)
    known, noise = torch.ones(len(pairs)) > 0, torch.Generator().manual_seed(3)
    batch = prepare(pairs, info.config.rolls, known, noise, images=False, augment=False)
    with torch.inference_mode():
        output = refiner.match(refiner.ground(batch.photos), refiner.aerial(batch.windows), batch.mask)
    best = output.logits.flatten(1).argmax(1).numpy()
    found = np.stack([best % size, best // size], 1) + 0.5
    place = own_places(windows, scene.val)
    error = np.hypot(*((found / size - 0.5 - place) * side_m).T)
    return output, windows, error, constant_error(place * side_m)


LEARNING = RefinerTrainingConfig(epochs=18, batch_size=16, learning_rate=3e-3, offsets="uniform", heading_known=1.0)


@pytest.mark.slow
def test_a_tiny_refiner_learns_the_place_from_200_photos_and_how_sure_it_is(tmp_path: Path) -> None:
    scene = Scene.draw(val=60, side=5)
    train(tmp_path, scene, LEARNING)
    held = replace(scene, val=Scene.draw(train=1, val=300, seed=5).val)  # the same map
    output, windows, error, constant = answers(tmp_path, held)
    assert np.median(error) < 0.15 * windows.side_m
    assert gain_over(error, constant).low > 0.1 * windows.side_m
    info = read_refiner_info(tmp_path)
    assert info.temperature != 1.0
    fixes = to_fixes(output, windows, info.temperature, info.heading_temperature)
    for share, tolerance in ((0.68, 0.08), (0.95, 0.05)):
        radii = [getattr(fix, f"radius_{100 * share:.0f}_m") for fix in fixes if fix]
        away = [
            geodesic_distance(fix.latitude, fix.longitude, *position)
            for fix, position in zip(fixes, zip(held.val.latitude, held.val.longitude, strict=True), strict=True)
            if fix
        ]
        assert (np.array(away) <= np.array(radii)).mean() == pytest.approx(share, abs=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("control", ["black", "shuffled"])
def test_without_the_photo_it_is_no_better_than_the_best_constant_guess(tmp_path: Path, control: str) -> None:
    scene = Scene.draw(train=150, side=5).with_control(control)
    train(tmp_path, scene, replace(LEARNING, epochs=6))
    _, _, error, constant = answers(tmp_path, scene)
    assert gain_over(error, constant).low <= 0
