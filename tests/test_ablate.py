"""Ablations: the reference equals train-decoder's model, no trial runs twice, and the results make a table."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import PartialState
from click.testing import CliRunner

import jzi.train.decoder as training
from jzi.ablate import workers
from jzi.ablate.ablation import Ablation
from jzi.ablate.table import gather_rows, to_csv, to_text, write_tables
from jzi.ablate.trials import Trial
from jzi.ablate.variants import Variant, expand_grid, folder_name, read_variants
from jzi.ablate.workers import _in_order, _start, run_free, run_trials, use_device
from jzi.cli import main
from jzi.decode.config import DecoderConfig
from jzi.decode.model import ZoomModel
from jzi.encode.device import best_device, processes
from jzi.encode.threads import SPIN_COUNT, WAITING_VARIABLES
from jzi.errors import ConfigError, ModelError, TrainingError
from jzi.evaluate.photos import LabelledPhotos
from jzi.evaluate.protocol import evaluate
from jzi.store.cache.feature_cache import ENCODED, FeatureCache
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.trained_photos import TrainedPhotos, photo_keys
from jzi.train.config.training import TrainConfig
from jzi.train.data import TrainingData
from jzi.train.decoder import DecoderTask
from jzi.workspace.inputs import load_encoder
from jzi.workspace.models.evaluated import open_zoom
from jzi.workspace.setup.settings import EncoderSettings, MapSettings, QuerySettings, Settings
from jzi.workspace.setup.settings_file import load_settings, write_settings

SMOOTHING = [Variant("plain loss", ("train.label_smoothing=0",))]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, encoder_folder: Path) -> Path:
    """A working directory to copy, whose cache holds synthetic features; there is no image."""
    settings = Settings(
        pyramid=Pyramid.around(48.2, 16.37, 640.0, levels=2),
        encoder=EncoderSettings(name=str(encoder_folder), image_size=28),
        decoder=DecoderConfig(layers=1, heads=2),
        train=TrainConfig(epochs=3, batch_size=32, learning_rate=1e-3, precision="no"),
    )
    settings.folder = tmp_path_factory.mktemp("template") / "town"
    write_settings(settings)
    cache = FeatureCache.create(settings.cache_path, settings.pyramid, load_encoder(settings).info)
    rng = np.random.default_rng(0)
    for level in range(3):
        n = cache.pyramid.tiles_per_side(level)
        cache.tiles.write_chunk(
            level, 0, 0, np.full((n, n), ENCODED, np.uint8), rng.normal(size=(n, n, 32)) if level < 2 else None
        )
    frame = pd.DataFrame({"id": [f"p{i}" for i in range(100)], "path": ""})
    frame["latitude"], frame["longitude"] = cache.pyramid.unproject(*rng.uniform(-320, 320, (2, 100)))
    frame["split"] = np.where(np.arange(100) < 60, "train", np.where(np.arange(100) < 80, "val", "test"))
    rows = cache.queries.list_photos(frame)
    values = {"status": np.full(100, ENCODED), "photo_sha256": frame["id"].to_numpy(object)}
    cache.queries.write(rows, values, rng.normal(size=(100, 32)))
    cache.close()
    return settings.folder


@pytest.fixture
def town(template: Path, tmp_path: Path) -> Path:
    """The jzi.toml of a copy in which nothing has been run."""
    return Path(shutil.copytree(template, tmp_path / "town")) / "jzi.toml"


@pytest.fixture(scope="module")
def ablated(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The jzi.toml of a copy with two finished runs of the reference and of `SMOOTHING`. Do not modify."""
    path = Path(shutil.copytree(template, tmp_path_factory.mktemp("ablated") / "town")) / "jzi.toml"
    run(plan(path, SMOOTHING, seeds=2))
    return path


@pytest.fixture
def finished(ablated: Path, tmp_path: Path) -> Path:
    """The jzi.toml of a copy of that."""
    return Path(shutil.copytree(ablated.parent, tmp_path / "finished")) / "jzi.toml"


def plan(town: Path, variants: list[Variant], *overrides: str, seeds: int = 1, split: str | None = None, **how):
    """The trials by row; none has been run."""
    ablation = Ablation(town, overrides, variants, how.get("name", "test"), how.get("reference", True))
    return ablation.trials(seeds, split, lambda _: None)


def run(rows: dict[str, list[Trial]]) -> dict[str, list[Trial]]:
    """Run the trials in this process."""
    run_free(_in_order(list(rows.values())))
    return rows


