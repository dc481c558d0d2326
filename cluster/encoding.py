"""What the processes of a cluster do: encode blocks of the map, cells of a region, and photos."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from jzi.cluster.pool import Pool
from jzi.encode.device import best_device
from jzi.encode.encode_bands import CellUnit, encode_unit
from jzi.encode.encode_map import Block, encode_block
from jzi.encode.encode_queries import PhotoBatch, encode_batch
from jzi.encode.encoders.encoder import Encoder
from jzi.encode.encoders.photo_encoder import PhotoEncoder
from jzi.encode.encoders.towers import Towers
from jzi.encode.progress import Progress
from jzi.encode.rasters.cell_crops import CellCrops
from jzi.encode.rasters.imagery import Imagery
from jzi.encode.rasters.tiles import Tile, TileRenderer
from jzi.errors import CacheError, ClusterError, ImageryError
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.disk.lock import FollowedLock
from jzi.store.disk.storage import is_url
from jzi.store.geometry.region import CellRuns

#: What to do about a file that a node does not see.
SHARE = "put it on storage that all nodes see under the same path, or on object storage"


@dataclass(frozen=True)
class SharedCache:
    """A cache that the driver has locked.

    Attributes:
        path: its absolute path or URL.
        lock: record of the driver's lock.
    """

    path: str
    lock: bytes

    @classmethod
    def of(cls, cache: FeatureCache) -> SharedCache:
        """The cache of the driver, which is open for writing."""
        lock = cache.documents.lock
        record = lock.record if lock is not None else None
        assert record is not None
        return cls(_absolute(cache.path), record)

    def open(self, node: str) -> FeatureCache:
        """Open it for writing, if this node sees the same one: that which has the driver's lock."""
        unseen = f"node {node} does not see the cache {self.path} of this machine: {SHARE}"
        if not is_url(self.path) and not Path(self.path).is_dir():
            raise ClusterError(unseen)
        lock = FollowedLock(self.path, self.lock)
        try:
            lock.check()
            cache = FeatureCache.open(self.path, "r+", lock="shared")
        except CacheError as error:
            raise ClusterError(f"{unseen} ({error})") from error
        cache.documents.lock = lock
        return cache


@dataclass(frozen=True)
class SentEncoder:
    """An encoder on its way to the nodes, with its weights in main memory.

    Attributes:
        model: the model, or the towers.
        options: of the constructor of `Encoder`; None for towers.
    """

    model: Any
    options: dict[str, Any] | None

    @classmethod
    def of(cls, encoder: PhotoEncoder) -> SentEncoder:
        """An encoder of this process, on any device."""
        if isinstance(encoder, Encoder):
            names = ("name", "from_hub", "image_size", "layout", "resampling", "mean", "std", "fingerprint")
            return cls(copy.deepcopy(encoder.model).cpu(), {name: getattr(encoder, name) for name in names})
        assert isinstance(encoder, Towers)
        return cls(copy.deepcopy(encoder).cpu(), None)

    def load(self) -> PhotoEncoder:
        """The encoder on the best device of this process."""
        if self.options is None:
            towers: Towers = self.model.to(best_device())
            return towers
        return Encoder(self.model, **self.options)


@dataclass(frozen=True)
class SentImagery:
    """Imagery for each node to open.

    Attributes:
        options: of the constructor of `Imagery`.
        sizes: bytes of the rasters that are files.
    """

    options: dict[str, Any]
    sizes: dict[str, int]

    @classmethod
    def of(cls, imagery: Imagery) -> SentImagery:
        """Imagery of this process."""
        paths = [_absolute(path) for path in imagery.paths]
        names = ("area", "options", "background", "attribution")
        options = {"paths": paths, **{name: getattr(imagery, name) for name in names}}
        return cls(options, {path: _size(path) for path in paths if not is_url(path)})

    def open(self, node: str) -> Imagery:
        """Open it, if this node sees the same rasters."""
        for path, size in self.sizes.items():
            if _size(path) != size:
                raise ClusterError(f"node {node} does not see the raster {path} of this machine: {SHARE}")
        try:
            return Imagery(**self.options)
        except ImageryError as error:
            raise ClusterError(f"node {node} cannot read the map ({error}): {SHARE}") from error


@dataclass(frozen=True)
class MapWork:
    """Encodes blocks of the map; attributes as of `encode_map`."""

    cache: SharedCache
    encoder: SentEncoder
    imagery: SentImagery
    batch_size: int
    tokens: bool

    def start(self, node: str) -> Callable[[Block, Progress], Tile | None]:
        """See `jzi.cluster.worker.Work`."""
        cache, imagery, encoder = self.cache.open(node), self.imagery.open(node), self.encoder.load()
        assert isinstance(encoder, Encoder)
        renderer = TileRenderer(imagery, encoder.image_size)

        def run(block: Block, progress: Progress) -> Tile | None:
            return encode_block(
                cache, encoder, renderer, block, progress, batch_size=self.batch_size, tokens=self.tokens
            )

        return run


