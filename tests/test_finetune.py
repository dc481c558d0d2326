"""Fine-tuning equals the naive implementation at less cost, resumes exactly, and never loses the best encoder."""

from __future__ import annotations

import copy
import json
import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file

import jzi.train.encoders.finetune as module
from jzi.decode.config import DecoderConfig
from jzi.decode.decoder import ZoomDecoder
from jzi.decode.model import ZoomModel
from jzi.encode import device as device_module
from jzi.encode.encoders.encoder import Encoder
from jzi.encode.photo.augment import DRAWS, augment_photos, augment_tiles, drop_parts
from jzi.encode.rasters.imagery import Imagery
from jzi.errors import ConfigError, ImageryError, ModelError, TrainingError
from jzi.retrieve.heads import HeadsConfig, SimilarityHeads
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.photos.photo_table import PhotoTable, read_photo_table
from jzi.train.config.encoders import FinetuneConfig
from jzi.train.encoders.area import TrainingArea
from jzi.train.encoders.encoder import Part
from jzi.train.encoders.finetune import FinetuneTask, finetune
from jzi.train.encoders.networks import JointModel
from jzi.train.encoders.photos import PhotoReader
from jzi.train.loop import TrainingLoop
from jzi.train.run import TrainingRun

SIZE = 28
SMALL = DecoderConfig(layers=1, heads=2)
QUICK = FinetuneConfig(epochs=3, batch_size=8, learning_rate=1e-3, blocks=1, precision="no")


