"""Training from the cache: it learns, resumes exactly, keeps the best epoch, and opens no image."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import platform
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import jzi.train.decoder as training
from jzi.decode.config import DecoderConfig
from jzi.decode.dataset import ZoomDataset
from jzi.decode.decoder import ZoomDecoder
from jzi.decode.expert import ZoomExpert
from jzi.decode.model import ZoomModel
from jzi.decode.search import greedy_paths
from jzi.decode.tile_table import TileTable
from jzi.errors import CacheMismatchError, ConfigError, ModelError, TrainingError
from jzi.evaluate.metrics import RADII, Evaluation, cell_error
from jzi.evaluate.photos import LabelledPhotos
from jzi.evaluate.protocol import evaluate
from jzi.store.cache.feature_cache import ENCODED, NODATA, FeatureCache
from jzi.store.features.photo_features import PhotoFeatures
from jzi.store.geometry.pyramid import Pyramid, geodesic_distance
from jzi.store.info import EncoderInfo
from jzi.tests.children import run_python
from jzi.train.config.training import TrainConfig
from jzi.train.data import TrainingData
from jzi.train.decoder import DecoderTask, train_decoder
from jzi.train.loop import defer_interrupt
from jzi.train.run import Checkpointer, TrainingRun
from jzi.train.schedule import learning_rate_factor
from jzi.train.zoom import check_overrides, make_decoder
from jzi.workspace.models.evaluated import open_zoom

WIDTH = 16
SMALL = DecoderConfig(layers=2, heads=2, dropout=0.1)
QUICK = TrainConfig(epochs=4, batch_size=32, learning_rate=1e-3, precision="no", save_every_s=1e-9)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to copy, with the cache "features.zarr" and "whole", which was trained on it by `QUICK`.

    The features are synthetic: a photo's embedding encodes its position; no image exists.
    """
    pyramid = Pyramid.around(48.2, 16.37, 640.0, levels=2)
    info = EncoderInfo("somewhere/encoder", True, "f" * 64, WIDTH, 56, "halves")
    folder = tmp_path_factory.mktemp("trained")
    cache = FeatureCache.create(folder / "features.zarr", pyramid, info)
    rng = np.random.default_rng(0)
    for level in range(3):
        n = pyramid.tiles_per_side(level)
        embedding = rng.normal(size=(n, n, WIDTH)) if level < 2 else None
        cache.tiles.write_chunk(level, 0, 0, np.full((n, n), ENCODED, np.uint8), embedding)
    x, y = rng.uniform(-320, 320, (2, 200))
    latitude, longitude = pyramid.unproject(x, y)
    frame = pd.DataFrame({"id": [f"p{i}" for i in range(200)], "photo": "", "path": ""})
    frame["latitude"], frame["longitude"] = latitude, longitude
    frame["split"] = np.where(np.arange(200) < 140, "train", np.where(np.arange(200) < 170, "val", "test"))
    rows = cache.queries.list_photos(frame)
    waves = [wave(x / 320 * k) for k in (1, 2) for wave in (np.sin, np.cos)]
    waves += [wave(y / 320 * k) for k in (1, 2) for wave in (np.sin, np.cos)]
    embedding = np.concatenate([np.stack(waves, 1), np.zeros((200, WIDTH - 8))], 1) * 2
    columns = {"status": np.full(200, ENCODED), "photo_sha256": frame["id"].to_numpy(object)}
    cache.queries.write(rows, columns, embedding)
    train_decoder(cache, folder / "whole", SMALL, QUICK)
    cache.close()
    return folder


@pytest.fixture
def cache(trained: Path, tmp_path: Path) -> FeatureCache:
    """A copy of that cache."""
    return FeatureCache.open(shutil.copytree(trained / "features.zarr", tmp_path / "features.zarr"), "r+")


@pytest.fixture
def whole(trained: Path, tmp_path: Path) -> Path:
    """A copy of that model, next to the copy of its cache."""
    return Path(shutil.copytree(trained / "whole", tmp_path / "whole"))


def metrics_of(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "train" / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "samples_per_s")} for line in lines]


def evaluate_model(
    folder: Path, cache_path: str, radii: tuple[float, ...] = RADII
) -> tuple[LabelledPhotos, Evaluation]:
    expert, cache = open_zoom(folder, cache_path)
    photos = LabelledPhotos.load(cache, expert)
    return photos, evaluate(expert, photos, radii=radii)


