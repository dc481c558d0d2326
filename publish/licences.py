"""Licences by their usual names: the ids of Hugging Face, and what share-alike ones ask for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

#: Ids of Hugging Face for licences of photos and imagery; others are "other".
#: https://huggingface.co/docs/hub/repositories-licenses
_IDS = {
    "cc0": "cc0-1.0", "cc0-1.0": "cc0-1.0", "public-domain": "pddl", "pddl": "pddl", "odbl": "odbl",
    "odbl-1.0": "odbl", "odc-by": "odc-by", "odc-by-1.0": "odc-by", "unknown": "unknown", "": "unknown",
}  # fmt: skip

#: Those of Creative Commons that it lists.
_LISTED = {
    "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0",
    "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0",
    "cc-by-nc-sa-4.0",
}  # fmt: skip


#: Those of software and weights that it lists.
_SOFTWARE = {
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "isc", "mpl-2.0", "gpl-2.0", "gpl-3.0", "lgpl-2.1", "lgpl-3.0",
    "agpl-3.0", "unlicense", "openrail", "etalab-2.0", "cdla-permissive-2.0", "cdla-sharing-1.0",
}  # fmt: skip


def licence_id(licence: str) -> str:
    """The id that Hugging Face has for a licence, "unknown" if nobody said, and "other" for one that it has not.

    Example:
        >>> licence_id("CC BY-SA 4.0"), licence_id("City of X, all rights reserved")
        ('cc-by-sa-4.0', 'other')
    """
    name = _hyphenated(licence).removeprefix("creative-commons-")
    if name in _LISTED | _SOFTWARE:
        return name
    return _IDS.get(name, "other")


def similar_ids(licence: str) -> list[str]:
    """Ids that a licence which is none of them is a misspelling of, the most similar first.

    Example:
        >>> similar_ids("cc-by-40"), similar_ids("City of X, all rights reserved")
        (['cc-by-4.0'], [])
    """
    return get_close_matches(_hyphenated(licence), _LISTED | _SOFTWARE | _IDS.keys(), n=1, cutoff=0.85)


def licence_ids(licences: Iterable[str]) -> list[str]:
    """The ids of several licences, each once, in order; "unknown" for none."""
    return list(dict.fromkeys(map(licence_id, licences))) or ["unknown"]


def is_share_alike(licence: str) -> bool:
    """Whether what is made from works under a licence must be under the same one."""
    return bool(re.search(r"\b(by-(nc-)?sa|odbl|share-?alike)\b", _hyphenated(licence)))


def is_non_commercial(licence: str) -> bool:
    """Whether a licence forbids commercial use."""
    return bool(re.search(r"\bnc\b|non-?commercial", _hyphenated(licence)))


def _hyphenated(licence: str) -> str:
    """In lower case, with hyphens between the words, as ids are written."""
    return re.sub(r"[\s_]+", "-", licence.strip().lower())
