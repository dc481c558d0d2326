"""Training of UnifyGeo on pairs: batches, augmentation, losses that are off, resume, and learning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from jzi.datasets import cvusa, kitti, vigor
from jzi.encode.photo.pair_images import PairImages
from jzi.errors import ConfigError, PairsError
from jzi.evaluate.pair_protocol import PairOptions, evaluate_pairs, most_probable
from jzi.refine.config import UnifyGeoConfig
from jzi.refine.networks.files import RefinerInfo, load_refiner
from jzi.refine.networks.model import UnifyGeo
from jzi.refine.outputs import RefinerOutput
from jzi.store.photos.pairs import PairDataset
from jzi.train.config.pairs import PairTrainingConfig
from jzi.train.pairs.pair_data import (
    distinct_batches,
    draw_views,
    neighbours_by_position,
    neighbours_by_similarity,
    order_photos,
    places_in_views,
    prepare,
    read_ahead,
)
from jzi.train.pairs.pair_task import PairTask, check_metric, train_pairs
from jzi.train.run import TrainingRun
from tests import pair_trees as trees

CONFIG = UnifyGeoConfig(
    ground_height=32, ground_width=64, photo_width=64, aerial=64, widths=(8, 8, 16, 16), depths=(1, 1, 1), bins=4,
    layer_scale=1.0,
)  # fmt: skip
TRAINING = PairTrainingConfig(epochs=2, batch_size=4, val_photos=4, neighbours=2, warmup=0.0, learning_rate=1e-3)


def small(tmp_path: Path, **arguments: Any) -> PairDataset:
    """A split of a small VIGOR."""
    trees.write_vigor(tmp_path / "vigor", **{"cities": ("Chicago", "Seattle"), **arguments})
    return vigor.read(tmp_path / "vigor", "same", "train")


def task(dataset: PairDataset, folder: Path, config: PairTrainingConfig, network: UnifyGeoConfig = CONFIG) -> PairTask:
    torch.manual_seed(0)
    info = RefinerInfo(kind="unifygeo", config=network, window_m=70.0)
    run = TrainingRun(folder, {}, weights="refiner.safetensors")
    return PairTask(Accelerator(cpu=True), UnifyGeo(network), dataset, dataset, config, network.aligned, info, run)


# Batches


@pytest.mark.parametrize("mined", [True, False])
def test_no_batch_has_two_photos_of_one_aerial_image(mined: bool) -> None:
    rng = np.random.default_rng(0)
    own = rng.integers(0, 30, 90)
    own[:30] = np.arange(30)
    neighbours = np.stack([rng.permutation(29)[:8] for _ in own]).astype(np.int32) if mined else None
    order = order_photos(90, own, neighbours, 16, 4, (0, 1))
    assert sorted(order) == list(range(90))
    batches = distinct_batches(order, own, 16)
    assert len(batches) == 6
    for batch in batches:
        assert len(set(own[batch])) == len(batch) >= 1
    np.testing.assert_array_equal(order, order_photos(90, own, neighbours, 16, 4, (0, 1)))
    assert (order != order_photos(90, own, neighbours, 16, 4, (0, 2))).any()


def test_neighbours_are_near_at_first_and_similar_later(tmp_path: Path) -> None:
    dataset = small(tmp_path, grid=4)
    references = np.arange(len(dataset.references))
    near = neighbours_by_position(dataset, references, 3)
    assert set(near[0]) == {1, 4, 5}  # beside, above, and diagonally
    query = torch.eye(4)[:3]
    reference = torch.tensor([[1.0, 0.9, 0, 0], [0, 1, 0, 0], [0.5, 0.1, 1, 0], [0.4, 0, 0, 1]])
    similar = neighbours_by_similarity(query, reference, np.array([0, 1, 2]), 2)
    assert similar.tolist()[0] == [2, 3]  # not its own, which is more similar
    assert similar.tolist()[1] == [0, 2]


def test_places_in_the_aerial_images_of_a_batch_are_where_they_show_the_photos(tmp_path: Path) -> None:
    dataset = small(tmp_path, photos=12)
    photos = np.arange(len(dataset))
    places = places_in_views(dataset, photos)
    own = places[photos, photos]
    side = dataset.side_m[dataset.positive][:, None]
    np.testing.assert_allclose(own * side * (1, -1), dataset.offset, atol=1e-9)
    assert (np.abs(own) < 0.5).all()
    for photo, semi in ((photo, semi) for photo in photos for semi in range(3)):
        for other in np.flatnonzero(dataset.positive == dataset.semi[photo, semi]):
            expected = dataset.semi_offset[photo, semi] / side[other] * (1, -1)
            np.testing.assert_allclose(places[photo, other], expected, atol=1e-9)
    chicago = np.array(["Chicago" in str(path) for path in dataset.photos])
    assert (np.abs(places[chicago][:, ~chicago]) > 1000).any(-1).all()


def test_semi_positives_are_no_negatives(tmp_path: Path) -> None:
    dataset = small(tmp_path, cities=("Chicago",), photos=30)
    reference = dataset.semi[0, 0]
    # two photos: one of the positive of photo 0, one of its semi-positive
    pair = dataset.take(np.array([0, 0]))
    pair = replace(pair, positive=np.array([dataset.positive[0], reference]),
                   offset=np.stack([dataset.offset[0], dataset.semi_offset[0, 0]]))  # fmt: skip
    training = task(pair, tmp_path / "run", replace(TRAINING, decoder=0, matching=0, rerank=0, label_smoothing=0.0))
    batch = next(read_ahead(pair, training.images, [np.arange(2)], True))
    query = torch.nn.functional.normalize(torch.randn(2, 16), dim=1)
    loss = training._retrieval_loss((query, -query, torch.tensor(10.0)), batch)
    assert float(loss) == pytest.approx(0, abs=1e-6)  # nothing is left to compare with
    far = replace(pair, positive=np.array([dataset.positive[0], 0]), semi=np.full((2, 3), -1),
                  position=np.full_like(pair.position, np.nan))  # fmt: skip
    training.train = far
    assert float(training._retrieval_loss((query, -query, torch.tensor(10.0)), batch)) > 1


def test_photos_that_cannot_be_read_are_left_out_and_named(tmp_path: Path) -> None:
    dataset = small(tmp_path)
    Path(str(dataset.photos[1])).write_bytes(b"no image")
    Path(str(dataset.references[dataset.positive[2]])).write_bytes(b"no image")
    images = PairImages(dataset, (32, 64), 64, 64)
    batch = next(read_ahead(dataset, images, [np.arange(3)], True))
    assert batch.index.tolist() == [0]
    assert len(images.unreadable) == 2


# Augmentation


def test_a_flipped_and_turned_pair_shows_the_same_place_and_stays_aligned(tmp_path: Path) -> None:
    """The colours at the place in the window are those at the foot of the panorama, whatever was done to both."""
    trees.write_vigor(tmp_path, cities=("Chicago",), photos=40, pixels=128, panorama_width=256)
    dataset = vigor.read(tmp_path, "same", "train")
    images = PairImages(dataset, (128, 256), 256, 128)
    batch = next(read_ahead(dataset, images, [np.arange(16)], True))
    generator = torch.Generator().manual_seed(1)
    plain = prepare(batch, dataset, 1, generator, torch.device("cpu"), augment=False, aligned=True)
    for seed in range(3):
        generator.manual_seed(seed)
        with pytest.MonkeyPatch.context() as patch:  # colours stay as they are
            patch.setattr("jzi.train.pairs.pair_data.jitter_images", lambda images, *_: images)
            moved = prepare(batch, dataset, 1, generator, torch.device("cpu"), augment=True, aligned=True)
        assert not torch.equal(moved.windows, plain.windows)
        assert torch.equal(moved.truth.heading_deg % 360, torch.zeros(16))
        for each in (plain, moved):
            # 10 m from the camera to the north, east, south and west
            quarters = torch.tensor([[0.0, -1.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
            row = 64 + 5
            for photo in range(16):
                place = each.truth.place[photo]
                below = (np.linspace(0.05, 1, 64) * np.pi / 2 * 0.97 + 0.04)[row - 64]
                share = 1.6 / np.tan(below) / float(dataset.side_m[0])
                for quarter, direction in enumerate(quarters):
                    col_row = ((place + share * direction + 0.5) * 128).floor().long()
                    if (col_row < 0).any() or (col_row >= 128).any():
                        continue
                    column = (128 + 64 * quarter) % 256
                    seen = each.photos.pixels[photo, :, row, column]
                    shown = each.windows[photo, :, col_row[1], col_row[0]]
                    assert (seen - shown).abs().max() < 0.6, (photo, quarter)


def test_panoramas_of_unknown_orientation_are_rolled_and_say_where(tmp_path: Path) -> None:
    dataset = small(tmp_path)
    images = PairImages(dataset, (32, 64), 64, 64)
    batch = next(read_ahead(dataset, images, [np.arange(3)], False))
    assert batch.expected.isnan().all()
    generator = torch.Generator().manual_seed(0)
    aligned = prepare(batch, dataset, 4, generator, torch.device("cpu"), augment=False, aligned=True)
    rolled = prepare(batch, dataset, 4, generator, torch.device("cpu"), augment=False, aligned=False)
    assert not rolled.photos.log_heading.any()  # nothing is excluded
    for photo in range(3):
        columns = round(float(-rolled.truth.heading_deg[photo]) * 64 / 360)
        back = aligned.photos.pixels[photo].roll(columns, -1)
        torch.testing.assert_close(rolled.photos.pixels[photo], back)


def test_views_of_centred_images_are_shifted_at_random_and_anew_in_each_epoch(tmp_path: Path) -> None:
    trees.write_cvusa(tmp_path, train=40)
    dataset = cvusa.read(tmp_path, "train")
    with pytest.raises(PairsError, match="centre"):
        check_metric(dataset, TRAINING)
    cropped = replace(dataset, view_side_m=0.75 * dataset.side_m[0], shift_m=0.125 * dataset.side_m[0])
    check_metric(cropped, TRAINING)
    first, second = draw_views(cropped, (0, 0)), draw_views(cropped, (0, 1))
    places = first.in_view()[0] / first.view_side_m
    assert (np.abs(places) <= 1 / 6 + 1e-9).all()
    assert np.abs(places).mean() > 0.05  # not the centre
    assert (first.view != second.view).any()
    np.testing.assert_array_equal(first.view, draw_views(cropped, (0, 0)).view)


def test_views_of_kitti_are_drawn_along_and_across_the_heading(tmp_path: Path) -> None:
    trees.write_kitti(tmp_path, photos=3)
    dataset = draw_views(kitti.read(tmp_path, "train"), (0, 0))
    place, heading = dataset.in_view()
    assert (np.abs(heading - 90) <= 10).all()
    assert np.hypot(*place.T).max() <= 20 * np.sqrt(2)
    assert np.abs(place).max() > 1


# Losses


def test_losses_of_weight_0_train_nothing_that_only_they_need(tmp_path: Path) -> None:
    dataset = small(tmp_path)
    names = {}
    for case, config in {
        "both": TRAINING,
        "retrieval": replace(TRAINING, decoder=0.0, matching=0.0, rerank=0.0),
        "metric": replace(TRAINING, retrieval=0.0),
    }.items():
        network = task(dataset, tmp_path / case, config).network
        names[case] = {name for name, value in network.named_parameters() if value.requires_grad}
        batches = task(dataset, tmp_path / case, config)
        part = next(batches.batches(0, 0)).parts[0]
        loss = batches.loss(batches.network, part)
        loss.backward()
        missing = {name for name, value in batches.network.named_parameters()
                   if value.requires_grad and value.grad is None}  # fmt: skip
        assert not missing
    assert names["both"] > names["retrieval"]
    assert names["both"] > names["metric"]
    assert "log_scale" in names["retrieval"] - names["metric"]
    assert any("decoder" in name for name in names["metric"] - names["retrieval"])
    assert not any("aggregator" in name for name in names["metric"])
    with pytest.raises(ConfigError, match="nothing to train"):
        PairTrainingConfig(retrieval=0, decoder=0, matching=0)
    with pytest.raises(ConfigError, match=r"refiner\.rerank"):
        PairTrainingConfig(decoder=0, matching=0)


def test_the_weighted_losses_are_those_that_are_logged(tmp_path: Path) -> None:
    dataset = small(tmp_path)
    training = task(dataset, tmp_path / "run", replace(TRAINING, augment=False))
    part = next(training.batches(0, 0)).parts[0]
    loss = training.loss(training.network, part)
    decoder, retrieval, matching, rerank, count = training.sums.tolist()
    assert count == 1
    assert float(loss.detach()) == pytest.approx(decoder + 100 * retrieval + 10 * matching + rerank, rel=1e-5)
    assert decoder == pytest.approx(np.log(64 * 64), rel=0.2)  # of a density that is nearly flat


# Runs


def test_the_values_of_the_gradient_are_clipped_and_not_its_norm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in Sample4Geo, from which the setting is."""
    clipped = []
    monkeypatch.setattr(Accelerator, "clip_grad_value_", lambda _, parameters, value: clipped.append(value))
    dataset, config = small(tmp_path), replace(TRAINING, epochs=1, augment=False, sampling="random")
    train_pairs(
        dataset, dataset.take(np.arange(0)), lambda: UnifyGeo(CONFIG), tmp_path / "run", config,
        aligned=True, fingerprint={}, progress=False,
    )  # fmt: skip
    assert set(clipped) == {100.0}