@dataclass
class City:
    """A map, photos and a tiny encoder."""

    raster: Path
    pyramid: Pyramid
    photos: Path
    encoder_folder: Path
    folder: Path

    def encoder(self) -> Encoder:
        return Encoder.load(self.encoder_folder, image_size=SIZE, device="cpu")

    def imagery(self) -> Imagery:
        return Imagery([self.raster], self.pyramid)

    def table(self) -> PhotoTable:
        return read_photo_table(self.photos).inside(self.pyramid)

    def run(self, name: str = "finetuned", config: FinetuneConfig = QUICK, areas: int = 1):
        return finetune([(self.imagery(), self.table())] * areas, self.encoder(), self.folder / name, SMALL, config)

    def weights(self, name: str = "finetuned") -> dict[str, torch.Tensor]:
        """Weights of encoder and decoder."""
        folder = self.folder / name
        return {**load_file(folder / "encoder" / "model.safetensors"), **load_file(folder / "decoder.safetensors")}

    def metrics(self, name: str = "finetuned") -> list[dict]:
        lines = (self.folder / name / "train" / "metrics.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if k not in ("seconds", "samples_per_s")} for line in lines]


@pytest.fixture
def city(tmp_path: Path, town_raster: Path, pyramid: Pyramid, photo_folder: Path, encoder_folder: Path) -> City:
    return City(town_raster, pyramid, photo_folder, encoder_folder, tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, town_folder: Path, pyramid: Pyramid, encoder_folder: Path) -> City:
    """A city with a run that nothing interrupted, "whole"."""
    raster, photos, folder = town_folder / "map.tif", town_folder / "photos", tmp_path_factory.mktemp("whole")
    city = City(raster, pyramid, photos, encoder_folder, folder)
    city.run("whole")
    return city


class Killed(BaseException):
    """Stands for a kill signal: the code under test must not catch it."""


# Equal to the naive implementation


def start(city: City, config: FinetuneConfig) -> FinetuneTask:
    """A task that is ready for its first step."""
    config = replace(config, accumulation=1)
    encoder = city.encoder()
    torch.manual_seed(0)
    decoder = ZoomDecoder(replace(SMALL, width=encoder.width, dropout=0.0))
    levels = city.pyramid.levels
    heads = SimilarityHeads(HeadsConfig(encoder.width, dropout=0.0, spaces=levels)) if config.contrast else None
    joint = JointModel(encoder, decoder, config.blocks, heads, checkpointing=config.checkpointing)
    accelerator = module.make_accelerator(config, city.folder)
    options = {"device": torch.device("cpu"), "folder": city.folder, "val_photos": 100, "cells": config.contrast > 0}
    area = TrainingArea.load(city.imagery(), city.table(), SIZE, **options)
    return FinetuneTask(accelerator, joint, encoder, [area], config, TrainingRun(city.folder / "run", {}))


def plain_way(city: City, run: FinetuneTask, index: torch.Tensor, seed: int) -> dict[str, torch.Tensor]:
    """Loss and all gradients if every tile of every photo is encoded with the whole transformers model."""
    encoder, area = city.encoder(), run.areas[0]
    encoder.model.requires_grad_(True)
    decoder = ZoomDecoder(run.network.decoder.config)
    decoder.load_state_dict(run.network.decoder.state_dict())
    reader = PhotoReader(encoder.photo_shape)
    photos = torch.from_numpy(np.stack(list(reader.read(area.train.paths[index], 8))))
    pixels = photos.permute(0, 3, 1, 2).float() / 255
    tiles, actions = area.train.tiles[index], area.train.actions[index]  # (photo, step)
    distinct = tiles.unique()
    images = area.images[distinct].permute(0, 3, 1, 2).float() / 255
    generator = torch.Generator().manual_seed(seed)
    own = torch.rand(len(photos), DRAWS, generator=generator)
    if run.config.augment:
        halves = torch.rand(len(photos), 2, DRAWS, generator=generator)
        each = torch.rand(len(distinct), DRAWS, generator=generator)
        pixels = augment_photos(pixels, own)
        left, right = pixels.chunk(2, dim=3)
        pixels = torch.cat([drop_parts(left, halves[:, 0]), drop_parts(right, halves[:, 1])], dim=3)
        images = torch.where((distinct == 0)[:, None, None, None], images, augment_tiles(images, each))

    crops = None
    if run.config.contrast:
        row, col = city.pyramid.path_to_tile(actions.numpy())
        crops = area.cells[torch.from_numpy(row * area.cells.cells + col)].permute(0, 3, 1, 2).float() / 255
        if run.config.augment:
            numbers = torch.from_numpy(row * area.cells.cells + col)
            draws = torch.rand(len(numbers.unique()), DRAWS, generator=generator)
            crops = augment_tiles(crops, draws[numbers.unique(return_inverse=True)[1]])

    def embed(images: torch.Tensor) -> torch.Tensor:
        mean, std = (torch.tensor(values)[:, None, None] for values in (encoder.mean, encoder.std))
        return encoder.model((images - mean) / std)[:, 0]

    query = torch.stack([embed(half) for half in pixels.chunk(2, dim=3)]).mean(0)
    seen = torch.stack([images[(distinct == tile).nonzero()[0, 0]] for tile in tiles.flatten()])
    logits = decoder(query, embed(seen).unflatten(0, tiles.shape), actions)
    loss = F.cross_entropy(logits.flatten(0, 1), actions.flatten(), label_smoothing=0.1)
    gradients = {}
    if crops is not None:
        heads = copy.deepcopy(run.network.heads).train()
        photo_codes = heads.photo_codes(query)
        levels = [embed(seen[step :: tiles.shape[1]]) for step in range(1, tiles.shape[1])] + [embed(crops)]
        keys = [tiles[:, step] for step in range(1, tiles.shape[1])]
        keys.append(torch.from_numpy(row * area.cells.cells + col))
        contrasts = []
        for level, (embedding, key) in enumerate(zip(levels, keys, strict=True)):
            similarity = photo_codes[:, level] @ heads.place_codes(embedding).T  # (photo, photo's place)
            places = {int(number): photo for photo, number in enumerate(key)}  # one photo of each place
            terms = []
            for photo, number in enumerate(key.tolist()):
                each = similarity[photo, list(places.values())]
                terms.append(each.logsumexp(0) - similarity[photo, places[number]])
            others = []
            for number, photo in places.items():
                column = similarity[:, photo].log_softmax(0)
                others.append(-column[key == number].mean())
            contrasts.append((torch.stack(terms).mean() + torch.stack(others).mean()) / 2)
        loss = loss + run.config.contrast * torch.stack(contrasts).mean()
    loss.backward()
    gradients |= {f"model.{name}": value.grad for name, value in encoder.model.named_parameters()}
    gradients |= {f"decoder.{name}": value.grad for name, value in decoder.named_parameters()}
    if crops is not None:
        gradients |= {f"heads.{name}": value.grad for name, value in heads.named_parameters()}
    return {"loss": loss.detach(), **gradients}


def our_way(run: FinetuneTask, index: torch.Tensor, seed: int) -> dict[str, torch.Tensor]:
    run.network.train()
    run.network.zero_grad()
    photos = list(run.reader.read(run.areas[0].train.paths[index], 8))
    loss = run.part_loss(run.network, Part(0, index, photos, (0, 0, 0)), torch.Generator().manual_seed(seed))
    loss.backward()
    trained = {name: value.grad for name, value in run.network.named_parameters() if value.requires_grad}
    return {"loss": loss.detach(), **trained}


@pytest.mark.parametrize("blocks", [0, 1, 2, "all"])
@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients_are_those_of_the_plain_way(city, blocks, augment, checkpointing) -> None:
    config = replace(QUICK, blocks=blocks, augment=augment, checkpointing=checkpointing)
    run = start(city, config)
    for seed in (1, 2, 3):
        index = torch.randperm(len(run.areas[0].train), generator=torch.Generator().manual_seed(seed))[:12]
        ours, plain = our_way(run, index, seed), plain_way(city, run, index, seed)
        for name, value in ours.items():
            torch.testing.assert_close(
                value, plain[name], atol=1e-6, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
            )


@pytest.mark.parametrize("augment", [False, True])
def test_the_contrast_and_its_gradients_are_those_of_a_plain_computation(city, augment) -> None:
    run = start(city, replace(QUICK, blocks="all", augment=augment, contrast=0.7))
    for seed in (1, 2):
        index = torch.randperm(len(run.areas[0].train), generator=torch.Generator().manual_seed(seed))[:16]
        index = torch.cat([index, index[:2]])  # of one cell
        assert len(run.areas[0].train.tiles[index, 1].unique()) < 16  # others share a tile
        ours, plain = our_way(run, index, seed), plain_way(city, run, index, seed)
        assert {"heads.log_scale", "decoder.output_head.weight"} <= ours.keys()
        for name, value in ours.items():
            torch.testing.assert_close(
                value, plain[name], atol=2e-6, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
            )


def test_each_distinct_tile_is_encoded_once(city) -> None:
    run = start(city, replace(QUICK, augment=False))
    index = torch.arange(16)
    photos = list(run.reader.read(run.areas[0].train.paths[index], 8))
    inputs, tiles, _ = run.inputs(Part(0, index, photos, (0, 0, 0)), torch.Generator())
    distinct = len(run.areas[0].train.tiles[index].unique())
    assert len(inputs) == 2 * 16 + distinct < 2 * 16 + 3 * 16
    assert tiles.shape == (16, 3) and int(tiles.max()) == distinct - 1


def test_the_contrast_counts_in_validation(city) -> None:
    config = replace(QUICK, blocks="all", augment=False, contrast=0.7)
    run, zoom = start(city, config), start(city, replace(config, contrast=0.0))
    zoom.network.load_state_dict(run.network.state_dict(), strict=False)
    area, encoder, heads = run.areas[0], run.encoder, run.network.heads.eval()
    photos = torch.from_numpy(np.stack(list(run.reader.read(area.val.paths, 8))))
    row, col = city.pyramid.path_to_tile(area.val.actions.numpy())
    cell = torch.from_numpy(row * area.cells.cells + col)
    squares = encoder.squares(encoder.to_unit(photos))
    with torch.inference_mode():
        query = torch.stack([encoder.embed(encoder.normalise(half)) for half in squares.unbind(1)]).mean(0)
        codes, steps = heads.photo_codes(query), area.val.tiles[:, 1:].unbind(1)
        places = [encoder.encode_tiles(area.images[step]) for step in steps] + [encoder.encode_tiles(area.cells[cell])]
        place_codes = [heads.place_codes(embedding) for embedding in places]
    losses = []
    for level, key in enumerate([*steps, cell]):
        similarity = codes[:, level] @ place_codes[level].T
        first = torch.stack([(key == each).nonzero()[0, 0] for each in key])  # the first photo of the same place
        distinct = first.unique()
        to_place = similarity[:, distinct].logsumexp(1) - similarity[torch.arange(len(key)), first]
        to_photo = [-(similarity[:, each].log_softmax(0)[key == key[each]]).mean() for each in distinct]
        losses.append((to_place.mean() + torch.stack(to_photo).mean()) / 2)
    with torch.inference_mode():
        ours, of_zoom = (each.validate()["val_loss"] for each in (run, zoom))
    assert ours == pytest.approx(of_zoom + 0.7 * float(torch.stack(losses).mean()), abs=1e-2)  # of rounded embeddings


@pytest.mark.parametrize(("contrast", "best"), [(0.0, 1), (1.0, 2)])
def test_the_loss_selects_the_epoch_where_there_is_a_contrast(city, monkeypatch, contrast, best) -> None:
    measured = iter([(0.9, 3.0), (0.1, 2.0)])

    def validate(_) -> dict[str, float]:
        return dict(zip(("recall@40m", "val_loss"), next(measured), strict=True))

    monkeypatch.setattr(FinetuneTask, "validate", validate)
    assert city.run(config=replace(QUICK, epochs=2, contrast=contrast)).best["epoch"] == best


def test_a_mirrored_batch_is_a_batch_of_the_mirrored_map(city, monkeypatch) -> None:
    """Its inputs are those of an area whose map, photos and paths were mirrored beforehand."""
    config = replace(QUICK, augment=False, contrast=1.0)
    run, plain = start(city, replace(config, mirror=1.0)), start(city, config)
    index, area = torch.arange(16), plain.areas[0]
    photos = list(run.reader.read(area.train.paths[index], 8))
    ours = run.inputs(Part(0, index, photos, (0, 0, 0)), torch.Generator())

    crops = area.cells[torch.arange(area.cells.cells**2)].flip(2)
    monkeypatch.setattr(type(area.cells), "__getitem__", lambda _, numbers: crops[numbers])
    plain.areas[0] = replace(area, images=area.images.flip(2))
    pixels, places, actions = plain.inputs(
        Part(0, index, [photo[:, ::-1] for photo in photos], (0, 0, 0)), torch.Generator()
    )
    torch.testing.assert_close(ours[0], pixels)
    torch.testing.assert_close(ours[1], places)
    pyramid = city.pyramid
    row, col = pyramid.path_to_tile(actions.numpy())
    mirrored = pyramid.cell_to_path(row, pyramid.tiles_per_side(pyramid.levels) - 1 - col)
    np.testing.assert_array_equal(ours[2], mirrored)


def test_as_many_batches_are_mirrored_as_asked_for(city) -> None:
    index, drawn = torch.arange(2), []
    run = start(city, replace(QUICK, augment=False, mirror=0.25))
    photos = list(run.reader.read(run.areas[0].train.paths[index], 2))
    for seed in range(100):
        part = Part(0, index, photos, (0, 0, 0))
        actions = run.inputs(part, torch.Generator().manual_seed(seed))[2]
        drawn.append(not torch.equal(actions, run.areas[0].train.actions[index]))
    assert 15 <= sum(drawn) <= 35


@pytest.mark.parametrize("places", [0, 1])
def test_where_tiles_are_kept_changes_nothing(city, whole, monkeypatch, places) -> None:
    free = iter([0] * 100 if places == 0 else [0, 10**12] * 100)  # no room at all, or only in main memory
    monkeypatch.setattr(device_module, "free_bytes", lambda device: next(free))
    city.run("tight")
    assert city.metrics("tight") == whole.metrics("whole")
    assert not list((city.folder / "tight").glob(".jzi-room*"))


def test_a_batch_in_parts_is_the_same_step(city) -> None:
    still = replace(QUICK, augment=False, epochs=1, batch_size=24)
    decoder = replace(SMALL, dropout=0.0)
    for name, accumulation in (("whole", 1), ("parts", 3)):
        source = [(city.imagery(), city.table())]
        finetune(source, city.encoder(), city.folder / name, decoder, replace(still, accumulation=accumulation))
    whole, parts = city.weights("whole"), city.weights("parts")
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], atol=1e-4, rtol=1e-3)


