"""Check settings against their pydantic `Field`s, for classes that are made in Python as well as from jzi.toml."""

from __future__ import annotations

from dataclasses import fields
from functools import lru_cache
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from jzi.errors import ConfigError


def check_settings(section: str, settings: Any) -> None:
    """Check the fields of a dataclass against their annotations, of which `Annotated[int, Field(ge=1)]` is one.

    Args:
        section: of jzi.toml, to name a field by.
        settings: a dataclass.

    Raises:
        ConfigError: the type or the range of a value is wrong.
    """
    for name, adapter in _adapters(settings.__class__).items():
        value = getattr(settings, name)
        try:
            adapter.validate_python(value, strict=True)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise ConfigError(f"the setting {section}.{name} = {value!r} has no sensible value: {reason}") from error


@lru_cache
def _adapters(settings: type) -> dict[str, TypeAdapter]:
    hints = get_type_hints(settings, include_extras=True)
    return {field.name: TypeAdapter(hints[field.name]) for field in fields(settings)}
