"""Describe caches, models and rasters, and check whether they belong together."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from pyproj import CRS

from jzi.decode.model import ZoomModel
from jzi.errors import ConfigError, JziError
from jzi.refine.config import CachedRefinerConfig
from jzi.refine.info import INFO, RefinerInfo, read_refiner_info
from jzi.store.cache.feature_cache import ENCODED
from jzi.store.disk.json_file import read_json
from jzi.store.disk.storage import exists, is_url
from jzi.store.features.map_pages import PagedMap
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.geometry.region import RegionInfo
from jzi.store.geometry.scale import units_per_metre
from jzi.store.info import EncoderInfo, ImageryInfo
from jzi.store.model_config import (
    CONFIG,
    RetrieverModelConfig,
    StatewideModelConfig,
    TransferModelConfig,
    ZoomModelConfig,
)
from jzi.store.model_folder import ENCODER, GRAPH, INDEX
from jzi.workspace.caches import inspect_cache, inspect_model
from jzi.workspace.models.hub import local_folder
from jzi.workspace.stages.refiner import REFINER


@dataclass(frozen=True)
class Info:
    """Description of a cache, a model or a raster.

    Attributes:
        path: path or URL.
        kind: "cache", "model", "retriever", "refiner", "encoder" or "raster".
        facts: names and values to print, in order.
        pyramid: geometry of the area; None for a raster.
        encoder: encoder of the embeddings; None for a raster.
        file_hashes: SHA-256 of the files of a raster, or of the imagery of a cache or model.
        imagery: fingerprint of the imagery of a cache or model; None if unknown.
    """

    path: str
    kind: str
    facts: dict[str, Any]
    pyramid: Pyramid | None = None
    encoder: EncoderInfo | None = None
    file_hashes: frozenset[str] = field(default_factory=frozenset)
    imagery: str | None = None


def describe(path: str) -> Info:
    """Describe the cache, model, refiner, encoder or raster at a path or URL, or a model of the hub, "user/name".

    Raises:
        JziError: the path does not exist, or is none of these.
    """
    if is_url(path):
        return _at_url(path)
    if (Path(path) / "zarr.json").is_file():
        return _cache(path)
    if (Path(path) / CONFIG).is_file():
        return _encoder(path) if _is_encoder(Path(path)) else _model(Path(path))
    if (Path(path) / INFO).is_file():
        return _refiner(Path(path))
    if not path.startswith("/vsi") and not exists(path):
        if not Path(path).parent.is_dir() and (downloaded := local_folder(path)).exists():
            return replace(_model(downloaded), path=path)
        raise JziError(f"there is nothing at {path}")
    if Path(path).is_dir():
        raise JziError(
            f"{path} is a folder, but no cache (zarr.json), no model (config.json) and no refiner (refiner.json)"
        )
    if Path(path).is_file():
        from jzi.encode.rasters.raster_sources import is_raster

        if not is_raster(path):
            settings = f": `jzi settings --config {path}` lists it" if path.lower().endswith(".toml") else ""
            raise JziError(f"{path} is no cache, model, refiner, encoder or raster{settings}")
    return _raster(path)


#: Suffixes of rasters at URLs; what has another one is a cache, unless it cannot be read as one.
_RASTERS = (".tif", ".tiff", ".vrt", ".jp2", ".jpg", ".jpeg", ".png", ".webp", ".gpkg", ".mbtiles")


def _at_url(url: str) -> Info:
    """A cache or a raster at a URL."""
    if urlsplit(url).path.lower().endswith(_RASTERS):
        return _raster(url)
    return _cache(url)


def _encoder(name: str) -> Info:
    """An encoder: a folder as `save_pretrained` writes it."""
    from jzi.encode.encoders.hf_config import read_encoder_config

    config = read_encoder_config(name)
    facts = {"family": config.model_type}
    for entry in ("hidden_size", "num_hidden_layers", "image_size", "patch_size"):
        if getattr(config, entry, None) is not None:
            facts[entry] = getattr(config, entry)
    return Info(name, "encoder", facts)


def _is_encoder(folder: Path) -> bool:
    """Whether config.json is that of an encoder, not of a model of jzi."""
    try:
        values = read_json(folder / CONFIG, ConfigError, "")
    except (OSError, ConfigError):
        return False
    return isinstance(values, dict) and "model_type" in values and "jzi_format" not in values


def _region_facts(region: RegionInfo) -> dict[str, Any]:
    return {
        "region": region.name,
        "region_fingerprint": region.fingerprint,
        "rule": region.rule,
        "cell_m": region.grid.cell_m,
        "cells_of_region": region.cells,
        "bands": region.grid.rows,
    }


def _pyramid_facts(pyramid: Pyramid | None) -> dict[str, Any]:
    if pyramid is None:
        return {}
    units = units_per_metre(pyramid)
    return {
        "crs": pyramid.crs,
        "area_m": pyramid.size / units,
        "grid": pyramid.grid,
        "levels": pyramid.levels,
        "cell_m": pyramid.cell_size / units,
    }


def _encoder_facts(encoder: EncoderInfo) -> dict[str, Any]:
    return {
        "encoder": encoder.name,
        "encoder_fingerprint": encoder.fingerprint,
        "image_size": encoder.image_size,
        "layout": encoder.layout,
        "resampling": encoder.resampling,
        "features": encoder.width,
    }


def _cache(path: str) -> Info:
    cache = inspect_cache(path)
    area = _region_facts(cache.region) if cache.region else _pyramid_facts(cache.pyramid)
    facts: dict[str, Any] = {**area, **_encoder_facts(cache.encoder)}
    if cache.imagery:
        facts["imagery"] = [name for name, *_ in cache.imagery.files]
        facts["imagery_fingerprint"] = cache.imagery.fingerprint
        facts["imagery_read_as"] = cache.imagery.description
    facts |= {"complete": cache.complete} if cache.is_index else {"tiles": cache.tiles, "complete": cache.complete}
    if cache.cells:
        facts["cells"] = cache.cells
    if cache.patch_tokens:
        facts |= {"patch_tokens": cache.patch_tokens, "patch_tokens_bytes": cache.patch_tokens_size}
    if cache.detail:
        facts |= {"detail": cache.detail, "detail_tokens": cache.detail_label, "detail_bytes": cache.detail_size}
    if cache.photo_tokens:
        facts |= {"photo_tokens": cache.photo_tokens, "photo_tokens_missing": cache.missing_photo_tokens}
        facts |= {"photo_tokens_bytes": cache.photo_tokens_size}
    encoded = cache.photos - cache.missing_photos - cache.unreadable_photos
    facts |= {"photos": encoded, "photos_missing": cache.missing_photos}
    facts |= {"photos_unreadable": cache.unreadable_photos, "splits": cache.splits}
    return Info(path, "cache", facts, cache.pyramid, cache.encoder, *_imagery(cache.imagery))


def _model(folder: Path) -> Info:
    info = inspect_model(folder)
    config = info.config
    if isinstance(config, StatewideModelConfig):
        return Info(str(folder), "retriever", _statewide_facts(folder, config), None, config.encoder)
    facts = {**_pyramid_facts(config.pyramid), **_encoder_facts(config.encoder)}
    if isinstance(config, RetrieverModelConfig):
        facts |= {
            "method": config.method,
            "footprint_m": config.context * facts["cell_m"],
            "index": "there" if INDEX in config.files or (folder / "index.zarr").is_dir() else "none yet: jzi index",
            "graph": "there" if (folder / GRAPH).is_file() else "none: jzi index --hnsw",
        }
    elif isinstance(config, TransferModelConfig):
        facts |= {"encoder_is": _encoder_location(folder), **_experts(config, list(config.experts))}
    else:
        model = ZoomModel.load(folder)
        architecture = model.decoder.config
        facts |= {
            "encoder_is": _encoder_location(folder),
            "decoder": f"{architecture.layers} layers, {architecture.heads} heads, width {architecture.width}",
            **({"patch_tokens": architecture.patch_tokens} if architecture.patch_tokens else {}),
            "parameters": sum(parameter.numel() for parameter in model.decoder.parameters()),
            "tiles": _tile_count(model) if info.has_map else "no map: give a cache",
            **(_experts(config, ["zoom", *config.experts]) if config.experts else {}),
        }
    if (folder / REFINER / INFO).is_file():
        facts["refiner"] = _refiner_text(read_refiner_info(folder / REFINER))
    kind = "retriever" if isinstance(config, RetrieverModelConfig) else "model"
    return Info(str(folder), kind, facts, config.pyramid, config.encoder, *_imagery(config.imagery))


def _refiner(folder: Path) -> Info:
    info = read_refiner_info(folder)
    facts: dict[str, Any] = {
        "network": info.kind,
        "window_m": info.window_m,
        "pixels": info.config.pixels,
        "headings": info.config.rolls,
        "temperature": round(info.temperature, 6),
        "heading_temperature": round(info.heading_temperature, 6),
        "fusion": list(info.fusion) if info.fusion else "not fitted",
    }
    if isinstance(info.config, CachedRefinerConfig):
        facts |= {"tokens": f"{info.config.side} x {info.config.side}, {info.config.source}"}
        facts |= {"encoder_fingerprint": info.encoder, "tokens_fingerprint": info.detail}
    return Info(str(folder), "refiner", facts)


def _refiner_text(info: RefinerInfo) -> str:
    pixel = info.window_m / info.config.pixels
    return f"{info.kind}, windows of {info.window_m:g} m, pixels of {pixel:.2f} m"


def _statewide_facts(folder: Path, config: StatewideModelConfig) -> dict[str, Any]:
    from jzi.encode.encoders.towers_config import read_towers_config

    towers = read_towers_config(folder / ENCODER)
    return {
        **_encoder_facts(config.encoder),
        "method": config.method,
        "trained_in": config.area or "unknown",
        "cell_m": config.cell_m,
        "photo_px": " x ".join(map(str, towers.photo_size)),
        "lods_m": ", ".join(f"{level:g}" for level in towers.lods_m),
        "pooling": towers.pooling,
        "temperature": round(config.temperature, 6),
    }


def _encoder_location(folder: Path) -> str:
    return "in the folder" if (folder / ENCODER).is_dir() else "fetched from the Hugging Face hub"


def _experts(config: ZoomModelConfig | TransferModelConfig, names: list[str]) -> dict[str, Any]:
    """The experts with their weights and gains."""
    fusion = config.fusion
    if fusion is None:
        return {"experts": names, "weights": "none fitted: there were no validation photos"}
    weights = fusion.weights.get(key := "+".join(sorted(names)))
    if weights is None:
        return {"experts": names, "weights": "none fitted for all of them: run `jzi train-decoder` again"}
    gains = [f"{name} {gain:+.3f} ± {error:.3f}" for name, (gain, error) in fusion.gains.items()]
    return {
        "experts": [f"{name} ({f'weight {weights[name]:.2f}' if weights[name] else 'left out'})" for name in names],
        **({"gains": gains} if gains else {}),
        **({"sharpness": f"slope {fusion.sharpness[key][0]:.3f}"} if key in fusion.sharpness else {}),
        **({"spread": f"{spread:.3f} to each neighbour"} if (spread := fusion.spread.get(key)) else {}),
        "fused_on": f"{fusion.photos} validation photos" + ("" if gains else " of another area"),
        **_inside(config),
    }


def _inside(config: ZoomModelConfig | TransferModelConfig) -> dict[str, Any]:
    """How well photos from elsewhere are recognized, by all experts that can."""
    if isinstance(config, TransferModelConfig) or not config.inside:
        return {"photos_from_elsewhere": "not recognized"}
    best = max(config.inside.values(), key=lambda each: len(each.weights))
    return {
        "photos_from_elsewhere": f"recognized with AUROC {best.auroc:.2f} by {', '.join(best.weights)}, on "
        f"{best.photos} validation photos whose surroundings are hidden"
    }


def _imagery(info: ImageryInfo | None) -> tuple[frozenset[str], str | None]:
    """SHA-256 of the files, and the fingerprint."""
    return (frozenset(digest for *_, digest in info.files), info.fingerprint) if info else (frozenset(), None)


def _tile_count(model: ZoomModel) -> int:
    features = model.open_map()
    if isinstance(features, PagedMap):
        return features.encoded_count()
    return sum(int((level == ENCODED).sum()) for level in features.status[:-1])


def _raster(path: str) -> Info:
    from jzi.encode.rasters.imagery import Imagery
    from jzi.encode.rasters.raster import Raster, RasterOptions
    from jzi.workspace.area import square_around
    from jzi.workspace.setup.settings import names_url

    options = RasterOptions(remote=names_url([path]))
    raster = Raster(path, options)
    bounds = raster.bounds_in("EPSG:4326")
    with Imagery([path], square_around([path], options, levels=1), options) as imagery:
        info = imagery.info()
    t = raster.transform  # may be rotated
    facts = {
        "crs": CRS.from_wkt(raster.crs.to_wkt()).name,
        "pixels": [raster.width, raster.height],
        "pixel_size": [float(np.hypot(t.a, t.d)), float(np.hypot(t.b, t.e))],
        "unit": raster.crs.linear_units if raster.crs.is_projected else "degree",
        "bands": raster.source.count,
        "dtype": str(raster.dtype),
        "read_as": info.description,
        "overviews": raster.source.overviews(1),
        "latitude": [bounds.south, bounds.north],
        "longitude": [bounds.west, bounds.east],
    }
    return Info(path, "raster", facts, file_hashes=frozenset(digest for *_, digest in info.files))


def disagreements(descriptions: list[Info]) -> list[str]:
    """Return the reasons why caches, models and rasters do not belong together; empty if they do."""
    problems = []
    first, *others = sorted(descriptions, key=lambda description: description.pyramid is None)
    for other in others:
        pair = f"{first.path} and {other.path}"
        if first.encoder and other.encoder and first.encoder.fingerprint != other.encoder.fingerprint:
            problems.append(f"{pair} have different encoders ({first.encoder.label}; {other.encoder.label})")
        if first.pyramid and other.pyramid and first.pyramid != other.pyramid:
            problems.append(f"{pair} have different pyramids")
        if first.imagery and other.imagery and first.imagery != other.imagery:
            problems.append(f"{pair} were made from different imagery, or read it differently")
    hashed = [description for description in descriptions if description.file_hashes and description.kind != "raster"]
    for raster in (description for description in descriptions if description.kind == "raster"):
        problems += [
            f"{cache.path} was made from other imagery than {raster.path}"
            for cache in hashed
            if not raster.file_hashes <= cache.file_hashes
        ]
        if first.pyramid:
            problems += _outside(raster, first.pyramid)
    return problems


def _outside(raster: Info, pyramid: Pyramid) -> list[str]:
    from jzi.encode.rasters.imagery import Imagery
    from jzi.encode.rasters.raster import RasterOptions
    from jzi.errors import ImageryError
    from jzi.workspace.setup.settings import names_url

    try:
        with Imagery([raster.path], pyramid, RasterOptions(remote=names_url([raster.path]))):
            return []
    except ImageryError as error:
        return [str(error)]
