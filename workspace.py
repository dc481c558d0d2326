"""What the commands find in a working directory: the area, the query table, the model, and a jzi.toml to begin with."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jzi.config import EncoderSettings, MapSettings, QuerySettings, Settings, find_rasters, load_settings
from jzi.errors import ConfigError, PhotoError, first_line
from jzi.store.pyramid import Pyramid, preset

if TYPE_CHECKING:
    from jzi.decode.locate import Locator
    from jzi.encode.encoder import Encoder
    from jzi.encode.imagery import Imagery
    from jzi.encode.trainer import EncoderTrainingReport
    from jzi.store.cache import FeatureCache
    from jzi.store.queries import QueryTable, Rejected


def new_settings(
    folder: Path,
    rasters: Sequence[str] = (),
    *,
    queries: str | None = None,
    photos: str | None = None,
    encoder: str | None = None,
    image_size: int | None = None,
    preset: str | None = None,
    center: tuple[float, float] | None = None,
    size: float | None = None,
    grid: int | None = None,
    levels: int | None = None,
    map_crs: str | None = None,
) -> tuple[Settings, QueryTable | None]:
    """The settings of a new working directory, and its query table if one was named; nothing is written.

    Paths are relative to the current directory, and become relative to `folder` where they lie below it.

    Raises:
        JziError: the rasters, the photos or the area cannot be used; see the readers.
    """
    imagery = MapSettings(rasters=[_relative(raster, folder) for raster in rasters], crs=map_crs)
    pyramid = _area(find_rasters(rasters) if rasters else [], map_crs, preset, center, size, grid, levels)
    table, lookup = (_relative(path, folder) if path else None for path in (queries, photos))
    settings = Settings(
        pyramid=pyramid,
        map=imagery,
        queries=QuerySettings(table, lookup),
        encoder=_encoder_settings(folder, encoder, image_size),
    )
    settings.folder = folder
    if rasters:
        with open_imagery(settings):
            pass  # it can be read and touches the area, or raises
    return settings, read_query_table(settings) if queries else None


def _encoder_settings(folder: Path, name: str | None, image_size: int | None) -> EncoderSettings:
    if image_size is not None and image_size < 1:
        raise ConfigError(f"--image-size is {image_size}: it must be at least 1")
    chosen = EncoderSettings()
    chosen.name = _relative(name, folder) if name else chosen.name
    chosen.image_size = image_size or chosen.image_size
    return chosen


def dataset_settings(
    name: str,
    folder: Path,
    data: Path | None,
    download: bool,
    *,
    encoder: str | None = None,
    image_size: int | None = None,
    **others: Any,
) -> tuple[Settings, QueryTable]:
    """The settings of a working directory for a published data set; the map's VRT is written into it.

    Args:
        name: "just-zoom-in", the only one so far (Hugging Face `pcvlab/justzoomin`).
        folder: the working directory.
        data: where the copy of the data set lies, or is downloaded to; `folder` itself by default.
        download: fetch it from the Hugging Face hub first; what is there already is kept.
        encoder: as in `new_settings`.
        image_size: as in `new_settings`.
        others: anything else that `new_settings` takes; the data set says all that, and none may be given.

    Raises:
        ConfigError: there is no such data set, or it cannot be downloaded.
        JziError: the copy cannot be used; see the readers.
    """
    from jzi.encode.tiled_layout import TiledLayout

    if name != "just-zoom-in":
        raise ConfigError(f"there is no data set {name!r}: the only one is just-zoom-in")
    if given := [f"--{option.replace('_', '-')}" for option, value in others.items() if value]:
        raise ConfigError(f"--dataset says it all: leave {', '.join(given).replace('--rasters', '--map')} out")
    data = data or folder
    if download:
        _download("pcvlab/justzoomin", data)
    layout = TiledLayout.read(data / "satellite" / "layout.yaml")
    tables = {split: data / "metadata" / f"large_area_{split}_map.csv" for split in ("train", "val")}
    folder.mkdir(parents=True, exist_ok=True)
    layout.write_vrt(folder / "satellite.vrt")
    settings = Settings(
        pyramid=preset("just-zoom-in-dc"),
        map=MapSettings(rasters=["satellite.vrt"]),
        queries=QuerySettings(
            table={split: _relative(str(table), folder) for split, table in tables.items()},
            photos=_relative(str(data / "streetview" / "images"), folder),
        ),
        encoder=_encoder_settings(folder, encoder, image_size),
    )
    settings.folder = folder
    return settings, read_query_table(settings)


def _download(repository: str, data: Path) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        snapshot_download(repository, repo_type="dataset", local_dir=data)
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise ConfigError(
            f"the data set {repository} cannot be downloaded ({first_line(error)}): run again, what came is kept"
        ) from error


def _area(
    rasters: list[str],
    crs: str | None,
    name: str | None,
    center: tuple[float, float] | None,
    size: float | None,
    grid: int | None,
    levels: int | None,
) -> Pyramid:
    if name:
        if center or size or grid or levels:
            raise ConfigError("--preset says it all: leave --center, --size, --grid and --levels out")
        return preset(name)
    grid = grid or 4
    if center and size:
        return Pyramid.around(*center, size, grid=grid, levels=levels)
    if not rasters:
        raise ConfigError(
            "say which area: --map RASTER (the area that it covers), --center LAT LON --size M, or --preset"
        )
    from jzi.encode.area import square_around
    from jzi.encode.raster import RasterOptions

    whole = square_around(rasters, RasterOptions(crs=crs), grid=grid, levels=levels)
    if not center and not size:
        return whole
    middle = whole.unproject(whole.west + whole.size / 2, whole.north - whole.size / 2)
    latitude, longitude = center or (float(middle[0]), float(middle[1]))
    return Pyramid.around(latitude, longitude, size or whole.size, grid=grid, levels=levels)


def _relative(path: str, folder: Path) -> str:
    """A path given on the command line, as the jzi.toml in `folder` has it; URLs and hub ids stay as they are."""
    if "://" in path or path.startswith("/vsi") or not (any(c in path for c in "*?[") or Path(path).exists()):
        return path
    absolute = Path(path).expanduser().absolute()
    if absolute.is_relative_to(folder.absolute()):
        return str(absolute.relative_to(folder.absolute()))
    return os.path.relpath(absolute, folder.absolute()) if not Path(path).is_absolute() else str(absolute)


def describe_area(pyramid: Pyramid) -> str:
    """The area in a line."""
    latitude, longitude = pyramid.unproject(pyramid.west + pyramid.size / 2, pyramid.north - pyramid.size / 2)
    footprints = ", ".join(f"{pyramid.footprint(level):g}" for level in range(pyramid.levels))
    return (
        f"area: {pyramid.size:g} m square around {latitude:.6f}, {longitude:.6f}; {pyramid.levels} steps of "
        f"{pyramid.grid} x {pyramid.grid}, tiles of {footprints} m, cells of {pyramid.cell_size:.2f} m"
    )


def describe_zoom(pyramid: Pyramid, latitude: float, longitude: float) -> tuple[dict[str, Any], str]:
    """The zoom to a position, as plain values and as text.

    Raises:
        ConfigError: the position is outside of the area.
    """
    path = pyramid.paths(latitude, longitude)[0]
    if path[0] < 0:
        raise ConfigError(f"latitude {latitude}, longitude {longitude} is outside of the {describe_area(pyramid)}")
    keys = pyramid.keys(path)
    tiles = []
    for key in keys:
        bounds = pyramid.tile_bounds(key)
        corner_latitude, corner_longitude = pyramid.unproject(
            [bounds.west, bounds.east, bounds.east, bounds.west],
            [bounds.north, bounds.north, bounds.south, bounds.south],
        )
        tiles.append(
            {
                **key._asdict(),
                "footprint_m": pyramid.footprint(key.level),
                "bounds": list(bounds),
                "corners": np.stack([corner_latitude, corner_longitude], -1).round(8).tolist(),
            }
        )
    center = pyramid.tile_positions(pyramid.levels, keys[-1].row, keys[-1].col)
    values = {
        "latitude": latitude,
        "longitude": longitude,
        "path": path.tolist(),
        "cell_m": pyramid.cell_size,
        "cell_latitude": float(center[0]),
        "cell_longitude": float(center[1]),
        "crs": pyramid.crs,
        "tiles": tiles,
    }
    lines = [f"path {path.tolist()}, cell of {pyramid.cell_size:.2f} m around {center[0]:.6f}, {center[1]:.6f}"]
    lines += [
        f"  level {key.level}  row {key.row:>4}  col {key.col:>4}  {pyramid.footprint(key.level):>9.2f} m  "
        f"x {bounds.west:.2f} .. {bounds.east:.2f}  y {bounds.south:.2f} .. {bounds.north:.2f}"
        for key, bounds in zip(keys, map(pyramid.tile_bounds, keys), strict=True)
    ]
    return values, "\n".join(lines)


def area_for_tile(name: str | None, config_file: Path) -> Pyramid:
    """A preset's pyramid, else that of a jzi.toml that is there, else the published benchmark's."""
    if name is None and config_file.exists():
        return load_settings(config_file).pyramid
    return preset(name or "just-zoom-in-dc")


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
    from jzi.encode.processes import processes
    from jzi.store.cache import FeatureCache
    from jzi.store.storage import exists

    with processes().main_process_first():
        card = imagery.card(FeatureCache.open(path).imagery if exists(path) else None) if imagery else None
        return FeatureCache.open_or_create(path, pyramid, encoder.card, card)


def finetune_areas(areas: Sequence[Settings], output: Path) -> tuple[EncoderTrainingReport, tuple[Rejected, ...]]:
    """Fine-tune on one area or several; the first one's settings say how.

    Args:
        areas: settings of each area.
        output: the model folder to make.

    Returns:
        the report, and the photos that cannot be used.

    Raises:
        ConfigError: the areas are cut differently.
        JziError: as `jzi.encode.finetune.finetune`.
    """
    settings = areas[0]
    grids = {(each.pyramid.grid, each.pyramid.levels) for each in areas}
    if len(grids) > 1:
        raise ConfigError(
            "areas that are trained on together must have the same pyramid.grid and pyramid.levels, not "
            + " and ".join(f"{grid} and {levels}" for grid, levels in sorted(grids))
        )
    tables = [read_query_table(each).inside(each.pyramid) for each in areas]
    from jzi.decode.model import ZoomModel
    from jzi.encode.finetune import finetune

    init = settings.finetune.init
    with contextlib.ExitStack() as stack:
        maps = [stack.enter_context(open_imagery(each)) for each in areas]
        report = finetune(
            list(zip(maps, tables, strict=True)),
            load_encoder(settings),
            output,
            settings.decoder,
            settings.finetune,
            start=ZoomModel.load(settings.path(init)) if init else None,
            settings=settings.to_toml(),
        )
    return report, tuple(row for table in tables for row in table.rejected)


def read_query_table(settings: Settings) -> QueryTable:
    """The photos that the settings name.

    Raises:
        ConfigError: they name none.
        QueryTableError: they cannot be used.
    """
    from jzi.store.queries import read_queries

    if not settings.queries.table:
        raise ConfigError("no photos are named: set queries.table in jzi.toml to a folder, a CSV or a Parquet file")
    photos = settings.path(settings.queries.photos) if settings.queries.photos else None
    table = settings.queries.table
    if isinstance(table, str):
        return read_queries(settings.path(table), photos)
    return read_queries({split: settings.path(part) for split, part in table.items()}, photos)


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


def open_locator(
    model: Path | None, config_file: Path, *, cache: str | None, retriever: Path | None, approximate: bool
) -> Locator:
    """What locates photos: the zoom of a model, or flat retrieval.

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
        from jzi.retrieve.locate import RetrievalLocator

        return RetrievalLocator.open(retriever, approximate=approximate)
    if approximate:
        raise ConfigError("--approximate goes with --retriever")
    from jzi.decode.locate import Locator

    return Locator.load(model_folder(model, config_file), cache=cache)
