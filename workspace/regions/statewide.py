"""State-wide retrieval in a working directory: its imagery, training, index, and the locator that searches it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from jzi.errors import ConfigError
from jzi.retrieve.statewide import StatewideRetriever
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.features.cell_features import Unit
from jzi.store.geometry.region import RegionCells
from jzi.workspace.inputs import open_map, open_photo_table
from jzi.workspace.regions.region import open_region
from jzi.workspace.regions.region_index import faiss_folder, lance_table
from jzi.workspace.setup.settings import RegionSettings

if TYPE_CHECKING:
    from jzi.encode.encode_bands import RegionReport, UnitRunner
    from jzi.encode.encoders.towers import Towers, TowersConfig
    from jzi.encode.estimate import EncodingEstimate
    from jzi.encode.rasters.cell_crops import CellCrops
    from jzi.encode.rasters.imagery import Imagery
    from jzi.store.photos.photo_table import Rejected
    from jzi.train.statewide.statewide import StatewideReport
    from jzi.vectors.faiss_index import VectorIndex
    from jzi.vectors.lance_index import LanceIndex


def open_region_imagery(settings: RegionSettings, cells: RegionCells, background: tuple[int, int, int]) -> Imagery:
    """Open the map of a region; a context manager.

    Args:
        settings: the settings.
        cells: the region.
        background: colour of pixels without imagery.

    Raises:
        ImageryError: a raster cannot be used, or none touches the region.
    """
    return open_map(settings, cells.grid, background)


def crops_of(imagery: Imagery, cells: RegionCells, config: TowersConfig) -> CellCrops:
    """The images of a region's cells as towers expect them."""
    from jzi.encode.rasters.cell_crops import CellCrops

    return CellCrops(imagery, cells.grid, config.lods_m, config.image_size)


def new_towers(settings: RegionSettings) -> Towers:
    """Create the towers that the settings describe, with the encoders that they name.

    Raises:
        EncoderError: an encoder cannot be loaded, or does not fit the settings.
    """
    import torch

    from jzi.encode.encoders.towers import Towers, TowersConfig

    config = settings.statewide
    # Methods that have no levels of detail see one image of twice the cell
    lods_m = config.lods_m or (2 * settings.region.cell_m / config.image_size,)
    towers = TowersConfig(
        photo_model=config.photo_model,
        map_model=config.map_model,
        width=config.width,
        pooling=config.pooling,
        heads=config.heads,
        shared=config.method == "sample4geo",
        photo_size=config.photo_size,
        image_size=config.image_size,
        lods_m=lods_m,
        scale=config.scale,
    )
    photo, cells = (
        settings.path(name) if settings.path(name).is_dir() else name for name in (config.photo_model, config.map_model)
    )
    torch.manual_seed(config.seed)  # for the poolings; a resumed run starts from the same towers
    return Towers.create(photo, cells, towers)


def train_region(
    areas: Sequence[RegionSettings], output: Path, warn: Callable[[str], None]
) -> tuple[StatewideReport, tuple[Rejected, ...]]:
    """Train a retriever on one or several regions.

    Args:
        areas: settings of each region; the model and its training follow those of the first.
        output: the retriever's folder to write.
        warn: called with a sentence where imagery lacks overviews that training needs.

    Returns:
        The report, and the photos that cannot be used.

    Raises:
        ConfigError: the regions have cells of different size.
        ImageryError: imagery without overviews is too fine to train on.
        JziError: as `jzi.train.statewide.statewide.train_statewide`.
    """
    from jzi.encode.rasters.overviews import check_training_reads, reading_cost
    from jzi.train.statewide.statewide import train_statewide
    from jzi.train.statewide.statewide_data import StatewideArea

    settings = areas[0]
    if len(sizes := {area.region.cell_m for area in areas}) > 1:
        raise ConfigError(f"regions that are trained on together have cells of {sorted(sizes)} m: make them the same")
    regions = [open_region(area) for area in areas]
    tables = [open_photo_table(area).inside(cells.grid, cells) for area, cells in zip(areas, regions, strict=True)]
    towers = new_towers(settings)
    with contextlib.ExitStack() as stack:
        maps = [
            stack.enter_context(open_region_imagery(area, cells, towers.config.background))
            for area, cells in zip(areas, regions, strict=True)
        ]
        parts = [
            StatewideArea(crops_of(imagery, cells, towers.config), table, cells.runs)
            for imagery, cells, table in zip(maps, regions, tables, strict=True)
        ]
        for part in parts:
            if warning := check_training_reads(reading_cost(part.crops)):
                warn(warning)
        report = train_statewide(parts, towers, output, settings.statewide, settings=settings.to_toml())
    return report, tuple(row for table in tables for row in table.rejected)


