"""Measure training from the cache against a bare optimizer step and the reference's step, and a whole run.

    python -m benchmarks.train_decoder                      # 300 000 photos x 30 epochs, a whole run, on a GPU
    python -m benchmarks.train_decoder --estimate 512 --steps 2 --repeats 3 --reference-batch 2      # on two cores
    python -m benchmarks.train_decoder --steps 2 --repeats 5 --reference-batch 0 --compile --only-steps

The kinds of step are measured in alternation, so changes in machine load affect all alike; medians over the rounds are
printed. The bare step is forward, backward, clipping and AdamW on constant tensors; jzi's is the inner loop of
`train_decoder`, without and with `train.compile`; the reference's encodes two squares of the photo and four tiles per
sample, with gradients for the last four blocks. Reading images from disk, which the reference does too, is left out.
The whole run is `train_decoder` on random embeddings, made on the device, or with --on-disk read from a cache: start,
training (the first epoch of a compiled run compiles), validation, saving and calibration.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import click
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from torch import Tensor, nn
from tqdm import tqdm
from transformers import Dinov2Config, Dinov2Model

import jzi.train.decoder as training
from jzi.benchmarks.device import device_name, device_option
from jzi.decode.config import DecoderConfig
from jzi.decode.dataset import ZoomDataset
from jzi.decode.decoder import ZoomDecoder
from jzi.decode.tile_table import TileTable
from jzi.store.cache.feature_cache import ENCODED, FeatureCache
from jzi.store.features.map_embeddings import MapEmbeddings
from jzi.store.features.photo_features import CHUNK
from jzi.store.geometry.pyramid import Pyramid, preset
from jzi.store.info import EncoderInfo
from jzi.train.compiled import CompiledStep
from jzi.train.config.training import TrainConfig
from jzi.train.data import DataInfo, TrainingData
from jzi.train.decoder import DecoderTask
from jzi.train.loop import TrainingLoop, make_accelerator
from jzi.train.run import TrainingRun

ENCODERS = {"small": (384, 6), "base": (768, 12)}  # width, heads

#: The paper's training: photos, epochs and hours.
PHOTOS, EPOCHS, HOURS = 300_000, 30, 52

Step = Callable[[], Any]


def make_cache(folder: Path, pyramid: Pyramid, width: int, train: int, val: int) -> FeatureCache:
    """Create a complete cache of random embeddings; the photos are uniformly distributed over the area."""
    rng = np.random.default_rng(0)
    cache = FeatureCache.create(
        folder / f"{train}.zarr", pyramid, EncoderInfo("random", True, "0" * 64, width, 384, "halves")
    )
    for level in range(pyramid.levels + 1):
        side = cache.tiles.chunk_side(level)
        status = np.full((side, side), ENCODED, np.uint8)
        for row in range(0, pyramid.tiles_per_side(level), side):
            for col in range(0, pyramid.tiles_per_side(level), side):
                embedding = rng.normal(size=(side, side, width)) if level < pyramid.levels else None
                cache.tiles.write_chunk(level, row, col, status, embedding)
    total, bounds = train + val, pyramid.bounds
    x, y = rng.uniform(bounds.west, bounds.east, total), rng.uniform(bounds.south, bounds.north, total)
    frame = pd.DataFrame({"id": [f"{index:06d}" for index in range(total)], "photo": "", "path": ""})
    frame["latitude"], frame["longitude"] = pyramid.unproject(x, y)
    frame["split"] = np.where(np.arange(total) < train, "train", "val")
    rows = cache.queries.list_photos(frame)
    names = frame["id"].map(lambda name: name.rjust(64, "0")).to_numpy(object)
    for start in range(0, total, CHUNK):
        part = slice(start, start + CHUNK)
        values = {"status": np.full(len(rows[part]), ENCODED), "photo_sha256": names[part]}
        embedding = rng.normal(size=(len(rows[part]), width)).astype(np.float16)
        cache.queries.write(rows[part], values, embedding)
    return cache


def make_data(features: MapEmbeddings, train: int, val: int, device: torch.device) -> TrainingData:
    """Random embeddings of photos at random cells, on the device."""
    pyramid, table = features.pyramid, TileTable(features, device)
    rng = np.random.default_rng(2)

    def photos(count: int) -> ZoomDataset:
        paths = rng.integers(0, pyramid.actions, (count, pyramid.levels))
        latitude, longitude = pyramid.unproject(*pyramid.cell_centers(*pyramid.path_to_tile(paths)))
        return ZoomDataset(
            query=torch.randn(count, 1, features.width, device=device, dtype=torch.float16),
            tiles=table.tiles_along(paths),
            actions=torch.from_numpy(paths).to(device),
            latitude=latitude,
            longitude=longitude,
            unreachable=0,
        )

    encoder = EncoderInfo("random", True, "0" * 64, features.width, 384, "halves")
    info = DataInfo(pyramid, encoder, None, f"{train} random", {})
    return TrainingData("random", info, features, table, photos(train), photos(val), photos(0))


class Steps:
    """The kinds of step, each with its own decoder and optimizer; a call runs some steps and synchronizes."""

    def __init__(self, config: TrainConfig, decoder: DecoderConfig, steps: int, folder: Path) -> None:
        self.config, self.decoder, self.steps = config, decoder, steps
        self.accelerator, self.folder = make_accelerator(config, folder), folder
        self.device = self.accelerator.device

    def bare(self) -> Callable[[], int]:
        """Return a function that takes bare steps on constant tensors."""
        model, optimizer = self._prepare(ZoomDecoder(self.decoder))
        batch, width, levels = self.config.batch_size, self.decoder.width, 4
        query = torch.randn(batch, width, device=self.device)
        tiles = torch.randn(batch, levels, width, device=self.device)
        actions = torch.randint(self.decoder.actions, (batch, levels), device=self.device)

        def run() -> int:
            for _ in range(self.steps):
                self._optimise(model, optimizer, query, tiles, actions)
            self._synchronize()
            return self.steps * batch

        return run

    def ours(self, table: TileTable, *, compiled: bool) -> Callable[[], int]:
        """Return a function that runs the training loop for one epoch of `steps` batches."""
        count = self.steps * self.config.batch_size
        rng = np.random.default_rng(1)
        paths = rng.integers(0, table.pyramid.actions, (count, table.pyramid.levels))
        samples = ZoomDataset(
            query=torch.randn(count, 1, self.decoder.width, device=self.device).half(),
            tiles=table.tiles_along(paths),
            actions=torch.from_numpy(paths).to(self.device),
            latitude=np.zeros(count),
            longitude=np.zeros(count),
            unreachable=0,
        )
        training_run, config = TrainingRun(self.folder, {}), replace(self.config, compile=compiled)
        task = DecoderTask(self.accelerator, ZoomDecoder(self.decoder), table, samples, samples, config, training_run)
        loop = TrainingLoop(task, training_run, progress=False)

        def run() -> int:
            loop._epoch(0, 0, [], tqdm(disable=True))
            return count

        return run

    def reference(self, encoder: nn.Module, image_size: int, batch: int) -> Callable[[], int]:
        """Return a function that takes one step which encodes two photo squares and four tiles per sample."""
        encoder.requires_grad_(False)
        for part in (*encoder.encoder.layer[-4:], encoder.layernorm):
            part.requires_grad_(True)
        encoder, model, optimizer = self._prepare(encoder.train(), ZoomDecoder(self.decoder))
        squares = torch.randn(batch * 6, 3, image_size, image_size, device=self.device)
        actions = torch.randint(self.decoder.actions, (batch, 4), device=self.device)

        def run() -> int:
            with self.accelerator.autocast():
                embedding = encoder(pixel_values=squares).last_hidden_state[:, 0].unflatten(0, (batch, 6))
            self._optimise(model, optimizer, embedding[:, :2].mean(1), embedding[:, 2:], actions)
            self._synchronize()
            return batch

        return run

    def _prepare(self, *models: nn.Module) -> tuple[Any, ...]:
        parameters = [parameter for model in models for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
        return self.accelerator.prepare(*models, optimizer)

    def _optimise(self, model: nn.Module, optimizer: Any, query: Tensor, tiles: Tensor, actions: Tensor) -> None:
        with self.accelerator.autocast():
            logits = model(query, tiles, actions)
        smoothing = self.config.label_smoothing
        F.cross_entropy(logits.float().flatten(0, 1), actions.flatten(), label_smoothing=smoothing).backward()
        nn.utils.clip_grad_norm_([weight for group in optimizer.param_groups for weight in group["params"]], 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def alternate(kinds: dict[str, Callable[[], int]], repeats: int) -> dict[str, list[float]]:
    """Return samples per second of every kind of step, one value per round, after a warm-up round."""
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    for round_number in range(repeats + 1):
        for kind, run in kinds.items():
            start = time.perf_counter()
            samples = run()
            if round_number:
                rates[kind].append(samples / (time.perf_counter() - start))
    return rates


class StartedError(Exception):
    """Raised when the first epoch would start."""


@contextmanager
def stopwatch() -> Iterator[dict[str, list[float]]]:
    """Record the seconds of every call of a run's parts, and under "started" the start of each epoch."""
    seconds: dict[str, list[float]] = defaultdict(list)

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            start = time.perf_counter()
            result = function(*args)
            seconds[part].append(time.perf_counter() - start)
            if part == "training":
                seconds["started"].append(start)
            return result

        return call

    with ExitStack() as patches:
        for part, owner, name in (
            ("training", TrainingLoop, "_epoch"),
            ("of which compiling", CompiledStep, "_first"),
            ("validation", training, "validate"),
            ("saving", TrainingLoop, "_save"),
            ("calibration", training, "_calibrate"),
        ):
            patches.enter_context(patch.object(owner, name, timed(part, getattr(owner, name))))
        yield seconds


