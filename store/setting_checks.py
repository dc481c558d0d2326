"""Sentences about values that pydantic refuses; checks of settings that are created in Python rather than by it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, get_type_hints

from pydantic import TypeAdapter, ValidationError

from jzi.errors import ConfigError


class InvalidEntry(NamedTuple):
    """The first entry that pydantic refuses.

    Attributes:
        name: its name, such as `encoder.width`.
        value: its value.
        kind: pydantic's name for the error.
        reason: what is wrong with it.
    """

    name: str
    value: Any
    kind: str
    reason: str

    def __str__(self) -> str:
        return f"invalid entry {self.name:.100} ({self.reason})"


class Refusal(Protocol):
    """Pydantic's `ValidationError`, or the errors of pydantic that FastAPI collects about a request."""

    def errors(self) -> Sequence[Any]:
        """Pydantic's description of each entry that it refuses."""
        ...


def first_invalid(error: Refusal) -> InvalidEntry:
    """Return the first entry that pydantic refuses."""
    first = error.errors()[0]
    return InvalidEntry(".".join(map(str, first["loc"])), first["input"], first["type"], _plain(first["msg"]))


#: Pydantic's terms for types, and those of people who write settings.
_TYPES = {"a valid integer": "a whole number", "a valid number": "a number", "a valid boolean": "true or false",
          "a valid string": "text", "a valid list": "a list", "a valid tuple": "a list",
          "a valid dictionary": "a section"}  # fmt: skip


def _plain(message: str) -> str:
    """Pydantic's "Input should be a valid integer, unable to parse ..." as "it must be a whole number"."""
    message = re.sub("^(Input|String) should", "it must", message.partition(", unable to")[0])
    if "exceeded maximum size" in message:  # Python's limit for numbers in text, 4300 digits
        return "it must be a number of fewer digits"
    for term, plain in _TYPES.items():
        message = message.replace(term, plain)
    return message


def setting_error(name: str, value: Any, reason: str) -> ConfigError:
    """Return the error of a setting with a value that is out of range or of another type.

    Args:
        name: section and name, such as `decoder.layers`.
        value: its value.
        reason: what is wrong with it.
    """
    shown = "" if "key" in name.rpartition(".")[2] else f" = {value!r:.100}"  # it may be a secret in the wrong place
    return ConfigError(f"the setting {name}{shown} has no sensible value: {reason}")


def check_settings(section: str, settings: Any) -> None:
    """Validate the fields of a dataclass by their annotations, such as `Annotated[int, Field(ge=1)]`.

    Args:
        section: section of jzi.toml that the fields belong to, for error messages.
        settings: an instance of a dataclass.

    Raises:
        ConfigError: the type or the range of a value is wrong.
    """
    for name, adapter in _adapters(settings.__class__).items():
        value = getattr(settings, name)
        try:
            adapter.validate_python(value, strict=True)
        except ValidationError as error:
            raise setting_error(f"{section}.{name}", value, first_invalid(error).reason) from error


@lru_cache
def _adapters(settings: type) -> dict[str, TypeAdapter[Any]]:
    hints = get_type_hints(settings, include_extras=True)
    return {field.name: TypeAdapter(hints[field.name]) for field in fields(settings)}
