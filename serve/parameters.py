"""Parameters of `POST /locate`: their ranges, and the sentence for one that is out of its range."""

from __future__ import annotations

from typing import Any

from fastapi.exceptions import RequestValidationError

from jzi.errors import ConfigError
from jzi.locate.priors.prior_weights import check_circle
from jzi.serve.limits import REGION_BYTES
from jzi.store.setting_checks import first_invalid

#: The form of `POST /locate`, in the terms of OpenAPI; `jzi.serve.uploads` receives it.
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "title": "Photo",
                    "type": "object",
                    "required": ["photo"],
                    "properties": {
                        "photo": {"type": "string", "format": "binary", "description": "file of the photo"},
                        "region": {
                            "type": "string",
                            "format": "binary",
                            "maxLength": REGION_BYTES,
                            "description": "prior: GeoJSON polygons, as a file or as text, in which it was taken",
                        },
                    },
                }
            }
        },
    }
}


def parse_position(near: str | None, within: float | None) -> tuple[float, float] | None:
    """Parse latitude,longitude in degrees; None if there is none.

    Args:
        near: the text.
        within: distance that belongs to it, metres.

    Raises:
        ConfigError: it is no such pair, the position is not on earth, or only one of the two is given.
    """
    if (near is None) != (within is None):
        raise ConfigError("near and within belong together, a position and a distance in metres: give both")
    if near is None or within is None:
        return None
    try:
        latitude, longitude = (float(part) for part in near.split(","))
    except ValueError as error:
        raise ConfigError(f"near is {near!r:.40}: give latitude,longitude, such as 48.2,16.37") from error
    check_circle(latitude, longitude, within)
    return latitude, longitude


def check_names(names: set[str], allowed: set[str]) -> None:
    """Raise a ConfigError if a request has a parameter that does not exist, which would be ignored."""
    if unknown := sorted(names - allowed):
        raise ConfigError(f"there is no parameter {unknown[0]!r:.40}: the parameters are {', '.join(sorted(allowed))}")


def sentence(error: RequestValidationError) -> str:
    """The first of a request's errors in one sentence: the parameter, its range and its value."""
    invalid = first_invalid(error)
    return f"{invalid.name.rpartition('.')[2]} {invalid.reason.removeprefix('it ')}, not {invalid.value!r:.40}"