# What is varied


def test_a_grid_is_every_combination_named_by_what_differs() -> None:
    variants = expand_grid(["decoder.layers=2,4", "encoder.name=a/b,c", "train.views=0"])
    assert [variant.name for variant in variants] == [
        "decoder.layers=2,encoder.name=a/b,train.views=0",
        "decoder.layers=2,encoder.name=c,train.views=0",
        "decoder.layers=4,encoder.name=a/b,train.views=0",
        "decoder.layers=4,encoder.name=c,train.views=0",
    ]
    assert variants[0].overrides == ("decoder.layers=2", 'encoder.name="a/b"', "train.views=0")
    assert folder_name(variants[0].name) == "decoder.layers=2,encoder.name=a_b,train.views=0"
    mixed = expand_grid(["finetune.blocks=0,0,all"])
    assert [variant.overrides for variant in mixed] == [("finetune.blocks=0",), ('finetune.blocks="all"',)]


@pytest.mark.parametrize(
    ("items", "output"),
    [
        (["decoder.layers"], "no value"),
        (["layers=2"], "such as decoder.layers"),
        (["map.crs=1,2"], "cannot be varied"),
        (["statewide.width=64,128"], "python -m benchmarks.statewide"),
        (["train.seed=1,2"], "--seeds"),
        (["decoder.width=3"], "follows from the encoder"),
        (["decoder.layers=2", "decoder.layers=3"], "twice"),
    ],
)
def test_what_cannot_be_varied_is_refused(items: list[str], output: str) -> None:
    with pytest.raises(ConfigError, match=output):
        expand_grid(items)


def test_a_file_names_variants_and_what_they_share(tmp_path) -> None:
    file = tmp_path / "sizes.toml"
    file.write_text(
        '[settings]\ntrain.epochs = 2\n[variants.small]\ndecoder.layers = 2\n[variants."a \\"b\\""]\nencoder.name = "x"'
    )
    shared, variants = read_variants(file)
    assert shared == ("train.epochs=2",)
    assert variants == [Variant("small", ("decoder.layers=2",)), Variant('a "b"', ('encoder.name="x"',))]
    for wrong in ("[variants]", "[variants.reference]", "[variants.a]\nlayers = 2", "[grid]\nx = 1\n[variants.a]", "?"):
        file.write_text(wrong)
        with pytest.raises(ConfigError):
            read_variants(file)


ABLATIONS = sorted((Path(__file__).parent.parent / "benchmarks" / "ablations").glob("*.toml"))


@pytest.mark.parametrize("file", [file for file in ABLATIONS if not file.name.startswith(("statewide-", "unifygeo-"))])
def test_the_papers_ablations_are_variants_that_there_can_be(town, file: Path) -> None:
    shared, variants = read_variants(file)
    rows = {name for group in Ablation(town, shared, variants, file.stem, True).groups for name in group.names}
    assert rows == {"reference", *(variant.name for variant in variants)}


def test_variants_with_the_same_settings_are_one_row(town) -> None:
    variants = [*expand_grid(["decoder.layers=1,2"]), Variant("no block", ("finetune.blocks=0",))]
    assert list(plan(town, variants)) == ["reference = decoder.layers=1 = no block", "decoder.layers=2"]


# Checks before any training


@pytest.mark.parametrize(
    ("override", "output"),
    [
        ("decoder.heads=5", "variant wrong: decoder.heads is 5"),
        ("decoder.layerz=5", "variant wrong: .*layerz"),
        ("train.label_smoothing=2", "variant wrong: the setting train.label_smoothing = 2"),
        ("finetune.blocks=9", "variant wrong: .*the encoder has 2 blocks"),
    ],
)
def test_a_variant_that_cannot_be_is_found_before_anything_is_run(town, override: str, output: str) -> None:
    with pytest.raises(ConfigError, match=output):
        plan(town, [*SMOOTHING, Variant("wrong", (override,))])
    assert not (town.parent / "ablations").exists()


def test_runs_of_other_settings_are_refused_rather_than_mixed(finished) -> None:
    with pytest.raises(ModelError, match=r"train.epochs 3 not 4.*--name"):
        plan(finished, [], "train.epochs=4")
    assert plan(finished, [], "train.epochs=4", name="other")


