"""Compose locators of model folders, and of the options of a command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jzi.decode.config import Precision
from jzi.errors import ConfigError
from jzi.store.disk.memory import memory_bytes
from jzi.store.geometry.pyramid import Pyramid, as_pyramid
from jzi.store.model_config import RetrieverModelConfig, StatewideModelConfig, TransferModelConfig, read_config
from jzi.workspace.inputs import SearchSettings, imagery_of
from jzi.workspace.models.experts import load_experts, load_transferred
from jzi.workspace.models.hub import local_folder
from jzi.workspace.setup.settings import FILE
from jzi.workspace.setup.settings_file import load_region, load_settings
from jzi.workspace.stages.refiner import RefineRequest, refined

if TYPE_CHECKING:
    from jzi.locate.locator import Locator


def model_folder(model: Path | None, config_file: Path) -> Path:
    """Return the model folder: `model` if given, else that of `config_file` if it exists, else "model".

    A `model` that is the name of a repository of the Hugging Face hub is downloaded (`jzi.workspace.models.hub`).
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
    precision: Precision = "float32",
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
        precision: of a zoom's search: "float32", or "bfloat16", which is faster on processors that multiply it
            themselves.

    Raises:
        ModelError: the folder is not a model, is damaged, or lacks the map or other data that its decoder reads.
        CacheError: the cache or the index cannot be used.
        ConfigError: an option does not apply to this kind of model.
        HubError: the hub has no such repository, or it holds something else than a model.
    """
    if not isinstance(folder, str | Path):
        if not (isinstance(folder, Sequence) and folder and all(isinstance(each, str | Path) for each in folder)):
            raise ConfigError(
                f"a model is named by its folder or its name on the hub, or several in a list, not by {folder!r:.60}"
            )
        if cache or approximate or index or zoom or fusion or refine:
            raise ConfigError("several models are searched with their own maps: leave cache, index, zoom, fusion and "
                              "refine out")  # fmt: skip
        return _forest(folder, device, experts, SearchSettings(memory, precision))
    name, folder = str(folder), local_folder(folder)
    if str(folder) != name and not Path(name).exists():  # of the hub
        locator = load(folder, device, cache, approximate=approximate, experts=experts, index=index, zoom=zoom,
                       fusion=fusion, refine=refine, memory=memory, precision=precision)  # fmt: skip
        locator.name = name
        return locator
    if refine:
        locator = load(folder, device, cache, approximate=approximate, experts=experts, index=index, zoom=zoom,
                       fusion=fusion, memory=memory, precision=precision)  # fmt: skip
        return refined(locator, None if refine is True else Path(refine), Path(folder), cache, device=device)
    config = read_config(Path(folder))
    if fusion and not zoom:
        raise ConfigError(f"{fusion} has the weights of a zoom and a retriever: name the zoom model, too")
    if isinstance(config, StatewideModelConfig):
        if zoom and approximate and not fusion:
            raise ConfigError(f"approximate search is of all cells, which the zoom of {zoom} bounds: leave one out")
        locator = _region_locator(Path(folder), device, cache, experts, index if approximate else None, approximate)
        search = SearchSettings(memory, precision)
        return _with_zoom(locator, Path(zoom), Path(folder), fusion, device, search) if zoom else locator
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

    own = ZoomExpert.load(folder, device, cache, memory=memory_bytes(memory), precision=precision)
    members = load_experts(Path(folder), own, experts, memory_bytes(memory))
    return Locator(
        members.fused(experts),
        lambda: own.model.load_encoder(str(own.table.device)),
        name=Path(folder).name,
        detector=members.inside_detector(experts),
    )


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
    given, retriever = retriever, retriever and local_folder(retriever)
    if fuse and not zoom:
        raise ConfigError("--fuse multiplies the probabilities of --retriever and --zoom: give both")
    search = SearchSettings.read(config_file)
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
                       **search._asdict())  # fmt: skip
        if retriever != given:  # of the hub
            locator.name = str(given)
    else:
        if approximate:
            raise ConfigError("--approximate goes with --retriever")
        locator = load(model_folder(model, config_file), cache=cache, experts=experts, **search._asdict())
    if refine is not None:
        locator = _refined_as_asked(locator, refine, retriever or model_folder(model, config_file), config_file, cache,
                                    imagery)  # fmt: skip
    if locator.expert.encoder.resampling == "reference":
        from jzi.encode.photo.photos import import_opencv

        import_opencv()  # a service fails when it starts, not at its first photo
    return locator


def open_forest(models: Sequence[Path], config_file: Path, experts: Sequence[str] = ()) -> Locator:
    """Load the locator of several models, as `open_locator` does that of one.

    Args:
        models: the model folders.
        config_file: a jzi.toml with the settings map.memory and model.precision, which need not exist.
        experts: names of the models' experts to fuse; all by default.

    Raises:
        JziError: as `load`.
    """
    return load(models, experts=experts, **SearchSettings.read(config_file)._asdict())


def _forest(
    folders: Sequence[str | Path], device: str | None, experts: Sequence[str], search: SearchSettings
) -> Locator:
    """Several models as one; see `load`. A memory that is given is divided among their maps."""
    from jzi.locate.joint.forest import ForestLocator

    if not folders:
        raise ConfigError("no model is named: give a folder, or several")
    if (limit := memory_bytes(search.memory)) is not None:
        search = search._replace(memory=f"{limit // len(folders) // 1000}kB")
    trees = [load(folder, device, experts=experts, **search._asdict()) for folder in folders]
    for tree, folder in zip(trees, folders, strict=True):
        tree.name = str(folder)
    return trees[0] if len(trees) == 1 else ForestLocator(trees)


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


def _with_zoom(
    locator: Locator, zoom: Path, retriever: Path, fusion: str | Path | None, device: str | None, search: SearchSettings
) -> Locator:
    """A region's locator that searches the probable tiles of a zoom model only, or is fused with it; see `load`."""
    from jzi.workspace.regions.region_index import ZoomedLocator
    from jzi.workspace.regions.zoom_weights import ZoomFusion

    if (zoom / FILE).exists():
        zoom = model_folder(None, zoom / FILE)
    if isinstance(read_config(zoom), StatewideModelConfig):
        raise ConfigError(f"{zoom} is a state-wide retriever: give a zoom model")
    if fusion is None:
        return ZoomedLocator.bounded(locator, load(zoom, device, **search._asdict()))
    fitted = ZoomFusion.read(Path(fusion))
    fitted.check(Path(fusion), retriever, zoom)
    return ZoomedLocator.fused(locator, load(zoom, device, experts=fitted.experts, **search._asdict()), fitted.weights)


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
