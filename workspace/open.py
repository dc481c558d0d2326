"""What the commands find in a working directory: the area, the query table, the model, and a jzi.toml to begin with."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jzi.errors import ConfigError, PhotoError
from jzi.store.model_folder import RetrieverModelConfig, read_config
from jzi.store.pyramid import Pyramid
from jzi.workspace.settings import Settings, find_rasters, load_settings

if TYPE_CHECKING:
    from jzi.decode.expert import ZoomExpert
    from jzi.encode.encoder import Encoder
    from jzi.encode.imagery import Imagery
    from jzi.locate.expert import Expert
    from jzi.locate.locator import Locator
    from jzi.store.cache import FeatureCache
    from jzi.store.photo_table import PhotoTable, Rejected
    from jzi.train.encoder import EncoderTrainingReport


def open_imagery(settings: Settings) -> Imagery:
    """The map that the settings name; a context manager.

    Raises:
        ImageryError: a raster cannot be used, or none touches the area.
    """
    from jzi.encode.imagery import Imagery
    from jzi.encode.raster import RasterOptions

    options = RasterOptions(settings.map.crs, settings.map.nodata, settings.map.stretch)
    return Imagery(settings.rasters, settings.pyramid, options)


def imagery_of(pyramid: Pyramid, rasters: Sequence[str], config_file: Path) -> Imagery | None:
    """The map to draw on: the rasters that were named, those of a jzi.toml of this area, or none.

    Raises:
        ConfigError: there is no such raster.
        ImageryError: a raster cannot be used.
    """
    from jzi.encode.imagery import Imagery

    if rasters:
        return Imagery(find_rasters(rasters), pyramid)
    if config_file.exists():
        settings = load_settings(config_file)
        if settings.pyramid == pyramid and settings.map.rasters:
            return open_imagery(settings)
    return None


def load_encoder(settings: Settings) -> Encoder:
    """The encoder that the settings name.

    Raises:
        EncoderError: it cannot be had.
    """
    from jzi.encode.encoder import Encoder

    options = settings.encoder
    name = settings.encoder_folder or options.name
    return Encoder.load(name, image_size=options.image_size, layout=options.layout)


def open_cache(settings: Settings, encoder: Encoder, imagery: Imagery | None = None) -> FeatureCache:
    """The cache that the settings name, open for writing; it is created by the main process if need be.

    Raises:
        CacheMismatchError: it belongs to another encoder, pyramid or imagery.
    """
    return open_cache_of(settings.cache_path, settings.pyramid, encoder, imagery)


def open_cache_of(path: str, pyramid: Pyramid, encoder: Encoder, imagery: Imagery | None = None) -> FeatureCache:
    """The same for a cache that the settings do not name, such as a retriever's."""
    from jzi.encode.device import processes
    from jzi.store.cache import FeatureCache
    from jzi.store.storage import exists

    with processes().main_process_first():
        info = imagery.info(FeatureCache.open(path).imagery if exists(path) else None) if imagery else None
        return FeatureCache.open_or_create(path, pyramid, encoder.info, info)


def finetune_areas(areas: Sequence[Settings], output: Path) -> tuple[EncoderTrainingReport, tuple[Rejected, ...]]:
    """Fine-tune on one area or several; the first one's settings say how.

    Args:
        areas: settings of each area.
        output: the model folder to make.

    Returns:
        the report, and the photos that cannot be used.

    Raises:
        ConfigError: the areas are cut differently, or an override of decoder.* contradicts finetune.init.
        JziError: as `jzi.train.finetune.finetune`.
    """
    settings = areas[0]
    grids = {(each.pyramid.grid, each.pyramid.levels) for each in areas}
    if len(grids) > 1:
        raise ConfigError(
            "areas that are trained on together must have the same pyramid.grid and pyramid.levels, not "
            + " and ".join(f"{grid} and {levels}" for grid, levels in sorted(grids))
        )
    tables = [open_photo_table(each).inside(each.pyramid) for each in areas]
    from jzi.decode.model import ZoomModel
    from jzi.train.finetune import finetune
    from jzi.train.zoom import check_overrides

    init = settings.finetune.init
    start = ZoomModel.load(settings.path(init)) if init else None
    check_overrides(settings.decoder, settings.overridden, start, "finetune.init")
    with contextlib.ExitStack() as stack:
        maps = [stack.enter_context(open_imagery(each)) for each in areas]
        report = finetune(
            list(zip(maps, tables, strict=True)),
            load_encoder(settings),
            output,
            settings.decoder,
            settings.finetune,
            start=start,
            settings=settings.to_toml(),
        )
    return report, tuple(row for table in tables for row in table.rejected)


