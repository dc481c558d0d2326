"""Find a refiner, check that it fits a locator and the cache, and make the stage that refines its candidates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from jzi.errors import CacheMismatchError, ConfigError, ModelError
from jzi.refine.config import CachedRefinerConfig, RefineConfig
from jzi.refine.info import INFO, RefinerInfo
from jzi.store.geometry.cell_grid import CellGrid
from jzi.store.geometry.pyramid import Pyramid, as_pyramid

if TYPE_CHECKING:
    from jzi.encode.encoders.encoder import Encoder
    from jzi.encode.encoders.photo_encoder import PhotoEncoder
    from jzi.encode.rasters.detail_tiles import TokenProducer
    from jzi.encode.rasters.imagery import Imagery
    from jzi.locate.locator import Locator
    from jzi.refine.stage import RefineStage
    from jzi.store.cache.feature_cache import FeatureCache
    from jzi.workspace.setup.settings import Settings

#: Folder of the refiner in a model folder.
REFINER = "refiner"


@dataclass(frozen=True)
class RefineRequest:
    """The options of a command about refining.

    Attributes:
        folder: of the refiner, or of a model that has one; None for that of the model that locates.
        top: number of candidates to refine; that of jzi.toml by default.
    """

    folder: Path | None = None
    top: int | None = None


def refiner_folder(folder: Path) -> Path:
    """Return the folder of a refiner: this one, or the one in this model folder.

    Raises:
        ModelError: there is none.
    """
    for candidate in (folder, folder / REFINER):
        if (candidate / INFO).is_file():
            return candidate
    beside = folder.parent / REFINER
    found = (beside / INFO).is_file()
    there = f"give its folder, such as {beside}" if found else "run `jzi train-refiner`, or give its folder"
    raise ModelError(f"there is no refiner in {folder}: {there}")


def open_stage(
    folder: Path,
    area: CellGrid,
    load_encoder: Callable[[], PhotoEncoder],
    *,
    encoder: str,
    cache: str | None,
    imagery: Callable[[], Imagery | None] | None = None,
    config: RefineConfig | None = None,
    top: int | None = None,
    device: str | None = None,
) -> RefineStage:
    """Load a refiner as a stage of a locator.

    Args:
        folder: of the refiner, or of a model folder that has one.
        area: of the locator's cells.
        load_encoder: loads the locator's encoder; for photos whose tokens are not at hand.
        encoder: fingerprint of the locator's encoder.
        cache: path or URL of the cache whose tokens of the map it reads.
        imagery: opens the map, for refiners that see images.
        config: defaults of cameras, and number of candidates.
        top: number of candidates to refine, if it is not that of `config`.
        device: device to compute on; the best one by default.

    Raises:
        ModelError: there is no refiner, or it is damaged.
        CacheError: there is no cache, or it lacks tokens.
        CacheMismatchError: the cache is of another area, or has other tokens than the refiner was trained on.
        ConfigError: what the refiner reads is not given.
    """
    from jzi.encode.device import best_device
    from jzi.refine.networks.files import load_refiner
    from jzi.refine.networks.producer import tile_pixels
    from jzi.refine.photos import PixelPhotos, TokenPhotos
    from jzi.refine.stage import RefineStage, StageOptions
    from jzi.refine.windows.images import WindowImages
    from jzi.refine.windows.tokens import WindowTokens
    from jzi.workspace.setup.data_checks import map_warnings

    path = refiner_folder(folder)
    refiner, info = load_refiner(path, device or best_device())
    options = StageOptions.of(config or RefineConfig())
    options = options if top is None else replace(options, top=top)
    if info.kind == "unifygeo":
        opened = imagery() if imagery else None
        if opened is None:
            raise ConfigError(f"{path} looks at images of the map: name its rasters with --imagery or in jzi.toml")
        warnings = map_warnings(opened, as_pyramid(area), tile_pixels(info, as_pyramid(area)))
        return RefineStage(refiner, info, WindowImages(opened), PixelPhotos(refiner.config), options, warnings)
    if cache is None:
        raise ConfigError(
            f"{path} reads tokens of the map from a cache: name it with --cache, or run in the folder of its jzi.toml"
        )
    from jzi.store.cache.feature_cache import FeatureCache  # loads zarr and pandas

    tokens = FeatureCache.open(cache)
    check_refiner_cache(path, info, tokens, area, encoder)
    windows = WindowTokens(tokens)
    if _makes_tokens(info):
        from jzi.refine.networks.producer import TrunkTokens

        made_by = tokens.header.detail
        if made_by is None or made_by.fingerprint != TrunkTokens(refiner).fingerprint:
            raise CacheMismatchError(
                f"{cache} has tokens of another network than {path}: run `jzi encode-map --detail --refiner {path} "
                "--replace`, or give another cache.path"
            )
        return RefineStage(refiner, info, windows, PixelPhotos(refiner.config), options)
    return RefineStage(refiner, info, windows, TokenPhotos(tokens.queries.tokens.projection, load_encoder), options)


def check_refiner_cache(folder: Path, info: RefinerInfo, cache: FeatureCache, area: CellGrid, encoder: str) -> None:
    """Check that a cache is of the locator's area and encoder, and has the tokens that a refiner was trained on.

    Args:
        folder: of the refiner, for messages.
        info: what it records.
        cache: the cache.
        area: of the locator's cells.
        encoder: fingerprint of the locator's encoder.

    Raises:
        CacheMismatchError: one of them differs.
    """
    from jzi.refine.windows.tokens import tokens_fingerprint

    hint = "give the cache that it was trained on, or train it anew with `jzi train-refiner`"
    cache.check(area=as_pyramid(area), hint=f"{folder} refines candidates of another area; {hint}")
    if info.encoder and encoder and info.encoder != encoder:
        raise CacheMismatchError(
            f"{folder} was trained on tokens of another encoder than the model's ({info.encoder[:8]}, not "
            f"{encoder[:8]}): {hint}"
        )
    if cache.encoder.fingerprint != (encoder or cache.encoder.fingerprint):
        raise CacheMismatchError(
            f"{cache.path} was filled by another encoder than the model's ({cache.encoder.label}, not {encoder[:8]}): "
            f"{hint}"
        )
    if info.detail and not _makes_tokens(info) and info.detail != tokens_fingerprint(cache):
        raise CacheMismatchError(f"{folder} was trained on other tokens than those of {cache.path}: {hint}")


def _makes_tokens(info: RefinerInfo) -> bool:
    """Whether a refiner has a network of its own for the tokens of the map, and sees pixels of photos."""
    return info.kind == "rays" or (isinstance(info.config, CachedRefinerConfig) and info.config.trunk is not None)


def refined(
    locator: Locator,
    folder: Path | None,
    model: Path,
    cache: str | Path | None,
    *,
    config: RefineConfig | None = None,
    top: int | None = None,
    imagery: Callable[[], Imagery | None] | None = None,
    device: str | None = None,
) -> Locator:
    """The same locator with a stage that refines its candidates.

    Args:
        locator: the locator.
        folder: of the refiner, or of a model folder that has one; that of the model by default.
        model: the locator's model folder.
        cache: path or URL of the cache whose tokens of the map it reads.
        config: as of `open_stage`, and so are the others.
        top: see above.
        imagery: see above.
        device: see above.

    Raises:
        ConfigError: the area is a region of cells in bands, which have no tiles whose tokens a refiner could read.
        JziError: as `open_stage`.
    """
    if not isinstance(locator.expert.area, Pyramid):
        raise ConfigError("refining is for square areas, not for regions of cells in bands: leave it out")
    stage = open_stage(
        model if folder is None else folder,
        locator.expert.area,
        lambda: locator.encoder,
        encoder=locator.expert.encoder.fingerprint,
        cache=None if cache is None else str(cache),
        imagery=imagery,
        config=config,
        top=top,
        device=device,
    )
    return locator.with_stage(stage)


# Encoding


def open_producer(settings: Settings, encoder: Encoder, refiner: Path | None) -> tuple[TokenProducer, int]:
    """The network that makes the tokens of a cache, and the side of a tile's image in pixels.

    Args:
        settings: the settings; `map.detail_px`.
        encoder: the cache's encoder.
        refiner: folder of a refiner with a network of its own for the map; None for the encoder.

    Raises:
        ModelError: there is no refiner in the folder.
        ConfigError: the refiner has no such network, or `map.detail_px` is no whole number of its tokens.
    """
    from jzi.encode.rasters.detail_tiles import EncoderTokens, detail_pixels

    producer: TokenProducer
    if refiner is None:
        producer = EncoderTokens(encoder)
        wanted = settings.map.detail_px
    else:
        from jzi.refine.networks.files import load_refiner
        from jzi.refine.networks.producer import TrunkTokens, trunk_pixels

        network, info = load_refiner(refiner_folder(refiner), encoder.device)
        producer = TrunkTokens(network)
        wanted = settings.map.detail_px or trunk_pixels(info, producer.patch, settings.pyramid)
    return producer, detail_pixels(producer, encoder.image_size, wanted)
