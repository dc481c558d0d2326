"""Measure time and memory of locating and training on maps of 2.5 to 320 km that are read from disk.

    python -m benchmarks.scaling [--full] [--width 128] [--folder FOLDER]

Maps have random embeddings of few features, so that 320 km (17.9 million tiles, 268 million cells) take 4.9 GB on disk;
time and memory do not depend on the values. Every figure of memory is the largest resident set of a process of its own,
with what it imports. By default maps of up to 160 km are measured, with --full those of 320 km too.

- locate: photos that are embedded already, with 64 beams, from the file of a model folder; the map in memory where it
  fits, and read where search asks for it, within --memory. The file is written, and dropped from the page cache.
- command: `jzi locate` with the experts zoom, cells and levels, an encoder as large as DINOv2-small, 40 km.
- train: epochs over photos of a cache, in memory and in shuffled shards.
- objects: a search of a district, and of the whole map, from a cache on a server that answers after 20 ms.
- arithmetic to a billion cells, from the sizes of what is stored; nothing of it is measured.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from jzi.store.features.map_embeddings import ENCODED
from jzi.store.features.map_pages import PagedMap, map_bytes
from jzi.store.features.paged_grids import Grid
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.info import EncoderInfo

#: Sides of the maps in km, those of --full, and the largest one that is also measured in memory.
SIZES, LARGEST, IN_MEMORY = (2.5, 10.0, 40.0, 160.0), 320.0, 160.0

LATENCY_S = 0.02


class Made:
    """A grid of random values that repeat after 2^20 of them."""

    def __init__(self, shape: tuple[int, ...], dtype: type) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self._values = np.random.default_rng(0).normal(size=2**20).astype(np.float16)

    def gather(self, row: NDArray[np.int64], col: NDArray[np.int64]) -> NDArray[Any]:
        raise NotImplementedError

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        shape = (stop - start, *self.shape[1:])
        if self.dtype == np.uint8:
            return np.full(shape, ENCODED, np.uint8)
        count, first = math.prod(shape), start * 97 % len(self._values)
        return np.resize(np.roll(self._values, first), count).reshape(shape)


def pyramid_of(kilometres: float) -> Pyramid:
    """A map with cells of at most 40 m."""
    return Pyramid.around(0, 0, 1000 * kilometres)


def write_map(path: Path, pyramid: Pyramid, width: int) -> None:
    """Write the map.safetensors of a made map, and drop it from the page cache."""
    sides = [pyramid.tiles_per_side(level) for level in range(pyramid.levels + 1)]
    embedding: tuple[Grid, ...] = tuple(Made((side, side, width), np.float16) for side in sides[:-1])
    status: tuple[Grid, ...] = tuple(Made((side, side), np.uint8) for side in sides)
    PagedMap(pyramid, width, embedding, status, lambda *_: RuntimeError("damaged"), 0).save(path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# Work that a process of its own does, and reports as JSON


def locate(path: str, kilometres: float, width: int, memory: int, photos: int) -> dict[str, float]:
    """Milliseconds for a photo, the first and the others, from a map within `memory` bytes."""
    import torch

    from jzi.decode.model import open_map_file
    from jzi.decode.tile_table import TileTable
    from jzi.locate.answer.location import LocateOptions, to_locations

    pyramid = pyramid_of(kilometres)
    began = time.perf_counter()
    expert = zoom_expert(pyramid, TileTable(open_map_file(Path(path), pyramid, width, memory)))
    opened = time.perf_counter() - began
    query, times = torch.randn(photos, width, generator=torch.Generator().manual_seed(0)), []
    for photo in query.split(1):
        began = time.perf_counter()
        to_locations(expert.posterior(photo, LocateOptions("map", beams=64)), LocateOptions("map"), [""])
        times.append(1e3 * (time.perf_counter() - began))
    return {"open_s": opened, "first_ms": times[0], "ms": median(times[1:])}


def zoom_expert(pyramid: Pyramid, table: Any) -> Any:
    """A zoom with random weights, the paper's architecture but for the width."""
    import torch

    from jzi.decode.config import DecoderConfig
    from jzi.decode.decoder import ZoomDecoder
    from jzi.decode.expert import ZoomExpert
    from jzi.decode.model import ZoomModel

    torch.manual_seed(0)
    decoder = ZoomDecoder(DecoderConfig(width=table.width, actions=pyramid.actions)).eval()
    return ZoomExpert(ZoomModel(decoder, pyramid, encoder_info(table.width), None, Path()), table)


