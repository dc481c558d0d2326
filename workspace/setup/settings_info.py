"""What every setting of jzi.toml is: its value, default, allowed values and meaning, from the settings' classes.

Descriptions are the entries under "Attributes:" in the docstrings of the classes; ranges are what pydantic checks.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any, get_type_hints

import tomlkit
from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from jzi.errors import ConfigError
from jzi.workspace.pairs import PairSettings, load_pairs
from jzi.workspace.setup.settings import TRAINING, RegionSettings, Settings
from jzi.workspace.setup.settings_file import DERIVED, default_section, flat_names, is_pairs, load_area, read_values

#: The classes of a whole jzi.toml; sections that several of them have are described as in the first.
KINDS: tuple[type, ...] = (Settings, RegionSettings, PairSettings)


@dataclass(frozen=True)
class SettingInfo:
    """A setting.

    Attributes:
        name: section and name, such as "decoder.layers".
        value: the value in force; None if there is none.
        default: the default; None if there is none.
        allowed: the values that are allowed, such as "1 to 256" or "auto, no, fp16, bf16".
        description: what it means.
        source: where the value comes from: "default", "jzi.toml" or "--set".
    """

    name: str
    value: Any
    default: Any
    allowed: str
    description: str
    source: str


@dataclass(frozen=True)
class SectionInfo:
    """A section of jzi.toml.

    Attributes:
        name: such as "decoder".
        description: what its settings are about.
        settings: its settings, those of nested tables included.
    """

    name: str
    description: str
    settings: tuple[SettingInfo, ...]


def describe_settings(file: Path | None = None, overrides: Iterable[str] = ()) -> dict[str, SectionInfo]:
    """Describe all settings, by section.

    Args:
        file: a jzi.toml, whose values are those in force; without one, or if it does not exist, the defaults of all
            kinds of areas are described.
        overrides: as of `jzi.workspace.setup.settings_file.load_settings`.

    Raises:
        ConfigError: the file cannot be used, or an override is malformed.
    """
    overrides = tuple(overrides)
    if file is None or not (file.exists() or overrides):
        sections: dict[str, SectionInfo] = {}
        for kind in KINDS:
            sections |= {name: each for name, each in _sections(kind, None, {}).items() if name not in sections}
        return sections
    settings = load_pairs(file, overrides) if is_pairs(file) else load_area(file, overrides, TRAINING)
    in_file, _ = read_values(file)
    _, overridden = read_values(file, overrides)
    sources = {**dict.fromkeys(flat_names(in_file), "jzi.toml"), **dict.fromkeys(overridden, "--set")}
    return _sections(type(settings), settings, sources)


def select(sections: Mapping[str, SectionInfo], name: str) -> list[SectionInfo]:
    """The section of a name, or one with the single setting of that name.

    Args:
        sections: as from `describe_settings`.
        name: such as "decoder" or "decoder.layers".

    Raises:
        ConfigError: there is none of that name.
    """
    if name in sections:
        return [sections[name]]
    section = sections.get(name.partition(".")[0])
    if section:
        inside = tuple(each for each in section.settings if f"{each.name}.".startswith(f"{name}."))
        if inside:
            return [SectionInfo(section.name, section.description, inside)]
    names = [*sections, *(each.name for one in sections.values() for each in one.settings)]
    close = get_close_matches(name, names, 1)
    hint = f"did you mean {close[0]}?" if close else f"the sections are {', '.join(sections)}"
    raise ConfigError(f"there is no section or setting {name!r:.100}: {hint}")


def toml_text(value: Any) -> str:
    """A value as in jzi.toml; "unset" for None."""
    if value is None:
        return "unset"
    return tomlkit.item(list(value) if isinstance(value, tuple) else value).as_string().strip()


def _sections(kind: type, settings: Any, sources: Mapping[str, str]) -> dict[str, SectionInfo]:
    hints = get_type_hints(kind, include_extras=True)
    schema = TypeAdapter(kind).json_schema()
    found = {}
    for each in fields(kind):
        section = getattr(settings, each.name, None)
        node = schema["properties"][each.name]
        rows = _rows(each.name, hints[each.name], section, default_section(each, section), node, schema, sources)
        found[each.name] = SectionInfo(each.name, _summary(hints[each.name]), tuple(rows))
    return found


def _rows(
    prefix: str, cls: type, value: Any, default: Any, node: Any, schema: Any, sources: Mapping[str, str]
) -> Iterator[SettingInfo]:
    """The settings of a class, depth first; `value` is that in force, or None for the default."""
    node, texts = _resolved(node, schema), _descriptions(cls)
    for each in fields(cls):
        name, hint = f"{prefix}.{each.name}", get_type_hints(cls)[each.name]
        initial = _initial(each) if default is None else getattr(default, each.name)
        current = initial if value is None else getattr(value, each.name)
        property = node.get("properties", {}).get(each.name)
        if property is None or name in DERIVED:
            continue
        if is_dataclass(hint) and isinstance(hint, type):
            yield from _rows(name, hint, current, initial, property, schema, sources)
            continue
        text = texts.get(each.name, "")
        source = sources.get(name, "default" if value is None or current == initial else "jzi.toml")
        yield SettingInfo(name, current, initial, _allowed(property, schema), text[:1].upper() + text[1:], source)


def _initial(each: Field[Any]) -> Any:
    if each.default_factory is not MISSING:
        return each.default_factory()
    if isinstance(each.default, FieldInfo):
        return each.default.get_default()
    return None if each.default is MISSING else each.default


@lru_cache
def _descriptions(cls: type) -> dict[str, str]:
    """Entries under "Attributes:" or "Args:" of the docstrings of a class and its bases."""
    found: dict[str, str] = {}
    for base in cls.__mro__:
        block = re.search(r"^(?:Attributes|Args):\n((?: .*\n?|\n)+)", inspect.cleandoc(base.__doc__ or ""), re.M)
        for name, text in re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", block[1] if block else "", re.M):
            found.setdefault(name, " ".join(text.split()).replace("``", "`"))
    return found


def _summary(cls: type) -> str:
    return inspect.cleandoc(cls.__doc__ or "").partition("\n")[0]


def _resolved(node: Any, schema: Any) -> Any:
    """A node of a JSON schema, after its reference."""
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    return node


def _allowed(node: Any, schema: Any) -> str:
    """The values that a node of a JSON schema allows, in words."""
    node = _resolved(node, schema)
    if "anyOf" in node:
        return " or ".join(dict.fromkeys(_allowed(each, schema) for each in node["anyOf"]))
    if "enum" in node or "const" in node:
        return ", ".join(map(str, node.get("enum", [node.get("const")])))
    kind = node.get("type")
    if kind in ("integer", "number"):
        words = {
            "minimum": "at least",
            "exclusiveMinimum": "more than",
            "maximum": "at most",
            "exclusiveMaximum": "below",
        }
        bounds = {key: f"{node[key]:.10g}" for key in words if key in node}
        text = ", ".join(f"{words[key]} {bound}" for key, bound in bounds.items())
        if bounds.keys() == {"minimum", "maximum"}:
            text = " to ".join(bounds.values())
        kinds = "whole number" if kind == "integer" else "number"
        return f"{kinds} {text}".strip()
    if kind == "array":
        items = [_allowed(each, schema) for each in node.get("prefixItems", [])]
        return f"list of {len(items)}: {items[0]}" if items else f"list: {_allowed(node.get('items', {}), schema)}"
    return {"boolean": "true, false", "string": "text", "null": "unset", "object": "table"}.get(str(kind), "text")