def test_an_architecture_is_not_varied_where_the_decoder_is_given(town) -> None:
    settings = load_settings(town)
    training.train_decoder(
        FeatureCache.open(settings.cache_path), town.parent / "model", settings.decoder, settings.train
    )
    layers = settings.decoder.layers
    with pytest.raises(ConfigError, match=rf"variant decoder.layers=7: .* but it is {layers} in"):
        plan(town, expand_grid(["decoder.layers=7"]), "train.init=model")
    assert (
        len(plan(town, expand_grid([f"decoder.layers={layers}"]), "train.init=model")) == 1
    )  # the same as the model's
    assert len(plan(town, expand_grid(["decoder.dropout=0.3"]), "train.init=model")) == 2


def test_variants_are_not_evaluated_on_photos_that_encoder_or_decoder_saw_before(town, encoder_folder: Path) -> None:
    tuned, start = town.parent / "tuned", town.parent / "model"
    shutil.copytree(encoder_folder, tuned / "encoder")
    name = f"encoder.name={tuned / 'encoder'}"
    frame = FeatureCache.open(town.parent / "features.zarr").queries.encoded()
    keys = photo_keys(frame[frame["split"] == "test"])
    TrainedPhotos(encoder=keys[:3]).write(tuned)
    with pytest.raises(ModelError, match=r"the encoder of .*tuned was trained on 3 of the 20 photos of the test split"):
        plan(town, SMOOTHING, name)
    assert len(plan(town, SMOOTHING, name, split="val")) == 2
    TrainedPhotos().write(tuned)
    (trial,) = run(plan(town, [], name))["reference"]
    shutil.copytree(trial.folder, start)
    variants = expand_grid(["train.init=model"])
    assert len(plan(town, variants, name)) == 2
    TrainedPhotos(model=keys[:2]).write(start)
    with pytest.raises(ModelError, match=r"model was trained on 2 of the 20 photos of the test split"):
        plan(town, variants, name)


# The runs


def test_the_reference_is_what_train_decoder_and_evaluate_give(finished) -> None:
    settings = load_settings(finished, ["train.seed=1"])
    model = finished.parent / "model"
    training.train_decoder(FeatureCache.open(settings.cache_path), model, settings.decoder, settings.train)
    expert, cache = open_zoom(model, settings.cache_path)
    photos = LabelledPhotos.load(cache, expert)
    alone, split = evaluate(expert, photos), photos.split
    rows = plan(finished, SMOOTHING, seeds=2)
    trial = rows["reference"][1]
    assert trial.folder.name == "reference-seed1"
    assert (trial.folder / "decoder.safetensors").read_bytes() == (model / "decoder.safetensors").read_bytes()
    result = trial.result
    assert result and result["split"] == split
    assert result["evaluation"] == json.loads(json.dumps(alone.to_dict()))
    assert rows["plain loss"][1].result["evaluation"] != result["evaluation"]


def test_runs_that_are_done_are_not_run_again(finished, monkeypatch) -> None:
    monkeypatch.setattr(DecoderTask, "batches", lambda *_: pytest.fail("trained again"))
    rows = run(plan(finished, SMOOTHING))
    assert rows["reference"][0].result["split"] == "test"
    rows = run(plan(finished, SMOOTHING, split="val"))  # evaluated again, not trained
    assert rows["reference"][0].result["split"] == "val"


class Killed(BaseException):
    """Stands for a kill signal: the code under test must not catch it."""


@pytest.mark.slow
def test_a_killed_ablation_goes_on_in_the_epoch_where_it_was(town, ablated, monkeypatch) -> None:
    batches, trained = DecoderTask.batches, []

    def killed_once(self, epoch, first):
        trained.append(epoch)
        if len(trained) == 5:
            raise Killed
        return batches(self, epoch, first)

    monkeypatch.setattr(DecoderTask, "batches", killed_once)
    with pytest.raises(Killed):
        run(plan(town, SMOOTHING))
    run(plan(town, SMOOTHING))
    assert trained == [0, 1, 2, 0, 1, 1, 2]
    for variant in ("reference", "plain loss"):
        parts, whole = (path.parent / "ablations" / "test" / f"{variant}-seed0" for path in (town, ablated))
        assert (parts / "decoder.safetensors").read_bytes() == (whole / "decoder.safetensors").read_bytes()


