"""jzi.toml: the settings of one area and its experiments."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, asdict, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

import tomlkit
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic import Field as Bounds
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
    """The map, and how to read rasters that lack metadata.

    Attributes:
        rasters: orthophotos: files, globs, folders or URLs; the first is on top.
        crs: CRS of rasters without one, such as EPSG:25833.
        nodata: value of pixels without imagery, of rasters that do not record it.
        stretch: the two values that become black and white, of rasters that are not 8-bit; percentiles 2 and 98 of each
            band if unset.
        tokens: whether patch tokens of tiles are stored beside their embeddings, for `decoder.patch_tokens`.
        detail_px: side of the images of which `jzi encode-map --detail` makes tokens for refiners, pixels; twice the
            encoder's input if unset.
        remote: whether rasters may be URLs and other GDAL data sources, and may name files outside of their folder.
        attribution: credit line that the imagery's licence asks for, which maps and pictures show; by default what the
            rasters record.
    """

    rasters: list[str] = field(default_factory=list)
    crs: str | None = None
    nodata: float | None = None
    stretch: tuple[float, float] | None = None
    tokens: bool = False
    detail_px: int | None = Bounds(default=None, ge=1, le=MAX_IMAGE_SIZE)
    remote: bool = False
    attribution: str = Bounds(default="", max_length=MAX_ATTRIBUTION)

    def __post_init__(self) -> None:
        try:
            CRS.from_user_input(self.crs or "EPSG:4326")
        except CRSError as error:
            raise ConfigError(f"map.crs {self.crs!r} is not a CRS that PROJ knows: {first_line(error)}") from error


@dataclass(config=_strict)
class QuerySettings:
    """The photos with known positions.

    Attributes:
        table: a folder of photos with EXIF positions, or a CSV or Parquet table; or a table for each split:
            { train = "train.csv", val = "val.csv" }.
        photos: the folder of a table's photos; that of the table if unset.
        views: augmented views that `jzi encode-queries` stores of each training photo.
        seed: seed of the augmented views.
        split_by: what photos of a split have in common where the table has no splits: a drive (sequence), a block of
            the map, or nothing (photo); auto is the first of these that gives three groups or more.
        allow_outside: whether paths of the table and symbolic links may lead out of the folder of photos.
    """

    table: str | dict[str, str] | None = None
    photos: str | None = None
    views: int = Bounds(default=0, ge=0, le=255)
    seed: int = Bounds(default=0, ge=0, le=MAX_SEED)
    split_by: Literal["auto", "sequence", "block", "photo"] = "auto"
    allow_outside: bool = False


@dataclass(config=_strict)
class EncoderSettings:
    """The encoder of photos and tiles.

    Attributes:
        name: a Hugging Face id or a folder.
        image_size: side of its input, pixels.
        layout: how a photo is fitted into the input: as its left and right halves (the paper's), or whole.
        resampling: how photos are resized: "antialias", or "reference" as published checkpoints need, with OpenCV.
        batch_size: images per forward pass.
    """

    name: str = "facebook/dinov2-base"
    image_size: int = Bounds(default=384, ge=1, le=MAX_IMAGE_SIZE)
    layout: Literal["halves", "whole"] = "halves"
    resampling: Literal["antialias", "reference"] = "antialias"
    batch_size: int = Bounds(default=32, ge=1, le=65_536)


@dataclass(config=_strict)
class PathSettings:
    """Where a cache or a model is stored.

    Attributes:
        path: its folder; that of a cache may be a URL such as s3://bucket/features.zarr.
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
    """The region, which is divided into cells.

    Attributes:
        file: a GeoJSON file with polygons.
        cell_m: side of a cell, metres.
        rule: which cells belong to it: those that it touches, with a corner in it, or with their centre in it.
    """

    file: str
    cell_m: float = Bounds(default=30.0, ge=MIN_CELL, le=MAX_CELL)
    rule: Rule = "touch"


@dataclass(config=_strict)
class EncodingSettings:
    """How cells and photos of a region are encoded.

    Attributes:
        batch_size: cells, or photos, per forward pass.
    """

    batch_size: int = Bounds(default=32, ge=1, le=65_536)


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


Area = TypeVar("Area", Settings, RegionSettings)

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
        raise settings_error(file, error, kind) from error
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
    overridden = _override(values, overrides)
    if nul := _with_null(values):
        raise ConfigError(f"the setting {nul} contains a null byte: remove it")
    return values, overridden


def _override(values: dict[str, Any], overrides: Iterable[str]) -> set[str]:
    """Put overrides into the values of a jzi.toml; return their names."""
    overridden: set[str] = set()
    for override in overrides:
        name, equals, text = override.partition("=")
        *tables, key = name.strip().split(".")
        if not (equals and tables and all(tables) and key):
            raise ConfigError(f"--set takes section.name=value (such as decoder.layers=4), not {override!r}")
        table = values
        for each in tables:  # more than one for refine.rays.hidden
            table = table.setdefault(each, {})
            if not isinstance(table, dict):
                raise ConfigError(f"there is no setting {name.strip()!r}")
        table[key] = _parse(text.strip())
        overridden.add(name.strip())
    return overridden


#: Sections that the options of `jzi init` fill.
_BY_OPTIONS = ("pyramid", "region", "map", "queries", "encoder")


def with_settings(settings: Area, overrides: Iterable[str]) -> Area:
    """New settings of an area with further ones.

    Args:
        settings: the settings.
        overrides: as of `load_settings`, of sections that no option of `jzi init` fills.

    Raises:
        ConfigError: a setting is unknown or invalid, or an option is for it.
    """
    values = changed_values(settings)
    overridden = _override(values, overrides)
    if names := sorted(name for name in overridden if name.partition(".")[0] in _BY_OPTIONS):
        raise ConfigError(f"--set {names[0]} is not possible here: use the options of `jzi init`, or edit {FILE}")
    if not overridden:
        return settings
    try:
        changed: Area = TypeAdapter(type(settings)).validate_python(values)
    except ValidationError as error:
        raise settings_error(settings.folder / FILE, error, type(settings)) from error
    changed.folder, changed.overridden = settings.folder, settings.overridden
    return changed


def _parse(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def unknown_setting(file: Path, name: str, settings: type) -> ConfigError:
    """The error of a setting, or a section, that does not exist; with the most similar one that does.

    Args:
        file: path of the jzi.toml.
        name: its name.
        settings: the class of the settings in the file.
    """
    message = f"{file} or --set has a setting {name!r:.100} that jzi does not know"
    section, dot, _ = name.partition(".")
    sections = _setting_names(settings)
    names = [each for inside in sections.values() for each in inside] if dot else list(sections)
    elsewhere = [each for each in names if dot and each.rpartition(".")[2] == name.rpartition(".")[2]]
    close = get_close_matches(name, elsewhere, 1, 0) or get_close_matches(name, sections.get(section, ()), 1, 0.5)
    close = close or get_close_matches(name, names, 1)
    hint = f"did you mean {close[0]}?" if close else "`jzi settings` lists all of them"
    return ConfigError(f"{message}: {hint}")


def _setting_names(settings: type) -> dict[str, list[str]]:
    """Names of all settings, such as "decoder.layers", by section."""
    hints = get_type_hints(settings)
    return {each.name: list(_names(each.name, hints[each.name])) for each in fields(settings)}


def _names(prefix: str, section: type) -> Iterator[str]:
    hints = get_type_hints(section)
    for each in fields(section):
        name = f"{prefix}.{each.name}"
        yield from _names(name, hints[each.name]) if is_dataclass(hints[each.name]) else (name,)


def flat_names(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Names such as "decoder.layers" of the values of a jzi.toml."""
    for name, value in values.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from flat_names(value, f"{prefix}{name}.")


def settings_error(file: Path, error: ValidationError, settings: type) -> ConfigError:
    """The error of a jzi.toml whose values pydantic refuses, for the class of its settings."""
    name, value, kind, reason = first_invalid(error)
    if kind == "unexpected_keyword_argument":
        return unknown_setting(file, name, settings)
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


def default_section(each: Field[Any], section: Any = None) -> Any:
    """The default of a section: of a field of `Settings` and the like; None if it has none, such as the area.

    Args:
        each: the field.
        section: the section in force; defaults of `statewide` follow its method.
    """
    if isinstance(section, StatewideConfig):
        return StatewideConfig(method=section.method)
    return None if each.default_factory is MISSING else each.default_factory()


#: Settings that follow from the encoder and the pyramid.
DERIVED = ("decoder.width", "decoder.actions")

#: Settings that a new jzi.toml names even if they have their default: those that users look for first.
_NAMED = {"map": ("rasters",), "queries": ("table", "split_by"), "encoder": ("name", "image_size")}


def changed_values(settings: Any) -> dict[str, dict[str, Any]]:
    """The settings that a new jzi.toml names, by section: those of the area, those that differ from their defaults, and
    a few that users look for first.

    Args:
        settings: an instance of `Settings`, `RegionSettings` or `jzi.workspace.pairs.PairSettings`.
    """
    sections = {}
    for each in fields(settings):
        section = getattr(settings, each.name)
        default = default_section(each, section)
        values = without_none(asdict(section))
        if default is not None:
            values = _differing(values, without_none(asdict(default)), _NAMED.get(each.name, ()))
        values = {name: value for name, value in values.items() if f"{each.name}.{name}" not in DERIVED}
        if values:
            sections[each.name] = values
    return sections


def _differing(values: dict[str, Any], defaults: dict[str, Any], named: Iterable[str] = ()) -> dict[str, Any]:
    changed = {}
    for name, value in values.items():
        default = defaults.get(name)
        if isinstance(value, dict) and isinstance(default, dict):
            if inner := _differing(value, default):
                changed[name] = inner
        elif name in named or value != default:
            changed[name] = value
    return changed


def write_settings(settings: AreaSettings) -> None:
    """Write a new jzi.toml into the folder of the settings: what differs from the defaults, with comments."""
    comments = {
        "pyramid": "The area: a square in a metric CRS, divided into grid x grid tiles, `levels` times.",
        "region": "The region: polygons, the side of its cells in metres, and which cells belong to it: those that it\n"
        "# touches (touch), that have a corner in it (corners), or their centre (centre).",
        "map": "Orthophotos, the first on top: files, globs or folders.",
        "queries": "A folder of photos with EXIF positions, or a CSV or Parquet table; split_by: what stays together\n"
        "# in a split, unless the table has a column `split`: sequence (drives), block (of the map), photo, or auto.",
        "encoder": "A Hugging Face id or a folder, and the side of its input in pixels.",
    }
    header = "Settings of one area: what differs from the defaults."
    write_toml(settings.folder, changed_values(settings), header, comments)


def write_toml(folder: Path, sections: Mapping[str, Any], header: str, comments: Mapping[str, str]) -> None:
    """Write sections as a jzi.toml into a folder, which is created.

    Args:
        folder: the folder.
        sections: values, by section.
        header: first line, a comment.
        comments: comments of some sections.
    """
    text = f"# {header} `jzi settings` lists all settings with their meaning.\n"
    text += "# --set SECTION.NAME=VALUE overrides one for a single command. Paths are relative to this file.\n"
    for section, values in sections.items():
        comment = f"# {comments[section]}\n" if section in comments else ""
        text += f"\n{comment}{tomlkit.dumps({section: values})}"
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / FILE, lambda path: path.write_text(text))
