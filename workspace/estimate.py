"""What the steps of an area will take: a few seconds of each are measured on this machine, the rest is arithmetic.

Encoding is measured on some of the area's own tiles and photos, training and search on made embeddings of the right
shapes. Nothing is written.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from jzi.decode.dataset import ZoomDataset
from jzi.decode.decoder import ZoomDecoder
from jzi.decode.expert import ZoomExpert
from jzi.decode.model import ZoomModel
from jzi.decode.search import greedy_paths
from jzi.decode.tile_table import TileTable
from jzi.encode.detail import MAX_FEATURES
from jzi.encode.device import best_device, free_bytes
from jzi.encode.photo.photo_reader import PhotoReader
from jzi.encode.rasters.tiles import TileRenderer
from jzi.errors import ConfigError, JziError
from jzi.locate.answer.location import LocateOptions, to_locations
from jzi.store.disk.storage import is_url
from jzi.store.features.map_embeddings import ENCODED, MapEmbeddings
from jzi.store.geometry.pyramid import Pyramid, TileKey
from jzi.train.data import DataInfo, TrainingData
from jzi.train.decoder import DecoderTask
from jzi.train.heads import CellsTask, HeadsTask, LevelsTask
from jzi.train.loop import TrainingLoop, make_accelerator
from jzi.train.run import TrainingRun
from jzi.train.task import Batch
from jzi.workspace.inputs import load_encoder, open_imagery, open_photo_table
from jzi.workspace.stages.refiner import open_producer

if TYPE_CHECKING:
    from jzi.encode.encoders.encoder import Encoder
    from jzi.workspace.setup.settings import Settings

#: Seconds for which each kind of work is measured, after one unit that is not: six kinds and loading the encoder take
#: about 20 s.
SECONDS = 2.5

#: Photos that are made to measure training and search: their number does not change the time of a step.
MADE = 1024

#: Most bytes of what is made to measure training and search, within half of the free memory; making 4 GB takes seconds.
LARGEST = 4_000_000_000

#: Bytes of a value of the embeddings that describe cells (`jzi.retrieve.heads.cell_scales`) while they are made: three
#: arrays in float16 and one in float32.
MAKING_BYTES = 10

#: Bytes of a weight in training: float32, its gradient and AdamW's two moments. And of a checkpoint, which has no
#: gradients, beside the one before it while it is written; when training has ended, it has no weights either.
TRAINED_BYTES, CHECKPOINT_BYTES = 16, 2 * 12

#: Bytes of a photo in the cache beside its embedding: digest, position, time and size, from 62 for each of 4096 photos.
PHOTO_BYTES = 60

#: Arrays in float32 of (cell, level * feature), (cell, hidden), (cell, code) and (photo, cell) that a step of the
#: expert cells holds at its peak, from peaks of 757 and 390 MB with 65 536 cells and batches of 256 and 16 photos.
DESCRIBING_ARRAYS, HIDDEN_ARRAYS, CODE_ARRAYS, PHOTO_ARRAYS = 2, 3, 5, 4


@dataclass(frozen=True)
class StepEstimate:
    """What one step takes.

    Attributes:
        name: the command.
        unit: what is counted.
        count: number of units.
        each_s: seconds of one unit, measured.
        seconds: of the step.
        disk_bytes: what it leaves on the disk.
        memory_bytes: what it needs in memory, beside the program itself.
        measured: what was measured.
        arithmetic: how the rest follows.
        checkpoint_bytes: what it needs on the disk beside that while it runs.
    """

    name: str
    unit: str
    count: int
    each_s: float
    seconds: float
    disk_bytes: int
    memory_bytes: int
    measured: str
    arithmetic: str
    checkpoint_bytes: int = 0


@dataclass(frozen=True)
class AreaEstimate:
    """What an area takes.

    Attributes:
        device: what was measured on.
        steps: the steps in the order of their use.
        program_bytes: memory of the program with the encoder.
        free_memory_bytes: what is free on the device.
        free_disk_bytes: what is free where the cache is; None if it is on object storage.
        warnings: what does not fit, and what could not be measured.
        took_s: seconds that the estimate took.
    """

    device: str
    steps: tuple[StepEstimate, ...]
    program_bytes: int
    free_memory_bytes: int
    free_disk_bytes: int | None
    warnings: tuple[str, ...]
    took_s: float


def estimate_area(settings: Settings, photos: int | None = None) -> AreaEstimate:
    """Measure a few seconds of each step of an area.

    Args:
        settings: the settings: area, map, photos, encoder, training.
        photos: number of photos with positions; by default those of the photo table.

    Raises:
        ConfigError: neither a photo table nor a number of photos is given.
        EncoderError: the encoder cannot be loaded.
        ImageryError: the imagery cannot be read.
        PhotoTableError: the photo table cannot be used.
    """
    began = time.perf_counter()
    if photos is None and not settings.queries.table:
        raise ConfigError("no photos are named: set queries.table in jzi.toml, or give their number as --photos")
    encoder = load_encoder(settings)
    shares = _Photos.of(settings, photos)
    pyramid, width = settings.pyramid, encoder.info.width
    steps, warnings = [_map(settings, encoder)], list[str]()
    steps.append(_queries(settings, encoder, shares))
    try:
        steps.append(_detail(settings, encoder))
        steps.append(_photo_tokens(encoder, steps[1], shares))
    except JziError as error:  # such as an encoder without patch tokens, of which a detail cannot be made
        warnings.append(f"encode-map --detail was not measured: {error}")
    places = pyramid.tile_count + pyramid.cell_count
    made = 2 * width * (places + MADE) + _describing_bytes(pyramid, width)
    if made > min(LARGEST, free_bytes(torch.device("cpu")) // 2):
        warnings.append(
            f"training and search were not measured: the embeddings of {places:,} tiles and "
            f"cells take {made / 1e9:.1f} GB in memory; train and locate on a smaller area to know"
        )
    else:
        steps += _training_and_search(settings, encoder, shares)
    device, free = torch.device(best_device()), free_bytes(torch.device(best_device()))
    program = psutil.Process().memory_info().rss
    disk = None if is_url(settings.cache_path) else shutil.disk_usage(_existing(Path(settings.cache_path))).free
    needed = sum(step.disk_bytes for step in steps) + max(step.checkpoint_bytes for step in steps)
    if disk is not None and needed > disk:
        warnings.append(f"the steps write {needed / 1e9:.1f} GB, but the disk has {disk / 1e9:.1f} GB free")
    warnings += [
        f"{step.name} needs {step.memory_bytes / 1e9:.1f} GB of memory, but {free / 1e9:.1f} GB are free"
        for step in steps
        if step.memory_bytes > free
    ]
    label = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    return AreaEstimate(label, tuple(steps), program, free, disk, tuple(warnings), time.perf_counter() - began)


@dataclass(frozen=True)
class _Photos:
    """How many photos there are by split, and the files of some of them."""

    train: int
    val: int
    total: int
    files: tuple[Path, ...]

    @classmethod
    def of(cls, settings: Settings, count: int | None) -> _Photos:
        if not settings.queries.table:
            assert count is not None
            return cls(round(0.8 * count), round(0.1 * count), count, ())
        frame = open_photo_table(settings).inside(settings.pyramid).frame
        total = len(frame) if count is None else count
        scale = total / max(1, len(frame))
        splits = frame["split"].value_counts()
        spread = np.linspace(0, max(0, len(frame) - 1), min(len(frame), MADE)).astype(np.int64)
        files = tuple(Path(file) for file in frame["photo"].iloc[spread])
        return cls(round(scale * splits.get("train", 0)), round(scale * splits.get("val", 0)), total, files)


def _map(settings: Settings, encoder: Encoder) -> StepEstimate:
    """`encode-map --cells`; cells are taken for tiles, of which most have the same size."""
    pyramid, batch = settings.pyramid, settings.encoder.batch_size
    with open_imagery(settings) as imagery:
        renderer = TileRenderer(imagery, encoder.image_size)
        side = pyramid.tiles_per_side(renderer.unit_level)
        order = np.random.default_rng(0).permutation(side * side)[: 4 * batch]
        units = [TileKey(renderer.unit_level, *divmod(int(index), side)) for index in order]

        def batches() -> Iterator[NDArray[np.uint8]]:
            images = []
            for tile in renderer.render(units):
                images.append(tile.image)
                if len(images) == batch:
                    yield np.stack(images)
                    images = []
            if images:
                yield np.stack(images)

        each, measured = _rate(batches(), lambda images: encoder.to_storage(encoder.encode_tiles(images)))
    tiles, cells, width = pyramid.tile_count, pyramid.cell_count, encoder.info.width
    tokens = 2 * tiles * encoder.patches * width if settings.map.tokens else 0
    return StepEstimate(
        "encode-map --cells",
        "tiles, cells",
        tiles + cells,
        each,
        each * (tiles + cells),
        2 * width * (tiles + cells) + tokens,
        batch * encoder.image_size**2 * 3 * 8,
        f"{measured} tiles read and encoded",
        f"{tiles:,} tiles and {cells:,} cells, as if all had imagery and none were encoded",
    )


def _queries(settings: Settings, encoder: Encoder, photos: _Photos) -> StepEstimate:
    batch = settings.encoder.batch_size
    if photos.files:
        reader = PhotoReader(encoder.photo_shape, encoder.resampling, fit=encoder.fit)
        read = (
            np.stack(pixels)
            for each in reader.batches(photos.files, batch)
            if (pixels := [photo.pixels for photo in each if photo.pixels is not None])
        )
        text = "photos read and encoded"
    else:
        read = (np.zeros((batch, *encoder.photo_shape, 3), np.uint8) for _ in range(100))
        text = "made photos encoded, without reading any"
    each, measured = _rate(read, lambda pixels: encoder.to_storage(encoder.encode_photos(pixels)))
    views = settings.queries.views * photos.train
    return StepEstimate(
        "encode-queries",
        "photos, views" if views else "photos",
        photos.total + views,
        each,
        each * (photos.total + views),
        2 * encoder.info.width * (photos.total + views) + PHOTO_BYTES * photos.total,
        batch * int(np.prod(encoder.photo_shape)) * 3 * 8,
        f"{measured} {text}",
        f"{photos.total:,} photos and {views:,} augmented views, which are taken for photos",
    )


def _detail(settings: Settings, encoder: Encoder) -> StepEstimate:
    producer, pixels = open_producer(settings, encoder, None)
    pyramid = settings.pyramid
    images = np.zeros((1, *(pixels + 2 * producer.margin,) * 2, 3), np.uint8)
    each, measured = _rate((images for _ in range(100)), lambda image: producer.tokens(image).cpu())
    count, tokens = pyramid.tiles_per_side(pyramid.levels - 1) ** 2, (pixels // producer.patch) ** 2
    features = min(MAX_FEATURES, producer.width)
    return StepEstimate(
        "encode-map --detail",
        "tiles",
        count,
        each,
        each * count,
        count * tokens * features,
        int(np.prod(images.shape)) * 4 + 4 * tokens * producer.width,
        f"{measured} made tiles of {pixels} px encoded",
        f"the {count:,} tiles of the last level, {tokens:,} tokens of {features} bytes each; for refiners only",
    )


def _photo_tokens(encoder: Encoder, queries: StepEstimate, photos: _Photos) -> StepEstimate:
    """`encode-queries --tokens`, from the estimate of `encode-queries`: one forward pass makes both."""
    tokens = encoder.patches * round(np.prod(encoder.photo_shape) / encoder.image_size**2)
    features = min(MAX_FEATURES, encoder.info.width)
    return replace(
        queries,
        name="encode-queries --tokens",
        unit="photos",
        count=photos.total,
        seconds=queries.each_s * photos.total,
        disk_bytes=photos.total * tokens * features,
        arithmetic=f"{photos.total:,} photos, {tokens:,} tokens of {features} bytes each; for refiners only",
    )


def _training_and_search(settings: Settings, encoder: Encoder, photos: _Photos) -> list[StepEstimate]:
    """`train-decoder` with its experts, and `locate`, from made embeddings."""
    pyramid, device = settings.pyramid, torch.device(best_device())
    data = _made_data(pyramid, encoder, min(MADE, max(1, photos.train)), device)
    config = replace(settings.decoder, width=encoder.info.width, actions=pyramid.actions, patch_tokens=0)
    decoder = ZoomDecoder(config).to(device)
    train, heads = settings.train, settings.heads
    with tempfile.TemporaryDirectory(prefix="jzi-estimate") as folder:  # nothing is written into it
        run = TrainingRun(Path(folder), {})
        accelerator = make_accelerator(train, Path(folder))
        task = DecoderTask(accelerator, decoder, data.table, data.train, data.val, train, run)
        step, steps = _step_rate(TrainingLoop(task, run, progress=False), train.batch_size)
        tasks: list[HeadsTask] = [kind(accelerator, data, heads, run, 0) for kind in (CellsTask, LevelsTask)]
        head, head_steps = 0.0, 0
        for each_task in tasks:
            each, number = _step_rate(TrainingLoop(each_task, run, progress=False), heads.batch_size)
            head, head_steps = head + each, head_steps + number
    decoder.eval()
    greedy, _ = _rate((data.dataset.query[:256, 0].float() for _ in range(100)),
                      lambda query: greedy_paths(decoder, data.table, query))  # fmt: skip
    model = ZoomModel(decoder, pyramid, encoder.info, None, Path())
    expert, options = ZoomExpert(model, data.table), LocateOptions()
    located, _ = _rate(
        (data.dataset.query[row : row + 1, 0].float() for row in range(MADE)),
        lambda query: to_locations(expert.posterior(query, options), options, [""]),
    )
    reader = PhotoReader(encoder.photo_shape, encoder.resampling, fit=encoder.fit)
    pixels = next((photo.pixels for photo in reader.read(photos.files[:8]) if photo.pixels is not None), None)
    if pixels is None:
        pixels = np.zeros((*encoder.photo_shape, 3), np.uint8)
    encoded, _ = _rate((pixels[None].copy() for _ in range(100)), encoder.encode_photos)

    parameters = sum(parameter.numel() for parameter in decoder.parameters())
    head_parameters = sum(parameter.numel() for each in tasks for parameter in each.network.parameters())
    tiles, cells, width = pyramid.tile_count, pyramid.cell_count, encoder.info.width
    table, queries = 2 * width * (tiles + cells), 2 * width * photos.total * (1 + settings.queries.views)
    trained = TRAINED_BYTES * (parameters + head_parameters)
    # decoder, heads beside their records and beside the codes of the experts cells and levels, the map, photos of vpr
    written = 4 * parameters + 8 * head_parameters + 2 * width * (tiles + photos.train)
    written += 2 * heads.features * (2 * cells + tiles)
    per_cell = (
        DESCRIBING_ARRAYS * pyramid.levels * width
        + HIDDEN_ARRAYS * heads.hidden
        + CODE_ARRAYS * heads.features
        + PHOTO_ARRAYS * heads.batch_size
    )
    heads_step = 2 * cells * pyramid.levels * width + 4 * min(cells, heads.sampled) * per_cell
    needed = trained + table + queries + max(heads_step, _describing_bytes(pyramid, width))
    epochs = train.epochs * (photos.train * step + photos.val * greedy) + heads.epochs * photos.train * head
    fusion = 2 * photos.val * located  # posteriors of the validation photos: the zoom's, and as much for the others
    return [
        StepEstimate(
            "train-decoder",
            "photos",
            photos.train,
            step,
            epochs + fusion,
            written + _encoder_bytes(settings),
            needed,
            f"{steps} steps of {train.batch_size} photos, {head_steps} of the heads, greedy search",
            f"{train.epochs} epochs of the decoder with validation, {heads.epochs} of the heads, and the fusion; "
            f"checkpoints take {CHECKPOINT_BYTES * parameters / 1e6:,.0f} MB more of the disk until it has ended",
            CHECKPOINT_BYTES * parameters,
        ),
        StepEstimate(
            "locate",
            "photo",
            1,
            encoded + located,
            encoded + located,
            0,
            4 * parameters + table,
            f"a photo encoded ({1000 * encoded:.0f} ms), the zoom's posterior and point ({1000 * located:.0f} ms)",
            "one photo at a time after the start; the other experts add a few milliseconds",
        ),
    ]


def _made_data(pyramid: Pyramid, encoder: Encoder, count: int, device: torch.device) -> TrainingData:
    """A map and photos of the right shapes; of a map with random embeddings the zoom decides nothing."""
    generator = np.random.default_rng(0)
    width, sides = encoder.info.width, [pyramid.tiles_per_side(level) for level in range(pyramid.levels + 1)]
    row = generator.standard_normal(width).astype(np.float16)
    embedding = tuple(np.broadcast_to(row, (side, side, width)).copy() for side in sides)
    status = tuple(np.full((side, side), ENCODED, np.uint8) for side in sides)
    embeddings = MapEmbeddings(pyramid, embedding[:-1], status, embedding[-1])
    table = TileTable(embeddings, device)
    row_of, col_of = generator.integers(sides[-1], size=(2, count))
    paths = pyramid.cell_to_path(row_of, col_of)
    latitude, longitude = pyramid.unproject(*pyramid.cell_centers(row_of, col_of))
    query = torch.from_numpy(generator.standard_normal((count, 1, width)).astype(np.float16)).to(device)
    photos = ZoomDataset(query, table.tiles_along(paths), torch.from_numpy(paths).to(device), latitude, longitude, 0)
    info = DataInfo(pyramid, encoder.info, None, "", {}, pyramid.footprint(pyramid.levels - 1))
    return TrainingData("", info, embeddings, table, photos, photos, photos)


def _step_rate(loop: TrainingLoop, batch: int) -> tuple[float, int]:
    """Seconds per photo of training steps, and the number of steps that were measured."""
    photos = []

    def batches() -> Iterator[Batch]:
        for epoch in range(100):
            yield from loop.task.batches(epoch, 0)

    loop.task.network.train()
    start, steps = 0.0, -1
    for each in batches():
        loss = loop.step(each)
        loss.item()  # waits for the device
        steps += 1
        if steps == 0:
            start = time.perf_counter()
        else:
            photos.append(each.photos)
            if time.perf_counter() - start > SECONDS:
                break
    return (time.perf_counter() - start) / max(1, sum(photos)), len(photos)


def _rate(items: Iterator[Any], work: Callable[[Any], object]) -> tuple[float, int]:
    """Seconds per row of arrays, and the number of rows measured; the first array is not, unless it is the only one."""
    start, rows, first, first_s = time.perf_counter(), -1, 0, 0.0
    for item in items:
        work(item)
        if rows < 0:
            rows, first, first_s = 0, len(item), time.perf_counter() - start
            start = time.perf_counter()
            continue
        rows += len(item)
        if time.perf_counter() - start > SECONDS:
            break
    if rows <= 0:
        return (first_s / first, first) if first else (0.0, 0)
    return (time.perf_counter() - start) / rows, rows


def _describing_bytes(pyramid: Pyramid, width: int) -> int:
    """Memory in which the expert cells makes what it describes each cell by, the embeddings of all its levels."""
    return MAKING_BYTES * pyramid.cell_count * pyramid.levels * width


def _encoder_bytes(settings: Settings) -> int:
    """Bytes of the encoder's weights that a model folder gets a copy of; 0 of an encoder that the hub has."""
    folder = settings.encoder_folder
    return 0 if folder is None else sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _existing(path: Path) -> Path:
    return next(each for each in (path, *path.absolute().parents) if each.exists())