def encoder_info(width: int) -> EncoderInfo:
    """Some encoder."""
    return EncoderInfo("made/random", True, "1" * 64, width, 224, "whole")


def train(path: str, memory: int, map_memory: int, epochs: int) -> dict[str, float]:
    """Microseconds for a photo of the last epochs, and seconds until the first step."""
    from jzi.decode.config import DecoderConfig
    from jzi.store.cache.feature_cache import FeatureCache
    from jzi.train.config.training import TrainConfig
    from jzi.train.data import TrainingData
    from jzi.train.decoder import train_decoder

    cache = FeatureCache.open(path)
    began = time.perf_counter()
    data = TrainingData.load(cache, views=0, map_memory=map_memory, photo_memory=memory)
    opened = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(epochs=epochs, batch_size=512, save_every_s=1e6)
        decoder = DecoderConfig(layers=1, heads=4)
        train_decoder(cache, Path(folder) / "model", decoder, config, data=data, progress=False)
        lines = (Path(folder) / "model" / "train" / "metrics.jsonl").read_text().splitlines()
    rates = [json.loads(line)["samples_per_s"] for line in lines[1:]]
    return {"open_s": opened, "us": 1e6 / median(rates), "photos": float(len(data.train))}


def district(url: str, radius: float, memory: int, photos: int) -> dict[str, float]:
    """Seconds for the first photo and for others, and requests, from a cache on a slow server."""
    import torch

    from jzi.decode.model import open_map
    from jzi.decode.tile_table import TileTable
    from jzi.locate.answer.location import LocateOptions
    from jzi.store.cache.feature_cache import FeatureCache

    began = time.perf_counter()
    cache = FeatureCache.open(url)
    expert = zoom_expert(cache.pyramid, TileTable(open_map(cache, memory)))
    opened, area = time.perf_counter() - began, cache.pyramid
    if radius:
        x, y = area.cell_centers(*np.indices(area.shape, sparse=True))
        expert = expert.restricted((x - area.west - area.size / 3) ** 2 + (y - area.north + area.size / 3) ** 2
                                   <= radius**2)  # fmt: skip
    times = []
    for photo in torch.randn(photos, cache.encoder.width, generator=torch.Generator().manual_seed(0)).split(1):
        began = time.perf_counter()
        expert.posterior(photo, LocateOptions("map", beams=64))
        times.append(time.perf_counter() - began)
    features = expert.table.embedding._index.features
    reads = sum(each.reads for each in (*features.embedding, *features.status))
    return {"open_s": opened, "first_s": times[0], "last_s": median(times[-3:]), "chunks": float(reads)}


def model(folder: str, kilometres: float) -> dict[str, float]:
    """Make a model folder with random weights."""
    make_model(Path(folder), pyramid_of(kilometres))
    return {}


WORK = {"locate": locate, "train": train, "district": district, "model": model}


def in_a_process(work: str, **options: Any) -> dict[str, float]:
    """Do some work in a process of its own; adds its largest resident set, MB."""
    module = __spec__.name if __spec__ else "benchmarks.scaling"
    command = [sys.executable, "-m", module, "--worker", work, "--options", json.dumps(options)]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        raise click.ClickException(f"{work} {options} failed: {process.stderr[-2000:]}")
    result: dict[str, float] = json.loads(process.stdout.splitlines()[-1])
    return result


# What is measured


