"""Measure locating: from the cache against encoding tiles at every step.

    python -m benchmarks.locate                   # DINOv2-base at 384 px and the paper's decoder, random weights
    python -m benchmarks.locate --search          # the searches alone

With the cache, a zoom is four look-ups and four decoder steps; the reference implementation also reads and encodes a
tile at every step. Both start from the embedding of the photo. `as trained` is the same search with the decoder that
training uses, whose weights are not packed, `bfloat16` that with `model.precision=bfloat16`, with its ratio to `as
trained`; the three take turns. `benchmarks.startup` measures the start of `jzi locate`.
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

from jzi.benchmarks.device import device_option
from jzi.decode.config import DecoderConfig
from jzi.decode.decoder import ZoomDecoder
from jzi.decode.packed import PackedDecoder
from jzi.decode.search import zoom
from jzi.decode.tile_table import TileTable
from jzi.encode.device import best_device
from jzi.encode.encoders.encoder import Encoder
from jzi.encode.photo.photos import open_photo, resize_photo
from jzi.store.features.map_embeddings import ENCODED, MapEmbeddings
from jzi.store.geometry.pyramid import preset

SIZES = {"base": (768, 12, 12), "small": (384, 12, 6)}  # width, layers, heads


def best_of(function: Callable[[], object], times: int) -> float:
    """Return the seconds of the fastest of `times` calls, after one warm-up call; of that one if `times` is 0."""
    seconds = []
    for _ in range(times + 1):
        start = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:] or seconds)


def by_turns(*functions: Callable[[], object], times: int) -> list[float]:
    """Return the median seconds of functions that are called by turns, after one warm-up call of each."""
    seconds = [[best_of(function, 0) for function in functions] for _ in range(times + 1)]
    return np.median(seconds[1:], axis=0).tolist()


@click.command()
@click.option("--size", type=click.Choice(list(SIZES)), default="base", show_default=True)
@click.option("--image-size", default=384, show_default=True)
@click.option("--times", default=9, show_default=True)
@click.option("--search", is_flag=True, help="Measure the searches only, without the reference.")
@device_option
def main(size: str, image_size: int, times: int, search: bool) -> None:
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

        packed = PackedDecoder(decoder, pyramid.levels)
        rounded = PackedDecoder(decoder, pyramid.levels, "bfloat16")
        columns = "from the cache", "as trained", "ratio", "bfloat16", "ratio", "tiles read and encoded", "ratio"
        click.echo(f"{'':<10}{'batch':>6}" + "".join(f"{column:>{len(column) + 4}}" for column in columns))
        for batch in (1, 16):
            query = torch.randn(batch, width, device=device)
            reference = np.nan if search else best_of(lambda: encode_tiles(batch), 1 if batch > 1 else 3)  # noqa: B023
            for beams in (1, 64):
                ours, plain, fast = by_turns(
                    lambda: zoom(packed, table, query, beams, cells=beams * pyramid.actions),  # noqa: B023
                    lambda: zoom(decoder, table, query, beams, cells=beams * pyramid.actions),  # noqa: B023
                    lambda: zoom(rounded, table, query, beams, cells=beams * pyramid.actions),  # noqa: B023
                    times=times,
                )
                row = f"{'greedy' if beams == 1 else f'beam {beams}':<10}{batch:>6}{1000 * ours / batch:>18.2f}"
                row += f"{1000 * plain / batch:>14.2f}{plain / ours:>8.2f}x"
                row += f"{1000 * fast / batch:>12.2f}{plain / fast:>8.2f}x"
                if beams == 1 and not search:
                    row += f"{1000 * (reference + ours) / batch:>26.1f}{(reference + ours) / ours:>8.0f}x"
                click.echo(row)


if __name__ == "__main__":
    main()
