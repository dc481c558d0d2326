"""What an ablation varies: a grid of settings from the command line, or a TOML file of named variants."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit

from jzi.errors import ConfigError

#: The plain settings as a row of the table.
REFERENCE = "reference"

#: Sections whose settings can be varied, and settings of theirs that cannot, with the reason.
SECTIONS = ("decoder", "train", "encoder", "finetune")
FIXED = {
    "decoder.width": "it follows from the encoder",
    "decoder.actions": "it follows from the area",
    "train.seed": "--seeds says how many seeds each variant is run with",
}


@dataclass(frozen=True)
class Variant:
    """Settings that differ from the plain ones.

    Attributes:
        name: as the table shows it.
        overrides: "section.name=value", values as in TOML.
    """

    name: str
    overrides: tuple[str, ...] = ()


def expand_grid(items: Sequence[str]) -> list[Variant]:
    """Every combination of "section.name=value,value,...", the last item varying fastest.

    Raises:
        ConfigError: an item is no setting that can be varied, or is given twice.
    """
    axes = []
    for item in items:
        name, equals, text = item.partition("=")
        name = _checked(
            name.strip(), item if equals else f"{item!r}, which is not of the form section.name=value,value"
        )
        values = _values(text)
        if not values:
            raise ConfigError(f"{item!r} has no value: give some, such as decoder.layers=2,4,6")
        axes.append([(name, value) for value in dict.fromkeys(values)])
    names = [axis[0][0] for axis in axes]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{twice[0]} is given twice: give its values once, separated by commas")
    return [
        Variant(
            ",".join(f"{name}={_plain(value)}" for name, value in chosen),
            tuple(f"{name}={value}" for name, value in chosen),
        )
        for chosen in (itertools.product(*axes) if axes else ())
    ]


def read_variants(file: Path) -> tuple[tuple[str, ...], list[Variant]]:
    """The settings that all variants of a TOML file share (its table `settings`), and its variants (`variants`).

    Raises:
        ConfigError: the file cannot be read, or a setting cannot be varied.
    """
    try:
        tables = tomllib.loads(file.read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    shared, variants = tables.pop("settings", {}), tables.pop("variants", None)
    if tables:
        raise ConfigError(f"{file} has {next(iter(tables))!r}: its tables are settings and variants")
    if not isinstance(variants, dict) or not variants or not isinstance(shared, dict):
        raise ConfigError(f"{file} names no variant: give some, such as [variants.small] with decoder.layers = 2")
    if REFERENCE in variants:
        raise ConfigError(f"{file} has a variant {REFERENCE!r}: so the plain settings are called, give another name")
    return _overrides(file, shared), [Variant(name, _overrides(file, each)) for name, each in variants.items()]


def folder_name(variant: str) -> str:
    """A variant's name as part of a file's name."""
    return "".join(character if character.isalnum() or character in " .,=+-_" else "_" for character in variant)


def _overrides(file: Path, sections: Any) -> tuple[str, ...]:
    overrides = []
    for section, values in sections.items() if isinstance(sections, dict) else [(sections, None)]:
        if not isinstance(values, dict):
            raise ConfigError(f"{file} has {section!r}: settings are written section.name = value")
        for name, value in values.items():
            overrides.append(f"{_checked(f'{section}.{name}', str(file))}={_literal(value)}")
    return tuple(overrides)


def _checked(name: str, where: str) -> str:
    """The name of a setting that can be varied."""
    section, dot, key = name.partition(".")
    if not (dot and key):
        raise ConfigError(f"an ablation varies settings such as decoder.layers=2,4,6, not {where}")
    if section not in SECTIONS:
        raise ConfigError(f"{name} cannot be varied: an ablation is of settings of {', '.join(SECTIONS)}")
    if name in FIXED:
        raise ConfigError(f"{name} cannot be varied: {FIXED[name]}")
    return name


def _values(text: str) -> list[str]:
    """TOML literals; bare words are text."""
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
    """A literal as a name shows it."""
    value = tomllib.loads(f"value = {literal}")["value"]
    return value if isinstance(value, str) else literal