def measure_locate(folder: Path, sizes: list[float], width: int, memory: int, photos: int) -> None:
    """Print the table of locating."""
    click.echo(f"\n## Locate, {width} features, 64 beams, one photo at a time\n")
    click.echo("| map | cells | map on disk | in memory: open, ms, peak | read: open, first, ms, peak | ms read / ms |")
    click.echo("|---|---|---|---|---|---|")
    for size in sizes:
        pyramid, path = pyramid_of(size), folder / "map.safetensors"
        write_map(path, pyramid, width)
        options = {"path": str(path), "kilometres": size, "width": width, "photos": photos}
        read = in_a_process("locate", memory=min(memory, map_bytes(pyramid, width) // 2), **options)
        whole = in_a_process("locate", memory=10**12, **options) if size <= IN_MEMORY else None
        held = f"{whole['open_s']:.1f} s, {whole['ms']:.0f}, {whole['peak_mb']:.0f} MB" if whole else "not tried"
        ratio = f"{read['ms'] / whole['ms']:.2f}" if whole else ""
        click.echo(
            f"| {size:g} km | {pyramid.shape[0] ** 2:,} | {path.stat().st_size / 1e6:,.0f} MB | {held} | "
            f"{read['open_s']:.1f} s, {read['first_ms']:.0f}, {read['ms']:.0f}, {read['peak_mb']:.0f} MB | {ratio} |"
        )
        path.unlink()


def measure_command(folder: Path) -> None:
    """Print time and memory of `jzi locate` with all experts on 40 km."""
    click.echo("\n## `jzi locate`, 40 km, 384 features, an encoder as large as DINOv2-small\n")
    click.echo("| map.memory | experts | seconds | peak |\n|---|---|---|---|")
    # In a process of its own: on Linux a child's peak is at least what its parent had when it was started
    in_a_process("model", folder=str(folder), kilometres=40.0)
    model = folder / "model"
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)).save(folder / "photo.jpg")
    for memory, experts in (("auto", "zoom,cells,levels"), ("50MB", "zoom,cells,levels"), ("50MB", "zoom")):
        settings = f'[pyramid]\n{toml_of(pyramid_of(40.0))}\n[map]\nmemory = "{memory}"\n'
        (folder / "jzi.toml").write_text(settings)
        command = [sys.executable, "-m", "jzi", "locate", "photo.jpg", "--model", str(model), "--experts", experts]
        began = time.perf_counter()
        with (folder / "output").open("w") as output:
            process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
            _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise click.ClickException((folder / "output").read_text())
        seconds = time.perf_counter() - began
        click.echo(f"| {memory} | {experts} | {seconds:.1f} | {usage.ru_maxrss / 1e3:.0f} MB |")


def toml_of(pyramid: Pyramid) -> str:
    """The section of a pyramid."""
    return (
        f'crs = "{pyramid.crs}"\nwest = {pyramid.west}\nnorth = {pyramid.north}\nsize = {pyramid.size}\n'
        f"grid = {pyramid.grid}\nlevels = {pyramid.levels}"
    )


def make_model(folder: Path, pyramid: Pyramid) -> Path:
    """A model folder with random weights: an encoder of DINOv2-small's size, the zoom, cells and levels."""
    import torch
    from safetensors.torch import save_file
    from transformers import Dinov2Config, Dinov2Model

    from jzi.decode.config import DecoderConfig
    from jzi.decode.decoder import ZoomDecoder
    from jzi.decode.model import create_folder, save_weights
    from jzi.encode.encoders.encoder import Encoder
    from jzi.retrieve.heads import HeadsConfig, SimilarityHeads
    from jzi.store.model_config import FusionConfig
    from jzi.store.model_folder import EXPERT_FILES, MAP, update_config, write_file

    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6)).save_pretrained(
        folder / "encoder"
    )
    encoder, width, model = Encoder.load(folder / "encoder", image_size=224), 384, folder / "model"
    config = DecoderConfig(width=width, actions=pyramid.actions)
    create_folder(model, config, pyramid, encoder.info, folder / "encoder")
    save_weights(model, ZoomDecoder(config))
    write_file(model, MAP, lambda path: write_map(path, pyramid, width))
    levels, sides = pyramid.levels, [pyramid.tiles_per_side(level) for level in range(1, pyramid.levels + 1)]
    heads = {
        "cells": HeadsConfig(width, levels),
        "levels": HeadsConfig(width, 1, spaces=levels),
    }
    tensors = {"cells": {"codes": torch.randn(sides[-1] ** 2, 128, dtype=torch.float16)}, "levels": {}}
    for level, side in enumerate(sides, 1):
        tensors["levels"][f"codes.{level}"] = torch.randn(side**2, 128, dtype=torch.float16)
        tensors["levels"][f"imagery.{level}"] = torch.ones(side, side, dtype=torch.bool)
    for name, entries in heads.items():
        values = {**SimilarityHeads(entries).state_dict(), **tensors[name]}
        write_file(model, EXPERT_FILES[name], partial(save_file, values))
    from dataclasses import asdict

    names = ["zoom", *heads]
    weights = {"+".join(sorted(names)): dict.fromkeys(names, 0.5)}
    fusion = FusionConfig(weights, {}, 1, "made")
    update_config(model, experts={name: asdict(each) for name, each in heads.items()}, fusion=fusion)
    return model


