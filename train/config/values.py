"""Ranges of settings, and settings classes that refuse other values in a sentence."""

from __future__ import annotations

from functools import wraps
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, ValidationError

from jzi.locate.ranges import MAX_SEED
from jzi.store.info import MAX_IMAGE_SIZE
from jzi.store.setting_checks import first_invalid, setting_error

#: Largest number of photos, epochs and so on, and learning rate, width and so on.
MAX_COUNT, MAX_VALUE = 10**6, 1e9

#: Longest distance between a photo and a cell, metres; areas are not much larger.
MAX_DISTANCE_M = 1e6

Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
NotNegative = Annotated[float, Field(ge=0, le=MAX_VALUE)]
Positive = Annotated[float, Field(gt=0, le=MAX_VALUE)]
ImageSize = Annotated[int, Field(ge=1, le=MAX_IMAGE_SIZE)]
PixelSize = Annotated[float, Field(gt=0, le=1000)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Share = Annotated[float, Field(ge=0, le=1)]

Class = TypeVar("Class", bound=type)

STRICT = ConfigDict(extra="forbid")


def raises_config_error(cls: Class) -> Class:
    """Make a settings class raise ConfigError, in one sentence, if a value is out of range."""
    plain: Any = cls.__init__  # type: ignore[misc]

    @wraps(plain)
    def init(self: Any, *args: Any, **values: Any) -> None:
        try:
            plain(self, *args, **values)
        except ValidationError as error:
            first = first_invalid(error)
            name = f"{getattr(cls, 'section', cls.__name__)}.{first.name}".rstrip(".")
            raise setting_error(name, first.value, first.reason) from error

    cls.__init__ = init  # type: ignore[misc]
    return cls
