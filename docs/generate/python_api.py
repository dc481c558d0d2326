"""The reference of the Python API: what `jzi` exports, from signatures and docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import cached_property
from typing import Any

from griffe import Docstring, DocstringSectionKind

import jzi
from jzi.docs.generate.commands import escape

HEAD = """# Python

What `import jzi` offers; names are imported on first use. [Use it from Python](../how-to/python.md) has
examples, [Output and exit codes](output.md) the fields of JSON. Arrays have their axes in the text; metres and pixels
are the default units.
"""

#: Of these sections griffe gives entries with a name, a type and a description.
_ENTRIES = {
    DocstringSectionKind.parameters: "Arguments",
    DocstringSectionKind.attributes: "Attributes",
    DocstringSectionKind.raises: "Raises",
    DocstringSectionKind.returns: "Returns",
    DocstringSectionKind.yields: "Yields",
}


def python_page() -> str:
    """Return the page as Markdown."""
    names = [name for name in jzi.__all__ if name != "__version__"]
    parts = [HEAD, "| name | what it is |\n|---|---|"]
    for name in names:
        exported = getattr(jzi, name)
        first = escape((inspect.getdoc(exported) or "").partition("\n\n")[0].replace("\n", " ")).replace("|", "&#124;")
        parts.append(f"| [`jzi.{name}`](#jzi.{name}) | {first} |")
    parts.append("")
    for name in names:
        exported = getattr(jzi, name)
        parts += _entry(f"jzi.{name}", exported, 2)
        if inspect.isclass(exported):
            for member, value in members(exported):
                parts += _entry(f"jzi.{name}.{member}", value, 3)
    return "\n".join(parts)


def members(kind: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties that a class, or a base of jzi, defines."""
    seen = set()
    for base in kind.__mro__:
        if base.__module__.startswith("jzi."):
            for name, value in vars(base).items():
                described = isinstance(value, property | cached_property | classmethod | staticmethod)
                if not name.startswith("_") and name not in seen and (described or inspect.isfunction(value)):
                    seen.add(name)
                    yield name, value


def _entry(path: str, value: Any, level: int) -> Iterator[str]:
    name = path.rpartition(".")[2]
    label = path if level == 2 else path.removeprefix("jzi.")
    yield f"{'#' * level} `{label}` {{ #{path} data-toc-label='{name}' }}\n"
    if signature := _signature(name, value):
        yield f"```python\n{signature}\n```\n"
    docstring = value.__func__.__doc__ if isinstance(value, classmethod | staticmethod) else value.__doc__
    if inspect.isclass(value) and is_dataclass(value) and (docstring or "").startswith(f"{value.__name__}("):
        docstring = ""  # the dataclass decorator's own
    yield from _docstring(docstring or "")


def _signature(name: str, value: Any) -> str:
    if isinstance(value, property | cached_property):
        return ""
    function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return ""
    parameters = [
        p.replace(annotation=_plain(p.annotation))
        for p in signature.parameters.values()
        if p.name not in ("self", "cls")
    ]
    text = str(signature.replace(parameters=parameters)).replace("'", "")
    if len(name + text) <= 100:
        return name + text
    arguments = ",\n    ".join(str(parameter).replace("'", "") for parameter in parameters)
    returns = text.rpartition(") -> ")[2] if ") -> " in text else ""
    return f"{name}(\n    {arguments},\n)" + (f" -> {returns}" if returns else "")


def _plain(annotation: Any) -> Any:
    """An annotation without the ranges that pydantic checks."""
    return (
        re.sub(r"Annotated\[(\w+), Field\([^)]*\)\]", r"\1", annotation) if isinstance(annotation, str) else annotation
    )


def _docstring(text: str) -> Iterator[str]:
    for section in Docstring(inspect.cleandoc(text)).parse("google", warnings=False):
        if section.kind is DocstringSectionKind.text:
            yield escape(section.value) + "\n"
        elif section.kind is DocstringSectionKind.examples:
            for kind, content in section.value:
                yield (escape(content) if kind is DocstringSectionKind.text else f"```pycon\n{content}\n```") + "\n"
        elif title := _ENTRIES.get(section.kind):
            yield f"**{title}**\n"
            for entry in section.value:
                name = getattr(entry, "name", "") or (str(entry.annotation) if title == "Raises" else "")
                description = escape(" ".join(entry.description.split()))
                yield f"- `{name}`: {description}" if name else f"- {description}"
            yield ""