def measure_train(folder: Path, photos: int, width: int) -> None:
    """Print time and memory of training for a photo."""
    click.echo(f"\n## Train, {photos:,} photos, 10 km, {width} features, a decoder of one block, batches of 512\n")
    click.echo("| photos | until the first step | µs a photo | peak |\n|---|---|---|---|")
    path = str(make_photos(folder / "photos.zarr", photos, width))
    shard = 16_384 * (2 * width + 64)
    rates: dict[str, list[float]] = {"in memory": [], "in shards": []}
    for name in ("in memory", "in shards", "in shards", "in memory"):
        memory = 10**12 if name == "in memory" else 3 * shard
        result = in_a_process("train", path=path, memory=memory, map_memory=10**12, epochs=2)
        rates[name].append(result["us"])
        click.echo(f"| {name} | {result['open_s']:.1f} s | {result['us']:.0f} | {result['peak_mb']:.0f} MB |")
    click.echo(f"\nshards / memory: {median(rates['in shards']) / median(rates['in memory']):.2f} in time a photo")


def make_photos(path: Path, photos: int, width: int) -> Path:
    """A cache of 10 km with photos at random places, a hundredth of which are for validation."""
    import pandas as pd

    from jzi.store.cache.feature_cache import FeatureCache

    pyramid, rng = pyramid_of(10.0), np.random.default_rng(0)
    cache = made_cache(path, pyramid, width)
    x, y = rng.uniform(-5000, 5000, photos), rng.uniform(-5000, 5000, photos)
    latitude, longitude = pyramid.unproject(x, y)
    frame = pd.DataFrame({"id": np.arange(photos).astype(str), "latitude": latitude, "longitude": longitude})
    frame["split"], frame["path"] = np.where(np.arange(photos) % 100 == 99, "val", "train"), frame["id"]
    rows = cache.queries.list_photos(frame)
    for start in range(0, photos, 256):
        part = rows[start : start + 256]
        values = {"status": np.ones(len(part)), "photo_sha256": frame["id"].to_numpy(object)[part]}
        cache.queries.write(part, values, rng.normal(size=(len(part), width)).astype(np.float16))
    cache.close()
    assert isinstance(cache, FeatureCache)
    return path


def made_cache(path: Path, pyramid: Pyramid, width: int) -> Any:
    """A cache with the tiles of a made map."""
    from jzi.store.cache.feature_cache import FeatureCache

    cache = FeatureCache.create(path, pyramid, encoder_info(width))
    for level in range(pyramid.levels + 1):
        n, side = pyramid.tiles_per_side(level), cache.tiles.chunk_side(level)
        status = np.full((side, side), ENCODED, np.uint8)
        values = Made((side, side, width), np.float16).rows(0, side) if level < pyramid.levels else None
        for row in range(0, n, side):
            for col in range(0, n, side):
                cache.tiles.write_chunk(level, row, col, status, values)
    return cache