# What is trained, and what is saved


@pytest.mark.parametrize("blocks", [0, 1, "all"])
def test_only_the_last_blocks_and_the_final_layernorm_change(city, blocks) -> None:
    report = city.run(config=replace(QUICK, blocks=blocks, epochs=1))
    before, after = load_file(city.encoder_folder / "model.safetensors"), city.weights()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    if blocks == "all":
        assert changed == set(before) - {"embeddings.mask_token"}
    else:
        allowed = ("encoder.layer.1.", "layernorm.") if blocks else ()
        assert changed == {name for name in before if allowed and name.startswith(allowed)}
    splits = city.table().frame["split"].value_counts()
    assert (report.train, report.val, report.epochs) == (splits["train"], splits["val"], 1)


@pytest.mark.slow
def test_encoder_and_decoder_of_the_best_epoch_make_a_model(city, monkeypatch) -> None:
    recalls = iter([0.1, 0.5, 0.2])
    monkeypatch.setattr(module, "validate", lambda *_: {"recall@40m": next(recalls), "val_loss": 1.0})
    report = city.run()
    assert report.best["epoch"] == 2
    model = ZoomModel.load(city.folder / "finetuned")
    encoder = model.load_encoder("cpu")
    assert encoder.fingerprint == model.encoder.fingerprint != city.encoder().fingerprint
    monkeypatch.setattr(module, "validate", lambda *_: {"recall@40m": 0.0, "val_loss": 1.0})
    city.run("first")
    assert any(not torch.equal(city.weights("first")[name], value) for name, value in city.weights().items())


