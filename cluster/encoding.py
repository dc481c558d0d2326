"""What the processes of a cluster do: encode blocks of the map, its cells and detail, cells of a region, and photos."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from jzi.cluster.pool import Pool
from jzi.cluster.sent import SHARE, SentImagery, SentNetwork, SharedCache, file_size
from jzi.cluster.worker import Work
from jzi.encode.detail import encode_detail_units
from jzi.encode.encode_bands import CellUnit, encode_unit
from jzi.encode.encode_cells import encode_cell_units
from jzi.encode.encode_map import Block, encode_block
from jzi.encode.encode_queries import PhotoBatch, encode_batch
from jzi.encode.encoders.encoder import Encoder
from jzi.encode.encoders.photo_encoder import PhotoEncoder
from jzi.encode.encoders.towers import Towers
from jzi.encode.progress import Progress, UnitTask
from jzi.encode.rasters.cell_crops import CellCrops
from jzi.encode.rasters.detail_tiles import DetailTiles, TokenProducer
from jzi.encode.rasters.imagery import Imagery
from jzi.encode.rasters.tiles import Tile, TileRenderer
from jzi.errors import ClusterError
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.geometry.region import CellRuns

RunTasks = Callable[[list[Any], tqdm], list[Any]]


def task_runner(cache: FeatureCache, work: Callable[[], Work]) -> RunTasks:
    """What encodes tasks on the cluster that this process is connected to, counting them with a bar.

    Args:
        cache: what the tasks write to, open for writing.
        work: makes what the nodes do; called only if there are tasks.
    """

    def run(tasks: list[Any], bar: tqdm) -> list[Any]:
        if not tasks:
            return []
        pool = Pool(work())
        try:
            return pool.run(tasks, bar)
        finally:
            if pool.lost:
                cache.documents.remove_leftovers()

    return run


@dataclass(frozen=True)
class MapWork:
    """Encodes blocks of the map; attributes as of `encode_map`."""

    cache: SharedCache
    encoder: SentNetwork[Encoder]
    imagery: SentImagery
    batch_size: int
    tokens: bool

    @classmethod
    def of(cls, cache: FeatureCache, encoder: Encoder, imagery: Imagery, batch_size: int, tokens: bool) -> MapWork:
        """The work of `encode_map` with these arguments."""
        return cls(SharedCache.of(cache), SentNetwork.of(encoder), SentImagery.of(imagery), batch_size, tokens)

    def start(self, node: str) -> Callable[[Block, Progress], Tile | None]:
        """See `jzi.cluster.worker.Work`."""
        cache, imagery, encoder = self.cache.open(node), self.imagery.open(node), self.encoder.load()
        renderer = TileRenderer(imagery, encoder.image_size)

        def run(block: Block, progress: Progress) -> Tile | None:
            return encode_block(
                cache, encoder, renderer, block, progress, batch_size=self.batch_size, tokens=self.tokens
            )

        return run


@dataclass(frozen=True)
class CellWork:
    """Encodes cells of the map; attributes as of `index_cells`."""

    cache: SharedCache
    encoder: SentNetwork[Encoder]
    imagery: SentImagery
    context: float
    batch_size: int

    @classmethod
    def of(cls, cache: FeatureCache, encoder: Encoder, imagery: Imagery, context: float, batch_size: int) -> CellWork:
        """The work of `index_cells` with these arguments."""
        return cls(SharedCache.of(cache), SentNetwork.of(encoder), SentImagery.of(imagery), context, batch_size)

    def start(self, node: str) -> Callable[[UnitTask, Progress], None]:
        """See `jzi.cluster.worker.Work`."""
        cache, imagery, encoder = self.cache.open(node), self.imagery.open(node), self.encoder.load()

        def run(task: UnitTask, progress: Progress) -> None:
            encode_cell_units(cache, encoder, imagery, self.context, task.units, progress, batch_size=self.batch_size)

        return run


@dataclass(frozen=True)
class DetailWork:
    """Encodes tokens at a high resolution; attributes as of `encode_detail`."""

    cache: SharedCache
    producer: SentNetwork[TokenProducer]
    imagery: SentImagery
    pixels: int
    batch_size: int

    @classmethod
    def of(
        cls, cache: FeatureCache, producer: TokenProducer, imagery: Imagery, pixels: int, batch_size: int
    ) -> DetailWork:
        """The work of `encode_detail` with these arguments."""
        return cls(SharedCache.of(cache), SentNetwork.of(producer), SentImagery.of(imagery), pixels, batch_size)

    def start(self, node: str) -> Callable[[UnitTask, Progress], None]:
        """See `jzi.cluster.worker.Work`."""
        cache, producer = self.cache.open(node), self.producer.load()
        tiles = DetailTiles(self.imagery.open(node), self.pixels, producer)

        def run(task: UnitTask, progress: Progress) -> None:
            encode_detail_units(cache, producer, tiles, task.units, progress, batch_size=self.batch_size)

        return run


@dataclass(frozen=True)
class RegionWork:
    """Encodes cells of a region; attributes as of `index_bands`, and `crops` are those of `CellCrops`."""

    cache: SharedCache
    encoder: SentNetwork[Towers]
    imagery: SentImagery
    crops: dict[str, Any]
    runs: CellRuns
    batch_size: int

    @classmethod
    def of(cls, cache: FeatureCache, encoder: Towers, crops: CellCrops, runs: CellRuns, batch_size: int) -> RegionWork:
        """The work of `index_bands` with these arguments."""
        options = {name: getattr(crops, name) for name in ("grid", "lods_m", "image_size", "min_coverage")}
        sent = SentNetwork.of(encoder), SentImagery.of(crops.imagery)
        return cls(SharedCache.of(cache), *sent, options, runs, batch_size)

    def start(self, node: str) -> Callable[[CellUnit, Progress], float]:
        """See `jzi.cluster.worker.Work`."""
        cache, encoder = self.cache.open(node), self.encoder.load()
        crops = CellCrops(self.imagery.open(node), **self.crops)

        def run(task: CellUnit, progress: Progress) -> float:
            return encode_unit(cache, encoder, crops, self.runs, task, progress, batch_size=self.batch_size)

        return run


@dataclass(frozen=True)
class PhotoWork:
    """Encodes photos; attributes as of `encode_queries`."""

    cache: SharedCache
    encoder: SentNetwork[PhotoEncoder]
    batch_size: int
    seed: int
    tokens: bool

    @classmethod
    def of(cls, cache: FeatureCache, encoder: PhotoEncoder, batch_size: int, seed: int, tokens: bool) -> PhotoWork:
        """The work of `encode_queries` with these arguments."""
        return cls(SharedCache.of(cache), SentNetwork.of(encoder), batch_size, seed, tokens)

    def start(self, node: str) -> Callable[[PhotoBatch, Progress], list[tuple[int, str]]]:
        """See `jzi.cluster.worker.Work`."""
        queries, encoder = self.cache.open(node).queries, self.encoder.load()

        def run(batch: PhotoBatch, progress: Progress) -> list[tuple[int, str]]:
            for path, size in zip(batch.paths, batch.sizes, strict=True):
                if size >= 0 > file_size(path):  # it would be recorded as a photo that cannot be read
                    raise ClusterError(f"node {node} does not see the photo {path} of this machine: {SHARE}")
            return encode_batch(
                queries, encoder, batch, progress, batch_size=self.batch_size, seed=self.seed, tokens=self.tokens
            )

        return run