def measure_objects(folder: Path, size: float, width: int) -> None:
    """Print time and requests of locating from a slow server."""
    click.echo(
        f"\n## Locate from a server that answers after {1e3 * LATENCY_S:.0f} ms: {size:g} km, {width} features\n"
    )
    click.echo(
        "| search | open | first photo | 20th photo | chunks read | requests | peak |\n|---|---|---|---|---|---|---|"
    )
    made_cache(folder / "objects.zarr", pyramid_of(size), width).close()
    memory = min(10**8, map_bytes(pyramid_of(size), width) // 4)
    with slow_server(folder) as (url, requests):
        for name, radius in (("district of 3 km around a place", 3000.0), ("whole map", 0.0)):
            before = len(requests)
            result = in_a_process("district", url=f"{url}/objects.zarr", radius=radius, memory=memory, photos=20)
            click.echo(
                f"| {name} | {result['open_s']:.1f} s | {result['first_s']:.2f} s | {result['last_s']:.2f} s | "
                f"{result['chunks']:.0f} | {len(requests) - before} | {result['peak_mb']:.0f} MB |"
            )


@contextmanager
def slow_server(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve files of a folder as a bucket of S3, each after `LATENCY_S`; yields its URL and the requests so far."""
    requests: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *arguments: Any) -> None:
            requests.append(self.path)

        def do_GET(self) -> None:
            time.sleep(LATENCY_S)
            file = Path(self.translate_path(self.path.removeprefix("/bucket")))
            if not file.is_file():
                body = b"<Error><Code>NoSuchKey</Code><Message>none</Message></Error>"
                self.send_response(404)
            else:
                body, whole = file.read_bytes(), self.headers.get("Range") is None
                size, first, last = len(body), 0, len(body)
                if not whole:
                    start, _, stop = self.headers["Range"].removeprefix("bytes=").partition("-")
                    first = int(start) if start else size - int(stop)
                    last = min(size, int(stop) + 1) if start and stop else size
                body = body[first:last]
                self.send_response(200 if whole else 206)
                if not whole:
                    self.send_header("Content-Range", f"bytes {first}-{last - 1}/{size}")
                self.send_header("ETag", f'"{size}"')
                self.send_header("Last-Modified", "Sat, 21 Nov 2026 00:00:00 GMT")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.do_GET()

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_address[1]}",
        "AWS_ACCESS_KEY_ID": "made",
        "AWS_SECRET_ACCESS_KEY": "made",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        yield "s3://bucket", requests
    finally:
        server.shutdown()
        server.server_close()


def arithmetic() -> None:
    """Print sizes to a billion cells, with DINOv2-base's 768 features; nothing of it is measured."""
    click.echo("\n## By arithmetic (not measured): 768 features in float16, grid 4\n")
    click.echo("| cells | side at 39 m | tiles | map | codes of cells + levels | masks | tiles that 64 beams read |")
    click.echo("|---|---|---|---|---|---|---|")
    for levels in (4, 5, 6, 7, 7.5):
        cells, steps = round(4 ** (2 * levels)), math.ceil(levels)
        tiles = round(sum(cells / 16**step for step in range(1, steps + 1)))
        read = 1 + sum(min(64, 16**step) for step in range(1, steps))
        click.echo(
            f"| {cells:.2e} | {39 * math.sqrt(cells) / 1000:.0f} km | {tiles:.2e} | {1536 * tiles / 1e9:.1f} GB | "
            f"{256 * (2 * cells + tiles) / 1e9:.1f} GB | {(cells + tiles) / 1e9:.2f} GB | {read}, "
            f"{1536 * read / 1e3:.0f} kB |"
        )


@click.command()
@click.option("--full", is_flag=True, help="Maps of 320 km and 500 000 photos too: 5 GB on disk.")
@click.option("--width", default=128, show_default=True, help="Features of an embedding.")
@click.option("--memory", default=200, show_default=True, help="Memory of a map that is read, MB.")
@click.option("--photos", default=20, show_default=True, help="Photos to locate.")
@click.option("--only", multiple=True, type=click.Choice(["locate", "command", "train", "objects", "arithmetic"]))
@click.option("--folder", type=click.Path(path_type=Path), help="Folder of temporary files.")
@click.option("--worker", type=click.Choice(list(WORK)), hidden=True)
@click.option("--options", hidden=True)
def main(
    full: bool, width: int, memory: int, photos: int, only: tuple[str, ...], folder: Path | None, worker: str | None,
    options: str,
) -> None:  # fmt: skip
    """Measure and print the tables."""
    if worker:
        result = WORK[worker](**json.loads(options))
        click.echo(json.dumps({**result, "peak_mb": peak_mb()}))
        return
    with tempfile.TemporaryDirectory(dir=folder, prefix="jzi-scaling-") as name:
        place = Path(name)
        if not only or "locate" in only:
            measure_locate(place, [*SIZES, *([LARGEST] if full else [])], width, memory * 10**6, photos)
        if not only or "command" in only:
            measure_command(place)
        if not only or "train" in only:
            measure_train(place, 500_000 if full else 30_000, width)
        if not only or "objects" in only:
            measure_objects(place, 160.0 if full else 40.0, width)
    if not only or "arithmetic" in only:
        arithmetic()


def peak_mb() -> float:
    """The largest resident set of this process so far, MB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    main()
