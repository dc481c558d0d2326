"""Measure fine-tuning: jzi against the reference, which encodes every tile of every sample with the whole encoder.

    python -m benchmarks.finetune                                    # DINOv2-base, 384 px, batch 128, on a GPU
    python -m benchmarks.finetune --model small --image-size 98 --batch 32 --steps 3      # on two cores

Both take the same training steps (forward, backward, clipping, AdamW) with random weights, tiles and photos on the
paper's pyramid. As in a city, the photos lie in a tenth of the cells. Reading photos from disk costs the same for both
and is left out. Memory is the peak of the device, on a GPU only.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

from jzi.benchmarks.device import device_option
from jzi.decode.config import DecoderConfig
from jzi.decode.decoder import ZoomDecoder
from jzi.decode.tile_table import TileTable
from jzi.encode.encoders.encoder import Encoder
from jzi.encode.photo.augment import DRAWS, augment_photos, augment_tiles, drop_parts
from jzi.store.features.map_embeddings import ENCODED, MapEmbeddings
from jzi.store.geometry.pyramid import preset
from jzi.store.info import ImageryInfo
from jzi.train.config.encoders import FinetuneConfig
from jzi.train.encoders.area import TrainingArea
from jzi.train.encoders.encoder import Part
from jzi.train.encoders.finetune import FinetuneTask
from jzi.train.encoders.networks import JointModel
from jzi.train.encoders.photos import PhotoDataset
from jzi.train.loop import TrainingLoop, make_accelerator
from jzi.train.run import TrainingRun
from jzi.train.task import Batch

MODELS = {"small": (384, 6), "base": (768, 12), "large": (1024, 16)}  # width, heads


class Reference(FinetuneTask):
    """The reference implementation's step: every tile of every sample is augmented and encoded separately."""

    def inputs(self, part: Part, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        train, device = self.areas[part.area].train, self.accelerator.device
        pixels = self.encoder.to_unit(torch.from_numpy(np.stack(part.photos)))
        tiles = train.tiles[part.index].flatten()
        images = self._images(part.area, tiles)
        if self.config.augment:
            pixels = augment_photos(pixels, torch.rand(len(pixels), DRAWS, generator=generator))
        squares = self.encoder.squares(pixels).flatten(0, 1)
        if self.config.augment:
            squares = drop_parts(squares, torch.rand(len(squares), DRAWS, generator=generator))
            lower = tiles.to(device) != 0
            draws = torch.rand(int(lower.sum()), DRAWS, generator=generator)
            images[lower] = augment_tiles(images[lower], draws)
        pixels = self.encoder.normalise(torch.cat([squares, images]))
        return (
            pixels,
            torch.arange(len(tiles), device=device).view(len(part.photos), -1),
            train.actions[part.index].to(device),
        )


def make_area(photos: int, image_size: int, device: torch.device) -> TrainingArea:
    pyramid = preset("just-zoom-in-dc")
    rng = np.random.default_rng(0)
    side = pyramid.tiles_per_side(pyramid.levels)
    cells = rng.choice(side * side, side * side // 10, replace=False)[rng.integers(side * side // 10, size=photos)]
    paths = pyramid.cell_to_path(cells // side, cells % side)
    sides = [pyramid.tiles_per_side(level) for level in range(pyramid.levels + 1)]
    empty = tuple(np.zeros((n, n, 1), np.float16) for n in sides[:-1])
    table = TileTable(MapEmbeddings(pyramid, empty, tuple(np.full((n, n), ENCODED, np.uint8) for n in sides)))
    images = torch.randint(0, 256, (pyramid.tile_count, image_size, image_size, 3), dtype=torch.uint8, device=device)
    zeros, names = np.zeros(photos), np.full(photos, "", object)
    train = PhotoDataset(names, table.tiles_along(paths), torch.from_numpy(paths), zeros, zeros, 0)
    return TrainingArea(pyramid, ImageryInfo("", (), ""), images, table, train, train.spread(1))


def measure(task: type[FinetuneTask], model: str, config: FinetuneConfig, image_size: int, steps: int) -> dict:
    width, heads = MODELS[model]
    torch.manual_seed(0)
    layers = 24 if model == "large" else 12
    encoder_config = Dinov2Config(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, image_size=518
    )
    encoder = Encoder(Dinov2Model(encoder_config), name=model, image_size=image_size)
    with tempfile.TemporaryDirectory() as folder:
        accelerator = make_accelerator(config, Path(folder))
        dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
        decoder = ZoomDecoder(DecoderConfig(width=width, heads=heads - heads % 2))
        joint = JointModel(encoder, decoder, config.blocks, checkpointing=config.checkpointing, trunk_dtype=dtype)
        area = make_area(config.batch_size * (steps + 2), image_size, accelerator.device)
        start = time.perf_counter()
        run = TrainingRun(Path(folder), {})
        loop = TrainingLoop(task(accelerator, joint, encoder, [area], config, run), run, progress=False)
        prepared = time.perf_counter() - start
        photo = np.random.default_rng(1).integers(0, 256, (*encoder.photo_shape, 3), np.uint8)
        images, embed = [], joint.embed

        def count(pixels: Tensor) -> Tensor:
            images.append(len(pixels))
            return embed(pixels)

        joint.embed = count  # type: ignore[method-assign]
        joint.train()
        on_gpu = accelerator.device.type == "cuda"
        for step in range(steps + 2):  # the first two are a warm-up
            if step == 2:
                images.clear()
                if on_gpu:
                    torch.cuda.synchronize()
                    torch.cuda.reset_peak_memory_stats()
                start = time.perf_counter()
            index = torch.arange(step * config.batch_size, (step + 1) * config.batch_size)
            part = Part(0, index, [photo] * len(index), (0, step, 0))
            loss = loop.step(Batch([part], [len(index)], len(index)))
        float(loss)
        seconds = time.perf_counter() - start
        return {
            "samples/s": steps * config.batch_size / seconds,
            "images/s": sum(images) / seconds,
            "images/sample": sum(images) / (steps * config.batch_size),
            "prepared s": prepared,
            "peak GB": torch.cuda.max_memory_allocated() / 1e9 if on_gpu else float("nan"),
        }


@click.command()
@click.option("--model", type=click.Choice(list(MODELS)), default="base", show_default=True)
@click.option("--image-size", default=384, show_default=True)
@click.option("--batch", default=128, show_default=True)
@click.option("--steps", default=10, show_default=True)
@click.option("--blocks", default=4, show_default=True)
@click.option("--augment/--no-augment", default=True, show_default=True)
@click.option("--checkpointing", is_flag=True)
@device_option
def main(model: str, image_size: int, batch: int, steps: int, blocks: int, augment: bool, checkpointing: bool) -> None:
    """Measure both and print the table."""
    config = FinetuneConfig(
        epochs=1, batch_size=batch, blocks=blocks, augment=augment, checkpointing=checkpointing, learning_rate=1e-5
    )
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    click.echo(
        f"DINOv2-{model}, {image_size} px, batch {batch}, last {blocks} blocks, {device}, torch {torch.__version__}"
    )
    results = {
        "reference": measure(Reference, model, config, image_size, steps),
        "jzi": measure(FinetuneTask, model, config, image_size, steps),
    }
    click.echo(f"{'':<12}" + "".join(f"{name:>22}" for name in results["jzi"]))
    for name, values in results.items():
        click.echo(f"{name:<12}" + "".join(f"{value:>22.2f}" for value in values.values()))
    click.echo(f"ratio of samples/s: {results['jzi']['samples/s'] / results['reference']['samples/s']:.2f}")


if __name__ == "__main__":
    main()