@pytest.mark.slow
def test_a_decoder_learns_to_zoom_and_finds_held_out_photos(cache, tmp_path) -> None:
    report = train_decoder(cache, tmp_path / "model", SMALL, TrainConfig(epochs=25, batch_size=16, learning_rate=3e-3))
    photos, evaluation = evaluate_model(tmp_path / "model", cache.path, radii=(100.0, 200.0))
    assert (report.train, report.val, evaluation.photos) == (140, 30, 30)
    assert (photos.split, photos.unreachable) == ("test", 0)
    assert evaluation.recall[200.0].value > 0.6  # guessing reaches 0.25
    assert evaluation.recall[100.0].low < evaluation.recall[100.0].value < evaluation.recall[100.0].high


class Killed(BaseException):
    """Stands for a kill signal: the code under test must not catch it."""


def kill_in_epoch(monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    """Kill training at the start of an epoch, counted from 0."""
    batches = DecoderTask.batches

    def killed(self: DecoderTask, number: int, first: int):
        if number == epoch:
            raise Killed
        return batches(self, number, first)

    monkeypatch.setattr(DecoderTask, "batches", killed)


def test_a_killed_run_goes_on_to_the_same_losses_and_weights(cache, whole, tmp_path, monkeypatch) -> None:
    kill_in_epoch(monkeypatch, 2)
    with pytest.raises(Killed):
        train_decoder(cache, tmp_path / "parts", SMALL, QUICK)
    monkeypatch.undo()
    assert train_decoder(cache, tmp_path / "parts", SMALL, QUICK).epochs == 2
    assert metrics_of(tmp_path / "parts") == metrics_of(whole)
    expected, parts = (ZoomModel.load(folder).decoder.state_dict() for folder in (whole, tmp_path / "parts"))
    assert all(torch.equal(expected[name], parts[name]) for name in expected)


def test_a_run_killed_between_two_states_goes_on_from_the_last_to_the_same_end(
    cache, whole, tmp_path, monkeypatch
) -> None:
    seldom = replace(QUICK, save_every_s=1e9)  # only the state of the first epoch is saved
    kill_in_epoch(monkeypatch, 3)
    with pytest.raises(Killed):
        train_decoder(cache, tmp_path / "parts", SMALL, seldom)
    monkeypatch.undo()
    assert len(metrics_of(tmp_path / "parts")) == 3  # metrics are written after every epoch
    assert train_decoder(cache, tmp_path / "parts", SMALL, QUICK).epochs == 3
    assert metrics_of(tmp_path / "parts") == metrics_of(whole)
    expected, parts = (ZoomModel.load(folder).decoder.state_dict() for folder in (whole, tmp_path / "parts"))
    assert all(torch.equal(expected[name], parts[name]) for name in expected)


def test_a_run_killed_between_its_first_weights_and_their_state_is_trained_again(
    cache, whole, tmp_path, monkeypatch
) -> None:
    def killed(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(Checkpointer, "save", killed)
    with pytest.raises(Killed):
        train_decoder(cache, tmp_path / "parts", SMALL, QUICK)
    assert (tmp_path / "parts" / "decoder.safetensors").exists()
    monkeypatch.undo()
    train_decoder(cache, tmp_path / "parts", SMALL, QUICK)
    parts = (tmp_path / "parts" / "config.json").read_bytes()
    assert parts == (whole / "config.json").read_bytes()  # with the digests of all weights


def test_a_run_of_which_nothing_was_saved_may_have_other_settings(cache, tmp_path, monkeypatch) -> None:
    kill_in_epoch(monkeypatch, 0)
    with pytest.raises(Killed):
        train_decoder(cache, tmp_path / "model", SMALL, replace(QUICK, save_every_s=1e9))
    monkeypatch.undo()
    assert train_decoder(cache, tmp_path / "model", SMALL, replace(QUICK, batch_size=8)).epochs == QUICK.epochs


@pytest.mark.parametrize("step", [3, 10, 20])  # within an epoch, at the end of one, at the end of the run
def test_an_interrupted_run_finishes_its_step_and_resumes_to_the_same_weights(
    cache, whole, tmp_path, monkeypatch, step
) -> None:
    loss, steps, handler = DecoderTask.loss, [], signal.getsignal(signal.SIGINT)

    def interrupted(*args):
        steps.append(1)
        if len(steps) == step:
            os.kill(os.getpid(), signal.SIGINT)
        return loss(*args)

    monkeypatch.setattr(DecoderTask, "loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_decoder(cache, tmp_path / "parts", SMALL, replace(QUICK, save_every_s=1e9))
    assert len(steps) == step
    assert train_decoder(cache, tmp_path / "parts", SMALL, QUICK).epochs == 4 - step // 5
    assert len(steps) == 4 * 5  # no step ran twice
    assert signal.getsignal(signal.SIGINT) is handler
    assert metrics_of(tmp_path / "parts") == metrics_of(whole)
    expected, parts = (ZoomModel.load(folder) for folder in (whole, tmp_path / "parts"))
    assert all(
        torch.equal(value, parts.decoder.state_dict()[name]) for name, value in expected.decoder.state_dict().items()
    )
    assert parts.temperature is not None


def test_a_second_interrupt_stops_at_once(cache, tmp_path, monkeypatch) -> None:
    def interrupted(*args):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("it did not stop")

    monkeypatch.setattr(DecoderTask, "loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_decoder(cache, tmp_path / "model", SMALL, QUICK)


def test_a_process_that_ignores_interrupts_goes_on_ignoring_them() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # like the workers of an ablation
    try:
        with defer_interrupt() as received:
            os.kill(os.getpid(), signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert not received
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_killed_processes_left_half_written_is_removed_on_resuming(cache, whole) -> None:
    dead = run_python("")
    names = [".decoder.safetensors.partial", "train/.state.pt.partial", "encoder/.config.json.partial"]
    for name in names:
        for pid in (dead.pid, os.getppid()):
            own = whole / name / f"{pid}.{platform.node()}"
            own.mkdir(parents=True)
            (own / "file").write_bytes(b"half")
    (whole / ".notes").write_text("mine")
    train_decoder(cache, whole, SMALL, QUICK)
    left = {path.relative_to(whole).as_posix() for path in (whole).rglob("file")}
    assert left == {f"{name}/{os.getppid()}.{platform.node()}/file" for name in names}
    assert (whole / ".notes").read_text() == "mine"


def test_a_state_of_another_version_is_refused(cache, whole) -> None:
    torch.save({"identity": {}, "epoch": 3, "metrics": []}, whole / "train" / "state.pt")
    with pytest.raises(ModelError, match="another version of jzi"):
        train_decoder(cache, whole, SMALL, QUICK)


def test_a_damaged_state_is_one_sentence_and_never_resumed_from(cache, tmp_path, monkeypatch) -> None:
    steps: list[int] = []
    loss = DecoderTask.loss

    def interrupted(*args):
        steps.append(1)
        if len(steps) == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return loss(*args)

    monkeypatch.setattr(DecoderTask, "loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_decoder(cache, tmp_path / "model", SMALL, QUICK)
    path = tmp_path / "model" / "train" / "state.pt"
    whole, random = path.read_bytes(), np.random.default_rng(0)
    state = torch.load(path, weights_only=True)
    run = TrainingRun(tmp_path / "model", state["fingerprint"])
    damaged = 0
    for number in range(80):
        data = bytearray(whole)
        data[random.integers(len(data)) if number % 2 else -random.integers(1, 3000)] ^= 1 << int(random.integers(8))
        path.write_bytes(data if number else whole[: len(whole) // 2])
        try:
            loaded = run.load()
        except ModelError as error:
            damaged += 1
            assert str(error) == f"{path} is damaged: delete {tmp_path / 'model'} to train from scratch"
        else:  # of a bit that no reader uses
            assert all(torch.equal(loaded["weights"][name], value) for name, value in state["weights"].items())
            moments = loaded["optimizer"]["state"], state["optimizer"]["state"]
            assert all(torch.equal(moments[0][key]["exp_avg"], value["exp_avg"]) for key, value in moments[1].items())
            assert (loaded["epoch"], loaded["losses"]) == (state["epoch"], state["losses"])
    assert damaged > 50
    torch.save({**state, "weights": {}, "optimizer": {}}, path)
    with pytest.raises(ModelError, match="does not fit this training"):
        train_decoder(cache, tmp_path / "model", SMALL, QUICK)
    torch.save({**state, "epoch": -1}, path)
    with pytest.raises(ModelError, match="another version of jzi"):
        train_decoder(cache, tmp_path / "model", SMALL, QUICK)


def test_the_same_seed_gives_the_same_bytes(cache, whole, tmp_path) -> None:
    torch.manual_seed(7)  # whatever the state of the process's generators
    np.random.seed(8)  # noqa: NPY002
    train_decoder(cache, tmp_path / "again", SMALL, QUICK)
    train_decoder(cache, tmp_path / "other", SMALL, replace(QUICK, seed=1))
    first, again, other = (folder / "decoder.safetensors" for folder in (whole, tmp_path / "again", tmp_path / "other"))
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()


def test_a_finished_run_is_not_trained_again(cache, whole) -> None:
    before = (whole / "decoder.safetensors").stat().st_mtime_ns
    report = train_decoder(cache, whole, SMALL, QUICK)
    assert report.epochs == 0 and report.best["epoch"] in range(1, 5)
    assert (whole / "decoder.safetensors").stat().st_mtime_ns == before


@pytest.mark.slow
def test_runs_that_share_their_data_are_those_that_read_it_themselves(cache, tmp_path) -> None:
    with_views(cache, 2)
    data = TrainingData.load(cache)
    for name, views in (("all", 255), ("one", 1), ("none", 0)):
        how = TrainConfig(**{**vars(QUICK), "epochs": 1, "views": views})
        train_decoder(cache, tmp_path / name / "alone", SMALL, how)
        train_decoder(cache, tmp_path / name / "shared", SMALL, how, data=data)
        alone, shared = ((tmp_path / name / each / "decoder.safetensors").read_bytes() for each in ("alone", "shared"))
        assert alone == shared


def test_a_cache_is_read_once(cache, monkeypatch) -> None:
    read = []
    column, embedding = PhotoFeatures.column, PhotoFeatures.embedding
    monkeypatch.setattr(PhotoFeatures, "column", lambda self, name: read.append(name) or column(self, name))
    monkeypatch.setattr(PhotoFeatures, "embedding", lambda *args: read.append("embedding") or embedding(*args))
    TrainingData.load(cache)
    assert sorted(read) == sorted(set(read)) and "embedding" in read


def test_other_settings_or_photos_are_refused_rather_than_mixed(cache, whole) -> None:
    with pytest.raises(ModelError, match=r"train\.epochs 4 not 5"):
        train_decoder(cache, whole, SMALL, TrainConfig(**{**vars(QUICK), "epochs": 5}))
    frame = cache.queries.encoded()
    cache.queries.list_photos(frame.iloc[:-1].assign(photo=""))
    with pytest.raises(ModelError, match="photos 200"):
        train_decoder(cache, whole, SMALL, QUICK)


def test_the_epoch_with_the_best_recall_is_kept(cache, tmp_path, monkeypatch) -> None:
    recalls = iter([0.1, 0.4, 0.4, 0.2])
    losses = iter([1.0, 1.0, 0.9, 0.5])
    kept = []
    monkeypatch.setattr(training, "validate", lambda *_: {"recall@40m": next(recalls), "val_loss": next(losses)})
    save = training.save_tensors
    monkeypatch.setattr(training, "save_tensors", lambda *args: kept.append(len(kept)) or save(*args))
    report = train_decoder(cache, tmp_path / "model", SMALL, QUICK)
    assert report.best["epoch"] == 3  # the same recall as epoch 2, with a lower loss
    assert len(kept) == 3


def test_weights_that_wait_to_be_written_are_those_of_the_best_epoch(cache, tmp_path, monkeypatch) -> None:
    for name, save_every_s in (("always", 1e-9), ("seldom", 1e9)):
        recalls = iter([0.1, 0.3, 0.4, 0.2])
        monkeypatch.setattr(training, "validate", lambda *_, recalls=recalls: {"recall@40m": next(recalls)})
        train_decoder(cache, tmp_path / name, SMALL, replace(QUICK, save_every_s=save_every_s))
    always, seldom = ((tmp_path / name / "decoder.safetensors").read_bytes() for name in ("always", "seldom"))
    assert always == seldom


def test_a_loss_that_is_no_number_stops_training_and_keeps_the_best(cache, tmp_path, monkeypatch) -> None:
    loss, steps = DecoderTask.loss, itertools.count()
    broken = lambda *args: loss(*args) * (float("nan") if next(steps) == 7 else 1)  # noqa: E731 - 5 steps per epoch
    monkeypatch.setattr(DecoderTask, "loss", broken)
    with pytest.raises(TrainingError, match="the loss is nan in epoch 2"):
        train_decoder(cache, tmp_path / "model", SMALL, QUICK)
    assert len(metrics_of(tmp_path / "model")) == 1
    ZoomModel.load(tmp_path / "model")


def test_a_validation_loss_that_is_no_number_stops_training_and_keeps_the_best(cache, tmp_path, monkeypatch) -> None:
    losses = iter([1.0, float("nan")])
    monkeypatch.setattr(training, "validate", lambda *_: {"recall@40m": 1.0, "val_loss": next(losses)})
    with pytest.raises(TrainingError, match=r"the validation loss is nan in epoch 2: the best epoch so far is kept"):
        train_decoder(cache, tmp_path / "model", SMALL, QUICK)
    assert len(metrics_of(tmp_path / "model")) == 1
    ZoomModel.load(tmp_path / "model")


@pytest.mark.parametrize(("step", "kept"), [(4, "no epoch is complete"), (9, "the best epoch so far is kept")])
def test_weights_that_are_no_numbers_after_the_last_step_of_an_epoch_are_not_kept(
    cache, tmp_path, monkeypatch, step: int, kept: str
) -> None:
    loss, steps = DecoderTask.loss, itertools.count()

    def broken(task: DecoderTask, model: torch.nn.Module, part: torch.Tensor) -> torch.Tensor:
        right = loss(task, model, part)
        return right + (right - right.detach()).abs().sqrt() if next(steps) == step else right  # of gradient nan

    monkeypatch.setattr(DecoderTask, "loss", broken)
    with pytest.raises(TrainingError, match=f"the weights are not finite in epoch {1 + step // 5}: {kept}"):
        train_decoder(cache, tmp_path / "model", SMALL, QUICK)
    if step > 5:
        ZoomModel.load(tmp_path / "model")


def test_no_photo_to_train_on_is_refused(cache, tmp_path) -> None:
    frame = cache.queries.encoded()
    cache.queries.list_photos(frame.assign(photo="", split="test"))
    with pytest.raises(TrainingError, match="no photo to train on"):
        train_decoder(cache, tmp_path / "model", SMALL, QUICK)
    assert not (tmp_path / "model").exists()


def test_photos_where_the_map_has_no_imagery_are_counted_and_left_out(cache) -> None:
    status = cache.tiles.status(2)
    status[:, :8] = NODATA
    cache.tiles.write_chunk(2, 0, 0, status, None)
    samples = ZoomDataset.load(cache, TileTable(cache.read_map()), "train")
    assert samples.unreachable > 0
    assert len(samples) + samples.unreachable == 140
    x, _ = cache.pyramid.project(samples.latitude, samples.longitude)
    assert (x >= 0).all()


def test_training_without_validation_photos_keeps_the_last_epoch(cache, tmp_path) -> None:
    frame = cache.queries.encoded()
    cache.queries.list_photos(frame.assign(photo="", split="train"))
    report = train_decoder(cache, tmp_path / "model", SMALL, QUICK)
    assert (report.val, report.best["epoch"]) == (0, 4)


def test_a_full_disk_while_training_is_one_sentence(cache, tmp_path, monkeypatch) -> None:
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ModelError, match="No space left on device"):
        train_decoder(cache, tmp_path / "other", SMALL, QUICK)
    assert not list((tmp_path / "other").rglob(".*"))


def test_the_learning_rate_warms_up_and_falls_as_a_cosine() -> None:
    factors = [learning_rate_factor(step, 100, 5) for step in range(100)]
    assert factors[:5] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert factors[5] == 1.0 and factors[-1] < 0.001
    assert all(later <= earlier for earlier, later in itertools.pairwise(factors[5:]))


def test_epochs_that_are_not_validated_are_never_the_best(tmp_path: Path) -> None:
    run, validated = TrainingRun(tmp_path, {}, [{"epoch": 1.0}]), {"epoch": 2.0, "val_loss": 5.0, "recall@40m": 0.0}
    assert run.is_best(validated) and not replace(run, metrics=[validated]).is_best({**validated, "val_loss": 6.0})
    assert replace(run, metrics=[*run.metrics, validated, {"epoch": 3.0}]).best() is validated
    assert replace(run, metrics=[{"epoch": 1.0}, {"epoch": 2.0}]).best() == {"epoch": 2.0}  # no validation photos
    task = SimpleNamespace(config=replace(QUICK, epochs=5, validate_every=2))
    assert [DecoderTask.validates(task, epoch) for epoch in range(5)] == [False, True, False, True, True]


def test_a_run_may_be_resumed_compiled_or_not_and_with_states_from_before_there_was_a_choice() -> None:
    every = set(QUICK.fingerprint())
    assert not every & {"train.compile", "train.validate_every"}
    assert set(replace(QUICK, validate_every=2, compile=True).fingerprint()) - every == {"train.validate_every"}


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"batch_size": 0}, {"label_smoothing": 1.0}, {"precision": "int8"}, {"save_every_s": 0}]
)
def test_training_settings_that_make_no_sense_are_refused(wrong: dict) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(ConfigError, match=f"the setting train.{name} = {value!r} has no sensible value: [^\\n]*$"):
        TrainConfig(**wrong)


@pytest.mark.parametrize("tracker", ["tensorboard", "nonsense"])
def test_a_tracker_that_is_not_installed_is_refused_rather_than_ignored(cache, tmp_path, tracker: str) -> None:
    if importlib.util.find_spec(tracker):
        pytest.skip(f"{tracker} is installed")
    with pytest.raises(ConfigError, match=tracker):
        train_decoder(cache, tmp_path / "model", SMALL, TrainConfig(**{**vars(QUICK), "trackers": (tracker,)}))
    assert not (tmp_path / "model").exists()


# Augmented views, and a decoder to start from


def with_views(cache: FeatureCache, count: int) -> np.ndarray:
    """Give every training photo `count` views close to the plain one, and return the photos' rows."""
    cache.queries.require_views(count, {"seed": 0})
    frame = cache.queries.encoded()
    rows = frame.index[frame["split"] == "train"].to_numpy()
    plain = cache.queries.embedding(rows)
    noise = np.random.default_rng(1).normal(0, 0.1, (len(rows), count, WIDTH))
    values = {"views": np.full(len(rows), count)}
    cache.queries.write(rows, values, np.concatenate([plain, plain + noise], axis=1).astype(np.float16))
    return rows


def test_each_epoch_draws_a_view_of_each_photo_from_those_it_has(cache) -> None:
    rows = with_views(cache, 3)
    cache.queries.write(rows[:5], {"views": np.zeros(5)})
    table = TileTable(cache.read_map())
    samples = ZoomDataset.load(cache, table, "train", views=255)
    drawn = torch.stack([samples.draw_views(epoch) for epoch in range(40)])
    assert drawn[:, :5].max() == 0 and set(drawn[:, 5:].unique().tolist()) == {0, 1, 2, 3}
    assert torch.equal(samples.draw_views(7), drawn[7]) and not torch.equal(drawn[0], drawn[1])
    assert ZoomDataset.load(cache, table, "train", views=1).draw_views(0).max() == 1
    assert ZoomDataset.load(cache, table, "train").query.shape[1] == 1
    assert ZoomDataset.load(cache, table, "val", views=255).draw_views(0).max() == 0


def test_training_uses_the_views_unless_told_not_to(cache, tmp_path) -> None:
    with_views(cache, 2)
    for name, views in (("all", 255), ("none", 0)):
        train_decoder(cache, tmp_path / name, SMALL, TrainConfig(**{**vars(QUICK), "epochs": 1, "views": views}))
    assert metrics_of(tmp_path / "all") != metrics_of(tmp_path / "none")
    cache.queries.require_views(2, {"seed": 1})  # discards the existing views
    with pytest.raises(ModelError, match="views"):
        train_decoder(cache, tmp_path / "all", SMALL, replace(QUICK, epochs=1))


def test_training_starts_from_the_decoder_that_is_given(cache, whole, tmp_path) -> None:
    first = ZoomModel.load(whole)
    other = DecoderConfig(layers=5, heads=4)  # replaced by the architecture of the decoder to start from
    still = TrainConfig(**{**vars(QUICK), "epochs": 1, "learning_rate": 0.0, "init": "whole"})
    train_decoder(cache, tmp_path / "second", other, still, start=first)
    second = ZoomModel.load(tmp_path / "second").decoder
    assert second.config.layers == 2
    assert all(torch.equal(second.state_dict()[name], value) for name, value in first.decoder.state_dict().items())
    wider = DecoderConfig(width=32, layers=1, heads=2)
    first.decoder = ZoomDecoder(wider)
    with pytest.raises(ModelError, match="cannot be started from"):
        train_decoder(cache, tmp_path / "third", SMALL, still, start=first)


def test_an_override_that_the_start_contradicts_is_refused(whole) -> None:
    start = ZoomModel.load(whole)
    for name, value, actual in (
        ("layers", 5, 2),
        ("heads", 4, 2),
        ("width", 32, 16),
    ):
        other = replace(start.decoder.config, **{name: value})
        with pytest.raises(
            ConfigError, match=f"decoder.{name} is {value!r}, but it is {actual!r} in .*whole.*train.init"
        ):
            check_overrides(other, {"train.init", f"decoder.{name}"}, start, "train.init")
        check_overrides(other, {"train.init"}, start, "train.init")  # set in jzi.toml by `jzi init`, not overridden
        check_overrides(other, {f"decoder.{name}"}, None, "train.init")
    same = replace(start.decoder.config, dropout=0.3, patch_tokens=4)
    check_overrides(same, {f"decoder.{name}" for name in vars(same)}, start, "train.init")
    assert make_decoder(same, start).config == same


# Evaluation


def test_recall_is_the_share_of_cell_centres_within_the_radius(cache) -> None:
    table = TileTable(cache.read_map())
    samples = ZoomDataset.load(cache, table, "test")
    decoder = ZoomDecoder(DecoderConfig(width=WIDTH, layers=1, heads=2)).eval()
    expert = ZoomExpert(ZoomModel(decoder, cache.pyramid, cache.encoder, None, Path()), table)
    found = evaluate(expert, LabelledPhotos.load(cache, expert, "test"), radii=(50, 150, 1000))
    row, col = table.pyramid.path_to_tile(greedy_paths(decoder, table, samples.query[:, 0]))
    centres = table.pyramid.tile_positions(2, row, col)
    error = geodesic_distance(samples.latitude, samples.longitude, *centres)
    for radius, recall in found.recall.items():
        assert recall.value == (error <= radius).mean()
        assert recall.low <= recall.value <= recall.high
    assert found.median_error.value == np.median(error)
    assert found.recall[1000.0].value == 1.0
    assert found.prefix_accuracy[-1] == found.sequence_accuracy.value
    assert found.step_accuracy[0] == found.prefix_accuracy[0]


def test_the_true_path_is_at_most_half_a_cells_diagonal_off(cache) -> None:
    pyramid = cache.pyramid
    frame = cache.queries.encoded()
    latitude, longitude = frame["latitude"].to_numpy(), frame["longitude"].to_numpy()
    row, col = pyramid.cells_at(latitude, longitude)
    error = cell_error(pyramid, row, col, latitude, longitude)
    assert error.max() <= pyramid.cell_size / 2**0.5 * 1.001


def test_a_model_is_not_evaluated_on_another_encoders_photos(cache, whole, tmp_path) -> None:
    other = EncoderInfo("another/encoder", True, "e" * 64, WIDTH, 56, "halves")
    FeatureCache.create(tmp_path / "other.zarr", cache.pyramid, other)
    with pytest.raises(CacheMismatchError, match="another encoder"):
        evaluate_model(whole, str(tmp_path / "other.zarr"))


def test_an_empty_split_is_refused(cache, tmp_path) -> None:
    frame = cache.queries.encoded()
    cache.queries.list_photos(frame.assign(photo="", split="train"))
    train_decoder(cache, tmp_path / "model", SMALL, replace(QUICK, epochs=1))
    with pytest.raises(TrainingError, match="no photo with split 'test' or 'val'"):
        evaluate_model(tmp_path / "model", cache.path)
