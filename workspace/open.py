"""Open the imagery, photos, caches and models that the settings and options of a command name."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jzi.errors import ConfigError
from jzi.store.disk.memory import memory_bytes
from jzi.store.geometry.pyramid import Pyramid, as_pyramid
from jzi.store.geometry.region import RegionCells, RegionInfo
from jzi.store.model_folder import RetrieverModelConfig, StatewideModelConfig, TransferModelConfig, read_config
from jzi.workspace.experts import ModelExperts, load_experts, load_transferred
from jzi.workspace.hub import local_folder
from jzi.workspace.setup.settings import FILE, AreaSettings, RegionSettings, Settings, find_rasters, names_url
from jzi.workspace.setup.settings_file import is_pairs, load_area, load_region, load_settings
from jzi.workspace.stages.refiner import RefineRequest, refined

if TYPE_CHECKING:
    from jzi.decode.expert import ZoomExpert
    from jzi.encode.encoders.encoder import Encoder
    from jzi.encode.encoders.towers import Towers
    from jzi.encode.rasters.imagery import Imagery
    from jzi.locate.locator import Locator
    from jzi.retrieve.expert import RetrievalExpert
    from jzi.store.cache.feature_cache import FeatureCache
    from jzi.store.geometry.cell_grid import CellGrid
    from jzi.store.photos.photo_table import PhotoTable, Rejected
    from jzi.train.encoders.encoder import EncoderTrainingReport

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


def imagery_of(pyramid: Pyramid, rasters: Sequence[str], config_file: Path) -> Imagery | None:
    """Open a map to draw on, if there is one.

    Args:
        pyramid: geometry of the area.
        rasters: files, globs or folders; if empty, the map of `config_file` if that has the same area.
        config_file: a jzi.toml, which need not exist.

    Raises:
        ConfigError: there is no such raster.
        ImageryError: a raster cannot be used.
    """
    if rasters:
        return open_rasters(rasters, pyramid)
    if config_file.exists():
        settings = load_settings(config_file)
        if settings.pyramid == pyramid and settings.map.rasters:
            return open_imagery(settings)
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


def finetune_areas(areas: Sequence[Settings], output: Path) -> tuple[EncoderTrainingReport, tuple[Rejected, ...]]:
    """Fine-tune an encoder on one or several areas.

    Args:
        areas: settings of each area; encoder, decoder and training follow those of the first.
        output: the model folder to write.

    Returns:
        The report, and the photos that cannot be used.

    Raises:
        ConfigError: the areas differ in grid or levels, or an override of decoder.* contradicts finetune.init.
        JziError: as `jzi.train.encoders.finetune.finetune`.
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
    from jzi.train.encoders.finetune import finetune
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


def model_folder(model: Path | None, config_file: Path) -> Path:
    """Return the model folder: `model` if given, else that of `config_file` if it exists, else "model".

    A `model` that is the name of a repository of the Hugging Face hub is downloaded (`jzi.workspace.hub`).
    """
    if model is not None:
        return local_folder(model)
    if config_file.exists():
        settings = load_settings(config_file)
        return settings.path(settings.model.path)
    return Path("model")


