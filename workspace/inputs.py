"""Open the imagery, photos, encoder and cache that the settings name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jzi.decode.config import Precision
from jzi.errors import ConfigError
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.geometry.region import RegionCells, RegionInfo
from jzi.workspace.setup.settings import AreaSettings, RegionSettings, Settings, find_rasters, names_url
from jzi.workspace.setup.settings_file import is_pairs, load_area

if TYPE_CHECKING:
    from jzi.encode.encoders.encoder import Encoder
    from jzi.encode.encoders.towers import Towers
    from jzi.encode.rasters.imagery import Imagery
    from jzi.store.cache.feature_cache import FeatureCache
    from jzi.store.geometry.cell_grid import CellGrid
    from jzi.store.photos.photo_table import PhotoTable

#: File beside jzi.toml that keeps what the EXIF of a folder of photos says, for commands that read their positions.
EXIF_RECORD = "photos.exif.parquet"


def open_imagery(settings: Settings) -> Imagery:
    """Open the map that the settings name; a context manager.

    Raises:
        ImageryError: a raster cannot be used, or none touches the area.
    """
    return open_map(settings, settings.pyramid)


def open_map(settings: AreaSettings, area: CellGrid, background: tuple[int, int, int] | None = None) -> Imagery:
    """Open the map that the settings name, for an area of any geometry; a context manager.

    Args:
        settings: the settings.
        area: its cells.
        background: colour of pixels without imagery; by default that of `Imagery`.

    Raises:
        ConfigError: there is no such raster.
        ImageryError: a raster cannot be used, or none touches the area.
    """
    from jzi.encode.rasters.imagery import BACKGROUND, Imagery
    from jzi.encode.rasters.raster import RasterOptions

    options = RasterOptions(settings.map.crs, settings.map.nodata, settings.map.stretch, settings.map.remote)
    return Imagery(settings.rasters, area, options, background or BACKGROUND, settings.map.attribution)


def open_rasters(rasters: Sequence[str], area: CellGrid) -> Imagery:
    """Open rasters that an option names; errors as of `open_map`."""
    from jzi.encode.rasters.imagery import Imagery
    from jzi.encode.rasters.raster import RasterOptions

    return Imagery(find_rasters(rasters), area, RasterOptions(remote=names_url(rasters)))


def imagery_of(area: CellGrid, rasters: Sequence[str], config_file: Path) -> Imagery | None:
    """Open a map to draw on, if there is one.

    Args:
        area: geometry of the area.
        rasters: files, globs or folders; if empty, the map of `config_file` if that has the same area, or is of a
            region as the area is.
        config_file: a jzi.toml, which need not exist.

    Raises:
        ConfigError: there is no such raster.
        ImageryError: a raster cannot be used.
    """
    if rasters:
        return open_rasters(rasters, area)
    if config_file.exists():
        settings = load_area(config_file)
        own = settings.pyramid == area if isinstance(settings, Settings) else not isinstance(area, Pyramid)
        if own and settings.map.rasters:
            return open_map(settings, area)
    return None


def load_encoder(settings: Settings) -> Encoder:
    """Load the encoder that the settings name.

    Raises:
        EncoderError: it cannot be loaded.
    """
    from jzi.encode.encoders.encoder import Encoder

    options = settings.encoder
    name = settings.encoder_folder or options.name
    return Encoder.load(name, image_size=options.image_size, layout=options.layout, resampling=options.resampling)


def open_cache(settings: Settings, encoder: Encoder, imagery: Imagery | None = None) -> FeatureCache:
    """Open the cache that the settings name for writing; the main process creates it if it does not exist.

    Raises:
        CacheMismatchError: it belongs to another encoder, pyramid or imagery.
    """
    return open_cache_of(settings.cache_path, settings.pyramid, encoder, imagery)


def open_cache_of(
    path: str, area: Pyramid | RegionInfo, encoder: Encoder | Towers, imagery: Imagery | None = None
) -> FeatureCache:
    """Open a cache for writing, such as the index of a retriever; the main process creates it if it does not exist.

    Args:
        path: path or URL of the cache.
        area: geometry of the area.
        encoder: encoder of the embeddings.
        imagery: the map; None to write photos only.

    Raises:
        CacheMismatchError: the cache belongs to another encoder, pyramid or imagery.
        CacheError: several processes were launched, and a process of no launch of theirs writes to it.
    """
    from jzi.encode.device import processes, writer_lock_mode
    from jzi.store.cache.feature_cache import FeatureCache
    from jzi.store.disk.lock import WriterLock
    from jzi.store.disk.storage import exists

    lock = writer_lock_mode()
    with processes().main_process_first(), WriterLock(path, lock):
        info = None
        if imagery:
            info = imagery.info(FeatureCache.open(path, "r+", lock=lock).imagery if exists(path) else None)
        return FeatureCache.open_or_create(path, area, encoder.info, info, lock=lock)


def open_photo_cache(
    settings: Settings | RegionSettings, retriever: Path | None, cells: RegionCells | None = None
) -> tuple[FeatureCache, Encoder | Towers]:
    """Open the cache that photos are encoded into, for writing, and load the encoder.

    Args:
        settings: the settings.
        retriever: folder of the retriever whose encoder to use; None for the encoder that the settings name.
        cells: the region, if the settings are those of one; its index holds its photos too.

    Raises:
        ModelError: the folder holds no retriever of this kind.
        CacheMismatchError: the cache belongs to another encoder or area.
    """
    from jzi.retrieve.retriever import Retriever
    from jzi.retrieve.statewide import StatewideRetriever

    encoder: Encoder | Towers
    if cells is not None:
        assert retriever is not None
        encoder = StatewideRetriever.load(retriever).load_encoder()
        return open_cache_of(settings.cache_path, cells.info, encoder), encoder
    assert isinstance(settings, Settings)
    if retriever is not None:
        model = Retriever.load(retriever)
        encoder = model.load_encoder()
        return open_cache_of(model.cache_path, settings.pyramid, encoder), encoder
    encoder = load_encoder(settings)
    return open_cache(settings, encoder), encoder


def open_photo_table(settings: AreaSettings) -> PhotoTable:
    """Read the photo table that the settings name.

    Raises:
        ConfigError: the settings name none, or `queries.split_by` is set for a table that has its own splits.
        PhotoTableError: the table cannot be used.
    """
    from jzi.store.photos.photo_table import read_photo_table

    paths, photos = _photo_source(settings)
    split_by, outside = settings.queries.split_by, settings.queries.allow_outside
    table = read_photo_table(paths, photos, split_by, allow_outside=outside, record=settings.path(EXIF_RECORD))
    if table.split.kind == "table" and (split_by != "auto" or "queries.split_by" in settings.overridden):
        raise ConfigError(f"queries.split_by has no effect: {table.source} has its own splits; leave it out")
    return table


def open_photo_files(settings: AreaSettings) -> dict[str, str]:
    """Find the files of the photos that the settings name, by their ids; of a folder, no photo is opened.

    Positions and splits of photos that are encoded are in the cache.

    Raises:
        ConfigError: the settings name none.
        PhotoTableError: the table cannot be used.
    """
    from jzi.store.photos.photo_table import folder_files

    paths, _ = _photo_source(settings)
    if isinstance(paths, Path) and paths.is_dir():
        return folder_files(paths, allow_outside=settings.queries.allow_outside)
    frame = open_photo_table(settings).frame
    return dict(zip(frame["id"].astype(str), frame["photo"], strict=True))


def _photo_source(settings: AreaSettings) -> tuple[Path | dict[str, Path], Path | None]:
    """Table or folder of the photos, or one for each split, and the folder of a table's photos, if it is named."""
    if not settings.queries.table:
        raise ConfigError("no photos are named: set queries.table in jzi.toml to a folder, a CSV or a Parquet file")
    photos = settings.path(settings.queries.photos) if settings.queries.photos else None
    source = settings.queries.table
    if isinstance(source, str):
        return settings.path(source), photos
    return {split: settings.path(part) for split, part in source.items()}, photos


class SearchSettings(NamedTuple):
    """How a model searches its map: the settings map.memory and model.precision."""

    memory: str = "auto"
    precision: Precision = "float32"

    @classmethod
    def of(cls, settings: AreaSettings) -> SearchSettings:
        """Those of an area."""
        return cls(settings.map.memory, settings.model.precision if isinstance(settings, Settings) else "float32")

    @classmethod
    def read(cls, config_file: Path) -> SearchSettings:
        """Those of a jzi.toml, which need not exist."""
        return cls.of(load_area(config_file)) if config_file.exists() and not is_pairs(config_file) else cls()