def test_a_worker_of_process_1_computes_on_gpu_1(town, monkeypatch) -> None:
    [trial] = plan(town, [])["reference"]
    current, devices = [0], []

    def load(_: FeatureCache, device: str, **how: object) -> None:
        devices.append(device)
        raise TrainingError("far enough")

    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.current_device", lambda: current[-1])
    monkeypatch.setattr("torch.cuda.set_device", current.append)
    monkeypatch.setattr(TrainingData, "load", load)
    for index in (1, 3):
        use_device(index)
        with pytest.raises(TrainingError, match="far enough"):
            run_free([trial])
    assert devices == ["cuda:1", "cuda:3"]


def test_workers_are_new_processes_that_find_the_memory_of_the_gpu_free(town, monkeypatch) -> None:
    calls = []

    def start(process: object) -> None:
        calls.append(type(process).__name__)
        raise TrainingError("far enough")

    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: calls.append("freed"))
    monkeypatch.setattr(workers, "_start", start)
    with pytest.raises(TrainingError, match="far enough"):
        run_trials(list(plan(town, []).values()), jobs=2)
    assert calls == ["freed", "SpawnProcess"]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, {"OMP_WAIT_POLICY": "passive"}),
        ({"GOMP_SPINCOUNT": SPIN_COUNT}, {"OMP_WAIT_POLICY": "passive"}),  # what a command has set for itself
        ({"GOMP_SPINCOUNT": "77"}, {"GOMP_SPINCOUNT": "77"}),
        ({"OMP_WAIT_POLICY": "active", "RANK": "1"}, {"OMP_WAIT_POLICY": "active"}),
    ],
)
def test_threads_of_workers_sleep_at_once_unless_the_user_has_decided_how_they_wait(
    monkeypatch, environment: dict[str, str], expected: dict[str, str]
) -> None:
    for name in WAITING_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    before, inherited = dict(os.environ), {}
    _start(SimpleNamespace(start=lambda: inherited.update(os.environ)))
    assert dict(os.environ) == before
    assert {name: inherited[name] for name in (*WAITING_VARIABLES, "RANK") if name in inherited} == expected


@pytest.mark.slow
def test_an_ablation_that_is_terminated_says_how_to_resume_and_nothing_else(town, start) -> None:
    command = ["ablate", "train.label_smoothing=0,0.2", "--set", "train.epochs=100000", "--no-reference"]
    child = start([sys.executable, "-m", "jzi", *command], cwd=town.parent)
    # Not rglob, which would fail in the folders of files that are being written
    child.wait_until(lambda: len(list(town.parent.glob("ablations/*/*/train/metrics.jsonl"))) >= 2)
    child.process.terminate()
    child.wait(143)
    assert (
        child.errors.rstrip().splitlines()[-1]
        == "jzi: interrupted; finished work is kept, run the same command again to resume"
    )
    assert "leaked" not in child.errors and "Traceback" not in child.errors


