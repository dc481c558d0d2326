"""Two processes do together what one does alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jzi.store.cache import FeatureCache

SETTINGS = ["--set", "train.epochs=2", "--set", "train.batch_size=8", "--set", "decoder.layers=1"]
SETTINGS += ["--set", "decoder.dropout=0.0", "--set", "encoder.batch_size=16"]


@pytest.fixture
def launch(tmp_path: Path, town_raster: Path, photo_folder: Path, encoder_folder: Path):
    """Runs a command in an area with one process or with several."""
    shutil.copytree(encoder_folder, tmp_path / "encoder")

    def run(processes: int, *command: str) -> str:
        torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)] if processes > 1 else []
        line = [sys.executable, *torchrun, "-m", "jzi", *command]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    area = ["--grid", "2", "--levels", "6", "--image-size", "28"]  # four blocks for the processes to share
    run(1, "init", "--map", town_raster.name, "--queries", "photos", "--encoder", "encoder", *area)
    return run


def test_two_processes_fill_the_same_cache_and_train_the_same_decoder(launch, tmp_path) -> None:
    for processes in (1, 2):
        own = [
            *SETTINGS,
            "--set",
            f"cache.path=cache{processes}.zarr",
            "--set",
            f"model.path=model{processes}",
            "--json",
        ]
        (encoded,) = launch(processes, "encode-map", *own).splitlines()  # the main process alone tells
        assert json.loads(encoded)["encoded"] == 1365
        (encoded,) = launch(processes, "encode-queries", *own).splitlines()
        assert json.loads(encoded)["encoded"] == 30
        launch(processes, "train-decoder", *own)
    one, two = (FeatureCache.open(tmp_path / f"cache{processes}.zarr") for processes in (1, 2))
    for level in range(6):
        np.testing.assert_allclose(one.level(level).astype(float), two.level(level).astype(float), atol=2e-3)
    photos = [cache.queries.embedding(np.arange(30))[:, 0].astype(float) for cache in (one, two)]
    np.testing.assert_allclose(*photos, atol=2e-3)
    lines = [(tmp_path / f"model{n}" / "train" / "metrics.jsonl").read_text().splitlines() for n in (1, 2)]
    losses = [[json.loads(line)["loss"] for line in each] for each in lines]
    np.testing.assert_allclose(*losses, atol=1e-3)