def load(
    folder: str | Path | Sequence[str | Path],
    device: str | None = None,
    cache: str | Path | None = None,
    *,
    approximate: bool = False,
    experts: Sequence[str] = (),
    index: str | Path | None = None,
    zoom: str | Path | None = None,
    fusion: str | Path | None = None,
    refine: str | Path | bool = False,
    memory: str = "auto",
) -> Locator:
    """Load a locator from the folder of a zoom model, of a transferred model or of a retriever.

    Args:
        folder: the model folder, or a repository of the Hugging Face hub, "user/name" or "user/name@revision", which is
            downloaded once and verified; or several, whose areas are searched as one (`jzi.locate.joint.forest`).
        device: device to compute on, such as "cpu" or "cuda:0"; by default the best available.
        cache: read the map of a zoom model from this cache rather than from the folder; of a state-wide retriever, the
            index of the region to search, which it needs.
        approximate: search the HNSW graph of a retriever, or the index of a region, rather than all cells.
        experts: names of the model's experts to fuse, such as "zoom" and "cells", and of experts that installed
            packages offer (entry points `jzi.experts`), whose code is then loaded; all of the model by default.
        index: folder of the Faiss index of a region's cells, or path or URL of their LanceDB table, NAME.lance.
        zoom: folder of a zoom model, or of the jzi.toml that names it, which bounds the search of a state-wide
            retriever: only its probable tiles are searched.
        fusion: file of the weights that `jzi train-fusion` fitted, with which the probabilities of the zoom and of the
            retriever are multiplied instead.
        refine: refine candidates to metres: the folder of a refiner, or True for that in the model's folder. It reads
            tokens from `cache`, which must be given.
        memory: memory that the map of a zoom model may take, such as "4GB"; by default a quarter of what is free. A
            larger map is read where search asks for it.

    Raises:
        ModelError: the folder is not a model, is damaged, or lacks the map or other data that its decoder reads.
        CacheError: the cache or the index cannot be used.
        ConfigError: an option does not apply to this kind of model.
        HubError: the hub has no such repository, or it holds something else than a model.
    """
    if not isinstance(folder, str | Path):
        if cache or approximate or index or zoom or fusion or refine:
            raise ConfigError("several models are searched with their own maps: leave cache, index, zoom, fusion and "
                              "refine out")  # fmt: skip
        return _forest(folder, device, experts, memory)
    name, folder = str(folder), local_folder(folder)
    if str(folder) != name and not Path(name).exists():  # of the hub
        locator = load(folder, device, cache, approximate=approximate, experts=experts, index=index, zoom=zoom,
                       fusion=fusion, refine=refine, memory=memory)  # fmt: skip
        locator.name = name
        return locator
    if refine:
        locator = load(folder, device, cache, approximate=approximate, experts=experts, index=index, zoom=zoom,
                       fusion=fusion, memory=memory)  # fmt: skip
        return refined(locator, None if refine is True else Path(refine), Path(folder), cache, device=device)
    config = read_config(Path(folder))
    if fusion and not zoom:
        raise ConfigError(f"{fusion} has the weights of a zoom and a retriever: name the zoom model, too")
    if isinstance(config, StatewideModelConfig):
        if zoom and approximate and not fusion:
            raise ConfigError(f"approximate search is of all cells, which the zoom of {zoom} bounds: leave one out")
        locator = _region_locator(Path(folder), device, cache, experts, index if approximate else None, approximate)
        return _with_zoom(locator, Path(zoom), Path(folder), fusion, device, memory) if zoom else locator
    if zoom:
        raise ConfigError(f"{folder} is not a state-wide retriever, whose search a zoom bounds: leave the zoom out")
    if isinstance(config, RetrieverModelConfig):
        if cache:
            raise ConfigError(f"{folder} is a retriever, which has its own index: leave the cache out")
        if experts:
            raise ConfigError(f"{folder} is a retriever, which is a single expert: leave --experts out")
        return _retrieval_locator(Path(folder), device, approximate)
    if approximate:
        raise ConfigError(f"{folder} is not a retriever: approximate search is for retrievers")
    if isinstance(config, TransferModelConfig):
        if cache:
            raise ConfigError(f"{folder} is a transferred model, which contains its map: leave the cache out")
        return _transferred_locator(Path(folder), config, device, experts, memory)
    from jzi.decode.expert import ZoomExpert
    from jzi.locate.locator import Locator

    own = ZoomExpert.load(folder, device, cache, memory=memory_bytes(memory))
    members = load_experts(Path(folder), own, experts, memory_bytes(memory))
    return Locator(
        members.fused(experts),
        lambda: own.model.load_encoder(str(own.table.device)),
        name=Path(folder).name,
        detector=members.inside_detector(experts),
    )


def _forest(folders: Sequence[str | Path], device: str | None, experts: Sequence[str], memory: str) -> Locator:
    """Several models as one; see `load`. A memory that is given is divided among their maps."""
    from jzi.locate.joint.forest import ForestLocator

    if not folders:
        raise ConfigError("no model is named: give a folder, or several")
    limit = memory_bytes(memory)
    each = memory if limit is None else f"{limit // len(folders) // 1000}kB"
    trees = [load(folder, device, experts=experts, memory=each) for folder in folders]
    for tree, folder in zip(trees, folders, strict=True):
        tree.name = str(folder)
    return trees[0] if len(trees) == 1 else ForestLocator(trees)


def open_forest(models: Sequence[Path], config_file: Path, experts: Sequence[str] = ()) -> Locator:
    """Load the locator of several models, as `open_locator` does that of one.

    Args:
        models: the model folders.
        config_file: a jzi.toml with the setting map.memory, which need not exist.
        experts: names of the models' experts to fuse; all by default.

    Raises:
        JziError: as `load`.
    """
    return load(models, experts=experts, memory=memory_of(config_file))


