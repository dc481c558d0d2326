"""The variants of an ablation: a grid of settings from the command line, or a TOML file of named variants."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit

from jzi.errors import ConfigError

#: Name of the plain settings in the table.
REFERENCE = "reference"

#: Sections whose settings can be varied, of an area and of a data set of pairs, and the exceptions with the reason.
SECTIONS = ("decoder", "train", "encoder", "finetune")
PAIR_SECTIONS = ("pairs", "refine", "refiner")
#: Sections of state-wide retrieval, whose variants have a program of their own.
REGION_SECTIONS = ("statewide", "region")
FIXED = {
    "decoder.width": "it follows from the encoder",
    "decoder.actions": "it follows from the area",
    "train.seed": "use --seeds to set the number of seeds per variant",
    "statewide.seed": "use --seeds to set the number of seeds per variant",
    "refiner.seed": "use --seeds to set the number of seeds per variant",
}


@dataclass(frozen=True)
class Variant:
    """A named set of overrides of the plain settings.

    Attributes:
        name: name in the table.
        overrides: "section.name=value", with the value in TOML syntax.
    """

    name: str
    overrides: tuple[str, ...] = ()


def expand_grid(items: Sequence[str], sections: Sequence[str] = SECTIONS) -> list[Variant]:
    """Every combination of the values of several settings; the last one varies fastest.

    Args:
        items: "section.name=value,value,...".
        sections: sections whose settings can be varied.

    Raises:
        ConfigError: an item is malformed, cannot be varied, or is given twice.
    """
    axes = []
    for item in items:
        name, equals, text = item.partition("=")
        name = _checked(
            name.strip(), item if equals else f"{item!r}, which is not of the form section.name=value,value", sections
        )
        values = _values(text)
        if not values:
            raise ConfigError(f"{item!r} has no value: give values, such as decoder.layers=2,4,6")
        axes.append([(name, value) for value in dict.fromkeys(values)])
    names = [axis[0][0] for axis in axes]
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{duplicates[0]} is given twice: give its values once, separated by commas")
    return [
        Variant(
            ",".join(f"{name}={_plain(value)}" for name, value in chosen),
            tuple(f"{name}={value}" for name, value in chosen),
        )
        for chosen in (itertools.product(*axes) if axes else ())
    ]


def read_variants(file: Path, sections: Sequence[str] = SECTIONS) -> tuple[tuple[str, ...], list[Variant]]:
    """Read variants from a TOML file.

    Args:
        file: a file with the tables `variants` and, optionally, `settings`.
        sections: sections whose settings can be varied.

    Returns:
        Overrides for all variants, from the table `settings`, and the variants.

    Raises:
        ConfigError: the file cannot be read, or a setting cannot be varied.
    """
    try:
        tables = tomllib.loads(file.read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    shared, variants = tables.pop("settings", {}), tables.pop("variants", None)
    if tables:
        raise ConfigError(f"{file} has a table {next(iter(tables))!r}: only settings and variants are allowed")
    if not isinstance(variants, dict) or not variants or not isinstance(shared, dict):
        raise ConfigError(f"{file} has no variants: add some, such as [variants.small] with decoder.layers = 2")
    if REFERENCE in variants:
        raise ConfigError(f"{file} has a variant {REFERENCE!r}, the name of the plain settings: give it another name")
    return _overrides(file, shared, sections), [
        Variant(name, _overrides(file, each, sections)) for name, each in variants.items()
    ]


def folder_name(variant: str) -> str:
    """A variant's name with characters that are unsafe in file names replaced by underscores."""
    return "".join(character if character.isalnum() or character in " .,=+-_" else "_" for character in variant)


def _overrides(file: Path, tables: Any, sections: Sequence[str]) -> tuple[str, ...]:
    overrides = []
    for section, values in tables.items() if isinstance(tables, dict) else [(tables, None)]:
        if not isinstance(values, dict):
            raise ConfigError(f"{file} has {section!r}: write settings as section.name = value")
        for name, value in values.items():
            overrides.append(f"{_checked(f'{section}.{name}', str(file), sections)}={_literal(value)}")
    return tuple(overrides)


def _checked(name: str, where: str, sections: Sequence[str] = SECTIONS) -> str:
    """The name, if the setting can be varied; raises otherwise."""
    section, dot, key = name.partition(".")
    if not (dot and key):
        raise ConfigError(f"an ablation varies settings such as decoder.layers=2,4,6, not {where}")
    if section in REGION_SECTIONS and section not in sections:
        raise ConfigError(
            f"{name} is a setting of state-wide retrieval, of which `jzi ablate` trains no variants: `python -m "
            "benchmarks.statewide TOWN ... --test TOWN --variants FILE.toml`, in a checkout of jzi, does"
        )
    if section not in sections:
        raise ConfigError(f"{name} cannot be varied: choose a setting of {', '.join(sections)}")
    if name in FIXED:
        raise ConfigError(f"{name} cannot be varied: {FIXED[name]}")
    return name


def _values(text: str) -> list[str]:
    """The values of a comma-separated list as TOML literals; bare words become strings."""
    try:
        parts: Iterable[Any] = tomllib.loads(f"values = [{text}]")["values"]
    except tomllib.TOMLDecodeError:
        return [literal for part in text.split(",") if part.strip() for literal in _values_of(part.strip())]
    return [_literal(part) for part in parts]


def _values_of(word: str) -> list[str]:
    try:
        return [_literal(tomllib.loads(f"value = {word}")["value"])]
    except tomllib.TOMLDecodeError:
        return [_literal(word)]


def _literal(value: Any) -> str:
    return tomlkit.item(value).as_string().strip()


def _plain(literal: str) -> str:
    """A TOML literal for display: strings without quotes."""
    value = tomllib.loads(f"value = {literal}")["value"]
    return value if isinstance(value, str) else literal