def run_whole(
    cache: FeatureCache | None,
    folder: Path,
    decoder: DecoderConfig,
    config: TrainConfig,
    make: Callable[[], TrainingData] | None = None,
) -> dict[str, list[float]]:
    """Return the seconds of the parts of `train_decoder` on a cache, or on made data, one value per call."""
    with stopwatch() as seconds:
        data = make() if make else None
        start = time.perf_counter()
        training.train_decoder(cache, folder, decoder, config, data=data)  # type: ignore[arg-type]
        total = time.perf_counter() - start
    return {"start": [seconds.pop("started")[0] - start], **seconds, "total": [total]}


def time_start(cache: FeatureCache, folder: Path, decoder: DecoderConfig, config: TrainConfig) -> float:
    """Return the seconds until `train_decoder` starts its first epoch."""
    start = time.perf_counter()
    with patch.object(TrainingLoop, "_epoch", side_effect=StartedError), suppress(StartedError):
        training.train_decoder(cache, folder, decoder, config)
    return time.perf_counter() - start


@click.command()
@click.option("--photos", default=PHOTOS, show_default=True, help="Training photos.")
@click.option("--val", default=10_000, show_default=True, help="Validation photos.")
@click.option("--epochs", default=EPOCHS, show_default=True)
@click.option("--batch", default=128, show_default=True)
@click.option("--layers", default=6, show_default=True, help="Layers of the decoder.")
@click.option("--model", type=click.Choice(list(ENCODERS)), default="base", show_default=True, help="DINOv2.")
@click.option("--image-size", default=384, show_default=True)
@click.option("--steps", default=50, show_default=True, help="Bare and jzi steps per round.")
@click.option("--repeats", default=7, show_default=True, help="Rounds.")
@click.option(
    "--reference-batch", default=32, show_default=True, help="Batch size of the reference's step; 0: without it."
)
@click.option("--estimate", metavar="N", type=click.IntRange(64), help="Train on N photos for 2 epochs; extrapolate.")
@click.option("--on-disk", is_flag=True, help="Write a cache of random embeddings first, and train from it.")
@click.option("--only-steps", is_flag=True, help="Leave out the whole run.")
@click.option("--compile/--no-compile", "compiled", default=None, help="train.compile.  [default: auto]")
@device_option
def main(
    photos: int, val: int, epochs: int, batch: int, layers: int, model: str, image_size: int, steps: int, repeats: int,
    reference_batch: int, estimate: int | None, on_disk: bool, only_steps: bool, compiled: bool | None,
) -> None:  # fmt: skip
    """Measure steps and a whole run."""
    width, heads = ENCODERS[model]
    decoder = DecoderConfig(width=width, layers=layers)
    config = TrainConfig(epochs=epochs, batch_size=batch, compile="auto" if compiled is None else compiled)
    with tempfile.TemporaryDirectory() as temporary:
        folder, pyramid = Path(temporary), preset("just-zoom-in-dc")
        kinds = Steps(config, decoder, steps, folder)
        click.echo(
            f"decoder of {layers} blocks, {width} features, batch {batch}; DINOv2-{model} at {image_size} px; "
            f"{device_name()}, precision {kinds.accelerator.mixed_precision}, torch {torch.__version__}"
        )
        sides = [pyramid.tiles_per_side(level) for level in range(pyramid.levels + 1)]
        random = tuple(np.random.default_rng(0).normal(size=(n, n, width)).astype(np.float16) for n in sides[:-1])
        features = MapEmbeddings(pyramid, random, tuple(np.full((n, n), ENCODED, np.uint8) for n in sides))
        table = TileTable(features, kinds.device)
        functions = {"bare step, constants": kinds.bare(), "jzi, from the cache": kinds.ours(table, compiled=False)}
        if compiled or (compiled is None and kinds.device.type == "cuda"):
            functions["jzi, compiled"] = kinds.ours(table, compiled=True)
        if reference_batch:
            shape = Dinov2Config(hidden_size=width, num_attention_heads=heads, image_size=518)
            functions["reference's step"] = kinds.reference(Dinov2Model(shape), image_size, reference_batch)
        report_steps(alternate(functions, repeats))
        if only_steps:
            return
        if estimate is None and not on_disk:
            seconds = run_whole(
                None, folder / "model", decoder, config, lambda: make_data(features, photos, val, kinds.device)
            )
            report_whole(seconds, photos * epochs)
            return
        cache = make_cache(folder, pyramid, width, photos, val)
        if estimate is None:
            report_whole(run_whole(cache, folder / "model", decoder, config), photos * epochs)
        else:
            start = time_start(cache, folder / "started", decoder, config)
            small = make_cache(folder, pyramid, width, estimate, max(1, estimate // 10))
            seconds = run_whole(small, folder / "model", decoder, replace(config, epochs=2, save_every_s=1e-9))
            report_whole(seconds, 2 * estimate)
            report_estimate(seconds, start, estimate, photos, val, config)


def report_steps(rates: dict[str, list[float]]) -> None:
    """Print a line for every kind of step, and its ratio to the bare step; medians of the ratios within a round."""
    bare = rates["bare step, constants"]
    click.echo(f"\n{'samples/s':<24}{'median':>10}{'min':>10}{'max':>10}{'of bare':>10}")
    for kind, rate in rates.items():
        ratio = median(one / other for one, other in zip(rate, bare, strict=True))
        click.echo(f"{kind:<24}{median(rate):>10.2f}{min(rate):>10.2f}{max(rate):>10.2f}{ratio:>10.3f}")


def report_whole(seconds: dict[str, list[float]], samples: int) -> None:
    """Print a line for every part of the run."""
    total = sum(seconds["total"])
    click.echo(f"\n{'whole run':<24}{'calls':>10}{'seconds':>10}{'share':>10}")
    for part, calls in seconds.items():
        click.echo(f"{part:<24}{len(calls):>10}{sum(calls):>10.2f}{sum(calls) / total:>10.1%}")
    click.echo(
        f"{samples} samples: {samples / total:.1f}/s of the run, {samples / sum(seconds['training']):.1f}/s of training"
    )
    click.echo(f"measured: {total:.1f} s; the paper's training took {HOURS} h")


def report_estimate(
    seconds: dict[str, list[float]], start: float, count: int, photos: int, val: int, config: TrainConfig
) -> None:
    """Print the time of the requested training, extrapolated from the measured parts."""
    training_s = median(seconds["training"]) / count * photos * config.epochs
    validation_s = median(seconds["validation"]) / max(1, count // 10) * val * config.epochs
    saves = 2 + min(config.epochs, (training_s + validation_s) // config.save_every_s)
    saving_s = saves * max(seconds["saving"])
    total = start + training_s + validation_s + saving_s
    click.echo(f"\nstart with {photos} photos, measured: {start:.2f} s")
    click.echo(
        f"EXTRAPOLATED, not measured, to {photos} photos x {config.epochs} epochs: {total:.0f} s = {total / 3600:.1f} "
        f"h (start {start:.0f}, training {training_s:.0f}, validation {validation_s:.0f}, saving {saving_s:.0f})"
    )


if __name__ == "__main__":
    main()