@pytest.mark.slow
def test_an_interrupted_training_resumes_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = small(tmp_path, photos=16)
    config = replace(TRAINING, epochs=3, mine_every=1, neighbours=2, save_every_s=1e-9)
    arguments: dict[str, Any] = {"aligned": True, "fingerprint": {"kind": "test"}, "progress": False}

    def run(folder: Path) -> list[dict[str, float]]:
        train_pairs(dataset, dataset.take(np.arange(4)), lambda: UnifyGeo(CONFIG), folder, config, **arguments)
        return torch.load(folder / "train" / "state.pt", weights_only=True)["metrics"]

    whole = run(tmp_path / "whole")
    original, steps = PairTask.loss, 0

    def interrupted(self: PairTask, model: torch.nn.Module, part: Any) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps == 6:
            raise KeyboardInterrupt
        return original(self, model, part)

    monkeypatch.setattr(PairTask, "loss", interrupted)
    monkeypatch.setattr(PairTask, "check_every", 1)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "other")
    monkeypatch.undo()
    resumed = run(tmp_path / "other")
    strip = [[{k: v for k, v in epoch.items() if k not in ("seconds", "samples_per_s")} for epoch in each]
             for each in (whole, resumed)]  # fmt: skip
    assert strip[0] == strip[1]
    weights = [load_refiner(tmp_path / name)[0].state_dict() for name in ("whole", "other")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_most_probable_pixel_is_metres_right_and_up_of_the_centre() -> None:
    logits = torch.zeros(1, 8, 8)
    logits[0, 1, 6] = 1.0
    output = RefinerOutput(logits, (), torch.ones(1, 8, 8, dtype=torch.bool), torch.zeros(1, 1))
    np.testing.assert_allclose(most_probable(output, np.array([80.0])), [[25.0, 25.0]])


def test_evaluation_leaves_out_what_cannot_be_read(tmp_path: Path) -> None:
    trees.write_vigor(tmp_path, cities=("Chicago",), photos=12)
    dataset = vigor.read(tmp_path, "same", "test")
    torch.manual_seed(0)
    network = UnifyGeo(CONFIG).eval()
    whole = evaluate_pairs(network, dataset, PairOptions(batch_size=4))
    assert whole.photos == 6
    assert whole.retrieval.references == 9
    assert whole.figures().keys() == {"retrieval", "final", "localized"}
    Path(str(dataset.photos[0])).write_bytes(b"no image")
    gone = dataset.positive[1]
    Path(str(dataset.references[gone])).write_bytes(b"no image")
    part = evaluate_pairs(network, dataset, PairOptions(batch_size=4))
    left = int(((dataset.positive != gone) & (np.arange(6) > 0)).sum())
    assert part.photos == left
    assert part.retrieval.references == 8
    assert len(part.unreadable) == 2
    alone = evaluate_pairs(network, dataset, PairOptions(batch_size=4, locates=False, rerank=False))
    assert alone.retrieval.reranked is None
    assert alone.localized is None
    assert alone.final.mean.value > 0


def test_a_network_of_headings_measures_them_on_rolled_panoramas(tmp_path: Path) -> None:
    trees.write_vigor(tmp_path, cities=("Chicago",), photos=12)
    dataset = vigor.read(tmp_path, "same", "test")
    torch.manual_seed(0)
    network = UnifyGeo(replace(CONFIG, aligned=False, circular=True)).eval()
    heading = np.arange(6) * 50.0
    evaluation = evaluate_pairs(network, dataset, PairOptions(batch_size=4, heading=heading))
    assert evaluation.heading is not None
    assert evaluate_pairs(network, dataset, PairOptions(batch_size=4)).heading is None


def test_kitti_is_measured_along_and_across_the_heading(tmp_path: Path) -> None:
    trees.write_kitti(tmp_path)
    dataset = kitti.read(tmp_path, "test1")
    torch.manual_seed(0)
    network = UnifyGeo(replace(CONFIG, aligned=False)).eval()
    evaluation = evaluate_pairs(network, dataset, PairOptions(retrieves=False, rerank=False, batch_size=4))
    assert evaluation.figures().keys() == {"localized", "heading", "lateral", "longitudinal"}
    Path(str(dataset.references[0])).write_bytes(b"no image")
    assert evaluate_pairs(network, dataset, PairOptions(retrieves=False, rerank=False)).photos == 2