def _region_locator(
    folder: Path,
    device: str | None,
    cache: str | Path | None,
    experts: Sequence[str],
    index: str | Path | None,
    approximate: bool,
) -> Locator:
    from jzi.retrieve.statewide import StatewideRetriever
    from jzi.workspace.regions.region_index import region_locator

    if experts:
        raise ConfigError(f"{folder} is a retriever, which is a single expert: leave --experts out")
    if not cache:
        raise ConfigError(
            f"{folder} is a state-wide retriever, which searches the index of a region: change to the folder of its "
            "jzi.toml, or give the index as the cache"
        )
    if approximate and index is None:
        raise ConfigError("approximate search of a region needs its Faiss index or LanceDB table: give it as index")
    retriever = StatewideRetriever.load(folder)
    return region_locator(retriever, str(cache), index=index, device=device)


def open_locator(
    model: Path | None,
    config_file: Path,
    *,
    cache: str | None,
    retriever: Path | None,
    approximate: bool,
    experts: Sequence[str] = (),
    zoom: Path | None = None,
    fuse: bool = False,
    refine: RefineRequest | None = None,
    imagery: Sequence[str] = (),
) -> Locator:
    """Load the locator that the options of a command name.

    Args:
        model: folder of a zoom model; None for the default of `model_folder`.
        config_file: the jzi.toml for that default.
        cache: cache to read the map of a zoom model from.
        retriever: folder of a retriever to use instead of a zoom model.
        approximate: search the HNSW graph of the retriever.
        experts: names of a zoom model's experts to fuse; all by default.
        zoom: folder of a zoom model that bounds the search of a state-wide retriever, or of the jzi.toml that names it.
        fuse: multiply the probabilities of the zoom and the retriever instead, with the weights beside the index.
        refine: refine candidates to metres; None not to. The refiner reads tokens from `cache`, else from the cache of
            `config_file`.
        imagery: rasters for refiners that see images; the map of `config_file` by default.

    Raises:
        ConfigError: options contradict one another.
        JziError: the model or the cache cannot be used.
    """
    retriever = retriever and local_folder(retriever)
    if fuse and not zoom:
        raise ConfigError("--fuse multiplies the probabilities of --retriever and --zoom: give both")
    memory = memory_of(config_file)
    if zoom and (not retriever or (approximate and not fuse)):
        raise ConfigError("--zoom bounds the search of --retriever in a region, without --approximate: leave it out")
    if retriever:
        statewide = isinstance(read_config(retriever), StatewideModelConfig)
        if model or experts or (cache and not statewide):
            raise ConfigError("--model, --cache and --experts do not apply to --retriever: leave them out")
        if fuse and cache:
            raise ConfigError("--fuse reads the weights beside the index that jzi.toml names: leave --cache out")
        index = fusion = None
        if statewide and not cache:
            from jzi.workspace.regions.region_index import approximate_index, fusion_file

            settings = load_region(config_file)
            cache, index = settings.cache_path, approximate_index(settings) if approximate else None
            fusion = fusion_file(settings) if fuse else None
        locator = load(retriever, cache=cache, approximate=approximate, index=index, zoom=zoom, fusion=fusion,
                       memory=memory)  # fmt: skip
    else:
        if approximate:
            raise ConfigError("--approximate goes with --retriever")
        locator = load(model_folder(model, config_file), cache=cache, experts=experts, memory=memory)
    if refine is not None:
        locator = _refined_as_asked(locator, refine, retriever or model_folder(model, config_file), config_file, cache,
                                    imagery)  # fmt: skip
    if locator.expert.encoder.resampling == "reference":
        from jzi.encode.photo.photos import import_opencv

        import_opencv()  # a service fails when it starts, not at its first photo
    return locator


def memory_of(config_file: Path) -> str:
    """The setting map.memory of a jzi.toml, which need not exist."""
    return load_area(config_file).map.memory if config_file.exists() and not is_pairs(config_file) else "auto"


def _refined_as_asked(
    locator: Locator,
    refine: RefineRequest,
    model: Path,
    config_file: Path,
    cache: str | None,
    imagery: Sequence[str],
) -> Locator:
    """A locator with the refiner that a command names; tokens and defaults are those of its jzi.toml."""
    area = locator.expert.area
    # of a region, which `refined` refuses, the settings are others
    settings = load_settings(config_file) if isinstance(area, Pyramid) and config_file.exists() else None
    if cache is None and settings is not None and settings.pyramid == area:
        cache = settings.cache_path
    return refined(
        locator,
        refine.folder,
        model,
        cache,
        config=settings.refine if settings else None,
        top=refine.top,
        imagery=lambda: imagery_of(as_pyramid(area), imagery, config_file),
    )