@pytest.mark.slow
def test_training_lowers_the_loss(city) -> None:
    city.run(config=replace(QUICK, epochs=25, augment=False, learning_rate=3e-3, blocks="all"))
    losses = [line["loss"] for line in city.metrics()]
    assert losses[-1] < 0.8 * losses[0]


def test_training_goes_on_from_encoder_and_decoder_of_another_run(city, whole) -> None:
    first = ZoomModel.load(whole.folder / "whole")
    source = [(city.imagery(), city.table())]
    other = DecoderConfig(layers=3, heads=4)  # replaced by the architecture of the decoder to start from
    still = replace(QUICK, epochs=1, learning_rate=0.0)
    finetune(source, first.load_encoder("cpu"), city.folder / "second", other, still, start=first)
    before, after = whole.weights("whole"), city.weights("second")
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(ModelError, match=r"finetune\.init"):
        finetune(source, first.load_encoder("cpu"), city.folder / "second", SMALL, still)


def test_two_areas_are_trained_on_together(city) -> None:
    report = city.run(areas=2)
    assert report.train == 2 * (city.table().frame["split"] == "train").sum()
    assert len(city.metrics()) == 3


# Interrupted, resumed, refused


@pytest.mark.parametrize(("steps", "contrast"), [(1, 0.0), (8, 0.0), (4, 1.0)])
def test_a_killed_run_goes_on_to_the_same_losses_and_weights(city, whole, monkeypatch, steps, contrast) -> None:
    config = replace(QUICK, contrast=contrast, mirror=contrast / 2)
    if contrast:
        whole = city
        city.run("whole", config)
    step, done = TrainingLoop.step, []

    def killed(*args):
        if len(done) == steps:
            raise Killed
        done.append(1)
        return step(*args)

    often = replace(config, save_every_s=1e-9)
    monkeypatch.setattr(TrainingLoop, "step", killed)
    with pytest.raises(Killed):
        city.run("parts", often)
    monkeypatch.undo()
    calls = []
    monkeypatch.setattr(TrainingLoop, "step", lambda *args: calls.append(1) or step(*args))
    city.run("parts", often)
    assert len(calls) == 3 * 3 - steps  # 23 photos are three batches
    assert city.metrics("parts") == whole.metrics("whole")
    weights, parts = whole.weights("whole"), city.weights("parts")
    assert all(torch.equal(weights[name], parts[name]) for name in weights)


