"""Training the refiner that looks along rays: its losses, the places of its windows, resuming, and learning."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from jzi.refine.info import RefinerInfo
from jzi.refine.networks.files import load_refiner
from jzi.refine.networks.rays import RayRefiner
from jzi.refine.outputs import PhotoInput
from jzi.store.geometry.pyramid import Pyramid
from jzi.tests.ray_scene import REFINE, SMALL, RayScene
from jzi.train.config.refiner import RefinerTrainingConfig
from jzi.train.loop import TrainingLoop
from jzi.train.refine.ray_images import Mosaic
from jzi.train.refine.ray_losses import WRONG, RayPairs, place_weights, ray_losses
from jzi.train.refine.rays import RayTask
from jzi.train.refine.refine_data import Pairs, prepare
from jzi.train.refine.refine_pairs import draw_windows
from jzi.train.refine.refiner import RefinerReport, train_refiner

QUICK = RefinerTrainingConfig(epochs=2, batch_size=6, learning_rate=1e-3, sigma_m=2.0, offsets="uniform")


class Killed(BaseException):
    """Stands for a kill signal: the code under test must not catch it."""


def train(folder: Path, scene: RayScene, config: RefinerTrainingConfig = QUICK) -> RefinerReport:
    info = RefinerInfo(kind="rays", config=SMALL, window_m=REFINE.window_m, heading_temperature=1.0)
    make = lambda: RayRefiner(SMALL)  # noqa: E731
    return train_refiner(
        scene, make, folder, REFINE, config, info, fingerprint={}, progress=False, make_task=RayTask
    )  # fmt: skip


# Losses


def draw(known: list[bool], rolls: int = 12, shown: Tensor | None = None) -> RayPairs:
    count = len(known)
    shown = torch.eye(count) > 0 if shown is None else shown
    heading = torch.arange(count) * 31.0
    return RayPairs.draw(heading, torch.tensor(known), shown, rolls, torch.Generator().manual_seed(0))


def test_photos_are_compared_with_wrong_headings_only_if_theirs_is_withheld() -> None:
    pairs = draw([True, False, True])
    own = pairs.photo == pairs.window
    assert own.sum() == 3 + WRONG
    assert (pairs.photo[own][3:] == 1).all()
    assert torch.equal(pairs.roll[:3], torch.tensor([0, 1, 2]))
    assert (pairs.roll[own][3:] != 1).all()
    assert torch.allclose(pairs.log_weight[own][3:].exp().sum(), torch.tensor(11.0))  # they stand for all wrong ones
    other = pairs.photo != pairs.window
    assert torch.allclose(pairs.log_weight[other].exp(), torch.tensor([1.0, 12.0, 1.0]))


def test_a_window_that_shows_the_place_is_no_negative() -> None:
    shown = torch.eye(3) > 0
    shown[0, 1] = True
    pairs = draw([True, True, True], shown=shown)
    first = (pairs.photo == 0) & (pairs.window == 1)
    assert pairs.log_weight[first].isneginf().all() and pairs.log_weight[~first].isfinite().all()
    assert len(draw([True])) == 1  # a batch of one photo has no other window


def test_the_loss_of_known_headings_is_the_cross_entropy_over_places() -> None:
    torch.manual_seed(0)
    pairs = draw([True, True])
    scores, mask = torch.randn(len(pairs), 3, 3), torch.ones(2, 3, 3, dtype=torch.bool)
    mask[0, 0] = False
    points = torch.tensor([[0.5, 0.5], [2.5, 2.5], [4.5, 4.5]])
    weights = place_weights(torch.tensor([[4.5, 2.5], [0.5, 0.5]]), points, mask, 1.0)
    assert weights.sum((1, 2)).tolist() == pytest.approx([1, 1])
    assert weights[0].argmax() == 5 and (weights[0, 0] == 0).all()  # row 1, column 2
    decoder, rerank = ray_losses(scores, mask, weights, pairs)
    flat = scores.masked_fill(~mask[pairs.window], -math.inf).flatten(1)
    log_share = flat[:2].log_softmax(1).masked_fill(~mask.flatten(1), 0)
    expected = -(weights.flatten(1) * log_share).sum(1)
    assert decoder == pytest.approx(float(expected.mean()), rel=1e-5)
    both = [torch.cat([flat[n], flat[2 + n]]).logsumexp(0) - flat[n].logsumexp(0) for n in (0, 1)]
    assert rerank - decoder == pytest.approx(float(sum(both) / 2), rel=1e-4)


# Windows


def test_a_window_is_cut_from_where_it_lies_on_the_map() -> None:
    area = Pyramid.around(48.2, 16.37, 64.0, levels=1)
    row, col = np.meshgrid(np.arange(128), np.arange(128), indexing="ij")
    mosaic = Mosaic(area, 0.5, np.stack([row, col, col], -1).astype(np.uint8), np.ones((128, 128), bool))
    west, _, _, north = area.bounds
    image, mask = mosaic.cut(west + 20.0, north - 10.0, 8)
    assert (image[0, 0].tolist(), image[-1, -1].tolist()) == ([16, 36, 36], [23, 43, 43])
    assert mask.all()
    image, mask = mosaic.cut(west + 1.0, north - 10.0, 8)
    assert not mask[:, :2].any() and mask[:, 2:].all() and (image[:, :2] == 0).all()
    assert image[0, 2].tolist() == [16, 0, 0]
    assert not mosaic.cut(west - 100.0, north, 8)[1].any()
    assert mosaic.has_imagery(np.array([west + 1, west - 1]), np.array([north - 1, north - 1])).tolist() == [
        True,
        False,
    ]


# Runs


def metrics(folder: Path) -> list[dict[str, float]]:
    timings = ("seconds", "samples_per_s")
    lines = (folder / "train" / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in timings} for line in lines]


def test_a_killed_run_goes_on_to_the_same_losses_and_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = RayScene.draw(12, 4)
    report = train(tmp_path / "whole", scene)
    assert (report.epochs, report.train, report.val) == (2, 12, 4)
    step, done = TrainingLoop.step, []

    def killed(*args: object) -> Tensor:
        if len(done) == 3:
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


@pytest.mark.slow
def test_a_tiny_refiner_learns_the_place_and_the_heading(tmp_path: Path) -> None:
    scene = RayScene.draw(200, 60)
    config = replace(QUICK, epochs=4, batch_size=20, learning_rate=5e-3)
    train(tmp_path, scene, config)
    refiner, _ = load_refiner(tmp_path)
    windows = draw_windows(scene.val, scene.area, REFINE.window_m, SMALL.pixels, "uniform", (99,))
    pairs = Pairs.read(scene, scene.val, windows)
    batch = prepare(pairs, SMALL.rolls, torch.zeros(len(pairs)) > 0, None, images=True, augment=False)
    assert isinstance(batch.photos, PhotoInput) and (batch.photos.log_heading == 0).all()
    with torch.inference_mode():
        output = refiner.match(refiner.ground(batch.photos), refiner.aerial(batch.windows), batch.mask)
    found = output.logits.flatten(1).argmax(1)
    place = torch.stack([found % SMALL.pixels, found // SMALL.pixels], 1) + 0.5
    error = (place - (batch.truth.place + 0.5) * SMALL.pixels).norm(dim=1) * SMALL.token_m
    heading = output.heading_posterior().argmax(1) * (360 / SMALL.bins)
    away = ((heading - batch.truth.heading_deg + 180) % 360 - 180).abs()
    assert error.median() < 3.0  # of windows of 24 m; a constant guess has 8 m
    assert away.median() < 15.0  # headings are 30 degrees apart