def _with_zoom(
    locator: Locator, zoom: Path, retriever: Path, fusion: str | Path | None, device: str | None, memory: str
) -> Locator:
    """A region's locator that searches the probable tiles of a zoom model only, or is fused with it; see `load`."""
    from jzi.workspace.regions.region_index import ZoomedLocator
    from jzi.workspace.regions.zoom_weights import ZoomFusion

    if (zoom / FILE).exists():
        zoom = model_folder(None, zoom / FILE)
    if isinstance(read_config(zoom), StatewideModelConfig):
        raise ConfigError(f"{zoom} is a state-wide retriever: give a zoom model")
    if fusion is None:
        return ZoomedLocator.bounded(locator, load(zoom, device, memory=memory))
    fitted = ZoomFusion.read(Path(fusion))
    fitted.check(Path(fusion), retriever, zoom)
    return ZoomedLocator.fused(locator, load(zoom, device, experts=fitted.experts, memory=memory), fitted.weights)


def _retrieval_locator(folder: Path, device: str | None, approximate: bool) -> Locator:
    from jzi.encode.device import best_device
    from jzi.locate.locator import Locator
    from jzi.retrieve.expert import RetrievalExpert

    expert = RetrievalExpert.load(folder, approximate=approximate)
    return Locator(expert, lambda: expert.retriever.load_encoder(device or best_device()), name=folder.name)


def _transferred_locator(
    folder: Path, config: TransferModelConfig, device: str | None, experts: Sequence[str], memory: str
) -> Locator:
    from jzi.encode.device import best_device
    from jzi.encode.encoders.model_encoder import load_model_encoder
    from jzi.locate.locator import Locator

    device = device or best_device()
    expert = load_transferred(folder, config, device, experts, memory_bytes(memory)).fused(experts)
    return Locator(expert, lambda: load_model_encoder(folder, config, device), name=folder.name)


def open_retriever(folder: Path, *, approximate: bool) -> tuple[RetrievalExpert, FeatureCache]:
    """Load a retriever, and open its index with the photos to evaluate it on.

    Args:
        folder: the retriever's folder.
        approximate: search its HNSW graph.

    Raises:
        ModelError: there is no retriever, or it is damaged.
        CacheError: the index cannot be used.
    """
    from jzi.retrieve.expert import RetrievalExpert

    expert = RetrievalExpert.load(folder, approximate=approximate)
    return expert, expert.retriever.open_cache()


def open_experts(settings: Settings, names: Sequence[str] = ()) -> tuple[ModelExperts, FeatureCache]:
    """Load the experts of the model that the settings name, and open the cache with the photos to evaluate them on.

    Args:
        settings: the settings.
        names: experts that the user names; see `load_experts`.

    Raises:
        ModelError: there is no model, or it is damaged.
        CacheError: there is no cache, or it belongs to another encoder or pyramid.
    """
    from jzi.encode.device import best_device
    from jzi.store.cache.feature_cache import FeatureCache

    folder = settings.path(settings.model.path)
    config = read_config(folder)
    if isinstance(config, TransferModelConfig):
        cache = FeatureCache.open(settings.cache_path)
        cache.check(area=config.pyramid, encoder=config.encoder, imagery=config.imagery)
        return load_transferred(folder, config, best_device(), names, memory_bytes(settings.map.memory)), cache
    zoom, cache = open_zoom(folder, settings.cache_path, settings.map.memory)
    return load_experts(folder, zoom, names, memory_bytes(settings.map.memory)), cache


def open_zoom(folder: Path, cache_path: str, memory: str = "auto") -> tuple[ZoomExpert, FeatureCache]:
    """Load a zoom model with the map of its folder, else with that of the cache, and open the cache.

    Args:
        folder: the model folder.
        cache_path: path or URL of the cache.
        memory: memory that the map may take; see `load`.

    Raises:
        ModelError: there is no model, or it is damaged.
        CacheError: there is no cache, or it belongs to another encoder or pyramid.
    """
    from jzi.decode.expert import ZoomExpert
    from jzi.store.cache.feature_cache import FeatureCache

    expert = ZoomExpert.load(folder, cache=cache_path, own_map=True, memory=memory_bytes(memory))
    return expert, FeatureCache.open(cache_path)