@pytest.mark.parametrize("steps", [2, 3])  # within an epoch, and at its last step
def test_an_interrupted_run_keeps_the_step_that_it_is_in(city, whole, monkeypatch, steps) -> None:
    step, done, handler = TrainingLoop.step, [], signal.getsignal(signal.SIGINT)

    def interrupted(*args):
        done.append(1)
        if len(done) == steps:
            os.kill(os.getpid(), signal.SIGINT)
        return step(*args)

    monkeypatch.setattr(TrainingLoop, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        city.run("parts")
    city.run("parts")
    assert len(done) == 3 * 3
    assert city.metrics("parts") == whole.metrics("whole")
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_finished_run_is_not_trained_again(whole) -> None:
    before = (whole.folder / "whole" / "decoder.safetensors").stat().st_mtime_ns
    assert whole.run("whole").epochs == 0
    assert (whole.folder / "whole" / "decoder.safetensors").stat().st_mtime_ns == before


def test_another_run_is_not_mixed_with_the_one_that_is_there(whole) -> None:
    with pytest.raises(ModelError, match=r"finetune\.blocks 1 not 2"):
        whole.run("whole", replace(QUICK, blocks=2))


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_encoder(city, monkeypatch) -> None:
    step = TrainingLoop.step

    def broken(self, batch):
        loss = step(self, batch)
        return loss * float("nan") if batch.parts[0].number[0] == 1 else loss

    monkeypatch.setattr(TrainingLoop, "step", broken)
    with pytest.raises(TrainingError, match="the loss is nan in epoch 2: the best epoch so far is kept"):
        city.run(config=replace(QUICK, save_every_s=1e-9))
    assert len(city.metrics()) == 1
    encoder = ZoomModel.load(city.folder / "finetuned").load_encoder("cpu")
    assert all(torch.isfinite(value).all() for value in encoder.model.state_dict().values())
    monkeypatch.undo()
    city.run(config=replace(QUICK, save_every_s=1e-9))  # resumes from the last state before the failure
    assert len(city.metrics()) == 3


def test_a_map_that_cannot_be_read_half_way_leaves_nothing_behind(city, monkeypatch) -> None:
    render, calls = Imagery.render, []

    def broken(self, bounds, pixels):
        calls.append(1)
        if len(calls) > 5:
            raise ImageryError("map.tif cannot be read: it is truncated")
        return render(self, bounds, pixels)

    monkeypatch.setattr(Imagery, "render", broken)
    with pytest.raises(ImageryError, match="truncated"):
        city.run()
    assert not (city.folder / "finetuned").exists()


def test_unreadable_photos_are_left_out_and_listed(city) -> None:
    names = [Path(path) for path in city.table().frame.query("split == 'train'")["photo"][:2]]
    table = city.table()
    for name in names:
        name.write_bytes(name.read_bytes()[:400])
    source = [(city.imagery(), table)]
    report = finetune(source, city.encoder(), city.folder / "finetuned", SMALL, replace(QUICK, epochs=1))
    assert {each.name for each in report.unreadable} == {name.name for name in names}
    assert np.isfinite(city.metrics()[0]["loss"])


def test_one_photo_is_enough_to_train_on_and_none_is_refused(city) -> None:
    table = city.table()
    one = PhotoTable(table.frame[table.frame["split"] == "train"][:1], (), table.source)
    source = [(city.imagery(), one)]
    report = finetune(source, city.encoder(), city.folder / "one", SMALL, replace(QUICK, epochs=1))
    assert (report.train, report.val, report.best["epoch"]) == (1, 0, 1)
    none = PhotoTable(table.frame[table.frame["split"] == "test"], (), table.source)
    with pytest.raises(TrainingError, match="no photo to train on"):
        finetune([(city.imagery(), none)], city.encoder(), city.folder / "none", SMALL, QUICK)
    assert not (city.folder / "none").exists()


@pytest.mark.parametrize(
    "wrong", [{"blocks": -1}, {"blocks": "some"}, {"accumulation": 3}, {"save_every_s": 0}, {"epochs": 0}]
)
def test_settings_that_make_no_sense_are_refused(wrong) -> None:
    with pytest.raises(ConfigError, match="finetune"):
        FinetuneConfig(**wrong)


def test_a_decoder_that_reads_patch_tokens_is_refused(city) -> None:
    reading = replace(SMALL, patch_tokens=2)
    with pytest.raises(ConfigError, match="train-decoder"):
        finetune([(city.imagery(), city.table())], city.encoder(), city.folder / "finetuned", reading, QUICK)
    assert not (city.folder / "finetuned").exists()


def test_more_blocks_than_there_are_is_refused(city) -> None:
    with pytest.raises(ConfigError, match="the encoder has 2 blocks"):
        city.run(config=replace(QUICK, blocks=3))
    assert not (city.folder / "finetuned").exists()


@pytest.mark.slow
def test_commands_refuse_an_architecture_that_the_start_contradicts(area) -> None:
    quick = "--set finetune.epochs=1 --set finetune.batch_size=16 --blocks 1"
    area(f"finetune {quick} --set decoder.layers=1 --set decoder.heads=2 -o first")
    start = "--set finetune.init=first --set encoder.name=first/encoder -o second"
    refused = area(f"finetune {quick} {start} --set decoder.layers=2", code=2).stderr
    assert "decoder.layers is 2, but it is 1 in" in refused and "finetune.init" in refused
    area(f"finetune {quick} {start} --set decoder.layers=1")
    for command in ("encode-map", "encode-queries"):
        area(f"{command} --set encoder.name=first/encoder")
    refused = area(
        "train-decoder --set encoder.name=first/encoder --set train.init=first --set decoder.heads=4", code=2
    ).stderr
    assert "decoder.heads is 4, but it is 2 in" in refused and "train.init" in refused
