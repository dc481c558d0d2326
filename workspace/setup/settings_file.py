"""Read and write jzi.toml, with the overrides of a command; misspelt settings are named with what was meant."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, asdict, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import tomlkit
from pydantic import TypeAdapter, ValidationError

from jzi.errors import ConfigError
from jzi.store.disk.files import write_whole
from jzi.store.setting_checks import first_invalid, setting_error
from jzi.train.config.statewide import StatewideConfig
from jzi.workspace.setup.settings import FILE, TRAINING, AreaSettings, RegionSettings, Settings, without_none

#: Settings of an area of either geometry.
Area = TypeVar("Area", Settings, RegionSettings)


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
