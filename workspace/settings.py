"""jzi.toml: the settings of one area and its experiments."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable
from dataclasses import asdict, field
from pathlib import Path
from typing import Any, Literal

import tomlkit
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pyproj import CRS
from pyproj.exceptions import CRSError

from jzi.decode.config import DecoderConfig
from jzi.errors import ConfigError, first_line
from jzi.locate.ranges import MAX_SEED
from jzi.refine.config import RefineConfig
from jzi.rerank.config import RerankConfig
from jzi.store.bands import MAX_CELL, MIN_CELL
from jzi.store.files import write_whole
from jzi.store.info import MAX_ATTRIBUTION, MAX_IMAGE_SIZE
from jzi.store.pyramid import Pyramid
from jzi.store.region import Rule
from jzi.store.setting_checks import first_invalid, setting_error
from jzi.train.config import (
    STATEWIDE_METHODS,
    FinetuneConfig,
    HeadsTrainingConfig,
    RefinerTrainingConfig,
    RetrieverConfig,
    StatewideConfig,
    TrainConfig,
)

FILE = "jzi.toml"
_strict = ConfigDict(extra="forbid")


@dataclass(config=_strict)
class MapSettings:
    """The map: its rasters, and how to read those that lack metadata.

    Attributes:
        rasters: files, globs or folders; the first is on top.
        crs: CRS of rasters that have none.
        nodata: value of pixels without data, of rasters that do not say it.
        stretch: values that become black and white; by default percentiles 2 and 98 of rasters that are not 8-bit.
        tokens: also store patch tokens of tiles beside their embeddings, for `decoder.patch_tokens`.
        detail_px: side of the images of which `jzi encode-map --detail` makes tokens for refiners; by default twice
            the encoder's input.
        remote: rasters may be URLs and other GDAL data sources, and may name files outside of their folder.
        attribution: credit line that the imagery's licence asks for, which maps and pictures show; by default what the
            rasters record.
    """

    rasters: list[str] = field(default_factory=list)
    crs: str | None = None
    nodata: float | None = None
    stretch: tuple[float, float] | None = None
    tokens: bool = False
    detail_px: int | None = Field(default=None, ge=1, le=MAX_IMAGE_SIZE)
    remote: bool = False
    attribution: str = Field(default="", max_length=MAX_ATTRIBUTION)

    def __post_init__(self) -> None:
        try:
            CRS.from_user_input(self.crs or "EPSG:4326")
        except CRSError as error:
            raise ConfigError(f"map.crs {self.crs!r} is not a CRS that PROJ knows: {first_line(error)}") from error


@dataclass(config=_strict)
class QuerySettings:
    """The photos: a folder of photos with EXIF positions, or a CSV or Parquet table and the folder of its photos.

    Attributes:
        table: the folder or the table, or a table for each split: `{ train = "train.csv", val = "val.csv" }`.
        photos: folder of a table's photos; by default that of the table.
        views: number of augmented views of each training photo that are encoded.
        seed: seed of the augmented views.
        split_by: what stays together in a split where the table has none: drives, blocks of the map, single photos, or
            the first of these that gives three groups or more (`jzi.store.splits.split_photos`).
        allow_outside: paths of the table and symbolic links may lead out of the folder of photos.
    """

    table: str | dict[str, str] | None = None
    photos: str | None = None
    views: int = Field(default=0, ge=0, le=255)
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    split_by: Literal["auto", "sequence", "block", "photo"] = "auto"
    allow_outside: bool = False


@dataclass(config=_strict)
class EncoderSettings:
    """The encoder of tiles and photos.

    Attributes:
        name: a Hugging Face id or a folder.
        image_size: side of its input, pixels.
        layout: how a photo is fed: two square halves whose embeddings are averaged (the paper's), or the whole photo.
        resampling: how photos are resized: antialiased, or with OpenCV as published checkpoints need.
        batch_size: images per forward pass.
    """

    name: str = "facebook/dinov2-base"
    image_size: int = Field(default=384, ge=1, le=MAX_IMAGE_SIZE)
    layout: Literal["halves", "whole"] = "halves"
    resampling: Literal["antialias", "reference"] = "antialias"
    batch_size: int = Field(default=32, ge=1, le=65_536)


@dataclass(config=_strict)
class PathSettings:
    """Path of a cache or a model.

    Attributes:
        path: a folder; of a cache also a URL such as s3://bucket/name.zarr.
    """

    path: str


class AreaSettings:
    """What the settings of every kind of area have. Relative paths are relative to the folder of jzi.toml."""

    map: MapSettings
    queries: QuerySettings
    cache: PathSettings
    rerank: RerankConfig

    def __post_init__(self) -> None:
        self.folder = Path()
        #: Names of the settings that were overridden, such as "decoder.layers".
        self.overridden: frozenset[str] = frozenset()

    def path(self, value: str) -> Path:
        """Resolve a path of the settings."""
        return resolve_path(value, self.folder)

    @property
    def cache_path(self) -> str:
        """Path or URL of the cache."""
        return self.cache.path if "://" in self.cache.path else str(self.path(self.cache.path))

    @property
    def rasters(self) -> list[str]:
        """Paths of the rasters of the map.

        Raises:
            ConfigError: no raster is named, or an entry matches no file.
        """
        return find_rasters(self.map.rasters, self.folder)

    def to_toml(self) -> str:
        """Format all settings as a jzi.toml."""
        return tomlkit.dumps(without_none(asdict(self)))  # type: ignore[call-overload]


@dataclass(config=_strict)
class Settings(AreaSettings):
    """The settings of a square area, which the zoom searches."""

    pyramid: Pyramid
    map: MapSettings = field(default_factory=MapSettings)
    queries: QuerySettings = field(default_factory=QuerySettings)
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    cache: PathSettings = field(default_factory=lambda: PathSettings("features.zarr"))
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    heads: HeadsTrainingConfig = field(default_factory=HeadsTrainingConfig)
    model: PathSettings = field(default_factory=lambda: PathSettings("model"))
    retriever: RetrieverConfig = field(default_factory=RetrieverConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    refiner: RefinerTrainingConfig = field(default_factory=RefinerTrainingConfig)
    rerank: RerankConfig = field(default_factory=RerankConfig)

    @property
    def encoder_folder(self) -> Path | None:
        """Folder of the encoder; None if its name is a Hugging Face id."""
        folder = self.path(self.encoder.name)
        return folder if folder.is_dir() else None


@dataclass(config=_strict)
class RegionSection:
    """The region that is divided into cells.

    Attributes:
        file: a GeoJSON file with polygons.
        cell_m: side of a cell, metres.
        rule: which cells belong to it: those that it touches, with a corner in it, or with their centre in it.
    """

    file: str
    cell_m: float = Field(default=30.0, ge=MIN_CELL, le=MAX_CELL)
    rule: Rule = "touch"


@dataclass(config=_strict)
class EncodingSettings:
    """The encoding of cells and photos.

    Attributes:
        batch_size: cells, and photos, per forward pass.
    """

    batch_size: int = Field(default=32, ge=1, le=65_536)


@dataclass(config=_strict)
class RegionSettings(AreaSettings):
    """The settings of a region, whose cells a state-wide retriever searches. The cache is the index of its cells."""

    region: RegionSection
    map: MapSettings = field(default_factory=MapSettings)
    queries: QuerySettings = field(default_factory=QuerySettings)
    statewide: StatewideConfig = field(default_factory=StatewideConfig)
    cache: PathSettings = field(default_factory=lambda: PathSettings("index.zarr"))
    encoding: EncodingSettings = field(default_factory=EncodingSettings)
    rerank: RerankConfig = field(default_factory=RerankConfig)


#: The sections of jzi.toml about photos and training, of which a command uses some: those that train off the cache read
#: no photos.
TRAINING = ("queries", "finetune", "decoder", "train", "heads", "retriever", "statewide", "refiner")


def find_rasters(entries: Iterable[str], folder: Path = Path()) -> list[str]:
    """Expand entries to paths of rasters.

    Args:
        entries: files, globs, URLs, or folders of GeoTIFF, JPEG, PNG, JPEG 2000 and VRT files.
        folder: folder of relative paths.

    Raises:
        ConfigError: there is no entry, or one matches no file.
    """
    rasters: list[str] = []
    for entry in entries:
        if "://" in entry or entry.startswith("/vsi"):
            rasters.append(entry)
            continue
        path = resolve_path(entry, folder)
        if path.is_dir():
            suffixes = (".tif", ".tiff", ".vrt", ".jp2", ".jpg", ".jpeg", ".png")
            files = sorted(file for file in path.iterdir() if file.suffix.lower() in suffixes)
        else:
            anchor = Path(path.anchor)
            files = sorted(anchor.glob(str(path.relative_to(anchor)))) if any(c in entry for c in "*?[") else [path]
        if not files or not files[0].exists():
            raise ConfigError(f"there is no raster {entry}: map.rasters names files, globs or folders")
        rasters += [str(file) for file in files]
    if not rasters:
        raise ConfigError("no raster is given: name the map with `jzi init --map RASTER` or in map.rasters of jzi.toml")
    return rasters


def names_url(entries: Iterable[str]) -> bool:
    """Return whether one of the entries of `find_rasters` is a URL or another GDAL data source."""
    return any("://" in entry or entry.startswith("/vsi") for entry in entries)


def resolve_path(path: str, folder: Path) -> Path:
    """Resolve a path of jzi.toml, whose folder need not exist."""
    return Path(os.path.normpath(folder / Path(path).expanduser()))


def load_settings(file: Path, overrides: Iterable[str] = (), training: Iterable[str] = TRAINING) -> Settings:
    """Read the jzi.toml of a square area.

    Args:
        file: path of the jzi.toml.
        overrides: "section.name=value", with values as in TOML; bare words are strings.
        training: the sections of `TRAINING` that are used; to override a setting of another one has no effect.

    Raises:
        ConfigError: the file does not exist, is that of a region, a setting is unknown or invalid, or an override has
            no effect.
    """
    settings = load_area(file, overrides, training)
    if not isinstance(settings, Settings):
        raise ConfigError(
            f"{file} describes a region, which this command does not use: it is for the squares that "
            "`jzi init --map RASTER` sets up"
        )
    return settings


def load_region(file: Path, overrides: Iterable[str] = (), training: Iterable[str] = TRAINING) -> RegionSettings:
    """Read the jzi.toml of a region; arguments and errors as those of `load_settings`."""
    settings = load_area(file, overrides, training)
    if not isinstance(settings, RegionSettings):
        raise ConfigError(
            f"{file} describes a square area, but a state-wide retriever searches regions: set one up with "
            "`jzi init --region REGION.geojson`"
        )
    return settings


def is_region(file: Path) -> bool:
    """Whether a jzi.toml describes a region; False too if it cannot be read, which `load_area` reports."""
    return _has_section(file, "region")


def is_pairs(file: Path) -> bool:
    """Whether a jzi.toml describes a data set of pairs (`jzi.workspace.pairs`); False too if it cannot be read."""
    return _has_section(file, "pairs")


def _has_section(file: Path, section: str) -> bool:
    try:
        return section in tomllib.loads(file.read_text())
    except (OSError, ValueError):
        return False


def load_area(
    file: Path, overrides: Iterable[str] = (), training: Iterable[str] = TRAINING
) -> Settings | RegionSettings:
    """Read a jzi.toml of either kind; arguments and errors as those of `load_settings`."""
    values, overridden = read_values(file, overrides)
    if "pairs" in values:
        raise ConfigError(
            f"{file} describes a data set of pairs, which this command does not use: it is for the areas that "
            "`jzi init --map RASTER` and `jzi init --region REGION.geojson` set up"
        )
    try:
        kind: type[Settings] | type[RegionSettings] = RegionSettings if "region" in values else Settings
        settings: Settings | RegionSettings = TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        raise settings_error(file, error) from error
    for name in sorted(overridden):
        if name.partition(".")[0] in set(TRAINING) - set(training):
            raise ConfigError(f"--set {name} has no effect on this command: leave it out")
    settings.folder = file.parent
    settings.overridden = frozenset(overridden)
    return settings


def read_values(file: Path, overrides: Iterable[str] = ()) -> tuple[dict[str, Any], set[str]]:
    """The values of a jzi.toml of any kind, with overrides, and the names of the overridden settings.

    Args:
        file: path of the jzi.toml.
        overrides: as of `load_settings`.

    Raises:
        ConfigError: the file does not exist or cannot be read, or an override is malformed.
    """
    try:
        values = tomllib.loads(file.read_text())
    except FileNotFoundError:
        raise ConfigError(f"there is no {file}: `jzi init` writes it, or change to the folder that has one") from None
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    except ValueError as error:  # a null byte in the path
        raise ConfigError(f"{str(file)!r} is not a path ({error}): give another one") from error
    overridden: set[str] = set()
    for override in overrides:
        name, equals, text = override.partition("=")
        section, dot, key = name.strip().partition(".")
        if not (equals and dot and section and key):
            raise ConfigError(f"--set takes section.name=value (such as decoder.layers=4), not {override!r}")
        if not isinstance(values.setdefault(section, {}), dict):
            raise ConfigError(f"there is no setting {name.strip()!r}")
        values[section][key] = _parse(text.strip())
        overridden.add(f"{section}.{key}")
    if nul := _with_null(values):
        raise ConfigError(f"the setting {nul} contains a null byte: remove it")
    return values, overridden


def _parse(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def settings_error(file: Path, error: ValidationError) -> ConfigError:
    """The error of a jzi.toml whose values pydantic refuses."""
    name, value, kind, reason = first_invalid(error)
    if kind == "unexpected_keyword_argument":
        return ConfigError(f"{file} or --set has a setting {name!r} that jzi does not know")
    if kind in ("missing", "missing_argument"):
        return ConfigError(f"{file} lacks the setting {name!r}: `jzi init` writes it")
    return setting_error(name, value, reason)


def _with_null(value: Any, name: str = "") -> str:
    """Name of the first setting with a null byte, which neither paths nor names can contain; "" if there is none."""
    if isinstance(value, dict):
        return next(filter(None, (_with_null(each, f"{name}.{key}".strip(".")) for key, each in value.items())), "")
    if isinstance(value, list):
        return next(filter(None, (_with_null(each, name) for each in value)), "")
    return name if isinstance(value, str) and "\0" in value else ""


def without_none(values: dict[str, Any]) -> dict[str, Any]:
    """Leave out values that are not set: TOML has no null."""
    return {
        key: without_none(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if value is not None
    }


def write_settings(settings: AreaSettings) -> None:
    """Write a new jzi.toml, with comments, into the folder of the settings."""
    sections = without_none(asdict(settings))  # type: ignore[call-overload]
    for derived in ("width", "actions"):  # from the encoder and the pyramid
        sections.get("decoder", {}).pop(derived, None)
    for network in ("trunk", "photo_trunk", "rays"):  # of refiners that are trained from pixels
        sections.get("refine", {}).pop(network, None)
    for follows in STATEWIDE_METHODS["statewide"]:  # the method, unless they are set
        sections.get("statewide", {}).pop(follows, None)
    comments = {
        "pyramid": "The area: a square in a metric CRS, divided into grid x grid tiles, `levels` times.",
        "region": "The region: polygons, the side of its cells in metres, and which cells belong to it: those that it\n"
        "# touches (touch), that have a corner in it (corners), or their centre (centre).",
        "statewide": "The state-wide retriever: its towers, levels of detail (metres a pixel), and training.",
        "encoding": "Cells, and photos, per forward pass.",
        "map": "Orthophotos, the first on top: files, globs or folders. Also: crs, nodata, stretch = [low, high].\n"
        "# tokens: also store patch tokens of tiles, for decoder.patch_tokens.",
        "queries": "A folder of photos with EXIF positions, or a CSV or Parquet table and its photos.\n"
        "# split_by: what stays together in a split, unless the table has a column `split`: sequence (drives), block\n"
        "# (of the map), photo, or auto (the first of these that gives three groups or more).",
        "encoder": "A Hugging Face id or a folder; layout: halves (the paper's) or whole;\n"
        "# resampling of photos: antialias, or reference as published checkpoints need.",
        "finetune": 'Training of the encoder with a decoder; blocks: number of its last blocks to train, or "all".',
        "cache": "The feature cache: a folder, or a URL such as s3://.",
        "decoder": "The paper's decoder; patch_tokens: patch tokens to read of each tile, which needs map.tokens.",
        "train": "The paper's training; trackers: experiment trackers of Accelerate.",
        "heads": "Training of the experts cells and levels, which need `jzi encode-map --cells`.",
        "model": "The folder of the trained model.",
        "retriever": "Flat retrieval, a baseline: sample4geo, infonce or transgeo.",
        "refine": "Metres inside of the cell: the windows around candidates, and the network that refines them;\n"
        "# source: detail (`jzi encode-map --detail`), tokens, or trained. hfov: of photos that do not record it.",
        "refiner": "Training of the refiner.",
        "rerank": "The vision-language model that compares candidates (--rerank); judge: a Hugging Face id, a folder,\n"
        "# or the URL of an OpenAI-compatible endpoint, whose key is read from the environment variable key_env.",
    }
    text = "# Settings of one area and its experiments. Override any of them with --set: --set decoder.layers=4\n"
    for section, values in sections.items():
        text += f"\n# {comments[section]}\n{tomlkit.dumps({section: values})}"
    settings.folder.mkdir(parents=True, exist_ok=True)
    write_whole(settings.folder / FILE, lambda path: path.write_text(text))