@dataclass(frozen=True)
class CellWork:
    """Encodes cells of a region; attributes as of `index_bands`, and `crops` are those of `CellCrops`."""

    cache: SharedCache
    encoder: SentEncoder
    imagery: SentImagery
    crops: dict[str, Any]
    runs: CellRuns
    batch_size: int

    def start(self, node: str) -> Callable[[CellUnit, Progress], float]:
        """See `jzi.cluster.worker.Work`."""
        cache, encoder = self.cache.open(node), self.encoder.load()
        crops = CellCrops(self.imagery.open(node), **self.crops)
        assert isinstance(encoder, Towers)

        def run(task: CellUnit, progress: Progress) -> float:
            return encode_unit(cache, encoder, crops, self.runs, task, progress, batch_size=self.batch_size)

        return run


@dataclass(frozen=True)
class PhotoWork:
    """Encodes photos. Attributes as of `encode_queries`."""

    cache: SharedCache
    encoder: SentEncoder
    batch_size: int
    seed: int
    tokens: bool

    def start(self, node: str) -> Callable[[PhotoBatch, Progress], list[tuple[int, str]]]:
        """See `jzi.cluster.worker.Work`."""
        queries, encoder = self.cache.open(node).queries, self.encoder.load()

        def run(batch: PhotoBatch, progress: Progress) -> list[tuple[int, str]]:
            for path, size in zip(batch.paths, batch.sizes, strict=True):
                if size >= 0 > _size(path):  # it would be recorded as a photo that cannot be read
                    raise ClusterError(f"node {node} does not see the photo {path} of this machine: {SHARE}")
            return encode_batch(
                queries, encoder, batch, progress, batch_size=self.batch_size, seed=self.seed, tokens=self.tokens
            )

        return run


def block_runner(
    cache: FeatureCache, encoder: Encoder, imagery: Imagery, batch_size: int, tokens: bool
) -> Callable[[list[Block], tqdm], list[Tile]]:
    """What `encode_map` encodes its blocks by, on the cluster that this process is connected to.

    Args:
        cache: open for writing, as are the others those of `encode_map`.
        encoder: the cache's encoder.
        imagery: the cache's imagery.
        batch_size: tiles per forward pass of a process.
        tokens: whether to store patch tokens.
    """

    def run(blocks: list[Block], bar: tqdm) -> list[Tile]:
        work = MapWork(SharedCache.of(cache), SentEncoder.of(encoder), SentImagery.of(imagery), batch_size, tokens)
        return [tile for tile in _run(cache, work, blocks, bar) if tile is not None]

    return run


def unit_runner(
    cache: FeatureCache, encoder: Towers, crops: CellCrops, runs: CellRuns, batch_size: int
) -> Callable[[list[CellUnit], tqdm], list[float]]:
    """What `index_bands` encodes its units by, on the cluster that this process is connected to.

    Args:
        cache: open for writing, as are the others those of `index_bands`.
        encoder: the cache's encoder.
        crops: images of the cells.
        runs: the cells of the region.
        batch_size: cells per forward pass of a process.
    """

    def run(units: list[CellUnit], bar: tqdm) -> list[float]:
        names = ("grid", "lods_m", "image_size", "min_coverage")
        options = {name: getattr(crops, name) for name in names}
        sent = SentEncoder.of(encoder), SentImagery.of(crops.imagery)
        return _run(cache, CellWork(SharedCache.of(cache), *sent, options, runs, batch_size), units, bar)

    return run


def photo_runner(
    cache: FeatureCache, encoder: PhotoEncoder, batch_size: int, seed: int, tokens: bool
) -> Callable[[list[PhotoBatch], tqdm], list[list[tuple[int, str]]]]:
    """What `encode_queries` encodes its photos by, on the cluster that this process is connected to.

    Args:
        cache: open for writing, as are the others those of `encode_queries`.
        encoder: the cache's encoder.
        batch_size: photos per forward pass of a process.
        seed: of the views.
        tokens: whether to store the photos' tokens.
    """

    def run(batches: list[PhotoBatch], bar: tqdm) -> list[list[tuple[int, str]]]:
        work = PhotoWork(SharedCache.of(cache), SentEncoder.of(encoder), batch_size, seed, tokens)
        return _run(cache, work, batches, bar)

    return run


def _run(cache: FeatureCache, work: Any, tasks: list[Any], bar: tqdm) -> list[Any]:
    if not tasks:
        return []
    pool = Pool(work)
    try:
        return pool.run(tasks, bar)
    finally:
        if pool.lost:
            cache.documents.remove_leftovers()


def _absolute(path: str | Path) -> str:
    return str(path) if is_url(path) else str(Path(path).absolute())


def _size(path: str) -> int:
    """Bytes of a file; -1 if it is not there."""
    try:
        return Path(path).stat().st_size
    except OSError:
        return -1