def open_photo_table(settings: Settings) -> PhotoTable:
    """The photos that the settings name.

    Raises:
        ConfigError: they name none.
        PhotoTableError: they cannot be used.
    """
    from jzi.store.photo_table import read_photo_table

    if not settings.queries.table:
        raise ConfigError("no photos are named: set queries.table in jzi.toml to a folder, a CSV or a Parquet file")
    photos = settings.path(settings.queries.photos) if settings.queries.photos else None
    table = settings.queries.table
    if isinstance(table, str):
        return read_photo_table(settings.path(table), photos)
    return read_photo_table({split: settings.path(part) for split, part in table.items()}, photos)


def expand_photos(photos: Sequence[Path]) -> list[Path]:
    """Files as they are, and every photo in folders.

    Raises:
        PhotoError: a folder holds none.
    """
    from jzi.store.exif import SUFFIXES

    files: list[Path] = []
    for photo in photos:
        if not photo.is_dir():
            files.append(photo)
            continue
        inside = sorted(file for file in photo.rglob("*") if file.suffix.lower() in SUFFIXES)
        if not inside:
            raise PhotoError(f"there is no photo in {photo}")
        files += inside
    return files


def model_folder(model: Path | None, config_file: Path) -> Path:
    """The model to use: the one that was named, that of a jzi.toml that is there, or the folder "model"."""
    if model is not None:
        return model
    if config_file.exists():
        settings = load_settings(config_file)
        return settings.path(settings.model.path)
    return Path("model")


def load(
    folder: str | Path, device: str | None = None, cache: str | Path | None = None, *, approximate: bool = False
) -> Locator:
    """A locator from a model folder: of a zoom, or of a retriever with its index.

    Args:
        folder: the model.
        device: where to compute; by default the best there is.
        cache: take a zoom's map from this cache rather than from the folder.
        approximate: search a retriever's HNSW graph rather than all cells.

    Raises:
        ModelError: the folder is no model, is damaged, or lacks what its decoder reads.
        CacheError: the cache or the index cannot be used.
        ConfigError: an option does not apply to this kind of model.
    """
    if isinstance(read_config(Path(folder)), RetrieverModelConfig):
        if cache:
            raise ConfigError(f"{folder} is a retriever, which has its own index: leave the cache out")
        return _retrieval_locator(Path(folder), device, approximate)
    if approximate:
        raise ConfigError(f"{folder} is a zoom model: approximate search is for retrievers")
    from jzi.decode.expert import ZoomExpert
    from jzi.locate.locator import Locator

    expert = ZoomExpert.load(folder, device, cache)
    return Locator(expert, lambda: expert.model.load_encoder(str(expert.table.device)), name=Path(folder).name)


def open_locator(
    model: Path | None, config_file: Path, *, cache: str | None, retriever: Path | None, approximate: bool
) -> Locator:
    """The locator that a command's options name: a zoom model, or a retriever.

    Args:
        model: as in `model_folder`.
        config_file: likewise.
        cache: to take a model's map from.
        retriever: locate by retrieval, with this one.
        approximate: search the retriever's graph.

    Raises:
        JziError: it cannot be used.
    """
    if retriever:
        if model or cache:
            raise ConfigError("--model and --cache are of the zoom, and --retriever is not one")
        return _retrieval_locator(retriever, None, approximate)
    if approximate:
        raise ConfigError("--approximate goes with --retriever")
    return load(model_folder(model, config_file), cache=cache)


def _retrieval_locator(folder: Path, device: str | None, approximate: bool) -> Locator:
    from jzi.encode.device import best_device
    from jzi.locate.locator import Locator
    from jzi.retrieve.expert import RetrievalExpert

    expert = RetrievalExpert.load(folder, approximate=approximate)
    return Locator(expert, lambda: expert.retriever.load_encoder(device or best_device()), name=folder.name)


def open_expert(settings: Settings, retriever: Path | None, *, approximate: bool) -> tuple[Expert, FeatureCache]:
    """The expert that is evaluated, and the cache with the photos that it is evaluated on.

    Args:
        settings: name the zoom model and the cache.
        retriever: evaluate this one instead, on the photos of its own cache.
        approximate: search the retriever's graph.

    Raises:
        ModelError: there is no model, or it is damaged.
        CacheError: there is no cache, or it is another encoder's or pyramid's.
    """
    if retriever:
        from jzi.retrieve.expert import RetrievalExpert

        retrieval = RetrievalExpert.load(retriever, approximate=approximate)
        return retrieval, retrieval.retriever.open_cache()
    return open_zoom(settings.path(settings.model.path), settings.cache_path)


def open_zoom(folder: Path, cache_path: str) -> tuple[ZoomExpert, FeatureCache]:
    """A zoom model with the map that it carries, else the cache's, and the cache.

    Raises:
        ModelError: there is no model, or it is damaged.
        CacheError: there is no cache, or it is another encoder's or pyramid's.
    """
    from jzi.decode.expert import ZoomExpert
    from jzi.store.cache import FeatureCache

    expert = ZoomExpert.load(folder, cache=cache_path, own_map=True)
    return expert, FeatureCache.open(cache_path)
