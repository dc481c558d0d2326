"""Two processes give the same result as one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from jzi.store.cache.feature_cache import FeatureCache
from jzi.tests.children import run_distributed

pytestmark = pytest.mark.slow

DECODER = "--set decoder.layers=1 --set decoder.heads=2 --set decoder.dropout=0.0"
FINETUNE = " ".join(f"--set finetune.{each}" for each in ("epochs=2", "batch_size=8", "augment=false", "blocks=1"))
RETRIEVER = " ".join(
    f"--set retriever.{each}"
    for each in ("epochs=2", "batch_size=10", "blocks=1", "augment=false", "learning_rate=1e-3")
)

#: What a process runs one after the other; training ends the group of processes.
LAUNCHES = (
    (
        "encode-map --json --set encoder.batch_size=16",
        "encode-queries --json --set encoder.batch_size=16",
        f"train-decoder --json {DECODER} --set train.epochs=2 --set train.batch_size=8",
    ),
    (f"finetune --json {DECODER} {FINETUNE} -o finetuned",),
    (f"train-retriever --json --method infonce {RETRIEVER} -o retriever",),
)

RUN = """
import sys
from jzi.cli import main
for command in sys.argv[1:]:
    main(command.split(), standalone_mode=False)
"""


@pytest.fixture(scope="module")
def folders(prepare, town_folder: Path, encoder_folder: Path) -> list[Path]:
    """The working directories in which this process and two processes ran the commands."""
    split = "--split-by photo"  # so that batches divide evenly between two processes
    size = "--grid 2 --levels 6 --image-size 28"  # four blocks for the processes to share
    init = f"init --map map.tif --queries photos --encoder {encoder_folder} {split} {size}"
    one = prepare(town_folder, "one", init, *(command for launch in LAUNCHES for command in launch))
    two = prepare(town_folder, "two", init)
    (two / "run.py").write_text(RUN)
    outputs = [run_distributed(2, "run.py", *launch, cwd=two).output for launch in LAUNCHES]
    (two / "output.txt").write_text("".join(outputs))
    return [one, two]


def test_only_the_main_process_prints(folders: list[Path]) -> None:
    reports = [json.loads(line) for line in (folders[1] / "output.txt").read_text().splitlines()]
    assert [report.get("encoded") or report["epochs"] for report in reports] == [1365, 30, 2, 2, 2]


def test_two_processes_fill_the_same_cache(folders: list[Path]) -> None:
    one, two = (FeatureCache.open(folder / "features.zarr") for folder in folders)
    for level in range(6):
        np.testing.assert_allclose(
            one.tiles.level(level).astype(float), two.tiles.level(level).astype(float), atol=2e-3
        )
    photos = [cache.queries.embedding(np.arange(30))[:, 0].astype(float) for cache in (one, two)]
    np.testing.assert_allclose(*photos, atol=2e-3)


@pytest.mark.parametrize(
    ("model", "tolerance"),
    [
        ("model", 1e-3),
        ("finetuned", 2e-2),  # a batch is filled up where the processes cannot share it evenly
        ("retriever", 2e-3),  # the negatives of a photo are those of both processes
    ],
)
def test_two_processes_train_by_the_same_losses(folders: list[Path], model: str, tolerance: float) -> None:
    lines = [(folder / model / "train" / "metrics.jsonl").read_text().splitlines() for folder in folders]
    losses = [[json.loads(line)["loss"] for line in each] for each in lines]
    assert len(losses[0]) == 2
    np.testing.assert_allclose(*losses, atol=tolerance)


@pytest.mark.parametrize("model", ["finetuned", "retriever"])
def test_two_processes_train_the_same_encoder(folders: list[Path], model: str) -> None:
    one, two = (load_file(folder / model / "encoder" / "model.safetensors") for folder in folders)
    for name in one:
        np.testing.assert_allclose(one[name], two[name], atol=2e-3)
