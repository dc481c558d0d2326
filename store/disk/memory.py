"""Memory settings, such as "auto" or "4GB"."""

from __future__ import annotations

import re

from jzi.errors import ConfigError

_FACTORS = {"k": 1, "M": 2, "G": 3, "T": 4}


def memory_bytes(value: str, name: str = "memory") -> int | None:
    """Return the bytes of a memory setting; None for "auto".

    Args:
        value: "auto", or a number with a unit: "500MB", "4GB", "2.5GiB".
        name: name of the setting, for the error message.

    Raises:
        ConfigError: it is neither.

    Example:
        >>> memory_bytes("1.5GB"), memory_bytes("1 MiB"), memory_bytes("auto")
        (1500000000, 1048576, None)
    """
    if value == "auto":
        return None
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?) ?([kMGT])(i?)B", value)
    if match is None:
        raise ConfigError(f'{name} is {value!r:.40}: give "auto", or a number with a unit, such as "500MB" or "4GB"')
    number, factor, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** _FACTORS[factor])
