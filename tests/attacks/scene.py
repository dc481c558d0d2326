"""A small town to attack: map, photos and a tiny random encoder of the tests, and what commands make of them."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import traceback
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jzi.tests.conftest import AREA, checkerboard, write_geotiff, write_photo

PHOTOS = 24

DECODER = "--set decoder.layers=1 --set decoder.heads=2"
HEADS = "--set heads.epochs=2 --set heads.hidden=16 --set heads.features=8"
TRAIN = f"train-decoder {DECODER} {HEADS} --set train.epochs=3 --set train.batch_size=8"
REFINE = (
    "--set refine.window_m=40 --set refine.side=4 --set refine.bins=8 --set refine.width=16 --set refine.blocks=1 "
    "--set refine.channels=[16,16,8,8]"
)
REFINER = f"train-refiner {REFINE} --set refiner.epochs=3 --set refiner.batch_size=8"
RETRIEVER = (
    "train-retriever --method infonce --set retriever.epochs=3 --set retriever.batch_size=8 --set retriever.blocks=1"
)
FINETUNE = f"finetune {DECODER} --blocks 1 --set finetune.epochs=3 --set finetune.batch_size=8"


class Ran(NamedTuple):
    """A command that was run in this process."""

    code: int
    output: str
    errors: str


def run(line: str, folder: Path) -> Ran:
    """Run a command line of jzi in a folder, in this process."""
    from click.testing import CliRunner

    from jzi.cli import main

    with contextlib.chdir(folder):
        result = CliRunner().invoke(main, line.split())
    errors = result.stderr
    if result.exception and not isinstance(result.exception, SystemExit):
        errors += "".join(traceback.format_exception(result.exception))
    return Ran(result.exit_code, result.stdout, errors)


def must(line: str, folder: Path) -> Ran:
    """`run` what must succeed."""
    ran = run(line, folder)
    if ran.code:
        raise RuntimeError(f"jzi {line} ended with {ran.code}: {ran.errors}")
    return ran


def fault_of(ran: Ran) -> str:
    """What is wrong with how a command ended on damaged input; empty if it is refused in a sentence, or not at all."""
    text = f"{ran.output}\n{ran.errors}"
    if "Traceback" in text or "defect of jzi" in text:
        return "a traceback or an unexpected error"
    if ran.code not in (0, 1, 2):
        return f"exit code {ran.code}"
    if ran.code == 2:
        sentence = ran.errors.strip().splitlines()[-1:] or [""]
        if not sentence[0].startswith("jzi: ") or len(sentence[0]) > 1500:
            return "no sentence"
    return ""


def make_town(folder: Path) -> Path:
    """Write map, photos, encoder and jzi.toml."""
    import torch
    from transformers import Dinov2Config, Dinov2Model

    folder.mkdir(parents=True)
    write_geotiff(folder / "map.tif", checkerboard(800, 800), AREA.bounds, AREA.crs)
    rng = np.random.default_rng(0)
    x, y = (
        rng.uniform(AREA.bounds.west, AREA.bounds.east, PHOTOS),
        rng.uniform(AREA.bounds.south, AREA.bounds.north, PHOTOS),
    )
    for index, (latitude, longitude) in enumerate(zip(*AREA.unproject(x, y), strict=True)):
        write_photo(folder / "photos" / f"day{index % 2}" / f"{index:03}.jpg", latitude, longitude, index * 12.0, index)
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=56, patch_size=14
    )
    Dinov2Model(config).save_pretrained(folder / "encoder")
    must("init --map map.tif --queries photos --encoder encoder --image-size 56 --split-by photo --levels 2", folder)
    return folder


def encode(folder: Path) -> None:
    """Fill the cache with everything that a cache can have."""
    must("encode-map --tokens --cells --detail", folder)
    must("encode-queries --tokens --views 2", folder)


def train(folder: Path) -> None:
    """Train a model with all experts, and a refiner in its folder."""
    must(f"{TRAIN} --experts zoom,cells,levels,vpr", folder)
    must(REFINER, folder)


def add_judge(folder: Path) -> None:
    """Copy the judge that the package ships, and write weights of it: there are too few photos to fit some."""
    import jzi
    from jzi.rerank.fuse import Weights
    from jzi.rerank.weights_file import write_weights
    from jzi.workspace.setup.settings_file import load_settings
    from jzi.workspace.stages.reranker import RerankRequest, front_name, new_weights, open_judge

    shutil.copytree(Path(jzi.__file__).parent / "demo" / "judge", folder / "judge")
    settings = folder / "jzi.toml"
    text = settings.read_text().replace("crop_pixels = 336", "crop_pixels = 32")
    settings.write_text(text.replace("photo_pixels = 768", "photo_pixels = 64"))
    config = load_settings(settings).rerank
    judge = open_judge(config, RerankRequest(judge=str(folder / "judge")))
    (folder / "rerank").mkdir(exist_ok=True)
    front = front_name(jzi.load(folder / "model").expert)
    write_weights(folder / "rerank" / "rerank.json", new_weights(config, judge, front, Weights(1.0, 0.5)))


# Comparison

#: Values of logs and tables that differ from run to run: durations and times.
_TIMES = re.compile(r'"(seconds|samples_per_s|photos_per_s|time|wall_s|train_seconds)": [^,}]*')

#: Files that belong to a running process, not to what it makes.
_TRANSIENT = (".partial", ".lock")


def contents(folder: Path, *names: str) -> dict[str, bytes]:
    """Every file below some entries of a folder, by relative path; durations in logs are left out."""
    found = {}
    for name in names:
        root = folder / name
        for path in sorted(root.rglob("*")) if root.is_dir() else [root]:
            if path.is_file() and not path.name.endswith(_TRANSIENT):
                data = path.read_bytes()
                if path.suffix == ".pt":
                    data = _state(path)
                if path.suffix in (".json", ".jsonl"):
                    data = _TIMES.sub("", data.decode()).encode()
                found[path.relative_to(folder).as_posix()] = data
    return found


def _state(path: Path) -> bytes:
    """A training state as text and digests of its tensors, without durations."""
    import torch

    def text(value: object) -> object:
        if isinstance(value, torch.Tensor):
            return hashlib.sha256(value.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest(), value.dtype
        if isinstance(value, dict):
            return {key: text(each) for key, each in value.items() if key not in ("seconds", "samples_per_s")}
        return [text(each) for each in value] if isinstance(value, list | tuple) else value

    return repr(text(torch.load(path, weights_only=True))).encode()


def differences(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    """Names of the files that differ, or that one lacks."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