def fail_and_stay(_: list[Trial], __: int, errors) -> None:
    """A worker that SIGTERM does not end."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    errors.send(TrainingError("the loss is nan"))
    time.sleep(600)


@pytest.mark.slow
def test_workers_that_do_not_end_are_killed(town, monkeypatch) -> None:
    monkeypatch.setattr(workers, "_work", fail_and_stay)
    monkeypatch.setattr(workers, "END_S", 0.5)
    with pytest.raises(TrainingError, match="the loss is nan"):
        run_trials(list(plan(town, []).values()), jobs=1)


def test_accelerate_computes_on_the_current_gpu_in_a_worker_and_on_its_own_when_launched(monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 1)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    shared = dict(PartialState._shared_state)
    PartialState._reset_state()
    try:
        assert processes().device == torch.device("cuda")  # no index: the current one
        assert best_device() == "cuda:1"
    finally:
        PartialState._reset_state()
        PartialState._shared_state.update(shared)
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert best_device() == "cuda:2"


def test_two_processes_never_take_the_same_run(town) -> None:
    [trial] = plan(town, [])["reference"]
    with trial.claim() as first, trial.claim() as second:
        assert first and not second
        run_free([trial])
        assert trial.result is None
    with trial.claim() as free:
        assert free


def test_model_folders_share_one_map_and_one_encoder_and_can_be_used_alone(ablated) -> None:
    rows = plan(ablated, SMOOTHING)
    one, other = (trials[0].folder for trials in rows.values())
    for name in ("map.safetensors", "encoder/model.safetensors"):
        assert (one / name).samefile(other / name)
    model = ZoomModel.load(one)
    assert np.array_equal(model.read_map().embedding[1], FeatureCache.open(rows["reference"][0].cache).tiles.level(1))
    assert model.load_encoder("cpu").fingerprint == model.encoder.fingerprint
    assert load_settings(one / "train" / "settings.toml").train == rows["reference"][0].train


def test_a_run_that_breaks_down_is_a_row_and_the_others_go_on(town, monkeypatch) -> None:
    loss = DecoderTask.loss
    monkeypatch.setattr(
        DecoderTask, "loss", lambda *args: loss(*args) * (float("nan") if args[0].config.label_smoothing else 1)
    )
    rows = gather_rows(run(plan(town, SMOOTHING)))
    assert not rows[0].figures and "the loss is nan" in rows[0].failed[0]
    assert rows[1].figures["recall@40m"].difference is None
    assert "1 of 1 failed: the loss is nan" in to_text(rows)
    assert to_csv(rows).splitlines()[1].startswith("reference,1,1,,")


# The table


def test_the_table_has_mean_deviation_and_difference_to_the_reference(finished) -> None:
    trials = plan(finished, SMOOTHING, seeds=2)
    rows = gather_rows(trials)
    values = [[trial.result["evaluation"]["median_error_m"]["value"] for trial in each] for each in trials.values()]
    figure = rows[1].figures["median_error_m"]
    assert figure.values == tuple(values[1])
    assert figure.mean == pytest.approx(sum(values[1]) / 2)
    assert figure.deviation == pytest.approx(pd.Series(values[1]).std())
    assert figure.difference == pytest.approx(figure.mean - sum(values[0]) / 2)
    assert rows[0].figures["median_error_m"].difference is None
    folder = rows[0].folders[0].parent
    write_tables(rows, folder)
    lines = list(csv.DictReader(io.StringIO((folder / "table.csv").read_text())))
    assert [line["variant"] for line in lines] == ["reference", "plain loss"]
    assert float(lines[1]["median_error_m_mean"]) == figure.mean
    assert json.loads((folder / "table.json").read_text())[1]["median_error_m"]["values"] == values[1]
    assert (
        f"{figure.mean:.1f} ± {figure.deviation:.1f} m ({figure.difference:+.1f})" in (folder / "table.txt").read_text()
    )
    assert (folder / "table.png").read_bytes().startswith(b"\x89PNG")


# The command, with processes, encoders and caches


@pytest.mark.slow
def test_ablate_runs_variants_of_encoders_in_processes_of_their_own(
    tmp_path, town_raster, photo_folder, encoder_folder, pyramid
) -> None:
    from transformers import Dinov2Model

    model = Dinov2Model.from_pretrained(encoder_folder)
    with torch.no_grad():
        model.layernorm.weight.mul_(2.0)
    model.save_pretrained(tmp_path / "other")
    settings = Settings(
        pyramid=pyramid,
        map=MapSettings(rasters=[str(town_raster)]),
        queries=QuerySettings(table=str(photo_folder), views=1),
        encoder=EncoderSettings(name=str(encoder_folder), image_size=28),
        decoder=DecoderConfig(layers=1, heads=2),
        train=TrainConfig(epochs=2, batch_size=8),
    )
    settings.folder = tmp_path
    write_settings(settings)
    config = ["--config", str(tmp_path / "jzi.toml")]
    for command in ("encode-map", "encode-queries"):
        assert CliRunner().invoke(main, [command, *config]).exit_code == 0
    (tmp_path / "encoders.toml").write_text(
        f'[variants.other]\nencoder.name = "{tmp_path / "other"}"\n[variants.tuned]\nfinetune.blocks = 1\n'
        "finetune.epochs = 1\nfinetune.batch_size = 8\n"
    )
    # One worker process: two would import torch twice, and another test has two
    command = ["ablate", str(tmp_path / "encoders.toml"), *config, "--json", "--split", "val", "--jobs", "1"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["variant"] for row in rows] == ["reference", "other", "tuned"]
    caches = sorted((tmp_path / "ablations" / "caches").iterdir())
    assert len(caches) == 2
    infos = [ZoomModel.load(row["folders"][0]).encoder.fingerprint for row in rows]
    assert {FeatureCache.open(cache).encoder.fingerprint for cache in caches} == set(infos[1:]) and len(set(infos)) == 3
    assert all(
        FeatureCache.open(cache).queries.column("views").any() for cache in caches
    )  # the same as the plain cache
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "ablations").rglob("decoder.safetensors")}
    again = CliRunner().invoke(main, command)
    assert [json.loads(line) for line in again.stdout.splitlines()] == rows
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "ablations").rglob("decoder.safetensors")}
