"""The reference of the settings of jzi.toml: names, types, ranges, defaults and descriptions, from the code."""

from __future__ import annotations

import inspect
import re
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from griffe import Docstring, DocstringSectionAttributes, DocstringSectionParameters
from pydantic import TypeAdapter

from jzi.docs.generate.commands import escape
from jzi.workspace.pairs import PairSettings
from jzi.workspace.settings import RegionSettings, Settings

HEAD = """# Settings

`jzi init` writes `jzi.toml`. Every setting can be overridden in a command: `--set decoder.layers=4`; strings, lists and
tables as in TOML, bare words are strings. Unknown settings, values out of range and overrides without effect are
refused. Relative paths are relative to the folder of `jzi.toml`.

A square area has the sections from [`pyramid`](#pyramid) on; a [region](../how-to/statewide.md) has
[`region`](#region), [`statewide`](#statewide) and [`encoding`](#encoding) instead of the pyramid, the encoder and the
zoom; a [data set of pairs](../reproduce/unifygeo.md) has [`pairs`](#pairs).
"""


def settings_page() -> str:
    """Return the page as Markdown."""
    parts, seen = [HEAD], set()
    for kind in (Settings, RegionSettings, PairSettings):
        hints = get_type_hints(kind, include_extras=True)
        for section in fields(kind):
            if section.name not in seen:
                seen.add(section.name)
                parts.append(_section(section.name, hints[section.name], section))
    return "\n".join(parts)


def _section(name: str, kind: Any, section: Field[Any]) -> str:
    made = section.default_factory() if section.default_factory is not MISSING else None
    text = inspect.cleandoc(kind.__doc__ or "")
    prose = escape(re.split(r"\n\n(?:Attributes|Args|Raises|Example)", text)[0])
    rows = list(_rows(name, kind, made))
    return (
        f"## {name}\n\n{prose}\n\n| setting | type | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
    )


def _rows(prefix: str, kind: Any, made: Any) -> list[str]:
    described, rows = descriptions(kind), []
    schema = TypeAdapter(kind).json_schema(mode="validation")
    properties = schema.get("properties") or schema["$defs"][kind.__name__]["properties"]
    hints = get_type_hints(kind, include_extras=True)
    for entry in fields(kind):
        if not entry.init or entry.name not in properties:
            continue
        default = getattr(made, entry.name, _default(entry))
        inner = get_args(hints[entry.name])[0] if get_origin(hints[entry.name]) is Annotated else hints[entry.name]
        if is_dataclass(inner):
            rows += _rows(f"{prefix}.{entry.name}", inner, default)
            continue
        meaning = escape(described.get(entry.name, "")).replace("|", "&#124;")
        value = _type(properties[entry.name], schema.get("$defs", {})).replace("|", "&#124;")
        rows.append(f"| `{prefix}.{entry.name}` | {value} | {_show(default)} | {meaning} |")
    return rows


def descriptions(kind: Any) -> dict[str, str]:
    """Descriptions of the attributes of a class and its bases, from the docstrings."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        for section in Docstring(base.__dict__.get("__doc__") or "").parse("google", warnings=False):
            if isinstance(section, DocstringSectionAttributes | DocstringSectionParameters):
                found |= {entry.name: " ".join(entry.description.split()) for entry in section.value}
    return found


def _default(entry: Field[Any]) -> Any:
    if entry.default_factory is not MISSING:
        return entry.default_factory()
    return getattr(entry.default, "default", entry.default)  # of pydantic's Field(default=...), or a plain one


def _show(value: Any) -> str:
    if value is MISSING or repr(value) == "PydanticUndefined":
        return "required"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{value}`".lower()
    if isinstance(value, str):
        return f'`"{value}"`'
    return f"`{list(value)}`" if isinstance(value, tuple) else f"`{value}`"


def _type(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """A short sentence for a JSON schema: "whole number, 1 to 256"."""
    if "$ref" in schema:
        return _type(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        return " or ".join(_type(each, definitions) for each in schema["anyOf"] if each.get("type") != "null")
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    kind = str(schema.get("type", "value"))
    if kind == "array":
        items = schema.get("items", {})
        return f"list of {_type(items, definitions)}" if items else f"list of {schema.get('maxItems', '')} values"
    name = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}
    return name.get(kind, {"object": "table"}.get(kind, kind)) + _range(schema)


def _range(schema: dict[str, Any]) -> str:
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    lower = f"from {low:.10g}" if low is not None else f"above {above:.10g}" if above is not None else ""
    upper = f"to {high:.10g}" if high is not None else f"below {below:.10g}" if below is not None else ""
    words = re.sub(" +", " ", f"{lower} {upper}").strip()
    return f", {words}" if words else ""
