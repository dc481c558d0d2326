"""Measure locating: from the cache against encoding tiles at every step.

    python -m benchmarks.locate                   # DINOv2-base at 384 px and the paper's decoder, random weights

With the cache, a zoom is four look-ups and four decoder steps; the reference implementation also reads and encodes a
tile at every step. Both start from the embedding of the photo. `benchmarks.startup` measures the start of `jzi locate`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image
from transformers import Dinov2Config, Dinov2Model

from jzi.decode.config import DecoderConfig
from jzi.decode.decoder import ZoomDecoder
from jzi.decode.search import zoom
from jzi.decode.tile_table import TileTable
from jzi.encode.device import best_device
from jzi.encode.encoder import Encoder
from jzi.encode.photos import open_photo, resize_photo
from jzi.store.map_embeddings import ENCODED, MapEmbeddings
from jzi.store.pyramid import preset

SIZES = {"base": (768, 12, 12), "small": (384, 12, 6)}  # width, layers, heads


def best_of(function: Callable[[], object], times: int) -> float:
    """Return the seconds of the fastest of `times` calls, after one warm-up call."""
    seconds = []
    for _ in range(times + 1):
        start = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


@click.command()
@click.option("--size", type=click.Choice(list(SIZES)), default="base", show_default=True)
@click.option("--image-size", default=384, show_default=True)
@click.option("--times", default=3, show_default=True)
def main(size: str, image_size: int, times: int) -> None:
    """Measure and print the table."""
    width, layers, heads = SIZES[size]
    device = best_device()
    torch.manual_seed(0)
    shape = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "image_size": 518}
    encoder = Encoder(Dinov2Model(Dinov2Config(**shape)), name=size, image_size=image_size, device=device)
    decoder = ZoomDecoder(DecoderConfig(width=width, heads=8 if width % 16 == 0 else 6)).eval().to(device)
    pyramid = preset("just-zoom-in-dc")
    sides = [pyramid.tiles_per_side(level) for level in range(pyramid.levels + 1)]
    rng = np.random.default_rng(0)
    embedding = tuple(rng.normal(size=(n, n, width)).astype(np.float16) for n in sides[:-1])
    table = TileTable(
        MapEmbeddings(pyramid, embedding, tuple(np.full((n, n), ENCODED, np.uint8) for n in sides)), device
    )
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    click.echo(f"DINOv2-{size}, {image_size} px, decoder of 6 blocks, {name}, torch {torch.__version__}; ms per photo")
    with tempfile.TemporaryDirectory() as folder:
        tiles = [Path(folder) / f"{index}.jpg" for index in range(pyramid.levels)]
        for tile in tiles:
            noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).resize((image_size, image_size))
            noise.save(tile, quality=90)

        def encode_tiles(batch: int) -> None:
            for tile in tiles:  # one by one: a step's tile depends on the step before
                images = [resize_photo(open_photo(tile), image_size, image_size) for _ in range(batch)]
                encoder.encode_tiles(np.stack(images))

        click.echo(f"{'':<10}{'batch':>6}{'from the cache':>16}{'tiles read and encoded':>26}{'ratio':>9}")
        for batch in (1, 64):
            query = torch.randn(batch, width, device=device)
            reference = best_of(lambda: encode_tiles(batch), 1 if batch > 1 else times)  # noqa: B023
            for beams in (1, 32):
                ours = best_of(lambda: zoom(decoder, table, query, beams), times)  # noqa: B023
                theirs = reference * (1 if beams == 1 else np.nan) + ours
                row = f"{'greedy' if beams == 1 else f'beam {beams}':<10}{batch:>6}{1000 * ours / batch:>16.2f}"
                if beams == 1:
                    row += f"{1000 * theirs / batch:>26.1f}{theirs / ours:>8.0f}x"
                click.echo(row)


if __name__ == "__main__":
    main()
