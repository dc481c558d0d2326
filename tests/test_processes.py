"""Two processes give the same result as one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from jzi.store.cache import FeatureCache
from jzi.tests.children import run_distributed

pytestmark = pytest.mark.slow

DECODER = ["--set", "decoder.layers=1", "--set", "decoder.dropout=0.0"]
TRAIN = [*DECODER, "--set", "train.epochs=2", "--set", "train.batch_size=8"]


@pytest.fixture
def launch(tmp_path: Path, town_raster: Path, photo_folder: Path, encoder_folder: Path):
    """Run a command in a working directory with one process or with several."""
    shutil.copytree(encoder_folder, tmp_path / "encoder")

    def run(processes: int, *command: str) -> str:
        return run_distributed(processes, "-m", "jzi", *command, cwd=tmp_path).output

    split = ["--split-by", "photo"]  # so that batches divide evenly between two processes
    area = ["--grid", "2", "--levels", "6", "--image-size", "28"]  # four blocks for the processes to share
    run(1, "init", "--map", town_raster.name, "--queries", "photos", "--encoder", "encoder", *split, *area)
    return run


def test_two_processes_fill_the_same_cache_and_train_the_same_decoder(launch, tmp_path) -> None:
    for processes in (1, 2):
        own = ["--set", f"cache.path=cache{processes}.zarr", "--set", "encoder.batch_size=16", "--json"]
        (encoded,) = launch(processes, "encode-map", *own).splitlines()  # only the main process prints
        assert json.loads(encoded)["encoded"] == 1365
        (encoded,) = launch(processes, "encode-queries", *own).splitlines()
        assert json.loads(encoded)["encoded"] == 30
        launch(processes, "train-decoder", *own, *TRAIN, "--set", f"model.path=model{processes}")
    one, two = (FeatureCache.open(tmp_path / f"cache{processes}.zarr") for processes in (1, 2))
    for level in range(6):
        np.testing.assert_allclose(one.level(level).astype(float), two.level(level).astype(float), atol=2e-3)
    photos = [cache.queries.embedding(np.arange(30))[:, 0].astype(float) for cache in (one, two)]
    np.testing.assert_allclose(*photos, atol=2e-3)
    lines = [(tmp_path / f"model{n}" / "train" / "metrics.jsonl").read_text().splitlines() for n in (1, 2)]
    losses = [[json.loads(line)["loss"] for line in each] for each in lines]
    np.testing.assert_allclose(*losses, atol=1e-3)


def test_two_processes_fine_tune_the_same_encoder(launch, tmp_path) -> None:
    how = [*DECODER, "--blocks", "1", "--set", "finetune.epochs=2", "--set", "finetune.batch_size=8"]
    how += ["--set", "finetune.augment=false", "--set", "decoder.heads=2", "--json"]
    for processes in (1, 2):
        (output,) = launch(processes, "finetune", *how, "-o", f"finetuned{processes}").splitlines()
        assert json.loads(output)["epochs"] == 2
    folders = [tmp_path / f"finetuned{processes}" for processes in (1, 2)]
    lines = [(folder / "train" / "metrics.jsonl").read_text().splitlines() for folder in folders]
    losses = [[json.loads(line)["loss"] for line in each] for each in lines]
    np.testing.assert_allclose(*losses, atol=2e-2)  # a batch is filled up where the processes cannot share it evenly
    one, two = (load_file(folder / "encoder" / "model.safetensors") for folder in folders)
    for name in one:
        np.testing.assert_allclose(one[name], two[name], atol=2e-3)


def test_two_processes_contrast_with_the_negatives_of_both(launch, tmp_path) -> None:
    how = ["--method", "infonce", "--json"]
    for each in ("epochs=2", "batch_size=10", "blocks=1", "augment=false", "learning_rate=1e-3"):
        how += ["--set", f"retriever.{each}"]
    for processes in (1, 2):
        (output,) = launch(processes, "train-retriever", *how, "-o", f"retriever{processes}").splitlines()
        assert json.loads(output)["epochs"] == 2
    folders = [tmp_path / f"retriever{processes}" for processes in (1, 2)]
    lines = [(folder / "train" / "metrics.jsonl").read_text().splitlines() for folder in folders]
    losses = [[json.loads(line)["loss"] for line in each] for each in lines]
    np.testing.assert_allclose(*losses, atol=2e-3)
    one, two = (load_file(folder / "encoder" / "model.safetensors") for folder in folders)
    for name in one:
        np.testing.assert_allclose(one[name], two[name], atol=2e-3)