@contextlib.contextmanager
def open_index(settings: RegionSettings, retriever: StatewideRetriever) -> Iterator[RegionIndex]:
    """Open the imagery of a region and the index of its cells for writing; the main process creates it.

    Raises:
        CacheMismatchError: the index belongs to another retriever, region or imagery.
        JziError: the region, the imagery or the retriever cannot be used.
    """
    from jzi.workspace.inputs import open_cache_of

    cells, towers = open_region(settings), retriever.load_encoder()
    with open_region_imagery(settings, cells, towers.config.background) as imagery:
        cache = open_cache_of(settings.cache_path, cells.info, towers, imagery)
        try:
            yield RegionIndex(cache, cells, towers, crops_of(imagery, cells, towers.config))
        finally:
            cache.close()


class RegionIndex:
    """The cells of a region in its cache, and what encodes them.

    Args:
        cache: the cache, open for writing.
        cells: the region.
        towers: the retriever's towers.
        crops: images of the cells.
    """

    def __init__(self, cache: FeatureCache, cells: RegionCells, towers: Towers, crops: CellCrops) -> None:
        self.cache, self.cells, self.towers, self.crops = cache, cells, towers, crops

    @cached_property
    def missing(self) -> list[Unit]:
        """What is to be encoded; all vectors are read once to find those that are damaged."""
        from jzi.encode.device import processes
        from jzi.encode.encode_bands import missing_units

        return missing_units(self.cache.cells, self.cells.runs, progress=processes().is_main_process)

    def estimate(self, processes: int) -> EncodingEstimate:
        """What encoding the missing cells will take, from a sample."""
        from jzi.encode.estimate import estimate

        cells, runs = self.cache.cells, self.cells.runs
        return estimate(cells, self.towers, self.crops, runs, processes=processes, missing=self.missing)

    def encode(self, batch_size: int, run_units: UnitRunner | None = None) -> RegionReport:
        """Encode the missing cells.

        Args:
            batch_size: cells per forward pass.
            run_units: as of `index_bands`.
        """
        from jzi.encode.encode_bands import index_bands

        return index_bands(
            self.cache,
            self.towers,
            self.crops,
            self.cells.runs,
            batch_size=batch_size,
            missing=self.missing,
            run_units=run_units,
        )


def build_faiss(settings: RegionSettings, kind: str, *, copy: bool = False) -> VectorIndex:
    """Build a Faiss index of a region's cells, beside their cache.

    Args:
        settings: the settings of the region.
        kind: "hnsw", "ivf-pq", "ivf-rabitq", or "auto" to choose by the number of cells.
        copy: whether inverted lists get a copy of the vectors; a graph has them already.

    Raises:
        ConfigError: Faiss is not installed, or no cell is encoded.
        ModelError: the folder cannot be written.
    """
    from jzi.vectors.faiss_index import VectorIndex

    cells = FeatureCache.open(settings.cache_path).cells
    return VectorIndex.build(cells, faiss_folder(settings), cast(Any, kind), copy=copy)


def build_lance(settings: RegionSettings) -> LanceIndex:
    """Write a region's cells to a LanceDB table, beside their cache.

    Raises:
        ConfigError: LanceDB is not installed, or no cell is encoded.
        ModelError: the table cannot be written.
    """
    from jzi.vectors.lance_index import LanceIndex

    return LanceIndex.build(FeatureCache.open(settings.cache_path).cells, lance_table(settings))


def export_cells(settings: RegionSettings, path: Path) -> int:
    """Write key, position and vector of every cell of a region to a Parquet file; returns their number.

    Raises:
        CacheError: there is no index, or it is damaged.
        ExportError: the file cannot be written.
    """
    from jzi.vectors.export import export_vectors

    cache = FeatureCache.open(settings.cache_path)
    return export_vectors(cache.cells, cache.area, path)
