"""Parts that other packages add: entry points of installed distributions, loaded only if the user names them.

A package offers an encoder family or an expert under a name in its pyproject.toml:

    [project.entry-points."jzi.encoders"]
    toy = "jzi_toy.encoder:FAMILY"

    [project.entry-points."jzi.experts"]
    toy = "jzi_toy.expert:load"

Its code is imported when the user names it: experts by `--experts` or `jzi.load(experts=...)`, encoder families in the
environment variable `JZI_PLUGINS`, since the file that asks for a family may come from a stranger. No file names code.
"""

from __future__ import annotations

import os
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from jzi.errors import JziError, first_line

#: Groups of entry points.
ENCODERS, EXPERTS = "jzi.encoders", "jzi.experts"

#: Environment variable with the names of encoder families whose code may be loaded, separated by commas.
VARIABLE = "JZI_PLUGINS"

#: What each group holds, for messages.
_KINDS = {ENCODERS: "encoder family", EXPERTS: "expert"}


def installed(group: str) -> tuple[str, ...]:
    """Names that installed packages offer in a group; imports none of them."""
    return tuple(sorted(entry_points(group=group).names))


def named_families() -> tuple[str, ...]:
    """The encoder families that the user names in `JZI_PLUGINS`."""
    return tuple(name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip())


def load_plugin(group: str, name: str, error: type[JziError]) -> tuple[Any, str]:
    """Import what an installed package offers.

    Args:
        group: `ENCODERS` or `EXPERTS`.
        name: the name that the user gave.
        error: class of errors to raise.

    Returns:
        The object, and "the expert 'toy' of jzi-toy 0.1" or the like, for messages.

    Raises:
        JziError: no package offers it, two do, or it cannot be imported.
    """
    found = {_owner(each): each for each in entry_points(group=group, name=name)}
    kind = _KINDS[group]
    if not found:
        names = ", ".join(installed(group)) or "none"
        raise error(f"no installed package offers the {kind} {name!r:.60} (offered: {names}): install its package")
    if len(found) > 1:
        raise error(f"several packages offer the {kind} {name!r:.60}, {' and '.join(sorted(found))}: uninstall one")
    ((owner, point),) = found.items()
    label = f"the {kind} {name!r} of {owner}"
    try:
        return point.load(), label
    except Exception as problem:  # whatever the package's modules raise
        reason = f"{type(problem).__name__}: {first_line(problem)}"
        raise error(f"{label} cannot be imported ({reason}): repair or uninstall that package") from problem


def _owner(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown package"
