"""Open models with the caches whose photos they are evaluated on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jzi.store.disk.memory import memory_bytes
from jzi.store.model_config import TransferModelConfig, read_config
from jzi.workspace.inputs import SearchSettings
from jzi.workspace.models.experts import ModelExperts, load_experts, load_transferred
from jzi.workspace.setup.settings import Settings

if TYPE_CHECKING:
    from jzi.decode.expert import ZoomExpert
    from jzi.retrieve.expert import RetrievalExpert
    from jzi.store.cache.feature_cache import FeatureCache


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
    zoom, cache = open_zoom(folder, settings.cache_path, SearchSettings.of(settings))
    return load_experts(folder, zoom, names, memory_bytes(settings.map.memory)), cache


def open_zoom(folder: Path, cache_path: str, search: SearchSettings | None = None) -> tuple[ZoomExpert, FeatureCache]:
    """Load a zoom model with the map of its folder, else with that of the cache, and open the cache.

    Args:
        folder: the model folder.
        cache_path: path or URL of the cache.
        search: how the model searches; by default with as much memory as there is, in float32.

    Raises:
        ModelError: there is no model, or it is damaged.
        CacheError: there is no cache, or it belongs to another encoder or pyramid.
    """
    from jzi.decode.expert import ZoomExpert
    from jzi.store.cache.feature_cache import FeatureCache

    search = search or SearchSettings()
    expert = ZoomExpert.load(
        folder, cache=cache_path, own_map=True, memory=memory_bytes(search.memory), precision=search.precision
    )
    return expert, FeatureCache.open(cache_path)


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
