"""Check settings against their pydantic `Field`s when a dataclass is created in Python rather than from jzi.toml."""

from __future__ import annotations

from dataclasses import fields
from functools import lru_cache
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from jzi.errors import ConfigError


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
            reason = error.errors()[0]["msg"]
            raise ConfigError(
                f"the setting {section}.{name} = {value!r:.100} has no sensible value: {reason}"
            ) from error


@lru_cache
def _adapters(settings: type) -> dict[str, TypeAdapter[Any]]:
    hints = get_type_hints(settings, include_extras=True)
    return {field.name: TypeAdapter(hints[field.name]) for field in fields(settings)}
